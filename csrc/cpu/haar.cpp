#include "cpu/haar.h"

#include <algorithm>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kTile = 4096;     // entries of x that stay in the first cache
constexpr int64_t kColumns = 1024;  // entries of a longer run that are worked on together
constexpr int64_t kGrain = 16384;   // entries of x that are worth a thread

// Entries of the wide dtype are read and written in place; others pass through a buffer.
template <typename T>
constexpr bool kIsWide = std::is_same_v<T, Wide<T>>;

template <typename T>
const Wide<T>* source(const T* x, Wide<T>* buffer, int64_t n) {
  if constexpr (kIsWide<T>) {
    return x;
  } else {
    for_vectors<Wide<T>>(0, n, [&](int64_t i, auto lanes) { lanes.store(buffer + i, lanes.load(x + i)); });
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
    for_vectors<Wide<T>>(0, n, [&](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(buffer + i)); });
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

// Lane i of the result is lane lanes[i] of a and then b.
Vec<float> permute(Vec<float> a, Vec<float> b, IntVec<float> lanes) {
  return _mm512_permutex2var_ps(a, bit_cast<__m512i>(lanes), b);
}
Vec<double> permute(Vec<double> a, Vec<double> b, IntVec<double> lanes) {
  return _mm512_permutex2var_pd(a, bit_cast<__m512i>(lanes), b);
}

// Runs shorter than a vector: a permutation of two vectors moves as many whole runs as fit. The other lanes are written
// too; the next vector overwrites them. Both functions return the number of entries of s that are done.
template <typename C>
int64_t split_short_runs(C* s, C* d, const C* x, int64_t n, int64_t run, C factor) {
  const int64_t whole = kLanes<C> / run * run;
  IntVec<C> even{};
  for (int64_t i = 0, start = 0; i < whole; ++i) {
    if (i - start == run) start += run;
    even[i] = static_cast<Lane<C>>(start + i);
  }
  const IntVec<C> odd = even + static_cast<Lane<C>>(run);
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += whole) {
    const Vec<C> low = load(x + 2 * i), high = load(x + 2 * i + kLanes<C>);
    const Vec<C> x0 = permute(low, high, even), x1 = permute(low, high, odd);
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
    halves[x0 / kLanes<C>][x0 % kLanes<C>] = static_cast<Lane<C>>(i);
    halves[x1 / kLanes<C>][x1 % kLanes<C>] = static_cast<Lane<C>>(i + kLanes<C>);
  }
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += whole) {
    const Vec<C> mean = load(s + i), detail = load(d + i);
    const Vec<C> x0 = factor * (mean + detail), x1 = factor * (mean - detail);
    store(x + 2 * i, permute(x0, x1, halves[0]));
    store(x + 2 * i + kLanes<C>, permute(x0, x1, halves[1]));
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

template <typename C>
struct Pair {
  Vec<C> first, second;
};

template <typename C>
Pair<C> haar(Vec<C> a, Vec<C> b, C factor) {
  return {factor * (a + b), factor * (a - b)};
}

template <typename C>
Pair<C> unzipped(Vec<C> a, Vec<C> b) {
  return {unzip<0>(a, b), unzip<1>(a, b)};
}

template <typename C>
Pair<C> zipped(Vec<C> a, Vec<C> b) {
  return {zip<0>(a, b), zip<1>(a, b)};
}

// Both splits of a level in one pass: x is [n / row, 2, row], where a row is whole pairs of vectors. d0 are the details
// of the first split.
template <typename C, bool height_first>
void split_level(C* s, C* d0, C* d1, const C* x, int64_t n, int64_t row, C factor) {
  constexpr int k = kLanes<C>;
  for (int64_t start = 0; start < n; start += row) {
    for (int64_t i = 0; i < row; i += 2 * k) {
      const C *top = x + 2 * start + i, *bottom = top + row;
      C* to = height_first ? d0 + start + i : d0 + start + i / 2;
      const Pair<C> a{load(top), load(top + k)}, b{load(bottom), load(bottom + k)};
      Pair<C> mean;
      if constexpr (height_first) {
        const Pair<C> left = haar(a.first, b.first, factor), right = haar(a.second, b.second, factor);
        store(to, left.second);
        store(to + k, right.second);
        mean = unzipped<C>(left.first, right.first);
      } else {
        const Pair<C> above = unzipped<C>(a.first, a.second), below = unzipped<C>(b.first, b.second);
        const Pair<C> upper = haar(above.first, above.second, factor), lower = haar(below.first, below.second, factor);
        store(to, upper.second);
        store(to + row / 2, lower.second);
        mean = {upper.first, lower.first};
      }
      const Pair<C> out = haar(mean.first, mean.second, factor);
      store(s + (start + i) / 2, out.first);
      store(d1 + (start + i) / 2, out.second);
    }
  }
}

template <typename C, bool height_first>
void merge_level(C* x, const C* s, const C* d0, const C* d1, int64_t n, int64_t row, C factor) {
  constexpr int k = kLanes<C>;
  for (int64_t start = 0; start < n; start += row) {
    for (int64_t i = 0; i < row; i += 2 * k) {
      C *top = x + 2 * start + i, *bottom = top + row;
      const C* from = height_first ? d0 + start + i : d0 + start + i / 2;
      const Pair<C> mean = haar(load(s + (start + i) / 2), load(d1 + (start + i) / 2), factor);
      Pair<C> a, b;
      if constexpr (height_first) {
        const Pair<C> wide = zipped<C>(mean.first, mean.second);
        const Pair<C> left = haar(wide.first, load(from), factor);
        const Pair<C> right = haar(wide.second, load(from + k), factor);
        a = {left.first, right.first}, b = {left.second, right.second};
      } else {
        const Pair<C> upper = haar(mean.first, load(from), factor);
        const Pair<C> lower = haar(mean.second, load(from + row / 2), factor);
        a = zipped<C>(upper.first, upper.second), b = zipped<C>(lower.first, lower.second);
      }
      store(top, a.first);
      store(top + k, a.second);
      store(bottom, b.first);
      store(bottom + k, b.second);
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

// A pyramid as splits of flat memory. x is [blocks, block]: a block holds the entries that one run of the coarsest ones
// depends on. Step k splits [..., 2, runs[k]]. So a tile of whole blocks, and each of its parts, is contiguous.
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

  // The width of a level if step k is its first split and split_level can do both; otherwise 0.
  template <typename C>
  int64_t level_row(int k) const {
    if (k % 2 || k + 1 == count || (runs[k] == 1) == (runs[k + 1] == 1)) return 0;
    const int64_t row = runs[k] == 1 ? 2 * runs[k + 1] : runs[k];
    return row % (2 * kLanes<C>) ? 0 : row;
  }
};

template <typename C>
struct Buffers {
  std::unique_ptr<C[]> memory;
  C *x, *detail, *means[2];

  // The wide dtypes need no copy of x and of the details.
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
