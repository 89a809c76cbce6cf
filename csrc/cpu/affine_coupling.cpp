#include "cpu/affine_coupling.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/checkerboard.h"
#include "cpu/gather.h"
#include "cpu/math.h"
#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// Entries of one channel of one example.
template <typename C>
struct PerPlane {
  Vec<C> channel_scale, example_grad;
  Checkerboard::Cursor<C> cursor;

  Vec<C> scale(int64_t) const { return channel_scale; }
  Vec<C> grad_log_det(int64_t) const { return example_grad; }
  IntVec<C> kept(int64_t) { return cursor.next(); }
  void back(int entries) { cursor.back(entries); }
};

// Entries of several channels or examples.
template <typename C>
struct PerEntry {
  const C* scales;
  const C* grads;
  const Lane<C>* keeps;

  Vec<C> scale(int64_t i) const { return load(scales + i); }
  Vec<C> grad_log_det(int64_t i) const { return load(grads + i); }
  IntVec<C> kept(int64_t i) const { return read<IntVec<C>>(keeps + i); }
  void back(int) const {}
};

// Reads vectors of the n entries of a tensor. Fewer entries than a vector has are copied to a padded buffer first.
template <typename T>
class Loadable {
 public:
  Loadable(const T* from, int64_t n) : from_(from) {
    if (n < kLanes<Wide<T>> && from) pad(n);
  }
  Loadable(const Loadable&) = delete;
  Loadable& operator=(const Loadable&) = delete;

  Vec<Wide<T>> operator()(int64_t i) const { return load(from_ + i); }

 private:
  [[gnu::noinline]] void pad(int64_t n) {
    std::memset(padded_, 0, sizeof(padded_));
    std::memcpy(padded_, from_, std::min(static_cast<size_t>(n) * sizeof(T), sizeof(padded_)));
    from_ = padded_;
  }

  const T* from_;
  T padded_[kLanes<Wide<T>>];
};

// The same for writes.
template <typename T>
class Storable {
 public:
  Storable(T* to, int64_t n) : to_(n < kLanes<Wide<T>> ? padded_ : to), out_(to), n_(n) {}
  ~Storable() {
    if (to_ != out_) copy_out();
  }
  Storable(const Storable&) = delete;
  Storable& operator=(const Storable&) = delete;

  void operator()(int64_t i, Vec<Wide<T>> v) const { store(to_ + i, v); }

 private:
  [[gnu::noinline]] void copy_out() const {
    std::memcpy(out_, padded_, std::min(static_cast<size_t>(n_) * sizeof(T), sizeof(padded_)));
  }

  T* to_;
  T* out_;
  int64_t n_;
  T padded_[kLanes<Wide<T>>];
};

// Calls body(i) for vectors of n entries. Where n is no multiple of a vector's, the last one overlaps the one before.
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

// Both transforms take two passes over a tile: with chains of operations of half the length, a processor waits less for
// results.

// `logs` takes the log-scales of n entries, and has room for whole vectors.
template <bool inverse, bool board, typename T, typename R, typename Place>
void transform(T* to, Wide<T>* logs, const T* from, const R* shifts, const R* us, int64_t n, Place& entries) {
  using C = Wide<T>;
  const Loadable<T> x(from, n);
  const Loadable<R> shift(shifts, n), u(us, n);
  const Storable<T> y(to, n);
  Place place = entries, again = entries;
  for_lanes<C>(n, place, [&](int64_t i) {
    const Vec<C> s = place.scale(i) * tanh_slope<C>(u(i)).value;
    if constexpr (board) {
      store(logs + i, place.kept(i) ? Vec<C>{} : s);
    } else {
      store(logs + i, s);
    }
  });
  for_lanes<C>(n, again, [&](int64_t i) {
    const Vec<C> before = x(i), s = load(logs + i);
    Vec<C> after = inverse ? (before - shift(i)) * exponential(-s) : before * exponential(s) + shift(i);
    if constexpr (board) after = again.kept(i) ? before : after;
    y(i, after);
  });
  entries = place;
}

