"""Sizes, fonts, colours and saving, shared by all figures."""

import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from pnf.files import replace_file

DPI = 150
TITLE, TEXT, SMALL = 11.0, 9.0, 8.0  # points

MODELS = {"realnvp": "#595959", "identity": "#D55E00", "bounded": "#0072B2"}
"""The colour of each model in every figure: RealNVP, PNF as in the paper, and our PNF."""

OTHERS = ("#009E73", "#7F5200", "#332288", "#CC79A7", "#000000")
"""The colours of what is no model. Readers with colour-vision deficiencies can tell all of them and the models' apart.

Most are of Okabe and Ito. On white, each has a contrast of at least 3, as WCAG 2 asks of graphics.
"""

_LINES = ("-", "--", ":", "-.")

_EQUAL: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}},
    ".svg": {"metadata": {"Creator": None, "Date": None}},
    ".pdf": {"metadata": {"Creator": None, "Producer": None, "CreationDate": None}},
}
"""What makes equal pictures equal bytes under any version of matplotlib."""

FORMATS = tuple(_EQUAL)
"""The ends of the names of pictures."""


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file at its own resolution, or as vectors. Missing folders are created.

    The file is replaced as a whole: a reader sees the old file or the new one, never a part.

    Raises:
        ValueError: ``path`` does not end in ``.png``, ``.svg`` or ``.pdf``.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"save: path must end in .png, .svg or .pdf, got {path.name!r}")
    content = io.BytesIO()
    # Journals refuse the fonts of type 3 that matplotlib embeds by default.
    with matplotlib.rc_context({"svg.hashsalt": "pnf", "pdf.fonttype": 42}):
        figure.savefig(content, format=suffix[1:], dpi="figure", bbox_inches=None, facecolor="white", **_EQUAL[suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def lines(labels: Iterable[str], models: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The colour and the style of each label's line.

    Labels of one model have its colour, and differ in style. Those of none, and the fifth of a model, have a colour
    that no model has.

    Args:
        labels: the labels.
        models: the models of labels, keys of ``MODELS``.
    """
    found, seen = {}, Counter[str]()
    for label in labels:
        model = models.get(label, "")
        if model and seen[model] < len(_LINES):
            found[label] = MODELS[model], _LINES[seen[model]]
            seen[model] += 1
        else:
            found[label] = OTHERS[seen[""] % len(OTHERS)], _LINES[seen[""] // len(OTHERS) % len(_LINES)]
            seen[""] += 1
    return found


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


def wrapped(text: str, points: float, width: int) -> str:
    """Break a text into lines of at most ``width`` pixels of the figure, between words."""
    found: list[str] = []
    for word in text.split(" "):
        if found and text_width(f"{found[-1]} {word}", points) <= width:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return "\n".join(found)
