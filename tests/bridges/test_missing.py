"""Libraries that are not installed: nothing needs them before its bridge, which names the remedy."""

import importlib
import subprocess
import sys

import pytest

from pnf.bridges import requires

LIBRARIES = {
    "freia": "FrEIA",
    "nflows": "nflows",
    "normflows": "normflows",
    "pyro": "pyro",
    "sbi": "sbi",
    "zuko": "zuko",
}


class Absent:
    """A finder that does not find one library."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if name == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(("bridge", "library"), LIBRARIES.items())
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, bridge: str, library: str) -> None:
    for name in [*sys.modules]:
        if name == f"pnf.bridges.{bridge}" or name == library or name.startswith(f"{library}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(library), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"pnf.bridges.{bridge}")
    text = f'pnf.bridges.{bridge} needs {library}; install it with: pip install "pnf[{bridge}]"'
    assert (str(caught.value), caught.value.name) == (text, library)


def test_another_missing_module_keeps_its_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'nowhere'$"), requires("zuko", "zuko"):
        importlib.import_module("nowhere")


def test_nothing_else_imports_a_bridge() -> None:
    found = "{name.partition('.')[0] for name in sys.modules} & " + repr({*LIBRARIES.values()})
    script = f"import sys, pnf.fast, pnf.reference; print({found}, 'pnf.bridges' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "set() False\n"
