#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"

namespace pnf::cpu {

// A convolution whose weight is magnitude direction / ||direction|| for each output; the magnitude is 1 where it is
// null. Sizes and strides are those of Convolution.
struct Filter {
  const float *direction, *magnitude, *bias;
  int64_t inputs, outputs, size, output, input, tap;
};

// A batch normalisation by given statistics.
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

// Floats of a cache line. Buffers in the scratch memory are padded to a multiple of it.
constexpr int64_t kLine = 16;

// The network of h [batch, height, width, hidden], its channels last. The scratch memory holds all filters and four
// tensors of the size of h, each rounded up to kLine.
PNF_KERNEL(residual_network, (float* y, float* scratch, const float* h, const ResidualNetwork& network, int threads))

}  // namespace pnf::cpu
