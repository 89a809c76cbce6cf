// Copies and zeros of runs that may be short, and of many of them.
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

// Runs in ascending order, whose ends may be written over since what follows is written later: whole words are fastest.
template <int64_t bytes>
struct Loose {
  template <typename T>
  static void copy(T* to, const T* from, int64_t count) {
    char* out = reinterpret_cast<char*>(to);
    const char* x = reinterpret_cast<const char*>(from);
    const int64_t n = count * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < n; i += bytes) std::memcpy(out + i, x + i, bytes);
  }

  template <typename T>
  static void zero(T* to, int64_t count) {
    char* out = reinterpret_cast<char*>(to);
    const int64_t n = count * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < n; i += bytes) std::memset(out + i, 0, bytes);
  }
};

struct Exact {
  template <typename T>
  static void copy(T* to, const T* from, int64_t count) {
    copy_run(to, from, count);
  }

  template <typename T>
  static void zero(T* to, int64_t count) {
    zero_run(to, count);
  }
};

// Calls body(row, move) for rows of which the shortest run and the longest have so many bytes; `move` is Loose but for
// the last rows, which nothing follows.
template <typename Body>
inline void for_runs(int64_t rows, int64_t shortest, int64_t longest, const Body& body) {
  const auto go = [&]<int64_t bytes>(Loose<bytes> loose) {
    const int64_t exact = (bytes + shortest - 1) / shortest;
    int64_t row = 0;
    for (; row < rows - exact; ++row) body(row, loose);
    for (; row < rows; ++row) body(row, Exact{});
  };
  if (longest <= 16) {
    go(Loose<16>{});
  } else if (longest <= 32) {
    go(Loose<32>{});
  } else {
    go(Loose<64>{});
  }
}

}  // namespace pnf::cpu::PNF_ISA
