#pragma once

#include "../masking.h"
#include "cpu/isa.h"

// `size` is the bytes of an entry: 1, 2, 4, 8 or 16. Pointers are to contiguous memory, aligned to `size`.
namespace pnf::cpu {

PNF_KERNEL(mask_apply, (void* out, const void* x, const Board& board, int size, int parity, int threads))

PNF_KERNEL(mask_pack, (void* kept, void* rest, const void* x, const Board& board, int size, int parity, int threads))

PNF_KERNEL(mask_unpack,
           (void* out, const void* kept, const void* rest, const Board& board, int size, int parity, int threads))

PNF_KERNEL(mask_input, (void* out, const void* x, const void* condition, const ConcatLayout& beside, const Board& board,
                        int size, int parity, int threads))

// The gradient of x. The gradient of the condition is a part of `grad`.
PNF_KERNEL(mask_input_backward, (void* x, const void* grad, const ConcatLayout& beside, const Board& board, int size,
                                 int parity, int threads))

}  // namespace pnf::cpu
