#include "cpu/batch_norm_relu.h"

#include "cpu/channels.h"

namespace pnf::cpu::PNF_ISA {
namespace {

template <typename C>
struct Parameters {
  const C *weight, *bias, *mean, *var;
  double eps;

  // In double, for a scale that is rounded but once.
  double reciprocal_std(int64_t c) const { return 1 / std::sqrt(static_cast<double>(var[c]) + eps); }
  C scale(int64_t c) const { return static_cast<C>(static_cast<double>(weight[c]) * reciprocal_std(c)); }
  Affine<C> channel(int64_t c) const { return {splat(mean[c]), splat(scale(c)), splat(bias[c])}; }
};

template <typename C>
Spread<C> spread(const Rows<C>& rows, const Parameters<C>& p) {
  std::vector<C> scale(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) scale[c] = p.scale(c);
  return {rows.spread(p.mean), rows.spread(scale.data()), rows.spread(p.bias)};
}

template <typename T, typename C>
void forward(T* y, C* mean, C* var, const T* x, const Parameters<C>& p, const Channels& shape, bool statistics,
             int threads) {
  const Pieces pieces(shape.batch, shape.sites);
  const int64_t n = pieces.count();
  std::vector<Moments> parts(statistics ? shape.channels * n : 0);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  pieces.run(
      shape.channels, threads,
      [&](int64_t c, int64_t piece) {
        if (!statistics) return;
        parts[c * n + piece] =
            piece_moments<C>(pieces, piece, [&](int64_t b, int64_t) { return Reader<T>{x + at(b, c)}; });
      },
      [&](int64_t c) {
        if (!statistics) return;
        const Moments m = total(n, [&](int64_t piece) { return parts[c * n + piece]; });
        mean[c] = static_cast<C>(m.mean);
        var[c] = static_cast<C>(m.squares / m.count);
      },
      [&](int64_t c, int64_t piece) {
        const Affine<C> affine = p.channel(c);
        pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
          T* to = y + at(b, c);
          const T* from = x + at(b, c);
          for_vectors<C>(
              first, last, [&](int64_t i) { store(to + i, relu(affine(load(from + i)))); },
              [&](int64_t i, int64_t k) { store_part(to + i, relu(affine(load_part(from + i, k))), k); });
        });
      });
}

template <typename T, typename C>
void forward_rows(T* y, C* mean, C* var, const T* x, const Parameters<C>& p, const Channels& shape, bool statistics,
                  int threads) {
  const Rows<C> rows(shape.batch * shape.sites, shape.channels);
  if (statistics) {
    row_statistics<T>(mean, var, rows, threads,
                      [&](int64_t first, int64_t, std::vector<T>&) { return x + first * shape.channels; });
  }
  const Spread<C> affine = spread(rows, p);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * shape.channels;
      T* to = y + start;
      const T* from = x + start;
      rows.each(
          rows.last(block) * shape.channels - start, affine,
          [&](int64_t i, const Affine<C>& a) { store(to + i, relu(a(load(from + i)))); },
          [&](int64_t i, const Affine<C>& a, int64_t left) {
            store_part(to + i, relu(a(load_part(from + i, left))), left);
          });
    }
  });
}

