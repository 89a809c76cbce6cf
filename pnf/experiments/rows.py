"""The rows of the paper's Table 1: data sets, models and their settings."""

from dataclasses import dataclass, field
from pathlib import Path

from pnf.data import locate
from pnf.experiments.budget import Budget
from pnf.training.config import MUON, RunConfig


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: the name of the row and of its folder.
        title: the data set and the kind of networks.
        sources: the paths, under the root, where the data may lie.
        settings: the settings of the runs, the same for all three models.
        baseline: settings that differ for RealNVP.
        ours: settings that differ for our PNF.
        foreign: data sets under the root for anomaly detection.
        paper: bits/dim of RealNVP and of PNF in the paper's Table 1, if it has the row.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    settings: dict[str, object]
    foreign: tuple[str, ...]
    baseline: dict[str, object] = field(default_factory=dict)
    ours: dict[str, object] = field(default_factory=dict)
    paper: tuple[float, float] | None = None

    def find(self, root: Path) -> Path | None:
        """The row's data under the root, if it is there."""
        return next((path for source in self.sources if (path := root / source).exists()), None)


_DENSE: dict[str, object] = {"coupling": "dense", "batch_size": 128}
# Gives RealNVP as many parameters as the five stages of a ProgressiveFlow.
_DENSE_BASELINE: dict[str, object] = {"hidden": 480}
# Steps of the three models take about equally long, and RealNVP has the most parameters.
_CONV: dict[str, object] = {
    "coupling": "conv",
    "hidden": 16,
    "blocks": 2,
    "num_couplings": 2,
    "norm": "batch",
    **MUON,
    "batch_size": 32,
}
_COLOUR = {**_CONV, "flip": True, "validation": 500}
_COLOUR_64 = {**_COLOUR, "size": 64, "batch_size": 16}
_CONV_28: dict[str, object] = {**_CONV, "size": 28}
# Digits and clothes have flat regions.
_FLAT: dict[str, object] = {"lattice": True}
# With an encoder, many couplings are worth more than wide networks and small scales.
_MANY: dict[str, object] = {"encoder": 2, "scales": 2, "num_couplings": 5}
_FLAT_MANY = {**_FLAT, **_MANY}
# Pixels of digits are black, white or at an edge, which a spline can tell apart.
_DIGITS = {**_FLAT_MANY, "spline": 12}
_MNIST, _FASHION, _PHOTOS, _SUBSET = ("MNIST",), ("FashionMNIST",), ("photos64.npz",), ("cifar10_subset.npz",)

ROWS = (
    Row("mnist-dense", "MNIST, dense", _MNIST, _DENSE, _FASHION, _DENSE_BASELINE, _FLAT, paper=(1.75, 1.16)),
    Row("mnist-conv", "MNIST, conv", _MNIST, _CONV, _FASHION, ours=_FLAT_MANY, paper=(1.70, 2.00)),
    Row("fashion-mnist-dense", "Fashion-MNIST, dense", _FASHION, _DENSE, _MNIST, _DENSE_BASELINE, _FLAT),
    Row("fashion-mnist-conv", "Fashion-MNIST, conv", _FASHION, _CONV, _MNIST, ours=_FLAT_MANY),
    Row("mnist-28", "MNIST 28x28, conv", _MNIST, _CONV_28, _FASHION, ours=_DIGITS),
    Row("fashion-mnist-28", "Fashion-MNIST 28x28, conv", _FASHION, _CONV_28, _MNIST, ours=_FLAT_MANY),
    Row("cifar10-subset", "cifar10_subset, conv", _SUBSET, _COLOUR, _PHOTOS, ours=_MANY),
    Row(
        "cifar10",
        "CIFAR-10, conv",
        ("cifar-10-batches-py", "cifar-10-batches-bin"),
        _COLOUR,
        _PHOTOS,
        ours=_MANY,
        paper=(3.57, 3.82),
    ),
    Row("celeba64", "CelebA, conv", ("celeba",), _COLOUR_64, _PHOTOS, ours=_MANY, paper=(2.51, 2.82)),
    Row("photos64", "photos64, conv", _PHOTOS, _COLOUR_64, _SUBSET, ours=_MANY),
)
"""The rows of the table, with the settings in which they differ from the defaults."""

MODELS: dict[str, dict[str, object]] = {
    "realnvp": {"model": "realnvp"},
    "identity": {"model": "progressive", "detail": "identity", "injector": False},
    "bounded": {"model": "progressive", "detail": "bounded"},
}
"""The settings of RealNVP, of PNF as in the paper, and of our PNF."""

GLOW = "glow"
"""The name of the Glow of normflows beside them, which is no run of pnf."""

TITLES = {"realnvp": "RealNVP", "identity": "PNF, as in the paper", "bounded": "PNF, ours", GLOW: "Glow by normflows"}


def row_settings(row: Row, data: Path, budget: Budget) -> dict[str, RunConfig]:
    """The settings of a row's runs, except those that depend on the number of steps."""
    shared = {"data": locate(data), "keep": "best", **row.settings}
    own = {"realnvp": row.baseline, "bounded": row.ours}
    return {
        name: RunConfig.from_dict(shared | own.get(name, {}) | model | budget.settings)
        for name, model in MODELS.items()
    }
