#include "cpu/masking.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/move.h"
#include "cpu/parallel.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;
constexpr int64_t kTile = 1 << 13;  // entries; even, so that a tile starts at an even site

// A part of one row: sites [begin, end) of a plane, entries [first, last) of each. `begin` is even, and `kept` tells
// whether it is kept.
struct Tile {
  int64_t plane, begin, end, first, last;
  bool kept;
};

template <typename T, typename Body>
void for_tiles(const Board& board, const Sites<int64_t>& sites, int threads, const Body& body) {
  const int64_t rows = sites.count / sites.width;
  const bool kept = sites.kept(0);  // and so in every other row: a division for each tile would cost more than its copy
  const int64_t length = board.inner == 1 ? kTile : std::max<int64_t>(kTile / board.inner & ~int64_t{1}, 2);
  const int64_t across = (sites.width + length - 1) / length;
  const int64_t deep = (board.inner + kTile - 1) / kTile;
  const int64_t entries = std::min(length, sites.width) * std::min(kTile, board.inner);
  const int64_t grain = kGrainBytes / static_cast<int64_t>(sizeof(T)) / entries;
  parallel_for(board.outer * rows * across * deep, grain, threads, [&](int64_t from, int64_t to) {
    int64_t part = from % deep, column = from / deep % across, row = from / deep / across % rows;
    int64_t plane = from / deep / across / rows;
    for (int64_t i = from; i < to; ++i) {
      const int64_t begin = row * sites.width + column * length;
      body(Tile{plane, begin, std::min(begin + length, (row + 1) * sites.width), part * kTile,
                std::min((part + 1) * kTile, board.inner), kept == (row % 2 == 0)});
      if (++part < deep) continue;
      part = 0;
      if (++column < across) continue;
      column = 0;
      if (++row < rows) continue;
      row = 0;
      ++plane;
    }
  });
}

// out = x where it is kept and 0 elsewhere, on one tile whose entries are contiguous.
template <typename T>
void apply_line(T* out, const T* x, int64_t n, bool first_kept) {
  const T even = first_kept ? static_cast<T>(~T{0}) : T{0};
  const T odd = static_cast<T>(~even);
  int64_t i = 0;
  for (; i + 1 < n; i += 2) {
    out[i] = static_cast<T>(x[i] & even);
    out[i + 1] = static_cast<T>(x[i + 1] & odd);
  }
  if (i < n) out[i] = static_cast<T>(x[i] & even);
}

// Where a site of a plane lies in memory: the rows of a conditioner's input leave room for the condition.
struct Place {
  int64_t planes, row, plane, site;

  int64_t at(int64_t p, int64_t s) const {
    return (planes == 1 ? p * row : p / planes * row + p % planes * plane) + s * site;
  }
};

Place packed_place(const Board& board) {
  return {1, board.height * board.width * board.inner, 0, board.inner};
}

Place beside_place(const Board& board, const Beside& beside) {
  const int64_t plane = board.height * board.width * board.inner;
  if (plane <= beside.x) return {plane ? beside.x / plane : 1, beside.row(), plane, board.inner};
  return {1, board.height * board.width * beside.row(), 0, beside.row()};
}

template <typename T>
void apply(T* out, const Place& to, const T* x, const Place& from, const Board& board, int parity, int threads) {
  const Sites<int64_t> sites(board, parity);
  for_tiles<T>(board, sites, threads, [&](const Tile& tile) {
    bool kept = tile.kept;
    T* o = out + to.at(tile.plane, tile.begin) + tile.first;
    const T* in = x + from.at(tile.plane, tile.begin) + tile.first;
    if (to.site == 1 && from.site == 1) {
      apply_line(o, in, tile.end - tile.begin, kept);
      return;
    }
    for (int64_t site = tile.begin; site < tile.end; ++site, kept = !kept, o += to.site, in += from.site) {
      if (kept) {
        copy_run(o, in, tile.last - tile.first);
      } else {
        zero_run(o, tile.last - tile.first);
      }
    }
  });
}

