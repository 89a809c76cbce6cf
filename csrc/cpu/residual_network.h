#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"

namespace pnf::cpu {

// A convolution whose weight is magnitude direction / ||direction|| for each output; without a magnitude it is 1. The
// sizes and strides are those of Convolution.
struct Filter {
  const float *direction, *magnitude, *bias;
  int64_t inputs, outputs, size, output, input, tap;
};

// A batch normalisation by statistics that are given.
struct BatchNorm {
  const float *weight, *bias, *mean, *var;
};

// Filters: a skip, then two and a skip for each block, and the last one. Norms: two for each block and the last one, or
// none at all.
struct ResidualNetwork {
  std::vector<Filter> filters;
  std::vector<BatchNorm> norms;
  int64_t batch, height, width;
  double eps;
};

// Entries between what lies in the scratch memory: a cache line.
constexpr int64_t kLine = 16;

// The network of h [batch, height, width, hidden], its channels last. The scratch memory has room for all filters and
// four times h, each rounded up to kLine.
PNF_KERNEL(residual_network, (float* y, float* scratch, const float* h, const ResidualNetwork& network, int threads))

}  // namespace pnf::cpu
