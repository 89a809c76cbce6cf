import errno
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import Tensor
from torch.nn import functional as F

from pnf import figures
from pnf.figures import _style
from pnf.reference import ProgressiveFlow


class Repeat:
    """An upscaler whose stages repeat pixels and add a constant, so that each stage's picture is known."""

    def __init__(self, channels: int = 1, *, first: int = 0) -> None:
        shapes = [(channels, 4, 4), (channels, 4, 8), (channels, 8, 8), (channels, 8, 16), (channels, 16, 16)]
        self.stage_names = ["f0", "f1x", "f1y", "f2x", "f2y"][first:]
        self.stage_shapes = shapes[first:]
        self.calls: list[tuple[int | None, object, float]] = []

    def upsample(self, x, steps=None, *, noise=None, temperature=1.0, generator=None):
        self.calls.append((steps, noise, temperature))
        k = self.stage_shapes.index(tuple(x.shape[1:]))
        for before, after in zip(self.stage_shapes[k:], self.stage_shapes[k + 1 :], strict=False):
            x = x.repeat_interleave(2, -1 if before[2] != after[2] else -2)
            if noise is None:
                x = x + 0.01 * temperature * torch.randn(x.shape, generator=generator)
            if steps == 1:
                break
        return x


def images(n: int, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n))


def drawn(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts] + [
        text.get_text() for text in figure.texts
    ]
    title = figure.get_suptitle()
    return [*found, title] if title else found


def hwc(image: Tensor) -> np.ndarray:
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


def assert_legible(figure: Figure) -> None:
    """All text lies on the page, and no two texts of a panel or chart cover each other."""
    figure.draw_without_rendering()
    boxes = [
        Text.get_window_extent(text)  # of the words only, without the line of an annotation
        for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        if text.get_text()
    ]
    for index, box in enumerate(boxes):
        assert box.x0 >= -0.5
        assert box.y0 >= -0.5
        assert box.x1 <= figure.bbox.width + 0.5
        assert box.y1 <= figure.bbox.height + 0.5
        for other in boxes[:index]:
            assert (
                min(box.x1, other.x1) - max(box.x0, other.x0) < 1 or min(box.y1, other.y1) - max(box.y0, other.y0) < 1
            )


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_draws_each_image_in_order(channels):
    x = images(5, channels)
    figure = figures.image_grid(x, columns=3, title="Five")
    for picture, image in zip(drawn(figure), x, strict=True):
        np.testing.assert_array_equal(picture, hwc(image))
    places = [image.get_extent()[0::3] for image in figure.axes[0].images]
    assert len({left for left, _ in places}) == 3
    assert len({top for _, top in places}) == 2
    assert places[3][0] == places[0][0]
    assert "Five" in texts(figure)
    assert_legible(figure)


def test_image_grid_tells_number_and_size():
    assert "5 images, 16 × 8 pixels" in texts(figures.image_grid(torch.zeros(5, 1, 16, 8)))


def test_image_grid_clips():
    (picture,) = drawn(figures.image_grid(torch.tensor([[[[-1.0, 0.25], [2.0, 1.0]]]])))
    np.testing.assert_array_equal(picture, [[0.0, 0.25], [1.0, 1.0]])


def test_image_grid_takes_half_precision_and_gradients():
    x = images(1).bfloat16().requires_grad_()
    np.testing.assert_array_equal(drawn(figures.image_grid(x))[0], x.detach().float()[0, 0])


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (32, 32)])
def test_every_pixel_is_drawn_equally_large(size):
    levels = torch.randint(0, 256, (2, 1, *size), generator=torch.Generator().manual_seed(0))
    figure = figures.image_grid(levels / 255)
    figure.canvas.draw()
    page = np.asarray(figure.canvas.buffer_rgba())[..., 0]
    for image, level in zip(figure.axes[0].images, levels, strict=True):
        left, right, bottom, top = (int(edge) for edge in image.get_extent())
        scale = (right - left) // size[1]
        assert (bottom - top, right - left) == (scale * size[0], scale * size[1])
        expected = np.kron(level[0], np.ones((scale, scale)))
        np.testing.assert_allclose(page[top:bottom, left:right], expected, atol=1)  # a grey level, of 256


