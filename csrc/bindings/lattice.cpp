#include "cpu/lattice.h"

#include "bindings.h"

namespace pnf {

void bind_lattice(py::module_& cpu) {
  def(cpu, "lattice_split",
      [](Address coarser, Address pairs, Address x, int64_t blocks, int64_t run, int64_t levels, DType dtype,
         int threads) { cpu::lattice_split(at(coarser), at(pairs), at(x), blocks, run, levels, dtype, threads); });
  def(cpu, "lattice_merge",
      [](Address x, Address coarser, Address pairs, int64_t blocks, int64_t run, int64_t levels, DType dtype,
         int threads) { cpu::lattice_merge(at(x), at(coarser), at(pairs), blocks, run, levels, dtype, threads); });
}

}  // namespace pnf
