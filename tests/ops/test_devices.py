"""Launches on GPUs, without a GPU: the device that tensors share, and GPUs that cannot run the kernels."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pnf.ops import _devices, _library
from pnf.ops._devices import CannotRunError, common_device, or_reference, why_not


class Remote:
    """The attributes of a tensor that a launch reads, with device -1 for the CPU."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.device = torch.device("cpu") if index < 0 else torch.device("cuda", index)

    def get_device(self) -> int:
        return self.index

    def data_ptr(self) -> int:
        return 1000 + self.index


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The launches of a build with CUDA on a machine with two GPUs."""
    calls: list[tuple[Any, ...]] = []
    kernels = SimpleNamespace(mask_apply=lambda *args: calls.append(args))
    monkeypatch.setattr(_library, "extension", lambda: SimpleNamespace(cuda=kernels, build={"cuda": True}))
    triton = SimpleNamespace(squeeze=lambda *args, **constants: calls.append((args, constants)))
    monkeypatch.setattr(_library.importlib, "import_module", {"pnf.kernels.squeeze": triton}.__getitem__)
    monkeypatch.setattr(_library, "has_triton", lambda: True)
    monkeypatch.setattr(_library, "current_stream", lambda index: 70 + index)
    monkeypatch.setattr(torch.cuda, "device", lambda index: calls.append(("on", index)) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", "GPU {}".format)
    monkeypatch.setattr(_devices, "_PROBES", dict.fromkeys(("cuda", "triton"), lambda: ""))
    monkeypatch.setattr(_devices, "_REASONS", {})
    return calls


def test_a_cuda_kernel_runs_on_the_device_of_its_tensors_and_its_stream(launched: list[tuple[Any, ...]]) -> None:
    assert why_not("cuda", 1) == ""
    launched.clear()
    _library.cuda("mask_apply")((Remote(1), Remote(1)), 5, 6)
    assert launched == [("on", 1), (1001, 1001, 5, 6, 71)]


def test_a_triton_kernel_runs_on_the_device_of_its_tensors(launched: list[tuple[Any, ...]]) -> None:
    assert why_not("triton", 1) == ""
    launched.clear()
    x = Remote(1)
    _library.triton("squeeze", "squeeze", inverse=True)((x, x), 5, 6)
    assert launched == [("on", 1), ((x, x, 5), {"inverse": True})]


@pytest.mark.parametrize("make", [lambda: _library.cuda("mask_apply"), lambda: _library.triton("squeeze", "squeeze")])
@pytest.mark.parametrize(
    ("indices", "named"),
    [((0, -1), "cuda:0 and cpu"), ((-1, 0), "cpu and cuda:0"), ((0, 0, 1), "cuda:0 and cuda:1")],
    ids=str,
)
def test_tensors_of_several_devices_are_refused(
    launched: list[tuple[Any, ...]], make: Callable[[], Any], indices: tuple[int, ...], named: str
) -> None:
    with pytest.raises(RuntimeError, match=f"on the same device, but found at least two devices, {named}!"):
        make()([Remote(index) for index in indices], 5)
    assert not launched


def test_tensors_of_one_device_have_its_number() -> None:
    assert common_device("op", [torch.zeros(1), torch.zeros(2)]) == -1
    assert common_device("op", [Remote(3), Remote(3)]) == 3


def test_a_gpu_that_runs_no_kernel_takes_the_reference_and_says_so_once(
    launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setitem(_devices._PROBES, "cuda", lambda: asked.append(1) or "no kernel image is available")
    run = or_reference(lambda x: _library.cuda("mask_apply")((x, x), 5), lambda x: "reference")
    with pytest.warns(RuntimeWarning, match=r"cuda kernels .* cuda:1 \(GPU 1\).*reference.*: no kernel image") as told:
        assert [run(Remote(1)) for _ in range(3)] == ["reference"] * 3
    assert len(told) == len(asked) == 1
    assert not [call for call in launched if call[0] != "on"]
    assert why_not("triton", 1) == ""
    _devices._REASONS["cuda", 0] = ""
    assert run(Remote(0)) is None
    assert launched[-1] == (1000, 1000, 5, 70)


def test_nothing_is_decided_while_a_graph_is_captured(
    launched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_devices._PROBES, "cuda", lambda: "operation not permitted when stream is capturing")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    _library.cuda("mask_apply")((Remote(0),))
    assert launched[-1] == (1000, 70)
    assert not _devices._REASONS


@pytest.mark.usefixtures("launched")
def test_a_triton_that_cannot_compile_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify it.")

    module = SimpleNamespace(probe=fail, __version__="3.6.0")
    monkeypatch.setattr(_devices, "importlib", SimpleNamespace(import_module=lambda name: module))
    monkeypatch.setattr(torch, "empty", lambda *size, device: Remote(0))
    monkeypatch.setitem(_devices._PROBES, "triton", _devices._probe_triton)
    with pytest.warns(
        RuntimeWarning, match=r"triton kernels .*: RuntimeError: Failed to find C compiler\.; pnf doctor"
    ):
        assert why_not("triton", 0) == "RuntimeError: Failed to find C compiler."
    launch = _library.triton("squeeze", "squeeze")
    with pytest.raises(CannotRunError):
        launch((Remote(0),), 5)


def test_an_old_triton_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__="3.4.0")
    monkeypatch.setattr(_devices, "importlib", SimpleNamespace(import_module=lambda name: module))
    reason = "Triton 3.4.0 is older than 3.6: install PyTorch 2.11 or newer, which comes with a newer one"
    assert _devices._probe_triton() == reason


def test_errors_of_a_kernel_are_no_reason_for_the_reference() -> None:
    def fail() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        or_reference(fail, lambda: None)()
