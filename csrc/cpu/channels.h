// Reductions over all axes but the channels, the same bit for bit for any number of threads.
//
// A contiguous tensor is [batch, channels, sites]: a channel is reduced tile by tile, in vectors along its sites. With
// its channels last a tensor is [rows, channels]: blocks of rows are reduced in vectors along memory, where a lane
// takes the channels in turn.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/math.h"
#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {

// The number of entries, their mean, and the sum of their squared deviations from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;
};

// From the sum and the sum of squares of the distances from `shift`.
inline Moments moments(double count, double shift, double sum, double squares) {
  return {count, shift + sum / count, std::max(squares - sum * sum / count, 0.0)};
}

// The mean rounded to float: subtracting it from float data is exact, whereas a double mean would bias every distance
// by the same rounding.
inline double shift_near(double mean) {
  const auto near = static_cast<double>(static_cast<float>(mean));
  return std::isfinite(near) ? near : mean;
}

// Calls body(i, u, lanes) for the vectors of entries [first, last). u cycles through 0 to 3, so that four sums do not
// wait for one another; a part of a vector has u = 3.
template <typename C, typename Body>
inline void for_vectors_by_four(int64_t first, int64_t last, const Body& body) {
  constexpr int64_t n = kLanes<C>;
  const Whole<C> all;
  int64_t i = first;
  for (; i + 4 * n <= last; i += 4 * n) {
    body(i, 0, all);
    body(i + n, 1, all);
    body(i + 2 * n, 2, all);
    body(i + 3 * n, 3, all);
  }
  for (int u = 0; i + n <= last; i += n, ++u) body(i, u, all);
  if (i < last) body(i, 3, Part<C>{last - i});
}

// A sum in four vectors; its lanes are added up in double.
template <typename C>
struct Sum {
  Vec<C> parts[4] = {};

  double total() const {
    LaneSum<C> sum;
    for (const Vec<C>& part : parts) sum.add(part);
    return sum.total();
  }
};

// (x - mean) scale + bias of a channel. The backward computes the mask of a ReLU again, so both passes must use this.
template <typename C>
struct Affine {
  Vec<C> mean, scale, bias;

  Vec<C> centred(Vec<C> x) const { return x - mean; }
  Vec<C> operator()(Vec<C> x) const { return centred(x) * scale + bias; }
};

template <typename V>
inline V relu(V x) {
  return at_least(x, V{});
}

// The gradient of relu(x), which passes where x is NaN.
template <typename V>
inline V relu_backward(V grad, V x) {
  return x <= 0 ? V{} : grad;
}

// A channel of [batch, channels, sites] in tiles of about kChunk entries: some sites of one example, or all sites of
// several.
struct PlanarTiles {
  int64_t batch, sites, across, group;

  PlanarTiles(int64_t examples, int64_t sites_of_one)
      : batch(examples),
        sites(sites_of_one),
        across(std::max<int64_t>((sites + kChunk - 1) / kChunk, 1)),
        group(across > 1 ? 1 : std::min<int64_t>(kChunk / std::max<int64_t>(sites, 1), 256)) {}

  int64_t count() const { return (batch + group - 1) / group * across; }

  // Calls body(example, first, last) for the sites [first, last) of each example in a tile.
  template <typename Body>
  void each(int64_t tile, const Body& body) const {
    const int64_t example = tile / across * group, first = tile % across * kChunk;
    const int64_t last = std::min(first + kChunk, sites);
    for (int64_t b = example; b < std::min(example + group, batch); ++b) body(b, first, last);
  }

  double entries(int64_t tile) const {
    const int64_t first = tile % across * kChunk;
    const int64_t examples = std::min(group, batch - tile / across * group);
    return static_cast<double>(examples * (std::min(first + kChunk, sites) - first));
  }

