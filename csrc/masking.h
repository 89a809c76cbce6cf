// Index arithmetic of the masking ops, shared by the CPU and the CUDA kernels.
//
// Under every mask and memory layout, contiguous memory is a board [outer, sites, inner]:
//
//   checkerboard, contiguous     [B C, H W, 1]
//   checkerboard, channels last  [B, H W, C]
//   channel, contiguous          [B, 2, C/2 H W]      a board of one row and two sites
//   channel, channels last       [B H W, 2, C/2]
//
// The kernels move bits: they know the size of an entry, not its dtype.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PNF_HOST_DEVICE __host__ __device__
#else
#define PNF_HOST_DEVICE
#endif

namespace pnf {

struct Board {
  int64_t outer, height, width, inner;

  int64_t numel() const { return outer * height * width * inner; }
};

// The place of a packed entry: its half, and the offset in that.
template <typename Index>
struct Packed {
  bool kept;
  Index offset;
};

// Where the width is odd, sites alternate across the end of a row too, so the board is one long row.
template <typename Index>
struct Sites {
  Index count;  // sites of one plane
  Index width;  // sites of one row; even, or all of them
  Index inner;
  int parity;  // of the kept sites

  Sites(const Board& board, int kept_parity)
      : count(static_cast<Index>(board.height * board.width)),
        width(board.width % 2 ? count : static_cast<Index>(board.width)),
        inner(static_cast<Index>(board.inner)),
        parity(kept_parity) {}

  PNF_HOST_DEVICE bool kept(Index site) const { return static_cast<int>((site + site / width) & 1) == parity; }

  PNF_HOST_DEVICE Index half(bool keep) const {
    return (count + 1 - static_cast<Index>(keep ? parity : 1 - parity)) / 2;
  }

  PNF_HOST_DEVICE Index site(Index flat) const { return flat / inner % count; }

  // Each pair of sites (2 k, 2 k + 1) has one kept site, the k-th, whatever the row.
  PNF_HOST_DEVICE Packed<Index> packed(Index flat) const {
    const Index run = flat / inner;
    const Index plane = run / count;
    const Index at = run - plane * count;
    const bool keep = kept(at);
    return {keep, (plane * half(keep) + at / 2) * inner + (flat - run * inner)};
  }
};

// Rows of a conditioner's input: kept entries of x, then the condition. Under a channel mask half of a row of x is
// kept. Under a checkerboard all of it is, with zeros at the sites that the board does not keep.
struct ConcatLayout {
  int64_t rows, x, kept, condition;

  int64_t row() const { return kept + condition; }
  int64_t start(int parity) const { return kept < x ? parity * kept : 0; }
};

}  // namespace pnf
