#include "cpu/squeeze.h"

#include "bindings.h"

namespace pnf {

void bind_squeeze(py::module_& cpu) {
  def(cpu, "squeeze",
      [](Address y, Address x, int64_t batch, int64_t channels, int64_t height, int64_t width, bool factor,
         bool channels_last, int size, int threads) {
        cpu::squeeze(at(y), at(x), cpu::Squeezed{batch, channels, height, width, factor, channels_last}, size, threads);
      });
  def(cpu, "squeeze_inverse",
      [](Address x, Address y, int64_t batch, int64_t channels, int64_t height, int64_t width, bool factor,
         bool channels_last, int size, int threads) {
        cpu::squeeze_inverse(at(x), at(y), cpu::Squeezed{batch, channels, height, width, factor, channels_last}, size,
                             threads);
      });
}

}  // namespace pnf
