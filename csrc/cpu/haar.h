#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// Which splits a level has, first the one that is taken first when x is analysed.
enum class Order : int { kOneAxis = 0, kHeightWidth = 1, kWidthHeight = 2 };

// x is [rows, width, inner] in memory. Each level halves the width, and the rows too unless the order is kOneAxis.
struct Pyramid {
  int64_t rows, width, inner;
  int levels;
  Order order;

  int steps() const { return order == Order::kOneAxis ? levels : 2 * levels; }
};

inline constexpr int kMostSteps = 6;

// Splits x into the base and a detail for each step, which are `parts`, the base first and then the finest detail:
// s = factor (x0 + x1), d = factor (x0 - x1), of which the next step splits s. One step along one axis is haar_split.
PNF_KERNEL(haar_pyramid,
           (void* const* parts, const void* x, const Pyramid& pyramid, double factor, DType dtype, int threads))

// x0 = factor (s + d), x1 = factor (s - d), from the base on.
PNF_KERNEL(haar_pyramid_inverse,
           (void* x, void* const* parts, const Pyramid& pyramid, double factor, DType dtype, int threads))

}  // namespace pnf::cpu
