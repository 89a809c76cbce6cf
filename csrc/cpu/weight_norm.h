#pragma once

#include <vector>

#include "../weight_norm.h"
#include "cpu/isa.h"
#include "dtype.h"

namespace pnf::cpu {

PNF_KERNEL(weight_norm, (const std::vector<Layer>& layers, DType dtype, int threads))

PNF_KERNEL(weight_norm_backward, (const std::vector<LayerBackward>& layers, DType dtype, int threads))

}  // namespace pnf::cpu
