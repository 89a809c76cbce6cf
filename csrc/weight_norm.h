// One layer of a weight normalisation, for the kernels of both devices.
#pragma once

#include <cstdint>

namespace pnf {

// weight = magnitude direction / ||direction|| for each row; the magnitude is 1 where it is null.
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

// Lower bound on the squared norm of a direction.
inline constexpr double kLeastSquare = 1e-12;

}  // namespace pnf
