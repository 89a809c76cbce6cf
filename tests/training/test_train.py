from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from pnf.data import Images
from pnf.evaluation import evaluate, load_run
from pnf.flows import ProgressiveFlow, RealNVP
from pnf.training import RunConfig, RunError, train
from pnf.training.batches import TEST_NOISE, seeded
from pnf.training.hardware import exact_arithmetic, has_fp32_precision, tensor_float_32
from pnf.training.stage_trainer import StageTrainer
from pnf.training.trainer import step_seconds

Make = Callable[..., RunConfig]
Finished = Callable[..., Path]
Results = Callable[[Path], dict[str, object]]

STAGES = ["f0", "f1x", "f1y"]


def multiplied_in_tf32() -> set[bool]:
    """Whether convolutions and matrix products of a GPU may round to TF32."""
    b: Any = torch.backends
    if has_fp32_precision():
        return {product.fp32_precision == "tf32" for product in (b.cudnn.conv, b.cuda.matmul)}
    return {b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32}


@pytest.mark.parametrize("interface", ["first", *(["second"] if has_fp32_precision() else [])])
def test_arithmetic_is_exact_whatever_was_set_before(interface: str) -> None:
    b: Any = torch.backends
    if interface == "first":
        torch.set_float32_matmul_precision("medium")
        b.cudnn.allow_tf32 = True
    else:
        b.fp32_precision = b.cudnn.fp32_precision = "tf32"
    try:
        exact_arithmetic()
        if has_fp32_precision():
            shortcuts = b.cudnn.conv, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.matmul
            assert {shortcut.fp32_precision for shortcut in shortcuts} == {"ieee"}
        assert not b.cudnn.allow_tf32
        assert not b.cuda.matmul.allow_tf32
    finally:
        if has_fp32_precision():
            b.fp32_precision = b.cudnn.fp32_precision = "none"


def test_tf32_is_for_the_steps_alone(
    tiny: Make,
    images: Images,
    finished: Finished,
    results: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[bool]] = {"train_step": set(), "validated": set()}

    def look(name: str) -> Callable[..., Any]:
        function = getattr(StageTrainer, name)

        def call(*args: Any) -> Any:
            seen[name] |= multiplied_in_tf32()
            return function(*args)

        return call

    for name in seen:
        monkeypatch.setattr(StageTrainer, name, look(name))
    folder = tmp_path / "run"
    assert train(tiny(precision="tf32"), images, folder, accelerator="cpu") == []
    assert seen == {"train_step": {True}, "validated": {False}}
    assert multiplied_in_tf32() == {False}
    # A CPU has no such arithmetic.
    model = "model/model.safetensors"
    assert results(folder)[model] == results(finished())[model]


def test_arithmetic_is_exact_after_an_error() -> None:
    with pytest.raises(KeyError), tensor_float_32():
        raise KeyError
    assert multiplied_in_tf32() == {False}


def test_what_a_run_leaves(finished: Finished, tiny: Make) -> None:
    folder = finished()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/")}
    assert len(events) == 1
    assert files - events == {
        "run.json",
        "data.json",
        "checkpoints/f0.ckpt",
        "checkpoints/f1x.ckpt",
        "checkpoints/f1y.ckpt",
        "logs/version_0/metrics.csv",
        "model/config.json",
        "model/model.safetensors",
    }
    assert RunConfig.load(folder) == tiny()
    data = json.loads((folder / "data.json").read_text())
    assert (data["images"], data["shape"]) == (200, [1, 8, 8])


