"""The masking ops: the reference eagerly and compiled, and pnf.ops."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pnf import ops
from pnf.reference import masking as reference

SHAPES = [(1, 4, 8, 8), (64, 12, 64, 64)]
OPS = ["mask_apply", "mask_pack", "mask_unpack", "mask_input", "mask_input_and_backward"]


def call(functions: Any, name: str, mask: str, shape: Sequence[int], device: str, layout: str) -> tuple[Callable, list]:
    """A function and its arguments."""
    x = torch.randn(shape, device=device)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if name == "mask_unpack":
        halves = list(functions.mask_pack(x, mask, 0))
        return lambda kept, rest: functions.mask_unpack(kept, rest, mask, 0, shape[2:]), halves
    if name == "mask_input":
        return lambda x, condition: functions.mask_input(x, condition, mask, 0), [x, x.clone()]
    if name == "mask_input_and_backward":
        grad = torch.ones_like(functions.mask_input(x, x, mask, 0))

        def forward(x: Tensor, condition: Tensor) -> Any:
            return torch.autograd.grad(functions.mask_input(x, condition, mask, 0), (x, condition), grad)

        return forward, [x.requires_grad_(), x.detach().clone().requires_grad_()]
    return lambda x: getattr(functions, name)(x, mask, 0), [x]


@pytest.mark.parametrize("implementation", ["reference", "compiled", "pnf"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("mask", reference.MASKS)
@pytest.mark.parametrize("name", OPS)
def test_masking(
    benchmark: Any,
    name: str,
    mask: str,
    shape: tuple[int, ...],
    layout: str,
    implementation: str,
    device: str,
    synchronised: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    torch.manual_seed(0)
    function, args = call(ops if implementation == "pnf" else reference, name, mask, shape, device, layout)
    torch.manual_seed(0)
    specified, specified_args = call(reference, name, mask, shape, device, layout)
    if implementation == "compiled":
        torch.compiler.reset()
        function = function if name.endswith("backward") else torch.compile(function, fullgraph=True)
        if name.endswith("backward"):
            function = compiled_backward(mask, torch.ones_like(reference.mask_input(*args, mask, 0)))
    got, want = function(*args), specified(*specified_args)
    tensors = [t if isinstance(t, tuple) else (t,) for t in (got, want)]
    for a, b in zip(*tensors, strict=True):
        assert torch.equal(a, b)
    moved = sum(t.nbytes for t in args) + sum(t.nbytes for t in tensors[0])
    if name.endswith("backward"):
        moved += 2 * reference.mask_input(*specified_args, mask, 0).nbytes
    benchmark.group = f"{name} {mask} {'x'.join(map(str, shape))} {layout} {device}"
    benchmark.extra_info["bytes"] = moved
    benchmark(synchronised(function), *args)


def compiled_backward(mask: str, grad: Tensor) -> Callable[[Tensor, Tensor], Any]:
    forward = torch.compile(lambda x, condition: reference.mask_input(x, condition, mask, 0), fullgraph=True)
    return lambda x, condition: torch.autograd.grad(forward(x, condition), (x, condition), grad)
