// A chunk of pairs is worked on in tiles of cpu/pairs.h.
#include "cpu/haar_bounded.h"

#include <algorithm>
#include <vector>

#include "cpu/math.h"
#include "cpu/pairs.h"
#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// As in pnf/reference/haar_bounded.py.
constexpr double kBoundary = 0x1p-24, kLargestExponent = 64;

constexpr double kLog2 = 0.69314718055994530942;

// A row is a channel of an example; with the channels last, it is a whole example.
struct ChannelRows {
  int64_t examples, of_example, channels, length, stride, chunk, chunks;

  ChannelRows(int64_t examples_, int64_t channels_, int64_t length_, int64_t stride_, bool channels_last)
      : examples(examples_),
        of_example(channels_last ? 1 : channels_),
        channels(channels_last ? channels_ : 1),
        length(length_ / std::max<int64_t>(of_example, 1)),
        stride(stride_),
        chunk(std::max<int64_t>(kChunk / channels, 1) * channels),
        chunks(std::max<int64_t>((length + chunk - 1) / chunk, 1)) {}

  int64_t count() const { return examples * of_example * chunks; }

  // Calls body(i, row, first, last) in parallel for chunks of pairs: chunk i of all is the pairs [first, last) of a
  // row.
  template <typename Body>
  void each(int threads, const Body& body) const {
    for_chunks(examples * of_example, length, chunk, threads,
               [&](int64_t row, int64_t first, int64_t last) { body(row * chunks + first / chunk, row, first, last); });
  }

  // The channels of the pairs of a chunk repeat after a period, and a tile begins there.
  int64_t period() const { return channels <= kPairs ? kPairs / channels * channels : channels; }

  // The place of the turn-th pair of a period in a list of its channels. A single channel is listed once.
  int64_t place(int64_t turn) const { return channels == 1 ? 0 : turn; }

  // The length of that list for a chunk of `pairs` pairs.
  int64_t places(int64_t pairs) const { return channels == 1 ? 1 : std::min(period(), pairs); }
};

// Calls body(start, n, turn) for the tiles of a chunk: n pairs from `start` on, and pair `start` is the turn-th of a
// period.
template <typename Body>
void for_tiles(const ChannelRows& rows, int64_t first, int64_t last, const Body& body) {
  const int64_t period = rows.period();
  for (int64_t start = first, turn = 0; start < last;) {
    const int64_t n = std::min({kPairs, period - turn, last - start});
    body(start, n, turn);
    start += n;
    turn += n;
    if (turn == period) turn = 0;
  }
}

// Gamma for each place; a vector may be loaded from any of them.
template <typename C>
std::vector<C> gammas(const ChannelRows& rows, const C* gamma, int64_t row, int64_t pairs) {
  const int64_t n = rows.places(pairs);
  gamma += row % rows.of_example;
  std::vector<C> of(static_cast<size_t>(n + kLanes<C>), *gamma);
  for (int64_t i = 0; i < n; i += rows.channels) {
    std::copy_n(gamma, std::min(rows.channels, n - i), of.begin() + i);
  }
  return of;
}

template <typename T>
T* of_row(void* p, int64_t row, int64_t length) {
  return static_cast<T*>(p) + row * length;
}

template <typename T>
const T* of_row(const void* p, int64_t row, int64_t length) {
  return static_cast<const T*>(p) + row * length;
}

// Sums of the chunks of each example, in order.
template <typename C>
void add_log_det(C* log_det, const ChannelRows& rows, const std::vector<double>& parts) {
  const int64_t n = rows.of_example * rows.chunks;
  for (int64_t i = 0; i < rows.examples; ++i) {
    ExactSum total;
    for (int64_t k = 0; k < n; ++k) total.add(parts[static_cast<size_t>(i * n + k)]);
    log_det[i] = static_cast<C>(total.value());
  }
}

