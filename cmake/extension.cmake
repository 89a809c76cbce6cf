# Enables C++ and finds what the compiled module needs, or sets pnf_no_EXTENSION to what is missing.

if(PNF_EXTENSION STREQUAL "OFF")
  if(PNF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "pnf: PNF_CUDA=ON needs the C++ kernels; remove PNF_EXTENSION=OFF.")
  endif()
  set(pnf_no_EXTENSION "it was built with PNF_EXTENSION=OFF; reinstall pnf without that")
  return()
endif()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  pnf_leave_out(EXTENSION "no working C++ compiler was found"
    "Install GCC 11 or newer or Clang 14 or newer, or set CXX to it")
  return()
endif()
enable_language(CXX)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(pnf_levels x86_64_v3 x86_64_v4)
  set(pnf_probe_flags -march=x86-64-v4 -DPNF_X86_64)
else()
  set(pnf_levels generic)
  set(pnf_probe_flags)
endif()

# The kernels' own vectors tell more than a version would.
file(WRITE ${PROJECT_BINARY_DIR}/probe/probe.cpp [[
#include <functional>
#include "cpu/simd.h"
using namespace pnf::cpu::PNF_ISA;
int main(int count, char**) {
  const Vec<float> v = splat(static_cast<float>(count));
  return std::function<int(int)>([&]<typename T>(T i) { return static_cast<int>(zip<0>(v, v)[i]); })(0) - 1;
}
]])
list(JOIN pnf_probe_flags " " pnf_probe_flags)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
try_compile(pnf_probed ${PROJECT_BINARY_DIR}/probe ${PROJECT_BINARY_DIR}/probe/probe.cpp
  COMPILE_DEFINITIONS "-std=c++20 ${pnf_probe_flags} -DPNF_ISA=probe"
  CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/csrc
  OUTPUT_VARIABLE pnf_probe_output)
unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
if(NOT pnf_probed)
  string(REGEX MATCH "[^\n]*error[^\n]*" error "${pnf_probe_output}")
  set(compiler "${CMAKE_CXX_COMPILER} (${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION})")
  pnf_leave_out(EXTENSION "${compiler} cannot compile the C++ kernels: ${error}"
    "Install GCC 11 or newer or Clang 14 or newer, or set CXX to it")
  return()
endif()

find_package(Python COMPONENTS Interpreter Development.Module)
if(NOT Python_FOUND)
  pnf_leave_out(EXTENSION "the header files of Python were not found"
    "Install them (on Debian and Ubuntu, the package python3-dev)")
  return()
endif()
find_package(pybind11 CONFIG)
if(NOT pybind11_FOUND)
  pnf_leave_out(EXTENSION "pybind11 was not found" "Install it with pip")
endif()
