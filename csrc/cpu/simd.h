// Vectors of float or double, as long as the registers of the instruction set.
//
// They are GCC and Clang vector types, so + - * / < ? : work on whole vectors, and a comparison gives a vector of
// masks. The functions below keep to what the C library promises for NaN, infinities, denormals and signed zeros,
// within about 1.5 units in the last place for float; those of double call the C library for each entry.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "dtype.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace pnf::cpu::PNF_ISA {

// No longer than a register: GCC would split arithmetic, but take comparisons and ? : apart entry by entry.
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

// As wide an integer, for bits and for masks.
template <typename C>
using IntVec = typename VectorOf<C>::Int;

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

// Loads kLanes<Wide<T>> entries.
inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

using Bits16 = uint16_t __attribute__((vector_size(PNF_VECTOR_BYTES / 2)));
using Bits32 = uint32_t __attribute__((vector_size(PNF_VECTOR_BYTES)));

inline Bits32 load_bits(const void* p) {
  Bits16 v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Bits32);
}

inline void store_bits(void* p, Bits32 bits) {
  const Bits16 v = __builtin_convertvector(bits, Bits16);
  std::memcpy(p, &v, sizeof(v));
}

inline Vec<float> load(const BFloat16* p) { return bit_cast<Vec<float>>(load_bits(p) << 16); }

inline Vec<float> load(const Float16* p) {
  const Bits32 h = load_bits(p), sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  // 2^112 moves the exponent to its place, denormals included.
  const Vec<float> finite = bit_cast<Vec<float>>(rest) * 0x1p112f;
  const Bits32 special = bit_cast<Bits32>((h & 0x7c00) == 0x7c00) & 0x7f800000;
  return bit_cast<Vec<float>>(bit_cast<Bits32>(finite) | special | sign);
}

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

inline void store(BFloat16* p, Vec<float> v) {
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  store_bits(p, bit_cast<Bits32>(v != v) ? (bits >> 16) | 0x40 : rounded);
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

// Scalars, for what no vector fits.
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

// Entry j of vector i goes to entry i of vector j, by swapping squares of 1, 2, 4, ... entries beside the diagonal.
template <int size = 1>
inline void transpose(Vec<float> (&square)[kLanes<float>]) {
  constexpr int n = kLanes<float>;
  const auto swap = [&]<int... lane>(Vec<float>& a, Vec<float>& b, std::integer_sequence<int, lane...>) {
    const Vec<float> upper = __builtin_shufflevector(a, b, (lane & size ? n + lane - size : lane)...);
    b = __builtin_shufflevector(a, b, (lane & size ? n + lane : lane + size)...);
    a = upper;
  };
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if (!(i & size)) swap(square[i], square[i + size], std::make_integer_sequence<int, n>{});
  }
  if constexpr (2 * size < n) transpose<2 * size>(square);
}

