"""The Triton kernels, compiled for GPUs that this machine need not have, and traced on tensors without memory."""

from pathlib import Path
from typing import Any

import pytest
import triton
from kernel_table import cells, compile_kernels, read, trace_kernels

import pnf.ops  # noqa: F401 - registers every family
from pnf.ops._library import KERNELS

TABLE = Path(__file__).with_name("kernels.md")

# Everything is compiled or traced before the first test.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module", params=["first", pytest.param("rest", marks=pytest.mark.slow)])
def part(request: pytest.FixtureRequest) -> str:
    """The part of the calls to compile and trace. The scripts define the parts."""
    return request.param


@pytest.fixture(scope="module")
def compiled(part: str) -> list[dict[str, Any]]:
    return compile_kernels(part)


@pytest.fixture(scope="module")
def traced(part: str) -> list[dict[str, Any]]:
    return trace_kernels(part)


def test_every_op_has_a_case(compiled: list[dict[str, Any]], traced: list[dict[str, Any]]) -> None:
    wanted = {op for op, kinds in KERNELS.items() if "triton" in kinds}
    assert {kernel["op"] for kernel in compiled} == wanted
    assert {call["op"] for call in traced} == wanted


def test_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    assert not [kernel for kernel in compiled if kernel["spilled"]]


def test_nothing_is_atomic(compiled: list[dict[str, Any]]) -> None:
    assert not [kernel for kernel in compiled if kernel.get("atomics")]


def test_nothing_is_approximate(compiled: list[dict[str, Any]]) -> None:
    assert not [kernel for kernel in compiled if kernel.get("approximate")]


def test_contiguous_tensors_are_accessed_128_bits_at_a_time(compiled: list[dict[str, Any]]) -> None:
    narrow = [
        (kernel["kernel"], kernel["mode"], kernel["dtype"], kernel["target"], name, bits)
        for kernel in compiled
        if kernel["layout"] == "contiguous" and not kernel["huge"]
        for name, bits in kernel.get("widths", {}).items()
        if name in kernel["main"] and name not in kernel["narrow"] and (not bits or min(bits) < 128)
    ]
    assert not narrow


def test_calls_move_little_more_than_they_must(traced: list[dict[str, Any]]) -> None:
    assert not [call for call in traced if call["ordinary"] and call["moved"] > 1.05 * call["expected"]]


def test_accesses_stay_within_tensors(traced: list[dict[str, Any]]) -> None:
    """Also where masks cut the last block, and on more than 2^31 entries."""
    assert not [call for call in traced if call["errors"]]
    assert any(call["huge"] for call in traced)


def test_the_table_is_fresh(part: str, compiled: list[dict[str, Any]], traced: list[dict[str, Any]]) -> None:
    text = TABLE.read_text()
    if f"Triton {triton.__version__}," not in text:
        return
    committed, found = read(text), cells(compiled, traced)
    calls = {(row[0], row[2]) for row in found}
    assert found.keys() == {row for row in committed if part == "rest" or (row[0], row[2]) in calls}
    for row, values in found.items():
        assert values == {column: committed[row][column] for column in values}, f"{row}: make the table again"
