// Reductions over all but the channels of a tensor, the same bit for bit whatever the number of threads.
//
// A contiguous tensor is [batch, channels, sites]: the pieces of a channel are reduced in vectors along the sites. With
// its channels last it is [rows, channels]: blocks of rows are reduced in vectors along memory, whose lanes meet the
// channels in turn.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/sum.h"

namespace pnf::cpu::PNF_ISA {

// How many entries there are, their mean and the sum of their squared deviations from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;
};

// Of entries whose distances from `shift` have this sum and sum of squares.
inline Moments moments(double count, double shift, double sum, double squares) {
  return {count, shift + sum / count, std::max(squares - sum * sum / count, 0.0)};
}

// A number near the mean, from which distances are exact where entries have no more than float's precision: with more
// bits they would all be rounded the same way.
inline double shift_near(double mean) {
  const double near = static_cast<double>(static_cast<float>(mean));
  return std::isfinite(near) ? near : mean;
}

// Calls whole(i, u) for each whole vector of entries [first, last), and rest(i, n) for the n entries that are left
// over; u goes round from 0 to 3, so that four sums need not wait for one another.
template <typename C, typename Whole, typename Rest>
inline void for_vectors_by_four(int64_t first, int64_t last, const Whole& whole, const Rest& rest) {
  constexpr int64_t n = kLanes<C>;
  int64_t i = first;
  for (; i + 4 * n <= last; i += 4 * n) {
    whole(i, 0);
    whole(i + n, 1);
    whole(i + 2 * n, 2);
    whole(i + 3 * n, 3);
  }
  for (int u = 0; i + n <= last; i += n, ++u) whole(i, u);
  if (i < last) rest(i, last - i);
}

// Sums in four vectors, whose lanes are added in double.
template <typename C>
struct Sum {
  Vec<C> parts[4] = {};

  double total() const {
    LaneSum<C> sum;
    for (const Vec<C>& part : parts) sum.add(part);
    return sum.total();
  }
};

template <typename C>
inline Vec<C> first_lanes(Vec<C> v, int64_t n) {
  for (int64_t i = n; i < kLanes<C>; ++i) v[i] = 0;
  return v;
}

// What is subtracted, multiplied and added for a channel. A ReLU's mask is computed again for the backward, so both
// passes must go through here.
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

// The gradient of relu(x); it passes where the sign is unknown.
template <typename V>
inline V relu_backward(V grad, V x) {
  return x <= 0 ? V{} : grad;
}

// One channel of [batch, channels, sites] in pieces of about kChunk entries: a part of an example's sites, or those of
// several examples.
struct Pieces {
  int64_t batch, sites, across, group;

  Pieces(int64_t examples, int64_t sites_of_one)
      : batch(examples),
        sites(sites_of_one),
        across(std::max<int64_t>((sites + kChunk - 1) / kChunk, 1)),
        group(across > 1 ? 1 : std::min<int64_t>(kChunk / std::max<int64_t>(sites, 1), 256)) {}

  int64_t count() const { return (batch + group - 1) / group * across; }

  // Calls body(example, first, last) for the sites [first, last) of each example in a piece.
  template <typename Body>
  void each(int64_t piece, const Body& body) const {
    const int64_t example = piece / across * group, first = piece % across * kChunk;
    const int64_t last = std::min(first + kChunk, sites);
    for (int64_t b = example; b < std::min(example + group, batch); ++b) body(b, first, last);
  }

  double entries(int64_t piece) const {
    const int64_t first = piece % across * kChunk;
    const int64_t examples = std::min(group, batch - piece / across * group);
    return static_cast<double>(examples * (std::min(first + kChunk, sites) - first));
  }

  // Calls reduce(channel, piece) for each piece, then finish(channel), then apply(channel, piece) for each piece. A
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

// Reads a run of entries in ascending order.
template <typename T>
struct Reader {
  const T* x;

  Vec<Wide<T>> operator()(int64_t i) { return load(x + i); }
  Vec<Wide<T>> operator()(int64_t i, int64_t n, Wide<T> fill) { return load_part(x + i, n, fill); }
};

// The moments of a piece: its mean first, then distances from it, which float holds well. read(example, first) makes a
// reader of that example's sites from `first` on.
template <typename C, typename Read>
Moments piece_moments(const Pieces& pieces, int64_t piece, const Read& read) {
  Sum<C> total;
  pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
    auto x = read(b, first);
    for_vectors_by_four<C>(
        first, last, [&](int64_t i, int u) { total.parts[u] += x(i); },
        [&](int64_t i, int64_t n) { total.parts[3] += x(i, n, C{0}); });
  });
  const double count = pieces.entries(piece);
  const C mean = static_cast<C>(shift_near(total.total() / count));
  const Vec<C> shift = splat(mean);
  Sum<C> distance, square;
  pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
    auto x = read(b, first);
    for_vectors_by_four<C>(
        first, last,
        [&](int64_t i, int u) {
          const Vec<C> d = x(i) - shift;
          distance.parts[u] += d;
          square.parts[u] += d * d;
        },
        [&](int64_t i, int64_t n) {
          const Vec<C> d = x(i, n, mean) - shift;
          distance.parts[3] += d;
          square.parts[3] += d * d;
        });
  });
  return moments(count, static_cast<double>(mean), distance.total(), square.total());
}

// The moments of `n` groups of entries together, part(i) being those of one.
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

