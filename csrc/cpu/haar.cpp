#include "cpu/haar.h"

#include <algorithm>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kTile = 4096;     // entries of x that are worked on while they are in the first cache
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
    halves[x1 / kLanes<C>][x1 % kLanes<C>] =
        static_cast<std::remove_reference_t<decltype(halves[0][0])>>(i + kLanes<C>);
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

// Vectors of the machine's own size, since the compiler moves the lanes of larger ones one by one.
#if defined(__AVX512F__)
#define PNF_VECTOR 64
#elif defined(__AVX__)
#define PNF_VECTOR 32
#else
#define PNF_VECTOR 16
#endif

template <typename C>
struct NativeOf;

template <>
struct NativeOf<float> {
  using Type = float __attribute__((vector_size(PNF_VECTOR)));
  using Int = int32_t __attribute__((vector_size(PNF_VECTOR)));
};

template <>
struct NativeOf<double> {
  using Type = double __attribute__((vector_size(PNF_VECTOR)));
  using Int = int64_t __attribute__((vector_size(PNF_VECTOR)));
};

template <typename C>
using Native = typename NativeOf<C>::Type;

template <typename C>
inline constexpr int kNative = PNF_VECTOR / sizeof(C);

template <typename C>
Native<C> load_native(const C* p) {
  Native<C> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename C>
void store_native(C* p, Native<C> v) {
  std::memcpy(p, &v, sizeof(v));
}

// The lanes first, first + step, ... of two vectors, one after the other.
template <typename C, int first, int step>
constexpr typename NativeOf<C>::Int lanes() {
  typename NativeOf<C>::Int found{};
  for (int i = 0; i < kNative<C>; ++i) found[i] = first + i * step;
  return found;
}

// Lane i of the one, then lane i of the other, from `first` on.
template <typename C, int first>
constexpr typename NativeOf<C>::Int zipped() {
  typename NativeOf<C>::Int found{};
  for (int i = 0; i < kNative<C>; ++i) found[i] = first + i / 2 + i % 2 * kNative<C>;
  return found;
}

template <typename C>
struct Pair {
  Native<C> first, second;
};

template <typename C>
Pair<C> haar(Native<C> a, Native<C> b, C factor) {
  return {factor * (a + b), factor * (a - b)};
}

template <typename C>
Pair<C> unzip(Native<C> a, Native<C> b) {
  return {__builtin_shuffle(a, b, (lanes<C, 0, 2>())), __builtin_shuffle(a, b, (lanes<C, 1, 2>()))};
}

template <typename C>
Pair<C> zip(Native<C> a, Native<C> b) {
  return {__builtin_shuffle(a, b, (zipped<C, 0>())), __builtin_shuffle(a, b, (zipped<C, kNative<C> / 2>()))};
}

// Both splits of a level without a second pass: x is [n / row, 2, row], a row whole pairs of vectors. d0 are the
// details of the split that is taken first.
template <typename C, bool height_first>
void split_level(C* s, C* d0, C* d1, const C* x, int64_t n, int64_t row, C factor) {
  constexpr int k = kNative<C>;
  for (int64_t start = 0; start < n; start += row) {
    for (int64_t i = 0; i < row; i += 2 * k) {
      const C *top = x + 2 * start + i, *bottom = top + row;
      C* to = height_first ? d0 + start + i : d0 + start + i / 2;
      const Pair<C> a{load_native(top), load_native(top + k)}, b{load_native(bottom), load_native(bottom + k)};
      Pair<C> mean;
      if constexpr (height_first) {
        const Pair<C> left = haar(a.first, b.first, factor), right = haar(a.second, b.second, factor);
        store_native(to, left.second);
        store_native(to + k, right.second);
        mean = unzip<C>(left.first, right.first);
      } else {
        const Pair<C> above = unzip<C>(a.first, a.second), below = unzip<C>(b.first, b.second);
        const Pair<C> upper = haar(above.first, above.second, factor), lower = haar(below.first, below.second, factor);
        store_native(to, upper.second);
        store_native(to + row / 2, lower.second);
        mean = {upper.first, lower.first};
      }
      const Pair<C> out = haar(mean.first, mean.second, factor);
      store_native(s + (start + i) / 2, out.first);
      store_native(d1 + (start + i) / 2, out.second);
    }
  }
}

template <typename C, bool height_first>
void merge_level(C* x, const C* s, const C* d0, const C* d1, int64_t n, int64_t row, C factor) {
  constexpr int k = kNative<C>;
  for (int64_t start = 0; start < n; start += row) {
    for (int64_t i = 0; i < row; i += 2 * k) {
      C *top = x + 2 * start + i, *bottom = top + row;
      const C* from = height_first ? d0 + start + i : d0 + start + i / 2;
      const Pair<C> mean = haar(load_native(s + (start + i) / 2), load_native(d1 + (start + i) / 2), factor);
      Pair<C> a, b;
      if constexpr (height_first) {
        const Pair<C> wide = zip<C>(mean.first, mean.second);
        const Pair<C> left = haar(wide.first, load_native(from), factor);
        const Pair<C> right = haar(wide.second, load_native(from + k), factor);
        a = {left.first, right.first}, b = {left.second, right.second};
      } else {
        const Pair<C> upper = haar(mean.first, load_native(from), factor);
        const Pair<C> lower = haar(mean.second, load_native(from + row / 2), factor);
        a = zip<C>(upper.first, upper.second), b = zip<C>(lower.first, lower.second);
      }
      store_native(top, a.first);
      store_native(top + k, a.second);
      store_native(bottom, b.first);
      store_native(bottom + k, b.second);
    }
  }
}

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

// A pyramid as splits of flat memory: x is [blocks, block], a block is what the coarsest entries need, and step k
// splits [..., 2, runs[k]]. So a tile of whole blocks, and each of its parts, is contiguous.
struct Steps {
  int64_t blocks, block, runs[kMostSteps];
  int count;

  explicit Steps(const Pyramid& p)
      : blocks(p.rows * (p.width >> p.levels)), block(p.inner << p.levels), runs{}, count(p.steps()) {
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

  // The width of a level, if step k is its first split and split_level can do both at once; or 0.
  template <typename C>
  int64_t level_row(int k) const {
    if (k % 2 || k + 1 == count || (runs[k] == 1) == (runs[k + 1] == 1)) return 0;
    const int64_t row = runs[k] == 1 ? 2 * runs[k + 1] : runs[k];
    return row % (2 * kNative<C>) ? 0 : row;
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
    for (int k = 0, turn = 0; k < steps.count; ++k, turn ^= 1) {
      at /= 2, n /= 2;
      T* const detail = parts[k + 1] + at;
      C* const d = target(detail, buffers.detail);
      const int64_t row = steps.level_row<C>(k);
      if (row) ++k;
      const bool last = k + 1 == steps.count;
      C* s = buffers.means[turn];
      if (!row) {
        if (last) s = target(parts[0] + at, s);
        split_runs(s, d, from, n, steps.runs[k], factor);
      } else {
        T* const next = parts[k + 1] + at / 2;
        C* const d1 = target(next, buffers.detail + n);
        if (last) s = target(parts[0] + at / 2, s);
        const auto split = steps.runs[k] == 1 ? split_level<C, true> : split_level<C, false>;
        split(s, d, d1, from, n, row, factor);
        settle(next, d1, n / 2);
      }
      settle(detail, d, n);
      if (row) at /= 2, n /= 2;
      if (last) settle(parts[0] + at, s, n);
      from = s;
    }
  });
}

template <typename T>
void synthesise(T* x, T* const* parts, const Steps& steps, Wide<T> factor, int threads) {
  using C = Wide<T>;
  for_tiles<T>(steps, threads, [&](int64_t first, int64_t count, const Buffers<C>& buffers) {
    int64_t at = first * (steps.block >> steps.count), n = count * (steps.block >> steps.count);
    const C* s = source<T>(parts[0] + at, buffers.means[1], n);
    for (int k = steps.count - 1, turn = 0; k >= 0; --k, turn ^= 1) {
      const C* d = source<T>(parts[k + 1] + at, buffers.detail, n);
      const int64_t row = k ? steps.level_row<C>(k - 1) : 0;
      if (row) --k, at *= 2, n *= 2;
      C* to = k ? buffers.means[turn] : target(x + 2 * at, buffers.x);
      if (!row) {
        merge_runs(to, s, d, n, steps.runs[k], factor);
      } else {
        const C* d0 = source<T>(parts[k + 1] + at, buffers.detail + n, n);
        const auto merge = steps.runs[k] == 1 ? merge_level<C, false> : merge_level<C, true>;
        merge(to, s, d0, d, n, row, factor);
      }
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
        const T* const pair = x + (block * rows + row) * 2 * p.inner + column;
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
    const C* means = source<T>(parts[0] + block * p.inner + column, buffers.means[p.levels % 2], n);
    for (int k = p.levels - 1; k >= 0; --k) {
      const int64_t rows = int64_t{1} << (p.levels - k - 1);
      for (int64_t row = 0; row < rows; ++row) {
        const C* d = source<T>(parts[k + 1] + (block * rows + row) * p.inner + column, buffers.detail, n);
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
