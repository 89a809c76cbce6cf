#include "cpu/conditioner_input.h"

#include "cpu/channels.h"
#include "cpu/runs.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// Whether sites are kept, as lanes of a vector: the pattern repeats, so a short table serves every plane.
template <typename C>
class Board {
 public:
  using Lane = std::remove_cvref_t<decltype(IntVec<C>{}[0])>;

  explicit Board(const ConditionerInput& shape)
      : width_(shape.height == 1 || shape.width % 2 ? 2 : std::max<int64_t>(2 * shape.width, 2)),
        period_((4 * kLanes<C> + width_ - 1) / width_ * width_),
        table_(period_ + kLanes<C>) {
    const bool rows = shape.height > 1 && shape.width % 2 == 0;
    for (int64_t i = 0; i < static_cast<int64_t>(table_.size()); ++i) {
      const int64_t site = i % width_;
      const int64_t parity = (site + (rows && site >= shape.width ? 1 : 0)) % 2;
      table_[i] = !shape.board || parity == shape.parity ? -1 : 0;
    }
  }

  // Gives the lanes from a site on, vector by vector.
  class Cursor {
   public:
    Cursor(const Board& board, int64_t site)
        : table_(board.table_.data()), period_(board.period_), at_(site % board.period_) {}

    IntVec<C> next() {
      IntVec<C> lanes;
      std::memcpy(&lanes, table_ + at_, sizeof(lanes));
      at_ += kLanes<C>;
      if (at_ >= period_) at_ -= period_;
      return lanes;
    }

   private:
    const Lane* table_;
    int64_t period_, at_;
  };

  Cursor from(int64_t site) const { return {*this, site}; }

 private:
  int64_t width_, period_;
  std::vector<Lane> table_;
};

template <typename C>
inline Vec<C> where(IntVec<C> kept, Vec<C> v) {
  return bit_cast<Vec<C>>(bit_cast<IntVec<C>>(v) & kept);
}

// Reads a plane in ascending order, with zeros at the sites that are not kept.
template <typename T>
struct MaskedReader {
  using C = Wide<T>;

  const T* x;
  typename Board<C>::Cursor cursor;

  Vec<C> operator()(int64_t i) { return where<C>(cursor.next(), load(x + i)); }
  Vec<C> operator()(int64_t i, int64_t n, C fill) {
    Vec<C> v = where<C>(cursor.next(), load_part(x + i, n));
    for (int64_t k = n; k < kLanes<C>; ++k) v[k] = fill;
    return v;
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
    scale[k] = static_cast<C>(1 / std::sqrt(static_cast<double>(var) + eps));  // rounded but once
    bias[k] = offset;
  }

  Affine<C> channel(int64_t k) const { return {splat(mean[k]), splat(scale[k]), splat(bias[k])}; }
};

// With the channels last, whether they are whole vectors, which are then read and written where they lie; otherwise
// they are gathered first.
bool in_place(const ConditionerInput& shape) { return shape.kept % kLanes<float> == 0; }

// Entries of so many gathered rows, in whole periods.
template <typename C>
int64_t padded(const Rows<C>& rows, int64_t count) {
  return (count * rows.channels + rows.period - 1) / rows.period * rows.period;
}

// As for_runs, for the kept channels and the condition.
template <typename T, typename Body>
void for_pixels(int64_t rows, const ConditionerInput& shape, const Body& body) {
  const int64_t size = static_cast<int64_t>(sizeof(T)), condition = shape.condition > 0 ? shape.condition : shape.kept;
  for_runs(rows, size * std::min(shape.kept, condition), size * std::max(shape.kept, condition), body);
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
  const Board<C> board(shape);
  const Pieces pieces(shape.batch, sites);
  const int64_t n = pieces.count();
  std::vector<Moments> parts(norm == Norm::kBatch ? kept * n : 0);
  Parameters<C> p(shape, gain);
  const auto read = [&](int64_t b, int64_t k, int64_t first) {
    return MaskedReader<T>{x + (b * shape.channels + shape.start + k) * sites, board.from(first)};
  };
  pieces.run(
      kept, threads,
      [&](int64_t k, int64_t piece) {
        if (norm != Norm::kBatch) return;
        parts[k * n + piece] =
            piece_moments<C>(pieces, piece, [&](int64_t b, int64_t first) { return read(b, k, first); });
      },
      [&](int64_t k) {
        if (norm == Norm::kBatch) {
          const Moments m = total(n, [&](int64_t piece) { return parts[k * n + piece]; });
          mean[k] = static_cast<C>(m.mean);
          var[k] = static_cast<C>(m.squares / m.count);
        }
        if (norm != Norm::kNone) p.set(k, mean[k], var[k], offset[k], eps);
      },
      [&](int64_t k, int64_t piece) {
        const Affine<C> affine = p.channel(k);
        pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
          auto from = read(b, k, first);
          T* positive = h + (b * shape.columns() + k) * sites;
          T* negative = positive + kept * sites;
          for_vectors<C>(
              first, last,
              [&](int64_t i) {
                const Vec<C> v = affine(from(i)) * p.gain;
                store(positive + i, relu(v));
                store(negative + i, relu(-v));
              },
              [&](int64_t i, int64_t count) {
                const Vec<C> v = affine(from(i, count, C{0})) * p.gain;
                store_part(positive + i, relu(v), count);
                store_part(negative + i, relu(-v), count);
              });
        });
      });
  const int64_t rest = shape.columns() - 2 * kept;
  if (rest == 0) return;
  const Vec<C> one = splat(C{1});
  for_chunks(shape.batch * rest, sites, threads, [&](int64_t row, int64_t first, int64_t last) {
    const int64_t b = row / rest, channel = row % rest - shape.board;
    T* to = h + (b * shape.columns() + 2 * kept + row % rest) * sites;
    if (channel >= 0) {
      copy_run(to + first, condition + (b * shape.condition + channel) * sites + first, last - first);
    } else {
      auto cursor = board.from(first);
      for_vectors<C>(
          first, last, [&](int64_t i) { store(to + i, where<C>(cursor.next(), one)); },
          [&](int64_t i, int64_t count) { store_part(to + i, where<C>(cursor.next(), one), count); });
    }
  });
}

