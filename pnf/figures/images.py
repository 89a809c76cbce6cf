"""Figures of images: grids, upscaling, projections."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from pnf.figures._style import DPI, SMALL, TEXT, TITLE, count, literal, pixel_size, text_width, wrapped

_TITLE_WIDTH = 320
"""The width in pixels up to which a title may be wider than the pictures under it."""


class Upscaler(Protocol):
    """The methods of a flow that the upscaling figures call, such as those of ``ProgressiveFlow`` on images."""

    @property
    def stage_names(self) -> Sequence[str]:
        """The names of the stages, coarse first: ``"f0"``, ``"f1x"``, ``"f1y"``, ..."""

    @property
    def stage_shapes(self) -> Sequence[Sequence[int]]:
        """The shape ``(C, H, W)`` of each stage's image. The last is the full resolution."""

    def upsample(
        self,
        x: Tensor,  # [N, C, h, w]
        steps: int | None = None,
        *,
        noise: float | Tensor | None = None,
        condition: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Upscale by ``steps`` stages, or to full resolution."""


def image_grid(
    images: Tensor,  # [N, C, H, W]
    *,
    columns: int = 8,
    row_titles: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """Images in a grid, row by row.

    Args:
        images: grey or RGB images in [0, 1]; values outside are clipped.
        columns: the number of images in a row.
        row_titles: a text left of each row, such as the class of its images.
        title: a title; by default "N images, H × W pixels".

    Raises:
        TypeError: ``images`` is not a floating-point tensor.
        ValueError: the rank or the number of channels is wrong, there are no images, a value is not finite,
            ``columns`` is below 1, or there is not a title for each row.

    Example:
        >>> import torch
        >>> from pnf import figures
        >>> figure = figures.image_grid(torch.rand(6, 1, 8, 8), columns=3)
        >>> figures.save(figure, "grid.png")  # doctest: +SKIP
    """
    pixels = _pixels("image_grid", "images", images)
    _require_positive("image_grid", "columns", columns)
    if title is None:
        title = f"{count(len(pixels), 'image')}, {_size(images)} pixels"
    rows = [list(pixels[start : start + columns]) for start in range(0, len(pixels), columns)]
    _require_titles("image_grid", row_titles, len(rows))
    figure, _ = _panel(rows, cell=_cell(images.shape[-2:], target=96), title=title, row_titles=row_titles)
    return figure


@torch.no_grad()
def upscaling_pipeline(
    flow: Upscaler,
    images: Tensor,  # [N, C, h, w]
    *,
    temperature: float = 0.0,
    reference: Tensor | None = None,  # [N, C, H, W]
    condition: Tensor | None = None,  # [N, ...]
    generator: torch.Generator | None = None,
    row_titles: Sequence[str] = (),
    title: str | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Figure:
    """Upscaling stage by stage, one row for each image and one column for each stage (the paper's Figures 2, 3 and 4).

    Each row starts with one of ``images`` and ends at full resolution. All cells have the size and shape of the
    full-resolution image, so a picture keeps its place and proportions along its row while its pixels get finer. Where
    only the width has been doubled (8 × 16), pixels are twice as high as wide.

    Args:
        flow: upscales one stage at a time with ``flow.upsample(x, 1, ...)``.
        images: low-resolution images, sampled by the base (Figures 2 and 3) or downscaled from real ones (Figure 4).
        temperature: the scale of the noise; 0 upscales with zero noise, as the paper does.
        reference: the real images from which ``images`` were downscaled, for a last column.
        condition: the condition of each image, for a flow that takes one.
        generator: the source of the noise.
        row_titles: a text left of each row.
        title: by default "Upscaling stage by stage" or, with ``reference``, "Downscaled real images, upscaled stage by
            stage", and the temperature.
        track: wraps the iterable over the stages, for a progress bar.

    Raises:
        TypeError: images are no floating-point tensor.
        ValueError: images have a wrong rank or size, there are none, a value (also of the flow's results) is not
            finite, or the temperature is negative or not finite.
    """
    name = "upscaling_pipeline"
    _require_temperature(name, temperature)
    columns = [_pixels(name, "images", images)]
    shapes, start = _stages(name, flow, "images", images)
    first = "downscaled" if reference is not None else "input" if start else flow.stage_names[0]
    titles = [f"{first}\n{_size(images)}"]
    x = images
    for stage, shape in track(list(zip(flow.stage_names[start + 1 :], shapes[start + 1 :], strict=True))):
        x = _upsample(flow, x, 1, condition, temperature, generator)
        columns.append(_upscaled(name, x, (len(images), *shape)))
        titles.append(f"{stage}\n{_size(x)}")
    _require_titles(name, row_titles, len(images))
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
        row_titles=row_titles,
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
    condition: Tensor | None = None,  # [N, ...]
    generator: torch.Generator | None = None,
    row_titles: Sequence[str] = (),
    title: str | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Figure:
    """Several upscalings of each low-resolution image, one row for each image of ``low``.

    The columns are the low-resolution image, ``draws`` independent upscalings at each temperature (one at temperature
    0, where all are equal), and the real image if ``reference`` is given. Cells are as in ``upscaling_pipeline``.

    Args:
        flow: upscales with ``flow.upsample(low, None, ...)``.
        low: low-resolution images, of the base or of any stage below full resolution.
        temperatures: scales of the noise.
        draws: the number of upscalings at each temperature above 0.
        reference: the real images from which ``low`` was downscaled.
        condition: the condition of each image, for a flow that takes one.
        generator: the source of the noise.
        row_titles: a text left of each row.
        title: by default "Upscalings of each low-resolution image at temperature T".
        track: wraps the iterable over the draws, for a progress bar.

    Raises:
        TypeError: images are no floating-point tensor.
        ValueError: images have a wrong rank or size, there are none, a value (also of the flow's results) is not
            finite, there are no temperatures, one is negative or not finite, or ``draws`` is below 1.
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
        titles.append((f"T = {temperature:g}", draws if temperature else 1))
    for temperature in track([t for t in temperatures for _ in range(draws if t else 1)]):
        x = _upsample(flow, low, None, condition, temperature, generator)
        columns.append(_upscaled(name, x, full))
    _require_titles(name, row_titles, len(low))
    if reference is not None:
        columns.append(_sized(name, "reference", reference, full))
        titles.append((f"real\n{_size(reference)}", 1))
    figure, _ = _panel(
        [list(row) for row in zip(*columns, strict=True)],
        cell=_cell(shapes[-1][-2:], target=96),
        title="Upscalings of each low-resolution image at temperature T" if title is None else title,
        column_titles=titles,
        row_titles=row_titles,
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

    This is the paper's "lower dimensional manifold with the true projection" (section 2). The error of a pixel is the
    absolute difference of the two drawn intensities, averaged over channels. The number below a column is the mean over
    the image.

    Args:
        images: x.
        encoded: ``flow.encode(x)``.
        projected: ``flow.decode(flow.encode(x))``, which is ``flow.project(x)``.
        title: by default "Projection onto the manifold of zero-noise images".

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: the rank, the size or the number of channels is wrong, there are no images, or a value is not
            finite.
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
        right=pixel_size(SMALL) * 6,
    )
    for image in drawn[-1]:
        image.set(cmap="magma", clim=(0.0, largest or 1.0))
    _, right, bottom, top = drawn[-1][-1].get_extent()
    width, height = figure.bbox.size
    bar = figure.add_axes(((right + 8) / width, 1 - bottom / height, 10 / width, (bottom - top) / height))
    figure.colorbar(drawn[-1][-1], cax=bar, ticks=[0.0, largest or 1.0], format="%.2g")
    bar.tick_params(labelsize=SMALL, length=2, pad=2)
    bar.set_ylabel("intensity, 0 to 1", fontsize=SMALL, labelpad=0)
    return figure


def comparison(
    columns: Mapping[str, Tensor],  # of [N, C, h, w]
    *,
    title: str,
) -> Figure:
    """Several versions of the same images: a row for each image, a column for each version.

    Cells have the size and shape of the largest images. Smaller images fill theirs with larger pixels.

    Args:
        columns: for each column's title, its images.
        title: the subject of the comparison.

    Raises:
        TypeError: a column is not a floating-point tensor.
        ValueError: there are no columns or no images, the columns differ in length, the rank or the number of channels
            is wrong, or a value is not finite.
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


def _pixels(
    name: str,
    argument: str,
    images: Tensor,  # [N, C, H, W]
) -> NDArray[np.float32]:  # [N, H, W] or [N, H, W, 3]
    """Check images and convert them to arrays for matplotlib."""
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


def _require_titles(name: str, titles: Sequence[str], rows: int) -> None:
    if titles and len(titles) != rows:
        raise ValueError(f"{name}: row_titles must be {rows}, one for each row, got {len(titles)}")


def _require_positive(name: str, argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: {argument} must be at least 1, got {value}")


def _require_temperature(name: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"{name}: a temperature must be finite and not negative, got {temperature}")


def _sized(name: str, argument: str, images: Tensor, wanted: tuple[int, ...]) -> NDArray[np.float32]:
    """Check the shape of images and return their pixels."""
    pixels = _pixels(name, argument, images)
    if tuple(images.shape) != wanted:
        raise ValueError(f"{name}: {argument} must be {list(wanted)}, got {list(images.shape)}")
    return pixels


def _stages(name: str, flow: Upscaler, argument: str, images: Tensor) -> tuple[list[tuple[int, ...]], int]:
    """The shapes of a flow's stages, and the index of the stage at the images' resolution."""
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
    flow: Upscaler,
    x: Tensor,
    steps: int | None,
    condition: Tensor | None,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    # An upscaler without conditions need not know of them.
    given: dict[str, Any] = {} if condition is None else {"condition": condition}
    if temperature:
        return flow.upsample(x, steps, temperature=temperature, generator=generator, **given)
    return flow.upsample(x, steps, noise=0, **given)


def _upscaled(name: str, images: Tensor, wanted: tuple[int, ...]) -> NDArray[np.float32]:
    return _sized(name, "what flow.upsample returned", images, wanted)


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} × {images.shape[-1]}"


def _temperature(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "zero noise"


def _cell(size: Iterable[int], *, target: int) -> tuple[int, int]:
    """Height and width of a cell in pixels of the figure: the multiple of the image's size nearest to ``target``."""
    height, width = size
    scale = max(1, round(target / max(height, width)))
    return scale * height, scale * width


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
    """Draw rows of pictures of any sizes in cells of one size.

    One pair of axes covers the figure and counts its pixels from the top left. Every edge of a cell is an edge of
    pixels, so nearest interpolation at ``DPI`` repeats each pixel of an image equally often.

    Args:
        rows: pictures ``[H, W]`` or ``[H, W, 3]``; a row may be shorter than the first.
        cell: height and width of a cell.
        title: the title above everything.
        column_titles: texts, each with its number of columns. Small gaps separate these groups.
        row_titles: texts left of the rows.
        column_notes: texts below the columns.
        notes_title: the text left of ``column_notes``.
        right: pixels to leave free on the right.
    """
    height, width = cell
    line = round(1.35 * pixel_size(TEXT))
    margin, gap, group_gap = 14, 4, 12
    spans = [span for _, span in column_titles] if column_titles else [len(rows[0])]
    left = margin + max((text_width(text, TEXT) + 12 for text in (*row_titles, notes_title) if text), default=0)
    starts: list[int] = []
    centres: list[float] = []
    x = left
    for text, span in column_titles or [("", spans[0])]:
        panel = span * width + (span - 1) * gap
        # A title wider than its columns pushes its neighbours away, so that titles never overlap.
        group = max(panel, text_width(text, TEXT) + 4 if text else 0)
        offset = x + (group - panel) // 2
        starts += [offset + index * (width + gap) for index in range(span)]
        centres.append(x + group / 2)
        x += group + group_gap
    content = x - group_gap + right
    # A long title must not widen the page, since the right of the pictures would be empty.
    title = wrapped(title, TITLE, max(content - margin, _TITLE_WIDTH))
    page_width = max(content, margin + text_width(title, TITLE)) + margin
    top = margin + round((1.6 + 1.2 * title.count("\n")) * pixel_size(TITLE))
    if column_titles:
        top += line * max(text.count("\n") + 1 for text, _ in column_titles) + 4
    page_height = top + len(rows) * (height + gap) - gap + margin + (line if column_notes else 0)

    figure = Figure(figsize=(page_width / DPI, page_height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), autoscale_on=False)
    axes.set_axis_off()
    axes.text(margin, margin, literal(title), fontsize=TITLE, va="top", ha="left")
    for (text, _), centre in zip(column_titles or (), centres, strict=False):
        # Line by line: matplotlib aligns a text of several lines by its ink, so "f1y" would stand above "f1x".
        for index, words in enumerate(reversed(literal(text).split("\n"))):
            axes.text(centre, top - 9 - line * index, words, fontsize=TEXT, va="baseline", ha="center")
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
            axes.text(left - 12, y + height / 2, literal(row_titles[index]), fontsize=TEXT, va="center", ha="right")
    if column_notes:
        bottom = page_height - margin - 4
        axes.text(left - 12, bottom, notes_title, fontsize=TEXT, va="baseline", ha="right")
        for x, note in zip(starts, column_notes, strict=True):
            axes.text(x + width / 2, bottom, note, fontsize=SMALL, va="baseline", ha="center")
    return figure, drawn
