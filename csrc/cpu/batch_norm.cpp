#include "cpu/batch_norm.h"

#include "cpu/channels.h"

namespace pnf::cpu::PNF_ISA {
namespace {

template <typename C>
struct Map {
  Vec<C> mean, scale;

  Vec<C> centred(Vec<C> x) const { return x - mean; }
  Vec<C> operator()(Vec<C> x) const { return centred(x) * scale; }
};

template <typename C>
struct Statistics {
  const C *mean, *var;
  double eps;

  // In double, so that the scale is rounded only once.
  double scale(int64_t c) const { return 1 / std::sqrt(static_cast<double>(var[c]) + eps); }
  Map<C> channel(int64_t c) const { return {splat(mean[c]), splat(static_cast<C>(scale(c)))}; }
};

// The maps of the channels, repeated for a period.
template <typename C>
struct Maps {
  std::vector<C> mean, scale;

  Maps(const InterleavedRows<C>& rows, const Statistics<C>& s) : mean(rows.periodic(s.mean)) {
    std::vector<C> scales(rows.channels);
    for (int64_t c = 0; c < rows.channels; ++c) scales[c] = static_cast<C>(s.scale(c));
    scale = rows.periodic(scales.data());
  }

  Map<C> operator()(int64_t j) const { return {load(mean.data() + j), load(scale.data() + j)}; }
};

template <typename T, typename C>
void forward(T* y, C* mean, C* var, const T* x, const Statistics<C>& s, const Channels& shape, bool statistics,
             int threads) {
  const PlanarTiles tiles(shape.batch, shape.sites);
  const int64_t n = tiles.count();
  std::vector<Moments> parts(statistics ? shape.channels * n : 0);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  tiles.run(
      shape.channels, threads,
      [&](int64_t c, int64_t tile) {
        if (!statistics) return;
        parts[c * n + tile] = tile_moments<C>(tiles, tile, [&](int64_t b, int64_t) { return Reader<T>{x + at(b, c)}; });
      },
      [&](int64_t c) {
        if (!statistics) return;
        const Moments m = total(n, [&](int64_t tile) { return parts[c * n + tile]; });
        mean[c] = static_cast<C>(m.mean);
        var[c] = static_cast<C>(m.squares / m.count);
      },
      [&](int64_t c, int64_t tile) {
        const Map<C> map = s.channel(c);
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = y + at(b, c);
          const T* from = x + at(b, c);
          for_vectors<C>(first, last, [&](int64_t i, auto lanes) { lanes.store(to + i, map(lanes.load(from + i))); });
        });
      });
}

template <typename T, typename C>
void forward_rows(T* y, C* mean, C* var, const T* x, const Statistics<C>& s, const Channels& shape, bool statistics,
                  int threads) {
  const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
  if (statistics) {
    row_statistics<T>(mean, var, rows, threads,
                      [&](int64_t first, int64_t, std::vector<T>&) { return x + first * shape.channels; });
  }
  const Maps<C> maps(rows, s);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * shape.channels;
      T* to = y + start;
      const T* from = x + start;
      rows.each(rows.last(block) * shape.channels - start, maps,
                [&](int64_t i, const Map<C>& map, auto lanes) { lanes.store(to + i, map(lanes.load(from + i))); });
    }
  });
}

// The gradient of an entry: scale (g - constant - (x - mean) slope).
template <typename C>
struct Gradient {
  Map<C> map;
  Vec<C> constant, slope;

  Vec<C> operator()(Vec<C> g, Vec<C> x) const { return map.scale * (g - constant - map.centred(x) * slope); }
};

// What the gradients through the statistics take from that of each entry, from the sums of g and of g (x - mean), and
// from the mean gradient of the log-determinants, each -sites / 2 log(var + eps).
template <typename C>
struct Through {
  std::vector<double> constant, slope;
  double entries, gain;

  Through(const Channels& shape, double mean_of_log_det)
      : constant(shape.channels),
        slope(shape.channels),
        entries(static_cast<double>(shape.batch * shape.sites)),
        gain(mean_of_log_det) {}

  void set(const Statistics<C>& s, int64_t c, double sum, double product) {
    const double r = s.scale(c);
    constant[c] = sum / entries;
    slope[c] = product * r * r / entries + gain * r;
  }
};

template <typename T, typename C>
void backward(T* grad_x, const T* grad_y, const T* x, const Statistics<C>& s, Through<C>& through,
              const Channels& shape, int threads) {
  const PlanarTiles tiles(shape.batch, shape.sites);
  const int64_t n = tiles.count();
  std::vector<double> parts(2 * shape.channels * n);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  tiles.run(
      shape.channels, threads,
      [&](int64_t c, int64_t tile) {
        const Map<C> map = s.channel(c);
        Sum<C> sum, product;
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
            const Vec<C> g = lanes.load(grad + i);
            sum.parts[u] += g;
            product.parts[u] += g * map.centred(lanes.load(from + i, map.mean[0]));
          });
        });
        parts[2 * (c * n + tile)] = sum.total();
        parts[2 * (c * n + tile) + 1] = product.total();
      },
      [&](int64_t c) {
        double sum = 0, product = 0;
        for (int64_t i = c * n; i < (c + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        through.set(s, c, sum, product);
      },
      [&](int64_t c, int64_t tile) {
        const Gradient<C> gradient{s.channel(c), splat(static_cast<C>(through.constant[c])),
                                   splat(static_cast<C>(through.slope[c]))};
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors<C>(first, last, [&](int64_t i, auto lanes) {
            lanes.store(to + i, gradient(lanes.load(grad + i), lanes.load(from + i)));
          });
        });
      });
}

