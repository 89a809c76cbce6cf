"""The files that an evaluation writes into a folder: a JSON document and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pnf import figures
from pnf.files import replace_json
from pnf.flows import ProgressiveFlow
from pnf.training.build import Flow


class Written(NamedTuple):
    """The files of a report, and its document."""

    files: Sequence[Path]
    document: dict[str, Any]


def write_report(targets: Sequence[Path], document: dict[str, Any], *pictures: Figure) -> None:
    """Write the document to the first of the files and the pictures to the others."""
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    replace_json(targets[0], document)
    for path, picture in zip(targets[1:], pictures, strict=True):
        figures.save(picture, path)


def resolution(flow: Flow, stage: int) -> str:
    """Height and width of the images of a stage, such as ``"16x32"``."""
    shape = flow.stage_shapes[stage] if isinstance(flow, ProgressiveFlow) else flow.shape
    return f"{shape[-2]}x{shape[-1]}"
