// Normalisation of channels, and its gradient.
//
// The parameters p of the channels give the map of a channel: p.channel(c) is that of one, and p.periodic(rows) is a
// function of the place j in a period. A map has the members `scale`, `centred(x)` and the call operator.
#pragma once

#include "cpu/channels.h"
#include "cpu/shape.h"

namespace pnf::cpu::PNF_ISA {

// Whether channels are reduced in rows. One site for each example is as good as channels that are last.
inline bool in_rows(const Channels& shape) { return shape.channels_last || shape.sites == 1; }

// The sum of n values of C.
template <typename C>
double total(const void* values, int64_t n) {
  LaneSum<C> sum;
  sum.add(static_cast<const C*>(values), n);
  return sum.total();
}

// y = end(map(x)). With `statistics`, x must not be empty, and mean and var, which p reads, are written before.
template <typename T, typename C, typename P, typename End>
void normalise_planes(T* y, C* mean, C* var, const T* x, const P& p, const Channels& shape, bool statistics,
                      int threads, const End& end) {
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
        const auto map = p.channel(c);
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = y + at(b, c);
          const T* from = x + at(b, c);
          for_vectors<C>(first, last,
                         [&](int64_t i, auto lanes) { lanes.store(to + i, end(map(lanes.load(from + i)))); });
        });
      });
}

template <typename T, typename C, typename P, typename End>
void normalise_rows(T* y, C* mean, C* var, const T* x, const P& p, const Channels& shape, bool statistics, int threads,
                    const End& end) {
  const InterleavedRows<C> rows(shape.batch * shape.sites, shape.channels);
  if (statistics) {
    row_statistics<T>(mean, var, rows, threads,
                      [&](int64_t first, int64_t, std::vector<T>&) { return x + first * shape.channels; });
  }
  const auto maps = p.periodic(rows);
  rows.run(threads, [&](int64_t begin, int64_t stop) {
    for (int64_t block = begin; block < stop; ++block) {
      const int64_t start = rows.first(block) * shape.channels;
      T* to = y + start;
      const T* from = x + start;
      rows.each(rows.last(block) * shape.channels - start, maps,
                [&](int64_t i, const auto& map, auto lanes) { lanes.store(to + i, end(map(lanes.load(from + i)))); });
    }
  });
}

template <typename T, typename C, typename P, typename End>
void normalise(T* y, C* mean, C* var, const T* x, const P& p, const Channels& shape, bool statistics, int threads,
               const End& end) {
  if (in_rows(shape)) return normalise_rows(y, mean, var, x, p, shape, statistics, threads, end);
  normalise_planes(y, mean, var, x, p, shape, statistics, threads, end);
}

// What gradients through the statistics take from that of each entry.
struct Through {
  double constant = 0, slope = 0;
};

// The gradient of x from d = end(grad_y, map(x)): scale (d - constant - (x - mean) slope) where it flows through the
// `statistics`, and scale d otherwise, which takes one pass. finish(c, sum, product) is called once for each channel
// with the sums of d and of d (x - mean), and returns the Through of the channel.
template <typename C, typename T, typename P, typename End, typename Finish>
void normalise_planes_backward(T* grad_x, const T* grad_y, const T* x, const P& p, const Channels& shape,
                               bool statistics, int threads, const End& end, const Finish& finish) {
  const PlanarTiles tiles(shape.batch, shape.sites);
  const int64_t n = tiles.count();
  std::vector<double> parts(2 * shape.channels * n);
  std::vector<Through> through(shape.channels);
  const auto at = [&](int64_t b, int64_t c) { return (b * shape.channels + c) * shape.sites; };
  tiles.run(
      shape.channels, threads,
      [&](int64_t c, int64_t tile) {
        const auto map = p.channel(c);
        Sum<C> sum, product;
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
            const Vec<C> v = lanes.load(from + i, map.mean[0]), d = end(lanes.load(grad + i), map(v));
            sum.parts[u] += d;
            product.parts[u] += d * map.centred(v);
            if (!statistics) lanes.store(to + i, map.scale * d);
          });
        });
        parts[2 * (c * n + tile)] = sum.total();
        parts[2 * (c * n + tile) + 1] = product.total();
      },
      [&](int64_t c) {
        double sum = 0, product = 0;
        for (int64_t i = c * n; i < (c + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        through[c] = finish(c, sum, product);
      },
      [&](int64_t c, int64_t tile) {
        if (!statistics) return;
        const auto map = p.channel(c);
        const Vec<C> constant = splat(static_cast<C>(through[c].constant));
        const Vec<C> slope = splat(static_cast<C>(through[c].slope));
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          T* to = grad_x + at(b, c);
          const T *from = x + at(b, c), *grad = grad_y + at(b, c);
          for_vectors<C>(first, last, [&](int64_t i, auto lanes) {
            const Vec<C> v = lanes.load(from + i), d = end(lanes.load(grad + i), map(v));
            lanes.store(to + i, map.scale * (d - constant - map.centred(v) * slope));
          });
        });
      });
}

