#include "cpu/act_norm.h"

#include "bindings.h"

namespace pnf {
namespace {

template <bool inverse>
void def_act_norm(py::module_& m, const char* name, const char* backward_name) {
  // Two bits for each of the dtypes of x and log_det.
  def(m, name,
      [](Address y, Address out, Address x, Address shift, Address log_scale, Address log_det, int64_t batch,
         int64_t channels, int64_t sites, bool channels_last, int dtypes, int threads) {
        cpu::act_norm(at(y), at(out), at(x), at(shift), at(log_scale), at(log_det),
                      cpu::Channels{batch, channels, sites, channels_last}, inverse, static_cast<DType>(dtypes & 3),
                      static_cast<DType>(dtypes >> 2 & 3), threads);
      });
  def(m, backward_name,
      [](Address grad_x, Address grad_shift, Address grad_log_scale, Address grad_y, Address grad_log_det, Address x,
         Address shift, Address log_scale, int64_t batch, int64_t channels, int64_t sites, bool channels_last,
         DType dtype, int threads) {
        cpu::act_norm_backward(at(grad_x), at(grad_shift), at(grad_log_scale), at(grad_y), at(grad_log_det), at(x),
                               at(shift), at(log_scale), cpu::Channels{batch, channels, sites, channels_last}, inverse,
                               dtype, threads);
      });
}

}  // namespace

void bind_act_norm(py::module_& cpu) {
  def_act_norm<false>(cpu, "act_norm", "act_norm_backward");
  def_act_norm<true>(cpu, "act_norm_inverse", "act_norm_inverse_backward");
}

}  // namespace pnf
