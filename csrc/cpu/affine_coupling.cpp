#include "cpu/affine_coupling.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/runs.h"
#include "cpu/sum.h"

namespace pnf::cpu::PNF_ISA {
namespace {

inline Vec<float> exponential(Vec<float> x) { return exp(x); }

inline Vec<double> exponential(Vec<double> x) {
  const Reduced<double> e = reduce(at_most(at_least(x, splat(-746.0)), splat(710.0)));
  // In two steps, since 2^k may be out of range where exp(x) is not.
  const IntVec<double> half = e.k >> 1;
  return (1.0 + e.p) * bit_cast<Vec<double>>((half + kBias<double>) << kMantissa<double>) *
         bit_cast<Vec<double>>((e.k - half + kBias<double>) << kMantissa<double>);
}

template <typename C>
struct Tanh {
  Vec<C> value, slope;  // tanh(u) and 1 - tanh(u)^2
};

// With e = exp(-2 |u|) and q = e / (1 + e), 1 - tanh(u)^2 = 4 q (1 - q), which never cancels, for q <= 1 / 2, and
// tanh |u| = 1 - 2 q, or (1 - e) / (1 + e) where that would cancel.
template <typename C>
inline Tanh<C> tanh_slope(Vec<C> u) {
  const Vec<C> magnitude = abs<C>(u);
  const Decay<C> e = decay<C>(magnitude * 2);
  const Vec<C> inverse = 1 / (1 + e.value), q = e.value * inverse;
  const Vec<C> value = magnitude < C{0.5} ? e.rest * inverse : 1 - 2 * q;
  return {copy_sign<C>(value, u), 4 * q * (1 - q)};
}

template <typename C>
inline IntVec<C> lanes() {
  IntVec<C> lane{};
  for (int i = 0; i < kLanes<C>; ++i) lane[i] = i;
  return lane;
}

// A checkerboard along the entries of a plane. Rows of even width begin with the two parities in turn, so that it
// repeats after two of them; otherwise the parities alternate all along.
template <typename C>
class Checkerboard {
 public:
  Checkerboard(const Coupling& coupling, int64_t begin) : parity_(coupling.parity) {
    const bool rows = coupling.height > 1 && coupling.width % 2 == 0;
    const int64_t width = rows ? coupling.width : 2, period = rows ? 2 * width : 2;
    const bool second = begin % period >= width;
    int64_t column = begin % width;
    // From a chunk of a wide row one sees no more than its end, so that 32 bits are enough.
    width_ = static_cast<int>(std::min(width, kSeen));
    if (width > kSeen) column = width - column < kSeen ? column - width + kSeen : column % 2;
    period_ = rows ? 2 * width_ : width_;
    column_ = wrap(lanes<C>() % period_ + static_cast<int>(column + (second ? width_ : 0)));
    step_ = kLanes<C> % period_;
  }

  // Which of the next entries are kept.
  IntVec<C> next() {
    const IntVec<C> kept = ((column_ ^ (column_ >= width_)) & 1) == parity_;
    column_ = wrap(column_ + step_);
    return kept;
  }

  void back(int entries) { column_ = wrap(column_ + (period_ - entries % period_)); }

 private:
  static constexpr int64_t kSeen = 2 * kChunk;

  IntVec<C> wrap(IntVec<C> column) const { return column >= period_ ? column - period_ : column; }

  IntVec<C> column_;
  int width_, period_, step_, parity_;
};

// Entries of one channel of one example.
template <typename C, bool board>
struct Plane {
  static constexpr bool kBoard = board;
  Vec<C> channel_scale, example_grad;
  Checkerboard<C> alternate;

  Vec<C> scale(int64_t) const { return channel_scale; }
  Vec<C> grad_log_det(int64_t) const { return example_grad; }
  IntVec<C> kept(int64_t) { return alternate.next(); }
  void back(int entries) {
    if constexpr (board) alternate.back(entries);
  }
};

// Entries of several channels or examples.
template <typename C, bool board>
struct Mixed {
  static constexpr bool kBoard = board;
  const C* scales;
  const C* grads;
  const C* keeps;  // 1 or 0

