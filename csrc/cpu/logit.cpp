#include "cpu/logit.h"

#include <algorithm>
#include <cmath>

#include "cpu/math.h"
#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr double kBoundary = 0x1p-24;  // BOUNDARY of pnf/reference/logit.py

// Entries that are summed in the dtype itself: terms of one sign make longer sums inaccurate.
constexpr int64_t kBlock = 512;

// p and q before they are clamped.
template <typename C>
struct Ends {
  Vec<C> p, q;

  Ends(Vec<C> x, C alpha, C slope) : p(alpha + slope * x), q(alpha + slope * (1 - x)) {}
};

// exp(-|y|), also where p or q is infinite.
template <typename C>
Vec<C> ratio_of(Vec<C> p, Vec<C> q) {
  return (p < q ? p : q) / (p < q ? q : p);
}

template <typename C>
struct Value {
  Vec<C> out, log_det;
};

// The log-determinant without log(4 - 8 alpha), from |y| and ratio = exp(-|y|). Without log(4) it is small where y is
// small, so the entries of a sum are not all rounded the same way.
template <typename C>
Vec<C> log_det_of(Vec<C> magnitude, Vec<C> ratio) {
  return magnitude + 2 * log((1 + ratio) / 2);
}

// tanh(y / 2), the derivative of a log-determinant, from exp(-|y|).
template <typename C>
Vec<C> tanh_half(IntVec<C> negative, Vec<C> ratio) {
  const Vec<C> magnitude = (1 - ratio) / (1 + ratio);
  return negative ? -magnitude : magnitude;
}

// out[i], and a row's log_det = sign * (sum of f(in[i]).log_det + length log(4 - 8 alpha)), by vectors.
template <typename T, typename F>
void map_and_sum(void* out, void* log_det, const void* in, int64_t rows, int64_t length, double alpha, int sign,
                 int threads, const F& f) {
  using C = Wide<T>;
  const double constant = static_cast<double>(length) * std::log(4 - 8 * alpha);
  const auto part = [&](int64_t row, int64_t first, int64_t last) {
    const T* from = static_cast<const T*>(in) + row * length;
    T* to = static_cast<T*>(out) + row * length;
    LaneSum<C> total;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      Vec<C> block{};
      for_vectors<C>(begin, std::min(begin + kBlock, last), [&](int64_t i, auto lanes) {
        const Value<C> v = f(lanes.load(from + i));
        lanes.store(to + i, v.out);
        block += lanes.first(v.log_det);
      });
      total.add(block);
    }
    return total.total();
  };
  sum_rows(rows, length, threads, part, [&](int64_t row, double total) {
    static_cast<C*>(log_det)[row] = static_cast<C>(sign * (total + constant));
  });
}

// grad_in = f(in, grad_out, grad_log_det), by vectors.
template <typename T, typename F>
void map_backward(void* grad_in, const void* grad_out, const void* grad_log_det, const void* in, int64_t rows,
                  int64_t length, int threads, const F& f) {
  using C = Wide<T>;
  for_chunks(rows, length, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
    const T* from = static_cast<const T*>(in) + row * length;
    const T* grad = static_cast<const T*>(grad_out) + row * length;
    T* to = static_cast<T*>(grad_in) + row * length;
    const Vec<C> each = splat(static_cast<const C*>(grad_log_det)[row]);
    for_vectors<C>(first, last, [&](int64_t i, auto lanes) {
      lanes.store(to + i, f(lanes.load(from + i), lanes.load(grad + i), each));
    });
  });
}

}  // namespace

void logit(void* y, void* log_det, const void* x, int64_t rows, int64_t length, double alpha, DType dtype,
           int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C low = static_cast<C>(alpha), slope = static_cast<C>(1 - 2 * alpha);
    map_and_sum<T>(y, log_det, x, rows, length, alpha, 1, threads, [&](Vec<C> v) {
      const Ends<C> free(v, low, slope);
      const Vec<C> p = at_least(free.p, splat<C>(kBoundary)), q = at_least(free.q, splat<C>(kBoundary));
      const Vec<C> out = log(p) - log(q);
      return Value<C>{out, log_det_of<C>(abs<C>(out), ratio_of<C>(p, q))};
    });
  });
}

void logit_backward(void* grad_x, const void* grad_y, const void* grad_log_det, const void* x, int64_t rows,
                    int64_t length, double alpha, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C low = static_cast<C>(alpha), slope = static_cast<C>(1 - 2 * alpha);
    map_backward<T>(grad_x, grad_y, grad_log_det, x, rows, length, threads, [&](Vec<C> v, Vec<C> grad, Vec<C> each) {
      const Vec<C> boundary = splat<C>(kBoundary), zero{};
      const Ends<C> free(v, low, slope);
      const Vec<C> p = at_least(free.p, boundary), q = at_least(free.q, boundary);
      // 1 / p + 1 / q, whose product overflows nowhere: where one is large, the other is clamped.
      const Vec<C> inverse = ((free.p < boundary ? zero : q) + (free.q < boundary ? zero : p)) / (p * q);
      return (grad + each * tanh_half<C>(p < q, ratio_of<C>(p, q))) * (slope * inverse);
    });
  });
}

void logit_inverse(void* x, void* log_det, const void* y, int64_t rows, int64_t length, double alpha, DType dtype,
                   int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C low = static_cast<C>(alpha), slope = static_cast<C>(1 - 2 * alpha);
    map_and_sum<T>(x, log_det, y, rows, length, alpha, -1, threads, [&](Vec<C> v) {
      const Vec<C> magnitude = abs<C>(v), ratio = exp(-magnitude);
      const Vec<C> sigmoid = (v < 0 ? ratio : splat<C>(1)) / (1 + ratio);
      return Value<C>{(sigmoid - low) / slope, log_det_of<C>(magnitude, ratio)};
    });
  });
}

void logit_inverse_backward(void* grad_y, const void* grad_x, const void* grad_log_det, const void* y, int64_t rows,
                            int64_t length, double alpha, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C steepness = static_cast<C>(1 / (1 - 2 * alpha));
    map_backward<T>(grad_y, grad_x, grad_log_det, y, rows, length, threads, [&](Vec<C> v, Vec<C> grad, Vec<C> each) {
      const Decay<C> ratio = decay<C>(abs<C>(v));
      const Vec<C> inverse = 1 / (1 + ratio.value), tanh = copy_sign<C>(ratio.rest * inverse, v);
      return grad * (ratio.value * inverse * inverse * steepness) - each * tanh;
    });
  });
}

}  // namespace pnf::cpu::PNF_ISA
