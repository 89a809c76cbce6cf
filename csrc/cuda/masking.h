#pragma once

#include "../masking.h"

// `size` is the bytes of an entry: 1, 2, 4, 8 or 16. Pointers are to contiguous memory of the current device, aligned
// to `size`; `stream` is a cudaStream_t of that device. The result is the error of the launch, or null.
namespace pnf::cuda {

const char* mask_apply(void* out, const void* x, const Board& board, int size, int parity, std::uintptr_t stream);

const char* mask_pack(void* kept, void* rest, const void* x, const Board& board, int size, int parity,
                      std::uintptr_t stream);

const char* mask_unpack(void* out, const void* kept, const void* rest, const Board& board, int size, int parity,
                        std::uintptr_t stream);

const char* mask_input(void* out, const void* x, const void* condition, const ConcatLayout& beside, const Board& board,
                       int size, int parity, std::uintptr_t stream);

// The gradient of x; that of the condition is a part of `grad` as it is.
const char* mask_input_backward(void* x, const void* grad, const ConcatLayout& beside, const Board& board, int size,
                                int parity, std::uintptr_t stream);

}  // namespace pnf::cuda
