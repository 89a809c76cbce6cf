#include "cpu/convolution.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

// 1x1 convolutions are products of matrices.
//
// 3x3 convolutions are Winograd's F(2x2, 3x3): tiles of 4x4 pixels and the weights are transformed so that 16 products
// of matrices give tiles of 2x2 results, with 16 multiplications for what takes 36.
//
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2015), section 4.1.

namespace pnf::cpu::PNF_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t kWidth = kLanes<float>;

// A product keeps kRows x 2 vectors of its result in registers, of which AVX-512 has 32 and its predecessors 16.
#ifdef __AVX512F__
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

constexpr float kLowest = -std::numeric_limits<float>::infinity();

constexpr int64_t kPanel = 2 * kWidth;
constexpr int64_t kPoints = 16;                 // of a transformed tile
constexpr int64_t kTiles = 28 / kRows * kRows;  // tiles, or pixels, of a block, which stay in the second cache
constexpr int64_t kChunk = 8 * kTiles;          // of those that are multiplied at once for the gradient of the weights
constexpr int64_t kOwn = 64;                    // tiles of a thread that are worth a transformed weight of its own
constexpr int64_t kParts = 8;                   // of the gradient of the weights, which are added at the end, at most
constexpr int64_t kMost = 1 << 22;              // entries of all parts, unless one has more

// Memory of a thread that is kept between calls, since new memory has to be mapped, page by page, before it is used.
enum Use { kFrom, kTo, kSum, kZeros, kWeight, kProduct, kLeft, kRight, kUses };

float* workspace(Use use, int64_t n) {
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

const float* zeros(int64_t n) {
  float* found = workspace(kZeros, n);
  std::fill_n(found, n, 0.0f);
  return found;
}

// A matrix on the right of a product is cut into panels of kPanel columns, each of which lies in one piece: rows that
// are a power of two apart would share a few sets of the first cache.

// c[i][j] = start[i][j] + sum over k of a[i][k] b[k][j] for kRows rows and `vectors` vectors of columns, at least
// `least`.
template <int vectors>
inline void multiply_panel(float* c, const float* start, const float* a, const float* b, int64_t depth, int64_t c_row,
                           int64_t start_row, int64_t a_row, int64_t a_column, float least) {
  V sum[kRows][vectors];
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sum[i][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * kPanel + j * kWidth);
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const V left = splat(a[i * a_row + k * a_column]);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      const V result = load(start + i * start_row + j * kWidth) + sum[i][j];
      store(c + i * c_row + j * kWidth, at_least(result, splat(least)));
    }
  }
}

