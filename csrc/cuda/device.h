#pragma once

namespace pnf::cuda {

// Why the current device cannot run these kernels; empty if it can. Nothing is launched.
const char* why_not();

}  // namespace pnf::cuda