@pytest.mark.parametrize("channels", [1, 3])
def test_pipeline_goes_up_stage_by_stage_with_zero_noise(channels):
    flow, low = Repeat(channels), images(2, channels, 4)
    figure = figures.upscaling_pipeline(flow, low)
    assert flow.calls == [(1, 0, 1.0)] * 4
    pictures = drawn(figure)
    assert len(pictures) == 10
    for row, image in zip((pictures[:5], pictures[5:]), low, strict=True):
        for picture, (_, height, width) in zip(row, flow.stage_shapes, strict=True):
            expected = image.repeat_interleave(height // 4, -2).repeat_interleave(width // 4, -1)
            np.testing.assert_array_equal(picture, hwc(expected))
    shown = texts(figure)
    for words in ("f0", "4 × 4", "f1x", "4 × 8", "f1y", "8 × 8", "f2x", "8 × 16", "f2y", "16 × 16"):
        assert shown.count(words) == 1
    assert "Upscaling stage by stage, zero noise" in shown
    assert_legible(figure)


def test_pipeline_cells_have_one_size():
    figure = figures.upscaling_pipeline(Repeat(), images(2, size=4))
    extents = [image.get_extent() for image in figure.axes[0].images]
    assert len({(right - left, bottom - top) for left, right, bottom, top in extents}) == 1


def test_pipeline_from_the_middle_and_with_reference():
    real = images(2)
    figure = figures.upscaling_pipeline(Repeat(), F.avg_pool2d(real, 2), temperature=0.5, reference=real)
    shown = texts(figure)
    assert {"downscaled", "8 × 8", "f2x", "f2y", "real"} <= set(shown)
    assert "f1x" not in shown
    assert "Downscaled real images, upscaled stage by stage, temperature 0.5" in [t.replace("\n", " ") for t in shown]
    np.testing.assert_array_equal(drawn(figure)[3], real[0, 0])
    assert "input" in texts(figures.upscaling_pipeline(Repeat(), F.avg_pool2d(real, 2)))


def test_pipeline_follows_the_generator():
    low = images(1, size=4)
    first, again, other = (
        drawn(figures.upscaling_pipeline(Repeat(), low, temperature=1.0, generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[-1], other[-1])


def test_draws_are_independent_and_titled():
    flow, real = Repeat(3), images(2, 3)
    low = F.avg_pool2d(real, 4)
    figure = figures.upscaling_draws(flow, low, temperatures=(0, 0.5, 1), draws=2, reference=real)
    assert flow.calls == [(None, 0, 1.0), *[(None, None, 0.5)] * 2, *[(None, None, 1)] * 2]
    pictures = drawn(figure)
    assert len(pictures) == 2 * 7
    np.testing.assert_array_equal(pictures[0], hwc(low[0]))
    np.testing.assert_array_equal(pictures[7], hwc(low[1]))
    np.testing.assert_array_equal(pictures[13], hwc(real[1]))
    assert not np.array_equal(pictures[2], pictures[3])
    assert {"input", "T = 0", "T = 0.5", "T = 1", "real"} <= set(texts(figure))
    assert_legible(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_projection_draws_the_absolute_error_on_one_scale(channels):
    x = images(3, channels)
    code = F.avg_pool2d(x, 4)
    back = code.repeat_interleave(4, -1).repeat_interleave(4, -2)
    figure = figures.projection(x, code, back)
    pictures = drawn(figure)
    error = (x - back).abs().mean(1)
    for group, expected in zip((pictures[:3], pictures[3:6], pictures[6:9]), (x, code, back), strict=True):
        for picture, image in zip(group, expected, strict=True):
            np.testing.assert_array_equal(picture, hwc(image))
    for picture, values in zip(pictures[9:], error, strict=True):
        np.testing.assert_allclose(picture, values, atol=1e-6)
    limits = {image.get_clim() for image in figure.axes[0].images[9:]}
    assert len(limits) == 1
    assert limits.pop() == pytest.approx((0.0, error.max().item()))
    assert {f"{value:.3f}" for value in error.mean((1, 2)).tolist()} <= set(texts(figure))
    assert_legible(figure)


def test_projection_of_an_image_on_the_manifold():
    figure = figures.projection(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4))
    assert figure.axes[0].images[-1].get_clim() == (0.0, 1.0)


def falling(last: float, n: int = 100) -> list[tuple[int, float]]:
    return [(10 * step, last + 1000 * math.exp(-step) + 1.0 / (1 + step)) for step in range(n)]


def test_training_curves_draw_the_data_and_name_the_ends():
    curves = {"f0": falling(4.0), "f1x": falling(4.001), "f1y": falling(3.0)[:60]}
    figure = figures.training_curves(curves, title="Trained")
    axes = figure.axes[0]
    for line, points in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), points)
    assert {f"{label}  {points[-1][1]:.2f}" for label, points in curves.items()} <= set(texts(figure))
    assert axes.get_xlabel() == "training step"
    assert axes.get_ylabel() == "bits/dim"
    assert "Trained" in texts(figure)
    assert_legible(figure)


def test_training_curves_range_keeps_the_end_and_lets_start_and_spike_go():
    curves = {"f0": falling(4.0), "f1x": falling(3.0)}
    curves["f0"][50] = (500, 400.0)
    low, high = figures.training_curves(curves).axes[0].get_ylim()
    assert high < 6
    assert low < 3.0
    rising = {"f0": [*falling(4.0), (1000, 50.0)], "f1x": falling(3.0)}
    figure = figures.training_curves(rising)
    assert figure.axes[0].get_ylim()[1] > 50
    high = figure.axes[0].get_ylim()[1]
    above = sum(value > high for points in rising.values() for _, value in points)
    assert f"{above} points of 201 above the axis" in texts(figure)


def test_training_curves_with_validation_share_a_colour():
    curves = {"f0": falling(4.0), "f1x": falling(3.0)}
    figure = figures.training_curves(curves, validation={"f0": falling(4.5)[::10]})
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["f0", "f0", "f1x"]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert f"f0  {falling(4.5)[90][1]:.2f}" in texts(figure)


@pytest.mark.parametrize("points", [[(0, 3.0)], [(0, 3.0), (1, 3.0)], [(0, 0.0)]])
def test_training_curves_that_do_not_move(points):
    low, high = figures.training_curves({"f": points}).axes[0].get_ylim()
    assert low < points[-1][1] < high


def test_names_of_many_curves_that_end_together_do_not_overlap():
    assert_legible(figures.training_curves({f"stage {k}": falling(3.0 + k / 1000) for k in range(12)}))


MODELS = {
    "RealNVP": {"f": 3.77},
    "PNF": {"f0": 0.31, "f1x": 0.26, "f1y": 0.47, "f2x": 0.95, "f2y": 1.57},
    "PNF, flat": {"f0": 0.3, "f1x": 0.2, "f1y": 0.3, "f2x": 0.4, "f2y": -0.25},
    "below zero": {"f0": -0.3, "f1x": -0.2},
}


@pytest.mark.parametrize("names", [["PNF"], ["RealNVP"], ["RealNVP", "PNF"], list(MODELS)])
def test_bits_per_stage_bars_sum_to_the_printed_totals(names):
    models = {name: MODELS[name] for name in names}
    figure = figures.bits_per_stage(models)
    axes = figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    for row, contributions in enumerate(models.values()):
        mine = [bar for bar in bars if bar.get_y() < row < bar.get_y() + bar.get_height()]
        assert [bar.get_width() for bar in mine] == pytest.approx(list(contributions.values()))
        total = sum(bar.get_width() for bar in mine)
        assert f"{total:.2f}".replace("-", "−") in texts(figure)
        for sign in (1, -1):
            edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in mine if sign * bar.get_width() > 0]
            assert [start for start, _ in edges] == pytest.approx([0.0, *(end for _, end in edges)][: len(edges)])
    low, high = axes.get_xlim()
    assert all(low <= x <= high for bar in bars for x in (bar.get_x(), bar.get_x() + bar.get_width()))
    assert axes.get_xlabel().startswith("bits/dim")
    assert_legible(figure)


