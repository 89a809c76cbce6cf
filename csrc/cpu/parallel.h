// A parallel loop on the threads that PyTorch already has.
//
// Linking an OpenMP runtime of our own would leave two of them in the process, each with a pool of spinning threads.
// PyTorch loads its runtime for everyone to see, so the entry point that GCC's and LLVM's runtimes share,
// GOMP_parallel, is looked up there. Where there is none (macOS, other builds), the loop starts threads of its own.
#pragma once

#include <cstdint>
#include <functional>

namespace pnf {

// Calls body(begin, end) on ranges that cover [0, count), at least `grain` long but for the last one. The ranges
// depend on the arguments only. The body must not throw.
void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace pnf
