// Functions of vectors of float or double.
//
// They treat NaN, infinities, denormals and signed zeros as the C library does. In float they err by about 1.5 units in
// the last place at most; in double they call the C library for each entry.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

// Exact, and one instruction for a vector, which the compiler finds.
template <typename V>
inline V floor(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = std::floor(x[i]);
  return x;
}

template <typename V>
inline V sqrt(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// exp(x) = 2^k (1 + p); n is k as a C.
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
  // Terms in pairs: a processor works on several at once, so this takes half as long as Horner's scheme.
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

// For x >= 0: exp(-x), or 0 where it is no normal number, and 1 - exp(-x). The latter does not cancel: where x is
// small, k is 0 and it is -p.
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

// log(x / 2^shift) of a positive normal number.
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

// For x >= 0, corrected for the rounding of 1 + x.
inline Vec<float> log1p(Vec<float> x) {
  const Vec<float> u = 1.0f + x;
  const Vec<float> y = log(u) + (x - (u - 1.0f)) / u;
  return x == std::numeric_limits<float>::infinity() ? x : y;
}

// From exp(-|x|), which does not overflow where sigmoid(x) is tiny.
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

inline Vec<float> exponential(Vec<float> x) { return exp(x); }

inline Vec<double> exponential(Vec<double> x) {
  const Reduced<double> e = reduce(at_most(at_least(x, splat(-746.0)), splat(710.0)));
  // In two steps, since 2^k may be out of range where exp(x) is not.
  const IntVec<double> half = e.k >> 1;
  return (1.0 + e.p) * bit_cast<Vec<double>>((half + kBias<double>) << kMantissa<double>) *
         bit_cast<Vec<double>>((e.k - half + kBias<double>) << kMantissa<double>);
}

template <typename C>
struct Tanh {
  Vec<C> value, slope;  // tanh(u) and 1 - tanh(u)^2
};

// With e = exp(-2 |u|) and q = e / (1 + e), 1 - tanh(u)^2 = 4 q (1 - q), which never cancels, for q <= 1 / 2, and
// tanh |u| = 1 - 2 q, or (1 - e) / (1 + e) where that would cancel.
template <typename C>
inline Tanh<C> tanh_slope(Vec<C> u) {
  const Vec<C> magnitude = abs<C>(u);
  const Decay<C> e = decay<C>(magnitude * 2);
  const Vec<C> inverse = 1 / (1 + e.value), q = e.value * inverse;
  const Vec<C> value = magnitude < C{0.5} ? e.rest * inverse : 1 - 2 * q;
  return {copy_sign<C>(value, u), 4 * q * (1 - q)};
}

}  // namespace pnf::cpu::PNF_ISA
