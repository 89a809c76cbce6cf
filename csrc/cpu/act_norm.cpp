#include "cpu/act_norm.h"

#include "cpu/normalise.h"

namespace pnf::cpu::PNF_ISA {
namespace {

template <bool inverse, typename C>
struct Map {
  Vec<C> shift, scale;

  Vec<C> operator()(Vec<C> x) const {
    if constexpr (inverse) return x * scale - shift;
    return factor(x) * scale;
  }
  // What the scale multiplies.
  Vec<C> factor(Vec<C> x) const { return x + shift; }
};

template <typename C>
struct Parameters {
  const C* shift;
  std::vector<C> scale;

  Parameters(const void* shifts, const void* log_scales, int64_t channels, bool inverse)
      : shift(static_cast<const C*>(shifts)), scale(channels) {
    const C* log_scale = static_cast<const C*>(log_scales);
    for_vectors<C>(0, channels, [&](int64_t i, auto lanes) {
      const Vec<C> v = lanes.load(log_scale + i);
      lanes.store(scale.data() + i, exp(inverse ? -v : v));
    });
  }

  template <bool inverse>
  Map<inverse, C> channel(int64_t c) const {
    return {splat(shift[c]), splat(scale[c])};
  }
};

// The maps of the channels, repeated for a period.
template <bool inverse, typename C>
struct Maps {
  std::vector<C> shift, scale;

  Maps(const InterleavedRows<C>& rows, const Parameters<C>& p)
      : shift(rows.periodic(p.shift)), scale(rows.periodic(p.scale.data())) {}

  Map<inverse, C> operator()(int64_t j) const { return {load(shift.data() + j), load(scale.data() + j)}; }
};

template <bool inverse, typename T, typename C>
void forward(T* y, const T* x, const Parameters<C>& p, const Channels& shape, int threads) {
  for_chunks(shape.batch * shape.channels, shape.sites, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
    const Map<inverse, C> map = p.template channel<inverse>(row % shape.channels);
    T* to = y + row * shape.sites;
    const T* from = x + row * shape.sites;
    for_vectors<C>(first, last, [&](int64_t i, auto lanes) { lanes.store(to + i, map(lanes.load(from + i))); });
  });
}

template <bool inverse, typename T, typename C>
void forward_rows(T* y, const T* x, const Parameters<C>& p, const Channels& shape, int threads) {
  const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
  const Maps<inverse, C> maps(rows, p);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * shape.channels;
      T* to = y + start;
      const T* from = x + start;
      rows.each(
          rows.last(block) * shape.channels - start, maps,
          [&](int64_t i, const Map<inverse, C>& map, auto lanes) { lanes.store(to + i, map(lanes.load(from + i))); });
    }
  });
}

// Both backwards call finish(channel, sum of grad_y, sum of grad_y times the factor of the scale).

template <typename T, typename C, typename Finish>
void backward(T* grad_x, const T* grad_y, const T* x, const Parameters<C>& p, const Channels& shape, int threads,
              const Finish& finish) {
  const PlanarTiles tiles(shape.batch, shape.sites);
  const int64_t n = tiles.count();
  std::vector<double> parts(2 * shape.channels * n);
  tiles.run(
      shape.channels, threads,
      [&](int64_t c, int64_t tile) {
        const Map<false, C> map = p.template channel<false>(c);
        Sum<C> sum, product;
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          const int64_t at = (b * shape.channels + c) * shape.sites;
          T* to = grad_x + at;
          const T *from = x + at, *grad = grad_y + at;
          for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
            const Vec<C> g = lanes.load(grad + i);
            sum.parts[u] += g;
            product.parts[u] += lanes.first(g * map.factor(lanes.load(from + i)));
            lanes.store(to + i, g * map.scale);
          });
        });
        parts[2 * (c * n + tile)] = sum.total();
        parts[2 * (c * n + tile) + 1] = product.total();
      },
      [&](int64_t c) {
        double sum = 0, product = 0;
        for (int64_t i = c * n; i < (c + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        finish(c, sum, product);
      },
      [](int64_t, int64_t) {});
}

