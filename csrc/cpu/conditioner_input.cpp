#include "cpu/conditioner_input.h"

#include "cpu/channels.h"
#include "cpu/checkerboard.h"
#include "cpu/short_copy.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// The sites of x that are read: those that the board keeps, or all of them.
Checkerboard board_of(const ConditionerInput& shape, int64_t bytes) {
  if (!shape.board) return Checkerboard::everything();
  return {Sites<int64_t>(Board{1, shape.height, shape.width, 1}, shape.parity), bytes};
}

template <typename C>
inline Vec<C> where(IntVec<C> kept, Vec<C> v) {
  return bit_cast<Vec<C>>(bit_cast<IntVec<C>>(v) & kept);
}

// Reads a plane in ascending order; sites that are not kept read as zeros.
template <typename T>
struct MaskedReader {
  using C = Wide<T>;

  const T* x;
  Checkerboard::Cursor<C> cursor;

  Vec<C> operator()(int64_t i, auto lanes, C fill) {
    return lanes.first(where<C>(cursor.next(), lanes.load(x + i)), fill);
  }
};

// The parameters of each kept channel.
template <typename C>
struct Parameters {
  std::vector<C> mean, scale, bias;
  C gain;

  Parameters(const ConditionerInput& shape, double factor)
      : mean(shape.kept), scale(shape.kept, C{1}), bias(shape.kept), gain(static_cast<C>(factor)) {}

  void set(int64_t k, C m, C var, C offset, double eps) {
    mean[k] = m;
    scale[k] = static_cast<C>(1 / std::sqrt(static_cast<double>(var) + eps));  // rounded only once
    bias[k] = offset;
  }

  Affine<C> channel(int64_t k) const { return {splat(mean[k]), splat(scale[k]), splat(bias[k])}; }
};

// Channels that are whole vectors are read and written in place; others are gathered first.
bool in_place(const ConditionerInput& shape) { return shape.kept % kLanes<float> == 0; }

// The entries of `count` gathered rows, rounded up to whole periods.
template <typename C>
int64_t padded(const InterleavedRows<C>& rows, int64_t count) {
  return (count * rows.channels + rows.period - 1) / rows.period * rows.period;
}

// Calls body(row, move) as for_runs does, for the kept channels and the condition.
template <typename T, typename Body>
void for_pixels(int64_t rows, const ConditionerInput& shape, const Body& body) {
  const int64_t size = static_cast<int64_t>(sizeof(T)), condition = shape.condition > 0 ? shape.condition : shape.kept;
  for_runs(0, rows, size * std::min(shape.kept, condition), size * std::max(shape.kept, condition),
           [&](int64_t first, int64_t last, auto move) {
             for (int64_t row = first; row < last; ++row) body(row, move);
           });
}

// The gradient of v from those of relu(v) and relu(-v).
template <typename V>
inline V split_backward(V positive, V negative, V v) {
  return relu_backward(positive, v) - relu_backward(negative, -v);
}

template <typename T, typename C>
void forward(T* h, C* mean, C* var, const T* x, const T* condition, const C* offset, const ConditionerInput& shape,
             Norm norm, double gain, double eps, int threads) {
  const int64_t sites = shape.sites(), kept = shape.kept;
  const Checkerboard board = board_of(shape, sizeof(C));
  const PlanarTiles tiles(shape.batch, sites);
  const int64_t n = tiles.count();
  std::vector<Moments> parts(norm == Norm::kBatch ? kept * n : 0);
  Parameters<C> p(shape, gain);
  const auto read = [&](int64_t b, int64_t k, int64_t first) {
    return MaskedReader<T>{x + (b * shape.channels + shape.start + k) * sites, board.from<C>(first)};
  };
  tiles.run(
      kept, threads,
      [&](int64_t k, int64_t tile) {
        if (norm != Norm::kBatch) return;
        parts[k * n + tile] = tile_moments<C>(tiles, tile, [&](int64_t b, int64_t first) { return read(b, k, first); });
      },
      [&](int64_t k) {
        if (norm == Norm::kBatch) {
          const Moments m = total(n, [&](int64_t tile) { return parts[k * n + tile]; });
          mean[k] = static_cast<C>(m.mean);
          var[k] = static_cast<C>(m.squares / m.count);
        }
        if (norm != Norm::kNone) p.set(k, mean[k], var[k], offset[k], eps);
      },
      [&](int64_t k, int64_t tile) {
        const Affine<C> affine = p.channel(k);
        tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
          auto from = read(b, k, first);
          T* positive = h + (b * shape.columns() + k) * sites;
          T* negative = positive + kept * sites;
          for_vectors<C>(first, last, [&](int64_t i, auto lanes) {
            const Vec<C> v = affine(from(i, lanes, C{0})) * p.gain;
            lanes.store(positive + i, relu(v));
            lanes.store(negative + i, relu(-v));
          });
        });
      });
  const int64_t rest = shape.columns() - 2 * kept;
  if (rest == 0) return;
  const Vec<C> one = splat(C{1});
  for_chunks(shape.batch * rest, sites, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
    const int64_t b = row / rest, channel = row % rest - shape.board;
    T* to = h + (b * shape.columns() + 2 * kept + row % rest) * sites;
    if (channel >= 0) {
      copy_run(to + first, condition + (b * shape.condition + channel) * sites + first, last - first);
    } else {
      auto cursor = board.from<C>(first);
      for_vectors<C>(first, last, [&](int64_t i, auto lanes) { lanes.store(to + i, where<C>(cursor.next(), one)); });
    }
  });
}

