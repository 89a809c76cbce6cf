#include "cpu/convolution.h"

#include "cpu/gemm.h"
#include "cpu/winograd.h"

namespace pnf::cpu::PNF_ISA {

namespace {

// Calls body(grid) with the tiles that take fewer products. In images narrower than a tile, where a direct convolution
// adds up little, the wider ones would have more than twice its rounding errors.
template <typename Body>
void with_grid(const Convolution& c, const Body& body) {
  if (c.width >= 4 && (c.width + 3) / 4 * Grid<4>::points < (c.width + 1) / 2 * Grid<2>::points) {
    body(Grid<4>(c));
  } else {
    body(Grid<2>(c));
  }
}

}  // namespace

void convolution(float* y, const float* add, const float* x, const float* weight, const float* bias,
                 const Convolution& c, bool relu, int threads) {
  const float least = relu ? 0 : kLowest;
  if (c.size == 1) {
    pointwise(y, add, x, weight, bias, least, c.batch * c.height * c.width, c.inputs, c.outputs, c.input, c.output,
              threads);
    return;
  }
  with_grid(c, [&]<int columns>(const Grid<columns>& grid) {
    const Pixels pixels(kLeftEdge, x, c, c.inputs);
    winograd(y, add, pixels, bias, least, grid, c.outputs, threads, [&](float* to, int helpers) {
      transform_weight<columns>(to, weight, c.inputs, c.outputs, c.input, c.output, c.tap, false, helpers);
    });
  });
}

void convolution_backward_input(float* grad_x, const float* grad_y, const float* weight, const Convolution& c,
                                int threads) {
  if (c.size == 1) {
    pointwise(grad_x, nullptr, grad_y, weight, nullptr, kLowest, c.batch * c.height * c.width, c.outputs, c.inputs,
              c.output, c.input, threads);
    return;
  }
  with_grid(c, [&]<int columns>(const Grid<columns>& grid) {
    const Pixels pixels(kLeftEdge, grad_y, c, c.outputs);
    winograd(grad_x, nullptr, pixels, nullptr, kLowest, grid, c.inputs, threads, [&](float* to, int helpers) {
      transform_weight<columns>(to, weight, c.outputs, c.inputs, c.output, c.input, c.tap, true, helpers);
    });
  });
}

void convolution_backward_weight(float* grad_weight, float* grad_bias, const float* grad_y, const float* x,
                                 const Convolution& c, int threads) {
  if (c.size == 1) {
    pointwise_backward_weight(grad_weight, grad_bias, grad_y, x, c.batch * c.height * c.width, c.inputs, c.outputs,
                              threads);
    return;
  }
  with_grid(c,
            [&](const auto& grid) { winograd_backward_weight(grad_weight, grad_bias, grad_y, x, c, grid, threads); });
}

}  // namespace pnf::cpu::PNF_ISA