  Vec<C> scale(int64_t i) const { return load(scales + i); }
  Vec<C> grad_log_det(int64_t i) const { return load(grads + i); }
  IntVec<C> kept(int64_t i) const { return load(keeps + i) != 0; }
  void back(int) const {}
};

// Entries of a tensor, moved to where whole vectors can be loaded if there are fewer than one has.
template <typename T>
class Loadable {
 public:
  Loadable(const T* from, int64_t n) : from_(from) {
    if (n >= kLanes<Wide<T>> || !from) return;
    std::memset(padded_, 0, sizeof(padded_));
    std::memcpy(padded_, from, std::min(static_cast<size_t>(n) * sizeof(T), sizeof(padded_)));
    from_ = padded_;
  }
  Loadable(const Loadable&) = delete;
  Loadable& operator=(const Loadable&) = delete;

  Vec<Wide<T>> operator()(int64_t i) const { return load(from_ + i); }

 private:
  const T* from_;
  T padded_[kLanes<Wide<T>>];
};

// The same for stores.
template <typename T>
class Storable {
 public:
  Storable(T* to, int64_t n) : to_(n < kLanes<Wide<T>> ? padded_ : to), out_(to), n_(n) {}
  ~Storable() {
    if (to_ != out_) std::memcpy(out_, padded_, std::min(static_cast<size_t>(n_) * sizeof(T), sizeof(padded_)));
  }
  Storable(const Storable&) = delete;
  Storable& operator=(const Storable&) = delete;

  void operator()(int64_t i, Vec<Wide<T>> v) const { store(to_ + i, v); }

