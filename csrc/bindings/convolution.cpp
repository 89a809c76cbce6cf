#include "cpu/convolution.h"

#include "bindings.h"

namespace pnf {
namespace {

float* floats(Address address) { return static_cast<float*>(at(address)); }

}  // namespace

void bind_convolution(py::module_& cpu) {
  def(cpu, "convolution",
      [](Address y, Address add, Address x, Address weight, Address bias, int64_t batch, int64_t height, int64_t width,
         int64_t inputs, int64_t outputs, int64_t size, int64_t output, int64_t input, int64_t tap, bool with_add,
         bool relu, int threads) {
        cpu::convolution(floats(y), with_add ? floats(add) : nullptr, floats(x), floats(weight), floats(bias),
                         cpu::Convolution{batch, height, width, inputs, outputs, size, output, input, tap}, relu,
                         threads);
      });
  def(cpu, "convolution_backward",
      [](Address grad_x, Address grad_weight, Address grad_bias, Address grad_y, Address x, Address weight,
         int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t size, int64_t output,
         int64_t input, int64_t tap, bool of_input, int threads) {
        const cpu::Convolution shape{batch, height, width, inputs, outputs, size, output, input, tap};
        if (of_input) cpu::convolution_backward_input(floats(grad_x), floats(grad_y), floats(weight), shape, threads);
        cpu::convolution_backward_weight(floats(grad_weight), floats(grad_bias), floats(grad_y), floats(x), shape,
                                         threads);
      });
}

}  // namespace pnf