// Which rows of a block are kept, as lanes.
template <typename C>
using Lanes = std::vector<Lane<C>>;

template <typename L>
void set_lanes(std::vector<L>& lanes, int64_t first, int64_t last, const ConditionerInput& shape,
               const Checkerboard& board) {
  const int64_t count = last - first;
  lanes.resize(count);
  int64_t site = first % shape.sites();
  for (int64_t row = 0; row < count; site = 0) {
    const int64_t end = std::min(count, row + shape.sites() - site);
    board.write(lanes.data() + row, site, site + end - row);
    row = end;
  }
}

// Rows of the kept channels without gaps, with zeros at the sites that are not kept and behind the last row.
template <typename T, typename C>
const T* gather(const T* x, int64_t first, int64_t count, const Lanes<C>& lanes, std::vector<T>& buffer,
                const InterleavedRows<C>& rows, const ConditionerInput& shape) {
  buffer.resize(padded(rows, count));
  T* const to = buffer.data();
  const T* const from = x + first * shape.channels + shape.start;
  for_pixels<T>(count, shape, [&](int64_t row, auto move) {
    copy_or_zero(move, lanes[row], to + row * shape.kept, from + row * shape.channels, shape.kept);
  });
  zero_run(to + count * shape.kept, padded(rows, count) - count * shape.kept);
  return buffer.data();
}

template <typename C>
PeriodicAffine<C> periodic(const InterleavedRows<C>& rows, const Parameters<C>& p) {
  return {rows.periodic(p.mean.data()), rows.periodic(p.scale.data()), rows.periodic(p.bias.data())};
}

