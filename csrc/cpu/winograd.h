// 3x3 convolutions in Winograd's form: tiles of pixels and the weights are transformed so that products of matrices,
// one for each point, give tiles of 2 rows of results and of `wide` columns, which is 2 or 4.
//
// F(2x2, 3x3) takes 16 multiplications instead of 36, and F(2x4, 3x3) 24 instead of 72. The rounding errors of the
// first are about half of those of a direct convolution, and those of the second are as large.
//
// Sources: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2015), section 4.1; Barabasz, Anderson,
// Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution for deep neural networks"
// (2020), on points.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/gemm.h"

namespace pnf::cpu::PNF_ISA {

inline constexpr int64_t kGap = 16;  // entries between points: without them their cache lines share a few sets

// Transforms along an axis with so many results: of the pixels that they depend on, of products into results, of the
// three taps of a weight, and the transposes of the last two.
template <int results>
struct Axis;

// The points are 0, 1, -1 and infinity.
template <>
struct Axis<2> {
  static void of_input(V* to, const V* d) {
    to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
  }
  static void of_result(V* to, const V* m) { to[0] = m[0] + m[1] + m[2], to[1] = m[1] - m[2] - m[3]; }
  static void of_weight(V* to, const V* w) {
    const V sum = (w[0] + w[2]) * 0.5f, half = w[1] * 0.5f;
    to[0] = w[0], to[1] = sum + half, to[2] = sum - half, to[3] = w[2];
  }
  static void of_result_backward(V* to, const V* g) {
    to[0] = g[0], to[1] = g[0] + g[1], to[2] = g[0] - g[1], to[3] = -g[1];
  }
  static void of_weight_backward(V* to, const V* m) {
    const V sum = (m[1] + m[2]) * 0.5f;
    to[0] = m[0] + sum, to[1] = (m[1] - m[2]) * 0.5f, to[2] = sum + m[3];
  }
};

// The points are 0, a, -a, b, -b and infinity. Few others have as small rounding errors, and these have exact powers.
template <>
struct Axis<4> {
  static constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b, aabb = aa * bb;
  static constexpr float u = 1 / (2 * aa * (aa - bb)), v = 1 / (2 * bb * (bb - aa));

  static void of_input(V* to, const V* d) {
    const V even_a = d[4] - d[2] * bb, odd_a = (d[3] - d[1] * bb) * a;
    const V even_b = d[4] - d[2] * aa, odd_b = (d[3] - d[1] * aa) * b;
    to[0] = d[0] * aabb + (d[4] - d[2] * (aa + bb)), to[5] = d[1] * aabb + (d[5] - d[3] * (aa + bb));
    to[1] = even_a + odd_a, to[2] = even_a - odd_a, to[3] = even_b + odd_b, to[4] = even_b - odd_b;
  }
  static void of_result(V* to, const V* m) {
    const V even_a = m[1] + m[2], odd_a = (m[1] - m[2]) * a, even_b = m[3] + m[4], odd_b = (m[3] - m[4]) * b;
    to[0] = m[0] + even_a + even_b, to[1] = odd_a + odd_b;
    to[2] = even_a * aa + even_b * bb, to[3] = odd_a * aa + odd_b * bb + m[5];
  }
  static void of_weight(V* to, const V* w) {
    const V even_a = w[0] * u + w[2] * (aa * u), odd_a = w[1] * (a * u);
    const V even_b = w[0] * v + w[2] * (bb * v), odd_b = w[1] * (b * v);
    to[0] = w[0] * (1 / aabb), to[5] = w[2];
    to[1] = even_a + odd_a, to[2] = even_a - odd_a, to[3] = even_b + odd_b, to[4] = even_b - odd_b;
  }
  static void of_result_backward(V* to, const V* g) {
    const V even_a = g[0] + g[2] * aa, odd_a = (g[1] + g[3] * aa) * a;
    const V even_b = g[0] + g[2] * bb, odd_b = (g[1] + g[3] * bb) * b;
    to[0] = g[0], to[5] = g[3];
    to[1] = even_a + odd_a, to[2] = even_a - odd_a, to[3] = even_b + odd_b, to[4] = even_b - odd_b;
  }
  static void of_weight_backward(V* to, const V* m) {
    const V even_a = (m[1] + m[2]) * u, odd_a = (m[1] - m[2]) * u, even_b = (m[3] + m[4]) * v,
            odd_b = (m[3] - m[4]) * v;
    to[0] = m[0] * (1 / aabb) + (even_a + even_b), to[1] = odd_a * a + odd_b * b;
    to[2] = even_a * aa + even_b * bb + m[5];
  }
};

// The tiles of 2 x wide pixels of all images, row by row.
template <int wide>
struct Grid {
  static constexpr int64_t columns = wide + 2, points = 4 * columns;  // of a transformed tile

