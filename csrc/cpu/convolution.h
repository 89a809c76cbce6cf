#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace pnf::cpu {

// A 3x3 convolution with zero padding that keeps the size: x is [batch, height, width, inputs] and y has `outputs`
// channels, both multiples of 16. The taps of weight[output][input] are 9 entries, `tap` apart.
struct Convolution {
  int64_t batch, height, width, inputs, outputs;
  int64_t output, input, tap;  // strides of the weight
};

// y = x * weight + bias.
PNF_KERNEL(convolution, (float* y, const float* x, const float* weight, const float* bias, const Convolution& shape,
                         int threads))

PNF_KERNEL(convolution_backward_input,
           (float* grad_x, const float* grad_y, const float* weight, const Convolution& shape, int threads))

// grad_weight has the strides of the weight.
PNF_KERNEL(convolution_backward_weight, (float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                         const Convolution& shape, int threads))

}  // namespace pnf::cpu
