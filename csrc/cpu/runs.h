// Copies and zeros of runs that may be short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pnf::cpu::PNF_ISA {

// Short runs, such as the channels of a pixel, move as two words that may overlap: no loop and no call.
template <size_t bytes>
inline void copy_ends(char* out, const char* x, size_t n) {
  char head[bytes], tail[bytes];
  std::memcpy(head, x, bytes);
  std::memcpy(tail, x + n - bytes, bytes);
  std::memcpy(out, head, bytes);
  std::memcpy(out + n - bytes, tail, bytes);
}

template <size_t bytes>
inline void zero_ends(char* out, size_t n) {
  std::memset(out, 0, bytes);
  std::memset(out + n - bytes, 0, bytes);
}

template <typename T>
inline void copy_run(T* to, const T* from, int64_t count) {
  char* out = reinterpret_cast<char*>(to);
  const char* x = reinterpret_cast<const char*>(from);
  const size_t n = static_cast<size_t>(count) * sizeof(T);
  if (n > 64) {
    std::memcpy(out, x, n);
  } else if (n >= 32) {
    copy_ends<32>(out, x, n);
  } else if (n >= 16) {
    copy_ends<16>(out, x, n);
  } else if (n >= 8) {
    copy_ends<8>(out, x, n);
  } else if (n >= 4) {
    copy_ends<4>(out, x, n);
  } else {
    for (size_t i = 0; i < n; ++i) out[i] = x[i];
  }
}

template <typename T>
inline void zero_run(T* to, int64_t count) {
  char* out = reinterpret_cast<char*>(to);
  const size_t n = static_cast<size_t>(count) * sizeof(T);
  if (n > 64) {
    std::memset(out, 0, n);
  } else if (n >= 32) {
    zero_ends<32>(out, n);
  } else if (n >= 16) {
    zero_ends<16>(out, n);
  } else if (n >= 8) {
    zero_ends<8>(out, n);
  } else if (n >= 4) {
    zero_ends<4>(out, n);
  } else {
    for (size_t i = 0; i < n; ++i) out[i] = 0;
  }
}

}  // namespace pnf::cpu::PNF_ISA
