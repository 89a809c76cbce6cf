#include "cuda/device.h"

#include <cuda_runtime.h>

namespace pnf::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

const char* why_not() {
  // Loads the code for the device, which needs a driver that is new enough, and machine code or PTX that it takes.
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, nothing);
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // else the next launch would report it
  return cudaGetErrorString(error);
}

}  // namespace pnf::cuda
