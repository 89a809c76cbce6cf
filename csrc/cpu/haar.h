#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// The splits of a level, in the order of the analysis.
enum class Order : int { kOneAxis = 0, kHeightWidth = 1, kWidthHeight = 2 };

// x is [rows, width, inner] in memory. A level halves the width, and also the rows unless the order is kOneAxis.
struct Pyramid {
  int64_t rows, width, inner;
  int levels;
  Order order;

  int steps() const { return order == Order::kOneAxis ? levels : 2 * levels; }
};

inline constexpr int kMostSteps = 6;

// A step computes s = factor (x0 + x1) and the detail d = factor (x0 - x1); the next step splits s, and the last s is
// the base. `parts` are the base and then the details, finest first. One step along one axis is haar_split.
PNF_KERNEL(haar_pyramid,
           (void* const* parts, const void* x, const Pyramid& pyramid, double factor, DType dtype, int threads))

// x0 = factor (s + d), x1 = factor (s - d), beginning with the base.
PNF_KERNEL(haar_pyramid_inverse,
           (void* x, void* const* parts, const Pyramid& pyramid, double factor, DType dtype, int threads))

}  // namespace pnf::cpu