// multiply_panel for any numbers of rows and columns, multiples of kRows and kWidth, the panels of b `panel` apart.
// With start_row = 0, start is one row.
void multiply(float* c, const float* start, const float* a, const float* b, int64_t rows, int64_t columns,
              int64_t depth, int64_t panel, int64_t c_row, int64_t start_row, int64_t a_row, int64_t a_column,
              float least = kLowest) {
  for (int64_t j = 0; j < columns; j += kPanel, b += panel) {
    const auto product = columns - j > kWidth ? multiply_panel<2> : multiply_panel<1>;
    for (int64_t i = 0; i < rows; i += kRows) {
      product(c + i * c_row + j, start + i * start_row + j, a + i * a_row, b, depth, c_row, start_row, a_row, a_column,
              least);
    }
  }
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Copies rows to where they are `to_row` apart, with zeros behind each, and behind the last up to `to_rows` of them.
void copy_rows(float* to, const float* from, int64_t rows, int64_t columns, int64_t to_rows, int64_t to_row,
               int64_t from_row) {
  for (int64_t i = 0; i < to_rows; ++i, to += to_row) {
    const int64_t n = i < rows ? columns : 0;
    std::copy_n(from + i * from_row, n, to);
    std::fill_n(to + n, to_row - n, 0.0f);
  }
}

// The tiles or pixels that are added up apart from others: how many depends on their number only.
struct Parts {
  int64_t all, count;

  // `size` entries are kept for each.
  Parts(int64_t n, int64_t size)
      : all(n), count(std::clamp<int64_t>(2 * n / kChunk, 1, std::clamp<int64_t>(kMost / size, 1, kParts))) {}

  int64_t first(int64_t part) const { return all * part / count; }
};

void add_parts(float* sum, const std::vector<double>& parts, int64_t count, int64_t columns) {
  const int64_t row = static_cast<int64_t>(parts.size()) / count;
  for (int64_t j = 0; j < columns; ++j) {
    double total = 0;
    for (int64_t part = 0; part < count; ++part) total += parts[static_cast<size_t>(part * row + j)];
    sum[j] = static_cast<float>(total);
  }
}

// total[j] += sum over i of b[i][j], of few enough rows at a time that float holds their sums.
void add_rows(double* total, const float* b, int64_t rows, int64_t columns, int64_t row) {
  for (int64_t j = 0; j < columns; j += kWidth) {
    const int64_t n = std::min(kWidth, columns - j);
    for (int64_t first = 0; first < rows; first += 32) {
      V sum{};
      for (int64_t i = first; i < std::min(first + 32, rows); ++i) {
        sum += n == kWidth ? load(b + i * row + j) : load_part(b + i * row + j, n);
      }
      for (int64_t k = 0; k < n; ++k) total[j + k] += static_cast<double>(sum[k]);
    }
  }
}

// Transforms of four entries along one axis.
inline void of_input(V* to, V a, V b, V c, V d) { to[0] = a - c, to[1] = b + c, to[2] = c - b, to[3] = b - d; }
inline void of_result(V* to, V a, V b, V c, V d) { to[0] = a + b + c, to[1] = b - c - d; }
inline void of_weight(V* to, V a, V b, V c) {
  const V sum = (a + c) * 0.5f, half = b * 0.5f;
  to[0] = a, to[1] = sum + half, to[2] = sum - half, to[3] = c;
}
// The transposes of the last two.
inline void of_result_backward(V* to, V a, V b) { to[0] = a, to[1] = a + b, to[2] = a - b, to[3] = -b; }
inline void of_weight_backward(V* to, V a, V b, V c, V d) {
  const V sum = (b + c) * 0.5f;
  to[0] = a + sum, to[1] = (b - c) * 0.5f, to[2] = sum + d;
}

// The tiles of 2x2 pixels of all images, row by row.
struct Grid {
  int64_t height, width, down, across, count;

  explicit Grid(const Convolution& c)
      : height(c.height),
        width(c.width),
        down((c.height + 1) / 2),
        across((c.width + 1) / 2),
        count(c.batch * down * across) {}

  // Calls body(i, image, row, column) for tiles [first, last), with the first pixel of each.
  template <typename Body>
  void each(int64_t first, int64_t last, const Body& body) const {
    int64_t column = first % across, row = first / across % down, image = first / across / down;
    for (int64_t i = first; i < last; ++i) {
      body(i - first, image, 2 * row, 2 * column);
      if (++column == across) column = 0, ++row;
      if (row == down) row = 0, ++image;
    }
  }
};

// [points][tiles][channels] of tiles [first, last): the pixels that a tile of results sees, transformed.
void transform_input(float* to, const float* x, const float* zeros, const Grid& grid, int64_t channels, int64_t first,
                     int64_t last, int64_t tiles) {
  const int64_t point = tiles * channels;
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const float* pixels[4][4];
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 4; ++c) {
        const int64_t y = row + r - 1, z = column + c - 1;
        const bool inside = y >= 0 && y < grid.height && z >= 0 && z < grid.width;
        pixels[r][c] = inside ? x + ((image * grid.height + y) * grid.width + z) * channels : zeros;
      }
    }
    float* out = to + i * channels;
    for (int64_t c = 0; c < channels; c += kWidth, out += kWidth) {
      V half[4][4], whole[4];
      for (int r = 0; r < 4; ++r) {
        const float* const* p = pixels[r];
        of_input(half[r], load(p[0] + c), load(p[1] + c), load(p[2] + c), load(p[3] + c));
      }
      for (int s = 0; s < 4; ++s) {
        of_input(whole, half[0][s], half[1][s], half[2][s], half[3][s]);
        for (int r = 0; r < 4; ++r) store(out + (4 * r + s) * point, whole[r]);
      }
    }
  });
}

