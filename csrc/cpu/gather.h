// The rows of a coupling's tensors, and copies of those of a tile without gaps.
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

// The selected entries of a tensor whose rows are `stride` apart, without gaps: copied to `buffer` if they have gaps.
template <typename T>
inline const T* gather(T* buffer, const T* from, int64_t stride, const SelectedRows& selected) {
  from += selected.column;
  if (selected.in_place(stride)) return selected.count ? from + selected.rows[0] * stride : from;
  with_copy<T>(selected.columns, [&](auto copy) {
    for (int64_t i = 0; i < selected.count; ++i) copy(buffer + i * selected.columns, from + selected.rows[i] * stride);
  });
  return buffer;
}

// Where to write them without gaps: in `buffer`, for `scatter`, if they have gaps.
template <typename T>
inline T* place_for(T* buffer, T* to, int64_t stride, const SelectedRows& selected) {
  if (!selected.in_place(stride)) return buffer;
  return selected.count ? to + selected.column + selected.rows[0] * stride : to;
}

template <typename T>
inline void scatter(T* to, const T* from, int64_t stride, const SelectedRows& selected) {
  if (selected.in_place(stride)) return;
  to += selected.column;
  with_copy<T>(selected.columns, [&](auto copy) {
    for (int64_t i = 0; i < selected.count; ++i) copy(to + selected.rows[i] * stride, from + i * selected.columns);
  });
}

// out = x where a mask over channels or over whole rows keeps entries of a tile.
template <typename T>
inline void copy_kept(T* out, const T* x, const CouplingRows& r, const SelectedRows& selected) {
  const int64_t* rows = r.channel_mask ? selected.rows : selected.kept;
  const int64_t count = r.channel_mask ? selected.count : selected.kept_count, first = r.kept + selected.column;
  with_copy<T>(selected.columns, [&](auto copy) {
    for (int64_t i = 0; i < count; ++i) copy(out + rows[i] * r.stride + first, x + rows[i] * r.stride + first);
  });
}

}  // namespace pnf::cpu::PNF_ISA
