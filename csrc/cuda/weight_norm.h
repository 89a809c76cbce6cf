#pragma once

#include <vector>

#include "../weight_norm.h"
#include "dtype.h"

// Pointers are to memory of the current device; `stream` is a cudaStream_t of it. Errors of a launch are thrown as
// std::runtime_error.
namespace pnf::cuda {

void weight_norm(const std::vector<Layer>& layers, DType dtype, std::uintptr_t stream);

void weight_norm_backward(const std::vector<LayerBackward>& layers, DType dtype, std::uintptr_t stream);

}  // namespace pnf::cuda