template <typename T, typename C>
void forward_rows(T* h, C* mean, C* var, const T* x, const T* condition, const C* offset, const ConditionerInput& shape,
                  Norm norm, double gain, double eps, int threads) {
  const int64_t kept = shape.kept, columns = shape.columns();
  const Checkerboard board = board_of(shape, sizeof(C));
  const InterleavedRows<C> rows(shape.batch * shape.sites(), kept);
  if (norm == Norm::kBatch) {
    row_statistics<T>(mean, var, rows, threads, [&](int64_t first, int64_t last, std::vector<T>& buffer) {
      Lanes<C> lanes;
      set_lanes(lanes, first, last, shape, board);
      return gather(x, first, last - first, lanes, buffer, rows, shape);
    });
  }
  Parameters<C> p(shape, gain);
  for (int64_t k = 0; k < kept && norm != Norm::kNone; ++k) p.set(k, mean[k], var[k], offset[k], eps);
  const PeriodicAffine<C> affine = periodic(rows, p);
  const T one = narrow<T>(1), zero = narrow<T>(0);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    Lanes<C> lanes;
    std::vector<T> buffer, halves;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = rows.first(block), count = rows.last(block) - first;
      set_lanes(lanes, first, first + count, shape, board);
      T* to = h + first * columns;
      const auto split = [&](T* positive, T* negative, Vec<C> v) {
        store(positive, relu(v));
        store(negative, relu(-v));
      };
      const T* const beside = condition + first * shape.condition;
      if (in_place(shape)) {
        const T* from = x + first * shape.channels + shape.start;
        for_columns<C>(count, kept, affine, [&](int64_t row, int64_t j, const Affine<C>& a) {
          const Vec<C> v = where<C>(lanes[row] - IntVec<C>{}, load(from + row * shape.channels + j));
          split(to + row * columns + j, to + row * columns + kept + j, a(v) * p.gain);
        });
        for (int64_t row = 0; row < count; ++row) {
          T* const at = to + row * columns;
          if (shape.board) at[2 * kept] = lanes[row] ? one : zero;
          copy_run(at + columns - shape.condition, beside + row * shape.condition, shape.condition);
        }
      } else {
        const int64_t n = padded(rows, count);
        const T* from = gather(x, first, count, lanes, buffer, rows, shape);
        halves.resize(2 * n);
        T *const positive = halves.data(), *const negative = positive + n;
        for_columns<C>(n / rows.period, rows.period, affine, [&](int64_t row, int64_t j, const Affine<C>& a) {
          const int64_t i = row * rows.period + j;
          split(positive + i, negative + i, a(load(from + i)) * p.gain);
        });
        for_pixels<T>(count, shape, [&](int64_t row, auto move) {
          T* const at = to + row * columns;
          move.copy(at, positive + row * kept, kept);
          move.copy(at + kept, negative + row * kept, kept);
          if (shape.board) at[2 * kept] = lanes[row] ? one : zero;
          move.copy(at + columns - shape.condition, beside + row * shape.condition, shape.condition);
        });
      }
    }
  });
}

// d is the gradient of u = (x - mean) / sqrt(var + eps) + offset. Its sum is the gradient of the offset. With the
// statistics of the batch, that sum and the sum of d (x - mean) give the two terms that are subtracted from d.
template <typename C>
struct Corrections {
  C mean = 0, slope = 0;

  Corrections() = default;
  Corrections(C* grad_offset, double sum, double product, double scale, double entries)
      : mean(static_cast<C>(sum / entries)), slope(static_cast<C>(product * scale * scale / entries)) {
    *grad_offset = static_cast<C>(sum);
  }
};

