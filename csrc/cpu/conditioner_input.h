#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// x [batch, channels, height, width] and h [batch, 2 kept + board + condition, height, width], or both with their
// channels last. Of x the channels [start, start + kept) are read, under a board those sites alone whose parity it is.
struct ConditionerInput {
  int64_t batch, channels, start, kept, condition, height, width;
  bool board;
  int parity;
  bool last;

  int64_t sites() const { return height * width; }
  int64_t columns() const { return 2 * kept + board + condition; }
};

// How v = gain * ((x - mean) / sqrt(var + eps) + offset) is normalised: not at all, by given statistics, or by those
// of x, which are then written (by the forward) and have gradients (in the backward). The parameters are
// Wide<T>[kept]; they are not read or written where nothing is normalised.
enum class Norm : int { kNone = 0, kGiven = 1, kBatch = 2 };

PNF_KERNEL(conditioner_input,
           (void* h, void* mean, void* var, const void* x, const void* condition, const void* offset,
            const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype, int threads))

// The gradients of x and offset; that of the condition is a part of grad_h.
PNF_KERNEL(conditioner_input_backward,
           (void* grad_x, void* grad_offset, const void* grad_h, const void* x, const void* offset, const void* mean,
            const void* var, const ConditionerInput& shape, Norm norm, double gain, double eps, DType dtype,
            int threads))

}  // namespace pnf::cpu
