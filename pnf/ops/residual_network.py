"""The residual network of a convolutional coupling; the compiled twins of its references.

In evaluation: where images are small, networks are small, and most of the time would pass between ops. So on a CPU the
whole network is one op, which folds weight normalisation, and batch normalisation after a convolution, into the
convolutions.

In training: on a GPU all sums between convolutions are part of the normalisations. Convolutions have no bias and leave
their results to these, and all skip connections are one matrix product, since the states are kept side by side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pnf.ops._devices import common_device
from pnf.ops._layout import cast, dense, dense_as, empty, empty_like
from pnf.ops._library import DTYPES, KERNELS, Backward, Kernel, Launch, cpp, documented_by, kernels, register, triton
from pnf.ops.batch_norm_relu import reference_backward as norm_reference_backward
from pnf.ops.convolution import filter_has_kernel, filter_sizes
from pnf.ops.convolution import reference_backward as convolution_reference_backward
from pnf.ops.weight_norm import filled, given, placed
from pnf.reference._precision import wide
from pnf.reference.residual_network import biases_before as biases_before
from pnf.reference.residual_network import (
    check_residual_network,
    check_residual_network_training,
    residual_layers,
    true_means,
)
from pnf.reference.residual_network import residual_network as reference
from pnf.reference.residual_network import residual_network_training as training_reference
from pnf.reference.residual_network import run_blocks as run_blocks

__all__ = ["residual_network", "residual_network_training"]

Tensors = Sequence[Tensor]

LINE = 16
"""Floats of a cache line. Buffers in the scratch memory are padded to a multiple of it."""


@documented_by(reference)
def residual_network(
    h: Tensor,  # [B, hidden, H, W]
    directions: Tensors,  # [O, I, h, w] each
    magnitudes: Sequence[Tensor | None],  # [O, 1, 1, 1] each
    biases: Tensors,  # [O] each
    norms: Tensors,  # [hidden] each
    eps: float = 1e-4,
) -> Tensor:
    check_residual_network(h, directions, magnitudes, biases, norms)
    return _residual_network(h, list(directions), *given(magnitudes), list(biases), list(norms), eps)


def _compiled(launch: Launch) -> Callable[..., Tensor]:
    def run(
        h: Tensor,
        directions: Tensors,
        magnitudes: Tensors,
        scaled: Sequence[int],
        biases: Tensors,
        norms: Tensors,
        eps: float,
    ) -> Tensor:
        if h.dtype != torch.float32 or not h.numel() or not all(map(filter_has_kernel, directions)):
            return KERNELS["residual_network"]["reference"](h, directions, magnitudes, scaled, biases, norms, eps)
        h = h.contiguous(memory_format=torch.channels_last)
        weights, sizes, scratch = [], [], 4 * _rounded(h)
        for direction, has_one in zip(directions, scaled, strict=True):
            weight, last = dense(direction)
            weights.append(weight)
            sizes += [*filter_sizes(weight, last), has_one]
            scratch += _rounded(weight)
        y = empty(h, _shape(h, directions), True)
        others = [x.contiguous() for x in (*biases, *norms)]
        batch, _, height, width = h.shape
        tensors = (y, h.new_empty(scratch), h, *weights, *filled(magnitudes, scaled, weights), *others)
        launch(tensors, sizes, batch, height, width, eps)
        return y

    return run


def _rounded(x: Tensor) -> int:
    return -x.numel() // LINE * -LINE


def _shape(h: Tensor, directions: Tensors) -> Sequence[int]:
    return h.shape[0], directions[-1].shape[0], *h.shape[2:]


def _reference(
    h: Tensor,
    directions: Tensors,
    magnitudes: Tensors,
    scaled: Sequence[int],
    biases: Tensors,
    norms: Tensors,
    eps: float,
) -> Tensor:
    return reference(h, directions, placed(magnitudes, scaled), biases, norms, eps)


def _fake(
    h: Tensor,
    directions: Tensors,
    magnitudes: Tensors,
    scaled: Sequence[int],
    biases: Tensors,
    norms: Tensors,
    eps: float,
) -> Tensor:
    return empty(h, _shape(h, directions), True)


_residual_network = register(
    "residual_network",
    "residual_network(Tensor h, Tensor[] directions, Tensor[] magnitudes, int[] scaled, Tensor[] biases,"
    " Tensor[] norms, float eps) -> Tensor",
    reference=_reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("residual_network")),
)


@documented_by(training_reference)
def residual_network_training(
    x: Tensor,  # [B, I, H, W]
    weights: Tensors,  # [O, I, h, w] each
    biases: Tensors,  # [O] each
    norms: Tensors,  # [hidden] each
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:
    check_residual_network_training(x, weights, biases, norms)
    y, centres, variances = residual_network_centred(x, weights, biases, norms, eps)
    return y, true_means(centres, biases), variances


def residual_network_centred(
    x: Tensor, weights: Tensors, biases: Tensors, norms: Tensors, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`residual_network_training`, with means that lack the :func:`biases_before`."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    y, variances, centres, *_ = _training(x, list(weights), list(biases), list(norms), eps)
    return y, centres, variances


def _fake_training(x: Tensor, weights: Tensors, biases: Tensors, norms: Tensors, eps: float) -> list[Tensor]:
    hidden, blocks, dtype = weights[0].shape[0], len(weights) // 3 - 1, wide(x.dtype)

    def image(channels: int) -> Tensor:
        return empty(x, (x.shape[0], channels, *x.shape[2:]), True)

    statistics = [x.new_empty(2 * blocks + 1, hidden, dtype=dtype) for _ in range(2)]
    return [
        image(weights[-1].shape[0]),
        *statistics,
        image((blocks + 1) * hidden),
        image(hidden),
        image(hidden),
        x.new_empty(hidden, (blocks + 1) * hidden),
        *(image(hidden) for _ in range(3 * blocks)),
    ]


def _run_training(state: Launch, norm: Launch) -> Callable[..., list[Tensor]]:
    def run(x: Tensor, weights: Tensors, biases: Tensors, norms: Tensors, eps: float) -> list[Tensor]:
        common_device("residual_network_training", [x, *weights, *biases, *norms])
        y, variances, centres, states, out, last, skips, *between = _fake_training(x, weights, biases, norms, eps)
        x, weights, sizes = _last(x), _as(weights, x.dtype), _sizes(out)
        hidden, blocks, of = out.shape[1], len(between) // 3, states.shape[1]
        norms, biases = _vectors(norms, centres.dtype), _vectors(biases, x.dtype)
        h = states[:, :hidden]
        z, before, added = _convolution(x, weights[0]), h, False
        for i in range(blocks + 1):
            normed = between[3 * i] if i < blocks else out
            tensors = h, normed, centres[2 * i], variances[2 * i], z, biases[3 * i], before, *norms[4 * i : 4 * i + 2]
            state(tensors, *sizes, of, added, i < blocks, eps, DTYPES[x.dtype])
            if i == blocks:
                break
            a, b = weights[3 * i + 2 : 3 * i + 4]
            inner = between[3 * i + 1] = _convolution(normed, a)
            second, j = between[3 * i + 2], 2 * i + 1
            tensors = second, centres[j], variances[j], inner, *norms[2 * j : 2 * j + 2]
            norm(tensors, *sizes, True, True, eps, DTYPES[x.dtype])
            z = _convolution(second, b)
            before, h, added = h, states[:, (i + 1) * hidden : (i + 2) * hidden], True
        torch.cat([weight.flatten(1) for weight in weights[1:-1:3]], 1, out=skips)
        torch.mm(_matrix(states), skips.t(), out=_matrix(out))
        norm((last, centres[-1], variances[-1], out, *norms[-2:]), *sizes, True, True, eps, DTYPES[x.dtype])
        torch.addmm(biases[-1], _matrix(last), weights[-1].flatten(1).t(), out=_matrix(y))
        return [y, variances, centres, states, out, last, skips, *between]

    return run


def _convolution(x: Tensor, weight: Tensor) -> Tensor:
    return _last(conv2d(x, weight, padding=_padding(weight)))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _as(tensors: Tensors, dtype: torch.dtype) -> list[Tensor]:
    """The tensors in another dtype, by few launches."""
    if all(x.dtype is dtype for x in tensors):
        return list(tensors)
    found = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(found, list(tensors))
    return found


def _vectors(tensors: Tensors, dtype: torch.dtype) -> list[Tensor]:
    return [x.contiguous() for x in _as(tensors, dtype)]


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(batch size, channels, sites)."""
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _matrix(x: Tensor) -> Tensor:
    """The view ``[B * H * W, C]`` of a tensor whose channels are last in memory."""
    return x.movedim(1, -1).view(-1, x.shape[1])


