// Pairs of entries a stride apart, as two short arrays, which are then read as vectors for any axis and layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/isa.h"

namespace pnf::cpu::PNF_ISA {

inline constexpr int64_t kPairs = 256;  // that are worked on together

template <typename T>
struct Pairs {
  T first[kPairs], second[kPairs];
};

// Calls body(k, n, i) for pairs [k, k + n) of `count` from `start` on: their first entries lie at i in x, one after the
// other.
template <typename Body>
void for_runs_of_pairs(int64_t start, int64_t count, int64_t stride, const Body& body) {
  int64_t i = start / stride * 2 * stride + start % stride;
  for (int64_t k = 0, n = stride - start % stride; k < count; n = stride) {
    n = std::min(n, count - k);
    body(k, n, i);
    k += n;
    i += n + stride;
  }
}

template <typename T>
void take_apart(Pairs<T>& pairs, const T* __restrict x, int64_t start, int64_t count, int64_t stride) {
  if (stride == 1) {
    x += 2 * start;
    for (int64_t k = 0; k < count; ++k) pairs.first[k] = x[2 * k], pairs.second[k] = x[2 * k + 1];
    return;
  }
  for_runs_of_pairs(start, count, stride, [&](int64_t k, int64_t n, int64_t i) {
    std::memcpy(pairs.first + k, x + i, static_cast<size_t>(n) * sizeof(T));
    std::memcpy(pairs.second + k, x + i + stride, static_cast<size_t>(n) * sizeof(T));
  });
}

template <typename T>
void put_together(T* __restrict x, const Pairs<T>& pairs, int64_t start, int64_t count, int64_t stride) {
  if (stride == 1) {
    x += 2 * start;
    for (int64_t k = 0; k < count; ++k) x[2 * k] = pairs.first[k], x[2 * k + 1] = pairs.second[k];
    return;
  }
  for_runs_of_pairs(start, count, stride, [&](int64_t k, int64_t n, int64_t i) {
    std::memcpy(x + i, pairs.first + k, static_cast<size_t>(n) * sizeof(T));
    std::memcpy(x + i + stride, pairs.second + k, static_cast<size_t>(n) * sizeof(T));
  });
}

}  // namespace pnf::cpu::PNF_ISA
