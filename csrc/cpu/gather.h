// The rows of a coupling's tensors, and their entries by tiles: without gaps, and in the dtype of the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/affine_coupling.h"
#include "cpu/checkerboard.h"
#include "cpu/short_copy.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

// Entries that are worked on together, so that they and their results fit a cache.
inline constexpr int64_t kTile = 512;

// Memory as rows whose transformed entries are contiguous: examples, or pixels if the channels come last. A row of raw
// has the shifts of these entries and then their u.
struct CouplingRows {
  int64_t count, per_example, length;
  int64_t plane;                // entries of a row that share a channel
  int64_t stride, moved, kept;  // of x: from row to row, and where in it the halves of a channel mask begin
  bool channel_mask, skipped;   // skipped: a checkerboard keeps or transforms whole rows

  explicit CouplingRows(const Coupling& c)
      : count(c.batch * (c.channels_last ? c.sites() : 1)),
        per_example(c.channels_last ? c.sites() : 1),
        length(c.transformed() * (c.channels_last ? 1 : c.sites())),
        plane(c.channels_last ? 1 : c.sites()),
        stride(c.channels * (c.channels_last ? 1 : c.sites())),
        moved(c.mask == Mask::kChannel && c.parity == 0 ? length : 0),
        kept(c.mask == Mask::kChannel && c.parity == 1 ? length : 0),
        channel_mask(c.mask == Mask::kChannel),
        skipped(c.mask == Mask::kCheckerboard && c.channels_last) {}

  // Whether a plane is worked on at a time. Short ones that do not fill vectors are better mixed.
  template <typename C>
  bool by_planes() const {
    return plane > 1 && (plane % kLanes<C> == 0 || length > 8 * kTile);
  }
};

// Rows cut into tiles: several rows of one example or of whole examples, or pieces of a long row.
struct Tiles {
  int64_t rows, groups, groups_per_example, pieces;
  int64_t examples;  // of a group that has several, otherwise 0

  explicit Tiles(const CouplingRows& r) {
    const int64_t most = std::max<int64_t>(kTile / r.length, 1), batch = r.count / r.per_example;
    examples = r.per_example < most ? most / r.per_example : 0;
    rows = examples ? examples * r.per_example : most;
    groups_per_example = examples ? 1 : (r.per_example + most - 1) / most;
    groups = examples ? (batch + examples - 1) / examples : batch * groups_per_example;
    pieces = (r.length + kTile - 1) / kTile;
  }
};

// The transformed and the kept rows of a tile.
struct SelectedRows {
  int64_t rows[kTile], count = 0, kept[kTile], kept_count = 0;
  int64_t first_example, examples, column, columns;

  SelectedRows(const Checkerboard& mask, const CouplingRows& r, const Tiles& tiles, int64_t group, int64_t piece)
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
    while (row < end) {
      const int64_t site = row % r.per_example;
      mask.each(site, std::min(site + end - row, r.per_example), [&](int64_t first, int64_t last, const char* keep) {
        for (int64_t i = 0; i < last - first; ++i) (keep[i] ? kept[kept_count++] : rows[count++]) = row++;
      });
    }
  }

  int64_t entries() const { return count * columns; }
  bool in_place(int64_t stride) const {
    return count <= 1 || (stride == columns && rows[count - 1] - rows[0] == count - 1);
  }
};

// Copies the selected rows of `bytes` bytes, a stride apart, to `out` without gaps.
[[gnu::noinline]] inline void pack(char* out, const char* x, int64_t stride, int64_t bytes, const SelectedRows& s) {
  with_copy<char>(bytes, [&](auto copy) {
    for (int64_t i = 0; i < s.count; ++i) copy(out + i * bytes, x + s.rows[i] * stride);
  });
}

[[gnu::noinline]] inline void unpack(char* out, const char* x, int64_t stride, int64_t bytes, const SelectedRows& s) {
  with_copy<char>(bytes, [&](auto copy) {
    for (int64_t i = 0; i < s.count; ++i) copy(out + s.rows[i] * stride, x + i * bytes);
  });
}

// float16 is widened and narrowed by tiles, so that all other code is compiled for the other dtypes alone.
[[gnu::noinline]] inline void widen_tile(float* out, const char* x, int64_t n) {
  const auto* from = reinterpret_cast<const Float16*>(x);
  for_vectors<float>(0, n, [&](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(from + i)); });
}

