#include "cpu/residual_network.h"

#include <pybind11/stl.h>

#include "bindings.h"

namespace pnf {

// Arguments: the addresses of y, the scratch memory and h, of the directions, magnitudes and biases of all filters,
// list after list, and of the four tensors of each norm; inputs, outputs, size, the strides of output, input and tap,
// and whether there is a magnitude, for each filter; batch, height, width, eps, threads.
void bind_residual_network(py::module_& cpu) {
  cpu.def("residual_network", [](const py::args& args) {
    const size_t others = args.size() - 6;
    const auto sizes = args[others].cast<std::vector<int64_t>>();
    const size_t count = sizes.size() / 7, norms = (others - 3 - 3 * count) / 4;
    if (sizes.size() != 7 * count || count % 3 != 2 || others != 3 + 3 * count + 4 * norms ||
        (norms != 0 && norms != (count - 2) / 3 * 2 + 1)) {
      throw std::invalid_argument("residual_network: the tensors and the sizes do not belong together");
    }
    const auto floats = [&](size_t i) { return static_cast<float*>(at(args[i].cast<Address>())); };
    cpu::ResidualNetwork network{{},
                                 {},
                                 args[others + 1].cast<int64_t>(),
                                 args[others + 2].cast<int64_t>(),
                                 args[others + 3].cast<int64_t>(),
                                 args[others + 4].cast<double>()};
    for (size_t i = 0; i < count; ++i) {
      const int64_t* const s = sizes.data() + 7 * i;
      network.filters.push_back({floats(3 + i), s[6] != 0 ? floats(3 + count + i) : nullptr, floats(3 + 2 * count + i),
                                 s[0], s[1], s[2], s[3], s[4], s[5]});
    }
    for (size_t i = 3 + 3 * count; i < others; i += 4) {
      network.norms.push_back({floats(i), floats(i + 1), floats(i + 2), floats(i + 3)});
    }
    const auto threads = args[others + 5].cast<int>();
    float *const y = floats(0), *const scratch = floats(1), *const h = floats(2);
    const py::gil_scoped_release release;
    cpu::residual_network(y, scratch, h, network, threads);
  });
}

}  // namespace pnf
