#include <initializer_list>
#include <limits>

#include "cuda/launch.h"
#include "cuda/masking.h"

namespace pnf::cuda {
namespace {

using Word16 = Vector<uint64_t, 2>;

template <typename Index>
__device__ Index thread_index() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <typename Index>
__device__ Index grid_size() {
  return static_cast<Index>(gridDim.x) * blockDim.x;
}

// Zeroes the entries that are not kept among n from `flat` on. An entry is a site; only the end of a row takes a
// division.
template <typename T, int V, typename Index>
__device__ void mask_line(Vector<T, V>& line, const Sites<Index>& sites, Index flat) {
  Index site = flat % sites.count;
  Index left = sites.width - site % sites.width;
  bool keep = sites.kept(site);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (!keep) line.v[j] = T{};
    keep = !keep;
    ++site;
    if (--left == 0) {
      if (site == sites.count) site = 0;
      left = sites.width;
      keep = sites.kept(site);
    }
  }
}

template <typename T, int V, typename Index>
__device__ Vector<T, V> masked(const T* x, const Sites<Index>& sites, Index flat, Index from) {
  Vector<T, V> line{};
  if constexpr (V == 1) {
    if (sites.kept(sites.site(flat))) line.v[0] = x[from];
  } else {
    line = *reinterpret_cast<const Vector<T, V>*>(x + from);
    mask_line(line, sites, flat);
  }
  return line;
}

template <typename T, int V>
__device__ void store(T* out, const Vector<T, V>& line) {
  *reinterpret_cast<Vector<T, V>*>(out) = line;
}

template <typename T, int V, typename Index>
__global__ void apply_kernel(T* __restrict__ out, const T* __restrict__ x, Sites<Index> sites, Index numel) {
  const Index lines = numel / V;
  for (Index i = thread_index<Index>(); i < lines; i += grid_size<Index>()) {
    store(out + i * V, masked<T, V>(x, sites, i * V, i * V));
  }
  const Index i = lines * V + thread_index<Index>();
  if (i < numel) store(out + i, masked<T, 1>(x, sites, i, i));
}

template <typename T, typename Index>
__global__ void pack_kernel(T* __restrict__ kept, T* __restrict__ rest, const T* __restrict__ x, Sites<Index> sites,
                            Index numel) {
  for (Index i = thread_index<Index>(); i < numel; i += grid_size<Index>()) {
    const Packed<Index> to = sites.packed(i);
    (to.kept ? kept : rest)[to.offset] = x[i];
  }
}

template <typename T, typename Index>
__global__ void unpack_kernel(T* __restrict__ out, const T* __restrict__ kept, const T* __restrict__ rest,
                              Sites<Index> sites, Index numel) {
  for (Index i = thread_index<Index>(); i < numel; i += grid_size<Index>()) {
    const Packed<Index> from = sites.packed(i);
    out[i] = (from.kept ? kept : rest)[from.offset];
  }
}

// Where planes have an even number of sites, pair k of the whole tensor is entry k of both halves.
template <typename T, int V, typename Index>
__global__ void pack_pairs_kernel(T* __restrict__ kept, T* __restrict__ rest, const T* __restrict__ x,
                                  Sites<Index> sites, Index pairs) {
  for (Index i = thread_index<Index>() * V; i < pairs; i += grid_size<Index>() * V) {
    const Vector<T, V> x0 = *reinterpret_cast<const Vector<T, V>*>(x + 2 * i);
    const Vector<T, V> x1 = *reinterpret_cast<const Vector<T, V>*>(x + 2 * i + V);
    Vector<T, V> a, b;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const T even = 2 * j < V ? x0.v[2 * j % V] : x1.v[2 * j % V];
      const T odd = 2 * j < V ? x0.v[2 * j % V + 1] : x1.v[2 * j % V + 1];
      const bool first = sites.kept(2 * (i + j) % sites.count);
      a.v[j] = first ? even : odd;
      b.v[j] = first ? odd : even;
    }
    store(kept + i, a);
    store(rest + i, b);
  }
}

template <typename T, int V, typename Index>
__global__ void unpack_pairs_kernel(T* __restrict__ out, const T* __restrict__ kept, const T* __restrict__ rest,
                                    Sites<Index> sites, Index pairs) {
  for (Index i = thread_index<Index>() * V; i < pairs; i += grid_size<Index>() * V) {
    const Vector<T, V> a = *reinterpret_cast<const Vector<T, V>*>(kept + i);
    const Vector<T, V> b = *reinterpret_cast<const Vector<T, V>*>(rest + i);
    Vector<T, 2 * V> x;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool first = sites.kept(2 * (i + j) % sites.count);
      x.v[2 * j] = first ? a.v[j] : b.v[j];
      x.v[2 * j + 1] = first ? b.v[j] : a.v[j];
    }
    store(out + 2 * i, *reinterpret_cast<const Vector<T, V>*>(x.v));
    store(out + 2 * i + V, *reinterpret_cast<const Vector<T, V>*>(x.v + V));
  }
}

