// The module pnf._C: what it was built with, and the ops of each device in a submodule of its own.

#include "bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  py::module_ cpu = m.def_submodule("cpu");
  py::module_ cuda = m.def_submodule("cuda");
  pnf::bind_masking(cpu, cuda);

  py::dict build;
  build["version"] = PNF_VERSION;
  build["compiler"] = PNF_COMPILER;
#ifdef PNF_WITH_CUDA
  build["cuda"] = true;
  build["nvcc"] = PNF_NVCC;
  build["architectures"] = PNF_CUDA_ARCHITECTURES;
#else
  build["cuda"] = false;
#endif
  m.attr("build") = build;
}
