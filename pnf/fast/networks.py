"""The networks of :mod:`pnf.flows.networks`, with the same parameters, scheduled for speed."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pnf import ops
from pnf.flows import networks
from pnf.flows.networks import NETWORK_EPS, Block, InputNorm, WeightNormConv2d
from pnf.ops.residual_network import run_blocks


class ResidualNetwork(networks.ResidualNetwork):
    """All weights in one launch, each normalisation with its ReLU in one, and sums by the convolutions."""

    def forward(
        self,
        x: Tensor,  # [B, channels, H, W]
        condition: Tensor | None,  # [B, condition, H, W]
    ) -> Tensor:  # [B, outputs, H, W]
        layers, norms = self._layers(), _Norms()
        directions, magnitudes = [layer.direction for layer in layers], [layer.magnitude for layer in layers]
        biases = [layer.bias for layer in layers]
        in_one = self._in_one(x)
        count = 1 if in_one else len(layers)
        weights = ops.weight_norm(directions[:count], magnitudes[:count])
        h = ops.convolution(self._input(x, condition, norms), weights[0], biases[0])
        if in_one:
            return ops.residual_network(h, directions[1:], magnitudes[1:], biases[1:], self._statistics(), NETWORK_EPS)
        after = self._norms()
        out = run_blocks(
            h, zip(weights[1:], biases[1:], strict=True), lambda i, y: norms.norm_relu(after[i], y), ops.convolution
        )
        norms.track()
        return out

    def _in_one(self, x: Tensor) -> bool:
        """Whether one op does it: on a CPU, in float32, where nothing is learnt and no gradients are asked for."""
        learnt = self.training or torch.is_grad_enabled()
        return not learnt and x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")

    def _layers(self) -> list[WeightNormConv2d]:
        """The convolutions, in the order in which they are run."""
        found = [self.conv, self.skip]
        for block, skip in zip(cast("list[Block]", self.blocks), self.skips, strict=True):
            found += [block.conv1, block.conv2, cast("WeightNormConv2d", skip)]
        return [*found, self.out]

    def _norms(self) -> list[nn.Module]:
        """The normalisations behind the first convolution, in the order in which they are run."""
        blocks = cast("list[Block]", self.blocks)
        return [*(norm for block in blocks for norm in (block.norm1, block.norm2)), self.out_norm]

    def _statistics(self) -> list[Tensor]:
        """What these normalise by; nothing without batch normalisation."""
        layers = [norm for norm in self._norms() if isinstance(norm, nn.BatchNorm2d)]
        return [
            cast("Tensor", x)
            for layer in layers
            for x in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        ]

    def _input(self, x: Tensor, condition: Tensor | None, norms: "_Norms") -> Tensor:
        mask, parity, gain = self.mask, self.parity, self.gain
        if not isinstance(self.norm, InputNorm):
            return ops.conditioner_input(x, condition, None, mask=mask, parity=parity, gain=gain)[0]
        layer, offset = self.norm.norm, self.norm.offset.flatten()
        h, mean, var = ops.conditioner_input(
            x, condition, offset, *norms.given(layer), mask=mask, parity=parity, gain=gain, eps=NETWORK_EPS
        )
        norms.used(layer, mean, var, x)
        return h


class _Norms:
    """The batch normalisations of a network, which update their running statistics together."""

    def __init__(self) -> None:
        self.batches: list[tuple[nn.BatchNorm2d, Tensor, Tensor, float]] = []

    def given(self, layer: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if layer.training else (layer.running_mean, layer.running_var)

    def used(self, layer: nn.BatchNorm2d, mean: Tensor | None, var: Tensor | None, x: Tensor) -> None:
        if layer.training and mean is not None and var is not None:
            n = x.numel() // x.shape[1]
            self.batches.append((layer, mean, var, n / max(n - 1, 1)))

    def norm_relu(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, nn.BatchNorm2d):
            return relu(x)
        y, mean, var = ops.batch_norm_relu(x, layer.weight, layer.bias, *self.given(layer), NETWORK_EPS)
        self.used(layer, mean, var, x)
        return y

    def track(self) -> None:
        """Update as PyTorch's layers do, with the unbiased variance."""
        if not self.batches:
            return
        layers, means, variances, ratios = (list(column) for column in zip(*self.batches, strict=True))
        momentum = layers[0].momentum
        with torch.no_grad():
            torch._foreach_lerp_([layer.running_mean for layer in layers], means, momentum)
            unbiased = torch._foreach_mul(variances, ratios)
            torch._foreach_lerp_([layer.running_var for layer in layers], list(unbiased), momentum)
            torch._foreach_add_([layer.num_batches_tracked for layer in layers], 1)


class ConvNetwork(networks.ConvNetwork):
    """Convolutions in Winograd's form, each with its ReLU."""

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H, W]
        return _convolve(x, list(self)[::2], ())


class DenseNetwork(networks.DenseNetwork):
    """Linear layers as 1x1 convolutions, each with its ReLU."""

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs] -> [B, outputs]
        return _convolve(x[:, :, None, None], list(self)[::2], (1, 1)).flatten(1)


def _convolve(h: Tensor, layers: Sequence[nn.Module], size: tuple[int, ...]) -> Tensor:
    """The layers with ReLU between them, each weight with a size appended."""
    for i, layer in enumerate(layers):
        weight, bias = cast("Tensor", layer.weight), cast("Tensor", layer.bias)
        h = ops.convolution(h, weight.view(*weight.shape, *size), bias, relu=i + 1 < len(layers))
    return h