template <typename T, typename C>
void backward_rows(T* grad_x, const T* grad_y, const T* x, const Statistics<C>& s, Through<C>& through,
                   const Channels& shape, int threads) {
  const int64_t channels = shape.channels;
  const InterleavedRows<C> rows(shape.batch * shape.sites, channels);
  const Maps<C> maps(rows, s);
  std::vector<double> parts(2 * rows.count() * channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<C> sums(2 * rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      const T *from = x + start, *grad = grad_y + start;
      rows.template sum<2>(parts.data() + 2 * block * channels, sums.data(), rows.last(block) * channels - start, maps,
                           [&](int64_t i, const Map<C>& map, auto lanes) {
                             const Vec<C> g = lanes.load(grad + i);
                             return Terms<C, 2>{g, lanes.first(g * map.centred(lanes.load(from + i)))};
                           });
    }
  });
  double* const totals = parts.data();
  for (int64_t block = 1; block < rows.count(); ++block) {
    for (int64_t c = 0; c < 2 * channels; ++c) totals[c] += totals[2 * block * channels + c];
  }
  for (int64_t c = 0; c < channels; ++c) through.set(s, c, totals[c], totals[channels + c]);
  const std::vector<C> constant = rows.periodic(through.constant.data()), slope = rows.periodic(through.slope.data());
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.each(
          rows.last(block) * channels - start,
          [&](int64_t j) { return Gradient<C>{maps(j), load(constant.data() + j), load(slope.data() + j)}; },
          [&](int64_t i, const Gradient<C>& gradient, auto lanes) {
            lanes.store(to + i, gradient(lanes.load(grad + i), lanes.load(from + i)));
          });
    }
  });
}

// With given statistics.
template <typename T, typename C>
void scale_gradient(T* grad_x, const T* grad_y, const Statistics<C>& s, const Channels& shape, int threads) {
  if (shape.channels_last || shape.sites == 1) {
    const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
    const Maps<C> maps(rows, s);
    rows.run(threads, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t start = rows.first(block) * shape.channels;
        T* to = grad_x + start;
        const T* grad = grad_y + start;
        rows.each(rows.last(block) * shape.channels - start, maps, [&](int64_t i, const Map<C>& map, auto lanes) {
          lanes.store(to + i, map.scale * lanes.load(grad + i));
        });
      }
    });
    return;
  }
  for_chunks(shape.batch * shape.channels, shape.sites, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
    const Vec<C> scale = s.channel(row % shape.channels).scale;
    T* to = grad_x + row * shape.sites;
    const T* grad = grad_y + row * shape.sites;
    for_vectors<C>(first, last, [&](int64_t i, auto lanes) { lanes.store(to + i, scale * lanes.load(grad + i)); });
  });
}

template <typename C>
double total(const C* values, int64_t n) {
  LaneSum<C> sum;
  sum.add(values, n);
  return sum.total();
}

}  // namespace

void batch_norm(void* y, void* out, void* mean, void* var, const void* x, const void* log_det, const Channels& shape,
                bool statistics, double eps, DType dtype, DType log_det_dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Statistics<C> s{static_cast<const C*>(mean), static_cast<const C*>(var), eps};
    if (shape.batch * shape.channels * shape.sites > 0) {
      const auto& run = shape.channels_last || shape.sites == 1 ? forward_rows<T, C> : forward<T, C>;
      run(static_cast<T*>(y), static_cast<C*>(mean), static_cast<C*>(var), static_cast<const T*>(x), s, shape,
          statistics, threads);
    }
    double sum = 0;
    for (int64_t c = 0; c < shape.channels; ++c) sum += std::log(static_cast<double>(s.var[c]) + eps);
    const double gain = shape.sites ? -0.5 * static_cast<double>(shape.sites) * sum : 0;
    with_dtype(log_det_dtype, [&]<typename L>(L) {
      if constexpr (std::is_arithmetic_v<L>) {
        for (int64_t b = 0; b < shape.batch; ++b) {
          static_cast<L*>(out)[b] = static_cast<L>(static_cast<double>(static_cast<const L*>(log_det)[b]) + gain);
        }
      }
    });
  });
}

void batch_norm_backward(void* grad_x, const void* grad_y, const void* grad_log_det, const void* x, const void* mean,
                         const void* var, const Channels& shape, bool statistics, double eps, DType dtype,
                         int threads) {
  if (shape.batch * shape.channels * shape.sites == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Statistics<C> s{static_cast<const C*>(mean), static_cast<const C*>(var), eps};
    T* const to = static_cast<T*>(grad_x);
    const T *const grad = static_cast<const T*>(grad_y), *const from = static_cast<const T*>(x);
    if (!statistics) {
      scale_gradient(to, grad, s, shape, threads);
      return;
    }
    const double sum = total(static_cast<const C*>(grad_log_det), shape.batch);
    Through<C> through(shape, sum / static_cast<double>(shape.batch));
    const auto& run = shape.channels_last || shape.sites == 1 ? backward_rows<T, C> : backward<T, C>;
    run(to, grad, from, s, through, shape, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