 private:
  T* to_;
  T* out_;
  int64_t n_;
  T padded_[kLanes<Wide<T>>];
};

// Calls body(i) for vectors of n entries. Where n ends within a vector, the last one overlaps the one before it.
template <typename C, typename Place, typename Body>
inline void for_lanes(int64_t n, Place& place, const Body& body) {
  constexpr int kWidth = kLanes<C>;
  for (int64_t i = 0; i < n; i += kWidth) {
    if (i && i + kWidth > n) {
      const int64_t overlap = i + kWidth - n;
      place.back(static_cast<int>(overlap));
      i -= overlap;
    }
    body(i);
  }
}

// Entries that are worked on together where channels or examples are short: they and their results fit a cache.
constexpr int64_t kTile = 512;

// Both transforms of a tile work in two passes, each of which waits half as long for one result after the other.

// `logs` is for the log-scales of n entries, and may be written up to a whole vector.
template <bool inverse, typename T, typename R, typename Place>
void transform(T* to, Wide<T>* logs, const T* from, const R* shifts, const R* us, int64_t n, Place& entries) {
  using C = Wide<T>;
  const Loadable<T> x(from, n);
  const Loadable<R> shift(shifts, n), u(us, n);
  const Storable<T> y(to, n);
  Place place = entries, again = entries;
  for_lanes<C>(n, place, [&](int64_t i) {
    const Vec<C> s = place.scale(i) * tanh_slope<C>(u(i)).value;
    if constexpr (Place::kBoard) {
      store(logs + i, place.kept(i) ? Vec<C>{} : s);
    } else {
      store(logs + i, s);
    }
  });
  for_lanes<C>(n, again, [&](int64_t i) {
    const Vec<C> before = x(i), s = load(logs + i);
    Vec<C> after = inverse ? (before - shift(i)) * exponential(-s) : before * exponential(s) + shift(i);
    if constexpr (Place::kBoard) after = again.kept(i) ? before : after;
    y(i, after);
  });
  entries = place;
}

// `grad_scales` is like `logs`.
template <bool inverse, typename T, typename R, typename Place>
void transform_backward(T* to_x, R* to_shift, R* to_u, Wide<T>* grad_scales, const T* grads, const T* xs,
                        const R* shifts, const R* us, int64_t n, Place& entries) {
  using C = Wide<T>;
  const Loadable<T> grad_y(grads, n), x(xs, n);
  const Loadable<R> shift(shifts, n), u(us, n);
  const Storable<T> grad_x(to_x, n);
  const Storable<R> grad_shift(to_shift, n), grad_u(to_u, n);
  alignas(Vec<C>) C values[kTile], slopes[kTile];
  Place place = entries, first = entries;
  for_lanes<C>(n, first, [&](int64_t i) {
    const Tanh<C> tanh = tanh_slope<C>(u(i));
    store(values + i, tanh.value);
    store(slopes + i, tanh.slope);
  });
  for_lanes<C>(n, place, [&](int64_t i) {
    const Vec<C> scale = place.scale(i), tanh = load(values + i), s = scale * tanh, grad = grad_y(i);
    Vec<C> g_x, g_shift, g_s;
    if constexpr (inverse) {
      g_x = grad * exponential(-s);
      g_shift = -g_x;
      g_s = g_shift * (x(i) - shift(i)) - place.grad_log_det(i);
    } else {
      g_x = grad * exponential(s);
      g_shift = grad;
      g_s = g_x * x(i) + place.grad_log_det(i);
    }
    Vec<C> g_u = g_s * scale * load(slopes + i), g_scale = g_s * tanh;
    if constexpr (Place::kBoard) {
      const IntVec<C> kept = place.kept(i);
      g_x = kept ? grad : g_x;
      g_shift = kept ? Vec<C>{} : g_shift;
      g_u = kept ? Vec<C>{} : g_u;
      g_scale = kept ? Vec<C>{} : g_scale;
    }
    grad_x(i, g_x);
    grad_shift(i, g_shift);
    grad_u(i, g_u);
    store(grad_scales + i, g_scale);
  });
  entries = place;
}

// Tiles whose sums by column are one part of grad_scale.
constexpr int64_t kBlock = 32;

// Memory as rows whose transformed entries are contiguous: examples, or pixels if the channels come last. A row of
// raw has as many shifts and then as many u.
struct Rows {
  int64_t count, per_example, length;
  int64_t plane;                // entries of a row that share a channel
  int64_t stride, moved, kept;  // of x: from row to row, and where in it the halves of a channel mask begin
  bool channel_mask, skipped;   // skipped: a checkerboard keeps or transforms whole rows

  explicit Rows(const Coupling& c)
      : count(c.batch * (c.last ? c.sites() : 1)),
        per_example(c.last ? c.sites() : 1),
        length(c.transformed() * (c.last ? 1 : c.sites())),
        plane(c.last ? 1 : c.sites()),
        stride(c.channels * (c.last ? 1 : c.sites())),
        moved(c.mask == Mask::kChannel && c.parity == 0 ? length : 0),
        kept(c.mask == Mask::kChannel && c.parity == 1 ? length : 0),
        channel_mask(c.mask == Mask::kChannel),
        skipped(c.mask == Mask::kCheckerboard && c.last) {}

  // Whether a plane is worked on at a time. Short ones that do not fill vectors are better mixed.
  template <typename C>
  bool by_planes() const {
    return plane > 1 && (plane % kLanes<C> == 0 || length > 8 * kTile);
  }
};

// Rows cut into tiles: several rows of one example or of whole examples, or pieces of a long row.
struct Tiles {
  int64_t rows, groups, groups_per_example, pieces;
  int64_t examples;  // of a group that has more than one; else 0