template <typename Index>
struct ConcatRows {
  Index x, start, kept, condition;

  ConcatRows(const ConcatLayout& beside, int parity)
      : x(static_cast<Index>(beside.x)),
        start(static_cast<Index>(beside.start(parity))),
        kept(static_cast<Index>(beside.kept)),
        condition(static_cast<Index>(beside.condition)) {}
};

template <typename T, int V, typename Index>
__global__ void input_kernel(T* __restrict__ out, const T* __restrict__ x, const T* __restrict__ condition,
                             Sites<Index> sites, ConcatRows<Index> rows, Index lines) {
  const Index length = rows.kept + rows.condition;
  for (Index line = thread_index<Index>(); line < lines; line += grid_size<Index>()) {
    const Index i = line * V, row = i / length, j = i - row * length;
    const Index flat = row * rows.x + rows.start + j;
    store(out + i, j < rows.kept
                       ? masked<T, V>(x, sites, flat, flat)
                       : *reinterpret_cast<const Vector<T, V>*>(condition + row * rows.condition + j - rows.kept));
  }
}

template <typename T, int V, typename Index>
__global__ void input_backward_kernel(T* __restrict__ x, const T* __restrict__ grad, Sites<Index> sites,
                                      ConcatRows<Index> rows, Index lines) {
  for (Index line = thread_index<Index>(); line < lines; line += grid_size<Index>()) {
    const Index i = line * V, row = i / rows.x, j = i - row * rows.x;
    store(x + i, masked<T, V>(grad, sites, i, row * (rows.kept + rows.condition) + j - rows.start));
  }
}

// The widest word that divides all lengths and addresses: runs of entries move as fewer, wider words.
int widen(Board& board, ConcatLayout& beside, int size, std::initializer_list<const void*> pointers) {
  while (size < 16 && board.inner % 2 == 0 && beside.x % 2 == 0 && beside.kept % 2 == 0 && beside.condition % 2 == 0) {
    for (const void* pointer : pointers) {
      if (!aligned(pointer, 2 * size)) return size;
    }
    size *= 2;
    board.inner /= 2;
    beside.x /= 2;
    beside.kept /= 2;
    beside.condition /= 2;
  }
  return size;
}

bool aligned16(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) { return aligned(pointer, 16); });
}

// Calls body, which launches, and returns what became of that, or null.
template <typename Body>
const char* with_word(int size, const Body& body) {
  switch (size) {
    case 1: body(uint8_t{}); break;
    case 2: body(uint16_t{}); break;
    case 4: body(uint32_t{}); break;
    case 8: body(uint64_t{}); break;
    case 16: body(Word16{}); break;
    default: return "masking knows entries of 1, 2, 4, 8 and 16 bytes only";
  }
  return launch_error();
}

// Divisions of 32 bits are several times cheaper. The grid's last stride must not overflow either.
template <typename Body>
void with_index(int64_t numel, const Body& body) {
  if (numel <= std::numeric_limits<int32_t>::max()) {
    body(uint32_t{});
  } else {
    body(int64_t{});
  }
}

template <typename T>
constexpr int kPerLine = 16 / sizeof(T);

}  // namespace

const char* mask_apply(void* out, const void* x, const Board& entries, int size, int parity, std::uintptr_t stream) {
  if (entries.numel() == 0) return nullptr;
  Board board = entries;
  ConcatLayout none{};
  size = widen(board, none, size, {out, x});
  return with_word(size, [&]<typename T>(T) {
    with_index(board.numel(), [&]<typename Index>(Index) {
      const Sites<Index> sites(board, parity);
      const Index numel = static_cast<Index>(board.numel());
      if (board.inner == 1 && aligned16({out, x})) {
        apply_kernel<T, kPerLine<T>><<<grid(numel / kPerLine<T>), kThreads, 0, as_stream(stream)>>>(
            static_cast<T*>(out), static_cast<const T*>(x), sites, numel);
      } else {
        apply_kernel<T, 1><<<grid(numel), kThreads, 0, as_stream(stream)>>>(static_cast<T*>(out),
                                                                            static_cast<const T*>(x), sites, numel);
      }
    });
  });
}

