#include "cpu/standard_normal.h"

#include "bindings.h"

namespace pnf {

void bind_standard_normal(py::module_& cpu) {
  def(cpu, "standard_normal", [](Address out, Address z, int64_t rows, int64_t length, DType dtype, int threads) {
    cpu::standard_normal(at(out), at(z), rows, length, dtype, threads);
  });
  def(cpu, "standard_normal_backward",
      [](Address grad_z, Address grad, Address z, int64_t rows, int64_t length, DType dtype, int threads) {
        cpu::standard_normal_backward(at(grad_z), at(grad), at(z), rows, length, dtype, threads);
      });
}

}  // namespace pnf
