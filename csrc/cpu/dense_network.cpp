#include "cpu/dense_network.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

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

// The tasks of a layer. Those of the next one begin when the first ones, so many, are done.
struct Step {
  int64_t tasks, awaited;
};

// Calls task(step, i) for all tasks of all steps, each on the next thread that is free. One parallel loop, since the
// end of each would wait for its slowest thread.
template <typename Task>
void share_out(const std::vector<Step>& steps, int64_t work, int threads, const Task& task) {
  int64_t helpers = 1;
  for (const Step& step : steps) helpers = std::max(helpers, work < (1 << 16) ? 1 : step.tasks);
  helpers = std::min<int64_t>(helpers, threads);
  std::atomic<int64_t> next{0}, done{0};
  parallel_for(helpers, 1, threads, [&](int64_t, int64_t) {
    size_t step = 0;
    int64_t first = 0, needed = 0;  // the number of the step's first task, and of the tasks that it waits for
    for (;;) {
      const int64_t i = next.fetch_add(1);
      for (; step < steps.size() && i - first >= steps[step].tasks; ++step) {
        first += steps[step].tasks;
        needed += steps[step].awaited;
      }
      if (step == steps.size()) return;
      while (done.load(std::memory_order_acquire) < needed) std::this_thread::yield();
      task(step, i - first);
      if (i - first < steps[step].awaited) done.fetch_add(1, std::memory_order_release);
    }
  });
}

// The inputs of the first layer.
std::vector<Columns> first_inputs(const DenseNetwork& network, const float* x, float* grad_x, const float* condition,
                                  float* grad_condition) {
  std::vector<Columns> found;
  found.push_back({x, grad_x, 0, network.kept});
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

// The multiplications of the network.
int64_t work_of(const DenseNetwork& network) {
  int64_t work = 0;
  for (const Linear& layer : network.layers) work += network.batch * layer.inputs * layer.outputs;
  return work;
}

}  // namespace

void dense_network(float* y, float* hidden, const float* x, const float* condition, const DenseNetwork& network,
                   int threads) {
  const int64_t batch = network.batch;
  const size_t last = network.layers.size() - 1;
  std::vector<std::vector<Columns>> inputs{first_inputs(network, x, nullptr, condition, nullptr)};
  std::vector<float*> results;
  std::vector<int64_t> shares;
  std::vector<Step> steps;
  for (size_t i = 0; i <= last; ++i) {
    const Linear& layer = network.layers[i];
    const int64_t panels = (layer.outputs + kPanel - 1) / kPanel;
    shares.push_back(shares_of(panels, batch, threads));
    steps.push_back({panels * shares[i], panels * shares[i]});
    results.push_back(i == last ? y : hidden);
    inputs.push_back({{hidden, nullptr, 0, layer.outputs}});
    hidden += batch * layer.outputs;
  }
  share_out(steps, work_of(network), threads, [&](size_t i, int64_t task) {
    const Linear& layer = network.layers[i];
    const int64_t share = task % shares[i], begin = batch * share / shares[i], end = batch * (share + 1) / shares[i];
    for (size_t k = inputs[i].size(); k-- > 0;) {
      const Columns& columns = inputs[i][k];
      const bool first = k + 1 == inputs[i].size();
      pointwise_panel(results[i], first ? nullptr : results[i], columns.x, layer.weight + columns.first,
                      first ? layer.bias : nullptr, k > 0 || i == last ? kLowest : 0, begin, end,
                      task / shares[i] * kPanel, columns.width, layer.outputs, 1, layer.inputs);
    }
  });
}

void dense_network_backward(float* grad_x, float* grad_condition, const std::vector<LinearGradients>& grads,
                            float* scratch, const float* grad_y, const float* hidden, const float* x,
                            const float* condition, const DenseNetwork& network, int threads) {
  const int64_t batch = network.batch;
  // The layers from the last one to the first.
  struct Work {
    size_t layer;
    const float* grad_y;
    std::vector<Columns> inputs;
    int64_t of_inputs, of_weight, shares;  // panels of the gradients of the inputs and of the weight
  };
  for (size_t i = 1; i < network.layers.size(); ++i) {
    hidden += batch * network.layers[i].inputs;
    scratch += batch * network.layers[i].inputs;
  }
  std::vector<Work> works;
  std::vector<Step> steps;
  for (size_t i = network.layers.size(); i-- > 0;) {
    const Linear& layer = network.layers[i];
    Work work{i, grad_y, {}, 0, 0, 0};
    if (i > 0) {
      hidden -= batch * layer.inputs;
      scratch -= batch * layer.inputs;
      work.inputs.push_back({hidden, scratch, 0, layer.inputs});
    } else {
      work.inputs = first_inputs(network, x, grad_x, condition, grad_condition);
    }
    for (const Columns& columns : work.inputs) {
      if (columns.grad) work.of_inputs += columns.panels();
      work.of_weight += columns.panels();
    }
    const int64_t panels = work.of_inputs + work.of_weight;
    work.shares = shares_of(panels, std::min(batch, layer.outputs), threads);
    // After the panels the bias.
    steps.push_back({panels * work.shares + 1, work.of_inputs * work.shares});
    grad_y = work.inputs[0].grad;
    works.push_back(std::move(work));
  }
  share_out(steps, work_of(network), threads, [&](size_t step, int64_t task) {
    const Work& work = works[step];
    const Linear& layer = network.layers[work.layer];
    int64_t panel = task / work.shares;
    if (panel == work.of_inputs + work.of_weight) {
      bias_gradient(grads[work.layer].bias, work.grad_y, layer.outputs, batch);
      return;
    }
    const bool weight = panel >= work.of_inputs;
    if (weight) panel -= work.of_inputs;
    const Columns* columns = work.inputs.data();
    for (; panel >= ((weight || columns->grad) ? columns->panels() : 0); ++columns) {
      if (weight || columns->grad) panel -= columns->panels();
    }
    const int64_t share = task % work.shares, rows = weight ? layer.outputs : batch;
    const int64_t begin = rows * share / work.shares, end = rows * (share + 1) / work.shares;
    if (weight) {
      weight_panel(grads[work.layer].weight, *columns, work.grad_y, layer, batch, begin, end, panel * kPanel);
    } else {
      input_panel(*columns, work.grad_y, layer, work.layer > 0, begin, end, panel * kPanel);
    }
  });
}

}  // namespace pnf::cpu::PNF_ISA