  int64_t height, width, down, across, count;

  explicit Grid(const Convolution& c)
      : height(c.height),
        width(c.width),
        down((c.height + 1) / 2),
        across((c.width + wide - 1) / wide),
        count(c.batch * down * across) {}

  // Calls body(i, image, row, column) for tiles [first, last), with the first pixel of each.
  template <typename Body>
  void each(int64_t first, int64_t last, const Body& body) const {
    int64_t column = first % across, row = first / across % down, image = first / across / down;
    for (int64_t i = first; i < last; ++i) {
      body(i - first, image, 2 * row, wide * column);
      if (++column == across) column = 0, ++row;
      if (row == down) row = 0, ++image;
    }
  }
};

// Images whose channels may end within a vector: whole vectors can be read from each pixel.
struct Pixels {
  const float *x, *outside, *end;
  int64_t height, width, channels, count, whole;

  // Behind the first `whole` pixels a vector would pass the end of the images, so `edge` keeps copies of the others.
  Pixels(Use edge, const float* images, const Convolution& c, int64_t of_channels)
      : x(images), height(c.height), width(c.width), channels(of_channels), count(c.batch * height * width) {
    const int64_t n = round_up(channels, kWidth), others = std::min((n - 1) / channels, count);
    whole = count - others;
    float* const to = workspace(edge, 3 * n);
    std::fill_n(to, 3 * n, 0.0f);
    std::copy_n(x + whole * channels, others * channels, to + n);
    outside = to, end = to + n;
  }

  const float* at(int64_t image, int64_t row, int64_t column) const {
    if (row < 0 || row >= height || column < 0 || column >= width) return outside;
    const int64_t i = (image * height + row) * width + column;
    return i < whole ? x + i * channels : end + (i - whole) * channels;
  }
};

// [points][tiles][channels] of tiles [first, last): the transformed pixels that a tile of results depends on. Here and
// below, points are `point` apart, and channels are rounded up to whole vectors.
template <int wide>
inline void transform_input(float* to, const Pixels& x, const Grid<wide>& grid, int64_t first, int64_t last,
                            int64_t point) {
  constexpr int n = Grid<wide>::columns;
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const float* pixels[4][n];
    for (int r = 0; r < 4; ++r) {
      for (int s = 0; s < n; ++s) pixels[r][s] = x.at(image, row + r - 1, column + s - 1);
    }
    const int64_t channels = round_up(x.channels, kWidth);
    float* out = to + i * channels;
    for (int64_t c = 0; c < channels; c += kWidth, out += kWidth) {
      V line[n], half[4][n], whole[4];
      for (int r = 0; r < 4; ++r) {
        for (int s = 0; s < n; ++s) line[s] = load(pixels[r][s] + c);
        Axis<wide>::of_input(half[r], line);
      }
      for (int s = 0; s < n; ++s) {
        for (int r = 0; r < 4; ++r) line[r] = half[r][s];
        Axis<2>::of_input(whole, line);
        for (int r = 0; r < 4; ++r) store(out + (n * r + s) * point, whole[r]);
      }
    }
  });
}

// Results of tiles [first, last) from [points][tiles][channels], plus `add` unless it is null.
template <int wide>
inline void transform_result(float* y, const float* add, const float* from, const float* bias, float least,
                             const Grid<wide>& grid, int64_t channels, int64_t first, int64_t last, int64_t point) {
  constexpr int n = Grid<wide>::columns;
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const int64_t at = ((image * grid.height + row) * grid.width + column) * channels;
    const int64_t right = std::min<int64_t>(wide, grid.width - column), below = std::min<int64_t>(2, grid.height - row);
    for_vectors<float>(0, channels, [&](int64_t c, auto lanes) {
      const float* const p = from + i * round_up(channels, kWidth) + c;
      V line[4], half[2][n], whole[wide];
      for (int s = 0; s < n; ++s) {
        for (int r = 0; r < 4; ++r) line[r] = load(p + (n * r + s) * point);
        V both[2];
        Axis<2>::of_result(both, line);
        half[0][s] = both[0], half[1][s] = both[1];
      }
      const V b = bias ? lanes.load(bias + c) : V{};
      for (int r = 0; r < below; ++r) {
        Axis<wide>::of_result(whole, half[r]);
        for (int s = 0; s < right; ++s) {
          const int64_t place = at + (r * grid.width + s) * channels + c;
          const V sum = add ? lanes.load(add + place) + (whole[s] + b) : whole[s] + b;
          lanes.store(y + place, at_least(sum, splat(least)));
        }
      }
    });
  });
}

