// The module pnf._C: a submodule of ops for each device, and how it was built.

#include "bindings.h"

#include "cpu/isa.h"
#ifdef PNF_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  py::module_ cpu = m.def_submodule("cpu");
  py::module_ cuda = m.def_submodule("cuda");
  pnf::bind_act_norm(cpu);
  pnf::bind_affine_coupling(cpu);
  pnf::bind_batch_norm(cpu);
  pnf::bind_batch_norm_relu(cpu);
  pnf::bind_conditioner_input(cpu);
  pnf::bind_convolution(cpu);
  pnf::bind_dense_network(cpu);
  pnf::bind_logit(cpu);
  pnf::bind_haar(cpu);
  pnf::bind_haar_bounded(cpu);
  pnf::bind_lattice(cpu);
  pnf::bind_masking(cpu, cuda);
  pnf::bind_residual_network(cpu);
  pnf::bind_squeeze(cpu);
  pnf::bind_standard_normal(cpu);
  pnf::bind_weight_norm(cpu, cuda);

  cpu.def("levels", [] {
    py::list names;
    for (int i = 0; i < pnf::cpu::level_count(); ++i) names.append(pnf::cpu::level_name(i));
    return names;
  });
  cpu.def("level", pnf::cpu::level);
  cpu.def("set_level", pnf::cpu::set_level);

  py::dict build;
  build["version"] = PNF_VERSION;
  build["compiler"] = PNF_COMPILER;
#ifdef PNF_WITH_CUDA
  cuda.def("why_not", pnf::cuda::why_not);
  build["cuda"] = true;
  build["nvcc"] = PNF_NVCC;
  build["architectures"] = PNF_CUDA_ARCHITECTURES;
#else
  build["cuda"] = false;
#endif
  m.attr("build") = build;
}
