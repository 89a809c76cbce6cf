#include "cpu/weight_norm.h"

#include <pybind11/stl.h>

#include "bindings.h"
#ifdef PNF_WITH_CUDA
#include "cuda/weight_norm.h"
#endif

namespace pnf {
namespace {

// Arguments: for each member of L its address in every layer, list after list; for each layer its rows, its length and
// whether it has a magnitude; the dtype; threads or a stream.
template <typename L, typename Where>
struct Arguments {
  std::vector<L> layers;
  DType dtype;
  Where where;

  static constexpr size_t kTensors = std::is_same_v<L, Layer> ? 3 : 5;

  explicit Arguments(const py::args& args) {
    const auto sizes = args[args.size() - 3].cast<std::vector<int64_t>>();
    dtype = args[args.size() - 2].cast<DType>();
    where = args[args.size() - 1].cast<Where>();
    const size_t count = sizes.size() / 3;
    if (sizes.size() != 3 * count || args.size() != kTensors * count + 3) {
      throw std::invalid_argument("weight_norm: the tensors and the sizes do not belong together");
    }
    const auto tensor = [&](size_t list, size_t i) { return at(args[list * count + i].cast<Address>()); };
    for (size_t i = 0; i < count; ++i) {
      const bool has_magnitude = sizes[3 * i + 2] != 0;
      if constexpr (std::is_same_v<L, Layer>) {
        layers.push_back(
            {tensor(0, i), tensor(1, i), has_magnitude ? tensor(2, i) : nullptr, sizes[3 * i], sizes[3 * i + 1]});
      } else {
        layers.push_back({tensor(0, i), has_magnitude ? tensor(1, i) : nullptr, tensor(2, i), tensor(3, i),
                          has_magnitude ? tensor(4, i) : nullptr, sizes[3 * i], sizes[3 * i + 1]});
      }
    }
  }
};

template <typename Where, auto& forward, auto& backward>
void def_weight_norm(py::module_& m) {
  m.def("weight_norm", [](const py::args& args) {
    const Arguments<Layer, Where> given(args);
    const py::gil_scoped_release release;
    forward(given.layers, given.dtype, given.where);
  });
  m.def("weight_norm_backward", [](const py::args& args) {
    const Arguments<LayerBackward, Where> given(args);
    const py::gil_scoped_release release;
    backward(given.layers, given.dtype, given.where);
  });
}

#ifdef PNF_WITH_CUDA
template <typename L, auto launch>
constexpr auto launched = [](const std::vector<L>& layers, DType dtype, Address stream) {
  checked<launch>(layers.data(), layers.size(), dtype, stream);
};
#endif

}  // namespace

void bind_weight_norm(py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  def_weight_norm<int, cpu::weight_norm, cpu::weight_norm_backward>(cpu);
#ifdef PNF_WITH_CUDA
  def_weight_norm<Address, launched<Layer, cuda::weight_norm>, launched<LayerBackward, cuda::weight_norm_backward>>(
      cuda);
#endif
}

}  // namespace pnf