def test_bits_per_stage_gives_a_stage_one_colour_and_a_legend_entry():
    figure = figures.bits_per_stage(MODELS)
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["f", "f0", "f1x", "f1y", "f2x", "f2y"]
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    stages = [stage for contributions in MODELS.values() for stage in contributions]
    colours = {
        stage: {bar.get_facecolor() for bar, name in zip(bars, stages, strict=True) if name == stage}
        for stage in stages
    }
    assert all(len(same) == 1 for same in colours.values())
    assert len(set.union(*colours.values())) == 6


@pytest.mark.parametrize(("error", "text"), [(0.012, "3.56 ± 0.01"), (0.0043, "3.560 ± 0.004"), (0.0, "3.56 ± 0.00")])
def test_bits_per_stage_prints_standard_errors(error, text):
    assert text in texts(figures.bits_per_stage({"PNF": MODELS["PNF"]}, standard_errors={"PNF": error}))


def test_bits_per_stage_marks_totals_only_where_bars_go_both_ways():
    plain, signed = (figures.bits_per_stage({name: MODELS[name]}).axes[0] for name in ("PNF", "PNF, flat"))
    assert plain.get_xlabel() == "bits/dim"
    assert "total" in signed.get_xlabel()
    (marker,) = (line for line in signed.lines if line.get_marker() == "v")
    assert marker.get_xdata()[0] == pytest.approx(0.95)


