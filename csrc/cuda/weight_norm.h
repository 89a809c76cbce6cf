#pragma once

#include <cstddef>
#include <cstdint>

#include "../weight_norm.h"
#include "dtype.h"

// Pointers are to memory of the current device; `stream` is a cudaStream_t of it. The result is the error of a launch,
// or null.
namespace pnf::cuda {

const char* weight_norm(const Layer* layers, size_t count, DType dtype, std::uintptr_t stream);

const char* weight_norm_backward(const LayerBackward* layers, size_t count, DType dtype, std::uintptr_t stream);

}  // namespace pnf::cuda