  // Calls reduce(channel, tile) for each tile, then finish(channel), then apply(channel, tile) for each tile. A
  // thread does all of that for a channel while its memory is still in the cache, if there are channels for everyone.
  template <typename Reduce, typename Finish, typename Apply>
  void run(int64_t channels, int threads, const Reduce& reduce, const Finish& finish, const Apply& apply) const {
    const int64_t n = count();
    const int64_t grain = 2 * kChunk / std::clamp<int64_t>(group * std::min(sites, kChunk), 1, kChunk);
    if (channels % threads == 0 || channels >= 4 * threads) {
      parallel_for(channels, grain / std::max<int64_t>(n, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          for (int64_t i = 0; i < n; ++i) reduce(c, i);
          finish(c);
          for (int64_t i = 0; i < n; ++i) apply(c, i);
        }
      });
      return;
    }
    parallel_for(channels * n, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) reduce(i / n, i % n);
    });
    for (int64_t c = 0; c < channels; ++c) finish(c);
    parallel_for(channels * n, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) apply(i / n, i % n);
    });
  }
};

// Reads entries in ascending order.
template <typename T>
struct Reader {
  const T* x;

  Vec<Wide<T>> operator()(int64_t i, auto lanes, Wide<T> fill) { return lanes.load(x + i, fill); }
};

// The moments of a tile. A first pass finds its mean, and a second one sums the distances from it, which float
// represents well. read(example, first) makes a reader of the sites of that example, beginning with `first`.
template <typename C, typename Read>
Moments tile_moments(const PlanarTiles& tiles, int64_t tile, const Read& read) {
  Sum<C> total;
  tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
    auto x = read(b, first);
    for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) { total.parts[u] += x(i, lanes, C{0}); });
  });
  const double count = tiles.entries(tile);
  const C mean = static_cast<C>(shift_near(total.total() / count));
  const Vec<C> shift = splat(mean);
  Sum<C> distance, square;
  tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
    auto x = read(b, first);
    for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
      const Vec<C> d = x(i, lanes, mean) - shift;
      distance.parts[u] += d;
      square.parts[u] += d * d;
    });
  });
  return moments(count, static_cast<double>(mean), distance.total(), square.total());
}

// The moments of n groups of entries together; part(i) are those of group i.
template <typename Part>
Moments total(int64_t n, const Part& part) {
  ExactSum sum, squares;
  Moments all;
  for (int64_t i = 0; i < n; ++i) {
    const Moments m = part(i);
    all.count += m.count;
    sum.add(m.count * m.mean);
  }
  if (all.count == 0) return all;
  all.mean = sum.value() / all.count;
  for (int64_t i = 0; i < n; ++i) {
    const Moments m = part(i);
    const double distance = m.mean - all.mean;
    squares.add(m.squares);
    squares.add(m.count * distance * distance);
  }
  all.squares = squares.value();
  return all;
}

// Calls body(row, j, prepare(j)) for the vector at entry j of each row, a few columns at a time. `width`, the entries
// of a row, is a multiple of a vector's.
template <typename C, typename Prepare, typename Body>
inline void for_columns(int64_t rows, int64_t width, const Prepare& prepare, const Body& body) {
  constexpr int64_t n = kLanes<C>;
  int64_t j = 0;
  for (; j + 4 * n <= width; j += 4 * n) {
    const auto a = prepare(j), b = prepare(j + n), c = prepare(j + 2 * n), d = prepare(j + 3 * n);
    for (int64_t row = 0; row < rows; ++row) {
      body(row, j, a);
      body(row, j + n, b);
      body(row, j + 2 * n, c);
      body(row, j + 3 * n, d);
    }
  }
  for (; j < width; j += n) {
    const auto a = prepare(j);
    for (int64_t row = 0; row < rows; ++row) body(row, j, a);
  }
}

template <typename C, int terms>
using Terms = std::array<Vec<C>, terms>;

// totals[c] += sum over i of sums[c + i channels]
template <typename C>
inline void fold(double* totals, const C* sums, int64_t width, int64_t channels) {
  for (int64_t i = 0; i < width; i += channels) {
    for (int64_t c = 0; c < channels; ++c) totals[c] += static_cast<double>(sums[i + c]);
  }
}