const char* mask_pack(void* kept, void* rest, const void* x, const Board& entries, int size, int parity,
                      std::uintptr_t stream) {
  if (entries.numel() == 0) return nullptr;
  Board board = entries;
  ConcatLayout none{};
  size = widen(board, none, size, {kept, rest, x});
  return with_word(size, [&]<typename T>(T) {
    with_index(board.numel(), [&]<typename Index>(Index) {
      const Sites<Index> sites(board, parity);
      const Index numel = static_cast<Index>(board.numel()), pairs = numel / 2;
      T *a = static_cast<T*>(kept), *b = static_cast<T*>(rest);
      const T* from = static_cast<const T*>(x);
      if constexpr (kPerLine<T> > 1) {
        if (board.inner == 1 && sites.count % 2 == 0 && pairs % kPerLine<T> == 0 && aligned16({kept, rest, x})) {
          pack_pairs_kernel<T, kPerLine<T>>
              <<<grid(pairs / kPerLine<T>), kThreads, 0, as_stream(stream)>>>(a, b, from, sites, pairs);
          return;
        }
      }
      pack_kernel<<<grid(numel), kThreads, 0, as_stream(stream)>>>(a, b, from, sites, numel);
    });
  });
}

const char* mask_unpack(void* out, const void* kept, const void* rest, const Board& entries, int size, int parity,
                        std::uintptr_t stream) {
  if (entries.numel() == 0) return nullptr;
  Board board = entries;
  ConcatLayout none{};
  size = widen(board, none, size, {out, kept, rest});
  return with_word(size, [&]<typename T>(T) {
    with_index(board.numel(), [&]<typename Index>(Index) {
      const Sites<Index> sites(board, parity);
      const Index numel = static_cast<Index>(board.numel()), pairs = numel / 2;
      T* to = static_cast<T*>(out);
      const T *a = static_cast<const T*>(kept), *b = static_cast<const T*>(rest);
      if constexpr (kPerLine<T> > 1) {
        if (board.inner == 1 && sites.count % 2 == 0 && pairs % kPerLine<T> == 0 && aligned16({out, kept, rest})) {
          unpack_pairs_kernel<T, kPerLine<T>>
              <<<grid(pairs / kPerLine<T>), kThreads, 0, as_stream(stream)>>>(to, a, b, sites, pairs);
          return;
        }
      }
      unpack_kernel<<<grid(numel), kThreads, 0, as_stream(stream)>>>(to, a, b, sites, numel);
    });
  });
}

namespace {

// Calls body(T, V, Index, board, beside): words of type T, V of them in an access.
template <typename Body>
const char* with_rows(Board board, ConcatLayout beside, int size, std::initializer_list<const void*> pointers,
                      const Body& body) {
  size = widen(board, beside, size, pointers);
  return with_word(size, [&]<typename T>(T) {
    constexpr int V = kPerLine<T>;
    const bool lines = board.inner == 1 && beside.kept % V == 0 && beside.condition % V == 0 && aligned16(pointers);
    with_index(beside.rows * (beside.x + beside.condition), [&]<typename Index>(Index) {
      if (lines) {
        body.template operator()<T, V, Index>(board, beside);
      } else {
        body.template operator()<T, 1, Index>(board, beside);
      }
    });
  });
}

}  // namespace

const char* mask_input(void* out, const void* x, const void* condition, const ConcatLayout& entries, const Board& board,
                       int size, int parity, std::uintptr_t stream) {
  if (entries.rows * entries.row() == 0) return nullptr;
  return with_rows(board, entries, size, {out, x, condition},
                   [&]<typename T, int V, typename Index>(const Board& words, const ConcatLayout& beside) {
                     const Index lines = static_cast<Index>(beside.rows * beside.row() / V);
                     input_kernel<T, V><<<grid(lines), kThreads, 0, as_stream(stream)>>>(
                         static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(condition),
                         Sites<Index>(words, parity), ConcatRows<Index>(beside, parity), lines);
                   });
}

const char* mask_input_backward(void* x, const void* grad, const ConcatLayout& entries, const Board& board, int size,
                                int parity, std::uintptr_t stream) {
  if (entries.rows * entries.x == 0) return nullptr;
  return with_rows(board, entries, size, {x, grad},
                   [&]<typename T, int V, typename Index>(const Board& words, const ConcatLayout& beside) {
                     const Index lines = static_cast<Index>(beside.rows * beside.x / V);
                     input_backward_kernel<T, V><<<grid(lines), kThreads, 0, as_stream(stream)>>>(
                         static_cast<T*>(x), static_cast<const T*>(grad), Sites<Index>(words, parity),
                         ConcatRows<Index>(beside, parity), lines);
                   });
}

}  // namespace pnf::cuda
