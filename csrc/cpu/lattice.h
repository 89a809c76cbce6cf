#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// x and `pairs` are T[blocks, 2, run], the pixels of pairs with `levels` levels, and coarser is T[blocks, run].

// coarser = (a + b + v) / (2 levels - 1), and the pairs (a + (1 + w) / 2) / levels, (b + (1 - w) / 2) / levels.
PNF_KERNEL(lattice_split, (void* coarser, void* pairs, const void* x, int64_t blocks, int64_t run, int64_t levels,
                           DType dtype, int threads))

// The inverse. The second pixels of `pairs` follow from the others.
PNF_KERNEL(lattice_merge, (void* x, const void* coarser, const void* pairs, int64_t blocks, int64_t run, int64_t levels,
                           DType dtype, int threads))

}  // namespace pnf::cpu
