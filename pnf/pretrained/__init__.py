"""Models that come with pnf: folders of runs, each with a model card, ``README.md``.

``ProgressiveFlow.from_pretrained("fashion-mnist")`` loads one.
"""

from pathlib import Path

_ROOT = Path(__file__).parent


def names() -> list[str]:
    """The names of the models."""
    return sorted(path.parent.name for path in _ROOT.glob("*/run.json"))


def folder(name: str) -> Path:
    """The folder of a model.

    Raises:
        ValueError: there is no such model.
    """
    if name not in names():
        raise ValueError(f"there is no pretrained model {name!r}; there are {', '.join(names())}")
    return _ROOT / name
