#include "cpu/haar_bounded.h"

#include "bindings.h"

namespace pnf {

void bind_haar_bounded(py::module_& cpu) {
  def(cpu, "haar_bounded_split",
      [](Address s, Address u, Address log_det, Address x, Address gamma, int64_t examples, int64_t channels,
         int64_t length, int64_t stride, bool channels_last, DType dtype, int threads) {
        cpu::haar_bounded_split(at(s), at(u), at(log_det), at(x), at(gamma), examples, channels, length, stride,
                                channels_last, dtype, threads);
      });
  def(cpu, "haar_bounded_split_backward",
      [](Address grad_x, Address grad_gamma, Address grad_s, Address grad_u, Address grad_log_det, Address x,
         Address gamma, int64_t examples, int64_t channels, int64_t length, int64_t stride, bool channels_last,
         DType dtype, int threads) {
        cpu::haar_bounded_split_backward(at(grad_x), at(grad_gamma), at(grad_s), at(grad_u), at(grad_log_det), at(x),
                                         at(gamma), examples, channels, length, stride, channels_last, dtype, threads);
      });
  def(cpu, "haar_bounded_merge",
      [](Address x, Address log_det, Address s, Address u, Address gamma, int64_t examples, int64_t channels,
         int64_t length, int64_t stride, bool channels_last, DType dtype, int threads) {
        cpu::haar_bounded_merge(at(x), at(log_det), at(s), at(u), at(gamma), examples, channels, length, stride,
                                channels_last, dtype, threads);
      });
  def(cpu, "haar_bounded_merge_backward",
      [](Address grad_s, Address grad_u, Address grad_gamma, Address grad_x, Address grad_log_det, Address s, Address u,
         Address gamma, int64_t examples, int64_t channels, int64_t length, int64_t stride, bool channels_last,
         DType dtype, int threads) {
        cpu::haar_bounded_merge_backward(at(grad_s), at(grad_u), at(grad_gamma), at(grad_x), at(grad_log_det), at(s),
                                         at(u), at(gamma), examples, channels, length, stride, channels_last, dtype,
                                         threads);
      });
}

}  // namespace pnf