// The pixels of a channel mask whose channels come last are tiny planes of two runs: no tile pays for itself.
template <typename T, typename Body>
bool for_small_planes(const Board& board, const Sites<int64_t>& sites, int threads, const Body& body) {
  if (sites.count != 2 || board.inner > kTile) return false;
  const int64_t grain = kGrainBytes / static_cast<int64_t>(sizeof(T)) / (2 * board.inner);
  parallel_for(board.outer, grain, threads, [&](int64_t from, int64_t to) {
    for (int64_t at = from * board.inner; at < to * board.inner; at += board.inner) body(at);
  });
  return true;
}

template <typename T>
void pack(T* kept, T* rest, const T* x, const Board& board, int parity, int threads) {
  const Sites<int64_t> sites(board, parity);
  T* const halves[] = {sites.kept(0) ? kept : rest, sites.kept(1) ? kept : rest};
  const bool done = for_small_planes<T>(board, sites, threads, [&](int64_t at) {
    copy_run(halves[0] + at, x + 2 * at, board.inner);
    copy_run(halves[1] + at, x + 2 * at + board.inner, board.inner);
  });
  if (done) return;
  for_tiles<T>(board, sites, threads, [&](const Tile& tile) {
    const bool first = tile.kept;
    const int64_t pair = tile.begin / 2;
    T* even = (first ? kept : rest) + (tile.plane * sites.half(first) + pair) * board.inner + tile.first;
    T* odd = (first ? rest : kept) + (tile.plane * sites.half(!first) + pair) * board.inner + tile.first;
    const T* in = x + (tile.plane * sites.count + tile.begin) * board.inner + tile.first;
    if (board.inner == 1) {
      split_line(even, odd, in, tile.end - tile.begin);
      return;
    }
    for (int64_t site = tile.begin; site < tile.end; ++site, in += board.inner) {
      copy_run(even, in, tile.last - tile.first);
      even += board.inner;
      std::swap(even, odd);
    }
  });
}

template <typename T>
void unpack(T* out, const T* kept, const T* rest, const Board& board, int parity, int threads) {
  const Sites<int64_t> sites(board, parity);
  const T* const halves[] = {sites.kept(0) ? kept : rest, sites.kept(1) ? kept : rest};
  const bool done = for_small_planes<T>(board, sites, threads, [&](int64_t at) {
    copy_run(out + 2 * at, halves[0] + at, board.inner);
    copy_run(out + 2 * at + board.inner, halves[1] + at, board.inner);
  });
  if (done) return;
  for_tiles<T>(board, sites, threads, [&](const Tile& tile) {
    const bool first = tile.kept;
    const int64_t pair = tile.begin / 2;
    const T* even = (first ? kept : rest) + (tile.plane * sites.half(first) + pair) * board.inner + tile.first;
    const T* odd = (first ? rest : kept) + (tile.plane * sites.half(!first) + pair) * board.inner + tile.first;
    T* o = out + (tile.plane * sites.count + tile.begin) * board.inner + tile.first;
    if (board.inner == 1) {
      merge_line(o, even, odd, tile.end - tile.begin);
      return;
    }
    for (int64_t site = tile.begin; site < tile.end; ++site, o += board.inner) {
      copy_run(o, even, tile.last - tile.first);
      even += board.inner;
      std::swap(even, odd);
    }
  });
}

// Copies [rows, n] between pitched rows; without an x it writes zeros.
template <typename T>
void copy_rows(T* out, int64_t out_pitch, const T* x, int64_t x_pitch, int64_t rows, int64_t n, int threads) {
  if (rows == 0 || n == 0) return;
  const int64_t deep = (n + kTile - 1) / kTile;
  const int64_t grain = kGrainBytes / static_cast<int64_t>(sizeof(T)) / std::min(n, kTile);
  parallel_for(rows * deep, grain, threads, [&](int64_t from, int64_t to) {
    int64_t row = from / deep, part = from % deep;
    for (int64_t i = from; i < to; ++i) {
      const int64_t first = part * kTile, length = std::min(kTile, n - first);
      if (x) {
        copy_run(out + row * out_pitch + first, x + row * x_pitch + first, length);
      } else {
        zero_run(out + row * out_pitch + first, length);
      }
      if (++part == deep) part = 0, ++row;
    }
  });
}

