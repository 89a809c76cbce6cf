"""Figures of Progressive Normalizing Flows: sample grids, upscaling, projections, training curves, bits per stage.

Every function returns a `matplotlib.figure.Figure` that carries its own Agg canvas, so nothing here needs a display,
reads or changes `pyplot`'s global state, or has to be closed; `save` writes one as a PNG file. Flows are passed in and
used in the mode that they are in: call `flow.eval()` first where that matters.

Images are floating-point tensors `[N, C, H, W]` with one channel (grey) or three (RGB) and values in [0, 1]; values
outside are clipped. They are drawn with nearest interpolation at whole multiples of their pixels, so what a picture
shows at 100 % is the data and no resampling of it.
"""

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import NDArray
from torch import Tensor

from pnf.files import replace_file

__all__ = [
    "Upscaler",
    "bits_per_stage",
    "by_resolution",
    "comparison",
    "image_grid",
    "likelihoods",
    "projection",
    "save",
    "training_curves",
    "upscaling_draws",
    "upscaling_pipeline",
]

_DPI = 150
_TITLE, _TEXT, _SMALL = 11.0, 9.0, 8.0  # points
_GREY = "#555555"
# Okabe and Ito's colours without yellow and black, and three of Paul Tol's: told apart by readers with any of the
# common colour-vision deficiencies. The dark ones come first, since labels are printed in them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#332288", "#E69F00", "#56B4E9", "#882255", "#999933")


