"""What a training run is made of: its settings, checked field by field, and the presets."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from pnf.data import BUNDLED, bundled, locate
from pnf.files import printable, read_json, replace_json

CONFIG_NAME = "run.json"


class RunError(Exception):
    """A run that cannot go on, for a reason that the user can mend; the text says how, in one line."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    return value


# A path may have bytes that are no UTF-8, and then its characters are none that pydantic takes or writes.
_Source = Annotated[
    str,
    PlainValidator(_text),
    PlainSerializer(lambda text: text.encode("utf-8", "backslashreplace").decode(), when_used="json"),
]


class RunConfig(BaseModel):
    """The settings of one training run; docs/training.md says where each preset comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Literal["progressive", "realnvp"] = "progressive"
    detail: Literal["bounded", "identity"] = "bounded"
    data: _Source = BUNDLED
    size: int = Field(32, ge=1, le=4096)
    limit: int | None = Field(None, ge=1)
    flip: bool = False
    levels: int = Field(2, ge=0, le=12)
    axes: Literal["xy", "yx", "x", "y"] = "xy"
    coupling: Literal["conv", "dense"] = "conv"
    hidden: int = Field(32, ge=1, le=16384)
    blocks: int = Field(4, ge=1, le=256)
    num_couplings: int = Field(3, ge=1, le=256)
    norm: Literal["act", "batch", "none"] = "act"
    injector: bool = True
    scales: int | None = Field(None, ge=1, le=12)
    alpha: float | None = Field(None, ge=0, lt=0.5)
    memory: Literal["plain", "invertible"] = "plain"
    steps: int = Field(10000, ge=1, le=10**9)
    batch_size: int = Field(64, ge=1, le=2**20)
    accumulate: int = Field(1, ge=1, le=2**16)
    lr: float = Field(1e-3, gt=0, le=1)
    warmup: int = Field(100, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = Field(100.0, gt=0)
    scale_l2: float = Field(5e-5, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["32", "bf16"] = "32"
    validation: int = Field(1000, ge=0)
    keep: Literal["last", "best"] = "last"
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    log_every: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.blocks * self.num_couplings > 4096:
            raise ValueError(f"blocks times num_couplings must be at most 4096, got {self.blocks * self.num_couplings}")
        return self

    @property
    def source(self) -> str | Path:
        """What :func:`pnf.data.load` reads the run's own data from, whatever lies in the working folder."""
        return bundled() if self.data == BUNDLED else self.data

    def same_model(self, settings: object) -> bool:
        """Whether settings, or their JSON in a checkpoint, are these, but for the place of the data.

        Stages can be trained on several machines; that their images are the same is checked by themselves.
        """
        try:
            other = settings if isinstance(settings, RunConfig) else RunConfig.model_validate_json(str(settings))
        except ValidationError:
            return False
        return other.model_copy(update={"data": self.data}) == self

    def save(self, folder: Path) -> None:
        """Write the settings into a run's folder."""
        replace_json(folder / CONFIG_NAME, self.model_dump())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The settings of the run in a folder.

        Raises:
            RunError: there is no run, or its settings are damaged.
        """
        path = folder / CONFIG_NAME
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            raise RunError(f"{folder} holds no run: there is no {CONFIG_NAME} in it") from None
        except ValidationError as error:
            raise RunError(f"{path} has wrong settings: {describe(error)}") from None
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}") from None


def one_line(error: Exception) -> str:
    """The message of an error, but for what fills further lines: load_state_dict puts a line for each tensor."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def describe(error: ValidationError) -> str:
    """The mistakes in the settings, in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


PRESETS: dict[str, dict[str, object]] = {
    "demo": {
        "data": "fashion-mini",
        "coupling": "dense",
        "hidden": 128,
        "blocks": 2,
        "num_couplings": 6,
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
        "coupling": "dense",
        "hidden": 256,
        "blocks": 2,
        "num_couplings": 6,
        "batch_size": 128,
        "steps": 8000,
    },
    "mnist-conv": {
        "data": "MNIST",
        "coupling": "conv",
        "hidden": 32,
        "blocks": 4,
        "norm": "batch",
        "steps": 20000,
    },
    "cifar10": {
        "data": "cifar-10-batches-py",
        "coupling": "conv",
        "hidden": 64,
        "blocks": 8,
        "scales": 2,
        "norm": "batch",
        "flip": True,
        "steps": 100000,
    },
    "celeba64": {
        "data": "celeba",
        "size": 64,
        "coupling": "conv",
        "hidden": 32,
        "blocks": 2,
        "norm": "batch",
        "flip": True,
        "steps": 100000,
    },
}
"""Settings of the paper's set-ups, and a small one that trains in minutes on two CPU cores."""

BASELINE_HIDDEN = {"demo": 240, "mnist-dense": 480}
"""Width of the RealNVP baseline where the preset's own would make it a smaller model than its ProgressiveFlow."""


def preset_config(name: str, **overrides: object) -> RunConfig:
    """The settings of a preset, with some of them overridden; the data's path is made absolute.

    Raises:
        RunError: there is no such preset, or a value is out of range.
        DataError: the data's path is empty.
    """
    if name not in PRESETS:
        raise RunError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    settings = dict(PRESETS[name])
    if overrides.get("model") == "realnvp" and name in BASELINE_HIDDEN:
        settings["hidden"] = BASELINE_HIDDEN[name]
    settings |= overrides
    if isinstance(data := settings["data"], str):
        settings["data"] = locate(data)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise RunError(f"wrong settings: {describe(error)}") from None