// Results of tiles [first, last) from [points][tiles][channels], plus those of `add` if it is there.
void transform_result(float* y, const float* add, const float* from, const float* bias, float least, const Grid& grid,
                      int64_t channels, int64_t first, int64_t last, int64_t tiles) {
  const int64_t point = tiles * channels;
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const int64_t at = ((image * grid.height + row) * grid.width + column) * channels;
    const bool below = row + 1 < grid.height, right = column + 1 < grid.width;
    for (int64_t c = 0; c < channels; c += kWidth) {
      const float* p = from + i * channels + c;
      V half[4][2], whole[2][2];
      for (int r = 0; r < 4; ++r) {
        const float* q = p + 4 * r * point;
        of_result(half[r], load(q), load(q + point), load(q + 2 * point), load(q + 3 * point));
      }
      const V b = bias ? load(bias + c) : V{};
      for (int s = 0; s < 2; ++s) of_result(whole[s], half[0][s], half[1][s], half[2][s], half[3][s]);
      const auto put = [&](int64_t pixel, V value) {
        const int64_t place = at + pixel * channels + c;
        store(y + place, at_least(add ? load(add + place) + (value + b) : value + b, splat(least)));
      };
      put(0, whole[0][0]);
      if (right) put(1, whole[1][0]);
      if (below) put(grid.width, whole[0][1]);
      if (below && right) put(grid.width + 1, whole[1][1]);
    }
  });
}

// The transpose of transform_result, in panels.
void transform_gradient(float* to, const float* grad_y, const float* zeros, const Grid& grid, int64_t channels,
                        int64_t first, int64_t last, int64_t tiles) {
  const int64_t point = tiles * round_up(channels, kPanel);
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const float* const p = grad_y + ((image * grid.height + row) * grid.width + column) * channels;
    const bool below = row + 1 < grid.height, right = column + 1 < grid.width;
    const float* const p01 = right ? p + channels : zeros;
    const float* const p10 = below ? p + grid.width * channels : zeros;
    const float* const p11 = below && right ? p + (grid.width + 1) * channels : zeros;
    for (int64_t c = 0; c < channels; c += kWidth) {
      float* const out = to + c / kPanel * tiles * kPanel + i * kPanel + c % kPanel;
      V half[2][4], whole[4];
      of_result_backward(half[0], load(p + c), load(p01 + c));
      of_result_backward(half[1], load(p10 + c), load(p11 + c));
      for (int s = 0; s < 4; ++s) {
        of_result_backward(whole, half[0][s], half[1][s]);
        for (int r = 0; r < 4; ++r) store(out + (4 * r + s) * point, whole[r]);
      }
    }
  });
}

// to[e] = from[e], from[e + column], from[e + 2 column], ... for n entries e; `end` is that of the memory.
void load_columns(V* to, const float* from, const float* end, int64_t column, int64_t n) {
  for (int64_t e = 0; e < n; e += kWidth) {
    V square[kWidth];
    for (int64_t k = 0; k < kWidth; ++k) {
      const float* const p = from + e + k * column;
      square[k] = end - p >= kWidth ? load(p) : load_part(p, end - p);
    }
    transpose(square);
    std::copy_n(square, std::min(kWidth, n - e), to + e);
  }
}

// The reverse, where n entries of each column lie apart from those of others.
void store_columns(float* to, const V* from, int64_t column, int64_t n) {
  for (int64_t e = 0; e < n; e += kWidth) {
    const int64_t written = std::min(kWidth, n - e);
    V square[kWidth] = {};
    std::copy_n(from + e, written, square);
    transpose(square);
    for (int64_t k = 0; k < kWidth; ++k) {
      if (written == kWidth) {
        store(to + e + k * column, square[k]);
      } else {
        store_part(to + e + k * column, square[k], written);
      }
    }
  }
}

constexpr int64_t kDepth = 16;  // rows of a weight that are transformed at once, of which there are multiples

// Entries from one point of a transformed weight to the next: without a gap their cache lines would share a few sets.
int64_t weight_point(int64_t depth, int64_t columns) { return depth * round_up(columns, kPanel) + kWidth; }

// The 9 taps of kDepth rows and kWidth columns of a weight: a vector along the columns for each row and tap.
struct Taps {
  V entries[9 * kDepth];
  int64_t row, tap;  // strides of the entries, as the weight has them: its taps lie together, or its rows do