// The sum of each channel of a chunk, from sums for each place.
template <typename C>
void add_places(double* part, const ChannelRows& rows, const std::vector<C>& sums) {
  if (rows.channels == 1) {
    *part = static_cast<double>(sum<C>(load(sums.data())));
    return;
  }
  const int64_t n = static_cast<int64_t>(sums.size()) - kLanes<C>;
  for (int64_t i = 0, channel = 0; i < n; ++i) {
    part[channel] += static_cast<double>(sums[static_cast<size_t>(i)]);
    if (++channel == rows.channels) channel = 0;
  }
}

// Sums of the chunks of each channel, in order.
template <typename C>
void add_grad_gamma(C* grad_gamma, const ChannelRows& rows, const std::vector<double>& parts) {
  std::vector<double> total(static_cast<size_t>(rows.of_example * rows.channels));
  for (int64_t i = 0; i < rows.count(); ++i) {
    double* to = total.data() + i / rows.chunks % rows.of_example;
    const double* part = parts.data() + i * rows.channels;
    for (int64_t channel = 0; channel < rows.channels; ++channel) to[channel] += part[channel];
  }
  for (size_t i = 0; i < total.size(); ++i) grad_gamma[i] = static_cast<C>(total[i]);
}

// m = min(s, 1 - s) of a mean s, the largest distance of a pixel from it, and whether s <= 1/2.
template <typename C>
struct Mean {
  IntVec<C> low;
  Vec<C> m, inner;

  explicit Mean(Vec<C> s)
      : low(s <= static_cast<C>(0.5)), m(low ? s : 1 - s), inner(at_least(m, splat<C>(kBoundary))) {}

  Vec<C> log_m() const { return m != m ? m : log_normal(inner); }

  // The gradient of s from those of m and of log m.
  Vec<C> backward(Vec<C> of_m, Vec<C> of_log_m) const {
    const Vec<C> grad = of_m + (m >= static_cast<C>(kBoundary) ? of_log_m / inner : Vec<C>{});
    return low ? grad : -grad;
  }
};

// exp of a bounded exponent, and the gradient of the exponent.
template <typename C>
Vec<C> stretch(Vec<C> exponent) {
  return exp(at_most(exponent, splat<C>(kLargestExponent)));
}

template <typename C>
Vec<C> stretch_backward(Vec<C> exponent, Vec<C> grad) {
  return exponent <= static_cast<C>(kLargestExponent) ? grad : Vec<C>{};
}

// Two pixels, seen from the nearer end of [0, 1].
template <typename C>
struct Pixels {
  Vec<C> s;
  Mean<C> mean;
  Vec<C> a, b, inner_a, inner_b;

  Pixels(Vec<C> x0, Vec<C> x1)
      : s((x0 + x1) * static_cast<C>(0.5)),
        mean(s),
        a(mean.low ? x0 : 1 - x1),
        b(mean.low ? x1 : 1 - x0),
        inner_a(at_least(a, splat<C>(kBoundary))),
        inner_b(at_least(b, splat<C>(kBoundary))) {}
};

// log m, log a and log b of a tile. Each takes a pass of its own, in which a processor works on several vectors at
// once.
template <typename C>
struct Logs {
  alignas(Vec<C>) C m[kPairs], a[kPairs], b[kPairs];

  void put(int64_t k, const Pixels<C>& pixels) {
    store(m + k, pixels.mean.inner);
    store(a + k, pixels.inner_a);
    store(b + k, pixels.inner_b);
  }

  // Takes the logarithms of the first n entries.
  void take(int64_t n) {
    for (C* x : {m, a, b}) {
      for (int64_t k = 0; k < n; k += kLanes<C>) {
        const Vec<C> v = load(x + k);
        store(x + k, v != v ? v : log_normal(v));
      }
    }
  }
};

// sigmoid(v) and sigmoid(-v) from one exponential.
template <typename C>
struct Sigmoids {
  Vec<C> magnitude, small, inverse, up, down;

