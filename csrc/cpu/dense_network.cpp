#include "cpu/dense_network.h"

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "cpu/gemm.h"
#include "cpu/parallel.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// Columns of a layer's input that lie together in memory, [batch][width], from column `first` of the weight on.
struct Columns {
  const float* x;
  float* grad;  // null if it is not wanted
  int64_t first, width;

  int64_t panels() const { return (width + kPanel - 1) / kPanel; }
};

// In how many shares each of so many panels is worked on, so that there are enough for the threads.
int64_t shares_of(int64_t panels, int64_t rows, int threads) {
  return std::clamp<int64_t>((threads + panels - 1) / std::max<int64_t>(panels, 1), 1,
                             std::max<int64_t>(rows / kBlock, 1));
}

// Calls task(0) to task(count - 1), each on the next thread that is free.
template <typename Task>
void share_out(int64_t count, int64_t work, int threads, const Task& task) {
  const int64_t helpers = work < (1 << 16) ? 1 : std::min<int64_t>(threads, count);
  std::atomic<int64_t> next{0};
  parallel_for(helpers, 1, threads, [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
  });
}

// The inputs of the first layer.
std::vector<Columns> first_inputs(const DenseNetwork& network, const float* x, float* grad_x, const float* condition,
                                  float* grad_condition) {
  std::vector<Columns> found{{x, grad_x, 0, network.kept}};
  if (condition) found.push_back({condition, grad_condition, network.kept, network.layers[0].inputs - network.kept});
  return found;
}

// Rows [begin, end) of panel j of the gradient of the columns, which passes a ReLU if `masked`.
void input_panel(const Columns& columns, const float* grad_y, const Linear& layer, bool masked, int64_t begin,
                 int64_t end, int64_t j) {
  pointwise_panel(columns.grad, nullptr, grad_y, layer.weight + columns.first, nullptr, kLowest, begin, end, j,
                  layer.outputs, columns.width, layer.inputs, 1);
  if (!masked) return;
  const int64_t last = std::min(j + kPanel, columns.width);
  for (int64_t i = begin; i < end; ++i) {
    float* const grad = columns.grad + i * columns.width;
    const float* const passed = columns.x + i * columns.width;
    for (int64_t k = j; k < last; ++k) grad[k] = passed[k] <= 0 ? 0 : grad[k];
  }
}

// Rows [begin, end) of panel j of the gradient of the weight's columns.
void weight_panel(float* grad_weight, const Columns& columns, const float* grad_y, const Linear& layer, int64_t batch,
                  int64_t begin, int64_t end, int64_t j) {
  const int64_t written = std::min(kPanel, columns.width - j), width = round_up(written, kWidth);
  const bool whole = written == width;
  float* const out = grad_weight + begin * layer.inputs + columns.first + j;
  float* const to = whole ? out : workspace(kProduct, (end - begin) * kPanel);
  const int64_t row = whole ? layer.inputs : kPanel;
  float* const right = workspace(kRight, kSlab * kPanel);
  const float* const nothing = zeros(kPanel);
  for (int64_t start = 0, n; start < batch; start += n) {
    n = std::min(kSlab, batch - start);
    copy_rows(right, columns.x + start * columns.width + j, n, written, n, kPanel, columns.width);
    multiply(to, nothing, start > 0 ? to : nullptr, grad_y + start * layer.outputs + begin, right, end - begin, width,
             n, 0, row, row, 1, layer.outputs);
  }
  for (int64_t i = 0; !whole && i < end - begin; ++i) std::copy_n(to + i * kPanel, written, out + i * layer.inputs);
}

void bias_gradient(float* grad_bias, const float* grad_y, int64_t outputs, int64_t batch) {
  std::vector<double> total(static_cast<size_t>(outputs));
  add_rows(total.data(), grad_y, batch, outputs, outputs);
  std::transform(total.begin(), total.end(), grad_bias, [](double sum) { return static_cast<float>(sum); });
}

}  // namespace

void dense_network(float* y, float* hidden, const float* x, const float* condition, const DenseNetwork& network,
                   int threads) {
  const int64_t batch = network.batch;
  std::vector<Columns> inputs = first_inputs(network, x, nullptr, condition, nullptr);
  for (size_t i = 0; i < network.layers.size(); ++i) {
    const Linear& layer = network.layers[i];
    const bool last = i + 1 == network.layers.size();
    float* const to = last ? y : hidden;
    const int64_t panels = (layer.outputs + kPanel - 1) / kPanel;
    const int64_t shares = shares_of(panels, batch, threads);
    share_out(panels * shares, batch * layer.inputs * layer.outputs, threads, [&](int64_t task) {
      const int64_t share = task % shares, begin = batch * share / shares, end = batch * (share + 1) / shares;
      for (size_t k = inputs.size(); k-- > 0;) {
        const bool first = k + 1 == inputs.size();
        pointwise_panel(to, first ? nullptr : to, inputs[k].x, layer.weight + inputs[k].first,
                        first ? layer.bias : nullptr, k > 0 || last ? kLowest : 0, begin, end, task / shares * kPanel,
                        inputs[k].width, layer.outputs, 1, layer.inputs);
      }
    });
    inputs = {{to, nullptr, 0, layer.outputs}};
    hidden += batch * layer.outputs;
  }
}

void dense_network_backward(float* grad_x, float* grad_condition, const std::vector<LinearGradients>& grads,
                            float* scratch, const float* grad_y, const float* hidden, const float* x,
                            const float* condition, const DenseNetwork& network, int threads) {
  const int64_t batch = network.batch;
  int64_t widest = 0;
  for (size_t i = 1; i < network.layers.size(); ++i) {
    widest = std::max(widest, network.layers[i].inputs);
    hidden += batch * network.layers[i].inputs;
  }
  for (size_t i = network.layers.size(); i-- > 0;) {
    const Linear& layer = network.layers[i];
    std::vector<Columns> inputs = first_inputs(network, x, grad_x, condition, grad_condition);
    if (i > 0) {
      hidden -= batch * layer.inputs;
      inputs = {{hidden, scratch + static_cast<int64_t>(i % 2) * batch * widest, 0, layer.inputs}};
    }
    int64_t of_inputs = 0, of_weight = 0;
    for (const Columns& columns : inputs) {
      if (columns.grad) of_inputs += columns.panels();
      of_weight += columns.panels();
    }
    // Every share of the panels of the inputs' gradients, then those of the weight's, then the bias.
    const int64_t panels = of_inputs + of_weight;
    const int64_t shares = shares_of(panels, std::min(batch, layer.outputs), threads);
    share_out(panels * shares + 1, batch * layer.inputs * layer.outputs, threads, [&](int64_t task) {
      int64_t panel = task / shares;
      if (panel == panels) {
        bias_gradient(grads[i].bias, grad_y, layer.outputs, batch);
        return;
      }
      const bool weight = panel >= of_inputs;
      if (weight) panel -= of_inputs;
      const Columns* columns = inputs.data();
      for (; panel >= ((weight || columns->grad) ? columns->panels() : 0); ++columns) {
        if (weight || columns->grad) panel -= columns->panels();
      }
      const int64_t share = task % shares, rows = weight ? layer.outputs : batch;
      const int64_t begin = rows * share / shares, end = rows * (share + 1) / shares;
      if (weight) {
        weight_panel(grads[i].weight, *columns, grad_y, layer, batch, begin, end, panel * kPanel);
      } else {
        input_panel(*columns, grad_y, layer, i > 0, begin, end, panel * kPanel);
      }
    });
    grad_y = inputs[0].grad;
  }
}

}  // namespace pnf::cpu::PNF_ISA