// The transpose of transform_result for `channels` from `start` on, in panels of `tiles` rows.
template <int wide>
inline void transform_gradient(float* to, const Pixels& grad_y, const Grid<wide>& grid, int64_t start, int64_t channels,
                               int64_t first, int64_t last, int64_t tiles, int64_t point) {
  constexpr int n = Grid<wide>::columns;
  grid.each(first, last, [&](int64_t i, int64_t image, int64_t row, int64_t column) {
    const float* pixels[2][wide];
    for (int r = 0; r < 2; ++r) {
      for (int s = 0; s < wide; ++s) pixels[r][s] = grad_y.at(image, row + r, column + s) + start;
    }
    for (int64_t c = 0; c < channels; c += kWidth) {
      float* const out = to + c / kPanel * tiles * kPanel + i * kPanel + c % kPanel;
      V line[wide], half[2][n], whole[4];
      for (int r = 0; r < 2; ++r) {
        for (int s = 0; s < wide; ++s) line[s] = load(pixels[r][s] + c);
        Axis<wide>::of_result_backward(half[r], line);
      }
      for (int s = 0; s < n; ++s) {
        const V both[] = {half[0][s], half[1][s]};
        Axis<2>::of_result_backward(whole, both);
        for (int r = 0; r < 4; ++r) store(out + (n * r + s) * point, whole[r]);
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
      square[k] = load_some(p, std::max<int64_t>(end - p, 0));
    }
    transpose(square);
    std::copy_n(square, std::min(kWidth, n - e), to + e);
  }
}

// The reverse, for so many columns.
inline void store_columns(float* to, const V* from, int64_t column, int64_t columns, int64_t n) {
  for (int64_t e = 0; e < n; e += kWidth) {
    const int64_t written = std::min(kWidth, n - e);
    V square[kWidth] = {};
    std::copy_n(from + e, written, square);
    transpose(square);
    for (int64_t k = 0; k < columns; ++k) store_some(to + e + k * column, square[k], written);
  }
}

inline constexpr int64_t kDepth = 16;  // rows of a weight that are transformed at once

inline int64_t weight_point(int64_t depth, int64_t columns) { return depth * round_up(columns, kPanel) + kGap; }

// The 9 taps of up to kDepth rows and kWidth columns of a weight: a vector along the columns for each row and tap.
struct Taps {
  V entries[9 * kDepth];
  int64_t row, tap;  // strides of the entries, as the weight has them: its taps lie together, or its rows do

  // `weight_row` and `weight_tap` are the strides of the weight.
  Taps(int64_t weight_row, int64_t weight_tap)
      : row(weight_row == 1 ? 1 : 9), tap(weight_row == 1 ? kDepth : 1), from_row(weight_row), from_tap(weight_tap) {}

  V& at(int64_t i, int64_t t) { return entries[i * row + t * tap]; }

  // Calls body(place, entry, n) for each run of n entries that lie together in so many rows of the weight.
  template <typename Body>
  void runs(int64_t rows, const Body& body) const {
    if (row == 1) {
      for (int64_t t = 0; t < 9; ++t) body(t * from_tap, t * kDepth, rows);
    } else if (from_row == 9) {
      body(0, 0, 9 * rows);
    } else {
      for (int64_t i = 0; i < rows; ++i) body(i * from_row, 9 * i, 9);
    }
  }

  // Nothing is read from `end` on. Behind the last column anything may be read.
  void load_from(const float* weight, const float* end, int64_t column, int64_t rows) {
    if (column == 1) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t t = 0; t < 9; ++t) {
          const float* const p = weight + i * from_row + t * from_tap;
          at(i, t) = load_some(p, end - p);
        }
      }
    } else {
      runs(rows,
           [&](int64_t place, int64_t e, int64_t n) { load_columns(entries + e, weight + place, end, column, n); });
    }
  }

  void store_to(float* weight, int64_t column, int64_t rows, int64_t columns) const {
    runs(rows,
         [&](int64_t place, int64_t e, int64_t n) { store_columns(weight + place, entries + e, column, columns, n); });
  }

 private:
  int64_t from_row, from_tap;
};

