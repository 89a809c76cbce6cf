// Vectors of float or double, as long as the registers of the instruction set.
//
// They are GCC and Clang vector types, so + - * / < ? : work on whole vectors, and a comparison gives a vector of
// masks.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "dtype.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace pnf::cpu::PNF_ISA {

// No longer than a register: on longer vectors GCC would split arithmetic, but compare and choose entry by entry.
#if defined(__AVX512F__)
#define PNF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define PNF_VECTOR_BYTES 32
#else
#define PNF_VECTOR_BYTES 16
#endif

template <typename C>
struct VectorOf;

template <>
struct VectorOf<float> {
  using Type = float __attribute__((vector_size(PNF_VECTOR_BYTES)));
  using Int = int32_t __attribute__((vector_size(PNF_VECTOR_BYTES)));
};

template <>
struct VectorOf<double> {
  using Type = double __attribute__((vector_size(PNF_VECTOR_BYTES)));
  using Int = int64_t __attribute__((vector_size(PNF_VECTOR_BYTES)));
};

template <typename C>
using Vec = typename VectorOf<C>::Type;

// The integer vector of the same width, for bit patterns and lane masks.
template <typename C>
using IntVec = typename VectorOf<C>::Int;

template <typename C>
using Lane = std::remove_cvref_t<decltype(IntVec<C>{}[0])>;

template <typename C>
inline constexpr int kLanes = PNF_VECTOR_BYTES / sizeof(C);

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename C>
inline Vec<C> splat(C value) {
  return value - Vec<C>{};  // not +, which would lose the sign of -0
}

