"""Runs the notebooks of docs/tutorials, and keeps what they print and draw.

    python tools/run_tutorials.py [NOTEBOOK...]

A notebook runs in an empty folder. ``make tutorials`` runs all of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"


def run(notebook: Path, folder: Path) -> NotebookNode:
    """Runs the cells of a notebook in a folder, and returns it with new outputs. A cell that fails is an error."""
    node = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        node,
        timeout=300,
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    # Cells that call pnf in a shell find the one of this interpreter.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    client.execute(env={**os.environ, "PATH": path})
    for cell in node.cells:
        if cell.source.startswith("%%sh"):  # both streams come at once: first the results, then what to do next
            cell.outputs.sort(key=lambda output: output.name, reverse=True)
    node.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return node


def main() -> None:
    """Runs the command line."""
    for notebook in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            node = run(notebook, Path(folder))
        nbformat.write(node, notebook)
        print(f"{notebook.name}: {notebook.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
