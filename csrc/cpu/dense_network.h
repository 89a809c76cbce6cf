#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"

namespace pnf::cpu {

// A linear layer; the weight is [outputs][inputs].
struct Linear {
  const float *weight, *bias;
  int64_t inputs, outputs;
};

// Linear layers with ReLU between them. The first one takes x [batch][kept] and, behind it, the condition
// [batch][inputs - kept], which is null if x is all. What is hidden between the layers is one [batch][outputs] after
// another.
struct DenseNetwork {
  std::vector<Linear> layers;
  int64_t batch, kept;
};

// The gradients of a layer.
struct LinearGradients {
  float *weight, *bias;
};

PNF_KERNEL(dense_network,
           (float* y, float* hidden, const float* x, const float* condition, const DenseNetwork& network, int threads))

// grad_x and grad_condition may be null. The scratch memory holds the gradients of what is hidden.
PNF_KERNEL(dense_network_backward, (float* grad_x, float* grad_condition, const std::vector<LinearGradients>& grads,
                                    float* scratch, const float* grad_y, const float* hidden, const float* x,
                                    const float* condition, const DenseNetwork& network, int threads))

}  // namespace pnf::cpu
