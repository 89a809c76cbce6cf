#include "cpu/residual_network.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace pnf {
namespace {

// The arguments after the tensors: the sizes of the filters, batch, height, width, eps and threads.
constexpr size_t kOthers = 6;

// A filter has inputs, outputs, size, the strides of output, input and tap, and whether there is a magnitude.
constexpr size_t kSizes = 7;

}  // namespace

// The first arguments are addresses: of y, the scratch memory and h; of the directions, the magnitudes and the biases
// of all filters, list after list; and of the four tensors of each norm.
void bind_residual_network(py::module_& cpu) {
  cpu.def("residual_network", [](const py::args& args) {
    const size_t tensors = args.size() - std::min(args.size(), kOthers);
    const auto sizes = args[tensors].cast<std::vector<int64_t>>();
    const size_t filters = sizes.size() / kSizes, blocks = filters / 3;
    const size_t plain = 3 + 3 * filters, normed = plain + 4 * (2 * blocks + 1);
    if (sizes.size() != kSizes * filters || filters % 3 != 2 || (tensors != plain && tensors != normed)) {
      throw std::invalid_argument("residual_network: the tensors and the sizes do not belong together");
    }
    size_t next = 0;
    const auto take = [&] { return static_cast<float*>(at(args[next++].cast<Address>())); };
    const auto take_list = [&] {
      std::vector<float*> list(filters);
      for (float*& tensor : list) tensor = take();
      return list;
    };
    float *const y = take(), *const scratch = take(), *const h = take();
    const std::vector<float*> directions = take_list(), magnitudes = take_list(), biases = take_list();
    cpu::ResidualNetwork network{};
    for (size_t i = 0; i < filters; ++i) {
      const int64_t* const s = &sizes[kSizes * i];
      network.filters.push_back(
          {directions[i], s[6] != 0 ? magnitudes[i] : nullptr, biases[i], s[0], s[1], s[2], s[3], s[4], s[5]});
    }
    while (next < tensors) network.norms.push_back({take(), take(), take(), take()});
    network.batch = args[tensors + 1].cast<int64_t>();
    network.height = args[tensors + 2].cast<int64_t>();
    network.width = args[tensors + 3].cast<int64_t>();
    network.eps = args[tensors + 4].cast<double>();
    const auto threads = args[tensors + 5].cast<int>();
    const py::gil_scoped_release release;
    cpu::residual_network(y, scratch, h, network, threads);
  });
}

}  // namespace pnf
