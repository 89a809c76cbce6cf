"""The settings of the flows, each declared once with its default, its bounds and one line of help."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, ParamSpec, TypeAlias, TypedDict, TypeVar, cast, get_args

from pnf.flows.shapes import check_choice, check_flag, check_integer, check_number

CouplingKind: TypeAlias = Literal["conv", "dense"]
NormKind: TypeAlias = Literal["act", "batch", "none"]
MemoryKind: TypeAlias = Literal["plain", "invertible"]
DetailKind: TypeAlias = Literal["bounded", "identity"]
SupportKind: TypeAlias = Literal["unit", "real"]
AxesKind: TypeAlias = Literal["xy", "yx", "x", "y"]

SIZES = {
    "conv": {"hidden": 32, "blocks": 4, "num_couplings": 3},
    "dense": {"hidden": 256, "blocks": 2, "num_couplings": 6},
}
"""The default sizes of each kind of networks."""

MOST_BINS = 64
"""The most bins of a spline."""

P = ParamSpec("P")
R = TypeVar("R")


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field of a settings class: its default, its help, and its bounds in pydantic's terms.

    Flows check the lower bounds. Upper bounds hold for settings files and the command line, which are untrusted.
    """
    return field(default=default, metadata={"description": description, **bounds})


class FlowSettings(TypedDict, total=False):
    """The keywords of a :class:`FlowConfig`, for type checkers."""

    coupling: CouplingKind
    hidden: int | None
    blocks: int | None
    num_couplings: int | None
    norm: NormKind
    injector: bool
    encoder: int
    spline: int
    scales: int | None
    alpha: float | None
    memory: MemoryKind


class ProgressiveSettings(FlowSettings, total=False):
    """The keywords of a :class:`ProgressiveConfig`, for type checkers."""

    axes: AxesKind
    detail: DetailKind
    lattice: bool


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The checked settings of a :class:`RealNVP`, which documents them, with defaults for sizes that are None.

    Raises:
        TypeError, ValueError: a setting is invalid.
    """

    flow: ClassVar[str] = "RealNVP"

    coupling: CouplingKind = setting("conv", "Kind of the networks.")
    hidden: int = setting(None, "Width of the networks.", ge=1, le=16384)
    blocks: int = setting(None, "Residual blocks, or hidden layers of dense networks.", ge=1, le=256)
    num_couplings: int = setting(None, "Dense: in all; conv: under each mask at each scale.", ge=1, le=256)
    norm: NormKind = setting("act", "Normalisation: ActNorm, batch or none.")
    injector: bool = setting(True, "Start convolutional stages with an affine map made from the coarser image.")
    encoder: int = setting(0, "Residual blocks of a network of the coarser image for all couplings.", ge=0, le=256)
    spline: int = setting(0, "Bins of a spline for each entry in front of the first affine maps.", ge=0, le=MOST_BINS)
    scales: int | None = setting(None, "Upper bound of the scales of a convolutional flow.", ge=1, le=12)
    alpha: float | None = setting(None, "The base models logit(alpha + (1 - 2 alpha) x).", ge=0, lt=0.5)
    memory: MemoryKind = setting("plain", "plain, or invertible: less memory for up to a third more time.")

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        check_choice(self.flow, "coupling", self.coupling, get_args(CouplingKind))
        check_choice(self.flow, "norm", self.norm, get_args(NormKind))
        check_choice(self.flow, "memory", self.memory, get_args(MemoryKind))
        for name, default in SIZES[self.coupling].items():
            value = getattr(self, name)
            put(name, default if value is None else check_integer(self.flow, name, value, 1))
        put("injector", check_flag(self.flow, "injector", self.injector))
        for name in ("encoder", "spline"):
            put(name, check_integer(self.flow, name, getattr(self, name), 0))
        if self.spline > MOST_BINS:
            raise ValueError(f"{self.flow}: spline must be at most {MOST_BINS} bins, got {self.spline}")
        if self.scales is not None:
            put("scales", check_integer(self.flow, "scales", self.scales, 1))
        if self.alpha is not None:
            put("alpha", check_number(self.flow, "alpha", self.alpha))
            if not 0 <= self.alpha < 0.5:
                raise ValueError(f"{self.flow}: alpha must be in [0, 0.5) or None, got {self.alpha}")
        if self.coupling == "dense" and self.scales is not None:
            raise ValueError(f'{self.flow}: scales must be None with coupling="dense", got {self.scales}')
        for name in ("encoder", "spline"):
            if self.coupling == "dense" and getattr(self, name):
                raise ValueError(f'{self.flow}: {name} must be 0 with coupling="dense", got {getattr(self, name)}')
        if self.coupling == "dense" and self.memory == "invertible":
            raise ValueError(f'{self.flow}: memory must be "plain" with coupling="dense", got "invertible"')


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(FlowConfig):
    """The checked settings of a :class:`ProgressiveFlow`, which documents them.

    Raises:
        TypeError, ValueError: a setting is invalid.
    """

    flow: ClassVar[str] = "ProgressiveFlow"

    levels: int = setting(2, "How often each axis is halved.", ge=0, le=12)
    axes: AxesKind = setting("xy", "Order in which axes grow.")
    detail: DetailKind = setting("bounded", "How stages see details: bounded, or identity as in the paper.")
    lattice: bool = setting(False, "8-bit images: networks see whole means, and details have noise of their own.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", check_integer(self.flow, "levels", self.levels, 0))
        check_choice(self.flow, "axes", self.axes, get_args(AxesKind))
        check_choice(self.flow, "detail", self.detail, get_args(DetailKind))
        object.__setattr__(self, "lattice", check_flag(self.flow, "lattice", self.lattice))
        if self.lattice and self.detail != "bounded":
            raise ValueError(f'{self.flow}: lattice must be False with detail="{self.detail}"')


def flow_settings(config: FlowConfig) -> FlowSettings:
    """The keywords of a :class:`RealNVP` with these settings."""
    return cast("FlowSettings", {f.name: getattr(config, f.name) for f in fields(FlowConfig)})


def progressive_settings(config: ProgressiveConfig) -> ProgressiveSettings:
    """The keywords of a :class:`ProgressiveFlow` with these settings."""
    return {**flow_settings(config), "axes": config.axes, "detail": config.detail, "lattice": config.lattice}


def shows_settings(config: type[FlowConfig]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of ``**settings`` so that ``help`` lists them with their defaults."""

    def show(function: Callable[P, R]) -> Callable[P, R]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in own}
        listed = [
            # The config itself has a number where the caller may leave None.
            p.replace(annotation=p.annotation | None) if p.default is None else p
            for p in inspect.signature(config).parameters.values()
            if p.name not in taken
        ]
        function.__signature__ = inspect.Signature([*own, *listed])  # type: ignore[attr-defined]
        return function

    return show