def test_comparison_draws_the_columns_in_order():
    columns = {"low": images(2, size=4), "real": images(3, size=16)[:2]}
    figure = figures.comparison(columns, title="Two ways")
    pictures = drawn(figure)
    assert len(pictures) == 4
    for row in range(2):
        for column, x in enumerate(columns.values()):
            np.testing.assert_array_equal(pictures[2 * row + column], hwc(x[row]))
    assert {"low", "real", "Two ways"} <= set(texts(figure))
    assert_legible(figure)


def test_by_resolution_draws_each_method_in_each_panel():
    values = {"flow": {"8x8": (20.0, 0.1), "16x16": (26.0, 0.2)}, "bicubic": {"8x8": (17.0, 0.1), "16x16": (25.0, 0.0)}}
    figure = figures.by_resolution({"PSNR, dB": values, "SSIM": values}, title="Upscaled")
    assert [axes.get_ylabel() for axes in figure.axes] == ["PSNR, dB ± standard error", "SSIM ± standard error"]
    assert all("pixels" in axes.get_xlabel() for axes in figure.axes)
    for axes in figure.axes:
        lines = [container.lines[0].get_ydata() for container in axes.containers]
        np.testing.assert_array_equal(lines, [[20, 26], [17, 25]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(values)
    assert_legible(figure)


def test_likelihoods_draw_a_panel_for_each_stage_without_the_outer_values():
    generator = torch.Generator().manual_seed(0)
    own, foreign = (torch.randn(1000, generator=generator) + mean for mean in (2.0, 6.0))
    foreign[0] = 1e6
    stages = ("f0", "f1x", "f1y", "image")
    sets = {"own": dict.fromkeys(stages, own), "foreign": dict.fromkeys(stages, foreign)}
    figure = figures.likelihoods(sets, title="Stages")
    assert [axes.get_title() for axes in figure.axes] == list(stages)
    low, high = figure.axes[0].get_xlim()
    assert 0 < low < 2
    assert 6 < high < 9
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["own", "foreign"]
    assert_legible(figure)


def test_likelihoods_of_images_that_are_all_as_likely():
    assert figures.likelihoods({"own": {"f": torch.ones(3)}}, title="One").axes


def test_figures_of_a_real_flow():
    torch.manual_seed(0)
    flow = ProgressiveFlow((1, 16, 16), levels=2, coupling="dense", hidden=8).eval()
    x = images(2)
    with torch.no_grad():
        code, back = flow.encode(x), flow.project(x)
    generator = torch.Generator().manual_seed(0)
    pictures = drawn(figures.upscaling_pipeline(flow, code, reference=x))
    np.testing.assert_allclose(pictures[4], back[0, 0].clamp(0, 1), atol=1e-6)
    figures.upscaling_draws(flow, code, generator=generator)
    figures.projection(x, code, back)


def test_save_writes_the_picture_and_nothing_else(tmp_path):
    figure = figures.image_grid(images(4))
    path = tmp_path / "deep" / "er" / "grid.png"
    figures.save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]
    width, height = figure.bbox.size
    assert int.from_bytes(path.read_bytes()[16:20], "big") == pytest.approx(width, abs=1)
    assert int.from_bytes(path.read_bytes()[20:24], "big") == pytest.approx(height, abs=1)
    first = path.read_bytes()
    figures.save(figures.image_grid(images(4)), str(path))
    assert path.read_bytes() == first


def test_save_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    figure = figures.image_grid(images(1))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*grid\.png'"):
        figures.save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["a$^$", *(pytest.param(name, marks=pytest.mark.slow) for name in ("$x$", "a$b", "caf\udce9", "a\nb"))]
)
def test_any_name_can_be_drawn(name, tmp_path):
    curve = [(1, 3.0), (2, 2.0)]
    for figure in (
        figures.training_curves({name: curve}, validation={name: curve}, title=name),
        figures.bits_per_stage({name: {"f0": 1.0, "f1x": 2.0}}, standard_errors={name: 0.1}, title=name),
        figures.likelihoods({name: {"f0": torch.rand(20)}}, title=name),
        figures.by_resolution({"PSNR": {name: {"8x8": (1.0, 0.1)}}}, title=name),
        figures.comparison({name: images(2)}, title=name),
        figures.image_grid(images(2), title=name),
    ):
        figures.save(figure, tmp_path / "figure.png")