template <typename T, typename C>
void backward(T* grad_x, C* grad_offset, const T* grad_h, const T* x, const Parameters<C>& p,
              const ConditionerInput& shape, Norm norm, int threads) {
  const int64_t sites = shape.sites(), kept = shape.kept;
  const double entries = static_cast<double>(shape.batch * sites);
  const Checkerboard board = board_of(shape, sizeof(C));
  const PlanarTiles tiles(shape.batch, sites);
  const int64_t n = tiles.count();
  std::vector<double> parts(norm == Norm::kNone ? 0 : 2 * kept * n);
  std::vector<Corrections<C>> terms(kept);
  // Calls body(i, u, lanes, kept lanes, d, distance from the mean) for the vectors of a tile: i is their place in
  // grad_x.
  const auto each = [&](int64_t k, int64_t tile, const auto& body) {
    const Affine<C> affine = p.channel(k);
    tiles.each(tile, [&](int64_t b, int64_t first, int64_t last) {
      const int64_t plane = (b * shape.channels + shape.start + k) * sites;
      const T *from = x + plane, *positive = grad_h + (b * shape.columns() + k) * sites;
      const T* negative = positive + kept * sites;
      auto cursor = board.from<C>(first);
      for_vectors_by_four<C>(first, last, [&](int64_t i, int u, auto lanes) {
        const IntVec<C> seen = cursor.next();
        const Vec<C> v = where<C>(seen, lanes.load(from + i));
        const Vec<C> d = split_backward(lanes.load(positive + i), lanes.load(negative + i), affine(v) * p.gain);
        body(plane + i, u, lanes, seen, d * p.gain, lanes.first(affine.centred(v)));
      });
    });
  };
  tiles.run(
      kept, threads,
      [&](int64_t k, int64_t tile) {
        if (norm == Norm::kNone) return;
        Sum<C> sum, product;
        const Vec<C> scale = splat(p.scale[k]);
        each(k, tile, [&](int64_t i, int u, auto lanes, IntVec<C> seen, Vec<C> d, Vec<C> centred) {
          sum.parts[u] += d;
          product.parts[u] += d * centred;
          if (norm == Norm::kGiven) lanes.store(grad_x + i, where<C>(seen, d * scale));
        });
        parts[2 * (k * n + tile)] = sum.total();
        parts[2 * (k * n + tile) + 1] = product.total();
      },
      [&](int64_t k) {
        if (norm == Norm::kNone) return;
        double sum = 0, product = 0;
        for (int64_t i = k * n; i < (k + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        terms[k] = Corrections<C>(grad_offset + k, sum, product, static_cast<double>(p.scale[k]), entries);
      },
      [&](int64_t k, int64_t tile) {
        if (norm == Norm::kGiven) return;
        const Vec<C> scale = splat(p.scale[k]), mean = splat(terms[k].mean), slope = splat(terms[k].slope);
        each(k, tile, [&](int64_t i, int, auto lanes, IntVec<C> seen, Vec<C> d, Vec<C> centred) {
          const Vec<C> grad = norm == Norm::kNone ? d : scale * (d - mean - centred * slope);
          lanes.store(grad_x + i, where<C>(seen, grad));
        });
      });
  const int64_t dropped = shape.channels - kept;
  for_chunks(shape.batch, dropped * sites, kChunk, threads, [&](int64_t b, int64_t first, int64_t last) {
    zero_run(grad_x + (b * shape.channels + (shape.start == 0 ? kept : 0)) * sites + first, last - first);
  });
}

template <typename T, typename C>
void backward_rows(T* grad_x, C* grad_offset, const T* grad_h, const T* x, const Parameters<C>& p,
                   const ConditionerInput& shape, Norm norm, int threads) {
  const int64_t kept = shape.kept, columns = shape.columns(), channels = shape.channels;
  const Checkerboard board = board_of(shape, sizeof(C));
  const InterleavedRows<C> rows(shape.batch * shape.sites(), kept);
  const PeriodicAffine<C> affine = periodic(rows, p);
  std::vector<double> parts(norm == Norm::kNone ? 0 : 2 * rows.count() * kept), totals(2 * kept);
  std::vector<C> mean(rows.period), slope(rows.period);

  // A block in place or gathered: rows of `width` entries, a pitch apart.
  struct View {
    const T *x, *positive, *negative;
    T* to;
    int64_t rows, width, x_pitch, h_pitch, to_pitch;
  };
  struct Prepared {
    Affine<C> affine;
    Vec<C> mean, slope;
  };
  const auto prepare = [&](int64_t j) { return Prepared{affine(j), load(mean.data() + j), load(slope.data() + j)}; };
  const auto pass = [&](bool reduce, bool write) {
    rows.run(threads, [&](int64_t begin, int64_t end) {
      Lanes<C> lanes;
      std::vector<T> buffer, halves, grad;
      std::vector<C> sums(2 * rows.period);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = rows.first(block), count = rows.last(block) - first, n = padded(rows, count);
        set_lanes(lanes, first, first + count, shape, board);
        const T* const from = grad_h + first * columns;
        T* const to = grad_x + first * channels;
        View view{x + first * channels + shape.start,
                  from,
                  from + kept,
                  to + shape.start,
                  count,
                  kept,
                  channels,
                  columns,
                  channels};
        if (!in_place(shape)) {
          halves.resize(2 * n);
          grad.resize(n);
          for_pixels<T>(count, shape, [&](int64_t row, auto move) {
            move.copy(halves.data() + row * kept, from + row * columns, kept);
            move.copy(halves.data() + n + row * kept, from + row * columns + kept, kept);
          });
          zero_run(halves.data() + count * kept, n - count * kept);
          zero_run(halves.data() + n + count * kept, n - count * kept);
          view = {gather(x, first, count, lanes, buffer, rows, shape),
                  halves.data(),
                  halves.data() + n,
                  grad.data(),
                  n / rows.period,
                  rows.period,
                  rows.period,
                  rows.period,
                  rows.period};
        }
        const auto lanes_of = [&](int64_t row) { return in_place(shape) ? lanes[row] - IntVec<C>{} : ~IntVec<C>{}; };
        // The gradient of u and x - mean.
        const auto gradients = [&](int64_t row, int64_t j, const Prepared& a) {
          const Vec<C> v = where<C>(lanes_of(row), load(view.x + row * view.x_pitch + j));
          const int64_t at = row * view.h_pitch + j;
          const Vec<C> d = split_backward(load(view.positive + at), load(view.negative + at), a.affine(v) * p.gain);
          return Terms<C, 2>{d * p.gain, a.affine.centred(v)};
        };
        const auto put = [&](int64_t row, int64_t j, Vec<C> g) {
          store(view.to + row * view.to_pitch + j, where<C>(lanes_of(row), g));
        };
        if (reduce) {
          sum_columns<2>(parts.data() + 2 * block * kept, sums.data(), view.rows, view.width, kept, prepare,
                         [&](int64_t row, int64_t j, const Prepared& a) {
                           const auto [d, centred] = gradients(row, j, a);
                           if (write) put(row, j, a.affine.scale * d);
                           return Terms<C, 2>{d, d * centred};
                         });
        } else {
          for_columns<C>(view.rows, view.width, prepare, [&](int64_t row, int64_t j, const Prepared& a) {
            const auto [d, centred] = gradients(row, j, a);
            put(row, j, norm == Norm::kNone ? d : a.affine.scale * (d - a.mean - centred * a.slope));
          });
        }
        if (!write) continue;
        if (in_place(shape)) {
          for (int64_t row = 0; row < count; ++row) {
            zero_run(to + row * channels + (shape.start == 0 ? kept : 0), channels - kept);
          }
          continue;
        }
        for_pixels<T>(count, shape, [&](int64_t row, auto move) {
          T* const at = to + row * channels;
          move.zero(at, shape.start);
          copy_or_zero(move, lanes[row], at + shape.start, grad.data() + row * kept, kept);
          move.zero(at + shape.start + kept, channels - kept - shape.start);
        });
      }
    });
  };
  if (norm == Norm::kNone) return pass(false, true);
  pass(true, norm == Norm::kGiven);
  for (int64_t block = 0; block < rows.count(); ++block) {
    for (int64_t k = 0; k < 2 * kept; ++k) totals[k] += parts[2 * block * kept + k];
  }
  for (int64_t k = 0; k < kept; ++k) {
    const Corrections<C> terms(grad_offset + k, totals[k], totals[kept + k], static_cast<double>(p.scale[k]),
                               static_cast<double>(rows.rows));
    totals[k] = static_cast<double>(terms.mean);
    totals[kept + k] = static_cast<double>(terms.slope);
  }
  if (norm == Norm::kGiven) return;
  rows.periodic(mean.data(), totals.data());
  rows.periodic(slope.data(), totals.data() + kept);
  pass(false, true);
}

}  // namespace

