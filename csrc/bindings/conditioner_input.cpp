#include "cpu/conditioner_input.h"

#include "bindings.h"

namespace pnf {
void bind_conditioner_input(py::module_& cpu) {
  def(cpu, "conditioner_input",
      [](Address h, Address mean, Address var, Address x, Address condition, Address offset, int64_t batch,
         int64_t channels, int64_t start, int64_t kept, int64_t beside, int64_t height, int64_t width, bool board,
         int parity, bool channels_last, int norm, double gain, double eps, DType dtype, int threads) {
        const cpu::ConditionerInput shape{batch,  channels, start, kept,   beside,
                                          height, width,    board, parity, channels_last};
        cpu::conditioner_input(at(h), at(mean), at(var), at(x), at(condition), at(offset), shape,
                               static_cast<cpu::Norm>(norm), gain, eps, dtype, threads);
      });
  def(cpu, "conditioner_input_backward",
      [](Address grad_x, Address grad_offset, Address grad_h, Address x, Address offset, Address mean, Address var,
         int64_t batch, int64_t channels, int64_t start, int64_t kept, int64_t beside, int64_t height, int64_t width,
         bool board, int parity, bool channels_last, int norm, double gain, double eps, DType dtype, int threads) {
        const cpu::ConditionerInput shape{batch,  channels, start, kept,   beside,
                                          height, width,    board, parity, channels_last};
        cpu::conditioner_input_backward(at(grad_x), at(grad_offset), at(grad_h), at(x), at(offset), at(mean), at(var),
                                        shape, static_cast<cpu::Norm>(norm), gain, eps, dtype, threads);
      });
}

}  // namespace pnf
