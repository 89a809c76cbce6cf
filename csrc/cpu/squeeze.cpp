#include "cpu/squeeze.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/move.h"
#include "cpu/parallel.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;

struct Word16 {
  uint64_t v[2];
};

// A few entries side by side in a register.
template <typename T>
struct Lanes {
  static constexpr int kCount = 16 / sizeof(T);
  typedef T Type __attribute__((vector_size(16)));  // `using` would lose the attribute

  static Type load(const T* p) {
    Type v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }

  static void store(T* p, Type v) { std::memcpy(p, &v, sizeof(v)); }

  // Entries first, first + step, ... of a and b, one after the other; `woven` takes them from a and b in turn.
  template <int first, int step, int... i>
  static Type take(Type a, Type b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, (first + step * i)...);
  }

  template <int first, int... i>
  static Type weave(Type a, Type b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * kCount)...);
  }

  using All = std::make_integer_sequence<int, kCount>;

  static Type even(Type a, Type b) { return take<0, 2>(a, b, All{}); }
  static Type odd(Type a, Type b) { return take<1, 2>(a, b, All{}); }
  static Type low(Type a, Type b) { return weave<0>(a, b, All{}); }
  static Type high(Type a, Type b) { return weave<kCount / 2>(a, b, All{}); }
};

// out[4 i + k] = from[k][i]
template <typename T>
void weave4(T* out, const T* const (&from)[4], int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) <= 8) {
    using L = Lanes<T>;
    for (; i + L::kCount <= n; i += L::kCount) {
      const auto a = L::load(from[0] + i), b = L::load(from[1] + i), c = L::load(from[2] + i), d = L::load(from[3] + i);
      const auto ac = L::low(a, c), bd = L::low(b, d), ac2 = L::high(a, c), bd2 = L::high(b, d);
      L::store(out + 4 * i, L::low(ac, bd));
      L::store(out + 4 * i + L::kCount, L::high(ac, bd));
      L::store(out + 4 * i + 2 * L::kCount, L::low(ac2, bd2));
      L::store(out + 4 * i + 3 * L::kCount, L::high(ac2, bd2));
    }
  }
  for (; i < n; ++i) {
    for (int k = 0; k < 4; ++k) out[4 * i + k] = from[k][i];
  }
}

// to[k][i] = x[4 i + k]
template <typename T>
void unweave4(T* const (&to)[4], const T* x, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) <= 8) {
    using L = Lanes<T>;
    for (; i + L::kCount <= n; i += L::kCount) {
      const auto v0 = L::load(x + 4 * i), v1 = L::load(x + 4 * i + L::kCount);
      const auto v2 = L::load(x + 4 * i + 2 * L::kCount), v3 = L::load(x + 4 * i + 3 * L::kCount);
      const auto ac = L::even(v0, v1), ac2 = L::even(v2, v3), bd = L::odd(v0, v1), bd2 = L::odd(v2, v3);
      L::store(to[0] + i, L::even(ac, ac2));
      L::store(to[1] + i, L::even(bd, bd2));
      L::store(to[2] + i, L::odd(ac, ac2));
      L::store(to[3] + i, L::odd(bd, bd2));
    }
  }
  for (; i < n; ++i) {
    for (int k = 0; k < 4; ++k) to[k][i] = x[4 * i + k];
  }
}

// out[0][3 j + i] = x[4 i + j] and out[1][3 j + i] = x[4 i + 2 + j] for i < 3, j < 2: three channels, which fill no
// vector, fill one and a half with those of the pixel beside them.
template <typename T>
void unweave3(T* const (&out)[2], const T* x) {
  using L = Lanes<T>;
  const auto a = L::load(x), b = L::load(x + 4), c = L::load(x + 8), low = L::low(a, b), high = L::high(a, b);
  L::store(out[0], __builtin_shufflevector(low, c, 0, 1, 4, 2));
  L::store(out[0] + 2, __builtin_shufflevector(low, c, 4, 2, 3, 5));
  L::store(out[1], __builtin_shufflevector(high, c, 0, 1, 6, 2));
  L::store(out[1] + 2, __builtin_shufflevector(high, c, 6, 2, 3, 7));
}

// Where sub-pixel (i, j) of a channel goes among the planes of an example.
int64_t plane_of(const Squeezed& s, int64_t channel, int i, int j) {
  if (!s.factor) return 4 * channel + 2 * i + j;
  return (i == j ? i : 2 + i) * s.channels + channel;
}

