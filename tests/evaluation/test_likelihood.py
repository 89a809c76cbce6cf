from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest
import torch

from pnf.data import Images, dequantize, load
from pnf.evaluation import evaluate, find_runs, load_run
from pnf.evaluation.pictures import samples
from pnf.training import Flow, RunConfig, RunError, seeded, train
from pnf.training.batches import TEST_NOISE

Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def held_out() -> Images:
    return load("fashion-mini", "test", 8, limit=60)


@pytest.fixture(params=["progressive", "realnvp"])
def flow(request: pytest.FixtureRequest, finished: Finished) -> Flow:
    return load_run(finished(model=request.param))[1]


def test_the_likelihood_is_that_of_the_flow(flow: Flow, held_out: Images) -> None:
    result = evaluate(flow, held_out, seed=3)
    x = dequantize(held_out.pixels, seeded(3, TEST_NOISE))
    with torch.no_grad():
        log_prob = flow.log_prob(x).double()
        bits = flow.bits_per_dim(x).double().mean().item()
    assert result.nats == pytest.approx(log_prob.mean().item(), rel=1e-5)
    assert result.bits_per_dim == pytest.approx(bits, rel=1e-5)
    variance = (log_prob - log_prob.mean()).square().sum().item() / 59
    assert result.nats_error == pytest.approx(math.sqrt(variance / 60), rel=1e-4)
    assert result.bits_per_dim_error == pytest.approx(result.nats_error / (64 * math.log(2)))


def test_the_shares_of_the_stages_are_the_whole(flow: Flow, held_out: Images) -> None:
    result = evaluate(flow, held_out)
    assert sum(result.stage_bits_per_dim.values()) == pytest.approx(result.bits_per_dim)
    assert sum(result.stage_nats.values()) == pytest.approx(result.nats)
    assert result.stage_bits_per_dim.keys() == result.stage_nats.keys()


def test_the_stages_are_named_coarse_first(finished: Finished, held_out: Images) -> None:
    _, flow = load_run(finished())
    result = evaluate(flow, held_out)
    with torch.no_grad():
        nats = flow.stage_log_probs(dequantize(held_out.pixels, seeded(0, TEST_NOISE))).double().mean(0)
    assert list(result.stage_nats) == ["f0", "f1x", "f1y"]
    assert list(result.stage_nats.values()) == pytest.approx(nats.tolist(), rel=1e-5)


def test_more_draws_of_noise_bound_the_likelihood_tighter(flow: Flow, held_out: Images) -> None:
    plain, result = evaluate(flow, held_out, seed=3), evaluate(flow, held_out, seed=3, draws=4)
    noises = [seeded(3, TEST_NOISE), *(seeded(3, TEST_NOISE, k) for k in range(1, 4))]
    with torch.no_grad():
        log_probs = torch.stack([flow.log_prob(dequantize(held_out.pixels, noise)).double() for noise in noises])
    bound = log_probs.exp().mean(0).log() if log_probs.abs().max() < 600 else log_probs.logsumexp(0) - math.log(4)
    assert result.draws_bits_per_dim == pytest.approx(8 - bound.mean().item() / (64 * math.log(2)), rel=1e-6)
    error = bound.std().item() / math.sqrt(60) / (64 * math.log(2))
    assert result.draws_bits_per_dim_error == pytest.approx(error, rel=1e-4)
    assert result.draws_bits_per_dim < result.bits_per_dim == plain.bits_per_dim == plain.draws_bits_per_dim
    assert (result.draws, plain.draws) == (4, 1)


def test_what_else_is_told(flow: Flow, held_out: Images) -> None:
    result = evaluate(flow, held_out)
    assert result.images == 60
    assert result.parameters == sum(p.numel() for p in flow.parameters())
    assert result.images_per_second > 0


