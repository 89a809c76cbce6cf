"""Every public op under every mixture of transforms, against the reference."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from transform_tests import TRANSFORMS, compare, draw

from pnf import ops, reference


class Op(NamedTuple):
    """A call of an op: what it does with a module of ops and tensors of these shapes."""

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


OPS = {
    "haar_split": Op(lambda m, x: m.haar_split(x, -1), [IMAGE]),
    "haar_merge": Op(lambda m, s, d: m.haar_merge(s, d, -2), [IMAGE, IMAGE]),
    "haar_pyramid": Op(lambda m, x: m.haar_pyramid(x, 1)[1], [IMAGE]),
    "haar_pyramid_inverse": Op(lambda m, b, *d: m.haar_pyramid_inverse(b, d), [(1, 1, 2), (1, 1, 2), (1, 1, 4)]),
    "haar_bounded_split": Op(lambda m, x, g: m.haar_bounded_split(pixels(x), g, -1), [IMAGE, (2,)]),
    "haar_bounded_merge": Op(lambda m, s, u, g: m.haar_bounded_merge(pixels(s), u, g, 2), [SMALL, SMALL, (2,)]),
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
    "weight_norm": Op(lambda m, a, b, c: m.weight_norm([a, b], [c, None]), [(2, 3, 1, 1), (3, 2, 1, 2), (2, 1, 1, 1)]),
    "residual_network": Op(residual_network, [SMALL, *FILTERS, *MAGNITUDES, *BIASES, *[(2,)] * 12]),
}
# Compiled in float32 alone.
IN_FLOAT32 = ["convolution", "residual_network"]


def function(op: Op, module: Any) -> Callable[[Tensor], Tensor]:
    """The op from all of its tensors in a row to all of its results in a row."""
    sizes = [torch.Size(shape).numel() for shape in op.shapes]

    def of(x: Tensor) -> Tensor:
        out = op.call(module, *(part.view(shape) for part, shape in zip(x.split(sizes), op.shapes, strict=True)))
        return out.flatten() if isinstance(out, Tensor) else torch.cat([part.flatten() for part in out])

    return of


def point(op: Op) -> Tensor:
    return draw(sum(torch.Size(shape).numel() for shape in op.shapes), 0)


def test_every_public_op_is_here() -> None:
    assert {name.split()[0] for name in OPS} == set(ops.__all__)


@pytest.mark.parametrize("outer", TRANSFORMS)
@pytest.mark.parametrize("name", OPS)
def test_two_transforms(name: str, outer: str) -> None:
    op = OPS[name]
    compare(outer, function(op, ops), function(op, reference), point(op))


@pytest.mark.parametrize("outer", TRANSFORMS)
@pytest.mark.parametrize("name", IN_FLOAT32)
def test_two_transforms_in_float32(name: str, outer: str) -> None:
    op = OPS[name]
    compare(outer, function(op, ops), function(op, reference), point(op).float(), rtol=1e-4)


@pytest.mark.parametrize("name", OPS)
def test_three_transforms(name: str) -> None:
    got, want = (
        TRANSFORMS["vmap"](TRANSFORMS["grad"](TRANSFORMS["jvp"](function(OPS[name], m))))(point(OPS[name]))
        for m in (ops, reference)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_forward_mode(name: str, requires_grad: bool) -> None:
    """Tangents, and through ``requires_grad`` those of the gradient."""
    x, v, found = point(OPS[name]).requires_grad_(requires_grad), draw(point(OPS[name]).numel(), 3), []
    for module in (ops, reference):
        with forward_ad.dual_level():
            y = function(OPS[name], module)(forward_ad.make_dual(x, v))
            if requires_grad:
                (y,) = torch.autograd.grad(y.square().sum(), x)
            found.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OPS)
def test_a_graph_that_was_made_outside_a_transform(name: str) -> None:
    """Gradients in batches are plain backpropagation under ``vmap``."""
    found = []
    for module in (ops, reference):
        x = point(OPS[name]).requires_grad_()
        y = function(OPS[name], module)(x.sin())
        weights = torch.stack([draw(y.numel(), seed) for seed in range(3)])
        (grads,) = torch.autograd.grad(y, x, weights, is_grads_batched=True, create_graph=True)
        found += [grads.detach(), torch.autograd.grad(grads.square().sum(), x)[0]]
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # by linearize itself
@pytest.mark.parametrize("name", OPS)
def test_linearize_and_functionalize(name: str) -> None:
    x, v, found = point(OPS[name]), draw(point(OPS[name]).numel(), 3), []
    for module in (ops, reference):
        f = function(OPS[name], module)
        found += [*(part(v) if callable(part) else part for part in torch.func.linearize(f, x))]
        found.append(torch.func.functionalize(f)(x))
    torch.testing.assert_close(found[:3], found[3:], rtol=1e-9, atol=1e-9)


PRIVATE = ["_after_autograd_keyset", "_AutoDispatchBelowAutograd", "_any_requires_grad"]

WITHOUT = """
import sys, pytest, torch
name, file = sys.argv[1:]
kept = getattr(torch._C, name)
delattr(torch._C, name)
from pnf.ops import haar
setattr(torch._C, name, kept)
assert not isinstance(haar._split, torch._ops.OpOverload)
chosen = "(backward or forward_mode or outside) and not without"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", file, "-k", chosen]))
"""


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name_of_torch(name: str) -> None:
    """Where PyTorch lacks what the fast registration needs, the public one gives the same results."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, name, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