// `grad_scales` takes n entries and has room for whole vectors, like `logs`.
template <bool inverse, bool board, typename T, typename R, typename Place>
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
    if constexpr (board) {
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

// Returns body(a, b), given as constants.
template <typename Body>
inline auto with_bools(bool a, bool b, const Body& body) {
  constexpr std::true_type yes;
  constexpr std::false_type no;
  if (a) return b ? body(yes, yes) : body(yes, no);
  return b ? body(no, yes) : body(no, no);
}

// Tiles that are summed by column for one part of grad_scale.
constexpr int64_t kBlock = 32;

// The scale of each entry of a row, and whether it is kept, for as many rows as a tile has.
template <typename C>
struct RowPattern {
  std::vector<C> scales;
  std::vector<Lane<C>> keeps;

  RowPattern(const C* scale, bool board, const Checkerboard& mask, const CouplingRows& r, const Tiles& tiles)
      : scales(static_cast<size_t>(r.length * tiles.rows + kLanes<C>)) {
    C* to = scales.data();
    for (int64_t k = 0; k < r.length / r.plane; ++k) to = std::fill_n(to, r.plane, scale[k]);
    repeat(scales, r, tiles);
    if (board) {
      keeps.resize(scales.size());
      for (int64_t i = 0; i < r.length; i += r.plane) mask.write(keeps.data() + i, 0, r.plane);
      repeat(keeps, r, tiles);
    }
  }

 private:
  template <typename V>
  static void repeat(std::vector<V>& values, const CouplingRows& r, const Tiles& tiles) {
    for (int64_t i = 1; i < tiles.rows; ++i) std::copy_n(values.data(), r.length, values.data() + i * r.length);
  }
};

template <bool inverse, bool board, typename T, typename R, typename Finish>
void forward_planes(const Target<T>& y, const Source<T>& x, const Source<R>& raw, const Wide<T>* scale, const Coupling&,
                    const CouplingRows& r, const Checkerboard& mask, int threads, const Finish& finish) {
  using C = Wide<T>;
  const auto part = [&](int64_t example, int64_t first, int64_t last) {
    const int64_t from = example * r.stride;
    const int64_t shift = example * 2 * r.length, kept = from + r.kept + first;
    if (r.channel_mask) std::copy(x.at(kept), x.at(kept + last - first), y.at(kept));
    alignas(Vec<C>) C logs[kTile];
    TileBuffer<T> x_tile, y_tile;
    TileBuffer<R> shift_tile, u_tile;
    LaneSum<C> sum;
    int64_t channel = first / r.plane, begin = first % r.plane;
    for (int64_t i = first; i < last; ++channel, begin = 0) {
      const int64_t end = std::min(i + r.plane - begin, last);
      PerPlane<C> plane{splat(scale[channel]), Vec<C>{}, mask.from<C>(begin)};
      for (int64_t n; i < end; i += n) {
        n = std::min(end - i, kTile);
        const int64_t at = from + r.moved + i;
        transform<inverse, board, T, R>(y.place(at, y_tile), logs, x.read(at, n, x_tile),
                                        raw.read(shift + i, n, shift_tile), raw.read(shift + r.length + i, n, u_tile),
                                        n, plane);
        y.write(at, n, y_tile);
        sum.add(logs, n);
      }
    }
    return sum.total();
  };
  sum_rows(r.count, r.length, threads, part, finish);
}

// A tile is worth a call of its transform, so that all around it is compiled once for every transform.
template <typename T, typename R, typename Finish>
void forward_tiles(const Target<T>& y, const Source<T>& x, const Source<R>& raw, const Wide<T>* scale,
                   const Coupling& c, const CouplingRows& r, bool inverse, bool board, const Checkerboard& mask,
                   int threads, const Finish& finish) {
  using C = Wide<T>;
  const auto run = with_bools(inverse, board,
                              [](auto invert, auto keep) { return &transform<invert(), keep(), T, R, PerEntry<C>>; });
  const Tiles tiles(r);
  const RowPattern<C> pattern(scale, board, mask, r, tiles);
  const int64_t per_example = tiles.groups_per_example * tiles.pieces;
  std::vector<double> parts(static_cast<size_t>(per_example > 1 ? c.batch * per_example : 0));
  const int64_t grain = 2 * kChunk / std::min(tiles.rows * r.length, kTile);
  parallel_for(tiles.groups * tiles.pieces, grain, threads, [&](int64_t begin, int64_t end) {
    TileBuffer<T> x_tile, y_tile;
    TileBuffer<R> shift_tile, u_tile;
    alignas(Vec<C>) C logs[kTile];
    for (int64_t i = begin; i < end; ++i) {
      const SelectedRows selected(mask, r, tiles, i / tiles.pieces, i % tiles.pieces);
      copy_kept(y, x, r, selected);
      PerEntry<C> entries{pattern.scales.data() + selected.column, nullptr, pattern.keeps.data()};
      if (board) entries.keeps += selected.column;
      run(y.place_rows(r.moved, r.stride, selected, y_tile), logs, x.gather(r.moved, r.stride, selected, x_tile),
          raw.gather(0, 2 * r.length, selected, shift_tile), raw.gather(r.length, 2 * r.length, selected, u_tile),
          selected.entries(), entries);
      y.scatter(r.moved, r.stride, selected, y_tile);
      const int64_t n = selected.entries() / selected.examples;
      for (int64_t k = 0; k < selected.examples; ++k) {
        LaneSum<C> sum;
        sum.add(logs + k * n, n);
        if (per_example > 1) {
          parts[static_cast<size_t>(i)] = sum.total();
        } else {
          finish(selected.first_example + k, sum.total());
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
void backward_planes(const Target<T>& grad_x, const Target<R>& grad_raw, Wide<T>* grad_scale, const Source<T>& grad_y,
                     const Wide<T>* grad_log_det, const Source<T>& x, const Source<R>& raw, const Wide<T>* scale,
                     const Coupling& c, const CouplingRows& r, const Checkerboard& mask, int threads) {
  using C = Wide<T>;
  const int64_t channels = c.transformed(), pieces = (r.plane + kChunk - 1) / kChunk;
  std::vector<double> parts(static_cast<size_t>(c.batch * channels * pieces));
  const int64_t grain = 2 * kChunk / std::min(r.plane, kChunk);
  parallel_for(c.batch * channels * pieces, grain, threads, [&](int64_t first, int64_t last) {
    TileBuffer<T> grad_y_tile, x_tile, grad_x_tile;
    TileBuffer<R> shift_tile, u_tile, grad_shift_tile, grad_u_tile;
    for (int64_t part = first; part < last; ++part) {
      const int64_t plane_index = part / pieces, example = plane_index / channels, channel = plane_index % channels;
      const int64_t begin = part % pieces * kChunk, n = std::min(kChunk, r.plane - begin);
      const int64_t i = channel * r.plane + begin, at = example * r.stride + r.moved + i;
      const int64_t shift = example * 2 * r.length + i, u = shift + r.length;
      if (r.channel_mask) {
        const int64_t kept = example * r.stride + r.kept + i;
        std::copy(grad_y.at(kept), grad_y.at(kept + n), grad_x.at(kept));
      }
      PerPlane<C> plane{splat(scale[channel]), splat(grad_log_det[example]), mask.from<C>(begin)};
      alignas(Vec<C>) C grads[kTile];
      LaneSum<C> sum;
      for (int64_t j = 0; j < n; j += kTile) {
        const int64_t length = std::min(n - j, kTile);
        transform_backward<inverse, board, T, R>(
            grad_x.place(at + j, grad_x_tile), grad_raw.place(shift + j, grad_shift_tile),
            grad_raw.place(u + j, grad_u_tile), grads, grad_y.read(at + j, length, grad_y_tile),
            x.read(at + j, length, x_tile), inverse ? raw.read(shift + j, length, shift_tile) : nullptr,
            raw.read(u + j, length, u_tile), length, plane);
        grad_x.write(at + j, length, grad_x_tile);
        grad_raw.write(shift + j, length, grad_shift_tile);
        grad_raw.write(u + j, length, grad_u_tile);
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

template <typename T, typename R>
void backward_tiles(const Target<T>& grad_x, const Target<R>& grad_raw, Wide<T>* grad_scale, const Source<T>& grad_y,
                    const Wide<T>* grad_log_det, const Source<T>& x, const Source<R>& raw, const Wide<T>* scale,
                    const Coupling& c, const CouplingRows& r, bool inverse, bool board, const Checkerboard& mask,
                    int threads) {
  using C = Wide<T>;
  const auto run = with_bools(
      inverse, board, [](auto invert, auto keep) { return &transform_backward<invert(), keep(), T, R, PerEntry<C>>; });
  constexpr int64_t kPad = kLanes<C>;
  const Tiles tiles(r);
  const RowPattern<C> pattern(scale, board, mask, r, tiles);
  const int64_t blocks = (tiles.groups + kBlock - 1) / kBlock;
  std::vector<double> parts(static_cast<size_t>(blocks * r.length));
  parallel_for(blocks * tiles.pieces, 1, threads, [&](int64_t first, int64_t last) {
    TileBuffer<T> grad_y_tile, x_tile, grad_x_tile;
    TileBuffer<R> shift_tile, u_tile, grad_shift_tile, grad_u_tile;
    C grads[kTile + kPad] = {}, collected[kTile + kPad] = {};
    for (int64_t part = first; part < last; ++part) {
      const int64_t block = part / tiles.pieces, piece = part % tiles.pieces;
      double totals[kTile + kPad] = {};
      for (int64_t group = block * kBlock; group < std::min((block + 1) * kBlock, tiles.groups); ++group) {
        const SelectedRows selected(mask, r, tiles, group, piece);
        copy_kept(grad_x, grad_y, r, selected);
        for (int64_t i = 0; i < selected.kept_count; ++i) {
          const int64_t row = selected.kept[i] * 2 * r.length + selected.column;
          std::fill(grad_raw.at(row), grad_raw.at(row + selected.columns), 0);
          std::fill(grad_raw.at(row + r.length), grad_raw.at(row + r.length + selected.columns), 0);
        }
        const int64_t n = selected.entries() / selected.examples;
        for (int64_t k = 0; k < selected.examples; ++k) {
          std::fill_n(grads + k * n, n, grad_log_det[selected.first_example + k]);
        }
        PerEntry<C> entries{pattern.scales.data() + selected.column, grads, pattern.keeps.data()};
        if (board) entries.keeps += selected.column;
        run(grad_x.place_rows(r.moved, r.stride, selected, grad_x_tile),
            grad_raw.place_rows(0, 2 * r.length, selected, grad_shift_tile),
            grad_raw.place_rows(r.length, 2 * r.length, selected, grad_u_tile), collected,
            grad_y.gather(r.moved, r.stride, selected, grad_y_tile), x.gather(r.moved, r.stride, selected, x_tile),
            inverse ? raw.gather(0, 2 * r.length, selected, shift_tile) : nullptr,
            raw.gather(r.length, 2 * r.length, selected, u_tile), selected.entries(), entries);
        grad_x.scatter(r.moved, r.stride, selected, grad_x_tile);
        grad_raw.scatter(0, 2 * r.length, selected, grad_shift_tile);
        grad_raw.scatter(r.length, 2 * r.length, selected, grad_u_tile);
        for (int64_t j = 0; j < selected.columns; j += kPad) {
          // Four rows are added in C, and their sums in double.
          const C* from = collected + j;
          for (int64_t row = 0; row < selected.count; row += 4) {
            Vec<C> some = load(from);
            from += selected.columns;
            for (int64_t k = row + 1; k < std::min(row + 4, selected.count); ++k) {
              some += load(from);
              from += selected.columns;
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

// Calls body(T{}, R{}) with the types as which x and raw are read.
template <typename Body>
void with_dtypes(const CouplingDTypes& dtypes, const Body& body) {
  if (dtypes.x == DType::kFloat64) return body(double{}, double{});
  if (dtypes.x == DType::kBFloat16) return body(BFloat16{}, BFloat16{});
  if (dtypes.raw == DType::kBFloat16) return body(float{}, BFloat16{});
  body(float{}, float{});
}

// The board of a checkerboard. Where the channels come last a site is one row, and its mask one byte.
template <typename C>
Checkerboard board_of(const Coupling& c) {
  if (c.mask != Mask::kCheckerboard) return {};
  const Sites<int64_t> sites(Board{1, c.height, c.width, 1}, c.parity);
  return {sites, c.channels_last ? 1 : static_cast<int64_t>(sizeof(C))};
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
  const CouplingRows rows(c);
  if (rows.count * rows.length == 0) {
    for (int64_t example = 0; example < c.batch; ++example) finish(example, 0);
    return;
  }
  with_dtypes(dtypes, [&]<typename T, typename R>(T, R) {
    using C = Wide<T>;
    const bool board = c.mask == Mask::kCheckerboard && !c.channels_last;
    const auto run = [&](const auto& function, auto... mode) {
      function({y, dtypes.x}, {x, dtypes.x}, {raw, dtypes.raw}, static_cast<const C*>(scale), c, rows, mode...,
               board_of<C>(c), threads, finish);
    };
    if (!rows.by_planes<C>()) return run(forward_tiles<T, R, decltype(finish)>, inverse, board);
    with_bools(inverse, board,
               [&](auto invert, auto keep) { run(forward_planes<invert(), keep(), T, R, decltype(finish)>); });
  });
}

void affine_coupling_backward(void* grad_x, void* grad_raw, void* grad_scale, const void* grad_y,
                              const void* grad_log_det, const void* x, const void* raw, const void* scale,
                              const Coupling& c, bool inverse, CouplingDTypes dtypes, int threads) {
  const CouplingRows rows(c);
  with_dtypes(dtypes, [&]<typename T, typename R>(T, R) {
    using C = Wide<T>;
    if (rows.count * rows.length == 0) {
      std::fill_n(static_cast<C*>(grad_scale), c.transformed(), C{});
      return;
    }
    const bool board = c.mask == Mask::kCheckerboard && !c.channels_last;
    const auto run = [&](const auto& function, auto... mode) {
      function({grad_x, dtypes.x}, {grad_raw, dtypes.raw}, static_cast<C*>(grad_scale), {grad_y, dtypes.x},
               static_cast<const C*>(grad_log_det), {x, dtypes.x}, {raw, dtypes.raw}, static_cast<const C*>(scale), c,
               rows, mode..., board_of<C>(c), threads);
    };
    if (!rows.by_planes<C>()) return run(backward_tiles<T, R>, inverse, board);
    with_bools(inverse, board, [&](auto invert, auto keep) { run(backward_planes<invert(), keep(), T, R>); });
  });
}

}  // namespace pnf::cpu::PNF_ISA
