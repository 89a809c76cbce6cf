#include "cpu/batch_norm_relu.h"

#include "cpu/normalise.h"

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

  PeriodicAffine<C> periodic(const InterleavedRows<C>& rows) const {
    std::vector<C> scales(rows.channels);
    for (int64_t c = 0; c < rows.channels; ++c) scales[c] = scale(c);
    return {rows.periodic(mean), rows.periodic(scales.data()), rows.periodic(bias)};
  }
};

}  // namespace

void batch_norm_relu(void* y, void* mean, void* var, const void* x, const void* weight, const void* bias,
                     const Channels& shape, bool statistics, double eps, DType dtype, int threads) {
  if (shape.batch * shape.channels * shape.sites == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Parameters<C> p{static_cast<const C*>(weight), static_cast<const C*>(bias), static_cast<const C*>(mean),
                          static_cast<const C*>(var), eps};
    normalise(static_cast<T*>(y), static_cast<C*>(mean), static_cast<C*>(var), static_cast<const T*>(x), p, shape,
              statistics, threads, [](Vec<C> v) { return relu(v); });
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
    const double entries = static_cast<double>(shape.batch * shape.sites);
    normalise_backward<C>(
        static_cast<T*>(grad_x), static_cast<const T*>(grad_y), static_cast<const T*>(x), p, shape, statistics, threads,
        [](Vec<C> g, Vec<C> v) { return relu_backward(g, v); },
        [&](int64_t c, double sum, double product) {
          const double r = p.reciprocal_std(c);
          static_cast<C*>(grad_bias)[c] = static_cast<C>(sum);
          static_cast<C*>(grad_weight)[c] = static_cast<C>(product * r);
          return Through{sum / entries, product * r * r / entries};
        });
  });
}

}  // namespace pnf::cpu::PNF_ISA