// [points], each in panels, of a weight [depth][columns] with the strides `row`, `column` and `tap`; `turned` reverses
// the order of its taps.
template <int wide>
inline void transform_weight(float* to, const float* weight, int64_t depth, int64_t columns, int64_t row,
                             int64_t column, int64_t tap, bool turned, int threads) {
  constexpr int n = Grid<wide>::columns;
  const int64_t point = weight_point(depth, columns);
  const float* const end = weight + 9 * depth * columns;
  const int64_t grain = std::max<int64_t>(4096 / (columns * kDepth), 1);
  parallel_for((depth + kDepth - 1) / kDepth, grain, threads, [&](int64_t begin, int64_t last) {
    Taps taps(row, tap);
    for (int64_t first = begin * kDepth; first < std::min(last * kDepth, depth); first += kDepth) {
      const int64_t rows = std::min(kDepth, depth - first);
      for (int64_t j = 0; j < columns; j += kWidth) {
        taps.load_from(weight + first * row + j * column, end, column, rows);
        float* const panel = to + j / kPanel * depth * kPanel + first * kPanel + j % kPanel;
        for (int64_t i = 0; i < rows; ++i) {
          V line[3], half[3][n], whole[4];
          for (int r = 0; r < 3; ++r) {
            for (int s = 0; s < 3; ++s) line[s] = taps.at(i, turned ? 8 - 3 * r - s : 3 * r + s);
            Axis<wide>::of_weight(half[r], line);
          }
          for (int s = 0; s < n; ++s) {
            for (int r = 0; r < 3; ++r) line[r] = half[r][s];
            Axis<2>::of_weight(whole, line);
            for (int r = 0; r < 4; ++r) store(panel + (n * r + s) * point + i * kPanel, whole[r]);
          }
        }
      }
    }
  });
}

// transform(to, threads) writes the transformed weight.
template <int wide, typename Transform>
inline void winograd(float* y, const float* add, const Pixels& x, const float* bias, float least,
                     const Grid<wide>& grid, int64_t outputs, int threads, const Transform& transform) {
  const int64_t inputs = x.channels, wide_inputs = round_up(inputs, kWidth), wide_outputs = round_up(outputs, kWidth);
  const int64_t groups = (grid.count + kRows - 1) / kRows;
  const int64_t point = weight_point(inputs, outputs), size = grid.points * point;
  // What another thread wrote is in the cache of another core.
  const bool own = 2 * wide * grid.count >= kOwnWeight * threads;
  const float* shared = nullptr;
  if (!own) {
    float* const to = workspace(kWeight, size);
    transform(to, threads);
    shared = to;
  }
  const float* const nothing = zeros(wide_outputs);
  parallel_for(groups, 1, threads, [&](int64_t begin, int64_t end) {
    const int64_t from_point = kBlock * wide_inputs + kGap, to_point = kBlock * wide_outputs + kGap;
    float* const from = workspace(kFrom, grid.points * from_point);
    float* const to = workspace(kTo, grid.points * to_point);
    const float* weight = shared;
    if (own) {
      float* const transformed = workspace(kWeight, size);
      transform(transformed, 1);
      weight = transformed;
    }
    const int64_t stop = std::min(end * kRows, grid.count);
    for (int64_t first = begin * kRows; first < stop; first += kBlock) {
      const int64_t last = std::min(first + kBlock, stop);
      transform_input(from, x, grid, first, last, from_point);
      for (int64_t p = 0; p < grid.points; ++p) {
        multiply(to + p * to_point, nothing, nullptr, from + p * from_point, weight + p * point, last - first,
                 wide_outputs, inputs, inputs * kPanel, wide_outputs, 0, wide_inputs, 1);
      }
      transform_result(y, add, to, bias, least, grid, outputs, first, last, to_point);
    }
  });
}