def test_a_checkpoint_names_its_stage_and_step(finished: Finished) -> None:
    for name in STAGES:
        checkpoint = torch.load(finished() / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert (checkpoint["name"], checkpoint["step"]) == (name, 12)


def test_the_baseline_is_one_stage(finished: Finished) -> None:
    folder = finished(model="realnvp")
    assert [path.name for path in folder.glob("checkpoints/*")] == ["f.ckpt"]
    assert isinstance(load_run(folder)[1], RealNVP)


@pytest.mark.parametrize("settings", [{}, {"coupling": "conv"}, {"norm": "batch"}, {"flip": True, "accumulate": 2}])
def test_training_again_gives_the_same_bits(
    tmp_path: Path, tiny: Make, finished: Finished, images: Images, results: Results, settings: dict[str, object]
) -> None:
    folder = finished(**settings)
    train(tiny(**settings), images, tmp_path, accelerator="cpu")
    assert results(tmp_path) == results(folder)


def test_the_global_generator_has_no_say(
    tmp_path: Path, tiny: Make, finished: Finished, images: Images, results: Results
) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    train(tiny(), images, tmp_path, accelerator="cpu")
    assert results(tmp_path) == results(finished())
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_gives_another_model(finished: Finished, results: Results) -> None:
    name = "model/model.safetensors"
    assert results(finished(seed=1))[name] != results(finished())[name]


def test_the_settings_of_validation_and_logs_have_no_say(finished: Finished, results: Results) -> None:
    other = finished(validate_every=5, log_every=3, checkpoint_every=100)
    assert results(other) == results(finished())


def test_stages_apart_are_the_stages_together(
    tmp_path: Path, tiny: Make, finished: Finished, images: Images, results: Results
) -> None:
    def train_only(*stages: str) -> list[str]:
        return train(tiny(), images, tmp_path, stages=stages, accelerator="cpu")

    assert train_only("f1y") == ["f0", "f1x"]
    assert not (tmp_path / "model").exists()
    assert train_only("f0") == ["f1x"]
    assert train_only("f1x") == []
    assert results(tmp_path) == results(finished())


def test_stages_in_pairs_and_in_any_order(
    tmp_path: Path, tiny: Make, finished: Finished, images: Images, results: Results
) -> None:
    train(tiny(), images, tmp_path, stages=["f1y", "f0"], accelerator="cpu")
    assert train(tiny(), images, tmp_path, resume=True, accelerator="cpu") == []
    assert results(tmp_path) == results(finished())


def test_the_exported_flow_has_the_averaged_weights(finished: Finished) -> None:
    _, flow = load_run(finished())
    assert isinstance(flow, ProgressiveFlow)
    assert not flow.training
    for name, stage in zip(STAGES, flow.stages, strict=True):
        average = torch.load(finished() / "checkpoints" / f"{name}.ckpt", weights_only=True)["averaged"]
        for key, value in stage.state_dict().items():
            assert torch.equal(average[key], value)


def test_the_best_weights_are_those_of_each_stage_by_itself(
    tmp_path: Path, tiny: Make, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[float, dict[str, Tensor]]]] = {name: [] for name in STAGES}
    validated = StageTrainer.validated

    def look(self: StageTrainer, nats: float) -> None:
        # Each stage has its best validation at a different step.
        nats = -abs(self.step - {"f0": 4, "f1x": 8, "f1y": 12}[self.name])
        state = {key: value.clone() for key, value in self.averaged.state_dict().items()}
        seen[self.name].append((nats, state))
        validated(self, nats)

    monkeypatch.setattr(StageTrainer, "validated", look)
    config = tiny(keep="best", validate_every=4)
    train(config, images, tmp_path, accelerator="cpu")
    _, flow = load_run(tmp_path)
    assert isinstance(flow, ProgressiveFlow)
    for (name, states), stage in zip(seen.items(), flow.stages, strict=True):
        assert len(states) == 3
        best = max(states, key=lambda pair: pair[0])[1]
        assert all(torch.equal(best[key], value) for key, value in stage.state_dict().items()), name


def test_the_best_weights_of_what_only_gets_better_are_the_last(finished: Finished, results: Results) -> None:
    best, last = (results(finished(keep=keep)) for keep in ("best", "last"))
    assert best["model/model.safetensors"] == last["model/model.safetensors"]


