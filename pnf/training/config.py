"""The settings of a training run, checked field by field, and the presets."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pnf.data import BUNDLED, Reals, bundled, locate
from pnf.data.images import MOST_CLASSES
from pnf.files import (
    FORMAT,
    LARGEST_JSON,
    NewerFormatError,
    json_bytes,
    printable,
    read_json,
    replace_file,
    without_format,
)
from pnf.flows.config import ProgressiveConfig, SupportKind, setting
from pnf.training.standardisation import Standardisation, standardisation_of

CONFIG_NAME = "run.json"
MODEL = "model"

_OPTIONAL = {
    "attribute": None,
    "classes": None,
    "support": "unit",
    "shape": None,
    "mean": None,
    "std": None,
    "lattice": False,
    "encoder": 0,
    "spline": 0,
    "optimizer": "adam",
}
"""Settings that are written only if they differ from these values, since older versions do not know them."""


class RunError(Exception):
    """A run cannot go on, for a reason that the user can mend. The message is one line with the remedy."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class Interrupted(RunError):  # noqa: N818 - it is no error
    """A signal stopped the run, which has saved its state."""

    def __init__(self, folder: Path, step: int, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(f"stopped and saved at step {step}; go on with: pnf train --resume {folder}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    return value


# A path may hold bytes that are no UTF-8, and so characters that pydantic neither takes nor writes.
_Source = Annotated[
    str,
    PlainValidator(_text),
    PlainSerializer(lambda text: text.encode("utf-8", "backslashreplace").decode(), when_used="json"),
]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RunConfig(ProgressiveConfig):
    """The settings of one training run.

    Raises:
        pydantic.ValidationError: a setting is invalid.
    """

    model: Literal["progressive", "realnvp"] = setting("progressive", "progressive, or the realnvp baseline.")
    data: _Source = setting(BUNDLED, "Data set; see docs/data.md.", group="Data")
    attribute: str | None = setting(None, "CelebA with --labels: the attribute that is the label.", group="Data")
    classes: tuple[str, ...] | None = setting(None, "Names of the classes, found in the data.", group=None)
    support: SupportKind = setting("unit", "unit: 8-bit images; real: floats that are no images.", group="Data")
    shape: tuple[int, ...] | None = setting(None, "Real data: the shape of an example, found in it.", group=None)
    mean: tuple[float, ...] | None = setting(None, "Real data: its mean; see Standardisation.", group=None)
    std: tuple[float, ...] | None = setting(None, "Real data: its standard deviation.", group=None)
    size: int = setting(32, "Height and width, in pixels.", group="Data", ge=1, le=4096)
    limit: int | None = setting(None, "Use at most this number of images, the first.", group="Data", ge=1)
    flip: bool = setting(False, "Mirror images at random.", group="Data")
    validation: int = setting(1000, "Training images held out for the curves.", group="Data", ge=0)
    steps: int = setting(10000, "Steps of the optimiser.", group="Training", ge=1, le=10**9)
    batch_size: int = setting(64, "Images in a batch.", group="Training", ge=1, le=2**20)
    accumulate: int = setting(1, "Batches whose gradients make one step.", group="Training", ge=1, le=2**16)
    optimizer: Literal["adam", "muon"] = setting(
        "adam", "adam; or muon, for the matrices, best with --lr 0.03, and Adam for the rest.", group="Training"
    )
    lr: float = setting(1e-3, "Learning rate.", group="Training", gt=0, le=1)
    warmup: int = setting(100, "Steps of linear warm-up.", group="Training", ge=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "Schedule of the learning rate.", group="Training")
    clip: float = setting(100.0, "Bound of each stage's gradient norm.", group="Training", gt=0)
    scale_l2: float = setting(5e-5, "Penalty on the squared scale parameters.", group="Training", ge=0)
    ema: float = setting(0.999, "Decay of the averaged weights.", group="Training", ge=0, lt=1)
    precision: Literal["32", "tf32", "bf16"] = setting(
        "32", "Precision inside the networks; tf32 is that of a GPU, and as 32 on a CPU.", group="Training"
    )
    keep: Literal["last", "best"] = setting(
        "last",
        "The averaged weights of the last step, or those with the best likelihood of held-out images.",
        group="Training",
    )
    validate_every: int = setting(500, "Steps between validations.", group="Training", ge=1)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", group="Training", ge=1)
    log_every: int = setting(20, "Steps between rows of the logs.", group="Training", ge=1)
    seed: int = setting(0, "Seed of weights, order and noise.", group="Training", ge=0, lt=2**32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks * self.num_couplings > 4096:
            raise ValueError(f"blocks times num_couplings must be at most 4096, got {self.blocks * self.num_couplings}")
        if self.lattice and self.model == "realnvp":
            raise ValueError("the realnvp baseline has no lattice: leave out --lattice, or --model realnvp")
        if self.support == "real":
            self._check_real()
        if self.classes is not None:
            if self.model == "realnvp":
                raise ValueError("the realnvp baseline takes no labels: leave out --labels, or --model realnvp")
            if not 2 <= len(self.classes) <= MOST_CLASSES:
                raise ValueError(
                    f"there must be from 2 to {MOST_CLASSES} classes, got {len(self.classes)}: leave out --labels"
                )

    def _check_real(self) -> None:
        if self.detail != "identity" or self.alpha is not None:
            raise ValueError('with support "real", detail must be "identity" and alpha None')
        if self.flip or self.classes is not None:
            raise ValueError('with support "real" there are no flips and no labels')
        found = self.shape, self.mean, self.std
        if found == (None, None, None):
            return  # the data has not been read yet
        shape, mean, std = self.shape or (), self.mean or (), self.std or ()
        if not 1 <= len(shape) <= 3 or min(shape) < 1:
            raise ValueError(f"shape must be (D,), (C, D) or (C, H, W), got {self.shape}")
        if not len(mean) == len(std) == shape[0]:
            raise ValueError(f"mean and std must have {shape[0]} entries, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {min(std)}")

    @property
    def standardisation(self) -> Standardisation | None:
        """The standardisation of real data, once it has been read."""
        if self.shape is None or self.mean is None or self.std is None:
            return None
        return Standardisation(self.shape, self.mean, self.std)

    @classmethod
    def from_dict(cls, settings: object) -> Self:
        """Read the settings in a dictionary.

        Raises:
            pydantic.ValidationError: a setting is unknown or out of range.
        """
        return TypeAdapter(cls).validate_python(settings)

    def to_json(self) -> str:
        """The settings as JSON. Bytes of a path that are no UTF-8 are escaped."""
        left_out = asdict(self).keys() - self.settings().keys()
        return TypeAdapter(type(self)).dump_json(self, exclude=left_out).decode()

    def settings(self) -> dict[str, Any]:
        """The settings as a dictionary. Those of labels and of real data are only there with such data."""
        left_out = {name for name, without in _OPTIONAL.items() if getattr(self, name) == without}
        left_out |= {"size"} if self.support == "real" else set()
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def of_reals(self, reals: Reals) -> Self:
        """The settings of a run on real data like this, which is standardised by its mean and standard deviation.

        Raises:
            RunError: an entry is constant.
        """
        found = standardisation_of(reals)
        try:
            return replace(self, shape=found.shape, mean=found.mean, std=found.std)
        except ValidationError as error:
            raise RunError(f"wrong settings: {describe(error)}") from None

    def of_classes(self, classes: Sequence[str]) -> Self:
        """The settings of a run that is conditioned on labels of these classes.

        Raises:
            RunError: the model takes no labels.
        """
        try:
            return replace(self, classes=tuple(classes))
        except ValidationError as error:
            raise RunError(f"wrong settings: {describe(error)}") from None

    @property
    def labelled(self) -> bool:
        """Whether the flow is conditioned on labels."""
        return self.classes is not None

    @property
    def source(self) -> str | Path:
        """The source of the run's data for :func:`pnf.data.load`, in any working folder."""
        return bundled() if self.data == BUNDLED else self.data

    def same_model(self, settings: object) -> bool:
        """Whether settings, or their JSON in a checkpoint, equal these except for the path of the data.

        Stages can be trained on several machines with different paths. The images are checked separately.
        """
        try:
            other = settings if isinstance(settings, RunConfig) else TypeAdapter(RunConfig).validate_json(str(settings))
        except ValidationError:
            return False
        return replace(other, data=self.data) == self

    def save(self, folder: Path) -> None:
        """Write the settings into a run's folder.

        Raises:
            RunError: they would be too large to read again.
        """
        content = json_bytes({"format": FORMAT, **self.settings()})
        if len(content) > LARGEST_JSON:
            remedy = (
                "give the classes shorter names"
                if self.labelled
                else ("give vectors as signals [N, 1, D], which have one mean and standard deviation for all entries")
            )
            raise RunError(f"{CONFIG_NAME} would have {len(content):,} bytes, more than {LARGEST_JSON:,}: {remedy}")
        replace_file(folder / CONFIG_NAME, content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the settings of the run in a folder.

        Raises:
            RunError: there is no run, or its settings are damaged, or from a newer pnf.
        """
        path = folder / CONFIG_NAME
        try:
            return cls.from_dict(without_format(read_json(path)))
        except FileNotFoundError:
            raise RunError(f"{folder} holds no run: there is no {CONFIG_NAME} in it") from None
        except NewerFormatError as error:
            raise RunError(f"{path} {error}") from None
        except ValidationError as error:
            raise RunError(f"{path} has wrong settings: {describe(error)}") from None
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}") from None


def one_line(error: Exception) -> str:
    """The first line of an error's message. load_state_dict adds a line for each tensor."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def describe(error: ValidationError) -> str:
    """Describe the mistakes in settings in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


MUON: dict[str, object] = {"optimizer": "muon", "lr": 0.03}
"""Muon with the learning rate that suits convolutional flows."""

PRESETS: dict[str, dict[str, object]] = {
    "demo": {
        "data": "fashion-mini",
        "lattice": True,
        "coupling": "dense",
        "hidden": 128,
        "batch_size": 128,
        "steps": 300,
        "validation": 100,
        "validate_every": 50,
        "checkpoint_every": 100,
        "ema": 0.99,
        "warmup": 50,
    },
    "mnist-dense": {
        "data": "MNIST",
        "lattice": True,
        "coupling": "dense",
        "batch_size": 128,
        "steps": 8000,
    },
    "mnist-conv": {
        "data": "MNIST",
        "lattice": True,
        "encoder": 2,
        "norm": "batch",
        **MUON,
        "steps": 20000,
    },
    "cifar10": {
        "data": "cifar-10-batches-py",
        "hidden": 64,
        "blocks": 8,
        "scales": 2,
        "encoder": 2,
        "norm": "batch",
        **MUON,
        "flip": True,
        "steps": 100000,
    },
    "celeba64": {
        "data": "celeba",
        "size": 64,
        "blocks": 2,
        "encoder": 2,
        "norm": "batch",
        **MUON,
        "flip": True,
        "steps": 100000,
    },
}
"""The settings of the paper's experiments, and small ones that train in minutes on two CPU cores."""

BASELINE_HIDDEN = {"demo": 240, "mnist-dense": 480}
"""The width of the RealNVP baseline in presets whose own width would make it smaller than their ProgressiveFlow."""


def preset_config(name: str, **overrides: object) -> RunConfig:
    """The settings of a preset, with overrides. The path of the data becomes absolute.

    Raises:
        RunError: the preset is unknown, or a value is out of range.
        DataError: the path of the data is empty.
    """
    if name not in PRESETS:
        raise RunError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    settings = dict(PRESETS[name])
    if overrides.get("support") == "real":
        if "size" in overrides:
            raise RunError("--size is of images: with --support real examples keep their shape")
        settings |= {"detail": "identity", "flip": False}
        settings.pop("size", None)
    if overrides.get("model") == "realnvp" and name in BASELINE_HIDDEN:
        settings["hidden"] = BASELINE_HIDDEN[name]
    settings |= overrides
    if settings.get("model") == "realnvp" or settings.get("detail") == "identity":
        settings["lattice"] = overrides.get("lattice", False)
    # The encoder is a convolutional network, and begins with the injector.
    if settings.get("coupling") == "dense" or not settings.get("injector", True):
        settings["encoder"] = overrides.get("encoder", 0)
    # A preset's learning rate is that of its optimiser.
    if settings.get("coupling") == "dense" and "optimizer" not in overrides:
        settings["optimizer"] = "adam"
    if settings.get("optimizer") == "adam" and "lr" not in overrides:
        settings.pop("lr", None)
    if isinstance(data := settings["data"], str):
        settings["data"] = locate(data)
    try:
        return RunConfig.from_dict(settings)
    except ValidationError as error:
        raise RunError(f"wrong settings: {describe(error)}") from None
