// Runs that are taken apart and put together, for the ops that move bits.
#pragma once

#include <cstdint>

#include "cpu/runs.h"

namespace pnf::cpu::PNF_ISA {

template <typename T>
inline void split_line(T* even, T* odd, const T* x, int64_t n) {
  const int64_t pairs = n / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    even[k] = x[2 * k];
    odd[k] = x[2 * k + 1];
  }
  if (n % 2) even[pairs] = x[n - 1];
}

template <typename T>
inline void merge_line(T* out, const T* even, const T* odd, int64_t n) {
  const int64_t pairs = n / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    out[2 * k] = even[k];
    out[2 * k + 1] = odd[k];
  }
  if (n % 2) out[n - 1] = even[pairs];
}

}  // namespace pnf::cpu::PNF_ISA
