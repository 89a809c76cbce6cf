#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

enum class Mask : int { kNone = 0, kCheckerboard = 1, kChannel = 2 };

// x is [batch, channels, height, width], contiguous or with its channels last; raw is laid out likewise.
struct Coupling {
  int64_t batch, channels, height, width;
  Mask mask;
  int parity;  // of the kept sites or channels
  bool channels_last;

  int64_t sites() const { return height * width; }
  int64_t transformed() const { return mask == Mask::kChannel ? channels / 2 : channels; }
};

// raw is of the dtype of x, or bfloat16 or float16 beside a float32 x; log_det is float32 or float64.
struct CouplingDTypes {
  DType x, raw, log_det;
};

// y = x exp(s) + shift and out = log_det + sum(s), s = scale tanh(u); or the inverse. scale is Wide<T>[transformed].
PNF_KERNEL(affine_coupling, (void* y, void* out, const void* x, const void* raw, const void* scale, const void* log_det,
                             const Coupling& coupling, bool inverse, CouplingDTypes dtypes, int threads))

// grad_scale and grad_log_det are Wide<T>.
PNF_KERNEL(affine_coupling_backward, (void* grad_x, void* grad_raw, void* grad_scale, const void* grad_y,
                                      const void* grad_log_det, const void* x, const void* raw, const void* scale,
                                      const Coupling& coupling, bool inverse, CouplingDTypes dtypes, int threads))

}  // namespace pnf::cpu
