#include "cpu/haar.h"

#include <algorithm>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kTile = 8192;     // entries of x that are worked on while they are in the first cache
constexpr int64_t kColumns = 1024;  // entries of a run, where it is longer, that are worked on together
constexpr int64_t kGrain = 16384;   // entries of x that are worth a thread

// Entries in the wide dtype: they are read and written where they are, or go by way of a buffer.
template <typename T>
constexpr bool kIsWide = std::is_same_v<T, Wide<T>>;

template <typename T>
const Wide<T>* source(const T* x, Wide<T>* buffer, int64_t n) {
  if constexpr (kIsWide<T>) {
    return x;
  } else {
    int64_t i = 0;
    for (; i + kLanes<Wide<T>> <= n; i += kLanes<Wide<T>>) store(buffer + i, load(x + i));
    if (i < n) store_part(buffer + i, load_part(x + i, n - i), n - i);
    return buffer;
  }
}

template <typename T>
Wide<T>* target(T* out, Wide<T>* buffer) {
  if constexpr (kIsWide<T>) {
    return out;
  } else {
    return buffer;
  }
}

template <typename T>
void settle(T* out, const Wide<T>* buffer, int64_t n) {
  if constexpr (!kIsWide<T>) {
    int64_t i = 0;
    for (; i + kLanes<Wide<T>> <= n; i += kLanes<Wide<T>>) store(out + i, load(buffer + i));
    if (i < n) store_part(out + i, load_part(buffer + i, n - i), n - i);
  }
}

template <typename C>
void split_rows(C* __restrict s, C* __restrict d, const C* __restrict x0, const C* __restrict x1, int64_t n, C factor) {
  for (int64_t i = 0; i < n; ++i) {
    s[i] = factor * (x0[i] + x1[i]);
    d[i] = factor * (x0[i] - x1[i]);
  }
}

template <typename C>
void merge_rows(C* __restrict x0, C* __restrict x1, const C* __restrict s, const C* __restrict d, int64_t n, C factor) {
  for (int64_t i = 0; i < n; ++i) {
    x0[i] = factor * (s[i] + d[i]);
    x1[i] = factor * (s[i] - d[i]);
  }
}

template <typename C>
void split_neighbours(C* __restrict s, C* __restrict d, const C* __restrict x, int64_t n, C factor) {
  for (int64_t i = 0; i < n; ++i) {
    s[i] = factor * (x[2 * i] + x[2 * i + 1]);
    d[i] = factor * (x[2 * i] - x[2 * i + 1]);
  }
}

template <typename C>
void merge_neighbours(C* __restrict x, const C* __restrict s, const C* __restrict d, int64_t n, C factor) {
  for (int64_t i = 0; i < n; ++i) {
    x[2 * i] = factor * (s[i] + d[i]);
    x[2 * i + 1] = factor * (s[i] - d[i]);
  }
}

#ifdef __AVX512F__

// Runs shorter than a vector: as many whole runs as fit, moved by a permutation of two vectors. The lanes that are left
// over are written too, and overwritten by what follows. Both return the entries of s that are done.
template <typename C>
int64_t split_short_runs(C* s, C* d, const C* x, int64_t n, int64_t run, C factor) {
  const int64_t whole = kLanes<C> / run * run;
  IntVec<C> even{};
  for (int64_t i = 0, start = 0; i < whole; ++i) {
    if (i - start == run) start += run;
    even[i] = static_cast<std::remove_reference_t<decltype(even[0])>>(start + i);
  }
  const IntVec<C> odd = even + static_cast<std::remove_reference_t<decltype(even[0])>>(run);
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += whole) {
    const Vec<C> low = load(x + 2 * i), high = load(x + 2 * i + kLanes<C>);
    const Vec<C> x0 = __builtin_shuffle(low, high, even), x1 = __builtin_shuffle(low, high, odd);
    store(s + i, factor * (x0 + x1));
    store(d + i, factor * (x0 - x1));
  }
  return i;
}

template <typename C>
int64_t merge_short_runs(C* x, const C* s, const C* d, int64_t n, int64_t run, C factor) {
  const int64_t whole = kLanes<C> / run * run;
  IntVec<C> halves[2] = {};
  for (int64_t i = 0, start = 0; i < whole; ++i) {
    if (i - start == run) start += run;
    const int64_t x0 = start + i, x1 = start + i + run;
    halves[x0 / kLanes<C>][x0 % kLanes<C>] = static_cast<std::remove_reference_t<decltype(halves[0][0])>>(i);
    halves[x1 / kLanes<C>][x1 % kLanes<C>] = static_cast<std::remove_reference_t<decltype(halves[0][0])>>(i + kLanes<C>);
  }
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += whole) {
    const Vec<C> mean = load(s + i), detail = load(d + i);
    const Vec<C> x0 = factor * (mean + detail), x1 = factor * (mean - detail);
    store(x + 2 * i, __builtin_shuffle(x0, x1, halves[0]));
    store(x + 2 * i + kLanes<C>, __builtin_shuffle(x0, x1, halves[1]));
  }
  return i;
}

