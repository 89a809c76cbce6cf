"""The calls for compiling and tracing every Triton implementation of an op. None of them needs data."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = Sequence[int]

ORDINARY = (16, 12, 32, 32)

# No block of a kernel divides it: masks cut the last one. A height can be halved three times.
UNEVEN = (3, 6, 8, 10)

# More than 2^31 entries, in many examples and in one.
HUGE = [(2**31 // (12 * 32 * 32) + 3, 12, 32, 32), (1, 12, 2**14, 2**14 + 2)]


class Meta(NamedTuple):
    """Makes tensors without memory.

    Attributes:
        dtype: the dtype of the main tensors.
        channels_last: whether their channels come last in memory.
    """

    dtype: torch.dtype
    channels_last: bool

    def __call__(self, *shape: int) -> Tensor:
        if self.channels_last and len(shape) > 2:
            return torch.empty(shape[0], *shape[2:], shape[1], dtype=self.dtype, device="meta").movedim(-1, 1)
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def wide(self, *shape: int) -> Tensor:
        """A parameter, a log-determinant or its gradient."""
        return torch.empty(shape, dtype=torch.float32, device="meta")


class Case(NamedTuple):
    """Arguments of an op.

    Attributes:
        op: its name in ``torch.ops.pnf``.
        arguments: makes the arguments from a shape ``[B, C, H, W]``.
        mode: the name of the case among those of the op.
        channels_last: whether the op's kernels take that layout.
        moved: the bytes that its kernels move, over the least, which is its arguments and its results once each. It is
            more than 1 if something must be read twice.
        moved_last: the same with channels last, if it differs.
        narrow: the tensors that its kernels cannot access in 128 bits at a time, and the reasons.
    """

    op: str
    arguments: Callable[[Meta, Shape], Sequence[Any]]
    mode: str = ""
    channels_last: bool = True
    moved: float = 1.0
    moved_last: float | None = None
    narrow: dict[str, str] = {}


def rows(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def coupling(op: str, mask: str | None) -> Case:
    def arguments(x: Meta, s: Shape) -> Sequence[Any]:
        transformed = s[1] // 2 if mask == "channel" else s[1]
        grads = [x(*s), x.wide(s[0])] if op.endswith("backward") else []
        tensors = [x(*s), x(s[0], 2 * transformed, *s[2:]), x.wide(transformed)]
        return [*grads, *tensors, *([] if grads else [x.wide(s[0])]), mask, 0]

    few = "one entry for each example"
    return Case(op, arguments, mode=mask or "", narrow={"out": few, "parts": few, "log_det": few})


def act_norm(op: str) -> Case:
    def arguments(x: Meta, s: Shape) -> Sequence[Any]:
        backward = op.endswith("backward")
        grads = [x(*s), x.wide(s[0])] if backward else []
        return [*grads, x(*s), x.wide(s[1]), x.wide(s[1]), *([] if backward else [x.wide(s[0])])]

    few = "one entry for each example or channel, or a part of a sum"
    small = "out", "log_det", "log_scale", "shift", "parts", "grad_shift", "grad_log_scale", "grad_log_det"
    return Case(op, arguments, narrow=dict.fromkeys(small, few))


def haar_parts(x: Meta, s: Shape, levels: int, axes: str) -> list[Tensor]:
    """The base and the details of a pyramid, coarse first."""
    size, details = [*s], []
    for axis in axes[::-1] * levels:
        size[3 if axis == "x" else 2] //= 2
        details.append(x(*size))
    return [x(*size), *details[::-1]]


def pyramid(levels: int, axes: str) -> list[Case]:
    def whole(s: Shape) -> Shape:
        """The shape of the image, whose width is halved three times."""
        return *s[:3], s[3] + -s[3] % 8

    # Wider accesses would need more rows in a tile, and move its entries between threads.
    coarse = "a thread holds 32 bytes of a row of x, and a fourth or an eighth of them of a coarse row"
    narrow = dict.fromkeys(("base", "d_3", "d_4", "d_5"), coarse) if (levels, len(axes)) == (3, 2) else {}
    return [
        Case("haar_pyramid", lambda x, s: [x(*whole(s)), levels, axes, 0.5], f"{levels} {axes}", narrow=narrow),
        Case(
            "haar_pyramid_inverse",
            lambda x, s: [haar_parts(x, whole(s), levels, axes), axes, 1.0],
            f"{levels} {axes}",
            narrow=narrow,
        ),
    ]


def haar(dim: int) -> list[Case]:
    mode = f"dim {dim}"

    def halves(x: Meta, s: Shape) -> list[Tensor]:
        return haar_parts(x, s, 1, "yx"[dim - 2])

    def gamma(x: Meta, s: Shape) -> list[Any]:
        return [x.wide(s[1]), dim]

    return [
        Case("haar_split", lambda x, s: [x(*s), dim, 0.5], mode),
        Case("haar_merge", lambda x, s: [*halves(x, s), dim, 1.0], mode),
        Case("lattice_split", lambda x, s: [x(*s), 256, dim], mode),
        # Runs of single entries are read with those between them; of longer ones every other is read.
        Case(
            "lattice_merge",
            lambda x, s: [halves(x, s)[0], x(*s), 256, dim],
            mode,
            moved=4 / 5 if dim == 2 else 1.0,
            moved_last=4 / 5,
        ),
        Case("haar_bounded_split", lambda x, s: [x(*s), *gamma(x, s)], mode),
        Case("haar_bounded_merge", lambda x, s: [*halves(x, s), *gamma(x, s)], mode),
        Case("haar_bounded_split_backward", lambda x, s: [*halves(x, s), x.wide(s[0]), x(*s), *gamma(x, s)], mode),
        Case("haar_bounded_merge_backward", lambda x, s: [x(*s), x.wide(s[0]), *halves(x, s), *gamma(x, s)], mode),
    ]


def batch_norm_relu(batch: bool) -> list[Case]:
    mode = "batch" if batch else "given"

    def parameters(x: Meta, s: Shape, count: int) -> list[Tensor]:
        return [x.wide(s[1]) for _ in range(count)]

    def forward(x: Meta, s: Shape) -> list[Any]:
        return [x(*s), *parameters(x, s, 2), *([None, None] if batch else parameters(x, s, 2)), 1e-4]

    def backward(x: Meta, s: Shape) -> list[Any]:
        return [x(*s), x(*s), *parameters(x, s, 4), 1e-4, batch]

    return [
        # The statistics need all of x, which is then read again.
        Case("batch_norm_relu", forward, mode, moved=3 / 2 if batch else 1.0),
        # Each entry of grad_x needs the sum of all of grad_y times x.
        Case("batch_norm_relu_backward", backward, mode, moved=5 / 3 if batch else 1.0),
    ]


def batch_norm(batch: bool, mask: str | None = None) -> list[Case]:
    mode = "batch" if batch else "given"

    def given(x: Meta, s: Shape) -> list[Any]:
        channels = s[1] // 2 if mask == "channel" else s[1]
        return [x.wide(channels), x.wide(channels)]

    def images(x: Meta, s: Shape) -> Tensor:
        """Halves are normalised where the channels are last."""
        return x(*s) if mask is None or x.channels_last else x(s[0], *s[2:], s[1]).movedim(-1, 1)

    def forward(x: Meta, s: Shape) -> list[Any]:
        return [images(x, s), x.wide(s[0]), *([None, None] if batch else given(x, s)), 1e-4, mask, 0]

    def backward(x: Meta, s: Shape) -> list[Any]:
        return [images(x, s), x.wide(s[0]), images(x, s), *given(x, s), 1e-4, mask, 0, batch]

    few = dict.fromkeys(("out", "log_det", "grad_log_det"), "one entry for each example")
    moved, moved_backward = (
        (3 / 2, 5 / 3) if batch else (1.0, 2 / 3)
    )  # with given statistics the backward does not read x
    if mask is not None:
        few |= dict.fromkeys(("x", "y", "grad_x", "grad_y"), "the channels are last here, and few")
        # One half is read and written once.
        mode, moved, moved_backward = f"{mask} {mode}", (moved + 1) / 2, (moved_backward + 2 / 3) / 2
    return [
        Case("batch_norm", forward, mode, moved=moved, narrow=few),
        Case("batch_norm_backward", backward, mode, moved=moved_backward, narrow=few),
    ]


CONDITIONS = 4


def conditioner_input(mask: str, norm: str) -> list[Case]:
    board = mask == "checkerboard"

    def kept(s: Shape) -> int:
        return s[1] if board else s[1] // 2

    def columns(s: Shape) -> int:
        """The channels of h."""
        return 2 * kept(s) + board + CONDITIONS

    def forward(x: Meta, s: Shape) -> list[Any]:
        offset, *given = [None if norm == "none" else x.wide(kept(s)) for _ in range(3)]
        condition = x(s[0], CONDITIONS, *s[2:])
        return [x(*s), condition, offset, *([None, None] if norm == "batch" else given), *others]

    def backward(x: Meta, s: Shape) -> list[Any]:
        offset = None if norm == "none" else x.wide(kept(s))
        given = [x.wide(0 if norm == "none" else kept(s)) for _ in range(2)]
        return [x(s[0], columns(s), *s[2:]), x(*s), offset, *given, *others, norm == "batch"]

    def moved(last: bool) -> float:
        """Channels read and written, over the channels of all tensors. The statistics need the whole kept half of x."""
        read = (2 if norm == "batch" else 1) * kept(ORDINARY) * share(last)
        h = columns(ORDINARY)
        return (read + CONDITIONS + h) / (ORDINARY[1] + CONDITIONS + h)

    def moved_backward(last: bool) -> float:
        """The same for the gradients. Each entry of grad_x needs the sums of all grad_h.

        The gradients of the board and the condition are not read. At sites that a board does not keep, grad_h is part
        of the sums, but grad_x is zero.
        """
        once = kept(ORDINARY) * (share(last) + 2 * (share(last) if norm != "given" else 1))
        sums = kept(ORDINARY) * (share(last) + 2) if norm == "batch" else 0
        return (sums + once + ORDINARY[1]) / (columns(ORDINARY) + 2 * ORDINARY[1])

    def share(last: bool) -> float:
        """The share that is read where a board keeps every other entry, since neighbours share an access."""
        return 1 / 2 if board and last else 1

    mode, others = f"{mask} {norm}", [mask, 0, 2.0, 1e-4]
    return [
        Case("conditioner_input", forward, mode, moved=moved(False), moved_last=moved(True)),
        Case(
            "conditioner_input_backward", backward, mode, moved=moved_backward(False), moved_last=moved_backward(True)
        ),
    ]


def small(case: Case) -> Case:
    """The same with few entries of a channel, which one program takes."""

    def arguments(x: Meta, s: Shape) -> Sequence[Any]:
        return case.arguments(x, (*s[:2], s[2] // 2, s[3] // 8))

    return case._replace(arguments=arguments, mode=f"{case.mode} small")


def of_channels(case: Case, channels: int) -> Case:
    """The same with another number of channels."""

    def arguments(x: Meta, s: Shape) -> Sequence[Any]:
        return case.arguments(x, (s[0], channels, *s[2:]))

    return case._replace(arguments=arguments, mode=f"{case.mode} {channels} channels")


def residual_network_training() -> list[Case]:
    def layers(x: Meta, s: Shape, blocks: int) -> list[Any]:
        """The op's arguments and results, for a network as wide as its input and its output."""
        hidden = s[1]
        skip, square = (hidden, hidden, 1, 1), (hidden, hidden, 3, 3)
        weights = [x(*shape) for shape in (square, skip, *[square, square, skip] * blocks, skip)]
        biases, norms = [x.wide(hidden) for _ in weights], [x.wide(hidden) for _ in range(4 * blocks + 2)]
        return [x(*s), weights, biases, norms]

    def forward(x: Meta, s: Shape) -> list[Any]:
        return [*layers(x, s, 1), 1e-4]

    def backward(x: Meta, s: Shape) -> list[Any]:
        statistics, states = [x.wide(3, s[1]) for _ in range(2)], x(s[0], 2 * s[1], *s[2:])
        kept = [*statistics, states, x(*s), x(*s), x(s[1], 2 * s[1]), *(x(*s) for _ in range(3))]
        return [x(*s), *layers(x, s, 1), kept, 1e-4, True]

    # The bytes are those of the convolutions and products, too.
    last = "the channels are last here, and few"
    names = "h", "z", "before", "bias", "parts", "x", "y", "grad_x", "grad_y", "added", "more"
    own = dict.fromkeys(names, last)
    return [
        Case("residual_network_training", forward, "one block", moved=2.95, moved_last=2.75, narrow=own),
        Case("residual_network_training_backward", backward, "one block", moved=5.15, moved_last=3.55, narrow=own),
    ]


