"""The tutorials: their cells run, and print and draw what is committed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from run_tutorials import FOLDER, run

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")

every_tutorial = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


def code_cells(node: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in node.cells if cell.cell_type == "code"]


def text(output: NotebookNode) -> str:
    """What an output says, as opposed to draws."""
    return output.get("text", "") or ("" if "image/png" in output.data else output.data["text/plain"])


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


@every_tutorial
def test_cells_show_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    for cell, again in zip(code_cells(committed), code_cells(run(path, tmp_path)), strict=True):
        if cell.source.startswith("%%sh"):
            continue  # they run; tests/cli compares what commands print
        assert [output.output_type for output in again.outputs] == [output.output_type for output in cell.outputs]
        for shown, output in zip(cell.outputs, again.outputs, strict=True):
            assert NUMBER.sub("#", text(output)) == NUMBER.sub("#", text(shown)), "run `make tutorials`"
            # Training takes other roundings elsewhere.
            for old, new in zip(numbers(text(shown)), numbers(text(output)), strict=True):
                assert math.isclose(old, new, rel_tol=0.1, abs_tol=0.1), f"{text(shown)}now: {text(output)}"


@every_tutorial
def test_is_committed_as_it_ran(path: Path) -> None:
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    cells = code_cells(node)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert cell.source.startswith("%%sh") or not any(output.get("name") == "stderr" for output in cell.outputs)
        assert not any(re.search(r"\x1b|/tmp|/home|/root", text(output)) for output in cell.outputs)
    assert path.stat().st_size < 450 * 1024
