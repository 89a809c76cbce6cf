// One layer of a weight normalisation, as the kernels of both devices see it.
#pragma once

#include <cstdint>

namespace pnf {

// weight = magnitude direction / ||direction|| for each of `rows`; without a magnitude it is 1.
struct Layer {
  void* weight;
  const void *direction, *magnitude;
  int64_t rows, length;
};

struct LayerBackward {
  void *grad_direction, *grad_magnitude;
  const void *grad, *direction, *magnitude;
  int64_t rows, length;
};

// The least squared norm that a direction is taken to have.
inline constexpr double kLeastSquare = 1e-12;

}  // namespace pnf