// d is the gradient before the ReLU. Of a batch's own statistics
//   grad_x = scale (d - mean(d) - (x - mean) mean(d (x - mean)) / (var + eps)),
// and of given ones grad_x = scale d, so that one pass does.
template <typename T, typename C>
void backward(T* grad_x, C* grad_weight, C* grad_bias, const T* grad_y, const T* x, const Parameters<C>& p,
              const Channels& shape, bool statistics, int threads) {
  const Pieces pieces(shape.batch, shape.sites);
  const int64_t n = pieces.count();
  const double entries = static_cast<double>(shape.batch * shape.sites);
  std::vector<double> parts(2 * shape.channels * n), means(2 * shape.channels);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  pieces.run(
      shape.channels, threads,
      [&](int64_t c, int64_t piece) {
        const Affine<C> affine = p.channel(c);
        Sum<C> sum, product;
        pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors_by_four<C>(
              first, last,
              [&](int64_t i, int u) {
                const Vec<C> v = load(from + i), d = relu_backward(load(grad + i), affine(v));
                sum.parts[u] += d;
                product.parts[u] += d * affine.centred(v);
                if (!statistics) store(to + i, affine.scale * d);
              },
              [&](int64_t i, int64_t k) {
                const Vec<C> v = load_part(from + i, k, affine.mean[0]);
                const Vec<C> d = relu_backward(load_part(grad + i, k), affine(v));
                sum.parts[3] += d;
                product.parts[3] += d * affine.centred(v);
                if (!statistics) store_part(to + i, affine.scale * d, k);
              });
        });
        parts[2 * (c * n + piece)] = sum.total();
        parts[2 * (c * n + piece) + 1] = product.total();
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
      [&](int64_t c, int64_t piece) {
        if (!statistics) return;
        const Affine<C> affine = p.channel(c);
        const Vec<C> mean = splat(static_cast<C>(means[2 * c])), slope = splat(static_cast<C>(means[2 * c + 1]));
        const auto gradient = [&](Vec<C> grad, Vec<C> v) {
          return affine.scale * (relu_backward(grad, affine(v)) - mean - affine.centred(v) * slope);
        };
        pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors<C>(
              first, last, [&](int64_t i) { store(to + i, gradient(load(grad + i), load(from + i))); },
              [&](int64_t i, int64_t k) {
                store_part(to + i, gradient(load_part(grad + i, k), load_part(from + i, k)), k);
              });
        });
      });
}

template <typename T, typename C>
void backward_rows(T* grad_x, C* grad_weight, C* grad_bias, const T* grad_y, const T* x, const Parameters<C>& p,
                   const Channels& shape, bool statistics, int threads) {
  const int64_t channels = shape.channels;
  const Rows<C> rows(shape.batch * shape.sites, channels);
  const Spread<C> affine = spread(rows, p);
  std::vector<double> parts(2 * rows.count() * channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<C> sums(2 * rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.template sum<2>(
          parts.data() + 2 * block * channels, sums.data(), rows.last(block) * channels - start, affine,
          [&](int64_t i, const Affine<C>& a) {
            const Vec<C> v = load(from + i), d = relu_backward(load(grad + i), a(v));
            if (!statistics) store(to + i, a.scale * d);
            return Terms<C, 2>{d, d * a.centred(v)};
          },
          [&](int64_t i, const Affine<C>& a, int64_t left) {
            const Vec<C> v = load_part(from + i, left), d = relu_backward(load_part(grad + i, left), a(v));
            if (!statistics) store_part(to + i, a.scale * d, left);
            return Terms<C, 2>{first_lanes<C>(d, left), first_lanes<C>(d * a.centred(v), left)};
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
  const std::vector<C> mean = rows.spread(totals.data()), slope = rows.spread(totals.data() + channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.each(
          rows.last(block) * channels - start,
          [&](int64_t j) { return Prepared{affine(j), load(mean.data() + j), load(slope.data() + j)}; },
          [&](int64_t i, const Prepared& gradient) { store(to + i, gradient(load(grad + i), load(from + i))); },
          [&](int64_t i, const Prepared& gradient, int64_t left) {
            store_part(to + i, gradient(load_part(grad + i, left), load_part(from + i, left)), left);
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
    const auto& run = shape.last || shape.sites == 1 ? forward_rows<T, C> : forward<T, C>;
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
    const auto& run = shape.last || shape.sites == 1 ? backward_rows<T, C> : backward<T, C>;
    run(static_cast<T*>(grad_x), static_cast<C*>(grad_weight), static_cast<C*>(grad_bias),
        static_cast<const T*>(grad_y), static_cast<const T*>(x), p, shape, statistics, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
