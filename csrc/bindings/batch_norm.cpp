#include "cpu/batch_norm.h"

#include "bindings.h"

namespace pnf {

void bind_batch_norm(py::module_& cpu) {
  // Two bits for each of the dtypes of x and log_det.
  def(cpu, "batch_norm",
      [](Address y, Address out, Address mean, Address var, Address x, Address log_det, int64_t batch, int64_t channels,
         int64_t sites, bool channels_last, bool statistics, double eps, int dtypes, int threads) {
        cpu::batch_norm(at(y), at(out), at(mean), at(var), at(x), at(log_det),
                        cpu::Channels{batch, channels, sites, channels_last}, statistics, eps,
                        static_cast<DType>(dtypes & 3), static_cast<DType>(dtypes >> 2 & 3), threads);
      });
  def(cpu, "batch_norm_backward",
      [](Address grad_x, Address grad_y, Address grad_log_det, Address x, Address mean, Address var, int64_t batch,
         int64_t channels, int64_t sites, bool channels_last, bool statistics, double eps, DType dtype, int threads) {
        cpu::batch_norm_backward(at(grad_x), at(grad_y), at(grad_log_det), at(x), at(mean), at(var),
                                 cpu::Channels{batch, channels, sites, channels_last}, statistics, eps, dtype, threads);
      });
}

}  // namespace pnf
