# Enables CUDA and chooses architectures, or sets pnf_no_CUDA to what is missing.

if(PNF_CUDA STREQUAL "OFF")
  set(pnf_no_CUDA "it was built with PNF_CUDA=OFF; reinstall pnf without that")
  return()
endif()

if(DEFINED CMAKE_CUDA_COMPILER)
  set(nvcc ${CMAKE_CUDA_COMPILER})
elseif(DEFINED ENV{CUDACXX})
  set(nvcc $ENV{CUDACXX})
else()
  find_program(PNF_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(PNF_NVCC)
  set(nvcc ${PNF_NVCC})
endif()
if(NOT nvcc)
  pnf_leave_out(CUDA "no nvcc was found"
    "Install the CUDA toolkit (12.0 or newer), put nvcc on PATH or set CUDACXX to it")
  return()
endif()

execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE status ERROR_QUIET)
if(NOT status EQUAL 0)
  pnf_leave_out(CUDA "${nvcc} does not list its architectures (${status})"
    "Set CUDACXX to the nvcc of a CUDA toolkit of version 12.0 or newer")
  return()
endif()
include(cmake/architectures.cmake)
pnf_architectures("${known}" CMAKE_CUDA_ARCHITECTURES)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  pnf_leave_out(CUDA "${nvcc} knows no GPU from Turing on" "Install the CUDA toolkit (12.0 or newer)")
  return()
endif()
if(PNF_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${PNF_CUDA_ARCHITECTURES})
endif()

# CMake would stop at an nvcc that cannot compile, or keep its reasons to itself.
file(WRITE ${PROJECT_BINARY_DIR}/probe/probe.cu [[
#include <cuda_runtime.h>
#include <type_traits>
__global__ void probe() {}
int main() { [&]<typename T>(T) { probe<<<1, 1>>>(); }(0); }
]])
set(host)
if(DEFINED ENV{CUDAHOSTCXX})
  set(host -ccbin $ENV{CUDAHOSTCXX})
endif()
execute_process(COMMAND ${nvcc} -std=c++20 ${host} probe.cu -o probe
  WORKING_DIRECTORY ${PROJECT_BINARY_DIR}/probe OUTPUT_VARIABLE output ERROR_VARIABLE error RESULT_VARIABLE status)
if(status EQUAL 0)
  set(ENV{CUDACXX} ${nvcc})
  check_language(CUDA)
  set(error "CMake cannot use it")
endif()
if(NOT status EQUAL 0 OR NOT CMAKE_CUDA_COMPILER)
  string(REGEX MATCH "[^\n]*(error|fatal|unsupported|cannot)[^\n]*" line "${error}${output}")
  string(REGEX REPLACE "[.]$" "" line "${line}")
  if(NOT line)
    set(line "status ${status}")
  endif()
  pnf_leave_out(CUDA "${nvcc} cannot compile C++20 with its host compiler: ${line}"
    "Set CUDAHOSTCXX to a C++ compiler that it supports, or install a newer CUDA toolkit")
  return()
endif()
enable_language(CUDA)
set(pnf_with_cuda ON)