class Upscaler(Protocol):
    """What the upscaling figures need of a flow; `ProgressiveFlow` on images has it."""

    @property
    def stage_names(self) -> Sequence[str]:
        """The names of the stages, coarse first: "f0", "f1x", "f1y", ..."""

    @property
    def stage_shapes(self) -> Sequence[Sequence[int]]:
        """The shape `(C, H, W)` of the image that each stage makes; the last is the full resolution."""

    def upsample(
        self,
        x: Tensor,  # [N, C, h, w]
        steps: int | None = None,
        *,
        noise: float | Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Upscale by `steps` stages, or to full resolution."""


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG file at its own resolution, creating the folders above it.

    A reader sees the old file or the whole new one, never a part: the picture is written beside `path` and renamed.

    Raises:
        ValueError: `path` does not end in `.png`.
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
        metadata={"Software": None},  # the same picture is the same bytes whatever the version of matplotlib
        pil_kwargs={"optimize": True},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def image_grid(
    images: Tensor,  # [N, C, H, W]
    *,
    columns: int = 8,
    title: str | None = None,
) -> Figure:
    """Images in a grid, row by row.

    Args:
        images: grey or RGB images in [0, 1]; values outside are clipped.
        columns: images in a row.
        title: what the images are; by default "N images, H × W pixels".

    Raises:
        TypeError: `images` is not a floating-point tensor.
        ValueError: wrong rank or number of channels, no images, values that are not finite, or `columns` below 1.
    """
    pixels = _pixels("image_grid", "images", images)
    _require_positive("image_grid", "columns", columns)
    if title is None:
        title = f"{_count(len(pixels), 'image')}, {_size(images)} pixels"
    rows = [list(pixels[start : start + columns]) for start in range(0, len(pixels), columns)]
    figure, _ = _panel(rows, cell=_cell(images.shape[-2:], target=96), title=title)
    return figure


@torch.no_grad()
def upscaling_pipeline(
    flow: Upscaler,
    images: Tensor,  # [N, C, h, w]
    *,
    temperature: float = 0.0,
    reference: Tensor | None = None,  # [N, C, H, W]
    generator: torch.Generator | None = None,
    title: str | None = None,
) -> Figure:
    """Low-resolution images on their way up, one stage a column (the paper's Figures 2, 3 and 4).

    Each row starts with one image of `images` and ends at full resolution. All cells have the size and shape of the
    full-resolution image: a coarser image fills its cell with larger pixels, and one whose width has been doubled but
    not its height (8 × 16) fills it with pixels twice as high as wide. So a picture keeps its place and proportions
    along its row and only its pixels get finer.

    Args:
        flow: upscales one stage at a time with `flow.upsample(x, 1, ...)`.
        images: low-resolution images, sampled by the base (Figures 2 and 3) or downscaled from real ones (Figure 4).
        temperature: 0 draws nothing and upscales with zero noise, as the paper does; otherwise the scale of the noise.
        reference: the real images that `images` were downscaled from, for a last column.
        generator: source of the noise.
        title: by default "Upscaling stage by stage" or, with `reference`, "Downscaled real images, upscaled stage by
            stage", and the temperature.

    Raises:
        TypeError: an argument that should be a floating-point tensor is not one.
        ValueError: images of a wrong rank or size, no images, values that are not finite (also in what the flow
            returns), or a temperature that is negative or not finite.
    """
    name = "upscaling_pipeline"
    _require_temperature(name, temperature)
    columns = [_pixels(name, "images", images)]
    shapes, start = _stages(name, flow, "images", images)
    first = "downscaled" if reference is not None else "input" if start else flow.stage_names[0]
    titles = [f"{first}\n{_size(images)}"]
    x = images
    for stage, shape in zip(flow.stage_names[start + 1 :], shapes[start + 1 :], strict=True):
        x = _upsample(flow, x, 1, temperature, generator)
        columns.append(_upscaled(name, x, (len(images), *shape)))
        titles.append(f"{stage}\n{_size(x)}")
    if reference is not None:
        columns.append(_sized(name, "reference", reference, (len(images), *shapes[-1])))
        titles.append(f"real\n{_size(reference)}")
    if title is None:
        what = "Upscaling stage by stage" if reference is None else "Downscaled real images, upscaled stage by stage"
        title = f"{what}, {_temperature(temperature)}"
    figure, _ = _panel(
        [list(row) for row in zip(*columns, strict=True)],
        cell=_cell(shapes[-1][-2:], target=160),
        title=title,
        column_titles=[(text, 1) for text in titles],
    )
    return figure


@torch.no_grad()
def upscaling_draws(
    flow: Upscaler,
    low: Tensor,  # [N, C, h, w]
    *,
    temperatures: Sequence[float] = (0.0, 0.5, 0.7, 1.0),
    draws: int = 3,
    reference: Tensor | None = None,  # [N, C, H, W]
    generator: torch.Generator | None = None,
    title: str | None = None,
) -> Figure:
    """Many full-resolution images that downscale to one low-resolution image, one row for each image of `low`.

    Columns: the low-resolution image, then `draws` independent upscalings at each temperature (one at temperature 0,
    where all are equal), then the real image if `reference` is given. Cells are filled as in `upscaling_pipeline`.

    Args:
        flow: upscales with `flow.upsample(low, None, ...)`.
        low: low-resolution images, of the base or of any stage below full resolution.
        temperatures: scales of the noise.
        draws: upscalings at each temperature above 0.
        reference: the real images that `low` was downscaled from.
        generator: source of the noise.
        title: by default "Upscalings of each low-resolution image at temperature T".

    Raises:
        TypeError: an argument that should be a floating-point tensor is not one.
        ValueError: images of a wrong rank or size, no images, values that are not finite (also in what the flow
            returns), no temperatures or one that is negative or not finite, or `draws` below 1.
    """
    name = "upscaling_draws"
    columns = [_pixels(name, "low", low)]
    shapes, _ = _stages(name, flow, "low", low)
    full = (len(low), *shapes[-1])
    _require_positive(name, "draws", draws)
    if not len(temperatures):
        raise ValueError(f"{name}: temperatures must not be empty")
    titles = [(f"input\n{_size(low)}", 1)]
    for temperature in temperatures:
        _require_temperature(name, temperature)
        repeats = draws if temperature else 1
        for _ in range(repeats):
            x = _upsample(flow, low, None, temperature, generator)
            columns.append(_upscaled(name, x, full))
        titles.append((f"T = {temperature:g}", repeats))
    if reference is not None:
        columns.append(_sized(name, "reference", reference, full))
        titles.append((f"real\n{_size(reference)}", 1))
    figure, _ = _panel(
        [list(row) for row in zip(*columns, strict=True)],
        cell=_cell(shapes[-1][-2:], target=96),
        title="Upscalings of each low-resolution image at temperature T" if title is None else title,
        column_titles=titles,
    )
    return figure


def projection(
    images: Tensor,  # [N, C, H, W]
    encoded: Tensor,  # [N, C, h, w]
    projected: Tensor,  # [N, C, H, W]
    *,
    title: str | None = None,
) -> Figure:
    """Images x, their low-resolution codes E(x), their projections D(E(x)) and the error, one image a column.

    The paper's "lower dimensional manifold with the true projection" (Section 2). The error of a pixel is the absolute
    difference of the two intensities as drawn, the mean over channels; the number below a column is its mean over the
    image.

    Args:
        images: x.
        encoded: `flow.encode(x)`.
        projected: `flow.decode(flow.encode(x))`, which is `flow.project(x)`.
        title: by default "Projection onto the manifold of zero-noise images".

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: wrong rank or number of channels, no images, sizes that do not agree, values that are not finite.
    """
    name = "projection"
    x = _pixels(name, "images", images)
    code = _pixels(name, "encoded", encoded)
    back = _sized(name, "projected", projected, tuple(images.shape))
    if encoded.shape[:2] != images.shape[:2]:
        wanted = [*images.shape[:2], "h", "w"]
        raise ValueError(f"{name}: encoded must be [{', '.join(map(str, wanted))}], got {list(encoded.shape)}")
    error = np.abs(x - back)
    if error.ndim == 4:
        error = error.mean(-1)
    largest = float(error.max())
    figure, drawn = _panel(
        [list(x), list(code), list(back), list(error)],
        cell=_cell(images.shape[-2:], target=96),
        title="Projection onto the manifold of zero-noise images" if title is None else title,
        row_titles=[f"x\n{_size(images)}", f"E(x)\n{_size(encoded)}", f"D(E(x))\n{_size(projected)}", "|x − D(E(x))|"],
        column_notes=[f"{value:.3f}" for value in error.reshape(len(error), -1).mean(1)],
        notes_title="mean error",
        right=_pixel_size(_SMALL) * 6,
    )
    for image in drawn[-1]:
        image.set(cmap="magma", clim=(0.0, largest or 1.0))
    _, right, bottom, top = drawn[-1][-1].get_extent()
    width, height = figure.bbox.size
    bar = figure.add_axes(((right + 8) / width, 1 - bottom / height, 10 / width, (bottom - top) / height))
    figure.colorbar(drawn[-1][-1], cax=bar, ticks=[0.0, largest or 1.0], format="%.2g")
    bar.tick_params(labelsize=_SMALL, length=2, pad=2)
    bar.set_ylabel("intensity", fontsize=_SMALL, labelpad=0)
    return figure


def comparison(
    columns: Mapping[str, Tensor],  # of [N, C, h, w]
    *,
    title: str,
) -> Figure:
    """The same images, one a row, made in several ways, one a column.

    Cells have the size and shape of the largest images, and smaller ones fill theirs with larger pixels.

    Args:
        columns: images for each title of a column.
        title: what is compared.

    Raises:
        TypeError: a column is not a floating-point tensor.
        ValueError: no columns, columns of different length, wrong rank or number of channels, no images, values that
            are not finite.
    """
    name = "comparison"
    if not columns:
        raise ValueError(f"{name}: columns must not be empty")
    pixels = {label: _pixels(name, label, images) for label, images in columns.items()}
    if len(counts := {len(images) for images in columns.values()}) > 1:
        raise ValueError(f"{name}: columns must have as many images each, got {sorted(counts)}")
    size = max((images.shape[-2:] for images in columns.values()), key=math.prod)
    figure, _ = _panel(
        [list(row) for row in zip(*pixels.values(), strict=True)],
        cell=_cell(size, target=96),
        title=title,
        column_titles=[(label, 1) for label in columns],
    )
    return figure


def by_resolution(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    *,
    title: str,
) -> Figure:
    """Charts side by side of what several methods reach from each resolution.

    Args:
        panels: for each unit, and in it for each method, the value and its standard error by resolution, in the order
            in which they are drawn. The panels have the same methods and resolutions.
        title: what was measured, on which data.

    Raises:
        ValueError: no panels, a panel without methods, a method without resolutions, or a value that is not finite.
    """
    name = "by_resolution"
    if not panels or not all(panels.values()) or not all(all(methods.values()) for methods in panels.values()):
        raise ValueError(f"{name}: panels must have methods, and these values")
    for unit, methods in panels.items():
        for method, values in methods.items():
            if not np.isfinite(list(values.values())).all():
                raise ValueError(f"{name}: the {unit} of {method!r} must be finite")
    figure = _page(height=3.6, title=title)
    for index, (unit, methods) in enumerate(panels.items()):
        axes = _axes(figure, (1, len(panels), index + 1))
        for line, (method, values) in enumerate(methods.items()):
            means, errors = zip(*values.values(), strict=True)
            axes.errorbar(
                list(values),
                means,
                yerr=errors,
                color=_COLOURS[line % len(_COLOURS)],
                marker="o",
                markersize=3,
                linewidth=1.4,
                capsize=2,
                label=_literal(method),
            )
        axes.set_ylabel(unit, fontsize=_TEXT)
        axes.set_xlabel("from", fontsize=_TEXT)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=_SMALL
    )
    return figure


def likelihoods(
    sets: Mapping[str, Mapping[str, Tensor]],  # of [N]
    *,
    title: str,
    unit: str = "bits/dim",
) -> Figure:
    """How likely the images of several sets are, one panel for each stage or resolution.

    A set is a histogram with unit area, and a panel covers all but the outer 5 % of each set's values.

    Args:
        sets: for each set the values of its images in each panel. The first set is the one that the flow was trained
            on, and is drawn filled; all have the same panels.
        title: what was evaluated.
        unit: of the values.

    Raises:
        ValueError: no sets, a set without panels or with other panels than the first, or values that are not finite.
    """
    name = "likelihoods"
    if not sets or not next(iter(sets.values())):
        raise ValueError(f"{name}: sets must not be empty, nor any of them")
    panels = list(next(iter(sets.values())))
    for label, values in sets.items():
        if list(values) != panels:
            raise ValueError(f"{name}: {label!r} must have the panels {panels}, got {list(values)}")
        if not all(len(value) and value.isfinite().all() for value in values.values()):
            raise ValueError(f"{name}: the values of {label!r} must be finite, and there must be some")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _page(height=1.0 + 1.7 * rows, title=title)
    for index, panel in enumerate(panels):
        axes = _axes(figure, (rows, columns, index + 1))
        drawn = {label: stages[panel].double().cpu().numpy() for label, stages in sets.items()}
        low = min(float(np.quantile(value, 0.05)) for value in drawn.values())
        high = max(float(np.quantile(value, 0.95)) for value in drawn.values())
        edges = np.linspace(low, high if high > low else low + 1.0, 41).tolist()
        for line, (label, value) in enumerate(drawn.items()):
            axes.hist(
                value,
                edges,
                density=True,
                color=_COLOURS[line % len(_COLOURS)],
                label=_literal(label),
                histtype="step" if line else "stepfilled",
                alpha=1.0 if line else 0.5,
                linewidth=1.4,
            )
        axes.set_title(_literal(panel), fontsize=_TEXT)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        if index >= len(panels) - columns:
            axes.set_xlabel(unit, fontsize=_TEXT)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=_SMALL
    )
    return figure


def training_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    validation: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    title: str = "Training curves",
    unit: str = "bits/dim",
) -> Figure:
    """Loss against training step, one line for each label, named at its end with its last value.

    The vertical axis covers everything that the curves do after the first tenth of their steps, except for the highest
    2 % of each curve's values there (at least one value), and always every curve's lowest and last value: neither the
    start of training nor a spike squashes the rest. A note tells how many points lie above the axis.

    Args:
        curves: for each label (a stage such as "f1x", or a model) its (step, loss) pairs; steps must increase.
        validation: curves of the same labels on held-out data, drawn in the label's colour with a dot at each point;
            the training curves are then pale, and the values at the ends are the held-out ones.
        title: what was trained, on which data.
        unit: unit of the loss.

    Raises:
        ValueError: no curves, a curve without points, steps that do not increase, a loss that is not finite, or a
            label in `validation` that is not in `curves`.
    """
    name = "training_curves"
    if not curves:
        raise ValueError(f"{name}: curves must not be empty")
    validation = validation or {}
    if unknown := [label for label in validation if label not in curves]:
        raise ValueError(f"{name}: validation has labels that curves lacks: {unknown}")
    training = {_literal(label): _curve(name, "curves", label, points) for label, points in curves.items()}
    held_out = {_literal(label): _curve(name, "validation", label, points) for label, points in validation.items()}

    figure, axes = _chart(height=4.2, title=title)
    for index, label in enumerate(training):
        colour = _COLOURS[index % len(_COLOURS)]
        style = ("-", "--", ":")[index // len(_COLOURS) % 3]
        pale = label in held_out
        axes.plot(*training[label], style, color=colour, linewidth=1.4, alpha=0.4 if pale else 1.0, label=label)
        if pale:
            axes.plot(*held_out[label], style, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    everything = [*training.values(), *held_out.values()]
    axes.set_ylim(*_robust_range(everything))
    axes.set_xlabel("training step", fontsize=_TEXT)
    axes.set_ylabel(unit, fontsize=_TEXT)
    axes.margins(x=0.02)
    axes.grid(color="#e4e4e4", linewidth=0.7)

    notes = ["pale: training, dots: held out"] if held_out else []
    top = axes.get_ylim()[1]
    if above := sum(int((values > top).sum()) for _, values in everything):
        notes.append(f"{_count(above, 'point')} of {sum(len(steps) for steps, _ in everything)} above the axis")
    if notes:
        axes.text(
            0.99,
            0.98,
            "\n".join(notes),
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=_SMALL,
            color=_GREY,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
        )
    _label_ends(figure, axes, {label: held_out.get(label, training[label]) for label in training})
    return figure


def bits_per_stage(
    models: Mapping[str, Mapping[str, float]],
    *,
    standard_errors: Mapping[str, float] | None = None,
    title: str = "Where the bits are",
) -> Figure:
    """Each stage's contribution to a model's bits per dimension, one stacked bar a model (compare the paper's Table 1).

    The total of a model is `8 - log_prob / (D log 2)`. A stage that models n_k of the D dimensions contributes

        8 n_k / D - log_prob_k / (D log 2)

    with log_prob_k from `stage_log_probs`, in nats: since the n_k sum to D and the log_prob_k to `log_prob`, the
    contributions sum to the total. A contribution is negative where a stage needs less than 0 of its 8 bits (the
    density is that of continuous, dequantized data); it is then stacked to the left of zero, and a black triangle
    marks the total.

    Args:
        models: for each model the contributions of its stages in bits/dim of the whole image, coarse stage first. A
            stage that only models of a single stage have (RealNVP's f) is drawn in grey.
        standard_errors: standard errors of the models' totals in bits/dim, for the models that have one.
        title: what was evaluated, on which data.

    Raises:
        ValueError: no models, a model without stages, a value that is not finite, a negative standard error, or one
            of a model that is not in `models`.
    """
    name = "bits_per_stage"
    if not models:
        raise ValueError(f"{name}: models must not be empty")
    for model, contributions in models.items():
        if not contributions:
            raise ValueError(f"{name}: model {model!r} has no stages")
        for stage, value in contributions.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}: the contribution of {model!r} {stage!r} must be finite, got {value}")
    errors = standard_errors or {}
    if unknown := [model for model in errors if model not in models]:
        raise ValueError(f"{name}: standard_errors has models that models lacks: {unknown}")
    for model, value in errors.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: the standard error of {model!r} must be finite and not negative, got {value}")

    figure, axes = _chart(height=1.35 + 0.42 * len(models), title=title)
    progressive = dict.fromkeys(stage for stages in models.values() if len(stages) > 1 for stage in stages)
    colours = {stage: _COLOURS[index % len(_COLOURS)] for index, stage in enumerate(progressive)}
    drawn: dict[str, Rectangle] = {}
    segments: list[tuple[Rectangle, float]] = []
    starts: list[float] = []
    ends: list[float] = []
    signed = False
    for row, (model, contributions) in enumerate(models.items()):
        right = left = 0.0
        for stage, value in contributions.items():
            colour = colours.get(stage, "#8c8c8c")
            start = right if value >= 0 else left
            bar = axes.barh(row, value, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.8)[0]
            drawn.setdefault(stage, bar)
            if len(contributions) > 1:
                segments.append((bar, value))
            right, left = (right + value, left) if value >= 0 else (right, left + value)
        total = math.fsum(contributions.values())
        error = errors.get(model)
        if left < 0:
            signed = True
            axes.plot(total, row - 0.4, marker="v", color="black", markersize=5)
        if error is not None:
            axes.errorbar(total, row, xerr=error, color="black", linewidth=1.1, capsize=3)
        starts.append(min(left, total - (error or 0.0), 0.0))
        ends.append(max(right, total + (error or 0.0)))
        axes.annotate(
            _number(total, error),
            (ends[-1], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=_TEXT,
            fontweight="bold",
        )
    if len(drawn) > 1:
        axes.legend(
            [drawn[stage] for stage in drawn],
            list(drawn),
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(drawn),
            frameon=False,
            fontsize=_SMALL,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.2,
            borderpad=0.2,
        )
    axes.set_yticks(range(len(models)), [_literal(model) for model in models], fontsize=_TEXT)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("bits/dim" + ("   (▼ total)" if signed else ""), fontsize=_TEXT)
    low, high = min(starts), max(*ends, 0.0)
    span = high - low or 1.0
    axes.set_xlim(
        low - 0.02 * span if low < 0 else 0.0, high + 0.16 * span
    )  # the totals stand in the room on the right
    axes.spines["left"].set_visible(False)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    _label_segments(figure, axes, segments)
    return figure


def _pixels(
    name: str,
    argument: str,
    images: Tensor,  # [N, C, H, W]
) -> NDArray[np.float32]:  # [N, H, W] or [N, H, W, 3]
    """Check images and turn them into what matplotlib draws."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: {argument} must be a torch.Tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"{name}: {argument} must be floating point with values in [0, 1], got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"{name}: {argument} must be [N, C, H, W], got {list(images.shape)}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"{name}: {argument} must have 1 or 3 channels, got {list(images.shape)}")
    if not images.numel():
        raise ValueError(f"{name}: {argument} must hold at least one image, got {list(images.shape)}")
    pixels = images.detach().to("cpu", torch.float32)
    if not pixels.isfinite().all():
        raise ValueError(f"{name}: {argument} must be finite, got NaN or infinity")
    pixels = pixels.clamp(0.0, 1.0)
    return (pixels[:, 0] if images.shape[1] == 1 else pixels.permute(0, 2, 3, 1)).numpy()


def _require_positive(name: str, argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: {argument} must be at least 1, got {value}")


def _require_temperature(name: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"{name}: a temperature must be finite and not negative, got {temperature}")


def _sized(name: str, argument: str, images: Tensor, wanted: tuple[int, ...]) -> NDArray[np.float32]:
    """The pixels of images that must have a certain shape."""
    pixels = _pixels(name, argument, images)
    if tuple(images.shape) != wanted:
        raise ValueError(f"{name}: {argument} must be {list(wanted)}, got {list(images.shape)}")
    return pixels


def _stages(name: str, flow: Upscaler, argument: str, images: Tensor) -> tuple[list[tuple[int, ...]], int]:
    """The shapes of a flow's stages, and the index of the one that has the images' resolution."""
    shapes = [tuple(shape) for shape in flow.stage_shapes]
    if len(shapes[-1]) != 3:
        raise ValueError(f"{name}: the flow must model images [C, H, W], got a flow of shape {list(shapes[-1])}")
    shape = tuple(images.shape[1:])
    if shape not in shapes[:-1]:
        wanted = ", ".join(f"[N, {', '.join(map(str, shape))}]" for shape in shapes[:-1])
        raise ValueError(
            f"{name}: {argument} must be at a resolution below the flow's full one: {wanted or 'it has only one'}; "
            f"got {list(images.shape)}"
        )
    return shapes, shapes.index(shape)


def _upsample(
    flow: Upscaler, x: Tensor, steps: int | None, temperature: float, generator: torch.Generator | None
) -> Tensor:
    if temperature:
        return flow.upsample(x, steps, temperature=temperature, generator=generator)
    return flow.upsample(x, steps, noise=0)


def _upscaled(name: str, images: Tensor, wanted: tuple[int, ...]) -> NDArray[np.float32]:
    return _sized(name, "what flow.upsample returned", images, wanted)


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} × {images.shape[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _temperature(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "zero noise"


def _cell(size: Iterable[int], *, target: int) -> tuple[int, int]:
    """Height and width of a cell in pixels of the figure: the whole multiple of the image nearest to `target`."""
    height, width = size
    scale = max(1, round(target / max(height, width)))
    return scale * height, scale * width


def _pixel_size(points: float) -> int:
    return math.ceil(points * _DPI / 72)


def _literal(text: str) -> str:
    """The text as matplotlib draws it as it is: names may have dollars, which set formulas, and be no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _text_width(text: str, points: float) -> int:
    """Pixels of the figure that the longest line of a text takes."""
    font = FontProperties(size=points)
    lines = [line for line in _literal(text).split("\n") if line]
    return max((_pixel_size(TextPath((0, 0), line, prop=font).get_extents().width) for line in lines), default=0)


def _panel(
    rows: Sequence[Sequence[NDArray[np.float32]]],
    *,
    cell: tuple[int, int],
    title: str,
    column_titles: Sequence[tuple[str, int]] | None = None,
    row_titles: Sequence[str] = (),
    column_notes: Sequence[str] = (),
    notes_title: str = "",
    right: int = 0,
) -> tuple[Figure, list[list[AxesImage]]]:
    """Draw rows of pictures in cells of one size, whatever the number of pixels of each.

    One pair of axes covers the figure and is measured in the figure's pixels, from the top left: every edge of a cell
    is an edge of pixels, so that nearest interpolation at `_DPI` repeats each pixel of an image equally often.

    Args:
        rows: pictures `[H, W]` or `[H, W, 3]`; a row may be shorter than the first.
        cell: height and width of a cell.
        title: above everything.
        column_titles: texts with the number of columns that each stands over; such groups are set apart a little.
        row_titles: left of the rows.
        column_notes: below the columns.
        notes_title: left of `column_notes`.
        right: pixels to leave free on the right.
    """
    height, width = cell
    line = round(1.35 * _pixel_size(_TEXT))
    margin, gap, group_gap = 14, 4, 12
    spans = [span for _, span in column_titles] if column_titles else [len(rows[0])]
    left = margin + max((_text_width(text, _TEXT) + 12 for text in (*row_titles, notes_title) if text), default=0)
    top = margin + round(1.6 * _pixel_size(_TITLE))
    if column_titles:
        top += line * max(text.count("\n") + 1 for text, _ in column_titles) + 4

    starts: list[int] = []
    centres: list[float] = []
    x = left
    for text, span in column_titles or [("", spans[0])]:
        panel = span * width + (span - 1) * gap
        # A title wider than its columns pushes its neighbours away and never runs into their titles.
        group = max(panel, _text_width(text, _TEXT) + 4 if text else 0)
        offset = x + (group - panel) // 2
        starts += [offset + index * (width + gap) for index in range(span)]
        centres.append(x + group / 2)
        x += group + group_gap
    content = x - group_gap + right
    page_width = max(content, margin + _text_width(title, _TITLE)) + margin
    page_height = top + len(rows) * (height + gap) - gap + margin + (line if column_notes else 0)

    figure = Figure(figsize=(page_width / _DPI, page_height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), autoscale_on=False)
    axes.set_axis_off()
    axes.text(margin, margin, _literal(title), fontsize=_TITLE, va="top", ha="left")
    for (text, _), centre in zip(column_titles or (), centres, strict=False):
        # Line by line, since matplotlib aligns a text of several lines by its ink: "f1y" would stand above "f1x".
        for index, words in enumerate(reversed(_literal(text).split("\n"))):
            axes.text(centre, top - 9 - line * index, words, fontsize=_TEXT, va="baseline", ha="center")
    drawn = []
    for index, row in enumerate(rows):
        y = top + index * (height + gap)
        drawn.append(
            [
                axes.imshow(
                    picture,
                    extent=(x, x + width, y + height, y),
                    cmap="gray",
                    vmin=0.0,
                    vmax=1.0,
                    interpolation="nearest",
                    aspect="auto",
                )
                for x, picture in zip(starts, row, strict=False)
            ]
        )
        if row_titles:
            axes.text(left - 12, y + height / 2, _literal(row_titles[index]), fontsize=_TEXT, va="center", ha="right")
    if column_notes:
        bottom = page_height - margin - 4
        axes.text(left - 12, bottom, notes_title, fontsize=_TEXT, va="baseline", ha="right")
        for x, note in zip(starts, column_notes, strict=True):
            axes.text(x + width / 2, bottom, note, fontsize=_SMALL, va="baseline", ha="center")
    return figure, drawn


def _chart(*, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty chart 7.5 inches wide with its title at the left."""
    figure = _page(height=height, title=title)
    return figure, _axes(figure, (1, 1, 1))


def _page(*, height: float, title: str) -> Figure:
    """A figure 7.5 inches wide with its title at the left."""
    figure = Figure(figsize=(7.5, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_literal(title), fontsize=_TITLE, x=0.01, ha="left")
    return figure


def _axes(figure: Figure, place: tuple[int, int, int]) -> Axes:
    """The axes of a chart at one of the places of a grid."""
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL)
    axes.set_axisbelow(True)
    return axes


def _curve(
    name: str, argument: str, label: str, points: Sequence[tuple[int, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of a curve, checked."""
    if not len(points):
        raise ValueError(f"{name}: {argument}[{label!r}] has no points")
    pairs = np.asarray(points, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{name}: {argument}[{label!r}] must hold (step, loss) pairs, got shape {list(pairs.shape)}")
    steps, values = pairs.T
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"{name}: the steps of {argument}[{label!r}] must increase")
    if not np.isfinite(values).all():
        step = steps[~np.isfinite(values)][0]
        raise ValueError(f"{name}: {argument}[{label!r}] must be finite, got NaN or infinity at step {step:g}")
    return steps, values


def _robust_range(curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[float, float]:
    """The vertical range that `training_curves` promises, with a margin."""
    low = min(float(values.min()) for _, values in curves)
    high = -math.inf
    for steps, values in curves:
        late = values[steps >= steps[0] + 0.1 * (steps[-1] - steps[0])]
        high = max(high, float(np.quantile(late, 0.98, method="lower")), float(values[-1]))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _label_ends(
    figure: Figure, axes: Axes, curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> None:
    """Name each curve at the right with its last value, the names spread so that none covers another."""
    figure.draw_without_rendering()  # the constrained layout settles the height of the axes only now
    gap = 1.3 * _pixel_size(_SMALL) / axes.bbox.height
    low, high = axes.get_ylim()
    order = sorted(curves, key=lambda label: float(curves[label][1][-1]))
    places = _spread([(float(curves[label][1][-1]) - low) / (high - low) for label in order], gap)
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    for label, place in zip(order, places, strict=True):
        steps, values = curves[label]
        axes.annotate(
            f"{label}  {values[-1]:.2f}",
            xy=(steps[-1], values[-1]),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=_SMALL,
            color=colours[label],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[label],
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted places apart to at least `gap`, with the least sum of squared moves.

    Without `gap * index` the condition is that places do not decrease, and pooling neighbours that do is the optimum.
    """
    pools: list[tuple[float, int]] = []
    for index, place in enumerate(places):
        mean, count = place - gap * index, 1
        while pools and pools[-1][0] >= mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    flat = [mean for mean, count in pools for _ in range(count)]
    return [place + gap * index for index, place in enumerate(flat)]


def _number(value: float, error: float | None) -> str:
    """A value with two decimals, or with as many as show the first digit of its standard error."""
    decimals = max(2, -math.floor(math.log10(error))) if error else 2
    text = f"{value:.{decimals}f}" if error is None else f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")  # as on the axis


def _label_segments(figure: Figure, axes: Axes, segments: Sequence[tuple[Rectangle, float]]) -> None:
    """Print the contribution in each segment that is wide enough for its number."""
    figure.draw_without_rendering()  # the constrained layout settles the width of the axes only now
    low, high = axes.get_xlim()
    scale = axes.bbox.width / (high - low)
    for segment, value in segments:
        text = _number(value, None)
        if abs(value) * scale > _text_width(text, _SMALL) + 8:
            # Relative luminance, and the value of it where black and white text have the same contrast (WCAG 2).
            luminance = np.dot((0.2126, 0.7152, 0.0722), np.power(to_rgb(segment.get_facecolor()), 2.2))
            axes.text(
                segment.get_x() + segment.get_width() / 2,
                segment.get_y() + segment.get_height() / 2,
                text,
                ha="center",
                va="center",
                fontsize=_SMALL,
                color="black" if luminance > 0.179 else "white",
            )