def _fake_training_backward(
    grad_y: Tensor,
    x: Tensor,
    weights: Tensors,
    biases: Tensors,
    norms: Tensors,
    layers: Tensors,
    eps: float,
    of_input: bool,
) -> list[Tensor]:
    hidden, count = weights[0].shape[0], len(norms) // 2
    return [
        empty(x, x.shape, True) if of_input else x.new_empty(0),
        weights[0].new_empty(count // 2 + 1, hidden, hidden),
        weights[-1].new_empty(weights[-1].shape),
        biases[-1].new_empty(biases[-1].shape),
        biases[0].new_empty(len(biases) - 1, hidden),
        norms[0].new_empty(count, hidden),
        norms[0].new_empty(count, hidden),
        *(cast(empty_like(weight, dense(weight)[1]), weights[0].dtype) for weight in _spatial(weights)),
    ]


def _spatial(weights: Tensors) -> list[Tensor]:
    """The weights of the first convolution, and of a and b of each block."""
    return [weights[0], *(w for i in range(2, len(weights) - 1, 3) for w in weights[i : i + 2])]


def _run_training_backward(state: Launch, norm: Launch) -> Callable[..., list[Tensor]]:
    def run(
        grad_y: Tensor,
        x: Tensor,
        weights: Tensors,
        biases: Tensors,
        norms: Tensors,
        layers: Tensors,
        eps: float,
        of_input: bool,
    ) -> list[Tensor]:
        common_device("residual_network_training_backward", [grad_y, x, *weights, *biases, *norms, *layers])
        variances, centres = (t.contiguous() for t in _as(layers[:2], wide(x.dtype)))
        states, out, last = map(_last, layers[2:5])
        skips, between = layers[5].contiguous(), [_last(layer) for layer in layers[6:]]
        kernels = _as(weights, x.dtype)
        sizes, hidden, blocks, dtype = _sizes(out), out.shape[1], len(between) // 3, DTYPES[x.dtype]
        gains = _vectors(norms, centres.dtype)
        grad_gains, grad_offsets = torch.empty_like(centres), torch.empty_like(centres)

        def parameters(i: int) -> tuple[Tensor, ...]:
            return gains[2 * i], gains[2 * i + 1], centres[i], variances[i]

        def through_norm(grad: Tensor, x: Tensor, i: int) -> Tensor:
            found = empty_like(x, True)
            tensors = found, grad_gains[i], grad_offsets[i], grad, x, *parameters(i)
            norm(tensors, *sizes, True, True, eps, dtype)
            return found

        grad_y = _matrix(_last(grad_y))
        grad_last = grad_y.t() @ _matrix(last)
        grad_out = through_norm(_image(grad_y @ kernels[-1].flatten(1), out), out, 2 * blocks)
        grad_out = _matrix(grad_out)
        grad_skips = (grad_out.t() @ _matrix(states)).view(hidden, blocks + 1, hidden).transpose(0, 1)
        through_skips = _image(grad_out @ skips[:, : blocks * hidden], out) if blocks else out
        grad, squares = _image(grad_out @ skips[:, blocks * hidden :], out), []
        for i in reversed(range(blocks)):
            first, inner, second = between[3 * i : 3 * i + 3]
            grad_second, of_b = _convolution_backward(grad, second, kernels[3 * i + 3])
            grad_first, of_a = _convolution_backward(
                through_norm(grad_second, inner, 2 * i + 1), first, kernels[3 * i + 2]
            )
            squares += [of_b, of_a]
            here, found = slice(i * hidden, (i + 1) * hidden), empty_like(out, True)
            tensors = found, grad_gains[2 * i], grad_offsets[2 * i], grad_first, states[:, here], *parameters(2 * i)
            others = states.shape[1], through_skips.shape[1]
            state((*tensors, grad, through_skips[:, here]), *sizes, *others, eps, dtype)
            grad = found
        grad_x, of_first = _convolution_backward(grad, x, kernels[0], of_input)
        of_spatial = [
            dense_as(g, dense(w)[1]) for g, w in zip([of_first, *squares[::-1]], _spatial(weights), strict=True)
        ]
        return [
            grad_x,
            grad_skips.to(weights[0].dtype, memory_format=torch.contiguous_format, copy=True),
            grad_last.view(weights[-1].shape).to(weights[-1].dtype),
            grad_y.sum(0).to(biases[-1].dtype),
            biases[0].new_zeros(len(biases) - 1, hidden),
            grad_gains.to(norms[0].dtype),
            grad_offsets.to(norms[0].dtype),
            *_as(of_spatial, weights[0].dtype),
        ]

    return run


def _image(matrix: Tensor, like: Tensor) -> Tensor:
    """The images ``[B, C, H, W]`` of a matrix ``[B * H * W, C]``, a view."""
    return matrix.view(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, of_input: bool = True) -> tuple[Tensor, Tensor]:
    mask = [of_input, True, False]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], _padding(weight), [1, 1], False, [0, 0], 1, mask
    )
    return _last(grad_x) if of_input else x.new_empty(0), grad_weight


