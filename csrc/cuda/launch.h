// A grid for n items, and an exception for a launch that failed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pnf::cuda {

constexpr int kThreads = 256;

// The kernels stride over the grid, so it need not grow with the tensor. This many blocks fill any GPU.
constexpr int64_t kMaxBlocks = 1 << 14;

inline cudaStream_t as_stream(std::uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

inline int grid(int64_t items) {
  return static_cast<int>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": the CUDA launch failed: " + cudaGetErrorString(error));
  }
}

// Entries of `width` in one 16-byte access.
template <typename T, int width>
struct alignas(sizeof(T) * width) Vector {
  T v[width];
};

__host__ __device__ inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

}  // namespace pnf::cuda
