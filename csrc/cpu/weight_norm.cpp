#include "cpu/weight_norm.h"

#include "cpu/reduce.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // entries that are worth a thread

// Calls body(layer, row) for every row of every layer.
template <typename L, typename Body>
void for_rows(const std::vector<L>& layers, int threads, const Body& body) {
  int64_t rows = 0, entries = 0;
  for (const L& layer : layers) rows += layer.rows, entries += layer.rows * layer.length;
  if (rows == 0) return;
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(entries / rows, 1), 1);
  parallel_for(rows, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const L& layer : layers) {
      for (int64_t i = std::max(begin, first); i < std::min(end, first + layer.rows); ++i) body(layer, i - first);
      first += layer.rows;
    }
  });
}

// The sum of a[i] b[i].
template <typename T>
double product_sum(const T* a, const T* b, int64_t length) {
  return sum_terms<Wide<T>>(0, length, [&](int64_t i, auto lanes) { return lanes.load(a + i) * lanes.load(b + i); });
}

double inverse_norm(double square) { return 1 / std::sqrt(at_least(square, kLeastSquare)); }

}  // namespace

void weight_norm(const std::vector<Layer>& layers, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    for_rows(layers, threads, [](const Layer& layer, int64_t row) {
      const T* x = static_cast<const T*>(layer.direction) + row * layer.length;
      T* out = static_cast<T*>(layer.weight) + row * layer.length;
      const double square = product_sum(x, x, layer.length);
      double factor = inverse_norm(square);
      if (layer.magnitude) factor *= static_cast<double>(widen(static_cast<const T*>(layer.magnitude)[row]));
      const C scale = static_cast<C>(factor);
      for_vectors<C>(0, layer.length, [&](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(x + i) * scale); });
    });
  });
}

void weight_norm_backward(const std::vector<LayerBackward>& layers, DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    for_rows(layers, threads, [](const LayerBackward& layer, int64_t row) {
      const T* x = static_cast<const T*>(layer.direction) + row * layer.length;
      const T* grad = static_cast<const T*>(layer.grad) + row * layer.length;
      T* out = static_cast<T*>(layer.grad_direction) + row * layer.length;
      const double square = product_sum(x, x, layer.length);
      const double along = product_sum(x, grad, layer.length);
      const double inverse = inverse_norm(square);
      double factor = inverse;
      if (layer.magnitude) {
        factor *= static_cast<double>(widen(static_cast<const T*>(layer.magnitude)[row]));
        static_cast<T*>(layer.grad_magnitude)[row] = narrow<T>(static_cast<C>(along * inverse));
      }
      const C scale = static_cast<C>(factor);
      // Below its lower bound, the norm is a constant.
      const C through = square >= kLeastSquare ? static_cast<C>(along / square) : C{0};
      for_vectors<C>(0, layer.length, [&](int64_t i, auto lanes) {
        lanes.store(out + i, (lanes.load(grad + i) - lanes.load(x + i) * through) * scale);
      });
    });
  });
}

}  // namespace pnf::cpu::PNF_ISA
