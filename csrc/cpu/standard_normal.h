#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

// out[row] = -sum(z^2) / 2 - length log(2 pi) / 2; out is Wide<T>[rows].
PNF_KERNEL(standard_normal, (void* out, const void* z, int64_t rows, int64_t length, DType dtype, int threads))

// grad_z = -grad[row] z; grad is Wide<T>[rows].
PNF_KERNEL(standard_normal_backward,
           (void* grad_z, const void* grad, const void* z, int64_t rows, int64_t length, DType dtype, int threads))

}  // namespace pnf::cpu
