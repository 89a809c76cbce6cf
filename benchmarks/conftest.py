"""Shared by all benchmarks: the devices, the race of an op, and the hardware and versions for a report."""

import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import report
import torch
from racing import Race, Replay, calls, check, describe
from racing import race as run_race
from torch import Tensor

import pnf
from pnf._backends import build
from pnf.training import exact_arithmetic

RACES = pytest.StashKey[dict[tuple[str, ...], Race]]()
REPORTED = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="Time every case, not only the first ones to look at.")
    parser.addoption("--level", help="Run the C++ kernels of an older instruction set, such as x86-64-v3.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--every-case``, keep forward and backward in float32, for the largest tensors, along the last axis.

    Without timings, the smallest tensors are enough.
    """
    if config.getoption("every_case"):
        return
    here = Path(__file__).parent
    functions = [item for item in items if isinstance(item, pytest.Function) and item.path.is_relative_to(here)]
    sizes: dict[str, list[int]] = {}
    for item in functions:
        sizes.setdefault(item.originalname, []).append(_entries(item.callspec.params))
    chosen = min if config.getoption("benchmark_disable") else max
    left_out = [item for item in functions if not _is_first(item.callspec.params, chosen(sizes[item.originalname]))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


FIRST: dict[str, tuple[Any, ...]] = {
    "passes": ("forward+backward",),
    "layout": ("contiguous", torch.contiguous_format),
    "dim": (-1,),
    "levels": (3,),
    "order": ("plain",),
    "dtype": (torch.float32,),
}
"""The values of parameters in the default cases."""


def _is_first(params: dict[str, Any], entries: int) -> bool:
    return _entries(params) == entries and all(
        params[name] in values for name, values in FIRST.items() if name in params
    )


def _entries(params: dict[str, Any]) -> int:
    shape = params.get("shape")
    return math.prod(shape) if isinstance(shape, tuple) else 0


def pytest_configure(config: pytest.Config) -> None:
    exact_arithmetic()
    if level := config.getoption("level"):
        from pnf import _C

        levels = _C.cpu.levels()
        if level not in levels:
            raise pytest.UsageError(f"--level must be one of {', '.join(levels)}, got {level}")
        _C.cpu.set_level(levels.index(level))
    config.stash[RACES] = {}
    config.stash[REPORTED] = []


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["pnf"] = pnf.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["level"] = build()["level"]
    machine_info["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["processor"] = platform.processor()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[REPORTED]:
        terminalreporter.section("races")
        terminalreporter.write_line(report.table(config.stash[REPORTED]))


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """The clock of ``benchmark``, if a test requests it first."""
    clock = Replay()
    request.node.add_marker(pytest.mark.benchmark(timer=clock.read))
    return clock


@pytest.fixture
def race(replay: Replay, benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """The benchmark of one implementation of an op in its race against the others.

    The three tests that only differ in the implementation share one race, which runs at the first of them. Without
    timings (``--benchmark-disable``) each test checks its implementation once, without generating code.
    """
    torch.manual_seed(0)

    def run(
        implementation: str,
        passes: str,
        group: str,
        make: Callable[[Any], Callable[..., Any]],
        arguments: Sequence[Tensor],
        saved: float,
    ) -> None:
        if benchmark.disabled:
            benchmark.pedantic(check, (calls(passes, make, arguments, "eager"), implementation))
            return
        params = {k: v for k, v in request.node.callspec.params.items() if k != "implementation"}
        key = (request.node.originalname, group, passes, describe(arguments), *map(str, params.values()))
        races = request.config.stash[RACES]
        if key not in races:
            races[key] = run_race(passes, make, arguments, saved)
        durations, moved = races[key]
        replay.durations = iter(durations[implementation])
        modes = {k: v for k, v in params.items() if k not in ("passes", "device", "shape", "layout", "dtype")}
        words = [v if isinstance(v, str) else f"{k}={v}" for k, v in modes.items()]
        case = " ".join([describe(arguments), *(word for word in words if word not in group.split())])
        benchmark.group = f"{group} {passes} {case}"
        benchmark.pedantic(replay.advance, rounds=len(durations[implementation]))
        seconds = races[key].seconds()
        benchmark.extra_info.update(
            op=group,
            passes=passes,
            arguments=case,
            implementation=implementation,
            seconds=seconds,
            bytes=moved,
            gigabytes_per_second=moved / seconds[implementation] / 1e9,
            share_of_floor=seconds["copy"] / seconds[implementation],
            times_reference=seconds["reference"] / seconds[implementation],
            times_compiled=seconds["compiled"] / seconds[implementation],
        )
        request.config.stash[REPORTED].append({"extra_info": benchmark.extra_info})

    return run


@pytest.fixture
def synchronised(device: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a function so that it returns when the device has finished its work."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    return wrap
