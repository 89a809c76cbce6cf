"""The residual network of a convolutional coupling: from its first hidden layer on in evaluation, and in training."""

from __future__ import annotations  # up to 2.9, torch.compile cannot trace a nested function's `Tensor | None`

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pnf.reference._checks import check_floating
from pnf.reference.batch_norm_relu import batch_norm_relu
from pnf.reference.convolution import convolution
from pnf.reference.weight_norm import check_weight_norm, weight_norm


def residual_network(
    h: Tensor,  # [B, hidden, H, W]
    directions: Sequence[Tensor],  # [O, I, h, w] each
    magnitudes: Sequence[Tensor | None],  # [O, 1, 1, 1] each
    biases: Sequence[Tensor],  # [O] each
    norms: Sequence[Tensor],  # [hidden] each
    eps: float = 1e-4,
) -> Tensor:
    """Apply pre-activation residual blocks, whose skip connections add up to the input of a last convolution.

    First ``out = skip_0(h)``; then for every block ``h = h + b(relu(norm(a(relu(norm(h))))))`` and
    ``out = out + skip(h)``; at last ``y = last(relu(norm(out)))``. The convolutions keep the size of the image. Their
    weights are ``magnitude * direction / ||direction||``.

    Args:
        h: ``[B, hidden, H, W]``, floating.
        directions: the directions of ``skip_0``, of ``a``, ``b`` and ``skip`` of each block, and of the last
            convolution, in the dtype of h. All have ``hidden`` inputs and odd sizes. All but the last have ``hidden``
            outputs.
        magnitudes: a magnitude ``[O, 1, 1, 1]`` for each direction, in the same dtype; ``None`` is 1.
        biases: a bias ``[O]`` for each direction, in the same dtype.
        norms: ``weight, bias, mean, var``, each ``[hidden]`` in the same dtype, for the two normalisations of each
            block and the last one; empty for no normalisation.
        eps: added to every ``var``.

    Returns:
        ``[B, outputs, H, W]`` of the same dtype.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: the lists or shapes do not fit together, or a size is even.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.6 and their code.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> shapes = [(4, 4, 1, 1), (4, 4, 3, 3), (4, 4, 3, 3), (4, 4, 1, 1), (6, 4, 1, 1)]  # one block
        >>> directions, biases = [torch.randn(shape) for shape in shapes], [torch.zeros(shape[0]) for shape in shapes]
        >>> ops.residual_network(torch.randn(2, 4, 8, 8), directions, [None] * 5, biases, norms=[]).shape
        torch.Size([2, 6, 8, 8])
    """
    check_residual_network(h, directions, magnitudes, biases, norms)

    def normed(i: int, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
        if not norms:
            return convolution(x.relu(), weight, bias, add)
        gain, offset, mean, var = norms[4 * i : 4 * i + 4]
        return convolution(batch_norm_relu(x, gain, offset, mean, var, eps)[0], weight, bias, add)

    return run_blocks(h, zip(weight_norm(directions, magnitudes), biases, strict=True), convolution, normed)


def run_blocks(
    h: Tensor,  # [B, hidden, H, W]
    filters: Iterator[tuple[Tensor, Tensor]],
    convolution: Callable[..., Tensor],
    normed: Callable[..., Tensor],
) -> Tensor:
    """Run the network with given weights and biases.

    ``convolution(x, weight, bias, add)`` is the op. ``normed(i, x, weight, bias, add)`` is the same after the
    normalisation ``i`` and its ReLU.
    """
    left = list(filters)[::-1]
    out, i = convolution(h, *left.pop(), None), 0
    while len(left) > 1:
        inner = normed(i, h, *left.pop(), None)
        h = normed(i + 1, inner, *left.pop(), h)
        out, i = convolution(h, *left.pop(), out), i + 2
    return normed(i, out, *left.pop(), None)


def residual_network_training(
    x: Tensor,  # [B, I, H, W]
    weights: Sequence[Tensor],  # [O, I, h, w] each
    biases: Sequence[Tensor],  # [O] each
    norms: Sequence[Tensor],  # [hidden] each
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a whole residual network, whose normalisations are by the statistics of the batch.

    First ``h = first(x)`` and ``out = skip_0(h)``; then for every block ``h = h + b(relu(norm(a(relu(norm(h))))))`` and
    ``out = out + skip(h)``; at last ``y = last(relu(norm(out)))``. The convolutions keep the size of the image. Before
    a normalisation a bias changes nothing but a mean, so the gradients of all biases but the last are 0.

    Args:
        x: ``[B, I, H, W]``, floating.
        weights: the weights of ``first``, ``skip_0``, of ``a``, ``b`` and ``skip`` of each block, and of ``last``,
            floating. All but the first have ``hidden`` inputs, all but the last ``hidden`` outputs. Their sizes are
            odd, and 1 for the skip connections and the last one.
        biases: a bias ``[O]`` for each weight, floating.
        norms: ``weight, bias``, each ``[hidden]`` and floating, for the two normalisations of each block and the last
            one.
        eps: added to every variance.

    Returns:
        ``[B, outputs, H, W]`` of the dtype of x, and the means and biased variances of what was normalised,
        ``[2 * blocks + 1, hidden]`` in float32 or wider and without gradients.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the lists or shapes do not fit together, a size is even, or x has no entries.

    Source: as for :func:`residual_network`.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> shapes = [(4, 3, 3, 3), (4, 4, 1, 1), (4, 4, 3, 3), (4, 4, 3, 3), (4, 4, 1, 1), (6, 4, 1, 1)]  # one block
        >>> weights, biases = [torch.randn(shape) for shape in shapes], [torch.zeros(shape[0]) for shape in shapes]
        >>> norms = [torch.ones(4), torch.zeros(4)] * 3
        >>> y, means, variances = ops.residual_network_training(torch.randn(2, 3, 8, 8), weights, biases, norms)
        >>> y.shape, means.shape
        (torch.Size([2, 6, 8, 8]), torch.Size([3, 4]))
    """
    check_residual_network_training(x, weights, biases, norms)
    y, variances, centres, *_ = residual_layers(x, weights, biases, norms, eps)
    return y, true_means(centres.detach(), biases), variances.detach()


def residual_layers(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], norms: Sequence[Tensor], eps: float
) -> list[Tensor]:
    """The results of :func:`residual_network_training`, and what its gradients need.

    Returns:
        y, the variances, the means without the :func:`biases_before`, the states h one after another in dim 1, out
        and its normalisation, the weights of the skip connections side by side ``[hidden, (blocks + 1) * hidden]``,
        and for each block the first normalisation, what ``a`` makes of it and the second normalisation. What ``a``
        and the skip connections make is without their biases.
    """
    weights, biases = [w.to(x.dtype) for w in weights], [b.to(x.dtype) for b in biases]
    zero = torch.zeros_like(biases[1])
    statistics: list[tuple[Tensor, Tensor]] = []

    def normed(x: Tensor) -> Tensor:
        i = 2 * len(statistics)
        y, *found = batch_norm_relu(x, norms[i], norms[i + 1], eps=eps)
        statistics.append((found[0], found[1]))
        return y

    h = convolution(x, weights[0], biases[0])
    out = convolution(h, weights[1], zero)
    states, between = [h], []
    for i in range(2, len(weights) - 1, 3):
        first = normed(h)
        inner = convolution(first, weights[i], zero)
        second = normed(inner)
        h = convolution(second, weights[i + 1], biases[i + 1], h)
        out = convolution(h, weights[i + 2], zero, out)
        states.append(h)
        between += [first, inner, second]
    last = normed(out)
    y = convolution(last, weights[-1], biases[-1])
    centres, variances = (torch.stack(column) for column in zip(*statistics, strict=True))
    skips = torch.cat([weight.flatten(1) for weight in weights[1:-1:3]], 1)
    return [y, variances, centres, torch.cat(states, 1), out, last, skips, *between]


def biases_before(biases: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each normalisation the biases that change nothing but its mean, and which are added to that."""
    blocks = len(biases) // 3 - 1
    of_blocks = [found for i in range(blocks) for found in ([], [biases[3 * i + 2]])]
    return [*of_blocks, list(biases[1:-1:3])]


def true_means(centres: Tensor, biases: Sequence[Tensor]) -> Tensor:
    """The means of what was normalised, from those without the :func:`biases_before`."""
    added = [
        sum((bias.detach().to(centre.dtype) for bias in found), centre)
        for centre, found in zip(centres, biases_before(biases), strict=True)
    ]
    return torch.stack(added)


def check_residual_network(
    h: Tensor,
    directions: Sequence[Tensor],
    magnitudes: Sequence[Tensor | None],
    biases: Sequence[Tensor],
    norms: Sequence[Tensor],
) -> None:
    """Raise the errors that :func:`residual_network` documents."""
    op = "residual_network"
    check_floating(op, "h", h)
    check_weight_norm(directions, magnitudes)
    blocks, odd = divmod(len(directions) - 2, 3)
    if odd or blocks < 0:
        raise ValueError(f"{op}: directions must be 3 for each block and 2 more, got {len(directions)}")
    for name, tensors, count in (("biases", biases, len(directions)), ("norms", norms, 4 * (2 * blocks + 1))):
        if len(tensors) != count and (tensors or name == "biases"):
            raise ValueError(f"{op}: {name} must be {count} tensors, got {len(tensors)}")
    if h.dim() != 4:
        raise ValueError(f"{op}: h must be [B, hidden, H, W], got {list(h.shape)}")
    dtype, hidden = h.dtype, h.shape[1]
    for i, (direction, bias) in enumerate(zip(directions, biases, strict=True)):
        _check(f"directions[{i}]", direction, dtype)
        shape = direction.shape
        outputs = shape[0] if i == len(directions) - 1 else hidden
        if len(shape) != 4 or shape[0] != outputs or shape[1] != hidden or not shape[2] % 2 or not shape[3] % 2:
            want = f"[{'O' if i == len(directions) - 1 else hidden}, {hidden}, h, w]"
            raise ValueError(f"{op}: directions[{i}] must be {want} with odd sizes h and w, got {list(shape)}")
        _check(f"biases[{i}]", bias, dtype)
        if bias.shape != (outputs,):
            raise ValueError(f"{op}: biases[{i}] must be [{outputs}], got {list(bias.shape)}")
    for i, norm in enumerate(norms):
        _check(f"norms[{i}]", norm, dtype)
        if norm.shape != (hidden,):
            raise ValueError(f"{op}: norms[{i}] must be [{hidden}], got {list(norm.shape)}")


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not (isinstance(tensor, Tensor) and tensor.dtype == dtype):
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"residual_network: {name} must be a Tensor of the dtype of h, {dtype}, got {got}")


def check_residual_network_training(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], norms: Sequence[Tensor]
) -> None:
    """Raise the errors that :func:`residual_network_training` documents."""
    op = "residual_network_training"
    check_floating(op, "x", x)
    if x.dim() != 4:
        raise ValueError(f"{op}: x must be [B, I, H, W], got {list(x.shape)}")
    blocks, odd = divmod(len(weights) - 3, 3)
    if odd or blocks < 0:
        raise ValueError(f"{op}: weights must be 3 for each block and 3 more, got {len(weights)}")
    for name, tensors, count in (("biases", biases, len(weights)), ("norms", norms, 4 * blocks + 2)):
        if len(tensors) != count:
            raise ValueError(f"{op}: {name} must be {count} tensors, got {len(tensors)}")
    for name, tensors in (("weights", weights), ("biases", biases), ("norms", norms)):
        for i, tensor in enumerate(tensors):
            check_floating(op, f"{name}[{i}]", tensor)
    hidden, last = weights[0].shape[0] if weights[0].dim() else 0, len(weights) - 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shape, pointwise = weight.shape, i == last or i % 3 == 1
        outputs, inputs = shape[0] if i == last and shape else hidden, hidden if i else x.shape[1]
        size = shape[2:] == (1, 1) if pointwise else all(n % 2 for n in shape[2:])
        if len(shape) != 4 or shape[:2] != (outputs, inputs) or not size:
            sizes = "1, 1]" if pointwise else "h, w] with odd sizes h and w"
            want = f"[{'O' if i in (0, last) else hidden}, {inputs}, {sizes}"
            raise ValueError(f"{op}: weights[{i}] must be {want}, got {list(shape)}")
        if bias.shape != (outputs,):
            raise ValueError(f"{op}: biases[{i}] must be [{outputs}], got {list(bias.shape)}")
    for i, norm in enumerate(norms):
        if norm.shape != (hidden,):
            raise ValueError(f"{op}: norms[{i}] must be [{hidden}], got {list(norm.shape)}")
    if not x.shape[0] * x.shape[2] * x.shape[3]:
        raise ValueError(f"{op}: x must have at least one entry per channel, got {list(x.shape)}")
