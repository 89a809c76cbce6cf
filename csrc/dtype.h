// The dtypes of tensors; Python passes them by number.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pnf {

enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Storage only; arithmetic is done in Wide<T>.
struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// The bytes of an entry.
inline int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// float32, or float64 for float64.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls body(T{}) with the type of the entries.
template <typename Body>
void with_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat64: return body(double{});
    case DType::kFloat32: return body(float{});
    case DType::kBFloat16: return body(BFloat16{});
    case DType::kFloat16: return body(Float16{});
  }
  __builtin_unreachable();  // Python passes no other number
}

}  // namespace pnf