  explicit Tiles(const Rows& r) {
    const int64_t most = std::max<int64_t>(kTile / r.length, 1), batch = r.count / r.per_example;
    examples = r.per_example < most ? most / r.per_example : 0;
    rows = examples ? examples * r.per_example : most;
    groups_per_example = examples ? 1 : (r.per_example + most - 1) / most;
    groups = examples ? (batch + examples - 1) / examples : batch * groups_per_example;
    pieces = (r.length + kTile - 1) / kTile;
  }
};

// The transformed and the kept rows of a tile.
struct Picked {
  int64_t rows[kTile], count = 0, kept[kTile], kept_count = 0;
  int64_t first_example, examples, column, columns;

  Picked(const Coupling& c, const Rows& r, const Tiles& tiles, int64_t group, int64_t piece)
      : column(piece * kTile), columns(std::min(r.length - column, kTile)) {
    int64_t row, end;
    if (tiles.examples) {
      row = group * tiles.rows;
      end = std::min(row + tiles.rows, r.count);
      first_example = group * tiles.examples;
      examples = (end - row) / r.per_example;
    } else {
      first_example = group / tiles.groups_per_example;
      examples = 1;
      row = first_example * r.per_example + group % tiles.groups_per_example * tiles.rows;
      end = std::min(row + tiles.rows, (first_example + 1) * r.per_example);
    }
    if (!r.skipped) {
      while (row < end) rows[count++] = row++;
      return;
    }
    const int64_t site = row % r.per_example;
    int64_t x = site % c.width, y = site / c.width;
    for (; row < end; ++row) {
      const bool keep = ((x + y) & 1) == c.parity;
      (keep ? kept[kept_count++] : rows[count++]) = row;
      if (++x < c.width) continue;
      x = 0;
      if (++y == c.height) y = 0;
    }
  }

  int64_t entries() const { return count * columns; }
  bool in_place(int64_t stride) const {
    return count <= 1 || (stride == columns && rows[count - 1] - rows[0] == count - 1);
  }
};

// Calls body(move), where move(to, from) copies n entries. Short runs move as two words that may overlap: no loop, no
// call, and the choice is made once for all of them.
template <typename T, typename Body>
void with_move(int64_t n, const Body& body) {
  const size_t bytes = static_cast<size_t>(n) * sizeof(T);
  const auto ends = [&]<size_t word>(std::integral_constant<size_t, word>) {
    body([bytes](T* to, const T* from) {
      copy_ends<word>(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), bytes);
    });
  };
  if (bytes > 128) {
    body([bytes](T* to, const T* from) { std::memcpy(to, from, bytes); });
  } else if (bytes >= 64) {
    ends(std::integral_constant<size_t, 64>{});
  } else if (bytes >= 32) {
    ends(std::integral_constant<size_t, 32>{});
  } else if (bytes >= 16) {
    ends(std::integral_constant<size_t, 16>{});
  } else if (bytes >= 8) {
    ends(std::integral_constant<size_t, 8>{});
  } else if (bytes >= 4) {
    ends(std::integral_constant<size_t, 4>{});
  } else {
    ends(std::integral_constant<size_t, 2>{});
  }
}

// The picked entries of a tensor whose rows are `stride` apart, without gaps; in `buffer` unless they lie so.
template <typename T>
const T* gather(T* buffer, const T* from, int64_t stride, const Picked& picked) {
  from += picked.column;
  if (picked.in_place(stride)) return picked.count ? from + picked.rows[0] * stride : from;
  with_move<T>(picked.columns, [&](auto move) {
    for (int64_t i = 0; i < picked.count; ++i) move(buffer + i * picked.columns, from + picked.rows[i] * stride);
  });
  return buffer;
}

// Where to write them without gaps: in `buffer`, for `scatter`, unless they lie so.
template <typename T>
T* place_for(T* buffer, T* to, int64_t stride, const Picked& picked) {
  if (!picked.in_place(stride)) return buffer;
  return picked.count ? to + picked.column + picked.rows[0] * stride : to;
}

template <typename T>
void scatter(T* to, const T* from, int64_t stride, const Picked& picked) {
  if (picked.in_place(stride)) return;
  to += picked.column;
  with_move<T>(picked.columns, [&](auto move) {
    for (int64_t i = 0; i < picked.count; ++i) move(to + picked.rows[i] * stride, from + i * picked.columns);
  });
}

// out = x in what a mask over channels or over whole rows keeps of a tile.
template <typename T>
void copy_kept(T* out, const T* x, const Rows& r, const Picked& picked) {
  const int64_t* rows = r.channel_mask ? picked.rows : picked.kept;
  const int64_t count = r.channel_mask ? picked.count : picked.kept_count, first = r.kept + picked.column;
  with_move<T>(picked.columns, [&](auto move) {
    for (int64_t i = 0; i < count; ++i) move(out + rows[i] * r.stride + first, x + rows[i] * r.stride + first);
  });
}

// The scale of each entry of a row, and whether it is kept, for as many rows as a tile has.
template <typename C, bool board>
struct Pattern {
  std::vector<C> scales, keeps;