def test_a_dollar_is_a_dollar():
    figure = figures.image_grid(images(1), title="a$^$")
    text = figure.axes[0].texts[0]
    assert text._preprocess_math(text.get_text()) == ("a$^$", False)


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"save: path must end in \.png, \.svg or \.pdf, got 'grid\.jpg'"):
        figures.save(figures.image_grid(images(1)), tmp_path / "grid.jpg")


@pytest.mark.parametrize(("name", "start"), [("chart.svg", b"<?xml"), ("chart.pdf", b"%PDF"), ("chart.PDF", b"%PDF")])
def test_save_vectors(tmp_path, name, start):
    written = []
    for _ in range(2):
        figures.save(figures.training_curves({"f0": [(1, 3.0), (2, 2.0)]}, title="Curves"), tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(start)
    assert b"image/png" not in written[0]
    assert b"/Subtype /Image" not in written[0]


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_a_long_title_leaves_no_empty_page(columns):
    title = "Held-out images of cifar10_subset, downscaled and upscaled to 32x32; 16 draws"
    figure = figures.image_grid(images(columns, size=32), columns=columns, title=title)
    assert figure.axes[0].texts[0].get_text().replace("\n", " ") == title
    figure.draw_without_rendering()
    width, box = figure.bbox.width, figure.axes[0].texts[0].get_window_extent()
    assert box.x1 <= width
    right = max(image.get_window_extent().x1 for image in figure.axes[0].images)
    assert width - max(right, 334) <= 15
    assert box.y0 >= max(image.get_window_extent().y1 for image in figure.axes[0].images)


# Matrices of Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency"
# (2009), for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_can_be_distinguished(sight):
    seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in (*_style.MODELS.values(), *_style.OTHERS)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 14  # 2.3 can just be noticed


def test_colours_stand_out_from_the_page():
    for colour in (*_style.MODELS.values(), *_style.OTHERS):
        assert 1.05 / (XYZ[1] @ linear(colour) + 0.05) >= 3


def test_a_model_has_its_colour_everywhere():
    curve = [(1, 3.0), (2, 2.0)]
    models = {"a": "bounded", "b": "realnvp", "c": "bounded", "d": "identity"}
    curves = figures.training_curves(dict.fromkeys([*models, "e"], curve), models=models)
    found = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in curves.axes[0].lines}
    for label, model in models.items():
        assert found[label][0] == _style.MODELS[model]
    assert found["a"][1] != found["c"][1]
    assert found["e"][0] not in _style.MODELS.values()
    values = {"8x8": (20.0, 0.1)}
    chart = figures.by_resolution({"dB": {"bicubic": values, "flow": values}}, title="t", models={"flow": "identity"})
    assert chart.axes[0].lines[-1].get_color() == _style.MODELS["identity"]
    bits = figures.bits_per_stage({"RealNVP": {"f": 2.0}, "PNF": {"f0": 1.0, "f1x": 1.0}})
    bar = next(patch for patch in bits.axes[0].patches if patch.get_width() == 2.0)
    assert to_hex(bar.get_facecolor()).upper() == _style.MODELS["realnvp"]