CASES = [
    Case("standard_normal", lambda x, s: [x(*rows(s))], channels_last=False),
    Case("standard_normal_backward", lambda x, s: [x.wide(s[0]), x(*rows(s))], channels_last=False),
    Case("logit", lambda x, s: [x(*rows(s)), 0.05], channels_last=False),
    Case("logit_backward", lambda x, s: [x(*rows(s)), x.wide(s[0]), x(*rows(s)), 0.05], channels_last=False),
    Case("logit_inverse", lambda x, s: [x(*rows(s)), 0.05], channels_last=False),
    Case("logit_inverse_backward", lambda x, s: [x(*rows(s)), x.wide(s[0]), x(*rows(s)), 0.05], channels_last=False),
    *(Case("squeeze", lambda x, s, order=order: [x(*s), order], order) for order in ("plain", "factor")),
    *(
        Case("squeeze_inverse", lambda x, s, order=order: [x(s[0], 4 * s[1], s[2] // 2, s[3] // 2), order], order)
        for order in ("plain", "factor")
    ),
    *(act_norm(f"{op}{suffix}") for op in ("act_norm", "act_norm_inverse") for suffix in ("", "_backward")),
    *(coupling("affine_coupling", mask) for mask in (None, "checkerboard", "channel")),
    *(coupling("affine_coupling_backward", mask) for mask in (None, "checkerboard", "channel")),
    coupling("affine_coupling_inverse", "checkerboard"),
    coupling("affine_coupling_inverse_backward", "checkerboard"),
    *haar(2),
    *haar(3),
    *pyramid(3, "xy"),
    *pyramid(1, "yx"),
    *pyramid(3, "x"),
    *batch_norm_relu(batch=True),
    *map(small, batch_norm_relu(batch=True)),
    *(of_channels(case, 64) for case in batch_norm_relu(batch=True)),
    *batch_norm_relu(batch=False),
    *batch_norm(batch=True),
    *(of_channels(case, 8) for case in batch_norm(batch=True)),
    *batch_norm(batch=False),
    *batch_norm(batch=True, mask="checkerboard"),
    *batch_norm(batch=True, mask="channel"),
    *residual_network_training(),
    *map(small, residual_network_training()),
    *conditioner_input("checkerboard", "batch"),
    *conditioner_input("checkerboard", "given"),
    *conditioner_input("channel", "batch"),
    *conditioner_input("channel", "none"),
]

FIRST = [next(case for case in CASES if case.op == op) for op in dict.fromkeys(case.op for case in CASES)]
"""One case of each op."""
