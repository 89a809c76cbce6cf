#include "cpu/residual_network.h"

#include <cmath>
#include <cstddef>

#include "cpu/batch_norm_relu.h"
#include "cpu/convolution.h"
#include "cpu/parallel.h"
#include "cpu/weight_norm.h"

namespace pnf::cpu::PNF_ISA {
namespace {

// Hands out the scratch memory, buffer after buffer.
struct Scratch {
  float* left;

  float* take(int64_t n) {
    float* const found = left;
    left += (n + kLine - 1) / kLine * kLine;
    return found;
  }
};

// A filter with the batch normalisation that follows it, if any, folded in.
struct Folded {
  std::vector<float> magnitude, bias;
  float* weight;
};

}  // namespace

void residual_network(float* y, float* scratch, const float* h, const ResidualNetwork& network, int threads) {
  const std::vector<Filter>& filters = network.filters;
  const size_t last = filters.size() - 1, blocks = last / 3;
  const int64_t hidden = filters[0].inputs, entries = network.batch * network.height * network.width * hidden;
  // Without norms: (x - 0) / sqrt(1 + 0) * 1 + 0.
  const std::vector<float> zeros(static_cast<size_t>(hidden)), ones(static_cast<size_t>(hidden), 1.0f);
  const bool normed = !network.norms.empty();
  const BatchNorm nothing{ones.data(), zeros.data(), zeros.data(), ones.data()};
  const double eps = normed ? network.eps : 0;
  const auto norm = [&](size_t i) -> const BatchNorm& { return normed ? network.norms[i] : nothing; };

  Scratch memory{scratch};
  std::vector<Folded> folded;
  std::vector<Layer> layers;
  for (size_t i = 0; i <= last; ++i) {
    const Filter& filter = filters[i];
    const bool skip = i < last && i % 3 == 0, first = i < last && i % 3 == 1;
    const BatchNorm& follows = skip ? norm(2 * blocks) : first ? norm(i / 3 * 2 + 1) : nothing;
    const int64_t length = filter.inputs * filter.size * filter.size;
    Folded to{std::vector<float>(static_cast<size_t>(filter.outputs)),
              std::vector<float>(static_cast<size_t>(filter.outputs)), memory.take(filter.outputs * length)};
    for (int64_t o = 0; o < filter.outputs; ++o) {
      double scale = 1, shift = 0;
      if (skip || first) {
        scale = static_cast<double>(follows.weight[o]) / std::sqrt(static_cast<double>(follows.var[o]) + eps);
        // The sum of the skips is normalised, so only one of them brings the shift.
        if (first || i == 0) {
          shift = static_cast<double>(follows.bias[o]) - static_cast<double>(follows.mean[o]) * scale;
        }
      }
      const double magnitude = filter.magnitude ? static_cast<double>(filter.magnitude[o]) : 1;
      to.magnitude[static_cast<size_t>(o)] = static_cast<float>(magnitude * scale);
      to.bias[static_cast<size_t>(o)] = static_cast<float>(static_cast<double>(filter.bias[o]) * scale + shift);
    }
    layers.push_back({to.weight, filter.direction, to.magnitude.data(), filter.outputs, length});
    folded.push_back(std::move(to));
  }
  weight_norm(layers, DType::kFloat32, threads);

  const int64_t sites = network.height * network.width;
  float *const normal = memory.take(entries), *const inner = memory.take(entries);
  float *const state = memory.take(entries), *const out = memory.take(entries);
  // Runs images [first, last) through all layers.
  const auto run = [&](int64_t first, int64_t last_image, int helpers) {
    const auto convolve = [&](float* to, const float* add, const float* from, size_t i, bool relu) {
      const Filter& f = filters[i];
      const Convolution shape{last_image - first, network.height, network.width, f.inputs, f.outputs, f.size,
                              f.output,           f.input,        f.tap};
      const int64_t before = first * sites;
      convolution(to + before * f.outputs, add ? add + before * f.outputs : nullptr, from + before * f.inputs,
                  folded[i].weight, folded[i].bias.data(), shape, relu, helpers);
    };
    const Channels channels{last_image - first, hidden, sites, true};
    convolve(out, nullptr, h, 0, blocks == 0);
    for (size_t i = 0; i < blocks; ++i) {
      const float* const before = i == 0 ? h : state;
      const BatchNorm& n = norm(2 * i);
      const int64_t at = first * sites * hidden;
      batch_norm_relu(normal + at, const_cast<float*>(n.mean), const_cast<float*>(n.var), before + at, n.weight, n.bias,
                      channels, false, eps, DType::kFloat32, helpers);
      convolve(inner, nullptr, normal, 3 * i + 1, true);
      convolve(state, before, inner, 3 * i + 2, false);
      convolve(out, out, state, 3 * i + 3, i + 1 == blocks);
    }
    convolve(y, nullptr, out, last, false);
  };
  // What a thread reads is then what it wrote: the rest is in the cache of another core.
  if (network.batch * sites >= kOwnWeight * threads && (network.batch % threads == 0 || network.batch >= 8 * threads)) {
    parallel_for(network.batch, 1, threads, [&](int64_t begin, int64_t end) { run(begin, end, 1); });
  } else {
    run(0, network.batch, threads);
  }
}

}  // namespace pnf::cpu::PNF_ISA