template <typename T, typename C, typename Finish>
void backward_rows(T* grad_x, const T* grad_y, const T* x, const Parameters<C>& p, const Channels& shape, int threads,
                   const Finish& finish) {
  const int64_t channels = shape.channels;
  const InterleavedRows<C> rows(shape.batch * shape.sites, channels);
  const Maps<false, C> maps(rows, p);
  std::vector<double> parts(2 * rows.count() * channels);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<C> sums(2 * rows.period);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.template sum<2>(parts.data() + 2 * block * channels, sums.data(), rows.last(block) * channels - start, maps,
                           [&](int64_t i, const Map<false, C>& map, auto lanes) {
                             const Vec<C> g = lanes.load(grad + i);
                             lanes.store(to + i, g * map.scale);
                             return Terms<C, 2>{g, lanes.first(g * map.factor(lanes.load(from + i)))};
                           });
    }
  });
  double* const totals = parts.data();
  for (int64_t block = 1; block < rows.count(); ++block) {
    const double* part = totals + 2 * block * channels;
    for (int64_t c = 0; c < 2 * channels; ++c) totals[c] += part[c];
  }
  for (int64_t c = 0; c < channels; ++c) finish(c, totals[c], totals[channels + c]);
}

// Calls body(T{}, std::bool_constant<inverse>{}) with the type of the entries.
template <typename Body>
void with_types(DType dtype, bool inverse, const Body& body) {
  with_dtype(dtype,
             [&]<typename T>(T entry) { inverse ? body(entry, std::true_type{}) : body(entry, std::false_type{}); });
}

}  // namespace

void act_norm(void* y, void* out, const void* x, const void* shift, const void* log_scale, const void* log_det,
              const Channels& shape, bool inverse, DType dtype, DType log_det_dtype, int threads) {
  with_types(dtype, inverse, [&]<typename T, bool invert>(T, std::bool_constant<invert>) {
    using C = Wide<T>;
    const double sum = total<C>(log_scale, shape.channels), gain = static_cast<double>(shape.sites) * sum;
    with_dtype(log_det_dtype, [&]<typename L>(L) {
      if constexpr (std::is_arithmetic_v<L>) {
        for (int64_t b = 0; b < shape.batch; ++b) {
          const double before = static_cast<double>(static_cast<const L*>(log_det)[b]);
          static_cast<L*>(out)[b] = static_cast<L>(invert ? before - gain : before + gain);
        }
      }
    });
    if (shape.batch * shape.channels * shape.sites == 0) return;
    const Parameters<C> p(shift, log_scale, shape.channels, invert);
    const auto& run = in_rows(shape) ? forward_rows<invert, T, C> : forward<invert, T, C>;
    run(static_cast<T*>(y), static_cast<const T*>(x), p, shape, threads);
  });
}

// grad_log_scale is the sum of the gradients through y and through log_det.
void act_norm_backward(void* grad_x, void* grad_shift, void* grad_log_scale, const void* grad_y,
                       const void* grad_log_det, const void* x, const void* shift, const void* log_scale,
                       const Channels& shape, bool inverse, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    Parameters<C> p(shift, log_scale, shape.channels, inverse);
    // The scale of the inverse multiplies x alone, which a shift of -0 leaves bit for bit: one backward serves both.
    const std::vector<C> none(inverse ? shape.channels : 0, C{-0.0});
    if (inverse) p.shift = none.data();
    const double gain = static_cast<double>(shape.sites) * total<C>(grad_log_det, shape.batch);
    const auto finish = [&](int64_t c, double sum, double product) {
      const double scale = static_cast<double>(p.scale[c]), of_log_scale = product * scale + gain;
      static_cast<C*>(grad_shift)[c] = static_cast<C>(inverse ? -sum : sum * scale);
      static_cast<C*>(grad_log_scale)[c] = static_cast<C>(inverse ? -of_log_scale : of_log_scale);
    };
    if (shape.batch * shape.channels * shape.sites == 0) {
      for (int64_t c = 0; c < shape.channels; ++c) finish(c, 0, 0);
      return;
    }
    const auto& run = in_rows(shape) ? backward_rows<T, C, decltype(finish)> : backward<T, C, decltype(finish)>;
    run(static_cast<T*>(grad_x), static_cast<const T*>(grad_y), static_cast<const T*>(x), p, shape, threads, finish);
  });
}

}  // namespace pnf::cpu::PNF_ISA
