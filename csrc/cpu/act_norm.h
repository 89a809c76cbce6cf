#pragma once

#include "cpu/isa.h"
#include "cpu/shape.h"
#include "dtype.h"

namespace pnf::cpu {

// y = (x + shift) exp(log_scale) and out = log_det + sites sum(log_scale); or the inverse. Parameters are
// Wide<T>[channels], log_det is float32 or float64.
PNF_KERNEL(act_norm, (void* y, void* out, const void* x, const void* shift, const void* log_scale, const void* log_det,
                      const Channels& shape, bool inverse, DType dtype, DType log_det_dtype, int threads))

// grad_shift, grad_log_scale and grad_log_det are Wide<T>.
PNF_KERNEL(act_norm_backward, (void* grad_x, void* grad_shift, void* grad_log_scale, const void* grad_y,
                               const void* grad_log_det, const void* x, const void* shift, const void* log_scale,
                               const Channels& shape, bool inverse, DType dtype, int threads))

}  // namespace pnf::cpu
