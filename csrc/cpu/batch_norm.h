#pragma once

#include "cpu/isa.h"
#include "cpu/shape.h"
#include "dtype.h"

namespace pnf::cpu {

// y = (x - mean) / sqrt(var + eps), out = log_det - sites / 2 * sum(log(var + eps)); statistics are Wide<T>[channels].
// With `statistics`, x must not be empty, and its mean and var are written; otherwise mean and var are read.
PNF_KERNEL(batch_norm,
           (void* y, void* out, void* mean, void* var, const void* x, const void* log_det, const Channels& shape,
            bool statistics, double eps, DType dtype, DType log_det_dtype, int threads))

// The gradient of x; with `statistics` mean and var are those of x and gradients flow through them.
PNF_KERNEL(batch_norm_backward,
           (void* grad_x, const void* grad_y, const void* grad_log_det, const void* x, const void* mean,
            const void* var, const Channels& shape, bool statistics, double eps, DType dtype, int threads))

}  // namespace pnf::cpu