  // `weight_row` and `weight_tap` are the strides of the weight.
  Taps(int64_t weight_row, int64_t weight_tap)
      : row(weight_row == 1 ? 1 : 9), tap(weight_row == 1 ? kDepth : 1), from_row(weight_row), from_tap(weight_tap) {}

  V& at(int64_t i, int64_t t) { return entries[i * row + t * tap]; }

  // Calls body(place, entry, n) for each run of n entries that lie together in the weight.
  template <typename Body>
  void runs(const Body& body) const {
    const int64_t n = row == 1 ? kDepth : from_row == 9 ? 9 * kDepth : 9;
    for (int64_t e = 0; e < 9 * kDepth; e += n) body(row == 1 ? e / kDepth * from_tap : e / 9 * from_row, e, n);
  }

  void load_from(const float* weight, const float* end, int64_t column) {
    if (column == 1) {
      for (int64_t i = 0; i < kDepth; ++i) {
        for (int64_t t = 0; t < 9; ++t) at(i, t) = load(weight + i * from_row + t * from_tap);
      }
    } else {
      runs([&](int64_t place, int64_t e, int64_t n) { load_columns(entries + e, weight + place, end, column, n); });
    }
  }

  void store_to(float* weight, int64_t column) const {
    runs([&](int64_t place, int64_t e, int64_t n) { store_columns(weight + place, entries + e, column, n); });
  }

 private:
  int64_t from_row, from_tap;
};

// [points], each in panels, of a weight [depth][columns] whose entry (row, column, tap) is at the strides; a turned one
// has its taps in the reverse order.
void transform_weight(float* to, const float* weight, int64_t depth, int64_t columns, int64_t row, int64_t column,
                      int64_t tap, bool turned, int threads) {
  const int64_t point = weight_point(depth, columns);
  const float* const end = weight + 9 * depth * columns;
  const int64_t grain = std::max<int64_t>(4096 / (columns * kDepth), 1);
  parallel_for(depth / kDepth, grain, threads, [&](int64_t begin, int64_t last) {
    Taps taps(row, tap);
    for (int64_t first = begin * kDepth; first < last * kDepth; first += kDepth) {
      for (int64_t j = 0; j < columns; j += kWidth) {
        taps.load_from(weight + first * row + j * column, end, column);
        float* const panel = to + j / kPanel * depth * kPanel + first * kPanel + j % kPanel;
        for (int64_t i = 0; i < kDepth; ++i) {
          const auto at = [&](int t) { return taps.at(i, turned ? 8 - t : t); };
          V half[3][4], whole[4];
          for (int r = 0; r < 3; ++r) of_weight(half[r], at(3 * r), at(3 * r + 1), at(3 * r + 2));
          for (int s = 0; s < 4; ++s) {
            of_weight(whole, half[0][s], half[1][s], half[2][s]);
            for (int r = 0; r < 4; ++r) store(panel + (4 * r + s) * point + i * kPanel, whole[r]);
          }
        }
      }
    }
  });
}

// transform(to, threads) writes the transformed weight.
template <typename Transform>
void convolve(float* y, const float* add, const float* x, const float* bias, float least, const Grid& grid,
              int64_t inputs, int64_t outputs, int threads, const Transform& transform) {
  const int64_t groups = (grid.count + kRows - 1) / kRows;
  const int64_t point = weight_point(inputs, outputs), size = kPoints * point;
  // What another thread wrote is far away: where each has enough to do, each transforms the weight for itself.
  const bool own = grid.count >= kOwn * threads;
  const float* shared = nullptr;
  if (!own) {
    float* const to = workspace(kWeight, size);
    transform(to, threads);
    shared = to;
  }
  const float* const outside = zeros(std::max(inputs, outputs));
  parallel_for(groups, 1, threads, [&](int64_t begin, int64_t end) {
    float* const from = workspace(kFrom, kPoints * kTiles * inputs);
    float* const to = workspace(kTo, kPoints * kTiles * outputs);
    const float* weight = shared;
    if (own) {
      float* const transformed = workspace(kWeight, size);
      transform(transformed, 1);
      weight = transformed;
    }
    // Rows past the last tile are multiplied too; what they hold must not slow the others down, as denormals would.
    if (end == groups) std::fill_n(from, kPoints * kTiles * inputs, 0.0f);
    for (int64_t first = begin * kRows; first < end * kRows; first += kTiles) {
      const int64_t rows = std::min(kTiles, end * kRows - first), last = std::min(first + rows, grid.count);
      transform_input(from, x, outside, grid, inputs, first, last, kTiles);
      for (int64_t p = 0; p < kPoints; ++p) {
        multiply(to + p * kTiles * outputs, outside, from + p * kTiles * inputs, weight + p * point, rows, outputs,
                 inputs, inputs * kPanel, outputs, 0, inputs, 1);
      }
      transform_result(y, add, to, bias, least, grid, outputs, first, last, kTiles);
    }
  });
}