#else

template <typename C>
int64_t split_short_runs(C*, C*, const C*, int64_t, int64_t, C) {
  return 0;
}

template <typename C>
int64_t merge_short_runs(C*, const C*, const C*, int64_t, int64_t, C) {
  return 0;
}

#endif

// x is [n / run, 2, run].
template <typename C>
void split_runs(C* s, C* d, const C* x, int64_t n, int64_t run, C factor) {
  if (run == 1) {
    split_neighbours(s, d, x, n, factor);
    return;
  }
  int64_t i = run < kLanes<C> ? split_short_runs(s, d, x, n, run, factor) : 0;
  for (; i < n; i += run) split_rows(s + i, d + i, x + 2 * i, x + 2 * i + run, run, factor);
}

template <typename C>
void merge_runs(C* x, const C* s, const C* d, int64_t n, int64_t run, C factor) {
  if (run == 1) {
    merge_neighbours(x, s, d, n, factor);
    return;
  }
  int64_t i = run < kLanes<C> ? merge_short_runs(x, s, d, n, run, factor) : 0;
  for (; i < n; i += run) merge_rows(x + 2 * i, x + 2 * i + run, s + i, d + i, run, factor);
}

// A pyramid as splits of flat memory: x is [blocks, block], a block is what the coarsest entries need, and step k splits
// [..., 2, runs[k]]. So a tile of whole blocks, and each of its parts, is contiguous.
struct Steps {
  int64_t blocks, block, runs[kMostSteps];
  int count;

  explicit Steps(const Pyramid& p) : blocks(p.rows * (p.width >> p.levels)), block(p.inner << p.levels), runs{},
                                     count(p.steps()) {
    if (p.order != Order::kOneAxis) {
      blocks = p.rows >> p.levels;
      block = (p.width * p.inner) << p.levels;
    }
    for (int level = 0; level < p.levels; ++level) {
      const int64_t row = (p.width >> level) * p.inner;
      if (p.order == Order::kOneAxis) runs[level] = p.inner;
      if (p.order == Order::kHeightWidth) runs[2 * level] = row, runs[2 * level + 1] = p.inner;
      if (p.order == Order::kWidthHeight) runs[2 * level] = p.inner, runs[2 * level + 1] = row / 2;
    }
  }
};

template <typename C>
struct Buffers {
  std::unique_ptr<C[]> memory;
  C *x, *detail, *means[2];

  // A dtype that is wide already needs no copy of x and of the details.
  Buffers(int64_t entries, bool copies)
      : memory(new C[static_cast<size_t>(copies ? 3 * entries : entries)]),
        x(copies ? memory.get() + entries : nullptr),
        detail(copies ? x + entries : nullptr),
        means{memory.get(), memory.get() + entries / 2} {}
};

// Calls body(first, count, buffers) for tiles of blocks.
template <typename T, typename Body>
void for_tiles(const Steps& steps, int threads, const Body& body) {
  const int64_t grain = std::max<int64_t>(kGrain / steps.block, 1);
  parallel_for(steps.blocks, grain, threads, [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(std::max<int64_t>(kTile / steps.block, 1), end - begin);
    const Buffers<Wide<T>> buffers(most * steps.block, !kIsWide<T>);
    for (int64_t first = begin; first < end; first += most) body(first, std::min(most, end - first), buffers);
  });
}

template <typename T>
void analyse(T* const* parts, const T* x, const Steps& steps, Wide<T> factor, int threads) {
  using C = Wide<T>;
  for_tiles<T>(steps, threads, [&](int64_t first, int64_t count, const Buffers<C>& buffers) {
    int64_t at = first * steps.block, n = count * steps.block;
    const C* from = source(x + at, buffers.x, n);
    for (int k = 0; k < steps.count; ++k) {
      at /= 2, n /= 2;
      T* const base = k + 1 == steps.count ? parts[0] + at : nullptr;
      C* s = base ? target(base, buffers.means[k % 2]) : buffers.means[k % 2];
      C* d = target(parts[k + 1] + at, buffers.detail);
      split_runs(s, d, from, n, steps.runs[k], factor);
      settle(parts[k + 1] + at, d, n);
      if (base) settle(base, s, n);
      from = s;
    }
  });
}

template <typename T>
void synthesise(T* x, T* const* parts, const Steps& steps, Wide<T> factor, int threads) {
  using C = Wide<T>;
  for_tiles<T>(steps, threads, [&](int64_t first, int64_t count, const Buffers<C>& buffers) {
    int64_t at = first * (steps.block >> steps.count), n = count * (steps.block >> steps.count);
    const C* s = source(static_cast<const T*>(parts[0] + at), buffers.means[steps.count % 2], n);
    for (int k = steps.count - 1; k >= 0; --k) {
      const C* d = source(static_cast<const T*>(parts[k + 1] + at), buffers.detail, n);
      C* to = k ? buffers.means[k % 2] : target(x + 2 * at, buffers.x);
      merge_runs(to, s, d, n, steps.runs[k], factor);
      at *= 2, n *= 2;
      s = to;
    }
    settle(x + at, s, n);
  });
}

