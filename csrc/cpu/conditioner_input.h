#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// x is [batch, channels, height, width] and h [batch, 2 kept + board + condition, height, width], or both have their
// channels last. The channels [start, start + kept) of x are read; under a board, only the sites of its parity.
struct ConditionerInput {
  int64_t batch, channels, start, kept, condition, height, width;
  bool board;
  int parity;
  bool channels_last;

  int64_t sites() const { return height * width; }
  int64_t columns() const { return 2 * kept + board + condition; }
};

// The statistics in v = gain * ((x - mean) / sqrt(var + eps) + offset): none (v = gain * x), given ones, or those of x.
// The forward writes those of x, and gradients flow through them. The parameters are Wide<T>[kept]; without
// statistics they are neither read nor written.
enum class Norm : int { kNone = 0, kGiven = 1, kBatch = 2 };

PNF_KERNEL(conditioner_input,
           (void* h, void* mean, void* var, const void* x, const void* condition, const void* offset,
            const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype, int threads))

// The gradients of x and offset. The gradient of the condition is a part of grad_h.
PNF_KERNEL(conditioner_input_backward,
           (void* grad_x, void* grad_offset, const void* grad_h, const void* x, const void* offset, const void* mean,
            const void* var, const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype,
            int threads))

}  // namespace pnf::cpu