// A panel of a matrix [depth][columns], with zeros behind its columns. Either the entries of a row lie together in
// memory or those of a column, which then are `column` apart.
void to_panel(float* to, const float* from, int64_t depth, int64_t columns, int64_t row, int64_t column) {
  if (column == 1) {
    copy_rows(to, from, depth, columns, depth, kPanel, row);
    return;
  }
  for (int64_t k = 0; k < columns; k += kWidth) {
    const int64_t wide = std::min(kWidth, columns - k);
    for (int64_t i = 0; i < depth; i += kWidth) {
      const int64_t high = std::min(kWidth, depth - i);
      V square[kWidth] = {};
      for (int64_t q = 0; q < wide; ++q) {
        const float* const p = from + i + (k + q) * column;
        square[q] = high == kWidth ? load(p) : load_part(p, high);
      }
      transpose(square);
      for (int64_t r = 0; r < high; ++r) store(to + (i + r) * kPanel + k, square[r]);
    }
  }
}

// y[i][j] = add[i][j] + bias[j] + sum over k of x[i][k] weight[k][j], the entries of the weight at the strides; add and
// bias may be null.
void mix(float* y, const float* add, const float* x, const float* weight, const float* bias, float least,
         int64_t pixels, int64_t inputs, int64_t outputs, int64_t row, int64_t column, int threads) {
  const int64_t blocks = (pixels + kTiles - 1) / kTiles, panels = (outputs + kPanel - 1) / kPanel;
  // A thread that transposes a panel works with it: what another one wrote is far away.
  const int64_t shares = std::clamp<int64_t>((threads + panels - 1) / panels, 1, blocks);
  const int64_t grain = pixels * inputs * outputs < (1 << 16) ? panels * shares : 1;
  parallel_for(panels * shares, grain, threads, [&](int64_t begin, int64_t end) {
    float* const panel = workspace(kWeight, inputs * kPanel);
    float* const from_copy = workspace(kFrom, kTiles * inputs);
    float* const to_copy = workspace(kTo, kTiles * kPanel);
    float* const sum = workspace(kSum, kTiles * kPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t j = task / shares * kPanel, share = task % shares;
      const int64_t written = std::min(kPanel, outputs - j), columns = round_up(written, kWidth);
      to_panel(panel, weight + j * column, inputs, written, row, column);
      for (int64_t block = blocks * share / shares; block < blocks * (share + 1) / shares; ++block) {
        const int64_t first = block * kTiles, rows = std::min(kTiles, pixels - first);
        const float* from = x + first * inputs;
        if (rows < kTiles) {
          copy_rows(from_copy, from, rows, inputs, kTiles, inputs, inputs);
          from = from_copy;
        }
        for (int64_t i = 0; i < kTiles; ++i) {
          float* const start = sum + i * kPanel;
          const float* const added = add && i < rows ? add + (first + i) * outputs + j : nullptr;
          if (!add && i) break;
          for (int64_t k = 0; k < columns; ++k) {
            start[k] = k < written ? (bias ? bias[j + k] : 0.0f) + (added ? added[k] : 0.0f) : 0.0f;
          }
        }
        float* const out = y + first * outputs + j;
        const bool whole = rows == kTiles && written == columns;
        multiply(whole ? out : to_copy, sum, from, panel, kTiles, columns, inputs, 0, whole ? outputs : kPanel,
                 add ? kPanel : 0, inputs, 1, least);
        for (int64_t i = 0; !whole && i < rows; ++i) std::copy_n(to_copy + i * kPanel, written, out + i * outputs);
      }
    }
  });
}