// Goes down `rows` rows of `width` entries, a multiple of a vector's: calls whole(row, j, prepare(j)) for the vector
// from entry j of each row on, having prepared for some columns at a time.
template <typename C, typename Prepare, typename Whole>
inline void for_columns(int64_t rows, int64_t width, const Prepare& prepare, const Whole& whole) {
  constexpr int64_t n = kLanes<C>;
  int64_t j = 0;
  for (; j + 4 * n <= width; j += 4 * n) {
    const auto a = prepare(j), b = prepare(j + n), c = prepare(j + 2 * n), d = prepare(j + 3 * n);
    for (int64_t row = 0; row < rows; ++row) {
      whole(row, j, a);
      whole(row, j + n, b);
      whole(row, j + 2 * n, c);
      whole(row, j + 3 * n, d);
    }
  }
  for (; j < width; j += n) {
    const auto a = prepare(j);
    for (int64_t row = 0; row < rows; ++row) whole(row, j, a);
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
struct Rows {
  static constexpr int64_t kBlock = 1 << 13;

  int64_t rows, channels, period, height;  // rows in all, and in a block

  Rows(int64_t row_count, int64_t channel_count)
      : rows(row_count),
        channels(channel_count),
        period(std::lcm(channels, static_cast<int64_t>(kLanes<C>))),
        height(std::max<int64_t>(kBlock / channels, 1)) {
    if (period < 16 * kLanes<C>) period = std::lcm(period, static_cast<int64_t>(4 * kLanes<C>));
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

  // Calls whole(i, prepare(j)) for the whole vectors of n entries that begin with channel 0, i their place and j that
  // in a period, and rest(i, prepare(j), left) for the entries that are left.
  template <typename Prepare, typename Whole, typename Rest>
  void each(int64_t n, const Prepare& prepare, const Whole& whole, const Rest& rest) const {
    for_columns<C>(n / period, period, prepare,
                   [&](int64_t row, int64_t j, const auto& prepared) { whole(row * period + j, prepared); });
    each_left(n, prepare, whole, rest);
  }

  // Writes the sums [terms, channels] of the vectors that term(i, prepare(j)) gives; rest(i, prepare(j), left) gives
  // those of a part, with zeros in the other lanes. `sums` has room for [terms, period].
  template <int terms, typename Prepare, typename Term, typename Rest>
  void sum(double* totals, C* sums, int64_t n, const Prepare& prepare, const Term& term, const Rest& rest) const {
    std::fill_n(totals, terms * channels, 0.0);
    sum_columns<terms>(totals, sums, n / period, period, channels, prepare,
                       [&](int64_t row, int64_t j, const auto& prepared) { return term(row * period + j, prepared); });
    const int64_t begin = n / period * period;
    if (begin == n) return;
    std::fill_n(sums, terms * period, C{0});
    const auto put = [&](int64_t i, const Terms<C, terms>& found) {
      for (int k = 0; k < terms; ++k) store(sums + k * period + i - begin, found[k]);
    };
    each_left(
        n, prepare, [&](int64_t i, const auto& prepared) { put(i, term(i, prepared)); },
        [&](int64_t i, const auto& prepared, int64_t left) { put(i, rest(i, prepared, left)); });
    for (int k = 0; k < terms; ++k) fold(totals + k * channels, sums + k * period, period, channels);
  }

  // A period of the channels' values.
  template <typename V>
  std::vector<C> spread(const V* values) const {
    std::vector<C> out(period);
    spread(out.data(), values);
    return out;
  }

  template <typename V>
  void spread(C* out, const V* values) const {
    for (int64_t i = 0; i < period; i += channels) {
      for (int64_t c = 0; c < channels; ++c) out[i + c] = static_cast<C>(values[c]);
    }
  }

 private:
  template <typename Prepare, typename Whole, typename Rest>
  void each_left(int64_t n, const Prepare& prepare, const Whole& whole, const Rest& rest) const {
    const int64_t begin = n / period * period;
    int64_t i = begin;
    for (; i + kLanes<C> <= n; i += kLanes<C>) whole(i, prepare(i - begin));
    if (i < n) rest(i, prepare(i - begin), n - i);
  }
};

// The parameters of the lanes of a period.
template <typename C>
struct Spread {
  std::vector<C> mean, scale, bias;

  Affine<C> operator()(int64_t j) const {
    return {load(mean.data() + j), load(scale.data() + j), load(bias.data() + j)};
  }
};

// Mean and biased variance of each channel of rows of T. read(first, last, buffer) gives those rows without gaps, in
// its buffer or elsewhere.
template <typename T, typename C, typename Read>
void row_statistics(C* mean, C* var, const Rows<C>& rows, int threads, const Read& read) {
  const int64_t channels = rows.channels;
  std::vector<double> parts(2 * rows.count() * channels);  // mean and squares of the channels of each block
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<T> buffer;
    std::vector<C> sums(2 * rows.period), shift(rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const T* const x = read(rows.first(block), rows.last(block), buffer);
      const double count = static_cast<double>(rows.last(block) - rows.first(block));
      const int64_t n = (rows.last(block) - rows.first(block)) * channels;
      double *const means = parts.data() + 2 * block * channels, *const squares = means + channels;
      rows.template sum<1>(
          means, sums.data(), n, [](int64_t) { return 0; }, [&](int64_t i, int) { return Terms<C, 1>{load(x + i)}; },
          [&](int64_t i, int, int64_t left) { return Terms<C, 1>{load_part(x + i, left)}; });
      for (int64_t c = 0; c < channels; ++c) means[c] = shift_near(means[c] / count);
      rows.spread(shift.data(), means);
      const auto distances = [](Vec<C> d) { return Terms<C, 2>{d, d * d}; };
      rows.template sum<2>(
          means, sums.data(), n, [&](int64_t j) { return load(shift.data() + j); },
          [&](int64_t i, Vec<C> s) { return distances(load(x + i) - s); },
          [&](int64_t i, Vec<C> s, int64_t left) {
            return distances(first_lanes<C>(load_part(x + i, left) - s, left));
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
