#include "cpu/standard_normal.h"

#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {

void standard_normal(void* out, const void* z, int64_t rows, int64_t length, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const double constant = static_cast<double>(length) * 0.91893853320467274178;  // log(2 pi) / 2
    const auto part = [&](int64_t row, int64_t first, int64_t last) {
      const T* x = static_cast<const T*>(z) + row * length;
      return sum_terms<C>(first, last, [&](int64_t i, auto lanes) {
        const Vec<C> v = lanes.load(x + i);
        return v * v;
      });
    };
    sum_rows(rows, length, threads, part,
             [&](int64_t row, double total) { static_cast<C*>(out)[row] = static_cast<C>(-0.5 * total - constant); });
  });
}

void standard_normal_backward(void* grad_z, const void* grad, const void* z, int64_t rows, int64_t length, DType dtype,
                              int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    for_chunks(rows, length, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
      const Vec<C> factor = splat(-static_cast<const C*>(grad)[row]);
      const T* x = static_cast<const T*>(z) + row * length;
      T* to = static_cast<T*>(grad_z) + row * length;
      for_vectors<C>(first, last, [&](int64_t i, auto lanes) { lanes.store(to + i, factor * lanes.load(x + i)); });
    });
  });
}

}  // namespace pnf::cpu::PNF_ISA