// grad_weight is [outputs][inputs].
void mix_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x, int64_t pixels,
                         int64_t inputs, int64_t outputs, int threads) {
  // The last kRows outputs are the last rows, of which the ones before may have some too.
  const int64_t wide = std::max<int64_t>(outputs, kRows), last_row = wide - kRows;
  const int64_t padded = round_up(wide, kRows), columns = round_up(inputs, kWidth);
  const int64_t panels = (inputs + kPanel - 1) / kPanel;
  const int64_t size = padded * columns;
  const Parts parts(pixels, size);
  // What is neither padded nor added up goes where it belongs.
  const bool direct = pixels > 0 && parts.count == 1 && pixels <= kChunk && wide == outputs && columns == inputs;
  float* const product = direct ? grad_weight : workspace(kProduct, parts.count * size);
  const float* const nothing = zeros(kPanel);
  std::vector<double> total(static_cast<size_t>(parts.count * outputs));
  const int64_t grain = pixels * inputs * outputs < (1 << 16) ? parts.count * panels : 1;
  parallel_for(parts.count * panels, grain, threads, [&](int64_t begin, int64_t end) {
    float* const right = workspace(kRight, kChunk * kPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / panels, j = task % panels * kPanel;
      const int64_t first = parts.first(part), last = parts.first(part + 1);
      const int64_t written = std::min(kPanel, inputs - j), width = round_up(written, kWidth);
      float* const to = product + part * size + j;
      for (int64_t i = 0; first == last && i < padded; ++i) std::fill_n(to + i * columns, width, 0.0f);
      for (int64_t start = first; start < last; start += kChunk) {
        const int64_t n = std::min(kChunk, last - start);
        const float* left = grad_y + start * outputs;
        if (j == 0) add_rows(total.data() + part * outputs, left, n, outputs, outputs);
        if (wide > outputs) {
          float* const copy = workspace(kLeft, n * kRows);
          copy_rows(copy, left, n, outputs, n, kRows, outputs);
          left = copy;
        }
        copy_rows(right, x + start * inputs + j, n, written, n, kPanel, inputs);
        const bool more = start > first;
        for (int64_t row = 0; row < padded; row += kRows) {
          const int64_t from = std::min(row, last_row);
          float* const sum = to + (direct ? from : row) * columns;
          multiply(sum, more ? sum : nothing, left + from, right, kRows, width, n, 0, columns, more ? columns : 0, 1,
                   wide);
        }
      }
    }
  });
  add_parts(grad_bias, total, parts.count, outputs);
  if (direct) return;
  for (int64_t i = 0; i < outputs; ++i) {
    const float* const from = product + (i < last_row ? i : i - last_row + padded - kRows) * columns;
    std::copy_n(from, inputs, grad_weight + i * inputs);
    for (int64_t part = 1; part < parts.count; ++part) {
      for (int64_t j = 0; j < inputs; ++j) grad_weight[i * inputs + j] += from[part * size + j];
    }
  }
}

}  // namespace

void convolution(float* y, const float* add, const float* x, const float* weight, const float* bias,
                 const Convolution& c, bool relu, int threads) {
  const float least = relu ? 0 : kLowest;
  if (c.size == 1) {
    mix(y, add, x, weight, bias, least, c.batch * c.height * c.width, c.inputs, c.outputs, c.input, c.output, threads);
    return;
  }
  convolve(y, add, x, bias, least, Grid(c), c.inputs, c.outputs, threads, [&](float* to, int helpers) {
    transform_weight(to, weight, c.inputs, c.outputs, c.input, c.output, c.tap, false, helpers);
  });
}

void convolution_backward_input(float* grad_x, const float* grad_y, const float* weight, const Convolution& c,
                                int threads) {
  if (c.size == 1) {
    mix(grad_x, nullptr, grad_y, weight, nullptr, kLowest, c.batch * c.height * c.width, c.outputs, c.inputs, c.output,
        c.input, threads);
    return;
  }
  convolve(grad_x, nullptr, grad_y, nullptr, kLowest, Grid(c), c.outputs, c.inputs, threads,
           [&](float* to, int helpers) {
             transform_weight(to, weight, c.outputs, c.inputs, c.output, c.input, c.tap, true, helpers);
           });
}

