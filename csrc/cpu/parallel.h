// Parallel loops on PyTorch's own threads.
//
// A second OpenMP runtime would bring a second pool of spinning threads. PyTorch's runtime is visible to the whole
// process, so its entry point GOMP_parallel, which GCC's and LLVM's runtimes share, is looked up at run time. Without
// one (macOS, other builds), the loop starts threads of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace pnf {

// Calls body(begin, end) on ranges that cover [0, count), each at least `grain` long except the last one. The ranges
// depend on the arguments only. The body must not throw.
void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body);

// Calls body(row, first, last) for entries [first, last) of each row, `chunk` of them at a time, in parallel. An empty
// row has one empty chunk. Two chunks are worth a thread.
template <typename Body>
void for_chunks(int64_t rows, int64_t length, int64_t chunk, int threads, const Body& body) {
  const int64_t chunks = std::max<int64_t>((length + chunk - 1) / chunk, 1);
  const int64_t grain = 2 * chunk / std::clamp<int64_t>(length, 1, chunk);
  parallel_for(rows * chunks, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t row = begin / chunks, i = begin % chunks;
    for (int64_t left = end - begin; left > 0; --left) {
      body(row, i * chunk, std::min((i + 1) * chunk, length));
      if (++i == chunks) i = 0, ++row;
    }
  });
}

}  // namespace pnf
