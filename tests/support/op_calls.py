"""A call of every public op, as a function of one vector."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transform_tests import draw


class Op(NamedTuple):
    """A call of an op: a function of a module of ops and tensors of given shapes."""

    call: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]


def pixels(x: Tensor) -> Tensor:
    return 0.5 + 0.4 * x.tanh()


def positive(x: Tensor) -> Tensor:
    return 0.5 + x.square()


IMAGE, SMALL = (2, 2, 2, 4), (1, 2, 2, 2)
FILTERS = [(2, 2, 1, 1), (2, 2, 3, 3), (2, 2, 3, 3), (2, 2, 1, 1), (3, 2, 1, 1)]
MAGNITUDES = [(2, 1, 1, 1), (3, 1, 1, 1)]
BIASES = [(2,), (2,), (2,), (2,), (3,)]


def residual_network(m: Any, h: Tensor, *others: Tensor) -> Tensor:
    directions, magnitudes, biases, norms = others[:5], others[5:7], others[7:12], others[12:]
    norms = [positive(x) if i % 4 == 3 else x for i, x in enumerate(norms)]
    return m.residual_network(h, directions, [None, magnitudes[0], None, None, magnitudes[1]], biases, norms)


def residual_network_training(m: Any, x: Tensor, *others: Tensor) -> Tensor:
    return m.residual_network_training(x, others[:6], others[6:12], others[12:])[0]


OPS = {
    "haar_split": Op(lambda m, x: m.haar_split(x, -1), [IMAGE]),
    "haar_merge": Op(lambda m, s, d: m.haar_merge(s, d, -2), [IMAGE, IMAGE]),
    "haar_pyramid": Op(lambda m, x: m.haar_pyramid(x, 1)[1], [IMAGE]),
    "haar_pyramid_inverse": Op(lambda m, b, *d: m.haar_pyramid_inverse(b, d), [(1, 1, 2), (1, 1, 2), (1, 1, 4)]),
    "haar_bounded_split": Op(lambda m, x, g: m.haar_bounded_split(pixels(x), g, -1), [IMAGE, (2,)]),
    "haar_bounded_merge": Op(lambda m, s, u, g: m.haar_bounded_merge(pixels(s), u, g, 2), [SMALL, SMALL, (2,)]),
    "lattice_split": Op(lambda m, x: m.lattice_split(pixels(x), 3, -1), [IMAGE]),
    "lattice_merge": Op(lambda m, c, p: m.lattice_merge(pixels(c), pixels(p), 3, 2), [SMALL, (1, 2, 4, 2)]),
    "mask_apply": Op(lambda m, x: m.mask_apply(x, "checkerboard", 1), [IMAGE]),
    "mask_pack": Op(lambda m, x: m.mask_pack(x, "checkerboard", 0), [IMAGE]),
    "mask_pack channel": Op(lambda m, x: m.mask_pack(x, "channel", 1), [IMAGE]),
    "mask_unpack": Op(lambda m, a, b: m.mask_unpack(a, b, "checkerboard", 0, (2, 3)), [(1, 2, 3), (1, 2, 3)]),
    "mask_input": Op(lambda m, x, c: m.mask_input(x, c, "channel", 1), [SMALL, SMALL]),
    "squeeze": Op(lambda m, x: m.squeeze(x, "factor"), [IMAGE]),
    "squeeze_inverse": Op(lambda m, x: m.squeeze_inverse(x), [(1, 4, 1, 2)]),
    "standard_normal": Op(lambda m, x: m.standard_normal(x), [IMAGE]),
    "logit": Op(lambda m, x: m.logit(pixels(x), 0.05), [IMAGE]),
    "logit_inverse": Op(lambda m, x: m.logit_inverse(x, 0.05), [IMAGE]),
    "act_norm": Op(lambda m, *t: m.act_norm(*t), [IMAGE, (2,), (2,), (2,)]),
    "act_norm_inverse": Op(lambda m, *t: m.act_norm_inverse(*t), [IMAGE, (2,), (2,), (2,)]),
    "affine_coupling": Op(lambda m, *t: m.affine_coupling(*t), [SMALL, (1, 4, 2, 2), (2,), (1,)]),
    "affine_coupling checkerboard": Op(
        lambda m, *t: m.affine_coupling(*t, "checkerboard", 1), [SMALL, (1, 4, 2, 2), (2,), (1,)]
    ),
    "affine_coupling_inverse": Op(
        lambda m, *t: m.affine_coupling_inverse(*t, "channel", 0), [SMALL, (1, 2, 2, 2), (1,), (1,)]
    ),
    "batch_norm": Op(lambda m, *t: m.batch_norm(*t)[:2], [IMAGE, (2,)]),
    "batch_norm checkerboard": Op(
        lambda m, *t: m.batch_norm(*t, mask="checkerboard", parity=1)[:2], [(2, 2, 2, 4), (2,)]
    ),
    "batch_norm given": Op(
        lambda m, x, log_det, mean, var: m.batch_norm(x, log_det, mean, positive(var))[:2], [IMAGE, *[(2,)] * 3]
    ),
    "batch_norm_relu": Op(lambda m, *t: m.batch_norm_relu(*t)[0], [IMAGE, (2,), (2,)]),
    "batch_norm_relu given": Op(
        lambda m, x, w, b, mean, var: m.batch_norm_relu(x, w, b, mean, positive(var))[0], [IMAGE, *[(2,)] * 4]
    ),
    "conditioner_input": Op(
        lambda m, x, c, o: m.conditioner_input(x, c, o, mask="checkerboard", parity=1, gain=2.0)[0],
        [SMALL, (1, 1, 2, 2), (2,)],
    ),
    "conditioner_input plain": Op(
        lambda m, x: m.conditioner_input(x, None, None, mask="channel", parity=0)[0], [SMALL]
    ),
    "convolution": Op(lambda m, *t: m.convolution(*t, relu=True), [SMALL, (3, 2, 3, 3), (3,), (1, 3, 2, 2)]),
    "dense_network": Op(
        lambda m, x, c, *p: m.dense_network(x, c, p[:3], p[3:]),
        [(2, 1), (2, 2), (4, 3), (3, 4), (2, 3), (4,), (3,), (2,)],
    ),
    "weight_norm": Op(lambda m, a, b, c: m.weight_norm([a, b], [c, None]), [(2, 3, 1, 1), (3, 2, 1, 2), (2, 1, 1, 1)]),
    "residual_network": Op(residual_network, [SMALL, *FILTERS, *MAGNITUDES, *BIASES, *[(2,)] * 12]),
    "residual_network_training": Op(
        residual_network_training, [SMALL, (2, 2, 3, 3), *FILTERS, (2,), *BIASES, *[(2,)] * 6]
    ),
}


def function(op: Op, module: Any) -> Callable[[Tensor], Tensor]:
    """The op as a function from the concatenation of its tensors to that of its results."""
    sizes = [torch.Size(shape).numel() for shape in op.shapes]

    def of(x: Tensor) -> Tensor:
        out = op.call(module, *(part.view(shape) for part, shape in zip(x.split(sizes), op.shapes, strict=True)))
        return out.flatten() if isinstance(out, Tensor) else torch.cat([part.flatten() for part in out])

    return of


def point(op: Op) -> Tensor:
    return draw(sum(torch.Size(shape).numel() for shape in op.shapes), 0)
