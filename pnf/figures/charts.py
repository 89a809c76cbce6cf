"""Figures of numbers: training curves, bits per stage, likelihoods, scores by resolution."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pnf.figures._style import (
    DPI,
    MODELS,
    OTHERS,
    SMALL,
    TEXT,
    TITLE,
    count,
    lines,
    literal,
    pixel_size,
    text_width,
)

_GREY = "#555555"


def by_resolution(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    *,
    title: str,
    models: Mapping[str, str] | None = None,
) -> Figure:
    """Charts of several methods' values from each resolution, one panel for each unit. Bars are standard errors.

    Args:
        panels: for each unit and method, the value and its standard error by resolution, in drawing order. All panels
            have the same methods and resolutions.
        title: the measurement and its data.
        models: the model of each method that is one: ``"realnvp"``, ``"identity"`` or ``"bounded"``.

    Raises:
        ValueError: there are no panels, a panel has no methods, a method no resolutions, or a value is not finite.
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
        drawn = lines(methods, models or {})
        for method, values in methods.items():
            means, errors = zip(*values.values(), strict=True)
            colour, style = drawn[method]
            axes.errorbar(
                list(values),
                means,
                yerr=errors,
                color=colour,
                linestyle=style,
                marker="o",
                markersize=3,
                linewidth=1.4,
                capsize=2,
                label=literal(method),
            )
        axes.set_ylabel(f"{unit} ± standard error", fontsize=TEXT)
        axes.set_xlabel("upscaled from, height x width in pixels", fontsize=TEXT)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=SMALL)
    return figure


def likelihoods(
    sets: Mapping[str, Mapping[str, Tensor]],  # of [N]
    *,
    title: str,
    unit: str = "bits/dim",
) -> Figure:
    """Histograms of the likelihoods of several sets of images, one panel for each stage or resolution.

    A histogram has the share of the set's images in each of 40 bins. A panel covers all but the outer 5 % of each set's
    values.

    Args:
        sets: for each set, the values of its images in each panel. All sets have the same panels. The first set, the
            flow's training data, is drawn filled.
        title: the subject of the evaluation.
        unit: the unit of the values.

    Raises:
        ValueError: there are no sets, a set has no panels or other panels than the first, or a value is not finite.
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
                weights=np.full(len(value), 100 / len(value)),
                color=OTHERS[line % len(OTHERS)],
                label=literal(label),
                histtype="step" if line else "stepfilled",
                alpha=1.0 if line else 0.5,
                linewidth=1.4,
            )
        axes.set_title(literal(panel), fontsize=TEXT)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if index % columns == 0:
            axes.set_ylabel("% of images", fontsize=TEXT)
        if index >= len(panels) - columns:
            axes.set_xlabel(unit, fontsize=TEXT)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=SMALL)
    return figure


def training_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    validation: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    models: Mapping[str, str] | None = None,
    title: str = "Training curves",
    unit: str = "bits/dim",
) -> Figure:
    """Loss against training step, one line for each label. Its name and last value stand at its end.

    Neither the start of training nor a spike squashes the chart. The vertical axis covers the curves after the first
    tenth of their steps, without the highest 2 % of each curve's values there (at least one value). It always covers
    each curve's lowest and last value. A note counts the points above the axis.

    Args:
        curves: for each label (a stage such as ``"f1x"``, or a model) its (step, loss) pairs; steps must increase.
        validation: held-out curves of the same labels, drawn in the label's colour with a dot at each point. With them
            the training curves are pale, and the values at the ends are the held-out ones.
        models: the model of each label that is one: ``"realnvp"``, ``"identity"`` or ``"bounded"``. It has the model's
            colour.
        title: the model and its data.
        unit: the unit of the loss.

    Raises:
        ValueError: there are no curves, a curve has no points, its steps do not increase, a loss is not finite, or
            ``curves`` lacks a label of ``validation``.
    """
    name = "training_curves"
    if not curves:
        raise ValueError(f"{name}: curves must not be empty")
    validation = validation or {}
    if unknown := [label for label in validation if label not in curves]:
        raise ValueError(f"{name}: validation has labels that curves lacks: {unknown}")
    training = {literal(label): _curve(name, "curves", label, points) for label, points in curves.items()}
    held_out = {literal(label): _curve(name, "validation", label, points) for label, points in validation.items()}

    figure, axes = _chart(height=4.2, title=title)
    for label, (colour, style) in lines(training, {literal(k): v for k, v in (models or {}).items()}).items():
        pale = label in held_out
        axes.plot(*training[label], style, color=colour, linewidth=1.4, alpha=0.4 if pale else 1.0, label=label)
        if pale:
            axes.plot(*held_out[label], style, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    everything = [*training.values(), *held_out.values()]
    axes.set_ylim(*_robust_range(everything))
    axes.set_xlabel("training step", fontsize=TEXT)
    axes.set_ylabel(unit, fontsize=TEXT)
    axes.margins(x=0.02)
    axes.grid(color="#e4e4e4", linewidth=0.7)

    notes = ["pale: training, dots: held out"] if held_out else []
    top = axes.get_ylim()[1]
    if above := sum(int((values > top).sum()) for _, values in everything):
        notes.append(f"{count(above, 'point')} of {sum(len(steps) for steps, _ in everything)} above the axis")
    if notes:
        axes.text(
            0.99,
            0.98,
            "\n".join(notes),
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=SMALL,
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

    The total of a model is ``8 - log_prob / (D log 2)``. A stage that models n_k of the D dimensions contributes

        8 n_k / D - log_prob_k / (D log 2)

    with log_prob_k from ``stage_log_probs``, in nats. The n_k sum to D and the log_prob_k to ``log_prob``, so the
    contributions sum to the total. A contribution can be negative, since the density is that of continuous, dequantized
    data. It is then stacked to the left of zero, and a black triangle marks the total.

    Args:
        models: for each model, the contributions of its stages in bits/dim of the whole image, coarse stage first. A
            stage that occurs only in models of a single stage (RealNVP's f) has the colour of RealNVP.
        standard_errors: standard errors of the totals in bits/dim, for any of the models.
        title: the subject of the evaluation and its data.

    Raises:
        ValueError: there are no models, a model has no stages, a value is not finite, or a standard error is negative
            or belongs to no model.
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
    # From dark to light as from coarse to fine. The lightest would hardly stand out from the page.
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(progressive)))
    colours = dict(zip(progressive, map(to_hex, shades), strict=True))
    drawn: dict[str, Rectangle] = {}
    segments: list[tuple[Rectangle, float]] = []
    starts: list[float] = []
    ends: list[float] = []
    signed = False
    for row, (model, contributions) in enumerate(models.items()):
        right = left = 0.0
        for stage, value in contributions.items():
            colour = colours.get(stage, MODELS["realnvp"])
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
            fontsize=TEXT,
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
            fontsize=SMALL,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.2,
            borderpad=0.2,
        )
    axes.set_yticks(range(len(models)), [literal(model) for model in models], fontsize=TEXT)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    unit = "bits/dim, total ± standard error" if errors else "bits/dim"
    axes.set_xlabel(unit + ("   (▼ total)" if signed else ""), fontsize=TEXT)
    low, high = min(starts), max(*ends, 0.0)
    span = high - low or 1.0
    axes.set_xlim(low - 0.02 * span if low < 0 else 0.0, high + 0.16 * span)  # leaves room for the totals on the right
    axes.spines["left"].set_visible(False)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    _label_segments(figure, axes, segments)
    return figure


def _chart(*, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty chart 7.5 inches wide with its title at the left."""
    figure = _page(height=height, title=title)
    return figure, _axes(figure, (1, 1, 1))