  explicit Sigmoids(Vec<C> v) : magnitude(abs<C>(v)), small(exp(-magnitude)), inverse(1 / (1 + small)) {
    const Vec<C> other = small * inverse;
    up = v < 0 ? other : inverse;
    down = v < 0 ? inverse : other;
  }

  // -log(sigmoid(v) sigmoid(-v)), corrected for the rounding of 1 + small.
  Vec<C> cost() const {
    const Vec<C> sum = 1 + small;
    return magnitude + 2 * (log_normal(sum) + (small - (sum - 1)) * inverse);
  }
};

}  // namespace

// All take several short passes over a tile: the shorter a chain of operations, the less a processor waits for results.

void haar_bounded_split(void* s, void* u, void* log_det, const void* x, const void* gamma, int64_t examples,
                        int64_t channels, int64_t length, int64_t stride, bool channels_last, DType dtype,
                        int threads) {
  const ChannelRows rows(examples, channels, length, stride, channels_last);
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    std::vector<double> parts(static_cast<size_t>(rows.count()));
    rows.each(threads, [&](int64_t i, int64_t row, int64_t first, int64_t end) {
      const std::vector<C> g = gammas(rows, static_cast<const C*>(gamma), row, end - first);
      const T* from = of_row<T>(x, row, 2 * rows.length);
      T *to_s = of_row<T>(s, row, rows.length), *to_u = of_row<T>(u, row, rows.length);
      Pairs<T> pair{};
      Logs<C> log;
      ExactSum chunk;
      for_tiles(rows, first, end, [&](int64_t start, int64_t count, int64_t turn) {
        Vec<C> total{};
        take_apart(pair, from, start, count, rows.stride);
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Pixels<C> pixels(load(pair.first + k), load(pair.second + k));
          store_some(to_s + start + k, pixels.s, count - k);
          log.put(k, pixels);
        }
        log.take(count);
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Vec<C> b_gamma = load(g.data() + rows.place(turn + k));
          const Vec<C> log_m = load(log.m + k), log_a = load(log.a + k), log_b = load(log.b + k);
          const Vec<C> half = stretch<C>(b_gamma * log_m) * static_cast<C>(0.5);
          store_some(to_u + start + k, half * (log_a - log_b), count - k);
          total += first_some<C>((1 + b_gamma) * log_m - (log_a + log_b + static_cast<C>(kLog2)), count - k);
        }
        chunk.add(static_cast<double>(sum<C>(total)));
      });
      parts[static_cast<size_t>(i)] = chunk.value();
    });
    add_log_det(static_cast<C*>(log_det), rows, parts);
  });
}

