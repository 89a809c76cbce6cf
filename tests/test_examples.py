"""The examples in docstrings run, and every public op and flow has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import pnf

ROOT = Path(pnf.__file__).parent
MODULES = [
    ".".join(("pnf", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    # A bridge runs where its library is installed.
    bridge = name.startswith("pnf.bridges.")
    module = pytest.importorskip(name, exc_type=ModuleNotFoundError) if bridge else importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "function", [pnf.ProgressiveFlow, pnf.RealNVP, *(getattr(pnf.ops, name) for name in pnf.ops.__all__)]
)
def test_has_an_example(function: object) -> None:
    assert ">>>" in (function.__doc__ or "")