// Calls body(line of x, lines[2][2] of y): two rows of a plane of x, and the four rows that its sub-pixels make up.
template <typename X, typename Y, typename Body>
void for_lines(X* x, Y* y, const Squeezed& s, int threads, const Body& body) {
  const int64_t plane = s.height * s.width;
  const int64_t grain = kGrainBytes / static_cast<int64_t>(sizeof(X)) / (4 * s.width);
  parallel_for(s.batch * s.channels * s.height, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t row = begin % s.height, channel = begin / s.height % s.channels, example = begin / s.height / s.channels;
    while (begin < end) {
      Y* const to = y + 4 * example * s.channels * plane;
      Y* planes[2][2];
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) planes[i][j] = to + plane_of(s, channel, i, j) * plane;
      }
      for (; row < s.height && begin < end; ++row, ++begin) {
        X* const from = x + begin * 4 * s.width;
        for (int i = 0; i < 2; ++i) {
          body(from + 2 * i * s.width, planes[i][0] + row * s.width, planes[i][1] + row * s.width);
        }
      }
      row = 0;
      if (++channel == s.channels) channel = 0, ++example;
    }
  });
}

// Calls body(x, y) for each pixel of y: its 4 C entries, and those of x, runs[2][2] of C entries.
template <typename X, typename Y, typename Body>
void for_pixels(X* x, Y* y, const Squeezed& s, int threads, const Body& body) {
  const int64_t row = 2 * s.width * s.channels;
  const int64_t grain = kGrainBytes / static_cast<int64_t>(sizeof(X)) / (4 * s.channels);
  parallel_for(s.batch * s.height * s.width, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t column = begin % s.width;
    X* from = x + begin / s.width * 2 * row + 2 * column * s.channels;
    for (int64_t i = begin; i < end; ++i) {
      X* const runs[4] = {from, from + s.channels, from + row, from + row + s.channels};
      body(runs, y + 4 * i * s.channels);
      from += 2 * s.channels;
      if (++column == s.width) column = 0, from += row;
    }
  });
}

template <typename T>
void forward(T* y, const T* x, const Squeezed& s, int threads) {
  if (!s.last) {
    for_lines(x, y, s, threads, [&](const T* line, T* even, T* odd) { split_line(even, odd, line, 2 * s.width); });
  } else if (s.factor) {
    for_pixels(x, y, s, threads, [&](const T* const(&runs)[4], T* out) {
      copy_run(out, runs[0], s.channels);
      copy_run(out + s.channels, runs[3], s.channels);
      copy_run(out + 2 * s.channels, runs[1], s.channels);
      copy_run(out + 3 * s.channels, runs[2], s.channels);
    });
  } else {
    for_pixels(x, y, s, threads, [&](const T* const(&runs)[4], T* out) { weave4(out, runs, s.channels); });
  }
}

template <typename T>
void inverse(T* x, const T* y, const Squeezed& s, int threads) {
  if (!s.last) {
    for_lines(x, y, s, threads,
              [&](T* line, const T* even, const T* odd) { merge_line(line, even, odd, 2 * s.width); });
  } else if (s.factor) {
    for_pixels(x, y, s, threads, [&](T* const(&runs)[4], const T* from) {
      copy_run(runs[0], from, s.channels);
      copy_run(runs[3], from + s.channels, s.channels);
      copy_run(runs[1], from + 2 * s.channels, s.channels);
      copy_run(runs[2], from + 3 * s.channels, s.channels);
    });
  } else if (s.channels != 3 || sizeof(T) != 4) {
    for_pixels(x, y, s, threads, [&](T* const(&runs)[4], const T* from) { unweave4(runs, from, s.channels); });
  } else if constexpr (sizeof(T) == 4) {
    for_pixels(x, y, s, threads, [&](T* const(&runs)[4], const T* from) { unweave3<T>({runs[0], runs[2]}, from); });
  }
}

template <typename Body>
void with_words(int size, const Body& body) {
  switch (size) {
    case 1: return body(uint8_t{});
    case 2: return body(uint16_t{});
    case 4: return body(uint32_t{});
    case 8: return body(uint64_t{});
    case 16: return body(Word16{});
    default: throw std::invalid_argument("squeeze: entries of " + std::to_string(size) + " bytes are not supported");
  }
}

}  // namespace

void squeeze(void* y, const void* x, const Squeezed& shape, int size, int threads) {
  if (shape.numel() == 0) return;
  with_words(size, [&]<typename T>(T) { forward(static_cast<T*>(y), static_cast<const T*>(x), shape, threads); });
}

void squeeze_inverse(void* x, const void* y, const Squeezed& shape, int size, int threads) {
  if (shape.numel() == 0) return;
  with_words(size, [&]<typename T>(T) { inverse(static_cast<T*>(x), static_cast<const T*>(y), shape, threads); });
}

}  // namespace pnf::cpu::PNF_ISA
