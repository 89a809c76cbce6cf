#include "cpu/batch_norm.h"

#include "cpu/normalise.h"

namespace pnf::cpu::PNF_ISA {
namespace {

template <typename C>
struct Map {
  Vec<C> mean, scale;

  Vec<C> centred(Vec<C> x) const { return x - mean; }
  Vec<C> operator()(Vec<C> x) const { return centred(x) * scale; }
};

// The maps of the channels, repeated for a period.
template <typename C>
struct Maps {
  std::vector<C> mean, scale;

  Map<C> operator()(int64_t j) const { return {load(mean.data() + j), load(scale.data() + j)}; }
};

template <typename C>
struct Statistics {
  const C *mean, *var;
  double eps;

  // In double, so that the scale is rounded only once.
  double scale(int64_t c) const { return 1 / std::sqrt(static_cast<double>(var[c]) + eps); }
  Map<C> channel(int64_t c) const { return {splat(mean[c]), splat(static_cast<C>(scale(c)))}; }

  Maps<C> periodic(const InterleavedRows<C>& rows) const {
    std::vector<C> scales(rows.channels);
    for (int64_t c = 0; c < rows.channels; ++c) scales[c] = static_cast<C>(scale(c));
    return {rows.periodic(mean), rows.periodic(scales.data())};
  }
};

// With given statistics.
template <typename T, typename C>
void scale_gradient(T* grad_x, const T* grad_y, const Statistics<C>& s, const Channels& shape, int threads) {
  if (in_rows(shape)) {
    const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
    const Maps<C> maps = s.periodic(rows);
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

}  // namespace

void batch_norm(void* y, void* out, void* mean, void* var, const void* x, const void* log_det, const Channels& shape,
                bool statistics, double eps, DType dtype, DType log_det_dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const Statistics<C> s{static_cast<const C*>(mean), static_cast<const C*>(var), eps};
    if (shape.batch * shape.channels * shape.sites > 0) {
      normalise(static_cast<T*>(y), static_cast<C*>(mean), static_cast<C*>(var), static_cast<const T*>(x), s, shape,
                statistics, threads, [](Vec<C> v) { return v; });
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
    // Each log-determinant is -sites / 2 log(var + eps) for a channel.
    const double gain = total<C>(grad_log_det, shape.batch) / static_cast<double>(shape.batch);
    const double entries = static_cast<double>(shape.batch * shape.sites);
    normalise_backward<C>(
        to, grad, from, s, shape, true, threads, [](Vec<C> g, Vec<C>) { return g; },
        [&](int64_t c, double sum, double product) {
          const double r = s.scale(c);
          return Through{sum / entries, product * r * r / entries + gain * r};
        });
  });
}

}  // namespace pnf::cpu::PNF_ISA