  Pattern(const C* scale, const Coupling& c, const Rows& r, const Tiles& tiles)
      : scales(static_cast<size_t>(r.length * tiles.rows + kLanes<C>)) {
    C* to = scales.data();
    for (int64_t k = 0; k < r.length / r.plane; ++k) to = std::fill_n(to, r.plane, scale[k]);
    repeat(scales, r, tiles);
    if constexpr (board) {
      keeps.resize(scales.size());
      for (int64_t i = 0; i < r.plane; ++i) {
        keeps[static_cast<size_t>(i)] = static_cast<C>((i % c.width + i / c.width) % 2 == c.parity);
      }
      for (int64_t i = r.plane; i < r.length; ++i)
        keeps[static_cast<size_t>(i)] = keeps[static_cast<size_t>(i - r.plane)];
      repeat(keeps, r, tiles);
    }
  }

 private:
  static void repeat(std::vector<C>& values, const Rows& r, const Tiles& tiles) {
    for (int64_t i = 1; i < tiles.rows; ++i) std::copy_n(values.data(), r.length, values.data() + i * r.length);
  }
};

template <bool inverse, bool board, typename T, typename R, typename Finish>
void forward_planes(T* y, const T* x, const R* raw, const Wide<T>* scale, const Coupling& c, const Rows& r, int threads,
                    const Finish& finish) {
  using C = Wide<T>;
  const Checkerboard<C> start(c, 0);
  const auto part = [&](int64_t example, int64_t first, int64_t last) {
    const int64_t from = example * r.stride;
    const R* shift = raw + example * 2 * r.length;
    if (r.channel_mask) std::copy(x + from + r.kept + first, x + from + r.kept + last, y + from + r.kept + first);
    alignas(Vec<C>) C logs[kTile];
    LaneSum<C> sum;
    int64_t channel = first / r.plane, begin = first % r.plane;
    for (int64_t i = first; i < last; ++channel, begin = 0) {
      const int64_t end = std::min(i + r.plane - begin, last);
      Plane<C, board> plane{splat(scale[channel]), Vec<C>{}, board && begin ? Checkerboard<C>(c, begin) : start};
      for (int64_t n; i < end; i += n) {
        n = std::min(end - i, kTile);
        const int64_t at = from + r.moved + i;
        transform<inverse>(y + at, logs, x + at, shift + i, shift + r.length + i, n, plane);
        sum.add(logs, n);
      }
    }
    return sum.total();
  };
  sum_rows(r.count, r.length, threads, part, finish);
}

template <bool inverse, bool board, typename T, typename R, typename Finish>
void forward_tiles(T* y, const T* x, const R* raw, const Wide<T>* scale, const Coupling& c, const Rows& r, int threads,
                   const Finish& finish) {
  using C = Wide<T>;
  const Tiles tiles(r);
  const Pattern<C, board> pattern(scale, c, r, tiles);
  const int64_t per_example = tiles.groups_per_example * tiles.pieces;
  std::vector<double> parts(static_cast<size_t>(per_example > 1 ? c.batch * per_example : 0));
  const int64_t grain = 2 * kChunk / std::min(tiles.rows * r.length, kTile);
  parallel_for(tiles.groups * tiles.pieces, grain, threads, [&](int64_t begin, int64_t end) {
    T x_tile[kTile], y_tile[kTile];
    R shift_tile[kTile], u_tile[kTile];
    alignas(Vec<C>) C logs[kTile];
    for (int64_t i = begin; i < end; ++i) {
      const Picked picked(c, r, tiles, i / tiles.pieces, i % tiles.pieces);
      copy_kept(y, x, r, picked);
      T* to = place_for(y_tile, y + r.moved, r.stride, picked);
      Mixed<C, board> mixed{pattern.scales.data() + picked.column, nullptr, pattern.keeps.data()};
      if constexpr (board) mixed.keeps += picked.column;
      transform<inverse>(to, logs, gather(x_tile, x + r.moved, r.stride, picked),
                         gather(shift_tile, raw, 2 * r.length, picked),
                         gather(u_tile, raw + r.length, 2 * r.length, picked), picked.entries(), mixed);
      scatter(y + r.moved, to, r.stride, picked);
      const int64_t n = picked.entries() / picked.examples;
      for (int64_t k = 0; k < picked.examples; ++k) {
        LaneSum<C> sum;
        sum.add(logs + k * n, n);
        if (per_example > 1) {
          parts[static_cast<size_t>(i)] = sum.total();
        } else {
          finish(picked.first_example + k, sum.total());
        }
      }
    }
  });
  if (per_example == 1) return;
  for (int64_t example = 0; example < c.batch; ++example) {
    ExactSum total;
    for (int64_t i = 0; i < per_example; ++i) total.add(parts[static_cast<size_t>(example * per_example + i)]);
    finish(example, total.value());
  }
}

template <bool inverse, bool board, typename T, typename R>
void backward_planes(T* grad_x, R* grad_raw, Wide<T>* grad_scale, const T* grad_y, const Wide<T>* grad_log_det,
                     const T* x, const R* raw, const Wide<T>* scale, const Coupling& c, const Rows& r, int threads) {
  using C = Wide<T>;
  const Checkerboard<C> start(c, 0);
  const int64_t channels = c.transformed(), pieces = (r.plane + kChunk - 1) / kChunk;
  std::vector<double> parts(static_cast<size_t>(c.batch * channels * pieces));
  const int64_t grain = 2 * kChunk / std::min(r.plane, kChunk);
  parallel_for(c.batch * channels * pieces, grain, threads, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t plane_index = part / pieces, example = plane_index / channels, channel = plane_index % channels;
      const int64_t begin = part % pieces * kChunk, n = std::min(kChunk, r.plane - begin);
      const int64_t i = channel * r.plane + begin, at = example * r.stride + r.moved + i;
      const int64_t shift = example * 2 * r.length + i, u = shift + r.length;
      if (r.channel_mask) {
        const int64_t kept = example * r.stride + r.kept + i;
        std::copy_n(grad_y + kept, n, grad_x + kept);
      }
      Plane<C, board> plane{splat(scale[channel]), splat(grad_log_det[example]),
                            board && begin ? Checkerboard<C>(c, begin) : start};
      alignas(Vec<C>) C grads[kTile];
      LaneSum<C> sum;
      for (int64_t j = 0; j < n; j += kTile) {
        const int64_t length = std::min(n - j, kTile);
        transform_backward<inverse>(grad_x + at + j, grad_raw + shift + j, grad_raw + u + j, grads, grad_y + at + j,
                                    x + at + j, raw + shift + j, raw + u + j, length, plane);
        sum.add(grads, length);
      }
      parts[static_cast<size_t>(part)] = sum.total();
    }
  });
  for (int64_t channel = 0; channel < channels; ++channel) {
    ExactSum total;
    for (int64_t example = 0; example < c.batch; ++example) {
      const double* part = parts.data() + (example * channels + channel) * pieces;
      for (int64_t i = 0; i < pieces; ++i) total.add(part[i]);
    }
    grad_scale[channel] = static_cast<C>(total.value());
  }
}

