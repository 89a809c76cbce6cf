#include "cuda/weight_norm.h"

#include <cuda_fp16.h>

#include "cuda/launch.h"

namespace pnf::cuda {
namespace {

constexpr int kRowThreads = 128;
constexpr int kWarps = kRowThreads / 32;

// Layers of one launch. Their table is passed by value, and the parameters of a kernel have at most 32,764 bytes.
constexpr int kMostLayers = 384;

template <typename L>
struct Table {
  L layers[kMostLayers];
  int64_t first[kMostLayers + 1];  // row of each layer, and how many there are in all
  int count;
};

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
__device__ T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, Float16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = __float_as_uint(x);
    if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
  } else {
    return x;
  }
}

// The sum over a block, the same in every thread and in every run.
template <typename C>
__device__ C block_sum(C value) {
  __shared__ C parts[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  C total = 0;
  for (int i = 0; i < kWarps; ++i) total += parts[i];
  return total;
}

template <typename C>
__device__ C inverse_norm(C square) {
  const C least = static_cast<C>(kLeastSquare);
  return 1 / sqrt(square < least ? least : square);
}

// Calls body(entry) for the entries of a row that this thread works on, V at a time.
template <int V, typename Body>
__device__ void for_entries(int64_t length, const Body& body) {
  for (int64_t i = threadIdx.x * V; i < length; i += kRowThreads * V) body(i);
}

template <typename L>
__device__ const L& layer_of(const Table<L>& table, int64_t row) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return table.layers[low];
}

template <typename T, int V>
__device__ void normalise(const Layer& layer, int64_t row) {
  using C = Wide<T>;
  using Line = Vector<T, V>;
  const T* x = static_cast<const T*>(layer.direction) + row * layer.length;
  T* out = static_cast<T*>(layer.weight) + row * layer.length;
  C square = 0;
  for_entries<V>(layer.length, [&](int64_t i) {
    const Line line = *reinterpret_cast<const Line*>(x + i);
    for (int j = 0; j < V; ++j) square += widen(line.v[j]) * widen(line.v[j]);
  });
  C scale = inverse_norm(block_sum(square));
  if (layer.magnitude) scale *= widen(static_cast<const T*>(layer.magnitude)[row]);
  for_entries<V>(layer.length, [&](int64_t i) {
    Line line = *reinterpret_cast<const Line*>(x + i);
    for (int j = 0; j < V; ++j) line.v[j] = narrow<T>(widen(line.v[j]) * scale);
    *reinterpret_cast<Line*>(out + i) = line;
  });
}

template <typename T, int V>
__device__ void normalise(const LayerBackward& layer, int64_t row) {
  using C = Wide<T>;
  using Line = Vector<T, V>;
  const T* x = static_cast<const T*>(layer.direction) + row * layer.length;
  const T* grad = static_cast<const T*>(layer.grad) + row * layer.length;
  T* out = static_cast<T*>(layer.grad_direction) + row * layer.length;
  C square = 0, along = 0;
  for_entries<V>(layer.length, [&](int64_t i) {
    const Line a = *reinterpret_cast<const Line*>(x + i), b = *reinterpret_cast<const Line*>(grad + i);
    for (int j = 0; j < V; ++j) {
      square += widen(a.v[j]) * widen(a.v[j]);
      along += widen(a.v[j]) * widen(b.v[j]);
    }
  });
  square = block_sum(square);
  along = block_sum(along);
  const C inverse = inverse_norm(square);
  C scale = inverse;
  if (layer.magnitude) {
    scale *= widen(static_cast<const T*>(layer.magnitude)[row]);
    if (threadIdx.x == 0) static_cast<T*>(layer.grad_magnitude)[row] = narrow<T>(along * inverse);
  }
  // Below the least norm, the norm is a constant.
  const C through = square < static_cast<C>(kLeastSquare) ? C{0} : along / square;
  for_entries<V>(layer.length, [&](int64_t i) {
    const Line a = *reinterpret_cast<const Line*>(x + i), b = *reinterpret_cast<const Line*>(grad + i);
    Line line;
    for (int j = 0; j < V; ++j) line.v[j] = narrow<T>((widen(b.v[j]) - widen(a.v[j]) * through) * scale);
    *reinterpret_cast<Line*>(out + i) = line;
  });
}

__device__ inline bool in_lines(const Layer& layer) {
  return aligned(layer.weight, 16) && aligned(layer.direction, 16);
}

__device__ inline bool in_lines(const LayerBackward& layer) {
  return aligned(layer.grad_direction, 16) && aligned(layer.grad, 16) && aligned(layer.direction, 16);
}

// A block for each row.
template <typename T, typename L>
__global__ void __launch_bounds__(kRowThreads) rows_kernel(const __grid_constant__ Table<L> table) {
  constexpr int V = 16 / sizeof(T);
  for (int64_t row = blockIdx.x; row < table.first[table.count]; row += gridDim.x) {
    const L& layer = layer_of(table, row);
    const int64_t at = row - table.first[&layer - table.layers];
    if (layer.length % V == 0 && in_lines(layer)) {
      normalise<T, V>(layer, at);
    } else {
      normalise<T, 1>(layer, at);
    }
  }
}

template <typename L>
const char* run(const L* layers, size_t count, DType dtype, std::uintptr_t stream) {
  for (size_t begin = 0; begin < count; begin += kMostLayers) {
    Table<L> table{};
    table.count = static_cast<int>(std::min<size_t>(count - begin, kMostLayers));
    for (int i = 0; i < table.count; ++i) {
      table.layers[i] = layers[begin + static_cast<size_t>(i)];
      table.first[i + 1] = table.first[i] + table.layers[i].rows;
    }
    const int64_t rows = table.first[table.count];
    if (rows == 0) continue;
    const int blocks = static_cast<int>(std::min<int64_t>(rows, int64_t{1} << 30));
    with_dtype(dtype, [&]<typename T>(T) { rows_kernel<T, L><<<blocks, kRowThreads, 0, as_stream(stream)>>>(table); });
    if (const char* error = launch_error()) return error;
  }
  return nullptr;
}

}  // namespace

const char* weight_norm(const Layer* layers, size_t count, DType dtype, std::uintptr_t stream) {
  return run(layers, count, dtype, stream);
}

const char* weight_norm_backward(const LayerBackward* layers, size_t count, DType dtype, std::uintptr_t stream) {
  return run(layers, count, dtype, stream);
}

}  // namespace pnf::cuda
