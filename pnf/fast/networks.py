"""The networks of :mod:`pnf.flows.networks`, with the same parameters, scheduled for speed.

The schedule holds for networks as they were built. A network with an exchanged layer, with hooks, or with another
normalisation runs layer by layer, as in :mod:`pnf.flows.networks`, and so does every network under a transform.
"""

from __future__ import annotations  # up to 2.9, torch.compile cannot trace a nested function's `Tensor | None`

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.modules.module import _has_any_global_hook

from pnf import ops
from pnf.flows import networks
from pnf.flows.networks import NETWORK_EPS, Block, Conv2d, InputNorm, Linear, WeightNormConv2d
from pnf.flows.transforms import transformed
from pnf.ops._processor import LINEAR_BY_LIBRARY
from pnf.ops.convolution import convolution_backward, has_kernel
from pnf.ops.residual_network import biases_before, residual_network_centred, run_blocks


class ResidualNetwork(networks.ResidualNetwork):
    """All weights are one launch, each normalisation with its ReLU is one, and convolutions add the sums."""

    def forward(
        self,
        x: Tensor,  # [B, channels, H, W]
        condition: Tensor | None,  # [B, condition, H, W]
    ) -> Tensor:  # [B, outputs, H, W]
        parts = None if transformed() else self._parts(x)
        if parts is None:
            return super().forward(x, condition)
        (layers, after), norms = parts, _norms()
        directions, magnitudes = [layer.direction for layer in layers], [layer.magnitude for layer in layers]
        biases = [layer.bias for layer in layers]
        norm_layers = [layer for layer in after if isinstance(layer, nn.BatchNorm2d)]
        affine = [cast("Tensor", p) for layer in norm_layers for p in (layer.weight, layer.bias)]
        if _learns_on_gpu(x, layers, after):
            weights = ops.weight_norm(directions, magnitudes)
            y, *found = residual_network_centred(self._input(x, condition, norms), weights, biases, affine, NETWORK_EPS)
            columns = norm_layers, *(t.unbind() for t in found), biases_before(biases)
            for layer, mean, var, added in zip(*columns, strict=True):
                norms.used(layer, mean, var, x, added)
            norms.end()
            return y
        in_one = self._in_one(x, after)
        count = 1 if in_one else len(layers)
        weights = ops.weight_norm(directions[:count], magnitudes[:count])
        h = self._input(x, condition, norms)
        if in_one:
            h = ops.convolution(h, weights[0], biases[0])
            return ops.residual_network(h, directions[1:], magnitudes[1:], biases[1:], _statistics(after), NETWORK_EPS)
        plan = _Plan(len(layers), [norms.given(layer) for layer in norm_layers] or None)
        parameters = *weights, *biases, *affine
        if has_kernel(h, weights[-1]) and not torch.compiler.is_compiling():
            y, *found = _Residual.apply(h, plan, *parameters)
            statistics = list(zip(found[::2], found[1::2], strict=True))
        else:
            # Low precision needs more than the ops' own backward, and torch.compile chooses by itself what to keep.
            y, statistics = plan.run(h, parameters, [])
        for layer, (mean, var) in zip(norm_layers, statistics, strict=True):
            norms.used(layer, mean, var, h)
        norms.end()
        return y

    def _parts(self, x: Tensor) -> tuple[list[WeightNormConv2d], list[nn.Module]] | None:
        """The convolutions, and the normalisations behind the first one, in the order of their runs.

        None if a layer is not as the constructor built it.
        """
        blocks = cast("list[Block]", list(self.blocks))
        normed = type(self.norm) is InputNorm
        if not _as_built(blocks, Block) or not _as_built([self.norm], InputNorm if normed else nn.Identity):
            return None
        layers = [self.conv, self.skip]
        for block, skip in zip(blocks, self.skips, strict=True):
            layers += [block.conv1, block.conv2, cast("WeightNormConv2d", skip)]
        layers.append(self.out)
        after = [*(norm for block in blocks for norm in (block.norm1, block.norm2)), self.out_norm]
        built = (
            _as_built(layers, WeightNormConv2d)
            and all(map(_is_plain, layers))
            and _as_built(after, nn.BatchNorm2d if normed else nn.Identity)
            and (not normed or _normalise_alike(after, self.norm.norm, x))
        )
        return (layers, after) if built else None

    def _in_one(self, x: Tensor, after: Sequence[nn.Module]) -> bool:
        """Whether one op runs the network: on a CPU, in float32, in evaluation and without gradients."""
        learnt = torch.is_grad_enabled() or self.training or any(norm.training for norm in after)
        return not learnt and x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")

    def _input(self, x: Tensor, condition: Tensor | None, norms: _Norms) -> Tensor:
        mask, parity, gain = self.mask, self.parity, self.gain
        if not isinstance(self.norm, InputNorm):
            return ops.conditioner_input(x, condition, None, mask=mask, parity=parity, gain=gain)[0]
        layer, offset = self.norm.norm, self.norm.offset.flatten()
        h, mean, var = ops.conditioner_input(
            x, condition, offset, *norms.given(layer), mask=mask, parity=parity, gain=gain, eps=NETWORK_EPS
        )
        norms.used(layer, mean, var, x)
        return h


