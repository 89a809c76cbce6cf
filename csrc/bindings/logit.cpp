#include "cpu/logit.h"

#include "bindings.h"

namespace pnf {

void bind_logit(py::module_& cpu) {
  def(cpu, "logit",
      [](Address y, Address log_det, Address x, int64_t rows, int64_t length, double alpha, DType dtype, int threads) {
        cpu::logit(at(y), at(log_det), at(x), rows, length, alpha, dtype, threads);
      });
  def(cpu, "logit_backward",
      [](Address grad_x, Address grad_y, Address grad_log_det, Address x, int64_t rows, int64_t length, double alpha,
         DType dtype, int threads) {
        cpu::logit_backward(at(grad_x), at(grad_y), at(grad_log_det), at(x), rows, length, alpha, dtype, threads);
      });
  def(cpu, "logit_inverse",
      [](Address x, Address log_det, Address y, int64_t rows, int64_t length, double alpha, DType dtype, int threads) {
        cpu::logit_inverse(at(x), at(log_det), at(y), rows, length, alpha, dtype, threads);
      });
  def(cpu, "logit_inverse_backward",
      [](Address grad_y, Address grad_x, Address grad_log_det, Address y, int64_t rows, int64_t length, double alpha,
         DType dtype, int threads) {
        cpu::logit_inverse_backward(at(grad_y), at(grad_x), at(grad_log_det), at(y), rows, length, alpha, dtype,
                                    threads);
      });
}

}  // namespace pnf