void haar_bounded_split_backward(void* grad_x, void* grad_gamma, const void* grad_s, const void* grad_u,
                                 const void* grad_log_det, const void* x, const void* gamma, int64_t examples,
                                 int64_t channels, int64_t length, int64_t stride, bool channels_last, DType dtype,
                                 int threads) {
  const ChannelRows rows(examples, channels, length, stride, channels_last);
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    std::vector<double> parts(static_cast<size_t>(rows.count() * rows.channels));
    rows.each(threads, [&](int64_t i, int64_t row, int64_t first, int64_t end) {
      const std::vector<C> g = gammas(rows, static_cast<const C*>(gamma), row, end - first);
      std::vector<C> sums(g.size());
      const T* from = of_row<T>(x, row, 2 * rows.length);
      const T *from_s = of_row<T>(grad_s, row, rows.length), *from_u = of_row<T>(grad_u, row, rows.length);
      T* to = of_row<T>(grad_x, row, 2 * rows.length);
      const Vec<C> grad = splat(static_cast<const C*>(grad_log_det)[row / rows.of_example]);
      Pairs<T> pair{};
      Logs<C> log;
      for_tiles(rows, first, end, [&](int64_t start, int64_t count, int64_t turn) {
        take_apart(pair, from, start, count, rows.stride);
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          log.put(k, Pixels<C>(load(pair.first + k), load(pair.second + k)));
        }
        log.take(count);
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Vec<C> b_gamma = load(g.data() + rows.place(turn + k)), zero{};
          const Pixels<C> pixels(load(pair.first + k), load(pair.second + k));
          const Vec<C> log_m = load(log.m + k), exponent = b_gamma * log_m;
          const Vec<C> half = load_some(from_u + start + k, count - k) * stretch<C>(exponent) * static_cast<C>(0.5);
          const Vec<C> of_exponent = stretch_backward<C>(exponent, half * (load(log.a + k) - load(log.b + k)));
          const Vec<C> of_a = pixels.a >= static_cast<C>(kBoundary) ? (half - grad) / pixels.inner_a : zero;
          const Vec<C> of_b = pixels.b >= static_cast<C>(kBoundary) ? (-half - grad) / pixels.inner_b : zero;
          const Vec<C> of_log_m = of_exponent * b_gamma + grad * (1 + b_gamma);
          const Vec<C> of_s = load_some(from_s + start + k, count - k) + pixels.mean.backward(zero, of_log_m);
          const Vec<C> of_both = of_s * static_cast<C>(0.5);
          store(pair.first + k, of_both + (pixels.mean.low ? of_a : -of_b));
          store(pair.second + k, of_both + (pixels.mean.low ? of_b : -of_a));
          C* to_sums = sums.data() + rows.place(turn + k);
          store(to_sums, load(to_sums) + first_some<C>((of_exponent + grad) * log_m, count - k));
        }
        put_together(to, pair, start, count, rows.stride);
      });
      add_places(parts.data() + i * rows.channels, rows, sums);
    });
    add_grad_gamma(static_cast<C*>(grad_gamma), rows, parts);
  });
}

void haar_bounded_merge(void* x, void* log_det, const void* s, const void* u, const void* gamma, int64_t examples,
                        int64_t channels, int64_t length, int64_t stride, bool channels_last, DType dtype,
                        int threads) {
  const ChannelRows rows(examples, channels, length, stride, channels_last);
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    std::vector<double> parts(static_cast<size_t>(rows.count()));
    rows.each(threads, [&](int64_t i, int64_t row, int64_t first, int64_t end) {
      const std::vector<C> g = gammas(rows, static_cast<const C*>(gamma), row, end - first);
      const T *from_s = of_row<T>(s, row, rows.length), *from_u = of_row<T>(u, row, rows.length);
      T* to = of_row<T>(x, row, 2 * rows.length);
      Pairs<T> pair;
      C means[kPairs], v[kPairs];
      ExactSum chunk;
      for_tiles(rows, first, end, [&](int64_t start, int64_t count, int64_t turn) {
        Vec<C> total{};
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Vec<C> b_gamma = load(g.data() + rows.place(turn + k)), b_s = load_some(from_s + start + k, count - k);
          const Vec<C> log_m = Mean<C>(b_s).log_m();
          const Vec<C> b_u = load_some(from_u + start + k, count - k);
          store(means + k, b_s);
          store(v + k, 2 * b_u * stretch<C>(-b_gamma * log_m));
          total += first_some<C>((1 - b_gamma) * log_m + static_cast<C>(3 * kLog2), count - k);
        }
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Mean<C> mean(load(means + k));
          const Sigmoids<C> sigmoid(load(v + k));
          const Vec<C> a = 2 * mean.m * sigmoid.up, b = 2 * mean.m * sigmoid.down, zero{}, one = splat<C>(1);
          store(pair.first + k, at_most(at_least(mean.low ? a : 1 - b, zero), one));
          store(pair.second + k, at_most(at_least(mean.low ? b : 1 - a, zero), one));
          total -= first_some<C>(sigmoid.cost(), count - k);
        }
        put_together(to, pair, start, count, rows.stride);
        chunk.add(static_cast<double>(sum<C>(total)));
      });
      parts[static_cast<size_t>(i)] = chunk.value();
    });
    add_log_det(static_cast<C*>(log_det), rows, parts);
  });
}

