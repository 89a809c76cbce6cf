#include "cpu/haar.h"

#include "bindings.h"

namespace pnf {

void bind_haar(py::module_& cpu) {
  using cpu::Order;
  using cpu::Pyramid;
  def(cpu, "haar_split",
      [](Address s, Address d, Address x, int64_t pairs, int64_t inner, double factor, DType dtype, int threads) {
        void* const parts[] = {at(s), at(d)};
        cpu::haar_pyramid(parts, at(x), Pyramid{1, 2 * pairs, inner, 1, Order::kOneAxis}, factor, dtype, threads);
      });
  def(cpu, "haar_merge",
      [](Address x, Address s, Address d, int64_t pairs, int64_t inner, double factor, DType dtype, int threads) {
        void* const parts[] = {at(s), at(d)};
        cpu::haar_pyramid_inverse(at(x), parts, Pyramid{1, 2 * pairs, inner, 1, Order::kOneAxis}, factor, dtype,
                                  threads);
      });
  def(cpu, "haar_pyramid",
      [](Address base, Address d0, Address d1, Address d2, Address d3, Address d4, Address d5, Address x, int64_t rows,
         int64_t width, int64_t inner, int levels, int order, double factor, DType dtype, int threads) {
        void* const parts[] = {at(base), at(d0), at(d1), at(d2), at(d3), at(d4), at(d5)};
        cpu::haar_pyramid(parts, at(x), Pyramid{rows, width, inner, levels, static_cast<Order>(order)}, factor, dtype,
                          threads);
      });
  def(cpu, "haar_pyramid_inverse",
      [](Address x, Address base, Address d0, Address d1, Address d2, Address d3, Address d4, Address d5, int64_t rows,
         int64_t width, int64_t inner, int levels, int order, double factor, DType dtype, int threads) {
        void* const parts[] = {at(base), at(d0), at(d1), at(d2), at(d3), at(d4), at(d5)};
        cpu::haar_pyramid_inverse(at(x), parts, Pyramid{rows, width, inner, levels, static_cast<Order>(order)}, factor,
                                  dtype, threads);
      });
}

}  // namespace pnf
