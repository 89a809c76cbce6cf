#include "cpu/batch_norm_relu.h"

#include "bindings.h"

namespace pnf {

void bind_batch_norm_relu(py::module_& cpu) {
  def(cpu, "batch_norm_relu",
      [](Address y, Address mean, Address var, Address x, Address weight, Address bias, int64_t batch, int64_t channels,
         int64_t sites, bool channels_last, bool statistics, double eps, DType dtype, int threads) {
        cpu::batch_norm_relu(at(y), at(mean), at(var), at(x), at(weight), at(bias),
                             cpu::Channels{batch, channels, sites, channels_last}, statistics, eps, dtype, threads);
      });
  def(cpu, "batch_norm_relu_backward",
      [](Address grad_x, Address grad_weight, Address grad_bias, Address grad_y, Address x, Address weight,
         Address bias, Address mean, Address var, int64_t batch, int64_t channels, int64_t sites, bool channels_last,
         bool statistics, double eps, DType dtype, int threads) {
        cpu::batch_norm_relu_backward(at(grad_x), at(grad_weight), at(grad_bias), at(grad_y), at(x), at(weight),
                                      at(bias), at(mean), at(var), cpu::Channels{batch, channels, sites, channels_last},
                                      statistics, eps, dtype, threads);
      });
}

}  // namespace pnf
