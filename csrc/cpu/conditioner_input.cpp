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
    const bool rows = width_ == 2 * shape.width && shape.height > 1;
    for (int64_t i = 0; i < static_cast<int64_t>(table_.size()); ++i) {
      const int64_t site = i % width_;
      const int64_t parity = (site + (rows && site >= shape.width ? 1 : 0)) % 2;
      table_[i] = !shape.board || parity == shape.parity ? -1 : 0;
    }
  }

  bool kept(int64_t site) const { return table_[site % period_] != 0; }

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
    scale[k] = 1 / std::sqrt(var + static_cast<C>(eps));
    bias[k] = offset;
  }

  Affine<C> channel(int64_t k) const { return {splat(mean[k]), splat(scale[k]), splat(bias[k])}; }
};

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
          const Moments m = total(parts.data() + k * n, n);
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

// Rows of the kept channels without gaps, with zeros at the sites that are not kept.
template <typename T, typename C>
const T* gather(const T* x, int64_t first, int64_t last, std::vector<T>& buffer, const ConditionerInput& shape,
                const Board<C>& board) {
  buffer.resize((last - first) * shape.kept);
  T* to = buffer.data();
  int64_t site = first % shape.sites();
  for (int64_t row = first; row < last; ++row, to += shape.kept) {
    if (board.kept(site)) {
      copy_run(to, x + row * shape.channels + shape.start, shape.kept);
    } else {
      zero_run(to, shape.kept);
    }
    if (++site == shape.sites()) site = 0;
  }
  return buffer.data();
}

template <typename C>
struct Spread {
  std::vector<C> mean, scale, bias;

  Spread(const Rows<C>& rows, const Parameters<C>& p)
      : mean(rows.spread(p.mean.data())), scale(rows.spread(p.scale.data())), bias(rows.spread(p.bias.data())) {}

  Affine<C> at(int64_t j) const { return {load(mean.data() + j), load(scale.data() + j), load(bias.data() + j)}; }
};

template <typename T, typename C>
void forward_rows(T* h, C* mean, C* var, const T* x, const T* condition, const C* offset,
                  const ConditionerInput& shape, Norm norm, double gain, double eps, int threads) {
  const int64_t kept = shape.kept, columns = shape.columns();
  const Board<C> board(shape);
  const Rows<C> rows(shape.batch * shape.sites(), kept);
  if (norm == Norm::kBatch) {
    row_statistics<T>(mean, var, rows, threads, [&](int64_t first, int64_t last, std::vector<T>& buffer) {
      return gather(x, first, last, buffer, shape, board);
    });
  }
  Parameters<C> p(shape, gain);
  for (int64_t k = 0; k < kept && norm != Norm::kNone; ++k) p.set(k, mean[k], var[k], offset[k], eps);
  const Spread<C> spread(rows, p);
  const T one = narrow<T>(1), zero = narrow<T>(0);
  rows.run(threads, [&](int64_t begin, int64_t end) {
    std::vector<T> buffer, halves(2 * rows.height * kept);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = rows.first(block), last = rows.last(block), n = (last - first) * kept;
      const T* from = gather(x, first, last, buffer, shape, board);
      T *positive = halves.data(), *negative = positive + n;
      rows.each(
          n,
          [&](int64_t i, int64_t j) {
            const Vec<C> v = spread.at(j)(load(from + i)) * p.gain;
            store(positive + i, relu(v));
            store(negative + i, relu(-v));
          },
          [&](int64_t i, int64_t j, int64_t count) {
            const Vec<C> v = spread.at(j)(load_part(from + i, count)) * p.gain;
            store_part(positive + i, relu(v), count);
            store_part(negative + i, relu(-v), count);
          });
      int64_t site = first % shape.sites();
      T* to = h + first * columns;
      for (int64_t row = first; row < last; ++row, to += columns, positive += kept, negative += kept) {
        copy_run(to, positive, kept);
        copy_run(to + kept, negative, kept);
        if (shape.board) to[2 * kept] = board.kept(site) ? one : zero;
        copy_run(to + columns - shape.condition, condition + row * shape.condition, shape.condition);
        if (++site == shape.sites()) site = 0;
      }
    }
  });
}

// The sums over d, the gradient of u = (x - mean) / sqrt(var + eps) + offset, and over d (x - mean), as the gradient of
// the offset, and the two terms that statistics of the batch take away from d.
template <typename C>
struct Terms {
  C mean = 0, slope = 0;