template <typename C>
inline C sum(Vec<C> v) {
  C lanes[kLanes<C>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int n = kLanes<C> / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

// Comparisons with NaN are false, so that NaN goes through as the C library's fmax would not let it.
template <typename V>
inline V at_least(V x, V low) {
  return x < low ? low : x;
}

template <typename V>
inline V at_most(V x, V high) {
  return x > high ? high : x;
}

// The same by one instruction, which the compiler does not find. (GCC 12 warns about _mm512_max_ps, though not about
// that under a mask.)
#ifdef __SSE2__
#if PNF_VECTOR_BYTES == 64
#define PNF_X86(name, a, b) _mm512_maskz_##name(-1, a, b)
#elif PNF_VECTOR_BYTES == 32
#define PNF_X86(name, a, b) _mm256_##name(a, b)
#else
#define PNF_X86(name, a, b) _mm_##name(a, b)
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
  return bit_cast<Vec<C>>(bit_cast<I>(x) & std::numeric_limits<std::remove_reference_t<decltype(I{}[0])>>::max());
}

template <typename C>
inline Vec<C> copy_sign(Vec<C> magnitude, Vec<C> sign) {
  using I = IntVec<C>;
  constexpr auto rest = std::numeric_limits<std::remove_reference_t<decltype(I{}[0])>>::max();
  return bit_cast<Vec<C>>((bit_cast<I>(magnitude) & rest) | (bit_cast<I>(sign) & ~rest));
}

// exp(x) = 2^k (1 + p); n is k too.
template <typename C>
struct Reduced {
  Vec<C> p, n;
  IntVec<C> k;
};

inline Reduced<float> reduce(Vec<float> x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec<float> shifted = x * 1.44269504088896341f + 12582912.0f;
  const Vec<float> n = shifted - 12582912.0f;
  const Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  const Vec<float> square = r * r;
  // In pairs, not one after the other, which would take twice as long: a processor does several at once.
  Vec<float> p = (r * 1.9875691500e-4f + 1.3981999507e-3f) * square + (r * 8.3334519073e-3f + 4.1665795894e-2f);
  p = p * square + (r * 1.6666665459e-1f + 5.0000001201e-1f);
  return {p * square + r, n, bit_cast<IntVec<float>>(shifted) - 0x4b400000};
}

inline Reduced<double> reduce(Vec<double> x) {
  const Vec<double> shifted = x * 1.44269504088896340736 + 0x1.8p52;
  const Vec<double> n = shifted - 0x1.8p52;
  const Vec<double> r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
  // The series of exp: its next term is below 1e-17 of the sum for |r| <= log(2) / 2.
  Vec<double> p = r * (1 / 6227020800.0) + 1 / 479001600.0;
  p = p * r + 1 / 39916800.0;
  p = p * r + 1 / 3628800.0;
  p = p * r + 1 / 362880.0;
  p = p * r + 1 / 40320.0;
  p = p * r + 1 / 5040.0;
  p = p * r + 1 / 720.0;
  p = p * r + 1 / 120.0;
  p = p * r + 1 / 24.0;
  p = p * r + 1 / 6.0;
  p = p * r + 0.5;
  return {p * (r * r) + r, n, bit_cast<IntVec<double>>(shifted) - 0x4338000000000000};
}

template <typename C>
inline constexpr int kMantissa = std::numeric_limits<C>::digits - 1;

template <typename C>
inline constexpr int kBias = std::numeric_limits<C>::max_exponent - 1;

template <typename C>
struct Decay {
  Vec<C> value, rest;
};

// exp(-x), or 0 where that is no normal number, and 1 - exp(-x), for x >= 0. That does not cancel: it is -p where x is
// small, since k is 0 there.
template <typename C>
inline Decay<C> decay(Vec<C> x) {
  const Reduced<C> e = reduce(-at_most(x, splat(static_cast<C>(kBias<C>))));
  const Vec<C> power = bit_cast<Vec<C>>(at_least(e.k + kBias<C>, IntVec<C>{}) << kMantissa<C>);
  return {power * e.p + power, (1 - power) - power * e.p};
}

inline Vec<float> exp(Vec<float> x) {
  const Reduced<float> e = reduce(at_most(at_least(x, splat(-104.0f)), splat(89.0f)));
#ifdef __AVX512F__
  return _mm512_maskz_scalef_ps(-1, 1 + e.p, e.n);
#else
  // In two steps, since 2^k may be out of range where exp(x) is not.
  const IntVec<float> half = e.k >> 1;
  return (1 + e.p) * bit_cast<Vec<float>>((half + 127) << 23) * bit_cast<Vec<float>>((e.k - half + 127) << 23);
#endif
}

// log(x / 2^shift) of a positive number that is no denormal.
inline Vec<float> log_normal(Vec<float> x, IntVec<float> shift = IntVec<float>{}) {
  // The fraction is taken to [sqrt(1/2), sqrt(2)).
  const IntVec<float> bits = bit_cast<IntVec<float>>(x) - 0x3f3504f3;
  const Vec<float> e = __builtin_convertvector((bits >> 23) - shift, Vec<float>);
  const Vec<float> f = bit_cast<Vec<float>>((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const Vec<float> square = f * f;
  Vec<float> p = square * 7.0376836292e-2f + (1.1676998740e-1f - f * 1.1514610310e-1f);
  p = p * square + (1.4249322787e-1f - f * 1.2420140846e-1f);
  p = p * square + (2.0000714765e-1f - f * 1.6668057665e-1f);
  p = p * square + (3.3333331174e-1f - f * 2.4999993993e-1f);
  return p * f * square - e * 2.12194440e-4f - square * 0.5f + f + e * 0.693359375f;
}

inline Vec<float> log(Vec<float> x) {
  const IntVec<float> tiny = x < std::numeric_limits<float>::min();
  Vec<float> y = log_normal(tiny ? x * 0x1p23f : x, tiny & 23);
  y = x == 0.0f ? splat(-std::numeric_limits<float>::infinity()) : y;
  y = x < 0.0f ? splat(std::numeric_limits<float>::quiet_NaN()) : y;
  const IntVec<float> same = (x == std::numeric_limits<float>::infinity()) | (x != x);
  return same ? x : y;
}

inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> magnitude = abs<float>(x), square = x * x;
  Vec<float> p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vec<float> small = p * square * magnitude + magnitude;
  const Vec<float> large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  return copy_sign<float>(magnitude < 0.625f ? small : large, x);
}

template <double function(double)>
inline Vec<double> each(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = function(x[i]);
  return x;
}

inline Vec<double> exp(Vec<double> x) { return each<std::exp>(x); }
inline Vec<double> log(Vec<double> x) { return each<std::log>(x); }
inline Vec<double> log_normal(Vec<double> x) { return each<std::log>(x); }
inline Vec<double> tanh(Vec<double> x) { return each<std::tanh>(x); }

inline Vec<double> log1p(Vec<double> x) { return each<std::log1p>(x); }

// For x >= 0: what the rounding of 1 + x lost is put back.
inline Vec<float> log1p(Vec<float> x) {
  const Vec<float> u = 1.0f + x;
  const Vec<float> y = log(u) + (x - (u - 1.0f)) / u;
  return x == std::numeric_limits<float>::infinity() ? x : y;
}

// Of exp(-|x|), which does not overflow where sigmoid(x) is tiny.
template <typename V>
inline V sigmoid(V x) {
  const V e = exp(x < 0 ? x : -x);
  return (x < 0 ? e : splat<std::remove_reference_t<decltype(x[0])>>(1)) / (1 + e);
}

// log(1 + exp(x))
template <typename V>
inline V softplus(V x) {
  return at_least(x, V{}) + log1p(exp(x < 0 ? x : -x));
}

}  // namespace pnf::cpu::PNF_ISA
