"""The conditioner networks of the couplings: a residual convolutional network and a multilayer perceptron.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.6 and appendix A, and
the authors' published code. The PNF paper's dense couplings are three linear layers with ReLU.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from pnf.flows.op_table import OpTable

NETWORK_EPS = 1e-4
"""The number that every batch normalisation adds to variances."""

MOMENTUM = 0.1
"""The weight of a batch in running statistics."""


class WeightNormConv2d(nn.Module):
    """A convolution whose weight has a direction and, if learnable, a magnitude for each output channel.

    ``weight = magnitude * direction / ||direction||``, with the norm over all but the output channels. The magnitude is
    1 unless ``magnitude=True``. Zero padding keeps the size.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], *, magnitude: bool, gain: float = 1.0) -> None:
        super().__init__()
        sigma = math.sqrt(2 / inputs)
        self.padding = (size[0] // 2, size[1] // 2)
        self.direction = nn.Parameter(torch.empty(outputs, inputs, *size).uniform_(-sigma, sigma))
        self.bias = nn.Parameter(torch.zeros(outputs))
        start = gain * sigma * math.sqrt(inputs * math.prod(size) / 12)
        self.magnitude = nn.Parameter(torch.full((outputs, 1, 1, 1), start)) if magnitude else None

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H, W]
        norm = self.direction.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        scale = norm.reciprocal() if self.magnitude is None else self.magnitude / norm
        return conv2d(x, self.direction * scale, self.bias, padding=self.padding)


def _batch_norm(channels: int, enabled: bool) -> nn.Module:
    return nn.BatchNorm2d(channels, NETWORK_EPS, MOMENTUM) if enabled else nn.Identity()


class InputNorm(nn.Module):
    """Batch normalisation with an offset and no gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, NETWORK_EPS, MOMENTUM, affine=False)
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # The batch of a single image with channels last can have any stride. With an unusual one, the gradient of
        # PyTorch's batch normalisation is wrong in evaluation (on a CPU, seen in torch 2.13).
        if x.shape[0] == 1:
            x = x.flatten().view(x.shape)
        return self.norm(x) + self.offset


class Block(nn.Module):
    """A pre-activation residual block: ``h + conv(relu(bn(conv(relu(bn(h))))))``."""

    def __init__(self, hidden: int, size: tuple[int, int], batch_norm: bool) -> None:
        super().__init__()
        self.norm1 = _batch_norm(hidden, batch_norm)
        self.conv1 = WeightNormConv2d(hidden, hidden, size, magnitude=False)
        self.norm2 = _batch_norm(hidden, batch_norm)
        self.conv2 = WeightNormConv2d(hidden, hidden, size, magnitude=True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(relu(self.norm2(self.conv1(relu(self.norm1(h))))))


class ResidualNetwork(nn.Module):
    """The network of a convolutional coupling.

    Its input is ``relu([bn(x), -bn(x), board])`` and the condition, where x is the kept half (zero where a checkerboard
    drops it). Then follow a 3x3 convolution, residual blocks whose 1x1 skip convolutions add up to one output, and
    batch normalisation, ReLU and a 1x1 convolution.

    Args:
        channels: channels of x.
        outputs: channels of the result.
        condition: channels of the condition, 0 for none.
        mask, parity: the half of x to keep. A checkerboard is an input of the network. It makes half of the pixels
            zero, so with batch normalisation they are scaled by 2.
        hidden: width of the network.
        blocks: number of residual blocks.
        kernel: size of the "3x3" convolutions, ``(1, 3)`` for signals of height 1.
        batch_norm: whether to use batch normalisation, or only weight normalisation.
        ops: the op table.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        condition: int,
        mask: str,
        parity: int,
        *,
        hidden: int,
        blocks: int,
        kernel: tuple[int, int],
        batch_norm: bool,
        ops: OpTable,
    ) -> None:
        super().__init__()
        self.ops, self.mask, self.parity = ops, mask, parity
        checkerboard = mask == "checkerboard"
        inputs = channels if checkerboard else channels // 2
        self.gain = 2.0 if checkerboard and batch_norm else 1.0
        self.norm: nn.Module = InputNorm(inputs) if batch_norm else nn.Identity()
        first = 2 * inputs + checkerboard + condition
        self.conv = WeightNormConv2d(first, hidden, kernel, magnitude=False)
        self.skip = WeightNormConv2d(hidden, hidden, (1, 1), magnitude=True)
        self.blocks = nn.ModuleList(Block(hidden, kernel, batch_norm) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv2d(hidden, hidden, (1, 1), magnitude=True) for _ in range(blocks))
        self.out_norm = _batch_norm(hidden, batch_norm)
        self.out = WeightNormConv2d(hidden, outputs, (1, 1), magnitude=True, gain=0.0)

    def forward(
        self,
        x: Tensor,  # [B, channels, H, W]
        condition: Tensor | None,  # [B, condition, H, W]
    ) -> Tensor:  # [B, outputs, H, W]
        if self.mask == "channel":
            v = self.norm(x.chunk(2, 1)[self.parity]) * self.gain
            parts = [v, -v]
        else:
            v = self.norm(self.ops.mask_apply(x, self.mask, self.parity)) * self.gain
            board = self.ops.mask_apply(torch.ones_like(x[:1, :1]), self.mask, self.parity)
            parts = [v, -v, board.expand(x.shape[0], -1, -1, -1)]
        h = relu(torch.cat(parts, 1))
        if condition is not None:
            h = torch.cat((h, condition), 1)
        h = self.conv(h)
        out = self.skip(h)
        for block, skip in zip(self.blocks, self.skips, strict=True):
            h = block(h)
            out = out + skip(h)
        return self.out(relu(self.out_norm(out)))