def _page(*, height: float, title: str) -> Figure:
    """A figure 7.5 inches wide with its title at the left."""
    figure = Figure(figsize=(7.5, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(literal(title), fontsize=TITLE, x=0.01, ha="left")
    return figure


def _axes(figure: Figure, place: tuple[int, int, int]) -> Axes:
    """Add the axes of a chart at a place of a grid."""
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.set_axisbelow(True)
    return axes


def _curve(
    name: str, argument: str, label: str, points: Sequence[tuple[int, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check a curve and return its steps and values."""
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
    """The vertical range that ``training_curves`` documents, with a margin."""
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
    """Write each curve's name and last value at the right, spread so that no label covers another."""
    figure.draw_without_rendering()  # only now does the constrained layout settle the height of the axes
    gap = 1.3 * pixel_size(SMALL) / axes.bbox.height
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
            fontsize=SMALL,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[label],
                "linewidth": 1.0,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted places apart to at least ``gap``, with the least sum of squared moves.

    Less ``gap * index``, the places must not decrease: this is isotonic regression, which pooling of neighbours solves.
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
    """Format a value with two decimals, or with enough to show the first digit of its standard error."""
    decimals = max(2, -math.floor(math.log10(error))) if error else 2
    text = f"{value:.{decimals}f}" if error is None else f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")  # as on the axis


def _label_segments(figure: Figure, axes: Axes, segments: Sequence[tuple[Rectangle, float]]) -> None:
    """Print the contribution in each segment that is wide enough for its number."""
    figure.draw_without_rendering()  # only now does the constrained layout settle the width of the axes
    low, high = axes.get_xlim()
    scale = axes.bbox.width / (high - low)
    for segment, value in segments:
        text = _number(value, None)
        if abs(value) * scale > text_width(text, SMALL) + 8:
            # Relative luminance. At 0.179, black and white text have the same contrast (WCAG 2).
            luminance = np.dot((0.2126, 0.7152, 0.0722), np.power(to_rgb(segment.get_facecolor()), 2.2))
            axes.text(
                segment.get_x() + segment.get_width() / 2,
                segment.get_y() + segment.get_height() / 2,
                text,
                ha="center",
                va="center",
                fontsize=SMALL,
                color="black" if luminance > 0.179 else "white",
            )
