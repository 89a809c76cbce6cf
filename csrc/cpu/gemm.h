// Products of float32 matrices. A 1x1 convolution is such a product.
//
// A matrix on the right of a product is cut into contiguous panels of kPanel columns: in the whole matrix, rows that
// are a power of two apart would share a few sets of the first cache.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

using V = Vec<float>;
inline constexpr int64_t kWidth = kLanes<float>;

// A product keeps at most kRows x 2 vectors of its result in registers: AVX-512 has 32 of them and its predecessors 16.
#ifdef __AVX512F__
inline constexpr int kRows = 14;
#else
inline constexpr int kRows = 6;
#endif

inline constexpr int64_t kPanel = 2 * kWidth;
inline constexpr int64_t kBlock = 28 / kRows * kRows;  // rows that are worked on while they are in the second cache
inline constexpr int64_t kSlab = 8 * kBlock;           // rows that are multiplied at once for the gradient of a weight
inline constexpr int64_t kMostTasks = 8;          // the gradient of a weight has no more parts than make so many tasks
inline constexpr int64_t kMostEntries = 1 << 22;  // upper bound on the entries of all parts, if they are several

// The lower bound where a result has none.
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Memory that a thread keeps between calls: new memory would first have to be mapped page by page.
enum Use { kFrom, kTo, kSum, kZeros, kWeight, kProduct, kLeft, kRight, kLeftEdge, kRightEdge, kUses };

inline float* workspace(Use use, int64_t n) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  struct Block {
    std::unique_ptr<float[], Free> memory;
    int64_t size = 0;
  };
  thread_local Block blocks[kUses];
  Block& block = blocks[use];
  if (block.size < n) {
    block.memory.reset();
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    block.memory.reset(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
    block.size = n;
  }
  return block.memory.get();
}

inline const float* zeros(int64_t n) {
  float* found = workspace(kZeros, n);
  std::fill_n(found, n, 0.0f);
  return found;
}

// c[i][j] = start[j] + add[i][j] + sum over k of a[i][k] b[k][j] for `rows` rows and `vectors` vectors of columns, at
// least `least`. add may be null.
template <int rows, int vectors>
inline void multiply_panel(float* c, const float* start, const float* add, const float* a, const float* b,
                           int64_t depth, int64_t c_row, int64_t add_row, int64_t a_row, int64_t a_column,
                           float least) {
  V sum[rows][vectors];
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sum[i][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * kPanel + j * kWidth);
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
      const V left = splat(a[i * a_row + k * a_column]);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      V first = load(start + j * kWidth);
      if (add) first += load(add + i * add_row + j * kWidth);
      store(c + i * c_row + j * kWidth, at_least(first + sum[i][j], splat(least)));
    }
  }
}

using MultiplyPanel = decltype(&multiply_panel<1, 1>);

// multiply_panel for 1 to kRows rows, and for one vector and two.
inline constexpr auto kMultiplyPanel = []<int... row>(std::integer_sequence<int, row...>) {
  return std::array<std::array<MultiplyPanel, 2>, kRows>{{{multiply_panel<row + 1, 1>, multiply_panel<row + 1, 2>}...}};
}(std::make_integer_sequence<int, kRows>{});

// multiply_panel for any number of rows and any multiple of kWidth columns; the panels of b are `panel` apart.
inline void multiply(float* c, const float* start, const float* add, const float* a, const float* b, int64_t rows,
                     int64_t columns, int64_t depth, int64_t panel, int64_t c_row, int64_t add_row, int64_t a_row,
                     int64_t a_column, float least = kLowest) {
  // As few tiles as will do, of nearly as many rows each: a few rows alone would not keep the processor busy.
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t j = 0; j < columns; j += kPanel, b += panel) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = rows * tile / tiles, n = rows * (tile + 1) / tiles - i;
      const auto product = kMultiplyPanel[static_cast<size_t>(n - 1)][columns - j > kWidth];
      product(c + i * c_row + j, start + j, add ? add + i * add_row + j : nullptr, a + i * a_row, b, depth, c_row,
              add_row, a_row, a_column, least);
    }
  }
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Copies rows so that they are `to_row` apart, with zeros behind each, and adds rows of zeros up to `to_rows`.
inline void copy_rows(float* to, const float* from, int64_t rows, int64_t columns, int64_t to_rows, int64_t to_row,
                      int64_t from_row) {
  for (int64_t i = 0; i < to_rows; ++i, to += to_row) {
    const int64_t n = i < rows ? columns : 0;
    std::copy_n(from + i * from_row, n, to);
    std::fill_n(to + n, to_row - n, 0.0f);
  }
}