void conditioner_input(void* h, void* mean, void* var, const void* x, const void* condition, const void* offset,
                       const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype, int threads) {
  if (shape.batch * shape.sites() == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const auto& run =
        shape.channels_last || (shape.sites() == 1 && shape.kept > 0) ? forward_rows<T, C> : forward<T, C>;
    run(static_cast<T*>(h), static_cast<C*>(mean), static_cast<C*>(var), static_cast<const T*>(x),
        static_cast<const T*>(condition), static_cast<const C*>(offset), shape, norm, gain, eps, threads);
  });
}

void conditioner_input_backward(void* grad_x, void* grad_offset, const void* grad_h, const void* x, const void* offset,
                                const void* mean, const void* var, const ConditionerInput& shape, Norm norm,
                                double gain, double eps, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    C* const to = static_cast<C*>(grad_offset);
    if (shape.batch * shape.sites() == 0) {
      if (norm != Norm::kNone) std::fill(to, to + shape.kept, C{0});
      return;
    }
    Parameters<C> p(shape, gain);
    for (int64_t k = 0; k < shape.kept && norm != Norm::kNone; ++k) {
      p.set(k, static_cast<const C*>(mean)[k], static_cast<const C*>(var)[k], static_cast<const C*>(offset)[k], eps);
    }
    const auto& run =
        shape.channels_last || (shape.sites() == 1 && shape.kept > 0) ? backward_rows<T, C> : backward<T, C>;
    run(static_cast<T*>(grad_x), to, static_cast<const T*>(grad_h), static_cast<const T*>(x), p, shape, norm, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