def test_the_fifth_run_of_a_model_can_still_be_told():
    drawn = _style.lines("abcdef", dict.fromkeys("abcdef", "bounded"))
    assert len(set(drawn.values())) == 6
    assert [colour for colour, _ in drawn.values()].count(_style.MODELS["bounded"]) == 4


def test_axes_have_units():
    curve = [(1, 3.0), (2, 2.0)]
    for figure in (
        figures.training_curves({"a": curve}),
        figures.bits_per_stage({"PNF": {"f0": 1.0, "f1x": 1.0}}, standard_errors={"PNF": 0.1}),
        figures.likelihoods({"own": {"image": torch.rand(20)}}, title="t"),
        figures.by_resolution({"PSNR, dB": {"flow": {"8x8": (20.0, 0.1)}}}, title="t"),
    ):
        axes = figure.axes[0]
        assert axes.get_xlabel()
        assert axes.get_ylabel() or all(tick.get_text() for tick in axes.get_yticklabels())


def test_grid_of_noise_is_a_small_file(tmp_path):
    path = tmp_path / "grid.png"
    figures.save(figures.image_grid(images(64, 3, 32)), path)
    assert path.stat().st_size < 300_000


def test_pyplot_is_not_imported():
    code = "import sys, pnf.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


NAN = torch.full((1, 1, 16, 16), math.nan)
LOW = torch.zeros(1, 1, 4, 4)