// Any type of vector, at any address.
template <typename V>
inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename V>
inline void write(void* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// Loads kLanes<Wide<T>> entries.
inline Vec<float> load(const float* p) { return read<Vec<float>>(p); }
inline Vec<double> load(const double* p) { return read<Vec<double>>(p); }

using Bits16 = uint16_t __attribute__((vector_size(PNF_VECTOR_BYTES / 2)));
using Bits32 = uint32_t __attribute__((vector_size(PNF_VECTOR_BYTES)));

inline Bits32 load_bits(const void* p) { return __builtin_convertvector(read<Bits16>(p), Bits32); }
inline void store_bits(void* p, Bits32 bits) { write(p, __builtin_convertvector(bits, Bits16)); }

inline Vec<float> load(const BFloat16* p) { return bit_cast<Vec<float>>(load_bits(p) << 16); }

inline void store(float* p, Vec<float> v) { write(p, v); }
inline void store(double* p, Vec<double> v) { write(p, v); }

inline void store(BFloat16* p, Vec<float> v) {
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  store_bits(p, bit_cast<Bits32>(v != v) ? (bits >> 16) | 0x40 : rounded);
}

#if defined(__AVX512F__)
// With a mask of all lanes, since GCC 12 takes the intrinsics without one for a use of undefined memory.
inline Vec<float> load(const Float16* p) { return _mm512_maskz_cvtph_ps(0xffff, read<__m256i>(p)); }
inline void store(Float16* p, Vec<float> v) { write(p, _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__AVX2__)
inline Vec<float> load(const Float16* p) { return _mm256_cvtph_ps(read<__m128i>(p)); }
inline void store(Float16* p, Vec<float> v) { write(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
#else
inline Vec<float> load(const Float16* p) {
  const Bits32 h = load_bits(p), sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  // 2^112 moves the exponent to its place, denormals included.
  const Vec<float> finite = bit_cast<Vec<float>>(rest) * 0x1p112f;
  const Bits32 special = bit_cast<Bits32>((h & 0x7c00) == 0x7c00) & 0x7f800000;
  return bit_cast<Vec<float>>(bit_cast<Bits32>(finite) | special | sign);
}

inline void store(Float16* p, Vec<float> v) {
  const Bits32 bits = bit_cast<Bits32>(v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const Bits32 rounded = (magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits32 normal = rounded - (112 << 10);
  // Adding 1/2 leaves a denormal's rounded bits at the end of the fraction: one unit of it is 2^-24.
  const Bits32 denormal = bit_cast<Bits32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000;
  Bits32 half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x477ff000 ? Bits32{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? (magnitude >> 13 & 0x3ff) | 0x7e00 : half;
  store_bits(p, half | sign);
}
#endif

// The first n entries, and `fill` for the others.
template <typename T>
inline Vec<Wide<T>> load_part(const T* p, int64_t n, Wide<T> fill = 0) {
  T padded[kLanes<Wide<T>>] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
  Vec<Wide<T>> v = load(padded);
  for (int64_t i = n; i < kLanes<Wide<T>>; ++i) v[i] = fill;
  return v;
}

template <typename T>
inline void store_part(T* p, Vec<Wide<T>> v, int64_t n) {
  T padded[kLanes<Wide<T>>];
  store(padded, v);
  std::memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
}

// The first n entries, or all where a vector has no more; zeros stand for the others.
template <typename T>
inline Vec<Wide<T>> load_some(const T* p, int64_t n) {
  return n >= kLanes<Wide<T>> ? load(p) : load_part(p, n);
}

template <typename T>
inline void store_some(T* p, Vec<Wide<T>> v, int64_t n) {
  if (n >= kLanes<Wide<T>>) {
    store(p, v);
  } else {
    store_part(p, v, n);
  }
}

template <typename C>
inline Vec<C> first_some(Vec<C> v, int64_t n) {
  if (n >= kLanes<C>) return v;
  C lanes[kLanes<C>];
  store(lanes, v);
  return load_part(lanes, n);
}

// A whole vector of entries, and the first n entries of one. A function that takes either as `lanes` is written once.
template <typename C>
struct Whole {
  template <typename T>
  static Vec<C> load(const T* p, C = 0) {
    return PNF_ISA::load(p);
  }
  template <typename T>
  static void store(T* p, Vec<C> v) {
    PNF_ISA::store(p, v);
  }
  static Vec<C> first(Vec<C> v, C = 0) { return v; }
};

template <typename C>
struct Part {
  int64_t n;

  template <typename T>
  Vec<C> load(const T* p, C fill = 0) const {
    return load_part(p, n, fill);
  }
  template <typename T>
  void store(T* p, Vec<C> v) const {
    store_part(p, v, n);
  }
  // v, with `fill` behind the first n entries.
  Vec<C> first(Vec<C> v, C fill = 0) const {
    for (int64_t i = n; i < kLanes<C>; ++i) v[i] = fill;
    return v;
  }
};

// Calls body(i, lanes) for the vectors of entries [first, last), the last of which may be a part of one.
template <typename C, typename Body>
inline void for_vectors(int64_t first, int64_t last, const Body& body) {
  int64_t i = first;
  for (; i + kLanes<C> <= last; i += kLanes<C>) body(i, Whole<C>{});
  if (i < last) body(i, Part<C>{last - i});
}

// Scalars, for entries that fill no vector.
template <typename T>
inline Wide<T> widen(T x) {
  if constexpr (std::is_arithmetic_v<T>) {
    return x;
  } else {
    return load_part(&x, 1)[0];
  }
}

template <typename T>
inline T narrow(Wide<T> x) {
  T out;
  store_part(&out, splat(x), 1);
  return out;
}

template <typename V>
using AllLanes = std::make_integer_sequence<int, sizeof(V) / sizeof(V{}[0])>;

// The lanes of a and then of b at the given places.
template <int... places, typename V>
inline V shuffle(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, places...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){places...});
#endif
}

// Every other lane of a and then of b: the even ones, or the odd ones.
template <int odd, typename V>
inline V unzip(V a, V b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) { return shuffle<(odd + 2 * i)...>(a, b); }(AllLanes<V>{});
}

// The lanes of a and b in turn: of their lower halves, or of their upper ones.
template <int upper, typename V>
inline V zip(V a, V b) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    constexpr int n = sizeof...(i);
    return shuffle<(upper * (n / 2) + i / 2 + i % 2 * n)...>(a, b);
  }(AllLanes<V>{});
}

// Entry j of vector i goes to entry i of vector j, by swapping squares of `size`, ... entries beside the diagonal.
template <int size>
inline void swap_squares(Vec<float> (&square)[kLanes<float>]) {
  constexpr int n = kLanes<float>;
  if constexpr (size < n) {
    const auto swap = [&]<int... lane>(Vec<float>& a, Vec<float>& b, std::integer_sequence<int, lane...>) {
      const Vec<float> upper = shuffle<(lane & size ? n + lane - size : lane)...>(a, b);
      b = shuffle<(lane & size ? n + lane : lane + size)...>(a, b);
      a = upper;
    };
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (!(i & size)) swap(square[i], square[i + size], std::make_integer_sequence<int, n>{});
    }
    swap_squares<2 * size>(square);
  }
}

// The same from squares of one entry on. Within 128 bits it takes one instruction for two entries of two vectors.
inline void transpose(Vec<float> (&square)[kLanes<float>]) {
  constexpr int n = kLanes<float>;
  const auto swap = [&]<int... lane>(Vec<float>* v, std::integer_sequence<int, lane...>) {
    Vec<float> pairs[4];
    for (int i = 0; i < 4; i += 2) {
      pairs[i] = shuffle<(lane % 2 * n + lane / 4 * 4 + lane % 4 / 2)...>(v[i], v[i + 1]);
      pairs[i + 1] = shuffle<(lane % 2 * n + lane / 4 * 4 + lane % 4 / 2 + 2)...>(v[i], v[i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      v[2 * i] = shuffle<(lane / 2 % 2 * n + lane / 4 * 4 + lane % 2)...>(pairs[i], pairs[i + 2]);
      v[2 * i + 1] = shuffle<(lane / 2 % 2 * n + lane / 4 * 4 + lane % 2 + 2)...>(pairs[i], pairs[i + 2]);
    }
  };
#pragma GCC unroll 4
  for (int i = 0; i < n; i += 4) swap(square + i, std::make_integer_sequence<int, n>{});
  swap_squares<4>(square);
}

template <typename C>
inline C sum(Vec<C> v) {
  C lanes[kLanes<C>];
  store(lanes, v);
  for (int n = kLanes<C> / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

// Comparisons with NaN are false, so NaN passes, unlike in the C library's fmax.
template <typename V>
inline V at_least(V x, V low) {
  return x < low ? low : x;
}

template <typename V>
inline V at_most(V x, V high) {
  return x > high ? high : x;
}

// The same in one instruction, which the compiler does not find. (GCC 12 warns about _mm512_max_ps but not about its
// masked form.)
#ifdef __SSE2__
#if PNF_VECTOR_BYTES == 64
#define PNF_X86(name, a, b) _mm512_maskz_##name(-1, a, b)
#else
#define PNF_X86(name, a, b) _mm256_##name(a, b)
#endif
inline Vec<float> at_least(Vec<float> x, Vec<float> low) { return PNF_X86(max_ps, low, x); }
inline Vec<double> at_least(Vec<double> x, Vec<double> low) { return PNF_X86(max_pd, low, x); }
inline Vec<float> at_most(Vec<float> x, Vec<float> high) { return PNF_X86(min_ps, high, x); }
inline Vec<double> at_most(Vec<double> x, Vec<double> high) { return PNF_X86(min_pd, high, x); }
#undef PNF_X86
#endif

template <typename C>
inline Vec<C> abs(Vec<C> x) {
  using I = IntVec<C>;
  return bit_cast<Vec<C>>(bit_cast<I>(x) & std::numeric_limits<Lane<C>>::max());
}

template <typename C>
inline Vec<C> copy_sign(Vec<C> magnitude, Vec<C> sign) {
  using I = IntVec<C>;
  constexpr auto rest = std::numeric_limits<Lane<C>>::max();
  return bit_cast<Vec<C>>((bit_cast<I>(magnitude) & rest) | (bit_cast<I>(sign) & ~rest));
}

}  // namespace pnf::cpu::PNF_ISA
