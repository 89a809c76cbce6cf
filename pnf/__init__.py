"""Progressive Normalizing Flows: exact-likelihood image models with compiled kernels."""

import importlib
from typing import TYPE_CHECKING, Any

from pnf._backends import Backend, backends

if TYPE_CHECKING:
    from pnf.cuda_graphs import GraphedStep
    from pnf.fast import ProgressiveFlow, RealNVP

__version__ = "0.1.0"

__all__ = ["Backend", "GraphedStep", "ProgressiveFlow", "RealNVP", "__version__", "backends"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a program that only needs the version need not wait for PyTorch.
    if name in ("ProgressiveFlow", "RealNVP"):
        return getattr(importlib.import_module("pnf.fast"), name)
    if name == "GraphedStep":
        return importlib.import_module("pnf.cuda_graphs").GraphedStep
    if name in ("fast", "flows", "ops", "reference"):
        return importlib.import_module(f"pnf.{name}")
    raise AttributeError(f"module 'pnf' has no attribute {name!r}")