// The gradients of the weight, which has the strides of the weight, and of the bias.
template <int wide>
inline void winograd_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                     const Convolution& c, const Grid<wide>& grid, int threads) {
  constexpr int n = Grid<wide>::columns;
  constexpr int64_t slab = 2 * kSlab / wide;
  const Pixels left_pixels(kLeftEdge, x, c, c.inputs), right_pixels(kRightEdge, grad_y, c, c.outputs);
  const int64_t wide_inputs = round_up(c.inputs, kWidth), wide_outputs = round_up(c.outputs, kWidth);
  const int64_t panels = (c.outputs + kPanel - 1) / kPanel, pixels = left_pixels.count;
  const int64_t chunk = std::min(slab, grid.count);
  // Each part sums its own tiles: [parts][points][inputs][outputs].
  const int64_t point = c.inputs * wide_outputs, size = grid.points * point;
  const Parts parts(grid.count, slab, panels, size);
  float* const product = workspace(kProduct, parts.count * size);
  const float* const nothing = zeros(wide_outputs);
  std::vector<double> total(static_cast<size_t>(parts.count * c.outputs));
  parallel_for(parts.count * panels, 1, threads, [&](int64_t begin, int64_t end) {
    // The panels of a part that one thread has share the transformed input.
    for (int64_t task = begin, taken; task < end; task += taken) {
      const int64_t part = task / panels, first = parts.first(part), last = parts.first(part + 1);
      taken = std::min(end - task, panels - task % panels);
      const int64_t j = task % panels * kPanel, columns = std::min(taken * kPanel, wide_outputs - j);
      const int64_t left_point = chunk * wide_inputs + kGap, right_point = chunk * taken * kPanel + kGap;
      float* const left = workspace(kLeft, grid.points * left_point);
      float* const right = workspace(kRight, grid.points * right_point);
      float* const of_part = product + part * size + j;
      for (int64_t i = 0; first == last && i < grid.points * c.inputs; ++i) {
        std::fill_n(of_part + i * wide_outputs, columns, 0.0f);
      }
      for (int64_t start = first; start < last; start += chunk) {
        const int64_t tiles = std::min(chunk, last - start);
        transform_input(left, left_pixels, grid, start, start + tiles, left_point);
        transform_gradient(right, right_pixels, grid, j, columns, start, start + tiles, chunk, right_point);
        for (int64_t p = 0; p < grid.points; ++p) {
          float* const sum = of_part + p * point;
          multiply(sum, nothing, start > first ? sum : nullptr, left + p * left_point, right + p * right_point,
                   c.inputs, columns, tiles, chunk * kPanel, wide_outputs, wide_outputs, 1, wide_inputs);
        }
      }
      const int64_t pixel = pixels * part / parts.count;
      add_rows(total.data() + part * c.outputs + j, grad_y + pixel * c.outputs + j,
               pixels * (part + 1) / parts.count - pixel, std::min(columns, c.outputs - j), c.outputs);
    }
  });
  add_parts(grad_bias, total, parts.count, c.outputs);
  const int64_t grain = std::max<int64_t>(4096 / (c.outputs * kDepth), 1);
  parallel_for((c.inputs + kDepth - 1) / kDepth, grain, threads, [&](int64_t begin, int64_t end) {
    Taps taps(c.input, c.tap);
    for (int64_t i = begin * kDepth; i < std::min(end * kDepth, c.inputs); i += kDepth) {
      const int64_t rows = std::min(kDepth, c.inputs - i);
      for (int64_t j = 0; j < c.outputs; j += kWidth) {
        for (int64_t k = 0; k < rows; ++k) {
          const float* from = product + (i + k) * wide_outputs + j;
          V half[4][3], line[4], whole[3];
          for (int r = 0; r < 4; ++r) {
            V sums[n] = {};
            for (int64_t part = 0; part < parts.count; ++part) {
              const float* q = from + part * size + n * r * point;
              for (int s = 0; s < n; ++s) sums[s] += load(q + s * point);
            }
            Axis<wide>::of_weight_backward(half[r], sums);
          }
          for (int s = 0; s < 3; ++s) {
            for (int r = 0; r < 4; ++r) line[r] = half[r][s];
            Axis<2>::of_weight_backward(whole, line);
            for (int r = 0; r < 3; ++r) taps.at(k, 3 * r + s) = whole[r];
          }
        }
        taps.store_to(grad_weight + i * c.input + j * c.output, c.output, rows, std::min(kWidth, c.outputs - j));
      }
    }
  });
}

}  // namespace pnf::cpu::PNF_ISA
