#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>
#include <string>

#ifdef PNF_X86_64
#include <cpuid.h>
#endif

namespace pnf::cpu {
namespace {

#ifdef PNF_X86_64
constexpr const char* kNames[] = {"x86-64-v3", "x86-64-v4"};

// Conversions of float16. Not every compiler knows them by name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

int detect() {
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && has_f16c();
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? 2 : v3 ? 1 : 0;
}
#else
constexpr const char* kNames[] = {"generic"};

int detect() { return 1; }
#endif

const int kCount = detect();
std::atomic<int> chosen{kCount - 1};

}  // namespace

int level() { return chosen.load(std::memory_order_relaxed); }

int level_count() { return kCount; }

const char* level_name(int level) { return kNames[level]; }

void set_level(int level) {
  if (level < 0 || level >= kCount) {
    throw std::invalid_argument("set_level: level must be from 0 to " + std::to_string(kCount - 1) + ", got " +
                                std::to_string(level));
  }
  chosen = level;
}

}  // namespace pnf::cpu
