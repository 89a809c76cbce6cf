#pragma once

#include <string>

namespace pnf::cuda {

// Why the current device cannot run these kernels; empty if it can. Nothing is launched.
std::string why_not();

}  // namespace pnf::cuda