// Adds to totals [terms, channels] what term(row, j, prepare(j)) gives for each vector of rows of `width` entries,
// whose channels repeat; `sums` has room for [terms, width]. Few rows are added before their sums are, in double.
template <int terms, typename C, typename Prepare, typename Term>
inline void sum_columns(double* totals, C* sums, int64_t rows, int64_t width, int64_t channels, const Prepare& prepare,
                        const Term& term) {
  constexpr int64_t n = kLanes<C>, few = 16;
  const auto go_down = [&]<int columns>(std::integral_constant<int, columns>, int64_t first, int64_t last, int64_t j) {
    using Prepared = decltype(prepare(j));
    const std::array<Prepared, columns> prepared = [&]<size_t... u>(std::index_sequence<u...>) {
      return std::array<Prepared, columns>{prepare(j + static_cast<int64_t>(u) * n)...};
    }(std::make_index_sequence<columns>{});
    Terms<C, terms> total[columns] = {};
    for (int64_t row = first; row < last; ++row) {
      for (int u = 0; u < columns; ++u) {
        const Terms<C, terms> found = term(row, j + u * n, prepared[u]);
        for (int k = 0; k < terms; ++k) total[u][k] += found[k];
      }
    }
    for (int u = 0; u < columns; ++u) {
      for (int k = 0; k < terms; ++k) store(sums + k * width + j + u * n, total[u][k]);
    }
  };
  for (int64_t first = 0; first < rows; first += few) {
    const int64_t last = std::min(first + few, rows);
    int64_t j = 0;
    for (; j + 4 * n <= width; j += 4 * n) go_down(std::integral_constant<int, 4>{}, first, last, j);
    for (; j < width; j += n) go_down(std::integral_constant<int, 1>{}, first, last, j);
    for (int k = 0; k < terms; ++k) fold(totals + k * channels, sums + k * width, width, channels);
  }
}

// Rows of channels in blocks of about kBlock entries. The channels of a vector's lanes repeat after a period, which is
// a multiple of both the channels and the lanes, so that memory may be seen as rows of a period.
template <typename C>
struct InterleavedRows {
  static constexpr int64_t kBlock = 1 << 13;

  int64_t rows, channels, period, height;  // rows in all, and in a block

  InterleavedRows(int64_t row_count, int64_t channel_count)
      : rows(row_count),
        channels(channel_count),
        period(std::lcm(channels, static_cast<int64_t>(kLanes<C>))),
        height(std::max<int64_t>(kBlock / channels, 1)) {
    if (period < 16 * kLanes<C>) period = std::lcm(period, int64_t{4} * kLanes<C>);
  }

  int64_t count() const { return (rows + height - 1) / height; }
  int64_t first(int64_t block) const { return block * height; }
  int64_t last(int64_t block) const { return std::min((block + 1) * height, rows); }

  // Calls body(begin, end) on ranges of blocks.
  template <typename Body>
  void run(int threads, const Body& body) const {
    parallel_for(count(), 2 * kChunk / std::clamp<int64_t>(std::min(height, rows) * channels, 1, 2 * kChunk), threads,
                 body);
  }

  // Calls body(i, prepare(j), lanes) for the vectors of n entries that begin with channel 0: i is the place of a vector
  // among the entries, and j its place in a period.
  template <typename Prepare, typename Body>
  void each(int64_t n, const Prepare& prepare, const Body& body) const {
    for_columns<C>(n / period, period, prepare,
                   [&](int64_t row, int64_t j, const auto& prepared) { body(row * period + j, prepared, Whole<C>{}); });
    each_left(n, prepare, body);
  }