def _reference_training_backward(
    grad_y: Tensor,
    x: Tensor,
    weights: Tensors,
    biases: Tensors,
    norms: Tensors,
    layers: Tensors,
    eps: float,
    of_input: bool,
) -> list[Tensor]:
    """The backward layer by layer, with its dependence on x through all layers, which are saved without a graph."""
    kernels, count = [w.to(x.dtype) for w in weights], len(norms) // 2
    _, _, _, states, out, last, _, *between = residual_layers(x, weights, biases, norms, eps)
    of_norms: list[tuple[Tensor, Tensor]] = []

    def through_norm(grad: Tensor, x: Tensor, i: int) -> Tensor:
        nothing = x.new_empty(0)  # the statistics are taken again
        found, of_gain, of_offset = norm_reference_backward(
            grad, x, norms[2 * i], norms[2 * i + 1], nothing, nothing, eps, True
        )
        of_norms.append((of_gain, of_offset))
        return found

    grad, of_last, of_bias = convolution_reference_backward(grad_y, last, kernels[-1], True)
    grad_out = through_norm(grad, out, count - 1)
    grad = torch.zeros_like(out)
    of_skips: list[Tensor] = []
    of_squares: list[Tensor] = []
    for i, h in reversed(list(enumerate(states.split(out.shape[1], 1)))):
        through_skip, of_skip, _ = convolution_reference_backward(grad_out, h, kernels[3 * i + 1], True)
        grad = grad + through_skip
        of_skips.append(of_skip.reshape(weights[1].shape[:2]))
        if i:
            first, inner, second = between[3 * i - 3 : 3 * i]
            of_second, of_b, _ = convolution_reference_backward(grad, second, kernels[3 * i], True)
            of_inner = through_norm(of_second, inner, 2 * i - 1)
            of_first, of_a, _ = convolution_reference_backward(of_inner, first, kernels[3 * i - 1], True)
            # The gradient of this state goes on to the one before.
            grad = grad + through_norm(of_first, states[:, (i - 1) * h.shape[1] : i * h.shape[1]], 2 * i - 2)
            of_squares += [of_b, of_a]
    grad_x, of_h, _ = convolution_reference_backward(grad, x, kernels[0], of_input)
    of_gains, of_offsets = (torch.stack(column[::-1]) for column in zip(*of_norms, strict=True))
    zeros = biases[0].new_zeros(len(biases) - 1, out.shape[1])
    grads = [
        grad_x,
        torch.stack(of_skips[::-1]),
        of_last,
        of_bias,
        zeros,
        of_gains,
        of_offsets,
        of_h,
        *of_squares[::-1],
    ]
    like = [x, weights[0], weights[-1], biases[-1], biases[0], norms[0], norms[0]]
    like += [weights[0]] * (len(grads) - len(like))
    return [grad.to(to.dtype) for grad, to in zip(grads, like, strict=True)]


