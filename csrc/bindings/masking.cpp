#include "cpu/masking.h"
#include "bindings.h"
#ifdef PNF_WITH_CUDA
#include "cuda/masking.h"
#endif

namespace pnf {
namespace {

// The functions of the two devices differ in their last argument only: threads or a stream.
template <typename Where, auto& apply, auto& pack, auto& unpack, auto& input, auto& input_backward>
void def_masking(py::module_& m) {
  def(m, "mask_apply",
      [](Address out, Address x, int64_t outer, int64_t height, int64_t width, int64_t inner, int size, int parity,
         Where where) { apply(at(out), at(x), Board{outer, height, width, inner}, size, parity, where); });
  def(m, "mask_pack",
      [](Address kept, Address rest, Address x, int64_t outer, int64_t height, int64_t width, int64_t inner, int size,
         int parity,
         Where where) { pack(at(kept), at(rest), at(x), Board{outer, height, width, inner}, size, parity, where); });
  def(m, "mask_unpack",
      [](Address out, Address kept, Address rest, int64_t outer, int64_t height, int64_t width, int64_t inner, int size,
         int parity, Where where) {
        unpack(at(out), at(kept), at(rest), Board{outer, height, width, inner}, size, parity, where);
      });
  def(m, "mask_input",
      [](Address out, Address x, Address condition, int64_t rows, int64_t x_length, int64_t kept_length,
         int64_t condition_length, int64_t outer, int64_t height, int64_t width, int64_t inner, int size, int parity,
         Where where) {
        input(at(out), at(x), at(condition), ConcatLayout{rows, x_length, kept_length, condition_length},
              Board{outer, height, width, inner}, size, parity, where);
      });
  def(m, "mask_input_backward",
      [](Address x, Address grad, int64_t rows, int64_t x_length, int64_t kept_length, int64_t condition_length,
         int64_t outer, int64_t height, int64_t width, int64_t inner, int size, int parity, Where where) {
        input_backward(at(x), at(grad), ConcatLayout{rows, x_length, kept_length, condition_length},
                       Board{outer, height, width, inner}, size, parity, where);
      });
}

}  // namespace

void bind_masking(py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  def_masking<int, cpu::mask_apply, cpu::mask_pack, cpu::mask_unpack, cpu::mask_input, cpu::mask_input_backward>(cpu);
#ifdef PNF_WITH_CUDA
  def_masking<Address, checked<cuda::mask_apply>, checked<cuda::mask_pack>, checked<cuda::mask_unpack>,
              checked<cuda::mask_input>, checked<cuda::mask_input_backward>>(cuda);
#endif
}

}  // namespace pnf