// Which rows of a block are kept, as lanes; a vector of them may be written behind the last.
template <typename C>
using Lanes = std::vector<typename Board<C>::Lane>;

template <typename C>
void set_lanes(Lanes<C>& lanes, int64_t first, int64_t last, const ConditionerInput& shape, const Board<C>& board) {
  const int64_t count = last - first;
  lanes.resize(count + kLanes<C>);
  int64_t site = first % shape.sites();
  for (int64_t row = 0; row < count; site = 0) {
    const int64_t end = std::min(count, row + shape.sites() - site);
    auto cursor = board.from(site);
    for (int64_t i = row; i < end; i += kLanes<C>) {
      const IntVec<C> next = cursor.next();
      std::memcpy(lanes.data() + i, &next, sizeof(next));
    }
    row = end;
  }
}

// Rows of the kept channels without gaps, with zeros at the sites that are not kept and behind the last row.
template <typename T, typename C>
const T* gather(const T* x, int64_t first, int64_t count, const Lanes<C>& lanes, std::vector<T>& buffer,
                const Rows<C>& rows, const ConditionerInput& shape) {
  buffer.resize(padded(rows, count));
  T* const to = buffer.data();
  const T* const from = x + first * shape.channels + shape.start;
  for_pixels<T>(count, shape, [&](int64_t row, auto move) {
    if (lanes[row]) {
      move.copy(to + row * shape.kept, from + row * shape.channels, shape.kept);
    } else {
      move.zero(to + row * shape.kept, shape.kept);
    }
  });
  zero_run(to + count * shape.kept, padded(rows, count) - count * shape.kept);
  return buffer.data();
}

template <typename C>
Spread<C> spread(const Rows<C>& rows, const Parameters<C>& p) {
  return {rows.spread(p.mean.data()), rows.spread(p.scale.data()), rows.spread(p.bias.data())};
}