def test_a_run_on_the_lattice(finished: Finished, images: Images) -> None:
    config, flow = load_run(finished(lattice=True))
    assert isinstance(flow, ProgressiveFlow)
    assert config.lattice
    assert flow.settings.lattice
    found = evaluate(flow, images.take(slice(20)), seed=3)
    x = images.take(slice(20)).continuous(seeded(3, TEST_NOISE))
    with torch.no_grad():
        assert flow.bits_per_dim(x).mean().item() == pytest.approx(found.bits_per_dim)


def test_a_run_of_an_earlier_release_is_not_on_the_lattice(finished: Finished) -> None:
    folder = finished(lattice=False)
    assert "lattice" not in json.loads((folder / "run.json").read_text())
    assert not RunConfig.load(folder).lattice


def test_the_last_step_is_validated(finished: Finished) -> None:
    steps = [int(row["step"]) for row in _rows(finished(validate_every=5)) if row["validation/nats_per_dim"]]
    assert steps == [5, 10, 12]


def test_the_seconds_of_a_step_are_measured_by_turns(
    tiny: Make, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    train_step = StageTrainer.train_step

    def look(self: StageTrainer, batches: list[Tensor]) -> Tensor:
        turns.append(self.name)
        return train_step(self, batches)

    monkeypatch.setattr(StageTrainer, "train_step", look)
    configs = [tiny(model="realnvp"), tiny()]
    seconds = step_seconds(configs, images, seconds=0, accelerator="cpu")
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert turns == ["f", *STAGES] * 4


def test_accumulated_batches_train_like_whole_ones(finished: Finished, images: Images) -> None:
    # The same 16 images at each step, and no ActNorm, which starts from the statistics of its first batch.
    settings = {"norm": "none", "validation": 0}
    whole, halves = (finished(**settings, batch_size=16 // n, accumulate=n) for n in (1, 2))
    x = (images.pixels[:50].float() + 0.5) / 256
    with torch.no_grad():
        bits = [load_run(folder)[1].bits_per_dim(x) for folder in (whole, halves)]
    torch.testing.assert_close(bits[0], bits[1], rtol=1e-3, atol=1e-3)


def test_bf16_trains_a_model_of_float32(finished: Finished, images: Images) -> None:
    _, flow = load_run(finished(precision="bf16"))
    log_prob = flow.log_prob((images.pixels[:4].float() + 0.5) / 256)
    assert {p.dtype for p in flow.parameters()} == {log_prob.dtype} == {torch.float32}
    assert log_prob.isfinite().all()


def test_the_likelihood_of_held_out_images_grows(finished: Finished) -> None:
    nats = [
        float(row["validation/nats_per_dim"]) for row in _rows(finished(steps=60)) if row["validation/nats_per_dim"]
    ]
    assert len(nats) == 10
    assert nats[-1] > nats[0]


def test_the_csv_log(finished: Finished) -> None:
    rows = _rows(finished())
    training = [row for row in rows if row["train/nats_per_dim"]]
    validation = [row for row in rows if row["validation/nats_per_dim"]]
    assert [int(row["step"]) for row in training] == [2, 4, 6, 8, 10, 12]
    assert [int(row["step"]) for row in validation] == [6, 12]
    for split, row in (("train", training[0]), ("validation", validation[0])):
        f0, f1x, f1y, total = (float(row[f"{split}/{name}nats_per_dim"]) for name in ("f0/", "f1x/", "f1y/", ""))
        assert total == pytest.approx((16 * f0 + 16 * f1x + 32 * f1y) / 64)
    assert all(float(row["train/images_per_second"]) > 0 for row in training)


def test_the_csv_log_grows_while_the_run_goes_on(
    tmp_path: Path, tiny: Make, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[int] = []
    train_step = StageTrainer.train_step

    def look(self: StageTrainer, batches: list[Tensor]) -> Tensor:
        lines.append(sum(len(path.read_text().splitlines()) for path in tmp_path.glob("logs/*/metrics.csv")))
        return train_step(self, batches)

    monkeypatch.setattr(StageTrainer, "train_step", look)
    train(tiny(), images, tmp_path, stages=["f0"], accelerator="cpu")
    # A header and a row every two steps, and from step 6 on a row of the validation.
    assert lines == [0, 0, 2, 2, 3, 3, 5, 5, 6, 6, 7, 7]


def test_the_tensorboard_log_tells_the_same(finished: Finished) -> None:
    events = EventAccumulator(str(finished() / "tensorboard"))
    events.Reload()
    for key in ("train/f1x/nats_per_dim", "validation/nats_per_dim"):
        logged = {int(row["step"]): float(row[key]) for row in _rows(finished()) if row[key]}
        assert {event.step: event.value for event in events.Scalars(key)} == pytest.approx(logged)


def test_without_validation_nothing_is_held_out(finished: Finished) -> None:
    rows = _rows(finished(validation=0))
    assert rows
    assert not any(key.startswith("validation") for key in rows[0])


def test_a_batch_larger_than_the_set(finished: Finished) -> None:
    assert load_run(finished(batch_size=500, steps=2))[0].batch_size == 500


@pytest.mark.parametrize(
    ("settings", "resume", "message"),
    [
        ({"lr": 0.5}, False, "holds a run with other settings: choose another --out"),
        ({"lr": 0.5}, True, "holds a run with other settings: choose another --out"),
        ({}, False, "holds this run already: go on with --resume .*, or choose another --out"),
    ],
)
def test_a_folder_that_is_taken(
    finished: Finished,
    tiny: Make,
    images: Images,
    results: Results,
    settings: dict[str, object],
    resume: bool,
    message: str,
) -> None:
    before = results(finished())
    with pytest.raises(RunError, match=message):
        train(tiny(**settings), images, finished(), resume=resume, accelerator="cpu")
    assert results(finished()) == before


@pytest.mark.parametrize("change", ["pixel", "order", "fewer"])
def test_a_run_goes_on_with_its_own_images_only(finished: Finished, tiny: Make, images: Images, change: str) -> None:
    pixels = images.pixels.clone()
    if change == "pixel":
        pixels[7, 0, 3, 3] ^= 1
    elif change == "order":
        pixels = pixels.flip(0)
    else:
        pixels = pixels[:199]
    with pytest.raises(RunError, match=r"was trained on other images than those in fashion-mini: restore them, or"):
        train(tiny(), Images(pixels, images.name, "train"), finished(), resume=True, accelerator="cpu")


def test_a_file_where_the_folder_should_be(tmp_path: Path, tiny: Make, images: Images) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=r"run is not a folder: choose another --out$"):
        train(tiny(), images, tmp_path / "run", accelerator="cpu")


@pytest.mark.parametrize(
    ("settings", "stages", "message"),
    [
        ({}, ["f0", "f2x", "g"], "there is no stage f2x, g; there are f0, f1x, f1y"),
        ({"validation": 200}, None, "validation must be less than the 200 training images, got 200"),
        ({"levels": 4}, None, "wrong settings: "),
    ],
)
def test_a_mistake_leaves_no_folder_behind(
    tmp_path: Path, tiny: Make, images: Images, settings: dict[str, object], stages: list[str] | None, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        train(tiny(**settings), images, tmp_path / "run", stages=stages, accelerator="cpu")
    assert not (tmp_path / "run").exists()


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/version_0/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "settings",
    [{"coupling": "dense"}, pytest.param({"coupling": "conv", "norm": "act", "steps": 6}, marks=pytest.mark.slow)],
)
def test_another_number_of_threads_changes_rounding_only(
    finished: Finished, tmp_path: Path, tiny: Make, images: Images, settings: dict[str, object]
) -> None:
    torch.set_num_threads(2)
    try:
        assert train(tiny(**settings), images, tmp_path, accelerator="cpu") == []
    finally:
        torch.set_num_threads(1)
    x = torch.rand(50, 1, 8, 8)
    want, got = (load_run(folder)[1].log_prob(x) for folder in (finished(**settings), tmp_path))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
