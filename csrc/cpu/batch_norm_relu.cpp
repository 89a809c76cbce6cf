#include "cpu/batch_norm_relu.h"

#include "cpu/channels.h"

namespace pnf::cpu::PNF_ISA {
namespace {

template <typename C>
struct Parameters {
  const C *weight, *bias, *mean, *var;
  double eps;

  // In double, so that the scale is rounded only once.
  double reciprocal_std(int64_t c) const { return 1 / std::sqrt(static_cast<double>(var[c]) + eps); }
  C scale(int64_t c) const { return static_cast<C>(static_cast<double>(weight[c]) * reciprocal_std(c)); }
  Affine<C> channel(int64_t c) const { return {splat(mean[c]), splat(scale(c)), splat(bias[c])}; }
};

template <typename C>
PeriodicAffine<C> periodic(const InterleavedRows<C>& rows, const Parameters<C>& p) {
  std::vector<C> scale(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) scale[c] = p.scale(c);
  return {rows.periodic(p.mean), rows.periodic(scale.data()), rows.periodic(p.bias)};
}

template <typename T, typename C>
void forward(T* y, C* mean, C* var, const T* x, const Parameters<C>& p, const Channels& shape, bool statistics,
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
        const Affine<C> affine = p.channel(c);
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = y + at(b, c);
          const T* from = x + at(b, c);
          for_vectors<C>(first, last,
                         [&](int64_t i, auto lanes) { lanes.store(to + i, relu(affine(lanes.load(from + i)))); });
        });
      });
}

template <typename T, typename C>
void forward_rows(T* y, C* mean, C* var, const T* x, const Parameters<C>& p, const Channels& shape, bool statistics,
                  int threads) {
  const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
  if (statistics) {
    row_statistics<T>(mean, var, rows, threads,
                      [&](int64_t first, int64_t, std::vector<T>&) { return x + first * shape.channels; });
  }
  const PeriodicAffine<C> affine = periodic(rows, p);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * shape.channels;
      T* to = y + start;
      const T* from = x + start;
      rows.each(rows.last(block) * shape.channels - start, affine,
                [&](int64_t i, const Affine<C>& a, auto lanes) { lanes.store(to + i, relu(a(lanes.load(from + i)))); });
    }
  });
}