template <bool inverse, bool board, typename T, typename R>
void backward_tiles(T* grad_x, R* grad_raw, Wide<T>* grad_scale, const T* grad_y, const Wide<T>* grad_log_det,
                    const T* x, const R* raw, const Wide<T>* scale, const Coupling& c, const Rows& r, int threads) {
  using C = Wide<T>;
  constexpr int64_t kPad = kLanes<C>;
  const Tiles tiles(r);
  const Pattern<C, board> pattern(scale, c, r, tiles);
  const int64_t blocks = (tiles.groups + kBlock - 1) / kBlock;
  std::vector<double> parts(static_cast<size_t>(blocks * r.length));
  parallel_for(blocks * tiles.pieces, 1, threads, [&](int64_t first, int64_t last) {
    T x_tile[kTile], grad_y_tile[kTile], grad_x_tile[kTile];
    R shift_tile[kTile], u_tile[kTile], grad_shift_tile[kTile], grad_u_tile[kTile];
    C grads[kTile + kPad] = {}, collected[kTile + kPad] = {};
    for (int64_t part = first; part < last; ++part) {
      const int64_t block = part / tiles.pieces, piece = part % tiles.pieces;
      double totals[kTile + kPad] = {};
      for (int64_t group = block * kBlock; group < std::min((block + 1) * kBlock, tiles.groups); ++group) {
        const Picked picked(c, r, tiles, group, piece);
        copy_kept(grad_x, grad_y, r, picked);
        for (int64_t i = 0; i < picked.kept_count; ++i) {
          R* row = grad_raw + picked.kept[i] * 2 * r.length + picked.column;
          std::fill_n(row, picked.columns, R{});
          std::fill_n(row + r.length, picked.columns, R{});
        }
        const int64_t n = picked.entries() / picked.examples;
        for (int64_t k = 0; k < picked.examples; ++k) {
          std::fill_n(grads + k * n, n, grad_log_det[picked.first_example + k]);
        }
        T* to_x = place_for(grad_x_tile, grad_x + r.moved, r.stride, picked);
        R* to_shift = place_for(grad_shift_tile, grad_raw, 2 * r.length, picked);
        R* to_u = place_for(grad_u_tile, grad_raw + r.length, 2 * r.length, picked);
        Mixed<C, board> mixed{pattern.scales.data() + picked.column, grads, pattern.keeps.data()};
        if constexpr (board) mixed.keeps += picked.column;
        transform_backward<inverse>(to_x, to_shift, to_u, collected,
                                    gather(grad_y_tile, grad_y + r.moved, r.stride, picked),
                                    gather(x_tile, x + r.moved, r.stride, picked),
                                    inverse ? gather(shift_tile, raw, 2 * r.length, picked) : nullptr,
                                    gather(u_tile, raw + r.length, 2 * r.length, picked), picked.entries(), mixed);
        scatter(grad_x + r.moved, to_x, r.stride, picked);
        scatter(grad_raw, to_shift, 2 * r.length, picked);
        scatter(grad_raw + r.length, to_u, 2 * r.length, picked);
        for (int64_t j = 0; j < picked.columns; j += kPad) {
          // Four rows are added as they are, and these sums in double.
          const C* from = collected + j;
          for (int64_t row = 0; row < picked.count; row += 4) {
            Vec<C> some = load(from);
            from += picked.columns;
            for (int64_t k = row + 1; k < std::min(row + 4, picked.count); ++k) {
              some += load(from);
              from += picked.columns;
            }
            add_to(totals + j, some);
          }
        }
      }
      const int64_t at = piece * kTile;
      std::copy_n(totals, std::min(r.length - at, kTile), parts.begin() + block * r.length + at);
    }
  });
  for (int64_t k = 0; k < c.transformed(); ++k) {
    ExactSum total;
    for (int64_t block = 0; block < blocks; ++block) {
      const double* columns = parts.data() + block * r.length + k * r.plane;
      for (int64_t i = 0; i < r.plane; ++i) total.add(columns[i]);
    }
    grad_scale[k] = static_cast<C>(total.value());
  }
}