  Terms() = default;
  Terms(C* grad_offset, double sum, double product, double scale, double entries)
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
  std::vector<Terms<C>> terms(kept);
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
            const Vec<C> d = split_backward(load_part(positive + i, count), load_part(negative + i, count),
                                            affine(v) * p.gain);
            body(d * p.gain, first_lanes<C>(affine.centred(v), count), lanes, grad_x + plane + i, count, 0);
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
        terms[k] = Terms<C>(grad_offset + k, sum, product, static_cast<double>(p.scale[k]), entries);
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
  const int64_t kept = shape.kept;
  const Board<C> board(shape);
  const Rows<C> rows(shape.batch * shape.sites(), kept);
  const Spread<C> spread(rows, p);
  // The gradients of the two halves, without gaps and one after the other.
  const auto gather_halves = [&](int64_t first, int64_t last, std::vector<T>& buffer) {
    const int64_t n = (last - first) * kept;
    buffer.resize(2 * n);
    for (int64_t row = first; row < last; ++row) {
      const T* from = grad_h + row * shape.columns();
      copy_run(buffer.data() + (row - first) * kept, from, kept);
      copy_run(buffer.data() + n + (row - first) * kept, from + kept, kept);
    }
    return static_cast<const T*>(buffer.data());
  };
  // Writes the gradient of some rows, of which `grad` has no gaps.
  const auto scatter = [&](int64_t first, int64_t last, const T* grad) {
    int64_t site = first % shape.sites();
    for (int64_t row = first; row < last; ++row, grad += kept) {
      T* to = grad_x + row * shape.channels;
      if (board.kept(site)) {
        copy_run(to + shape.start, grad, kept);
      } else {
        zero_run(to + shape.start, kept);
      }
      zero_run(to + (shape.start == 0 ? kept : 0), shape.channels - kept);
      if (++site == shape.sites()) site = 0;
    }
  };
  std::vector<double> parts(norm == Norm::kNone ? 0 : 2 * rows.count() * kept);
  const auto pass = [&](bool reduce, bool write, const std::vector<C>& mean, const std::vector<C>& slope) {
    rows.run(threads, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer, halves, grad(write ? rows.height * kept : 0);
      std::vector<C> sum(rows.period), product(rows.period);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = rows.first(block), last = rows.last(block), n = (last - first) * kept;
        const T* from = gather(x, first, last, buffer, shape, board);
        const T *positive = gather_halves(first, last, halves), *negative = positive + n;
        std::fill(sum.begin(), sum.end(), C{0});
        std::fill(product.begin(), product.end(), C{0});
        const auto both = [&](int64_t j, Vec<C> d, Vec<C> centred) {
          if (reduce) {
            add(sum.data() + j, d);
            add(product.data() + j, d * centred);
          }
          const Vec<C> rest = norm == Norm::kBatch ? load(mean.data() + j) + centred * load(slope.data() + j) : Vec<C>{};
          return load(spread.scale.data() + j) * (d - rest);
        };
        rows.each(
            n,
            [&](int64_t i, int64_t j) {
              const Affine<C> affine = spread.at(j);
              const Vec<C> v = load(from + i);
              const Vec<C> d = split_backward(load(positive + i), load(negative + i), affine(v) * p.gain) * p.gain;
              const Vec<C> g = both(j, d, affine.centred(v));
              if (write) store(grad.data() + i, g);
            },
            [&](int64_t i, int64_t j, int64_t count) {
              const Affine<C> affine = spread.at(j);
              const Vec<C> v = load_part(from + i, count);
              const Vec<C> d = split_backward(load_part(positive + i, count), load_part(negative + i, count),
                                              affine(v) * p.gain);
              const Vec<C> g = both(j, d * p.gain, first_lanes<C>(affine.centred(v), count));
              if (write) store_part(grad.data() + i, g, count);
            });
        if (reduce) {
          rows.fold(parts.data() + 2 * block * kept, sum.data());
          rows.fold(parts.data() + (2 * block + 1) * kept, product.data());
        }
        if (write) scatter(first, last, grad.data());
      }
    });
  };
  std::vector<C> mean(rows.period), slope(rows.period);
  if (norm == Norm::kNone) return pass(false, true, mean, slope);
  pass(true, norm == Norm::kGiven, mean, slope);
  std::vector<double> totals(2 * kept);
  for (int64_t block = 0; block < rows.count(); ++block) {
    for (int64_t k = 0; k < 2 * kept; ++k) totals[k] += parts[2 * block * kept + k];
  }
  for (int64_t k = 0; k < kept; ++k) {
    const Terms<C> terms(grad_offset + k, totals[k], totals[kept + k], static_cast<double>(p.scale[k]),
                         static_cast<double>(rows.rows));
    totals[k] = static_cast<double>(terms.mean);
    totals[kept + k] = static_cast<double>(terms.slope);
  }
  if (norm == Norm::kGiven) return;
  mean = rows.spread(totals.data());
  slope = rows.spread(totals.data() + kept);
  pass(false, true, mean, slope);
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
