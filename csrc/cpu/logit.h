#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "dtype.h"

// Log-determinants and their gradients are Wide<T>[rows]; all else is T[rows, length].
namespace pnf::cpu {

// y = log p - log q of p = alpha + (1 - 2 alpha) x and q, the same of 1 - x, both at least 2^-24;
// log_det[row] = sum(|y| + 2 log(1 + exp(-|y|)) + log(1 - 2 alpha)).
PNF_KERNEL(logit, (void* y, void* log_det, const void* x, int64_t rows, int64_t length, double alpha, DType dtype,
                   int threads))

PNF_KERNEL(logit_backward, (void* grad_x, const void* grad_y, const void* grad_log_det, const void* x, int64_t rows,
                            int64_t length, double alpha, DType dtype, int threads))

// x = (sigmoid(y) - alpha) / (1 - 2 alpha), and the log-determinant of logit at x, negated.
PNF_KERNEL(logit_inverse, (void* x, void* log_det, const void* y, int64_t rows, int64_t length, double alpha,
                           DType dtype, int threads))

PNF_KERNEL(logit_inverse_backward, (void* grad_y, const void* grad_x, const void* grad_log_det, const void* y,
                                    int64_t rows, int64_t length, double alpha, DType dtype, int threads))

}  // namespace pnf::cpu