def _save_training(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, biases, norms, ctx.eps = inputs
    ctx.of_input, ctx.sizes = x.requires_grad, (len(weights), len(norms))
    ctx.save_for_backward(x, *weights, *biases, *norms, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_training(backward: Callable[..., Any], ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    (count, parameters), grad_y = ctx.sizes, grads[0]
    if grad_y is None:
        return None, [None] * count, [None] * count, [None] * parameters, None
    x, *saved = ctx.saved_tensors
    weights, biases, norms = saved[:count], saved[count : 2 * count], saved[2 * count : 2 * count + parameters]
    layers = saved[2 * count + parameters :]
    found = backward(grad_y, x, weights, biases, norms, layers, ctx.eps, ctx.of_input)
    grad_x, of_skips, of_last, of_bias, zeros, of_gains, of_offsets, of_first, *of_squares = found
    of_weights = [of_first]
    for i, of_skip in enumerate(of_skips.unbind()):
        of_weights += [*of_squares[2 * i - 2 : 2 * i], of_skip.view(weights[1].shape)]
    of_norms = [g for pair in zip(of_gains.unbind(), of_offsets.unbind(), strict=True) for g in pair]
    return (
        grad_x if ctx.of_input else None,
        [*of_weights, of_last],
        [*zeros.unbind(), of_bias],
        of_norms,
        None,
    )


def _training_kernel(
    implement: Callable[[Launch, Launch], Callable[..., list[Tensor]]], state: Launch | None, norm: Launch | None
) -> Kernel:
    return Kernel("triton", None if state is None or norm is None else implement(state, norm))


def _reference_training(x: Tensor, weights: Tensors, biases: Tensors, norms: Tensors, eps: float) -> list[Tensor]:
    y, *layers = residual_layers(x, weights, biases, norms, eps)
    return [y, *(layer.detach() for layer in layers)]


_training = register(
    "residual_network",
    "residual_network_training(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] norms, float eps) -> Tensor[]",
    reference=_reference_training,
    fake=_fake_training,
    kernels=[
        _training_kernel(
            _run_training,
            triton("residual_network", "residual_network_training"),
            triton("batch_norm_relu", "batch_norm_relu"),
        )
    ],
    setup_context=_save_training,
    backward=Backward(
        "(Tensor grad_y, Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] norms, Tensor[] layers, float eps,"
        " bool of_input) -> Tensor[]",
        call=_differentiate_training,
        reference=_reference_training_backward,
        fake=_fake_training_backward,
        kernels=[
            _training_kernel(
                _run_training_backward,
                triton("residual_network", "residual_network_training_backward"),
                triton("batch_norm_relu", "batch_norm_relu_backward"),
            )
        ],
    ),
)
