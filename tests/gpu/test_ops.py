"""Every op that has a kernel for GPUs: captured in a graph, in crooked layouts, and with tensors of two devices."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import CASES, Case
from op_tests import LAYOUTS, as_list, convert, flatten
from torch import Tensor
from torch.testing import assert_close

from pnf.cli.doctor import _launched

SHAPE = (2, 4, 8, 8)


class Make:
    """Makes the tensors of a case, in (0, 1), where every op is smooth."""

    def __init__(self, device: str, channels_last: bool = False) -> None:
        self.device, self.channels_last = device, channels_last

    def __call__(self, *shape: int) -> Tensor:
        x = 0.1 + 0.8 * torch.rand(shape, device=self.device)
        return LAYOUTS["channels_last"](x) if self.channels_last else x

    wide = __call__


def board(op: str, mask: str) -> Case:
    """The ops that move masked entries, whose kernels are CUDA C++."""

    def half(x: Make, s: Sequence[int]) -> Tensor:
        return x(s[0], s[1] // 2, *s[2:]) if mask == "channel" else x(*s[:2], math.prod(s[2:]) // 2)

    calls: dict[str, Callable[..., Sequence[Any]]] = {
        "mask_apply": lambda x, s: [x(*s), mask, 1],
        "mask_pack": lambda x, s: [x(*s), mask, 1],
        "mask_unpack": lambda x, s: [half(x, s), half(x, s), mask, 1, list(s[2:])],
        "mask_input": lambda x, s: [x(*s), x(s[0], 3, *s[2:]), mask, 1],
        "mask_input_backward": lambda x, s: [x(*s), s[1], mask, 1],
    }
    return Case(op, calls[op], mask)


def weight_norm(op: str) -> Case:
    def arguments(x: Make, _: Sequence[int]) -> Sequence[Any]:
        lists = [[x(6, 4, 3, 3), x(3, 4, 1, 1)] for _ in range(2 if op.endswith("backward") else 1)]
        return [*lists, [x(6, 1, 1, 1)], [1, 0]]

    return Case(op, arguments)


MASKING = ["mask_apply", "mask_pack", "mask_unpack", "mask_input", "mask_input_backward"]
CALLS = [
    *CASES,
    *(board(op, mask) for op in MASKING for mask in ("checkerboard", "channel")),
    *(weight_norm(op) for op in ("weight_norm", "weight_norm_backward")),
]
every_call = pytest.mark.parametrize("case", CALLS, ids=[f"{case.op} {case.mode}".strip() for case in CALLS])


def call(case: Case, args: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad():
        return as_list(getattr(torch.ops.pnf, case.op).default(*args))


@every_call
def test_a_graph_takes_new_values(case: Case, device: str) -> None:
    args, others = (case.arguments(Make(device), SHAPE) for _ in range(2))
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            call(case, args)
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.cuda.graph(graph):
            got = call(case, args)
    for x, other in zip(flatten(args), flatten(others), strict=True):
        x.copy_(other)
    graph.replay()
    for a, b in zip(got, call(case, others), strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_doctor_launches_kernels(device: str) -> None:
    assert _launched(torch.device(device)) == "kernels run and are right"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strided", "reversed", "offset"])
@every_call
def test_layouts_do_not_matter(case: Case, name: str, device: str) -> None:
    args = case.arguments(Make(device), SHAPE)
    for a, b in zip(call(case, convert(args, LAYOUTS[name])), call(case, args), strict=True):
        # PyTorch's convolutions sum in another order, with errors at the scale of the largest result.
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert_close(a, b, rtol=1e-5, atol=1e-5 * scale)


@every_call
def test_tensors_of_two_devices_are_refused(case: Case, device: str, elsewhere: Callable[[Tensor], Tensor]) -> None:
    args = case.arguments(Make(device), SHAPE)
    tensors = [x for x in flatten(args) if x.numel()]
    for i in range(len(tensors) if len(tensors) > 1 else 0):
        moved = convert(args, lambda x, i=i: elsewhere(x) if x is tensors[i] else x)
        with pytest.raises(RuntimeError, match="on the same device, but found at least two devices"):
            call(case, moved)