void haar_bounded_merge_backward(void* grad_s, void* grad_u, void* grad_gamma, const void* grad_x,
                                 const void* grad_log_det, const void* s, const void* u, const void* gamma,
                                 int64_t examples, int64_t channels, int64_t length, int64_t stride, bool channels_last,
                                 DType dtype, int threads) {
  const ChannelRows rows(examples, channels, length, stride, channels_last);
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    std::vector<double> parts(static_cast<size_t>(rows.count() * rows.channels));
    rows.each(threads, [&](int64_t i, int64_t row, int64_t first, int64_t end) {
      const std::vector<C> g = gammas(rows, static_cast<const C*>(gamma), row, end - first);
      std::vector<C> sums(g.size());
      const T* from = of_row<T>(grad_x, row, 2 * rows.length);
      const T *from_s = of_row<T>(s, row, rows.length), *from_u = of_row<T>(u, row, rows.length);
      T *to_s = of_row<T>(grad_s, row, rows.length), *to_u = of_row<T>(grad_u, row, rows.length);
      const Vec<C> grad = splat(static_cast<const C*>(grad_log_det)[row / rows.of_example]);
      Pairs<T> pair{};
      C logs[kPairs], factors[kPairs];
      for_tiles(rows, first, end, [&](int64_t start, int64_t count, int64_t turn) {
        take_apart(pair, from, start, count, rows.stride);
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Vec<C> log_m = Mean<C>(load_some(from_s + start + k, count - k)).log_m();
          store(logs + k, log_m);
          store(factors + k, 2 * stretch<C>(-load(g.data() + rows.place(turn + k)) * log_m));
        }
        for (int64_t k = 0; k < count; k += kLanes<C>) {
          const Vec<C> b_gamma = load(g.data() + rows.place(turn + k)), zero{};
          const Vec<C> log_m = load(logs + k), factor = load(factors + k);
          const Vec<C> b_u = load_some(from_u + start + k, count - k);
          const Mean<C> mean(load_some(from_s + start + k, count - k));
          const Sigmoids<C> sigmoid(b_u * factor);
          const Vec<C> a = 2 * mean.m * sigmoid.up, b = 2 * mean.m * sigmoid.down;
          const Vec<C> x0 = mean.low ? a : 1 - b, x1 = mean.low ? b : 1 - a;
          const Vec<C> of_x0 = ((x0 >= 0) & (x0 <= 1)) ? load(pair.first + k) : zero;
          const Vec<C> of_x1 = ((x1 >= 0) & (x1 <= 1)) ? load(pair.second + k) : zero;
          const Vec<C> of_a = mean.low ? of_x0 : -of_x1, of_b = mean.low ? of_x1 : -of_x0;
          const Vec<C> of_v = (of_a - of_b) * a * sigmoid.down - grad * (sigmoid.up - sigmoid.down);
          const Vec<C> of_u = of_v * factor;
          const Vec<C> of_exponent = stretch_backward<C>(-b_gamma * log_m, of_u * b_u);
          const Vec<C> of_log_m = grad * (1 - b_gamma) - of_exponent * b_gamma;
          const Vec<C> of_m = 2 * (of_a * sigmoid.up + of_b * sigmoid.down);
          store_some(to_s + start + k, mean.backward(of_m, of_log_m), count - k);
          store_some(to_u + start + k, of_u, count - k);
          C* to_sums = sums.data() + rows.place(turn + k);
          store(to_sums, load(to_sums) - first_some<C>((of_exponent + grad) * log_m, count - k));
        }
      });
      add_places(parts.data() + i * rows.channels, rows, sums);
    });
    add_grad_gamma(static_cast<C*>(grad_gamma), rows, parts);
  });
}

}  // namespace pnf::cpu::PNF_ISA
