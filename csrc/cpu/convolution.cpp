#include "cpu/convolution.h"

#include "cpu/gemm.h"
#include "cpu/winograd.h"

namespace pnf::cpu::PNF_ISA {

void convolution(float* y, const float* add, const float* x, const float* weight, const float* bias,
                 const Convolution& c, bool relu, int threads) {
  const float least = relu ? 0 : kLowest;
  if (c.size == 1) {
    pointwise(y, add, x, weight, bias, least, c.batch * c.height * c.width, c.inputs, c.outputs, c.input, c.output,
              threads);
    return;
  }
  winograd(y, add, x, bias, least, Grid(c), c.inputs, c.outputs, threads, [&](float* to, int helpers) {
    transform_weight(to, weight, c.inputs, c.outputs, c.input, c.output, c.tap, false, helpers);
  });
}

void convolution_backward_input(float* grad_x, const float* grad_y, const float* weight, const Convolution& c,
                                int threads) {
  if (c.size == 1) {
    pointwise(grad_x, nullptr, grad_y, weight, nullptr, kLowest, c.batch * c.height * c.width, c.outputs, c.inputs,
              c.output, c.input, threads);
    return;
  }
  winograd(grad_x, nullptr, grad_y, nullptr, kLowest, Grid(c), c.outputs, c.inputs, threads,
           [&](float* to, int helpers) {
             transform_weight(to, weight, c.outputs, c.inputs, c.output, c.input, c.tap, true, helpers);
           });
}

void convolution_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                 const Convolution& c, int threads) {
  if (c.size == 1) {
    pointwise_backward_weight(grad_weight, grad_bias, grad_y, x, c.batch * c.height * c.width, c.inputs, c.outputs,
                              threads);
    return;
  }
  winograd_backward_weight(grad_weight, grad_bias, grad_y, x, c, threads);
}

}  // namespace pnf::cpu::PNF_ISA
