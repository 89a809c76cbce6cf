// The Python edge: pointers and streams come as integers, so that nothing here depends on PyTorch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pnf {

namespace py = pybind11;

using Address = std::uintptr_t;

inline void* at(Address address) { return reinterpret_cast<void*>(address); }

// One for each file in bindings/; `cuda` stays empty in a build without CUDA.
void bind_masking(py::module_& cpu, py::module_& cuda);

}  // namespace pnf
