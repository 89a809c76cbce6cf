#include "cpu/affine_coupling.h"

#include "bindings.h"

namespace pnf {
namespace {

// Two bits for each of x, raw and log_det.
cpu::CouplingDTypes unpack(int dtypes) {
  return {static_cast<DType>(dtypes & 3), static_cast<DType>(dtypes >> 2 & 3), static_cast<DType>(dtypes >> 4 & 3)};
}

template <bool inverse>
void def_affine_coupling(py::module_& m, const char* name, const char* backward_name) {
  def(m, name,
      [](Address y, Address out, Address x, Address raw, Address scale, Address log_det, int64_t batch,
         int64_t channels, int64_t height, int64_t width, int mask, int parity, bool channels_last, int dtypes,
         int threads) {
        const cpu::Coupling coupling{batch,  channels,     height, width, static_cast<cpu::Mask>(mask),
                                     parity, channels_last};
        cpu::affine_coupling(at(y), at(out), at(x), at(raw), at(scale), at(log_det), coupling, inverse, unpack(dtypes),
                             threads);
      });
  def(m, backward_name,
      [](Address grad_x, Address grad_raw, Address grad_scale, Address grad_y, Address grad_log_det, Address x,
         Address raw, Address scale, int64_t batch, int64_t channels, int64_t height, int64_t width, int mask,
         int parity, bool channels_last, int dtypes, int threads) {
        const cpu::Coupling coupling{batch,  channels,     height, width, static_cast<cpu::Mask>(mask),
                                     parity, channels_last};
        cpu::affine_coupling_backward(at(grad_x), at(grad_raw), at(grad_scale), at(grad_y), at(grad_log_det), at(x),
                                      at(raw), at(scale), coupling, inverse, unpack(dtypes), threads);
      });
}

}  // namespace

void bind_affine_coupling(py::module_& cpu) {
  def_affine_coupling<false>(cpu, "affine_coupling", "affine_coupling_backward");
  def_affine_coupling<true>(cpu, "affine_coupling_inverse", "affine_coupling_inverse_backward");
}

}  // namespace pnf
