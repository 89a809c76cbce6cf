#include "cpu/dense_network.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace pnf {
namespace {

// The arguments of a function with so many tensors and lists of a tensor for each layer. After the tensors follow the
// sizes, the batch and threads. The sizes are the features of x, and those of the input and of each layer's result.
struct DenseArguments {
  const py::args& args;
  size_t next = 0, layers = 0;
  cpu::DenseNetwork network{};
  int threads = 0;

  DenseArguments(const py::args& given, size_t tensors, size_t lists) : args(given) {
    const size_t count = args.size() - std::min<size_t>(args.size(), 3);
    const auto sizes = args[count].cast<std::vector<int64_t>>();
    layers = sizes.size() - std::min<size_t>(sizes.size(), 2);
    if (layers == 0 || count != tensors + lists * layers) {
      throw std::invalid_argument("dense_network: the tensors and the sizes do not belong together");
    }
    network.kept = sizes[0];
    network.batch = args[count + 1].cast<int64_t>();
    threads = args[count + 2].cast<int>();
    for (size_t i = 0; i < layers; ++i) network.layers.push_back({nullptr, nullptr, sizes[i + 1], sizes[i + 2]});
  }

  float* take() { return static_cast<float*>(at(args[next++].cast<Address>())); }
};

}  // namespace

void bind_dense_network(py::module_& cpu) {
  // Addresses of y, the hidden layers, x and the condition, of the weights and of the biases. That of a condition that
  // is not there is 0.
  cpu.def("dense_network", [](const py::args& args) {
    DenseArguments from(args, 4, 2);
    float *const y = from.take(), *const hidden = from.take(), *const x = from.take(), *const condition = from.take();
    for (cpu::Linear& layer : from.network.layers) layer.weight = from.take();
    for (cpu::Linear& layer : from.network.layers) layer.bias = from.take();
    const py::gil_scoped_release release;
    cpu::dense_network(y, hidden, x, condition, from.network, from.threads);
  });
  // Addresses of the gradients of x, the condition, the weights and the biases, of the scratch memory, and of what the
  // forward took and returned but for y, whose gradient is there instead, and for the biases. Those of gradients that
  // nobody wants are 0.
  cpu.def("dense_network_backward", [](const py::args& args) {
    DenseArguments from(args, 7, 3);
    float *const grad_x = from.take(), *const grad_condition = from.take();
    std::vector<cpu::LinearGradients> grads(from.layers);
    for (cpu::LinearGradients& grad : grads) grad.weight = from.take();
    for (cpu::LinearGradients& grad : grads) grad.bias = from.take();
    float *const scratch = from.take(), *const grad_y = from.take(), *const hidden = from.take();
    float *const x = from.take(), *const condition = from.take();
    for (cpu::Linear& layer : from.network.layers) layer.weight = from.take();
    const py::gil_scoped_release release;
    cpu::dense_network_backward(grad_x, grad_condition, grads, scratch, grad_y, hidden, x, condition, from.network,
                                from.threads);
  });
}

}  // namespace pnf
