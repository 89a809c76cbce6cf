// The Python edge: pointers and streams come as integers, so that nothing here depends on PyTorch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace pnf {

namespace py = pybind11;

using Address = std::uintptr_t;

inline void* at(Address address) { return reinterpret_cast<void*>(address); }

// A function of the module that runs without Python's lock. As a pointer it shares its conversions with all functions
// of its type.
template <typename Function>
void def(py::module_& m, const char* name, const Function& function) {
  m.def(name, +function, py::call_guard<py::gil_scoped_release>());
}

// A launch on a GPU that throws what CUDA says against it.
template <auto launch>
constexpr auto checked = [](const auto&... arguments) {
  if (const char* error = launch(arguments...)) throw std::runtime_error(std::string("a CUDA launch failed: ") + error);
};

// One for each file in bindings/; `cuda` stays empty in a build without CUDA.
void bind_act_norm(py::module_& cpu);
void bind_affine_coupling(py::module_& cpu);
void bind_batch_norm(py::module_& cpu);
void bind_batch_norm_relu(py::module_& cpu);
void bind_conditioner_input(py::module_& cpu);
void bind_convolution(py::module_& cpu);
void bind_dense_network(py::module_& cpu);
void bind_logit(py::module_& cpu);
void bind_haar(py::module_& cpu);
void bind_haar_bounded(py::module_& cpu);
void bind_lattice(py::module_& cpu);
void bind_masking(py::module_& cpu, py::module_& cuda);
void bind_residual_network(py::module_& cpu);
void bind_squeeze(py::module_& cpu);
void bind_standard_normal(py::module_& cpu);
void bind_weight_norm(py::module_& cpu, py::module_& cuda);

}  // namespace pnf

// Python passes a dtype as its number in pnf::DType.
namespace pybind11::detail {

template <>
struct type_caster<pnf::DType> {
  PYBIND11_TYPE_CASTER(pnf::DType, const_name("int"));

  bool load(handle from, bool) {
    const long code = PyLong_AsLong(from.ptr());
    if (code < 0 || code > static_cast<long>(pnf::DType::kFloat16)) {
      PyErr_Clear();
      return false;
    }
    value = static_cast<pnf::DType>(code);
    return true;
  }
};

}  // namespace pybind11::detail
