#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// The pairs of neighbours of `examples` images with `length` pairs each, over all of their `channels`; the two of a
// pair are `stride` apart in x. `channels_last`: the channels are the last axis in memory. s and u are T[examples,
// length], x is twice as long, gamma is Wide<T>[channels] and log_det is Wide<T>[examples].

// u = m^gamma atanh(d / m), and s and the log-determinant.
PNF_KERNEL(haar_bounded_split,
           (void* s, void* u, void* log_det, const void* x, const void* gamma, int64_t examples, int64_t channels,
            int64_t length, int64_t stride, bool channels_last, DType dtype, int threads))

PNF_KERNEL(haar_bounded_split_backward,
           (void* grad_x, void* grad_gamma, const void* grad_s, const void* grad_u, const void* grad_log_det,
            const void* x, const void* gamma, int64_t examples, int64_t channels, int64_t length, int64_t stride,
            bool channels_last, DType dtype, int threads))

// d = m tanh(u / m^gamma), and the log-determinant.
PNF_KERNEL(haar_bounded_merge,
           (void* x, void* log_det, const void* s, const void* u, const void* gamma, int64_t examples, int64_t channels,
            int64_t length, int64_t stride, bool channels_last, DType dtype, int threads))

PNF_KERNEL(haar_bounded_merge_backward,
           (void* grad_s, void* grad_u, void* grad_gamma, const void* grad_x, const void* grad_log_det, const void* s,
            const void* u, const void* gamma, int64_t examples, int64_t channels, int64_t length, int64_t stride,
            bool channels_last, DType dtype, int threads))

}  // namespace pnf::cpu