def test_the_size_of_batches_changes_rounding_only(flow: Flow, held_out: Images) -> None:
    whole, parts = (evaluate(flow, held_out, batch_size=size).nats for size in (60, 7))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_the_noise_belongs_to_the_seed(flow: Flow, held_out: Images) -> None:
    first, again, other = (evaluate(flow, held_out, seed=seed).nats for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("batch_size", [25, 7])
def test_track_sees_every_batch(flow: Flow, held_out: Images, batch_size: int) -> None:
    seen: list[tuple[int, list[Any]]] = []

    def track(batches: Iterable[Any]) -> Iterable[Any]:
        seen.append((length_hint(batches), list(batches)))
        return seen[-1][1]

    evaluate(flow, held_out, batch_size=batch_size, draws=3, track=track)
    [(announced, batches), (further, draws)] = seen
    assert announced == len(batches) == -(-len(held_out) // batch_size)
    assert further == len(draws) == 2


def test_images_of_another_shape(flow: Flow) -> None:
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "photos", "test")
    with pytest.raises(RunError, match=r"^the model is of images \[1, 8, 8\], got photos with \[3, 8, 8\]$"):
        evaluate(flow, images)


def test_one_image_has_no_standard_error(flow: Flow, held_out: Images) -> None:
    images = Images(held_out.pixels[:1], held_out.name, "test")
    with pytest.raises(RunError, match="a standard error needs at least 2 images, got 1"):
        evaluate(flow, images)


def test_find_runs(tmp_path: Path, finished: Finished) -> None:
    for name in ("b", "a"):
        shutil.copytree(finished(), tmp_path / name)
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(RunError, match=r"checkpoints holds no run: there is no run.json in it; train one with: pnf"):
        find_runs(tmp_path / "a/checkpoints")


def test_load_run_of_a_run_that_is_not_finished(tmp_path: Path, tiny: Callable[..., RunConfig], images: Images) -> None:
    train(tiny(steps=1), images, tmp_path, stages=["f0"], accelerator="cpu")
    with pytest.raises(RunError, match=r"the training in .* is not finished; go on with: pnf train --resume "):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "is not finished; go on with: pnf train --resume"),
        ("model.safetensors", b"half", "model.safetensors is no safetensors file: "),
        ("config.json", b"{", "config.json is no JSON file: "),
        ("config.json", None, "model has no config.json"),
    ],
)
def test_load_run_of_a_damaged_model(
    tmp_path: Path, finished: Finished, name: str, content: bytes | None, message: str
) -> None:
    folder = shutil.copytree(finished(), tmp_path / "run")
    path = folder / "model" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=message) as told:
        load_run(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 16}, r"the shape is \(1, 16, 16\) and \(1, 8, 8\)"),
        ({"classes": ["a", "b"]}, "the number of classes is 2 and None"),
        ({"model": "realnvp", "lattice": False}, "the model is realnvp and progressive"),
        ({"support": "real", "detail": "identity", "lattice": False}, "the support is real and unit"),
    ],
)
def test_load_run_of_settings_of_another_flow(
    tmp_path: Path, finished: Finished, changed: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(finished(), tmp_path / "run")
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(settings | changed))
    with pytest.raises(RunError, match=f"run.json and the model beside it do not belong together: {message}"):
        load_run(folder)


def test_only_a_lack_of_memory_is_called_so(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        samples(finished(), tmp_path / "s.png", temperature=-1, device=torch.device("cpu"))
    monkeypatch.setattr("pnf.evaluation.pictures.LARGE", 0)
    monkeypatch.setattr("pnf.evaluation.pictures.free_memory", lambda _: 1)
    with pytest.raises(RunError, match="the images are too large for the memory that is free: ProgressiveFlow: one"):
        samples(finished(), tmp_path / "s.png", device=torch.device("cpu"))


def test_load_run_of_a_model_that_does_not_fit_its_settings(tmp_path: Path, finished: Finished) -> None:
    folder = shutil.copytree(finished(), tmp_path / "run")
    shutil.copy(finished(hidden=12) / "model/model.safetensors", folder / "model")
    with pytest.raises(RunError, match=r"model.safetensors does not fit its configuration: ") as told:
        load_run(folder)
    assert "\n" not in str(told.value)
