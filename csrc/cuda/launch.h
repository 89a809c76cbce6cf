// A grid for n items, and what became of a launch.
//
// nvcc's host compiler may have another C++ library than the rest of the module has. So nothing of the library, and no
// exception, goes from one to the other.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace pnf::cuda {

constexpr int kThreads = 256;

// The kernels stride over the grid, so it need not grow with the tensor. This many blocks fill any GPU.
constexpr int64_t kMaxBlocks = 1 << 14;

inline cudaStream_t as_stream(std::uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

inline int grid(int64_t items) {
  return static_cast<int>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

// Null if the launch succeeded.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
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