// The same for one axis whose runs are too long for a tile: x is [blocks, 2^levels, run], a tile is some columns of a
// block.
template <typename T, typename Body>
void for_columns(const Pyramid& p, int threads, const Body& body) {
  const int64_t blocks = p.rows * (p.width >> p.levels), across = (p.inner + kColumns - 1) / kColumns;
  const int64_t entries = kColumns << p.levels;
  parallel_for(blocks * across, kGrain / entries, threads, [&](int64_t begin, int64_t end) {
    const Buffers<Wide<T>> buffers(entries, !kIsWide<T>);
    int64_t block = begin / across, part = begin % across;
    for (int64_t i = begin; i < end; ++i) {
      body(block, part * kColumns, std::min(kColumns, p.inner - part * kColumns), buffers);
      if (++part == across) part = 0, ++block;
    }
  });
}

template <typename T>
void analyse_columns(T* const* parts, const T* x, const Pyramid& p, Wide<T> factor, int threads) {
  using C = Wide<T>;
  for_columns<T>(p, threads, [&](int64_t block, int64_t column, int64_t n, const Buffers<C>& buffers) {
    for (int k = 0; k < p.levels; ++k) {
      const int64_t rows = int64_t{1} << (p.levels - k - 1);
      const bool last = k + 1 == p.levels;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = (block * rows + row) * p.inner + column;
        const T* pair = x + (block * rows + row) * 2 * p.inner + column;
        const C* before = buffers.means[(k + 1) % 2] + 2 * row * n;
        const C* x0 = k ? before : source(pair, buffers.x, n);
        const C* x1 = k ? before + n : source(pair + p.inner, buffers.x + n, n);
        C* s = buffers.means[k % 2] + row * n;
        if (last) s = target(parts[0] + at, s);
        C* d = target(parts[k + 1] + at, buffers.detail);
        split_rows(s, d, x0, x1, n, factor);
        settle(parts[k + 1] + at, d, n);
        if (last) settle(parts[0] + at, s, n);
      }
    }
  });
}

template <typename T>
void synthesise_columns(T* x, T* const* parts, const Pyramid& p, Wide<T> factor, int threads) {
  using C = Wide<T>;
  for_columns<T>(p, threads, [&](int64_t block, int64_t column, int64_t n, const Buffers<C>& buffers) {
    const T* base = parts[0] + block * p.inner + column;
    const C* means = source(base, buffers.means[p.levels % 2], n);
    for (int k = p.levels - 1; k >= 0; --k) {
      const int64_t rows = int64_t{1} << (p.levels - k - 1);
      for (int64_t row = 0; row < rows; ++row) {
        const T* detail = parts[k + 1] + (block * rows + row) * p.inner + column;
        const C* d = source(detail, buffers.detail, n);
        T* pair = x + (block * rows + row) * 2 * p.inner + column;
        C* x0 = k ? buffers.means[k % 2] + 2 * row * n : target(pair, buffers.x);
        C* x1 = k ? x0 + n : target(pair + p.inner, buffers.x + n);
        merge_rows(x0, x1, means + row * n, d, n, factor);
        if (k == 0) settle(pair, x0, n), settle(pair + p.inner, x1, n);
      }
      means = buffers.means[k % 2];
    }
  });
}

bool is_empty(const Pyramid& p) { return p.rows == 0 || p.width == 0 || p.inner == 0; }

bool has_long_runs(const Pyramid& p) { return p.order == Order::kOneAxis && p.inner > kColumns; }

}  // namespace

void haar_pyramid(void* const* parts, const void* x, const Pyramid& pyramid, double factor, DType dtype, int threads) {
  if (is_empty(pyramid)) return;
  with_dtype(dtype, [&]<typename T>(T) {
    T* const* const to = reinterpret_cast<T* const*>(parts);
    const auto f = static_cast<Wide<T>>(factor);
    if (has_long_runs(pyramid)) {
      analyse_columns(to, static_cast<const T*>(x), pyramid, f, threads);
    } else {
      analyse(to, static_cast<const T*>(x), Steps(pyramid), f, threads);
    }
  });
}

void haar_pyramid_inverse(void* x, void* const* parts, const Pyramid& pyramid, double factor, DType dtype,
                          int threads) {
  if (is_empty(pyramid)) return;
  with_dtype(dtype, [&]<typename T>(T) {
    T* const* const from = reinterpret_cast<T* const*>(parts);
    const auto f = static_cast<Wide<T>>(factor);
    if (has_long_runs(pyramid)) {
      synthesise_columns(static_cast<T*>(x), from, pyramid, f, threads);
    } else {
      synthesise(static_cast<T*>(x), from, Steps(pyramid), f, threads);
    }
  });
}

}  // namespace pnf::cpu::PNF_ISA
