"""What the page computes, without the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnf.app import models
from pnf.app.models import (
    DRAWS,
    Model,
    between,
    bits,
    draw,
    great_circle,
    growth,
    load_examples,
    load_models,
    most_probable,
    read_picture,
    upscale,
    usual_bits,
)
from pnf.data import DataError, Images, load
from pnf.evaluation import evaluate
from pnf.evaluation.image_files import centres, eight_bits
from pnf.training import RunConfig, RunError, train
from pnf.training.batches import seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def held_out() -> Images:
    return load("fashion-mini", "test", 8, limit=20, labels=True)


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_draw_is_the_flows_own(progressive: Model, realnvp: Model) -> None:
    for model, scales in ((progressive, [0.5, 1.0, 0.0]), (realnvp, [0.8])):
        scale = scales if len(scales) > 1 else scales[0]
        want = model.flow.sample(4, temperature=scale, generator=noise(3))
        first, again, other = (draw(model, 4, scales, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first, want)
        assert torch.equal(again, want)
        assert not torch.equal(other, want)


def test_classes_are_drawn_in_turn_or_alone(labelled: Model) -> None:
    assert labelled.classes == labelled.numbered[:9]
    in_turn = torch.arange(11) % 9  # the tenth had no training images
    want = labelled.flow.sample(11, in_turn, generator=noise(0))
    assert torch.equal(draw(labelled, 11, [1.0] * 3), want)
    want = labelled.flow.sample(2, torch.tensor([4, 4]), generator=noise(0))
    assert torch.equal(draw(labelled, 2, [1.0] * 3, label="Coat"), want)


def test_growth_ends_at_the_image(progressive: Model, realnvp: Model) -> None:
    x = draw(progressive, 2, [1.0] * 3)
    stages = growth(progressive, x)
    assert [tuple(image.shape[2:]) for image in stages] == [(4, 4), (4, 8), (8, 8)]
    assert torch.equal(stages[-1], x)
    torch.testing.assert_close(stages[0], progressive.flow.encode(x))
    (only,) = growth(realnvp, x)
    assert torch.equal(only, x)


def test_an_upscaled_picture_keeps_to_its_small_image(progressive: Model, held_out: Images) -> None:
    picture = held_out.pixels[:1]
    rows = upscale(progressive, picture, 0, [9.0, 1.0, 0.5], draws=2, seed=5)
    assert [[tuple(image.shape[1:]) for image in row] for row in rows] == [[(4, 4), (4, 8), (8, 8)]] * 2
    assert not torch.equal(rows[0][2], rows[1][2])
    low = progressive.flow.encode(centres(picture))
    want = progressive.flow.upsample(low.expand(2, 1, 4, 4), temperature=[1.0, 0.5], generator=noise(5))
    for k, (small, _, large) in enumerate(rows):
        torch.testing.assert_close(small, low[0])
        torch.testing.assert_close(large, want[k])
    (row,) = upscale(progressive, picture, 1, [0.0, 0.0, 0.0])
    torch.testing.assert_close(
        row[-1][None], progressive.flow.upsample(progressive.flow.downsample(centres(picture), 1), noise=0)
    )


def test_a_small_picture_starts_at_its_own_stage(progressive: Model) -> None:
    picture = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    (row,) = upscale(progressive, picture, 1, [1.0] * 3)
    assert [tuple(image.shape[1:]) for image in row] == [(4, 4), (4, 8), (8, 8)]
    assert torch.equal(eight_bits(row[0]), picture[0])


def test_the_most_probable_class_is_that_of_bayes_rule(labelled: Model, held_out: Images) -> None:
    x = centres(held_out.pixels)
    with torch.no_grad():
        given = torch.stack([labelled.flow.log_prob(x, torch.full((20,), c)) for c in range(10)], 1).double()
        low = labelled.flow.encode(x)
        base = torch.stack([labelled.flow.stages[0].log_prob(low, torch.full((20,), c)) for c in range(10)], 1).double()
    for images, log_probs in ((x, given), (low, base)):
        want = [labelled.numbered[c] for c in (log_probs + labelled.prior).argmax(1).tolist()]
        assert [most_probable(labelled, image[None]) for image in images] == want
        assert len({*want}) > 1
    (by_itself,) = upscale(labelled, held_out.pixels[:1], 0, [0.0] * 3)
    (named,) = upscale(labelled, held_out.pixels[:1], 0, [0.0] * 3, label=most_probable(labelled, low[:1]))
    assert torch.equal(by_itself[-1], named[-1])


def test_the_way_begins_and_ends_at_the_pictures(progressive: Model, realnvp: Model, held_out: Images) -> None:
    first, last = held_out.pixels[:1], held_out.pixels[1:2]
    for model in (progressive, realnvp):
        ((name, way),) = between(model, first, last, 5).items()
        assert (name, tuple(way.shape)) == ("", (5, 1, 8, 8))
        assert (eight_bits(way[[0, -1]]) - held_out.pixels[:2].int()).abs().max() <= 1
        assert not torch.equal(eight_bits(way[2:3]), first)
    (same,) = between(progressive, first, first, 3).values()
    assert (eight_bits(same) - first.int()).abs().max() <= 1


def test_a_great_circle_turns_by_equal_angles() -> None:
    first, last = (torch.randn(1, 500, generator=noise(seed), dtype=torch.float64) for seed in (0, 1))
    last = 2 * last
    way = great_circle(first, last, 5)
    torch.testing.assert_close(way[[0, -1]], torch.cat((first, last)))
    assert torch.linalg.matrix_rank(way, rtol=1e-9) == 2
    # Two codes of one length keep it on the way.
    even = great_circle(first, last * first.norm() / last.norm(), 5)
    angles = torch.nn.functional.cosine_similarity(even[:-1], even[1:]).acos()
    torch.testing.assert_close(angles, angles[:1].expand(4))
    torch.testing.assert_close(even.norm(dim=1), first.norm().expand(5))
    for other in (first, -first):
        assert great_circle(first, other, 3).isfinite().all()


def test_a_way_between_classes_has_a_row_for_each(labelled: Model, held_out: Images) -> None:
    first, last = held_out.pixels[:1], held_out.pixels[1:2]
    ways = between(labelled, first, last, 3, labels=("Coat", "Bag"))
    assert list(ways) == ["Coat", "Bag"]
    assert (eight_bits(ways["Coat"][:1]) - first.int()).abs().max() <= 1
    assert (eight_bits(ways["Bag"][-1:]) - last.int()).abs().max() <= 1
    assert list(between(labelled, first, last, 3, labels=("Bag", "Bag"))) == ["Bag"]


def test_bits_are_those_of_an_evaluation(progressive: Model, realnvp: Model, held_out: Images) -> None:
    picture = held_out.pixels[:1]
    for model in (progressive, realnvp):
        found, probabilities = bits(model, picture)
        want = evaluate(model.flow, Images(picture.expand(DRAWS, 1, 8, 8), "", "test"))
        assert probabilities is None
        assert found.bits_per_dim == pytest.approx(want.bits_per_dim)
        assert found.bits_per_dim_error == pytest.approx(want.bits_per_dim_error)
        assert sum(found.stage_bits_per_dim.values()) == pytest.approx(found.bits_per_dim)


def test_bits_with_labels_have_the_probability_of_each_class(labelled: Model, held_out: Images) -> None:
    found, probabilities = bits(labelled, held_out.pixels[:1])
    assert list(probabilities) == list(labelled.classes)
    assert sum(probabilities.values()) == pytest.approx(1)
    images = Images(
        held_out.pixels[:1].expand(DRAWS, 1, 8, 8), "", "test", torch.zeros(DRAWS).long(), labelled.numbered
    )
    of_class = (labelled.prior.exp() * 1800).round().int().tolist()
    want = evaluate(labelled.flow, images, of_class=of_class).classification
    assert found.bits_per_dim == pytest.approx(want.bits_per_dim, rel=1e-4)


def test_usual_bits_are_the_means_of_an_evaluation(progressive: Model, held_out: Images) -> None:
    usual = usual_bits(progressive, held_out)
    want = evaluate(progressive.flow, Images(held_out.pixels, "", "test"))
    assert {name: mean for name, (mean, _) in usual.items() if name != "sum"} == pytest.approx(want.stage_bits_per_dim)
    mean, deviation = usual["sum"]
    assert (mean, deviation) == pytest.approx((want.bits_per_dim, want.bits_per_dim_error * 20**0.5))


# Pictures


def write(path: Path, *shape: int) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def test_pictures_become_the_models_images(tmp_path: Path) -> None:
    large = read_picture(write(tmp_path / "a.png", 30, 20, 3), (1, 8, 8))
    assert (large.dtype, tuple(large.shape)) == (torch.uint8, (1, 1, 8, 8))
    assert tuple(read_picture(write(tmp_path / "b.png", 5, 4), (3, 8, 8)).shape) == (1, 3, 8, 8)
    exact = write(tmp_path / "c.png", 8, 8)
    assert torch.equal(read_picture(exact, (1, 8, 8))[0, 0], torch.from_numpy(np.array(Image.open(exact))))
    sizes = [(4, 4), (4, 8), (8, 8)]
    assert tuple(read_picture(write(tmp_path / "d.png", 4, 8), (1, 8, 8), sizes).shape) == (1, 1, 4, 8)
    with pytest.raises(RunError, match=r"5 x 5 pixels \(height x width\); the flow starts from 4 x 4, 4 x 8, 8 x 8 or"):
        read_picture(write(tmp_path / "e.png", 5, 5), (1, 8, 8), sizes)


def test_bad_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(DataError, match=r"notes.png: wanted an image, got a file that Pillow refuses"):
        read_picture(tmp_path / "notes.png", (1, 8, 8))
    with pytest.raises(RunError, match=r"the picture is here no longer; upload it again"):
        read_picture(tmp_path / "gone.png", (1, 8, 8))
    monkeypatch.setattr(models, "MOST_PIXELS", 599)
    path = write(tmp_path / "large.png", 20, 30)
    decoded: list[Path] = []
    monkeypatch.setattr(models, "read_image", lambda path, *_, **__: decoded.append(path))
    with pytest.raises(DataError, match=r"large.png: wanted at most 599 pixels, got 30 x 20; shrink it"):
        read_picture(path, (1, 8, 8))
    assert not decoded


# Models and examples


def test_models_side_by_side(run: Path, labelled_run: Path, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "b")
    shutil.copytree(labelled_run, tmp_path / "a")
    first, second = load_models([tmp_path], CPU)
    small = load("fashion-mini", "train", 4, limit=100)
    assert train(tiny(size=4, steps=1), small, tmp_path / "small", accelerator="cpu") == []
    assert [(model.name, model.run) for model in (first, second)] == [("a", tmp_path / "a"), ("b", tmp_path / "b")]
    assert (len(first.classes), second.classes) == (9, ())
    assert second.stages == {"f0": "4x4", "f1x": "4x8", "f1y": "8x8"}
    assert second.kind.startswith("Progressive flow of grey images of 8 x 8 pixels, 0.0")
    assert [model.name for model in load_models([run], CPU, ["name"])] == ["name"]
    with pytest.raises(RunError, match=r"at most 4 models side by side, got 5 runs"):
        load_models([run] * 5, CPU)
    with pytest.raises(
        RunError, match=r"is of images \[1, 8, 8\] and .* of \[1, 4, 4\]: show only models of the same s"
    ):
        load_models([run, tmp_path / "small"], CPU)
    settings = json.loads((tmp_path / "a/run.json").read_text())
    settings["classes"][0] = "Other"
    (tmp_path / "a/run.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"the models have different classes"):
        load_models([labelled_run, tmp_path / "a"], CPU)


def test_examples_are_held_out_images(labelled: Model, progressive: Model) -> None:
    images, drawn = load_examples(labelled)
    whole = load("fashion-mini", "test", 8, labels=True)
    order = torch.randperm(500, generator=seeded(0))[:32]
    assert not drawn
    assert torch.equal(images.pixels, whole.pixels[order])
    assert torch.equal(images.labels, whole.labels[order])
    assert load_examples(progressive)[0].labels is None


def test_without_its_data_a_model_draws_the_examples(progressive: Model, tmp_path: Path) -> None:
    settings = progressive.config.settings() | {"data": str(tmp_path / "gone")}
    lost = Model("lost", tmp_path, type(progressive.config).from_dict(settings), progressive.flow, None)
    images, drawn = load_examples(lost)
    assert drawn
    assert torch.equal(images.pixels, eight_bits(draw(progressive, 32, [1.0] * 3)))
    with pytest.raises(DataError, match=r"elsewhere: wanted a folder"):
        load_examples(lost, str(tmp_path / "elsewhere"))
    np.savez(tmp_path / "colours.npz", test=np.zeros((3, 3, 8, 8), np.uint8))
    with pytest.raises(RunError, match=r"lost is of images \[1, 8, 8\], got colours of \[3, 8, 8\]"):
        load_examples(lost, str(tmp_path / "colours.npz"))


def test_results_are_finite_for_extreme_pictures(progressive: Model, labelled: Model) -> None:
    black, white = (torch.full((1, 1, 8, 8), level, dtype=torch.uint8) for level in (0, 255))
    for model in (progressive, labelled):
        found: list[Tensor] = list(between(model, black, white, 4).values())
        found += [image for row in upscale(model, white, 0, [1.5] * 3) for image in row]
        assert all(bool(image.isfinite().all()) for image in found)
        assert np.isfinite(bits(model, black).evaluation.bits_per_dim)
