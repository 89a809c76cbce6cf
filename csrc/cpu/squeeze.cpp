#include "cpu/squeeze.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/parallel.h"
#include "cpu/short_copy.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;

struct Word16 {
  uint64_t v[2];
};

// A few entries side by side in a register.
template <typename T>
struct Word {
  typedef T Type __attribute__((vector_size(16)));  // `using` would lose the attribute
};

// out[4 i + j] = from[j][i]
template <typename T>
void weave4(T* out, const T* const (&from)[4], int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) <= 8) {
    using W = typename Word<T>::Type;
    constexpr int k = 16 / sizeof(T);
    for (; i + k <= n; i += k) {
      const auto a = read<W>(from[0] + i), b = read<W>(from[1] + i), c = read<W>(from[2] + i), d = read<W>(from[3] + i);
      const auto ac = zip<0>(a, c), bd = zip<0>(b, d), ac2 = zip<1>(a, c), bd2 = zip<1>(b, d);
      write(out + 4 * i, zip<0>(ac, bd));
      write(out + 4 * i + k, zip<1>(ac, bd));
      write(out + 4 * i + 2 * k, zip<0>(ac2, bd2));
      write(out + 4 * i + 3 * k, zip<1>(ac2, bd2));
    }
  }
  for (; i < n; ++i) {
    for (int j = 0; j < 4; ++j) out[4 * i + j] = from[j][i];
  }
}

// to[j][i] = x[4 i + j]
template <typename T>
void unweave4(T* const (&to)[4], const T* x, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) <= 8) {
    using W = typename Word<T>::Type;
    constexpr int k = 16 / sizeof(T);
    for (; i + k <= n; i += k) {
      const auto v0 = read<W>(x + 4 * i), v1 = read<W>(x + 4 * i + k);
      const auto v2 = read<W>(x + 4 * i + 2 * k), v3 = read<W>(x + 4 * i + 3 * k);
      const auto ac = unzip<0>(v0, v1), ac2 = unzip<0>(v2, v3), bd = unzip<1>(v0, v1), bd2 = unzip<1>(v2, v3);
      write(to[0] + i, unzip<0>(ac, ac2));
      write(to[1] + i, unzip<0>(bd, bd2));
      write(to[2] + i, unzip<1>(ac, ac2));
      write(to[3] + i, unzip<1>(bd, bd2));
    }
  }
  for (; i < n; ++i) {
    for (int j = 0; j < 4; ++j) to[j][i] = x[4 * i + j];
  }
}

// out[0][3 j + i] = x[4 i + j] and out[1][3 j + i] = x[4 i + 2 + j] for i < 3, j < 2. Three channels fill no vector;
// with those of the next pixel they fill one and a half.
template <typename T>
void unweave3(T* const (&out)[2], const T* x) {
  using W = typename Word<T>::Type;
  const auto a = read<W>(x), b = read<W>(x + 4), c = read<W>(x + 8), low = zip<0>(a, b), high = zip<1>(a, b);
  write(out[0], shuffle<0, 1, 4, 2>(low, c));
  write(out[0] + 2, shuffle<4, 2, 3, 5>(low, c));
  write(out[1], shuffle<0, 1, 6, 2>(high, c));
  write(out[1] + 2, shuffle<6, 2, 3, 7>(high, c));
}

template <typename T>
void split_line(T* even, T* odd, const T* x, int64_t n) {
  const int64_t pairs = n / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    even[k] = x[2 * k];
    odd[k] = x[2 * k + 1];
  }
  if (n % 2) even[pairs] = x[n - 1];
}

template <typename T>
void merge_line(T* out, const T* even, const T* odd, int64_t n) {
  const int64_t pairs = n / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    out[2 * k] = even[k];
    out[2 * k + 1] = odd[k];
  }
  if (n % 2) out[n - 1] = even[pairs];
}

// The plane of an example to which sub-pixel (i, j) of a channel goes.
int64_t plane_of(const Squeezed& s, int64_t channel, int i, int j) {
  if (!s.factor) return 4 * channel + 2 * i + j;
  return (i == j ? i : 2 + i) * s.channels + channel;
}

// Calls body(row of x, row of y, row of y): the sub-pixels of a row of x fill two rows of y in turn.
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

// Calls body(runs of x, y) for each pixel of y: its 4 C entries come from four runs of C entries of x.
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

// Whole runs of channels are moved, so entries of every size share the code for bytes.
template <typename T>
Squeezed in_bytes(Squeezed s) {
  s.channels *= static_cast<int64_t>(sizeof(T));
  return s;
}

void factor_pixels(char* y, const char* x, const Squeezed& s, int threads) {
  with_copy<char>(s.channels, [&](auto copy) {
    for_pixels(x, y, s, threads, [&](const char* const(&runs)[4], char* out) {
      copy(out, runs[0]);
      copy(out + s.channels, runs[3]);
      copy(out + 2 * s.channels, runs[1]);
      copy(out + 3 * s.channels, runs[2]);
    });
  });
}

void unfactor_pixels(char* x, const char* y, const Squeezed& s, int threads) {
  with_copy<char>(s.channels, [&](auto copy) {
    for_pixels(x, y, s, threads, [&](char* const(&runs)[4], const char* from) {
      copy(runs[0], from);
      copy(runs[3], from + s.channels);
      copy(runs[1], from + 2 * s.channels);
      copy(runs[2], from + 3 * s.channels);
    });
  });
}

template <typename T>
void forward(T* y, const T* x, const Squeezed& s, int threads) {
  if (!s.channels_last) {
    for_lines(x, y, s, threads, [&](const T* line, T* even, T* odd) { split_line(even, odd, line, 2 * s.width); });
  } else if (s.factor) {
    factor_pixels(reinterpret_cast<char*>(y), reinterpret_cast<const char*>(x), in_bytes<T>(s), threads);
  } else {
    for_pixels(x, y, s, threads, [&](const T* const(&runs)[4], T* out) { weave4(out, runs, s.channels); });
  }
}

template <typename T>
void inverse(T* x, const T* y, const Squeezed& s, int threads) {
  if (!s.channels_last) {
    for_lines(x, y, s, threads,
              [&](T* line, const T* even, const T* odd) { merge_line(line, even, odd, 2 * s.width); });
  } else if (s.factor) {
    unfactor_pixels(reinterpret_cast<char*>(x), reinterpret_cast<const char*>(y), in_bytes<T>(s), threads);
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