template <typename T>
void input(T* out, const T* x, const T* condition, const Beside& beside, const Board& board, int parity, int threads) {
  if (beside.kept < beside.x) {
    copy_rows(out, beside.row(), x + beside.start(parity), beside.x, beside.rows, beside.kept, threads);
  } else if (board.numel()) {
    apply(out, beside_place(board, beside), x, packed_place(board), board, parity, threads);
  }
  copy_rows(out + beside.kept, beside.row(), condition, beside.condition, beside.rows, beside.condition, threads);
}

template <typename T>
void input_backward(T* x, T* condition, const T* grad, const Beside& beside, const Board& board, int parity,
                    int threads) {
  if (beside.kept < beside.x) {
    const T* nothing = nullptr;
    copy_rows(x + beside.start(parity), beside.x, grad, beside.row(), beside.rows, beside.kept, threads);
    copy_rows(x + beside.start(1 - parity), beside.x, nothing, 0, beside.rows, beside.kept, threads);
  } else if (board.numel()) {
    apply(x, packed_place(board), grad, beside_place(board, beside), board, parity, threads);
  }
  copy_rows(condition, beside.condition, grad + beside.kept, beside.row(), beside.rows, beside.condition, threads);
}

// Entries of 16 bytes are two of 8.
template <typename Body>
void with_words(Board board, Beside beside, int size, const Body& body) {
  if (size == 16) {
    board.inner *= 2;
    beside.x *= 2;
    beside.kept *= 2;
    beside.condition *= 2;
    size = 8;
  }
  switch (size) {
    case 1: return body(uint8_t{}, board, beside);
    case 2: return body(uint16_t{}, board, beside);
    case 4: return body(uint32_t{}, board, beside);
    case 8: return body(uint64_t{}, board, beside);
    default: throw std::invalid_argument("masking: entries of " + std::to_string(size) + " bytes are not supported");
  }
}

}  // namespace

void mask_apply(void* out, const void* x, const Board& board, int size, int parity, int threads) {
  if (board.numel() == 0) return;
  with_words(board, {}, size, [&]<typename T>(T, const Board& b, const Beside&) {
    apply(static_cast<T*>(out), packed_place(b), static_cast<const T*>(x), packed_place(b), b, parity, threads);
  });
}

void mask_pack(void* kept, void* rest, const void* x, const Board& board, int size, int parity, int threads) {
  if (board.numel() == 0) return;
  with_words(board, {}, size, [&]<typename T>(T, const Board& b, const Beside&) {
    pack(static_cast<T*>(kept), static_cast<T*>(rest), static_cast<const T*>(x), b, parity, threads);
  });
}

void mask_unpack(void* out, const void* kept, const void* rest, const Board& board, int size, int parity, int threads) {
  if (board.numel() == 0) return;
  with_words(board, {}, size, [&]<typename T>(T, const Board& b, const Beside&) {
    unpack(static_cast<T*>(out), static_cast<const T*>(kept), static_cast<const T*>(rest), b, parity, threads);
  });
}

void mask_input(void* out, const void* x, const void* condition, const Beside& beside, const Board& board, int size,
                int parity, int threads) {
  with_words(board, beside, size, [&]<typename T>(T, const Board& b, const Beside& s) {
    input(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(condition), s, b, parity, threads);
  });
}

void mask_input_backward(void* x, void* condition, const void* grad, const Beside& beside, const Board& board, int size,
                         int parity, int threads) {
  with_words(board, beside, size, [&]<typename T>(T, const Board& b, const Beside& s) {
    input_backward(static_cast<T*>(x), static_cast<T*>(condition), static_cast<const T*>(grad), s, b, parity, threads);
  });
}

}  // namespace pnf::cpu::PNF_ISA
