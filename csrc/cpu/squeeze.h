#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace pnf::cpu {

// y is [batch, 4 channels, height, width] and x [batch, channels, 2 height, 2 width].
struct Squeezed {
  int64_t batch, channels, height, width;
  bool factor;  // the order of the sub-pixels: factor, not plain
  bool channels_last;

  int64_t numel() const { return 4 * batch * channels * height * width; }
};

// `size` is the bytes of an entry: 1, 2, 4, 8 or 16. Pointers are to contiguous memory, aligned to at most 8 bytes.
PNF_KERNEL(squeeze, (void* y, const void* x, const Squeezed& shape, int size, int threads))

PNF_KERNEL(squeeze_inverse, (void* x, const void* y, const Squeezed& shape, int size, int threads))

}  // namespace pnf::cpu
