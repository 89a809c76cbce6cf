#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace pnf::cpu {

// From so many pixels per thread on, each thread transforms the weight of a 3x3 convolution for itself.
inline constexpr int64_t kOwnWeight = 256;

// A convolution with zero padding that keeps the size: x is [batch, height, width, inputs] and y has `outputs`
// channels. weight[output][input] has size x size taps, `tap` apart. The size is 1 or 3.
struct Convolution {
  int64_t batch, height, width, inputs, outputs, size;
  int64_t output, input, tap;  // strides of the weight
};

// y = add + x * weight + bias; with relu negative entries become 0. add may be null. A NaN or an infinity spreads over
// tiles of 2x4 pixels, or of 2x2 in narrow images.
PNF_KERNEL(convolution, (float* y, const float* add, const float* x, const float* weight, const float* bias,
                         const Convolution& shape, bool relu, int threads))

PNF_KERNEL(convolution_backward_input,
           (float* grad_x, const float* grad_y, const float* weight, const Convolution& shape, int threads))

// grad_weight has the strides of the weight.
PNF_KERNEL(convolution_backward_weight, (float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                         const Convolution& shape, int threads))

}  // namespace pnf::cpu
