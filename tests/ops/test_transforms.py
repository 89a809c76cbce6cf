"""Every public op under every mixture of transforms, against the reference."""

import subprocess
import sys

import pytest
import torch
from op_calls import OPS, function, point
from torch.autograd import forward_ad
from transform_tests import TRANSFORMS, compare, draw

from pnf import ops, reference

# These have kernels in float32 only.
IN_FLOAT32 = ["convolution", "dense_network", "residual_network"]


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
    """Tangents, and with ``requires_grad`` those of the gradient."""
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


@pytest.mark.parametrize("name", [PRIVATE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PRIVATE[1:])])
def test_without_a_private_name_of_torch(name: str) -> None:
    """If PyTorch lacks a private name of the fast registration, the public one gives the same results."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, name, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_without_exact_strides() -> None:
    """PyTorch that lacks the newer tag of an op's strides gets the older one."""
    code = (
        "import torch; del torch.Tag.needs_exact_strides\n"
        "import pnf.ops; print(torch.Tag.needs_fixed_stride_order in torch.ops.pnf.haar_split.default.tags)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