class Broken(Repeat):
    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def upsample(self, *_, **__):
        return self.result


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: figures.image_grid(np.zeros((1, 1, 4, 4))), TypeError, "images must be a torch.Tensor, got ndarray"),
        (lambda: figures.image_grid(LOW.byte()), TypeError, "images must be floating point with values in"),
        (lambda: figures.image_grid(LOW[0]), ValueError, r"image_grid: images must be \[N, C, H, W\], got \[1, 4, 4\]"),
        (lambda: figures.image_grid(LOW[:0]), ValueError, r"images must hold at least one image, got \[0, 1, 4, 4\]"),
        (
            lambda: figures.image_grid(LOW.expand(1, 2, 4, 4)),
            ValueError,
            r"images must have 1 or 3 channels, got \[1, 2,",
        ),
        (lambda: figures.image_grid(NAN), ValueError, "image_grid: images must be finite, got NaN or infinity"),
        (lambda: figures.image_grid(LOW, columns=0), ValueError, "image_grid: columns must be at least 1, got 0"),
        (
            lambda: figures.upscaling_pipeline(Repeat(), torch.zeros(1, 1, 5, 5)),
            ValueError,
            r"images must be at a resolution below the flow's full one: \[N, 1, 4, 4\], .*; got \[1, 1, 5, 5\]",
        ),
        (
            lambda: figures.upscaling_pipeline(Repeat(first=4), images(1)),
            ValueError,
            r"it has only one; got \[1, 1, 16, 16\]",
        ),
        (
            lambda: figures.upscaling_pipeline(Repeat(), LOW, temperature=-1),
            ValueError,
            "a temperature must be finite and not negative, got -1",
        ),
        (
            lambda: figures.upscaling_pipeline(Repeat(), LOW, reference=LOW),
            ValueError,
            r"upscaling_pipeline: reference must be \[1, 1, 16, 16\], got \[1, 1, 4, 4\]",
        ),
        (
            lambda: figures.upscaling_pipeline(Broken(LOW), LOW),
            ValueError,
            r"what flow\.upsample returned must be \[1, 1, 4, 8\], got \[1, 1, 4, 4\]",
        ),
        (lambda: figures.upscaling_draws(Broken(NAN), LOW), ValueError, r"what flow\.upsample returned must be finite"),
        (lambda: figures.upscaling_draws(Repeat(), LOW, draws=0), ValueError, "draws must be at least 1, got 0"),
        (lambda: figures.upscaling_draws(Repeat(), LOW, temperatures=()), ValueError, "temperatures must not be empty"),
        (
            lambda: figures.upscaling_draws(Repeat(), LOW, temperatures=(math.nan,)),
            ValueError,
            "upscaling_draws: a temperature must be finite and not negative, got nan",
        ),
        (
            lambda: figures.projection(images(2), LOW, images(2)),
            ValueError,
            r"projection: encoded must be \[2, 1, h, w\], got \[1, 1, 4, 4\]",
        ),
        (
            lambda: figures.projection(images(1), LOW, LOW),
            ValueError,
            r"projection: projected must be \[1, 1, 16, 16\], got \[1, 1, 4, 4\]",
        ),
        (lambda: figures.training_curves({}), ValueError, "training_curves: curves must not be empty"),
        (lambda: figures.training_curves({"f0": []}), ValueError, r"curves\['f0'\] has no points"),
        (
            lambda: figures.training_curves({"f0": [(0, 1.0), (5, math.nan)]}),
            ValueError,
            r"curves\['f0'\] must be finite, got NaN or infinity at step 5",
        ),
        (
            lambda: figures.training_curves({"f0": [(1, 1.0), (1, 2.0)]}),
            ValueError,
            r"the steps of curves\['f0'\] must increase",
        ),
        (
            lambda: figures.training_curves({"f0": [1.0, 2.0]}),
            ValueError,
            r"curves\['f0'\] must hold \(step, loss\) pairs, got shape \[2\]",
        ),
        (
            lambda: figures.training_curves({"f0": [(0, 1.0)]}, validation={"f1": [(0, 1.0)]}),
            ValueError,
            r"validation has labels that curves lacks: \['f1'\]",
        ),
        (lambda: figures.comparison({}, title=""), ValueError, "comparison: columns must not be empty"),
        (
            lambda: figures.comparison({"a": images(2), "b": images(3)}, title=""),
            ValueError,
            r"comparison: columns must have as many images each, got \[2, 3\]",
        ),
        (lambda: figures.by_resolution({"dB": {}}, title=""), ValueError, "by_resolution: panels must have methods"),
        (
            lambda: figures.by_resolution({"dB": {"flow": {"8x8": (math.nan, 0.0)}}}, title=""),
            ValueError,
            "by_resolution: the dB of 'flow' must be finite",
        ),
        (lambda: figures.likelihoods({"a": {}}, title=""), ValueError, "likelihoods: sets must not be empty"),
        (
            lambda: figures.likelihoods({"a": {"f0": LOW}, "b": {"f": LOW}}, title=""),
            ValueError,
            r"likelihoods: 'b' must have the panels \['f0'\], got \['f'\]",
        ),
        (
            lambda: figures.likelihoods({"a": {"f0": NAN.flatten()}}, title=""),
            ValueError,
            "likelihoods: the values of 'a' must be finite",
        ),
        (lambda: figures.bits_per_stage({}), ValueError, "bits_per_stage: models must not be empty"),
        (lambda: figures.bits_per_stage({"PNF": {}}), ValueError, "model 'PNF' has no stages"),
        (
            lambda: figures.bits_per_stage({"PNF": {"f0": math.nan}}),
            ValueError,
            "the contribution of 'PNF' 'f0' must be finite, got nan",
        ),
        (
            lambda: figures.bits_per_stage(MODELS, standard_errors={"Glow": 0.1}),
            ValueError,
            r"standard_errors has models that models lacks: \['Glow'\]",
        ),
        (
            lambda: figures.bits_per_stage(MODELS, standard_errors={"PNF": -0.1}),
            ValueError,
            "the standard error of 'PNF' must be finite and not negative, got -0.1",
        ),
    ],
)
def test_errors_name_function_argument_and_what_was_got(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_flow_on_vectors_is_refused():
    flow = Repeat()
    flow.stage_shapes = [(4,), (8,)]
    with pytest.raises(ValueError, match=r"the flow must model images \[C, H, W\], got a flow of shape \[8\]"):
        figures.upscaling_pipeline(flow, LOW)