[[gnu::noinline]] inline void narrow_tile(char* out, const float* x, int64_t n) {
  auto* to = reinterpret_cast<Float16*>(out);
  for_vectors<float>(0, n, [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.load(x + i)); });
}

// Memory for the entries of a tile.
template <typename T>
struct TileBuffer {
  alignas(64) T wide[kTile];
  alignas(64) char packed[kTile * sizeof(T)];
};

// A tensor whose entries are read as T, where they are or in a buffer: float16 as float.
template <typename T>
class Source {
 public:
  Source(const void* data, DType dtype) : data_(static_cast<const char*>(data)), size_(size_of(dtype)) {}

  const char* at(int64_t i) const { return data_ + i * size_; }

  // The n entries from the i-th on.
  const T* read(int64_t i, int64_t n, TileBuffer<T>& buffer) const { return read(at(i), n, buffer); }

  // Those of selected rows, a stride apart; the first row begins with the i-th entry.
  const T* gather(int64_t i, int64_t stride, const SelectedRows& selected, TileBuffer<T>& buffer) const {
    const char* from = at(i + selected.column);
    if (selected.in_place(stride)) {
      if (selected.count) from += selected.rows[0] * stride * size_;
    } else {
      pack(buffer.packed, from, stride * size_, selected.columns * size_, selected);
      from = buffer.packed;
    }
    return read(from, selected.entries(), buffer);
  }

 private:
  const T* read(const char* from, int64_t n, TileBuffer<T>& buffer) const {
    if constexpr (std::is_same_v<T, float>) {
      if (size_ == sizeof(Float16)) {
        widen_tile(buffer.wide, from, n);
        return buffer.wide;
      }
    }
    return reinterpret_cast<const T*>(from);
  }

  const char* data_;
  int64_t size_;
};

// The same for writes: `place` and `place_rows` return where to write, and `write` and `scatter` finish it.
template <typename T>
class Target {
 public:
  Target(void* data, DType dtype) : data_(static_cast<char*>(data)), size_(size_of(dtype)) {}

  int64_t size() const { return size_; }
  char* at(int64_t i) const { return data_ + i * size_; }

  T* place(int64_t i, TileBuffer<T>& buffer) const { return narrowed() ? buffer.wide : reinterpret_cast<T*>(at(i)); }

  void write(int64_t i, int64_t n, const TileBuffer<T>& buffer) const {
    if (narrowed()) narrow_to(at(i), n, buffer);
  }

  T* place_rows(int64_t i, int64_t stride, const SelectedRows& selected, TileBuffer<T>& buffer) const {
    if (narrowed()) return buffer.wide;
    return reinterpret_cast<T*>(selected.in_place(stride) ? first_of(i, stride, selected) : buffer.packed);
  }

  void scatter(int64_t i, int64_t stride, const SelectedRows& selected, TileBuffer<T>& buffer) const {
    const bool in_place = selected.in_place(stride);
    if (narrowed()) {
      narrow_to(in_place ? first_of(i, stride, selected) : buffer.packed, selected.entries(), buffer);
    }
    if (in_place) return;
    unpack(at(i + selected.column), buffer.packed, stride * size_, selected.columns * size_, selected);
  }

 private:
  bool narrowed() const { return std::is_same_v<T, float> && size_ == sizeof(Float16); }

  char* first_of(int64_t i, int64_t stride, const SelectedRows& selected) const {
    return at(i + selected.column + (selected.count ? selected.rows[0] * stride : 0));
  }

  void narrow_to(char* out, int64_t n, const TileBuffer<T>& buffer) const {
    if constexpr (std::is_same_v<T, float>) narrow_tile(out, buffer.wide, n);
  }

  char* data_;
  int64_t size_;
};

// out = x where a mask over channels or over whole rows keeps entries of a tile.
template <typename T>
[[gnu::noinline]] void copy_kept(const Target<T>& out, const Source<T>& x, const CouplingRows& r,
                                 const SelectedRows& selected) {
  const int64_t* rows = r.channel_mask ? selected.rows : selected.kept;
  const int64_t count = r.channel_mask ? selected.count : selected.kept_count, first = r.kept + selected.column;
  with_copy<char>(selected.columns * out.size(), [&](auto copy) {
    for (int64_t i = 0; i < count; ++i) copy(out.at(rows[i] * r.stride + first), x.at(rows[i] * r.stride + first));
  });
}

}  // namespace pnf::cpu::PNF_ISA