  // Writes the sums [terms, channels] of the vectors that term(i, prepare(j), lanes) returns; for a part of a vector
  // the other lanes must be zero. `sums` has room for [terms, period].
  template <int terms, typename Prepare, typename Term>
  void sum(double* totals, C* sums, int64_t n, const Prepare& prepare, const Term& term) const {
    std::fill_n(totals, terms * channels, 0.0);
    sum_columns<terms>(
        totals, sums, n / period, period, channels, prepare,
        [&](int64_t row, int64_t j, const auto& prepared) { return term(row * period + j, prepared, Whole<C>{}); });
    const int64_t begin = n / period * period;
    if (begin == n) return;
    std::fill_n(sums, terms * period, C{0});
    each_left(n, prepare, [&](int64_t i, const auto& prepared, auto lanes) {
      const Terms<C, terms> found = term(i, prepared, lanes);
      for (int k = 0; k < terms; ++k) store(sums + k * period + i - begin, found[k]);
    });
    for (int k = 0; k < terms; ++k) fold(totals + k * channels, sums + k * period, period, channels);
  }

  // The channels' values, repeated for a period.
  template <typename V>
  std::vector<C> periodic(const V* values) const {
    std::vector<C> out(period);
    periodic(out.data(), values);
    return out;
  }

  template <typename V>
  void periodic(C* out, const V* values) const {
    for (int64_t i = 0; i < period; i += channels) {
      for (int64_t c = 0; c < channels; ++c) out[i + c] = static_cast<C>(values[c]);
    }
  }

 private:
  template <typename Prepare, typename Body>
  void each_left(int64_t n, const Prepare& prepare, const Body& body) const {
    const int64_t begin = n / period * period;
    for_vectors<C>(begin, n, [&](int64_t i, auto lanes) { body(i, prepare(i - begin), lanes); });
  }
};

// The parameters of the channels, repeated for a period.
template <typename C>
struct PeriodicAffine {
  std::vector<C> mean, scale, bias;

  Affine<C> operator()(int64_t j) const {
    return {load(mean.data() + j), load(scale.data() + j), load(bias.data() + j)};
  }
};

// Mean and biased variance of each channel of rows of T. read(first, last, buffer) returns those rows without gaps, in
// the buffer or elsewhere.
template <typename T, typename C, typename Read>
void row_statistics(C* mean, C* var, const InterleavedRows<C>& rows, int threads, const Read& read) {
  const int64_t channels = rows.channels;
  std::vector<double> parts(2 * rows.count() * channels);  // mean and squares of the channels of each block
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<T> buffer;
    std::vector<C> sums(2 * rows.period), shift(rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const T* const x = read(rows.first(block), rows.last(block), buffer);
      const auto count = static_cast<double>(rows.last(block) - rows.first(block));
      const int64_t n = (rows.last(block) - rows.first(block)) * channels;
      double *const means = parts.data() + 2 * block * channels, *const squares = means + channels;
      rows.template sum<1>(
          means, sums.data(), n, [](int64_t) { return 0; },
          [&](int64_t i, int, auto lanes) { return Terms<C, 1>{lanes.load(x + i)}; });
      for (int64_t c = 0; c < channels; ++c) means[c] = shift_near(means[c] / count);
      rows.periodic(shift.data(), means);
      rows.template sum<2>(
          means, sums.data(), n, [&](int64_t j) { return load(shift.data() + j); },
          [&](int64_t i, Vec<C> s, auto lanes) {
            const Vec<C> d = lanes.first(lanes.load(x + i) - s);
            return Terms<C, 2>{d, d * d};
          });
      for (int64_t c = 0; c < channels; ++c) {
        const Moments m = moments(count, static_cast<double>(shift[c]), means[c], squares[c]);
        means[c] = m.mean;
        squares[c] = m.squares;
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    const Moments m = total(rows.count(), [&](int64_t block) {
      const double* part = parts.data() + 2 * block * channels + c;
      return Moments{static_cast<double>(rows.last(block) - rows.first(block)), part[0], part[channels]};
    });
    mean[c] = static_cast<C>(m.mean);
    var[c] = static_cast<C>(m.squares / m.count);
  }
}

}  // namespace pnf::cpu::PNF_ISA
