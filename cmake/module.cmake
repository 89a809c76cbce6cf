# The compiled module, pnf._C.

# If it is there and can write its cache.
find_program(PNF_CCACHE ccache)
mark_as_advanced(PNF_CCACHE)
if(PNF_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  file(TOUCH ${PROJECT_BINARY_DIR}/probe/empty.cpp)
  execute_process(COMMAND ${PNF_CCACHE} ${CMAKE_CXX_COMPILER} -c empty.cpp -o empty.o
    WORKING_DIRECTORY ${PROJECT_BINARY_DIR}/probe RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
  if(status EQUAL 0)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${PNF_CCACHE})
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${PNF_CCACHE})
  endif()
endif()

set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# A dynamic runtime would make `import pnf` fail wherever no CUDA library is installed.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# By hand, because CMake 3.25 cannot ask nvcc for C++20, and CUDA_STANDARD follows CXX_STANDARD.
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-std=c++20;-O2>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-O3;--threads=0>")
# Warnings are for those who change the sources, and take a twelfth of the time.
if(PNF_WERROR)
  add_compile_options(
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wpedantic;-Werror>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
endif()
if(PNF_SANITIZE)
  # Every finding ends the process. Floating-point exceptions are none: NaN and infinities are results like others.
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=all;-g;-O1>")
  add_link_options(-fsanitize=address,undefined)
endif()

file(GLOB pnf_sources CONFIGURE_DEPENDS csrc/*.cpp csrc/bindings/*.cpp)
file(GLOB pnf_kernels CONFIGURE_DEPENDS csrc/cpu/*.cpp)
set(pnf_runtime csrc/cpu/isa.cpp csrc/cpu/parallel.cpp)
list(TRANSFORM pnf_runtime PREPEND ${PROJECT_SOURCE_DIR}/)
list(REMOVE_ITEM pnf_kernels ${pnf_runtime})

if(pnf_with_cuda)
  file(GLOB pnf_cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
endif()

# Before the kernels, so that the build begins with its longest sources.
pybind11_add_module(_C MODULE NO_EXTRAS ${pnf_runtime} ${pnf_sources} ${pnf_cuda_sources})
# The bindings as one source: pybind11's templates take most of the time of each of them.
set_source_files_properties(${pnf_runtime} ${pnf_cuda_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
set_target_properties(_C PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
target_include_directories(_C PRIVATE csrc)
if(NOT pnf_levels STREQUAL "generic")
  target_compile_definitions(_C PRIVATE PNF_X86_64)
endif()
target_link_libraries(_C PRIVATE ${CMAKE_DL_LIBS})
target_compile_definitions(_C PRIVATE
  PNF_VERSION="${PROJECT_VERSION}"
  PNF_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
if(pnf_with_cuda)
  string(REPLACE ";" " " pnf_architectures "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_definitions(_C PRIVATE
    PNF_WITH_CUDA
    PNF_NVCC="${CMAKE_CUDA_COMPILER_VERSION}"
    PNF_CUDA_ARCHITECTURES="${pnf_architectures}")
endif()

# One split's halves are the next one's terms: a fused multiply-add would skip the rounding of denormals between them. On
# the lattice it would move a pixel to another level than in the reference.
set_source_files_properties(csrc/cpu/haar.cpp csrc/cpu/lattice.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off SKIP_PRECOMPILE_HEADERS ON)
# One source, compiled once for each level of x86-64; csrc/cpu/isa.h chooses at run time. The lowest level comes first,
# so that where levels share an inline function of the C++ library the linker keeps the one that runs everywhere.
foreach(level IN LISTS pnf_levels)
  add_library(pnf_${level} OBJECT ${pnf_kernels})
  target_include_directories(pnf_${level} PRIVATE csrc)
  target_compile_definitions(pnf_${level} PRIVATE PNF_ISA=${level})
  if(NOT level STREQUAL "generic")
    string(REPLACE "_v" "-v" pnf_march ${level})
    string(REPLACE "x86_" "x86-" pnf_march ${pnf_march})
    target_compile_definitions(pnf_${level} PRIVATE PNF_X86_64)
    target_compile_options(pnf_${level} PRIVATE -march=${pnf_march} -mprefer-vector-width=512)
  endif()
  # Nothing reads errno or the floating-point exceptions; NaN, infinities and signed zeros keep their meaning.
  target_compile_options(pnf_${level} PRIVATE -O3 -fno-math-errno -fno-trapping-math -Wno-psabi)
  # These take half a second of each source. ccache does not keep what is compiled with precompiled headers.
  if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
    target_precompile_headers(pnf_${level} PRIVATE <algorithm> <cmath> <functional> <numeric> <vector>)
    if(NOT level STREQUAL "generic")
      target_precompile_headers(pnf_${level} PRIVATE <immintrin.h>)
    endif()
  endif()
  target_sources(_C PRIVATE $<TARGET_OBJECTS:pnf_${level}>)
endforeach()

install(TARGETS _C LIBRARY DESTINATION pnf)
