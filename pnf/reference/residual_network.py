"""The residual network of a convolutional coupling, from its first hidden layer on, in evaluation."""

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
