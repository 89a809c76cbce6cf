// Run-time choice of an instruction set: each source in cpu/ is compiled once for each x86-64 level from AVX2 on.
//
// PNF_KERNEL in a header declares a kernel: a function in the namespace of each level, and a callable of the plain name
// that runs the best one for this machine. The source defines it in namespace pnf::cpu::PNF_ISA; the build sets
// PNF_ISA. Other architectures have one level.
#pragma once

#include <utility>

namespace pnf::cpu {

// The level in use: 0 is the slowest.
int level();

// The number of levels that this machine can run: none without AVX2.
int level_count();
const char* level_name(int level);

// Chooses a level, for tests; throws std::invalid_argument unless it is in [0, level_count()).
void set_level(int level);

template <typename Function>
struct Kernel {
  Function* variants[2];

  template <typename... Args>
  void operator()(Args&&... args) const {
    variants[level()](std::forward<Args>(args)...);
  }
};

// clang-format off
#ifdef PNF_X86_64
#define PNF_KERNEL(name, ...)                     \
  namespace x86_64_v3 { void name __VA_ARGS__; } \
  namespace x86_64_v4 { void name __VA_ARGS__; } \
  inline constexpr Kernel<void __VA_ARGS__> name{{x86_64_v3::name, x86_64_v4::name}};
#else
#define PNF_KERNEL(name, ...)                  \
  namespace generic { void name __VA_ARGS__; } \
  inline constexpr Kernel<void __VA_ARGS__> name{{generic::name}};
#endif
// clang-format on

}  // namespace pnf::cpu
