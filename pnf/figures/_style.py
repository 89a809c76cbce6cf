"""Sizes, fonts and saving, shared by all figures."""

import io
import math
import os
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from pnf.files import replace_file

DPI = 150
TITLE, TEXT, SMALL = 11.0, 9.0, 8.0  # points


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file at its own resolution. Missing folders are created.

    The file is replaced as a whole: a reader sees the old file or the new one, never a part.

    Raises:
        ValueError: ``path`` does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save: path must end in .png, got {path.name!r}")
    content = io.BytesIO()
    figure.savefig(
        content,
        format="png",
        dpi="figure",
        bbox_inches=None,
        facecolor="white",
        metadata={"Software": None},  # equal pictures are equal bytes under any version of matplotlib
        pil_kwargs={"optimize": True},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def pixel_size(points: float) -> int:
    return math.ceil(points * DPI / 72)


def literal(text: str) -> str:
    """Escape a name so that matplotlib draws it literally: dollars would start a formula, and it may be no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def text_width(text: str, points: float) -> int:
    """The width of the longest line of a text, in pixels of the figure."""
    font = FontProperties(size=points)
    lines = [line for line in literal(text).split("\n") if line]
    return max((pixel_size(TextPath((0, 0), line, prop=font).get_extents().width) for line in lines), default=0)