void convolution_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                 const Convolution& c, int threads) {
  if (c.size == 1) {
    mix_backward_weight(grad_weight, grad_bias, grad_y, x, c.batch * c.height * c.width, c.inputs, c.outputs, threads);
    return;
  }
  const Grid grid(c);
  const int64_t padded = round_up(c.inputs, kRows), columns = round_up(c.outputs, kPanel);
  const int64_t chunk = std::min(kChunk, grid.count);
  // Each part adds up its own tiles: [parts][points][inputs][outputs], with rows that no input has.
  const int64_t size = kPoints * padded * c.outputs;
  const Parts parts(grid.count, size);
  float* const product = workspace(kProduct, parts.count * size);
  const float* const outside = zeros(std::max(c.inputs, c.outputs));
  std::vector<double> total(static_cast<size_t>(parts.count * c.outputs));
  parallel_for(parts.count, 1, threads, [&](int64_t begin, int64_t end) {
    // What is multiplied is readable up to the rows that no input has.
    float* const left = workspace(kLeft, kPoints * chunk * c.inputs + kRows);
    float* const right = workspace(kRight, kPoints * chunk * columns);
    std::fill_n(left + kPoints * chunk * c.inputs, kRows, 0.0f);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = parts.first(part), last = parts.first(part + 1);
      float* const of_part = product + part * size;
      if (first == last) std::fill_n(of_part, size, 0.0f);
      for (int64_t start = first; start < last; start += chunk) {
        const int64_t tiles = std::min(chunk, last - start);
        transform_input(left, x, outside, grid, c.inputs, start, start + tiles, chunk);
        transform_gradient(right, grad_y, outside, grid, c.outputs, start, start + tiles, chunk);
        for (int64_t p = 0; p < kPoints; ++p) {
          for (int64_t row = 0; row < padded; row += kRows) {
            float* const sum = of_part + (p * padded + row) * c.outputs;
            const bool more = start > first;
            multiply(sum, more ? sum : outside, left + p * chunk * c.inputs + row, right + p * chunk * columns, kRows,
                     c.outputs, tiles, chunk * kPanel, c.outputs, more ? c.outputs : 0, 1, c.inputs);
          }
        }
        // At this point all four pixels of a tile are added.
        for (int64_t j = 0; j < c.outputs; j += kPanel) {
          add_rows(total.data() + part * c.outputs + j, right + 5 * chunk * columns + j * chunk, tiles,
                   std::min(kPanel, c.outputs - j), kPanel);
        }
      }
    }
  });
  add_parts(grad_bias, total, parts.count, c.outputs);
  const int64_t point = padded * c.outputs;
  const int64_t grain = std::max<int64_t>(4096 / (c.outputs * kDepth), 1);
  parallel_for(c.inputs / kDepth, grain, threads, [&](int64_t begin, int64_t end) {
    Taps taps(c.input, c.tap);
    for (int64_t i = begin * kDepth; i < end * kDepth; i += kDepth) {
      for (int64_t j = 0; j < c.outputs; j += kWidth) {
        for (int64_t k = 0; k < kDepth; ++k) {
          const float* from = product + (i + k) * c.outputs + j;
          V half[4][3], whole[3];
          for (int r = 0; r < 4; ++r) {
            V sums[4] = {};
            for (int64_t part = 0; part < parts.count; ++part) {
              const float* q = from + part * size + 4 * r * point;
              for (int p = 0; p < 4; ++p) sums[p] += load(q + p * point);
            }
            of_weight_backward(half[r], sums[0], sums[1], sums[2], sums[3]);
          }
          for (int s = 0; s < 3; ++s) {
            of_weight_backward(whole, half[0][s], half[1][s], half[2][s], half[3][s]);
            for (int r = 0; r < 3; ++r) taps.at(k, 3 * r + s) = whole[r];
          }
        }
        taps.store_to(grad_weight + i * c.input + j * c.output, c.output);
      }
    }
  });
}

}  // namespace pnf::cpu::PNF_ISA