template <typename C, typename T, typename P, typename End, typename Finish>
void normalise_rows_backward(T* grad_x, const T* grad_y, const T* x, const P& p, const Channels& shape, bool statistics,
                             int threads, const End& end, const Finish& finish) {
  const int64_t channels = shape.channels;
  const InterleavedRows<C> rows(shape.batch * shape.sites, channels);
  const auto maps = p.periodic(rows);
  std::vector<double> parts(2 * rows.count() * channels), totals(2 * channels);
  rows.run(threads, [&](int64_t begin, int64_t stop) {
    std::vector<C> sums(2 * rows.period);
    for (int64_t block = begin; block < stop; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.template sum<2>(parts.data() + 2 * block * channels, sums.data(), rows.last(block) * channels - start, maps,
                           [&](int64_t i, const auto& map, auto lanes) {
                             const Vec<C> v = lanes.load(from + i), d = end(lanes.load(grad + i), map(v));
                             if (!statistics) lanes.store(to + i, map.scale * d);
                             return Terms<C, 2>{lanes.first(d), lanes.first(d * map.centred(v))};
                           });
    }
  });
  for (int64_t block = 0; block < rows.count(); ++block) {
    for (int64_t c = 0; c < 2 * channels; ++c) totals[c] += parts[2 * block * channels + c];
  }
  for (int64_t c = 0; c < channels; ++c) {
    const Through through = finish(c, totals[c], totals[channels + c]);
    totals[c] = through.constant;
    totals[channels + c] = through.slope;
  }
  if (!statistics) return;
  struct Prepared {
    decltype(maps(0)) map;
    Vec<C> constant, slope;
  };
  const std::vector<C> constant = rows.periodic(totals.data()), slope = rows.periodic(totals.data() + channels);
  rows.run(threads, [&](int64_t begin, int64_t stop) {
    for (int64_t block = begin; block < stop; ++block) {
      const int64_t start = rows.first(block) * channels;
      T* to = grad_x + start;
      const T *from = x + start, *grad = grad_y + start;
      rows.each(
          rows.last(block) * channels - start,
          [&](int64_t j) { return Prepared{maps(j), load(constant.data() + j), load(slope.data() + j)}; },
          [&](int64_t i, const Prepared& q, auto lanes) {
            const Vec<C> v = lanes.load(from + i), d = end(lanes.load(grad + i), q.map(v));
            lanes.store(to + i, q.map.scale * (d - q.constant - q.map.centred(v) * q.slope));
          });
    }
  });
}

template <typename C, typename T, typename P, typename End, typename Finish>
void normalise_backward(T* grad_x, const T* grad_y, const T* x, const P& p, const Channels& shape, bool statistics,
                        int threads, const End& end, const Finish& finish) {
  if (in_rows(shape)) {
    return normalise_rows_backward<C>(grad_x, grad_y, x, p, shape, statistics, threads, end, finish);
  }
  normalise_planes_backward<C>(grad_x, grad_y, x, p, shape, statistics, threads, end, finish);
}

}  // namespace pnf::cpu::PNF_ISA
