#include "cpu/parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace pnf {
namespace {

using Region = void(void*);
using Parallel = void(Region*, void*, unsigned, unsigned);

struct Loop {
  const std::function<void(int64_t, int64_t)>& body;
  int64_t count, length;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t begin = next.fetch_add(length); begin < count; begin = next.fetch_add(length)) {
      body(begin, std::min(begin + length, count));
    }
  }
};

void run_region(void* loop) { static_cast<Loop*>(loop)->run(); }

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  threads = static_cast<int>(std::clamp<int64_t>(count / grain, 1, std::max(threads, 1)));
  if (threads == 1) {
    body(0, count);
    return;
  }
  static Parallel* const parallel = reinterpret_cast<Parallel*>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  Loop loop{body, count, (count + threads - 1) / threads};
  if (parallel) {
    parallel(run_region, &loop, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run_region, &loop);
  loop.run();
  for (std::thread& other : others) other.join();
}

}  // namespace pnf
