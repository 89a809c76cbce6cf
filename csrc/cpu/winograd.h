// 3x3 convolutions by Winograd's F(2x2, 3x3): tiles of 4x4 pixels and the weights are transformed so that 16 products
// of matrices give tiles of 2x2 results, with 16 multiplications instead of 36.
//
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2015), section 4.1.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/gemm.h"

namespace pnf::cpu::PNF_ISA {

inline constexpr int64_t kPoints = 16;     // entries of a transformed tile
inline constexpr int64_t kGap = 16;        // entries between points: without them their cache lines share a few sets
inline constexpr int64_t kOwnWeight = 64;  // above so many tiles per thread, each thread transforms the weight itself

// Transforms along one axis.
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

// [points][tiles][channels] of tiles [first, last): the transformed pixels that a tile of results depends on. Here and
// below, points are `point` apart.
inline void transform_input(float* to, const float* x, const float* zeros, const Grid& grid, int64_t channels,
                            int64_t first, int64_t last, int64_t point) {
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

// Results of tiles [first, last) from [points][tiles][channels], plus `add` unless it is null.
inline void transform_result(float* y, const float* add, const float* from, const float* bias, float least,
                             const Grid& grid, int64_t channels, int64_t first, int64_t last, int64_t point) {
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

// The transpose of transform_result, in panels of `tiles` rows.
inline void transform_gradient(float* to, const float* grad_y, const float* zeros, const Grid& grid, int64_t channels,
                               int64_t first, int64_t last, int64_t tiles, int64_t point) {
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

// to[e] = from[e], from[e + column], from[e + 2 column], ... for n entries e; nothing is read from `end` on.
inline void load_columns(V* to, const float* from, const float* end, int64_t column, int64_t n) {
  for (int64_t e = 0; e < n; e += kWidth) {
    V square[kWidth];
    for (int64_t k = 0; k < kWidth; ++k) {
      const float* const p = from + e + k * column;
      square[k] = load_some(p, end - p);
    }
    transpose(square);
    std::copy_n(square, std::min(kWidth, n - e), to + e);
  }
}

// The reverse.
inline void store_columns(float* to, const V* from, int64_t column, int64_t n) {
  for (int64_t e = 0; e < n; e += kWidth) {
    const int64_t written = std::min(kWidth, n - e);
    V square[kWidth] = {};
    std::copy_n(from + e, written, square);
    transpose(square);
    for (int64_t k = 0; k < kWidth; ++k) store_some(to + e + k * column, square[k], written);
  }
}

inline constexpr int64_t kDepth = 16;  // rows of a weight that are transformed at once

inline int64_t weight_point(int64_t depth, int64_t columns) { return depth * round_up(columns, kPanel) + kGap; }

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

// [points], each in panels, of a weight [depth][columns] with the strides `row`, `column` and `tap`; `turned` reverses
// the order of its taps.
inline void transform_weight(float* to, const float* weight, int64_t depth, int64_t columns, int64_t row,
                             int64_t column, int64_t tap, bool turned, int threads) {
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
inline void winograd(float* y, const float* add, const float* x, const float* bias, float least, const Grid& grid,
                     int64_t inputs, int64_t outputs, int threads, const Transform& transform) {
  const int64_t groups = (grid.count + kRows - 1) / kRows;
  const int64_t point = weight_point(inputs, outputs), size = kPoints * point;
  // What another thread wrote is in the cache of another core.
  const bool own = grid.count >= kOwnWeight * threads;
  const float* shared = nullptr;
  if (!own) {
    float* const to = workspace(kWeight, size);
    transform(to, threads);
    shared = to;
  }
  const float* const outside = zeros(std::max(inputs, outputs));
  parallel_for(groups, 1, threads, [&](int64_t begin, int64_t end) {
    const int64_t from_point = kBlock * inputs + kGap, to_point = kBlock * outputs + kGap;
    float* const from = workspace(kFrom, kPoints * from_point);
    float* const to = workspace(kTo, kPoints * to_point);
    const float* weight = shared;
    if (own) {
      float* const transformed = workspace(kWeight, size);
      transform(transformed, 1);
      weight = transformed;
    }
    const int64_t stop = std::min(end * kRows, grid.count);
    for (int64_t first = begin * kRows; first < stop; first += kBlock) {
      const int64_t last = std::min(first + kBlock, stop);
      transform_input(from, x, outside, grid, inputs, first, last, from_point);
      for (int64_t p = 0; p < kPoints; ++p) {
        multiply(to + p * to_point, outside, nullptr, from + p * from_point, weight + p * point, last - first, outputs,
                 inputs, inputs * kPanel, outputs, 0, inputs, 1);
      }
      transform_result(y, add, to, bias, least, grid, outputs, first, last, to_point);
    }
  });
}

// The gradients of the weight, which has the strides of the weight, and of the bias.
inline void winograd_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                     const Convolution& c, int threads) {
  const Grid grid(c);
  const int64_t columns = round_up(c.outputs, kPanel);
  const int64_t chunk = std::min(kSlab, grid.count);
  // Each part sums its own tiles: [parts][points][inputs][outputs].
  const int64_t point = c.inputs * c.outputs, size = kPoints * point;
  const Parts parts(grid.count, size);
  float* const product = workspace(kProduct, parts.count * size);
  const float* const outside = zeros(std::max(c.inputs, c.outputs));
  std::vector<double> total(static_cast<size_t>(parts.count * c.outputs));
  parallel_for(parts.count, 1, threads, [&](int64_t begin, int64_t end) {
    const int64_t left_point = chunk * c.inputs + kGap, right_point = chunk * columns + kGap;
    float* const left = workspace(kLeft, kPoints * left_point);
    float* const right = workspace(kRight, kPoints * right_point);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = parts.first(part), last = parts.first(part + 1);
      float* const of_part = product + part * size;
      if (first == last) std::fill_n(of_part, size, 0.0f);
      for (int64_t start = first; start < last; start += chunk) {
        const int64_t tiles = std::min(chunk, last - start);
        transform_input(left, x, outside, grid, c.inputs, start, start + tiles, left_point);
        transform_gradient(right, grad_y, outside, grid, c.outputs, start, start + tiles, chunk, right_point);
        for (int64_t p = 0; p < kPoints; ++p) {
          float* const sum = of_part + p * point;
          multiply(sum, outside, start > first ? sum : nullptr, left + p * left_point, right + p * right_point,
                   c.inputs, c.outputs, tiles, chunk * kPanel, c.outputs, c.outputs, 1, c.inputs);
        }
        // Point 5 is the sum of the four pixels of a tile.
        for (int64_t j = 0; j < c.outputs; j += kPanel) {
          add_rows(total.data() + part * c.outputs + j, right + 5 * right_point + j * chunk, tiles,
                   std::min(kPanel, c.outputs - j), kPanel);
        }
      }
    }
  });
  add_parts(grad_bias, total, parts.count, c.outputs);
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
