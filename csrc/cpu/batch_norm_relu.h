#pragma once

#include "cpu/isa.h"
#include "cpu/shape.h"
#include "dtype.h"

namespace pnf::cpu {

// y = relu((x - mean) / sqrt(var + eps) * weight + bias); parameters and statistics are Wide<T>[channels]. With
// `statistics`, x must not be empty, and its mean and var are written; otherwise mean and var are read.
PNF_KERNEL(batch_norm_relu, (void* y, void* mean, void* var, const void* x, const void* weight, const void* bias,
                             const Channels& shape, bool statistics, double eps, DType dtype, int threads))

// The gradients; with `statistics` mean and var are those of x and gradients flow through them.
PNF_KERNEL(batch_norm_relu_backward,
           (void* grad_x, void* grad_weight, void* grad_bias, const void* grad_y, const void* x, const void* weight,
            const void* bias, const void* mean, const void* var, const Channels& shape, bool statistics, double eps,
            DType dtype, int threads))

}  // namespace pnf::cpu