// Calls body(T{}, R{}) with the types of x and raw.
template <typename Body>
void with_dtypes(const CouplingDTypes& dtypes, const Body& body) {
  if (dtypes.x == DType::kFloat32 && dtypes.raw == DType::kBFloat16) return body(float{}, BFloat16{});
  if (dtypes.x == DType::kFloat32 && dtypes.raw == DType::kFloat16) return body(float{}, Float16{});
  with_dtype(dtypes.x, [&]<typename T>(T) { body(T{}, T{}); });
}

template <typename Body>
void with_bools(bool a, bool b, const Body& body) {
  if (a) {
    b ? body(std::true_type{}, std::true_type{}) : body(std::true_type{}, std::false_type{});
  } else {
    b ? body(std::false_type{}, std::true_type{}) : body(std::false_type{}, std::false_type{});
  }
}

}  // namespace

void affine_coupling(void* y, void* out, const void* x, const void* raw, const void* scale, const void* log_det,
                     const Coupling& c, bool inverse, CouplingDTypes dtypes, int threads) {
  const auto finish = [&](int64_t example, double total) {
    const double gain = inverse ? -total : total;
    if (dtypes.log_det == DType::kFloat64) {
      static_cast<double*>(out)[example] = static_cast<const double*>(log_det)[example] + gain;
    } else {
      const double before = static_cast<double>(static_cast<const float*>(log_det)[example]);
      static_cast<float*>(out)[example] = static_cast<float>(before + gain);
    }
  };
  const Rows rows(c);
  if (rows.count * rows.length == 0) {
    for (int64_t example = 0; example < c.batch; ++example) finish(example, 0);
    return;
  }
  with_dtypes(dtypes, [&]<typename T, typename R>(T, R) {
    using C = Wide<T>;
    with_bools(inverse, c.mask == Mask::kCheckerboard && !c.last, [&](auto invert, auto board) {
      const auto run = rows.by_planes<C>() ? forward_planes<invert(), board(), T, R, decltype(finish)>
                                           : forward_tiles<invert(), board(), T, R, decltype(finish)>;
      run(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const R*>(raw), static_cast<const C*>(scale), c,
          rows, threads, finish);
    });
  });
}

void affine_coupling_backward(void* grad_x, void* grad_raw, void* grad_scale, const void* grad_y,
                              const void* grad_log_det, const void* x, const void* raw, const void* scale,
                              const Coupling& c, bool inverse, CouplingDTypes dtypes, int threads) {
  const Rows rows(c);
  with_dtypes(dtypes, [&]<typename T, typename R>(T, R) {
    using C = Wide<T>;
    if (rows.count * rows.length == 0) {
      std::fill_n(static_cast<C*>(grad_scale), c.transformed(), C{});
      return;
    }
    with_bools(inverse, c.mask == Mask::kCheckerboard && !c.last, [&](auto invert, auto board) {
      const auto run =
          rows.by_planes<C>() ? backward_planes<invert(), board(), T, R> : backward_tiles<invert(), board(), T, R>;
      run(static_cast<T*>(grad_x), static_cast<R*>(grad_raw), static_cast<C*>(grad_scale),
          static_cast<const T*>(grad_y), static_cast<const C*>(grad_log_det), static_cast<const T*>(x),
          static_cast<const R*>(raw), static_cast<const C*>(scale), c, rows, threads);
    });
  });
}

}  // namespace pnf::cpu::PNF_ISA