template <typename T, typename C>
void forward_rows(T* h, C* mean, C* var, const T* x, const T* condition, const C* offset, const ConditionerInput& shape,
                  Norm norm, double gain, double eps, int threads) {
  const int64_t kept = shape.kept, columns = shape.columns();
  const Board<C> board(shape);
  const Rows<C> rows(shape.batch * shape.sites(), kept);
  if (norm == Norm::kBatch) {
    row_statistics<T>(mean, var, rows, threads, [&](int64_t first, int64_t last, std::vector<T>& buffer) {
      Lanes<C> lanes;
      set_lanes(lanes, first, last, shape, board);
      return gather(x, first, last - first, lanes, buffer, rows, shape);
    });
  }
  Parameters<C> p(shape, gain);
  for (int64_t k = 0; k < kept && norm != Norm::kNone; ++k) p.set(k, mean[k], var[k], offset[k], eps);
  const Spread<C> affine = spread(rows, p);
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

// The sums over d, the gradient of u = (x - mean) / sqrt(var + eps) + offset, and over d (x - mean), as the gradient of
// the offset, and the two terms that statistics of the batch take away from d.
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
  const Board<C> board(shape);
  const Pieces pieces(shape.batch, sites);
  const int64_t n = pieces.count();
  std::vector<double> parts(norm == Norm::kNone ? 0 : 2 * kept * n);
  std::vector<Corrections<C>> terms(kept);
  // Calls body(d, distance from the mean, kept lanes, to, count) for each vector of a piece.
  const auto each = [&](int64_t k, int64_t piece, const auto& body) {
    const Affine<C> affine = p.channel(k);
    pieces.each(piece, [&](int64_t b, int64_t first, int64_t last) {
      const int64_t plane = (b * shape.channels + shape.start + k) * sites;
      const T *from = x + plane, *positive = grad_h + (b * shape.columns() + k) * sites;
      const T* negative = positive + kept * sites;
      auto cursor = board.from(first);
      for_vectors_by_four<C>(
          first, last,
          [&](int64_t i, int u) {
            const IntVec<C> lanes = cursor.next();
            const Vec<C> v = where<C>(lanes, load(from + i));
            const Vec<C> d = split_backward(load(positive + i), load(negative + i), affine(v) * p.gain) * p.gain;
            body(d, affine.centred(v), lanes, grad_x + plane + i, kLanes<C>, u);
          },
          [&](int64_t i, int64_t count) {
            const IntVec<C> lanes = cursor.next();
            const Vec<C> v = where<C>(lanes, load_part(from + i, count));
            const Vec<C> d =
                split_backward(load_part(positive + i, count), load_part(negative + i, count), affine(v) * p.gain);
            body(d * p.gain, first_lanes<C>(affine.centred(v), count), lanes, grad_x + plane + i, count, 3);
          });
    });
  };
  const auto put = [](T* to, Vec<C> v, int64_t count) {
    if (count == kLanes<C>) {
      store(to, v);
    } else {
      store_part(to, v, count);
    }
  };
  pieces.run(
      kept, threads,
      [&](int64_t k, int64_t piece) {
        if (norm == Norm::kNone) return;
        Sum<C> sum, product;
        const Vec<C> scale = splat(p.scale[k]);
        each(k, piece, [&](Vec<C> d, Vec<C> centred, IntVec<C> lanes, T* to, int64_t count, int u) {
          sum.parts[u] += d;
          product.parts[u] += d * centred;
          if (norm == Norm::kGiven) put(to, where<C>(lanes, d * scale), count);
        });
        parts[2 * (k * n + piece)] = sum.total();
        parts[2 * (k * n + piece) + 1] = product.total();
      },
      [&](int64_t k) {
        if (norm == Norm::kNone) return;
        double sum = 0, product = 0;
        for (int64_t i = k * n; i < (k + 1) * n; ++i) sum += parts[2 * i], product += parts[2 * i + 1];
        terms[k] = Corrections<C>(grad_offset + k, sum, product, static_cast<double>(p.scale[k]), entries);
      },
      [&](int64_t k, int64_t piece) {
        if (norm == Norm::kGiven) return;
        const Vec<C> scale = splat(p.scale[k]), mean = splat(terms[k].mean), slope = splat(terms[k].slope);
        each(k, piece, [&](Vec<C> d, Vec<C> centred, IntVec<C> lanes, T* to, int64_t count, int) {
          const Vec<C> grad = norm == Norm::kNone ? d : scale * (d - mean - centred * slope);
          put(to, where<C>(lanes, grad), count);
        });
      });
  const int64_t dropped = shape.channels - kept;
  for_chunks(shape.batch, dropped * sites, threads, [&](int64_t b, int64_t first, int64_t last) {
    zero_run(grad_x + (b * shape.channels + (shape.start == 0 ? kept : 0)) * sites + first, last - first);
  });
}

template <typename T, typename C>
void backward_rows(T* grad_x, C* grad_offset, const T* grad_h, const T* x, const Parameters<C>& p,
                   const ConditionerInput& shape, Norm norm, int threads) {
  const int64_t kept = shape.kept, columns = shape.columns(), channels = shape.channels;
  const Board<C> board(shape);
  const Rows<C> rows(shape.batch * shape.sites(), kept);
  const Spread<C> affine = spread(rows, p);
  std::vector<double> parts(norm == Norm::kNone ? 0 : 2 * rows.count() * kept), totals(2 * kept);
  std::vector<C> mean(rows.period), slope(rows.period);

  // A block where it lies, or gathered: rows of `width` entries, each so many entries behind the one before.
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
        // The gradient of u and the distance from the mean, of which there is a gradient where nothing is normalised
        // that needs neither.
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
          if (lanes[row]) {
            move.copy(at + shape.start, grad.data() + row * kept, kept);
          } else {
            move.zero(at + shape.start, kept);
          }
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
  rows.spread(mean.data(), totals.data());
  rows.spread(slope.data(), totals.data() + kept);
  pass(false, true);
}

}  // namespace

void conditioner_input(void* h, void* mean, void* var, const void* x, const void* condition, const void* offset,
                       const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype, int threads) {
  if (shape.batch * shape.sites() == 0) return;
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const auto& run = shape.last || (shape.sites() == 1 && shape.kept > 0) ? forward_rows<T, C> : forward<T, C>;
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
    const auto& run = shape.last || (shape.sites() == 1 && shape.kept > 0) ? backward_rows<T, C> : backward<T, C>;
    run(static_cast<T*>(grad_x), to, static_cast<const T*>(grad_h), static_cast<const T*>(x), p, shape, norm, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