// Tiles or pixels in parts that are summed separately. The parts depend on the number of tiles only, not of threads.
struct Parts {
  int64_t all, count;

  // A part has at least half a slab of them, and sums of `size` entries in so many panels, which are tasks of their
  // own.
  Parts(int64_t n, int64_t slab, int64_t panels, int64_t size) : all(n) {
    const int64_t most = std::min(kMostTasks / panels, kMostEntries / size);
    count = std::clamp<int64_t>(2 * n / slab, 1, std::max<int64_t>(most, 1));
  }

  int64_t first(int64_t part) const { return all * part / count; }
};

inline void add_parts(float* sum, const std::vector<double>& parts, int64_t count, int64_t columns) {
  const int64_t row = static_cast<int64_t>(parts.size()) / count;
  for (int64_t j = 0; j < columns; ++j) {
    double total = 0;
    for (int64_t part = 0; part < count; ++part) total += parts[static_cast<size_t>(part * row + j)];
    sum[j] = static_cast<float>(total);
  }
}

// total[j] += sum over i of b[i][j], in float for a few rows at a time.
inline void add_rows(double* total, const float* b, int64_t rows, int64_t columns, int64_t row) {
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t n = std::min(kWidth, columns - j);
    for (int64_t first = 0; first < rows; first += 32) {
      V sum{};
      for (int64_t i = first; i < std::min(first + 32, rows); ++i) {
        sum += load_some(b + i * row + j, n);
      }
      for (int64_t k = 0; k < n; ++k) total[j + k] += static_cast<double>(sum[k]);
    }
  }
}

// A panel of a matrix [depth][columns], with zeros behind its columns. The entries of a row lie together in memory, or
// those of a column do, and columns are `column` apart.
inline void to_panel(float* to, const float* from, int64_t depth, int64_t columns, int64_t row, int64_t column) {
  if (column == 1) {
    copy_rows(to, from, depth, columns, depth, kPanel, row);
    return;
  }
  for (int64_t k = 0; k < columns; k += kWidth) {
    const int64_t wide = std::min(kWidth, columns - k);
    for (int64_t i = 0; i < depth; i += kWidth) {
      const int64_t high = std::min(kWidth, depth - i);
      const float* const p = from + i + k * column;
      V square[kWidth] = {};
      if (wide == kWidth && high == kWidth) {
#pragma GCC unroll 16
        for (int64_t q = 0; q < kWidth; ++q) square[q] = load(p + q * column);
      } else {
        for (int64_t q = 0; q < wide; ++q) square[q] = load_some(p + q * column, high);
      }
      transpose(square);
      float* const out = to + i * kPanel + k;
      if (high == kWidth) {
#pragma GCC unroll 16
        for (int64_t r = 0; r < kWidth; ++r) store(out + r * kPanel, square[r]);
      } else {
        for (int64_t r = 0; r < high; ++r) store(out + r * kPanel, square[r]);
      }
    }
  }
}