def _learns_on_gpu(x: Tensor, layers: Sequence[WeightNormConv2d], after: Sequence[nn.Module]) -> bool:
    """Whether one op runs the network: off a CPU, by the statistics of the batch."""
    return (
        not x.is_cpu
        and all(isinstance(norm, nn.BatchNorm2d) and norm.training for norm in after)
        and all(layer.direction.shape[2:] == (1, 1) for layer in (*layers[1::3], layers[-1]))
    )


def _as_built(modules: Sequence[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether all modules are of exactly this class, and a call runs their forward alone."""
    for m in modules:
        if type(m) is not kind or m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__:
            return False
        if m._backward_hooks or m._backward_pre_hooks:
            return False
    return not _has_any_global_hook()


def _is_plain(layer: WeightNormConv2d) -> bool:
    """Whether the ops can compute the convolution: it keeps the size and has a bias."""
    _, _, height, width = layer.direction.shape
    return layer.padding == (height // 2, width // 2) and layer._parameters.get("bias") is not None


def _normalise_alike(after: Sequence[Any], first: Any, x: Tensor) -> bool:
    """Whether batch normalisations are as they were built, with one momentum, and the batch has statistics."""
    if not _as_built([first], nn.BatchNorm2d):
        return False
    momentum = first.momentum
    for norm in (*after, first):
        if norm.eps != NETWORK_EPS or norm.momentum != momentum or not norm.track_running_stats:
            return False
        if any(buffer is None for buffer in norm._buffers.values()) or not norm._buffers:
            return False
        if norm.affine is not (norm is not first) or (norm.training and x.numel() <= x.shape[1]):
            return False
    return type(momentum) is float


def _statistics(norms: Sequence[nn.Module]) -> list[Tensor]:
    """The parameters and running statistics of the batch normalisations among the layers."""
    layers = [norm for norm in norms if isinstance(norm, nn.BatchNorm2d)]
    return [
        cast("Tensor", x) for layer in layers for x in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    ]


class _Plan(NamedTuple):
    """What :class:`_Residual` needs besides tensors with gradients.

    Attributes:
        layers: the number of convolutions.
        given: for each normalisation its mean and variance, or None twice for those of the batch; None if there is no
            normalisation, but ReLU alone.
    """

    layers: int
    given: list[tuple[Tensor | None, Tensor | None]] | None

    def split(self, parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """The weights, the biases, and gain and offset of each normalisation."""
        n = self.layers
        return parameters[:n], parameters[n : 2 * n], parameters[2 * n :]

    def run(
        self, x: Tensor, parameters: Sequence[Tensor], hidden: list[Tensor]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The network's result, and the means and variances that its normalisations used.

        Each tensor between two layers is added to ``hidden``, in the order of the run. Without normalisation those that
        are no states have their ReLU, by the convolution that makes them.
        """
        weights, biases, affine = self.split(parameters)
        plain, last = self.given is None, 2 * (self.layers // 3 - 1)
        statistics: list[tuple[Tensor, Tensor]] = []

        def skip(h: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
            hidden.append(h)
            return ops.convolution(h, weight, bias, add, relu=plain and len(hidden) == last + 1)

        def normed(i: int, h: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
            is_state = i % 2 == 0 and i < last
            if not is_state:
                hidden.append(h)  # a skip connection took the states before
            if self.given is None:
                return ops.convolution(relu(h) if is_state else h, weight, bias, add, relu=is_state)
            y, mean, var = ops.batch_norm_relu(h, affine[2 * i], affine[2 * i + 1], *self.given[i], NETWORK_EPS)
            statistics.append((mean, var))
            return ops.convolution(y, weight, bias, add)

        filters = zip(weights[1:], biases[1:], strict=True)
        return run_blocks(ops.convolution(x, weights[0], biases[0]), filters, skip, normed), statistics


def _with_graph(function: Callable[..., Tensor], arguments: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients of the arguments that require one, for derivatives of them.

    Views, since arguments may depend on each other, or be the same.
    """
    views = [t.view_as(t) for t in arguments]
    leaves = [t for t in views if t.requires_grad]
    found = iter(torch.autograd.grad(function(*views), leaves, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in views]


class _Residual(torch.autograd.Function):
    """A residual network as one step of automatic differentiation, which keeps each hidden tensor once.

    What normalisations return is not kept: the backward computes it again from what they took.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan, *parameters: Tensor) -> tuple[Tensor, ...]:
        hidden: list[Tensor] = []
        y, found = plan.run(x, parameters, hidden)
        statistics = [t for pair in found for t in pair]
        ctx.plan, ctx.sizes = plan, (len(parameters), len(hidden))
        ctx.save_for_backward(x, *parameters, *hidden, *statistics)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        plan, (count, kept) = ctx.plan, ctx.sizes
        if grad_y is None:
            return (None,) * (2 + count)
        x, *saved = ctx.saved_tensors
        parameters, hidden, statistics = saved[:count], saved[count : count + kept], saved[count + kept :]
        if torch.is_grad_enabled():
            # What is in between was saved without a graph.
            grad_x, *grads = _with_graph(lambda x, *p: plan.run(x, p, [])[0], (x, *parameters), grad_y)
            return grad_x, None, *grads
        weights, _, affine = plan.split(parameters)
        *pairs, out = hidden[1:]
        states, inner = [hidden[0], *pairs[1::2]], pairs[::2]
        of_weights: list[Tensor] = []
        of_biases: list[Tensor] = []
        of_affine: list[Tensor] = []

        def convolution(grad: Tensor, x: Tensor, of_input: bool = True) -> Tensor:
            """The gradient of what the layer took. The layers come one by one, the last one first."""
            grad_x, *others = convolution_backward(grad, x, weights[-1 - len(of_weights)], of_input)
            of_weights.append(others[0])
            of_biases.append(others[1])
            return grad_x

        def normed(grad: Tensor, h: Tensor, i: int) -> Tensor:
            """The same for the layer and the normalisation in front of it."""
            if plan.given is None:
                is_state = i % 2 == 0 and i < 2 * len(inner)
                return torch.ops.aten.threshold_backward(convolution(grad, relu(h) if is_state else h), h, 0)
            gain, offset = affine[2 * i : 2 * i + 2]
            mean, var = statistics[2 * i : 2 * i + 2]
            grad = convolution(grad, ops.batch_norm_relu(h, gain, offset, mean, var, NETWORK_EPS)[0])
            of_batch = plan.given[i][0] is None
            grad_h, *others = torch.ops.pnf.batch_norm_relu_backward(
                grad, h, gain, offset, mean, var, NETWORK_EPS, of_batch
            )
            of_affine.extend(others[::-1])
            return grad_h

        of_out = normed(grad_y, out, 2 * len(inner))
        grad = convolution(of_out, states[-1])
        for i in reversed(range(len(inner))):
            grad = grad + normed(normed(grad, inner[i], 2 * i + 1), states[i], 2 * i)
            grad = grad.add_(convolution(of_out, states[i]))
        grad_x = convolution(grad, x, ctx.needs_input_grad[0])
        return grad_x if ctx.needs_input_grad[0] else None, None, *of_weights[::-1], *of_biases[::-1], *of_affine[::-1]


class _Norms:
    """Batch normalisations whose running statistics are updated together.

    Args:
        shared: whether those of several networks are.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.batches: dict[nn.BatchNorm2d, tuple[Tensor, Tensor, float, Sequence[Tensor]]] = {}

    def given(self, layer: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if layer.training else (layer.running_mean, layer.running_var)

    def used(
        self, layer: nn.BatchNorm2d, mean: Tensor | None, var: Tensor | None, x: Tensor, added: Sequence[Tensor] = ()
    ) -> None:
        """Note the statistics of a batch x; to its mean some vectors are to be added."""
        if layer.training and mean is not None and var is not None:
            if layer in self.batches:
                self.track()  # a layer of several networks
            n = x.numel() // x.shape[1]
            self.batches[layer] = mean, var, n / max(n - 1, 1), added

    def end(self) -> None:
        """Track what a network used, unless other networks follow."""
        if not self.shared:
            self.track()

    def track(self) -> None:
        """Update the running statistics as PyTorch's layers do, with the unbiased variance."""
        for momentum in dict.fromkeys(cast("float", layer.momentum) for layer in self.batches):
            layers = [layer for layer in self.batches if layer.momentum == momentum]
            means, variances, ratios, added = (
                list(column) for column in zip(*(self.batches[layer] for layer in layers), strict=True)
            )
            running = [cast("Tensor", layer.running_mean) for layer in layers]
            with torch.no_grad():
                kept = running + [cast("Tensor", layer.running_var) for layer in layers]
                torch._foreach_lerp_(kept, [*means, *torch._foreach_mul(variances, ratios)], momentum)
                for i in range(max(map(len, added))):
                    several = [(mean, found[i]) for mean, found in zip(running, added, strict=True) if len(found) > i]
                    torch._foreach_add_(*map(list, zip(*several, strict=True)), alpha=momentum)
                torch._foreach_add_([cast("Tensor", layer.num_batches_tracked) for layer in layers], 1)
        self.batches.clear()


class _Open(threading.local):
    """What :func:`tracked_together` collects, in each thread."""

    norms: _Norms | None = None


_OPEN = _Open()


def _norms() -> _Norms:
    """Where a network notes its statistics."""
    return _Norms() if torch.compiler.is_compiling() or _OPEN.norms is None else _OPEN.norms


@contextmanager
def tracked_together() -> Iterator[None]:
    """Update the running statistics of all networks that run inside of it at its end, by few launches."""
    before, norms = _OPEN.norms, _Norms(shared=True)
    _OPEN.norms = norms
    try:
        yield
    finally:
        _OPEN.norms = before
    norms.track()


class ConvNetwork(networks.ConvNetwork):
    """Each convolution is one op with its ReLU, in Winograd's form where there is a kernel."""

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H, W]
        if transformed() or not _is_chain(self, Conv2d):
            return super().forward(x)
        h, layers = x, list(self)[::2]
        for i, layer in enumerate(layers):
            weight, bias = cast("Tensor", layer.weight), cast("Tensor", layer.bias)
            h = ops.convolution(h, weight, bias, relu=i + 1 < len(layers))
        return h


class ConvEncoder(networks.ConvEncoder):
    """Each convolution is one op with its ReLU and its sum."""

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        layers = cast("list[nn.Module]", [*self.layers, self.code])
        if transformed() or not _are_plain(layers):
            return super().forward(condition)

        def run(i: int, x: Tensor, add: Tensor | None = None, relu: bool = True) -> Tensor:
            weight, bias = cast("Tensor", layers[i].weight), cast("Tensor", layers[i].bias)
            return ops.convolution(x, weight, bias, add, relu)

        h = run(0, condition)
        for i in range(1, len(layers) - 1, 2):
            h = run(i + 1, run(i, h), add=h)
        return h, run(-1, h, relu=False)


class DenseNetwork(networks.DenseNetwork):
    """All layers are one op on a CPU.

    On a GPU, and for a compiler where PyTorch's products are the faster ones, they stay linear layers.
    """

    def forward(
        self,
        x: Tensor,  # [B, kept]
        condition: Tensor | None = None,  # [B, condition]
    ) -> Tensor:  # [B, outputs]
        by_layers = not x.is_cpu or (LINEAR_BY_LIBRARY and torch.compiler.is_compiling())
        if by_layers or transformed() or not _is_chain(self, Linear):
            return super().forward(x, condition)
        layers = cast("list[Linear]", list(self)[::2])
        return ops.dense_network(x, condition, [layer.weight for layer in layers], [layer.bias for layer in layers])


def _is_chain(network: nn.Sequential, kind: type[nn.Module]) -> bool:
    """Whether the layers are as they were built: of this kind, with ReLU between them."""
    layers = list(network)
    return len(layers) % 2 == 1 and _are_plain(layers[::2], kind) and _as_built(layers[1::2], nn.ReLU)


def _are_plain(layers: Sequence[nn.Module], kind: type[nn.Module] = Conv2d) -> bool:
    """Whether the layers are as they were built, with biases, and the ops can compute them."""
    return (
        _as_built(layers, kind)
        and all(layer._parameters.get("bias") is not None for layer in layers)
        and all(_keeps_size(layer) for layer in layers if isinstance(layer, nn.Conv2d))
    )


def _keeps_size(layer: nn.Conv2d) -> bool:
    """Whether the op can compute the convolution."""
    height, width = layer.kernel_size
    plain = (height // 2, width // 2), (1, 1), (1, 1), 1, "zeros"
    return (layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode) == plain
