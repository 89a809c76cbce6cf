"""What all benchmarks share: the hardware and the versions of a report, and threads that do not change."""

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pnf


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    machine_info["torch"] = torch.__version__
    machine_info["pnf"] = pnf.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["processor"] = platform.processor()


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def synchronised(device: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that ends when the device has finished its work."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = function(*args)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    return wrap