// Columns [j, j + kPanel) of rows [first, last) of y, where y[i][j] = add[i][j] + bias[j] + sum over k of
// x[i][k] weight[k][j], the entries of the weight at the strides; add and bias may be null.
inline void pointwise_panel(float* y, const float* add, const float* x, const float* weight, const float* bias,
                            float least, int64_t first, int64_t last, int64_t j, int64_t inputs, int64_t outputs,
                            int64_t row, int64_t column) {
  float* const panel = workspace(kWeight, inputs * kPanel);
  float* const to_copy = workspace(kTo, kBlock * kPanel);
  float* const add_copy = workspace(kSum, kBlock * kPanel);
  const int64_t written = std::min(kPanel, outputs - j), columns = round_up(written, kWidth);
  to_panel(panel, weight + j * column, inputs, written, row, column);
  float start[kPanel] = {};
  if (bias) std::copy_n(bias + j, written, start);
  const float* const added = add ? add + j : nullptr;
  // Columns that end within a vector go through copies, a block of rows at a time.
  const bool whole = written == columns;
  for (int64_t n; first < last; first += n) {
    n = whole ? last - first : std::min(kBlock, last - first);
    const float *const from = x + first * inputs, *more = added ? added + first * outputs : nullptr;
    float* const out = y + first * outputs + j;
    if (more && !whole) {
      copy_rows(add_copy, more, n, written, n, kPanel, outputs);
      more = add_copy;
    }
    multiply(whole ? out : to_copy, start, more, from, panel, n, columns, inputs, 0, whole ? outputs : kPanel,
             whole ? outputs : kPanel, inputs, 1, least);
    for (int64_t i = 0; !whole && i < n; ++i) std::copy_n(to_copy + i * kPanel, written, out + i * outputs);
  }
}

// All panels of pointwise_panel.
inline void pointwise(float* y, const float* add, const float* x, const float* weight, const float* bias, float least,
                      int64_t pixels, int64_t inputs, int64_t outputs, int64_t row, int64_t column, int threads) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  // Each thread transposes the panels that it works with: those of another thread are in the cache of another core.
  const int64_t shares = std::clamp<int64_t>((threads + panels - 1) / panels, 1, (pixels + kBlock - 1) / kBlock);
  const int64_t grain = pixels * inputs * outputs < (1 << 16) ? panels * shares : 1;
  parallel_for(panels * shares, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t share = task % shares;
      pointwise_panel(y, add, x, weight, bias, least, pixels * share / shares, pixels * (share + 1) / shares,
                      task / shares * kPanel, inputs, outputs, row, column);
    }
  });
}

// grad_weight is [outputs][inputs].
inline void pointwise_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                      int64_t pixels, int64_t inputs, int64_t outputs, int threads) {
  const int64_t columns = round_up(inputs, kWidth), panels = (inputs + kPanel - 1) / kPanel;
  const int64_t size = outputs * columns;
  const Parts parts(pixels, kSlab, panels, size);
  // A product that is neither padded nor summed is written to its place.
  const bool direct = pixels > 0 && parts.count == 1 && columns == inputs;
  float* const product = direct ? grad_weight : workspace(kProduct, parts.count * size);
  const float* const nothing = zeros(kPanel);
  std::vector<double> total(static_cast<size_t>(parts.count * outputs));
  const int64_t grain = pixels * inputs * outputs < (1 << 16) ? parts.count * panels : 1;
  parallel_for(parts.count * panels, grain, threads, [&](int64_t begin, int64_t end) {
    float* const right = workspace(kRight, kSlab * kPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / panels, j = task % panels * kPanel;
      const int64_t first = parts.first(part), last = parts.first(part + 1);
      const int64_t written = std::min(kPanel, inputs - j), width = round_up(written, kWidth);
      float* const to = product + part * size + j;
      for (int64_t i = 0; first == last && i < outputs; ++i) std::fill_n(to + i * columns, width, 0.0f);
      for (int64_t start = first; start < last; start += kSlab) {
        const int64_t n = std::min(kSlab, last - start);
        const float* const left = grad_y + start * outputs;
        if (j == 0) add_rows(total.data() + part * outputs, left, n, outputs, outputs);
        copy_rows(right, x + start * inputs + j, n, written, n, kPanel, inputs);
        multiply(to, nothing, start > first ? to : nullptr, left, right, outputs, width, n, 0, columns, columns, 1,
                 outputs);
      }
    }
  });
  add_parts(grad_bias, total, parts.count, outputs);
  if (direct) return;
  for (int64_t i = 0; i < outputs; ++i) {
    const float* const from = product + i * columns;
    std::copy_n(from, inputs, grad_weight + i * inputs);
    for (int64_t part = 1; part < parts.count; ++part) {
      for (int64_t j = 0; j < inputs; ++j) grad_weight[i * inputs + j] += from[part * size + j];
    }
  }
}

}  // namespace pnf::cpu::PNF_ISA