class ConvNetwork(nn.Sequential):
    """Convolutions with ReLU between them. The last one starts at 0.

    Args:
        inputs: channels of the image.
        outputs: channels of the result.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        kernel: size of every convolution, odd.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, layers: int, kernel: tuple[int, int]) -> None:
        modules: list[nn.Module] = []
        for i, o in pairwise([inputs] + [hidden] * layers):
            modules += [Conv2d(i, o, kernel, 1.0), nn.ReLU()]
        super().__init__(*modules, Conv2d(hidden, outputs, kernel, 0.0))


class ConvEncoder(nn.Module):
    """A residual network that all networks of a convolutional flow share, of the flow's condition.

    A convolution with ReLU, then blocks ``h -> relu(h + conv(relu(conv(h))))``. The networks of couplings get a code of
    few channels, a 1x1 convolution of the result.

    Source: Lugmayr et al., "SRFlow" (2020), section 3.4.

    Args:
        inputs: channels of the condition.
        outputs: channels of the code.
        hidden: width of the network.
        blocks: number of residual blocks.
        kernel: size of every convolution but the last, odd.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, blocks: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        shared = [Conv2d(hidden, hidden, kernel, gain) for _ in range(blocks) for gain in (1.0, 0.5)]
        self.layers = nn.ModuleList([Conv2d(inputs, hidden, kernel, 1.0), *shared])
        self.code = Conv2d(hidden, outputs, (1, 1), 1.0)

    def forward(
        self,
        condition: Tensor,  # [B, inputs, H, W]
    ) -> tuple[Tensor, Tensor]:  # [B, hidden, H, W], [B, outputs, H, W]
        start, *rest = self.layers
        h = relu(start(condition))
        for first, second in zip(rest[::2], rest[1::2], strict=True):
            h = relu(h + second(relu(first(h))))
        return h, self.code(h)


class DenseNetwork(nn.Sequential):
    """The network of a dense coupling: ``layers`` hidden linear layers with ReLU, then a linear layer that starts at 0.

    Its input is the kept half and, behind it, the condition.

    Args:
        inputs: features of the kept half and the condition; may be 0.
        outputs: features of the result.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, layers: int) -> None:
        sizes = [inputs] + [hidden] * layers
        modules: list[nn.Module] = []
        for i, o in pairwise(sizes):
            modules += [Linear(i, o, 1.0), nn.ReLU()]
        super().__init__(*modules, Linear(hidden, outputs, 0.0))

    def forward(
        self,
        x: Tensor,  # [B, kept]
        condition: Tensor | None = None,  # [B, condition]
    ) -> Tensor:  # [B, outputs]
        y: Tensor = super().forward(x if condition is None else torch.cat((x, condition), 1))
        return y


class Linear(nn.Linear):
    """A linear layer with initial weights from ``gain * U(-b, b)``, ``b = sqrt(3 / inputs)``, and zero bias."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        self.gain = gain
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        _reset(self, self.gain)


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size of the image, initialised like :class:`Linear`."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], gain: float) -> None:
        self.gain = gain
        super().__init__(inputs, outputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2))

    def reset_parameters(self) -> None:
        _reset(self, self.gain)


def _reset(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    bound = gain * math.sqrt(3 / max(math.prod(layer.weight.shape[1:]), 1))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound)
        assert layer.bias is not None
        layer.bias.zero_()