// d is the gradient before the ReLU. With the statistics of the batch
//   grad_x = scale (d - mean(d) - (x - mean) mean(d (x - mean)) / (var + eps)).
// With given ones grad_x = scale d, which takes one pass.
template <typename T, typename C>
void backward(T* grad_x, C* grad_weight, C* grad_bias, const T* grad_y, const T* x, const Parameters<C>& p,
              const Channels& shape, bool statistics, int threads) {
  const PlanarTiles tiles(shape.batch, shape.sites);
  const int64_t n = tiles.count();
  const double entries = static_cast<double>(shape.batch * shape.sites);
  std::vector<double> parts(2 * shape.channels * n), means(2 * shape.channels);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  tiles.run(
      shape.channels, threads,
      [&](int64_t c, int64_t tile) {
        const Affine<C> affine = p.channel(c);
        Sum<C> sum, product;
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
            const Vec<C> v = lanes.load(from + i, affine.mean[0]);
            const Vec<C> d = relu_backward(lanes.load(grad + i), affine(v));
            sum.parts[u] += d;
            product.parts[u] += d * affine.centred(v);
            if (!statistics) lanes.store(to + i, affine.scale * d);
          });
        });
        parts[2 * (c * n + tile)] = sum.total();
        parts[2 * (c * n + tile) + 1] = product.total();
      },
      [&](int64_t c) {
        double sum = 0, product = 0;
        for (int64_t i = c * n; i < (c + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        const double r = p.reciprocal_std(c);
        grad_bias[c] = static_cast<C>(sum);
        grad_weight[c] = static_cast<C>(product * r);
        means[2 * c] = sum / entries;
        means[2 * c + 1] = product * r * r / entries;
      },
      [&](int64_t c, int64_t tile) {
        if (!statistics) return;
        const Affine<C> affine = p.channel(c);
        const Vec<C> mean = splat(static_cast<C>(means[2 * c])), slope = splat(static_cast<C>(means[2 * c + 1]));
        const auto gradient = [&](Vec<C> grad, Vec<C> v) {
          return affine.scale * (relu_backward(grad, affine(v)) - mean - affine.centred(v) * slope);
        };
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
void backward_rows(T* grad_x, C* grad_weight, C* grad_bias, const T* grad_y, const T* x, const Parameters<C>& p,
                   const Channels& shape, bool statistics, int threads) {
  const int64_t channels = shape.channels;
  const InterleavedRows<C> rows(shape.batch * shape.sites, channels);
  const PeriodicAffine<C> affine = periodic(rows, p);
  std::vector<double> parts(2 * rows.count() * channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<C> sums(2 * rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.template sum<2>(parts.data() + 2 * block * channels, sums.data(), rows.last(block) * channels - start,
                           affine, [&](int64_t i, const Affine<C>& a, auto lanes) {
                             const Vec<C> v = lanes.load(from + i), d = relu_backward(lanes.load(grad + i), a(v));
                             if (!statistics) lanes.store(to + i, a.scale * d);
                             return Terms<C, 2>{lanes.first(d), lanes.first(d * a.centred(v))};
                           });
    }
  });
  std::vector<double> totals(2 * channels);
  for (int64_t block = 0; block < rows.count(); ++block) {
    for (int64_t c = 0; c < 2 * channels; ++c) totals[c] += parts[2 * block * channels + c];
  }
  const double entries = static_cast<double>(rows.rows);
  for (int64_t c = 0; c < channels; ++c) {
    const double r = p.reciprocal_std(c);
    grad_bias[c] = static_cast<C>(totals[c]);
    grad_weight[c] = static_cast<C>(totals[channels + c] * r);
    totals[c] /= entries;
    totals[channels + c] *= r * r / entries;
  }
  if (!statistics) return;
  struct Prepared {
    Affine<C> affine;
    Vec<C> mean, slope;

    Vec<C> operator()(Vec<C> grad, Vec<C> v) const {
      return affine.scale * (relu_backward(grad, affine(v)) - mean - affine.centred(v) * slope);
    }
  };
  const std::vector<C> mean = rows.periodic(totals.data()), slope = rows.periodic(totals.data() + channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.each(
          rows.last(block) * channels - start,
          [&](int64_t j) { return Prepared{affine(j), load(mean.data() + j), load(slope.data() + j)}; },
          [&](int64_t i, const Prepared& gradient, auto lanes) {
            lanes.store(to + i, gradient(lanes.load(grad + i), lanes.load(from + i)));
          });
    }
  });
}

}  // namespace

void batch_norm_relu(void* y, void* mean, void* var, const void* x, const void* weight, const void* bias,
                     const Channels& shape, bool statistics, double eps, DType dtype, int threads) {
  if (shape.batch * shape.channels * shape.sites == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Parameters<C> p{static_cast<const C*>(weight), static_cast<const C*>(bias), static_cast<const C*>(mean),
                          static_cast<const C*>(var), eps};
    const auto& run = shape.channels_last || shape.sites == 1 ? forward_rows<T, C> : forward<T, C>;
    run(static_cast<T*>(y), static_cast<C*>(mean), static_cast<C*>(var), static_cast<const T*>(x), p, shape, statistics,
        threads);
  });
}

void batch_norm_relu_backward(void* grad_x, void* grad_weight, void* grad_bias, const void* grad_y, const void* x,
                              const void* weight, const void* bias, const void* mean, const void* var,
                              const Channels& shape, bool statistics, double eps, DType dtype, int threads) {
  if (shape.channels == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Parameters<C> p{static_cast<const C*>(weight), static_cast<const C*>(bias), static_cast<const C*>(mean),
                          static_cast<const C*>(var), eps};
    const auto& run = shape.channels_last || shape.sites == 1 ? backward_rows<T, C> : backward<T, C>;
    run(static_cast<T*>(grad_x), static_cast<C*>(grad_weight), static_cast<C*>(grad_bias),
        static_cast<const T*>(grad_y), static_cast<const T*>(x), p, shape, statistics, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
