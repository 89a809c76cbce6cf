"""Each command without mistakes or faults."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pnf import figures
from pnf.cli.app import _COMMANDS, _load
from pnf.data import load
from pnf.evaluation import evaluate, load_run
from pnf.training.batches import Batches
from pnf.training.config import RunConfig

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]
Picture = Callable[..., Path]

COMMANDS = ["train", "evaluate", "sample", "upscale", "project", "curves", "anomaly", "quality", "app", "doctor"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def levels(path: Path) -> np.ndarray:
    return pixels(path).astype(float)


def pngs(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def test_help_has_two_names(pnf: Pnf) -> None:
    for option in ("-h", "--help"):
        result = pnf("doctor", option)
        assert result.code == 0
        assert "Example: pnf doctor" in result.out


def test_help_lists_the_commands(pnf: Pnf) -> None:
    result = pnf("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


def test_train_says_what_to_do_next(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    result = pnf(*tiny(tmp_path / "run", steps=2))
    assert result.code == 0
    assert result.out == f"Trained: {tmp_path / 'run'}\n"
    assert result.err.endswith(f"Next: pnf evaluate {tmp_path / 'run'}\n")
    assert "Training progressive on 200 images of fashion-mini [1, 16, 16] in" in result.err


def test_a_folder_may_have_brackets_in_its_name(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run[bold][/x]"
    result = pnf(*tiny(run, steps=1))
    assert result.code == 0
    assert str(run) in result.out
    assert str(run) in result.err
    assert run.name in pnf("evaluate", run, "--limit", 5).out


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({}, "runs/demo/progressive-bounded"),
        ({"detail": "identity"}, "runs/demo/progressive-identity"),
        ({"model": "realnvp"}, "runs/demo/realnvp"),
    ],
)
def test_train_chooses_a_folder(
    pnf: Pnf, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pnf(*tiny(None, steps=1, **settings)).code == 0
    assert (tmp_path / folder / "model/model.safetensors").is_file()


def test_train_takes_stages_in_any_order(pnf: Pnf, tiny: Tiny, tmp_path: Path, demo: Path) -> None:
    result = pnf(*tiny(tmp_path / "run"), "--stages", "f1y, f0")
    assert result.code == 0
    assert "Stages still to train: f1x" in result.out
    result = pnf("train", "--resume", tmp_path / "run", "--device", "cpu")
    assert result.code == 0
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (demo / "progressive-bounded" / model).read_bytes()


def test_train_resumes_what_is_finished(pnf: Pnf, progressive: Path) -> None:
    before = (progressive / "model/model.safetensors").read_bytes()
    assert pnf("train", "--resume", progressive, "--device", "cpu").code == 0
    assert (progressive / "model/model.safetensors").read_bytes() == before


def test_evaluate_prints_and_writes_the_figures(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    result = pnf("evaluate", demo, "--limit", 50, "--out", tmp_path / "out", "--device", "cpu")
    assert result.code == 0
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    assert list(document["models"]) == ["progressive-bounded", "realnvp"]
    assert (document["seed"], document["device"]) == (0, "cpu")
    images = load("fashion-mini", "test", 16, limit=50)
    for name, model in document["models"].items():
        config, flow = load_run(demo / name)
        expected = evaluate(flow, images)
        assert model["settings"] == json.loads(json.dumps(config.settings()))
        assert model["result"]["nats"] == expected.nats
        assert model["result"]["stage_bits_per_dim"] == expected.stage_bits_per_dim
        row = next(line for line in result.out.splitlines() if name in line)
        for cell in (f"{expected.nats:,.1f} ± ", f"{expected.bits_per_dim:.3f} ± ", " 10 ", " 50 "):
            assert cell in row
    assert all(title in result.out for title in ("bits/dim", "f0", "f1x", "f1y", "sum"))
    assert pixels(tmp_path / "out/bits.png").ndim == 3


def test_evaluate_with_several_draws_has_a_column_of_their_bound(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    result = pnf("evaluate", demo, "--limit", 20, "--draws", 3, "--out", tmp_path)
    assert result.code == 0
    assert "3 draws" in result.out
    for name, model in json.loads((tmp_path / "metrics.json").read_text())["models"].items():
        row = next(line for line in result.out.splitlines() if name in line)
        assert f"{model['result']['draws_bits_per_dim']:.3f} ± " in row
    assert pnf("evaluate", demo, "--draws", 0).code == 2


def test_evaluate_writes_into_the_folder_it_is_given(pnf: Pnf, progressive: Path) -> None:
    assert pnf("evaluate", progressive, "--limit", 10).code == 0
    assert (progressive / "metrics.json").is_file()
    assert pngs(progressive) == {"bits.png"}


def test_evaluate_tells_runs_of_one_name_apart(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "other/demo")
    runs = [demo / "realnvp", tmp_path / "other/demo/realnvp"]
    assert pnf("evaluate", *runs, "--limit", 10, "--out", tmp_path).code == 0
    names = list(json.loads((tmp_path / "metrics.json").read_text())["models"])
    assert len(names) == 2
    assert names[1] == "other/demo/realnvp"


@pytest.mark.parametrize("model", ["progressive-bounded", "realnvp"])
def test_sample_belongs_to_the_seed(pnf: Pnf, demo: Path, tmp_path: Path, model: str) -> None:
    pictures = []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        target = tmp_path / f"{name}.png"
        result = pnf("sample", demo / model, "-n", 4, "--seed", seed, "--out", target, "--temperature", 0.7)
        assert result.code == 0
        assert result.out == f"Written: {target}\n"
        pictures.append(pixels(target))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


def test_sample_writes_into_the_run(pnf: Pnf, progressive: Path) -> None:
    assert pnf("sample", progressive, "-n", 2).code == 0
    assert pngs(progressive) == {"samples.png"}


def test_models_that_come_with_pnf(pnf: Pnf, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = pnf("sample", "--pretrained", "fashion-mnist", "-n", 2)
    assert result.code == 0, result.err
    assert result.out == "Written: samples.png\n"
    low = picture("low.png", 8, 8)
    assert pnf("upscale", "--pretrained", "fashion-mnist", low).code == 0
    assert pnf("upscale", "--pretrained", "fashion-mnist", "--sampled", "-n", 2).code == 0
    assert pngs(tmp_path) == {"samples.png", "low.png", "low-t0-1.png", "low-upscaled.png", "upscaled-samples.png"}
    assert levels(tmp_path / "low-t0-1.png").shape == (32, 32)


def test_upscale_of_held_out_images_and_of_samples(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    assert pnf("upscale", demo, "-n", 2, "--out", tmp_path).code == 0
    assert pngs(tmp_path) == {"upscaled-real.png"}
    assert pnf("upscale", demo, "-n", 2, "--sampled", "--temperature", 0.5, "--out", tmp_path).code == 0
    assert pngs(tmp_path) == {"upscaled-real.png", "upscaled-samples.png"}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16)])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_upscale_grows_a_file_of_a_stages_resolution(
    pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path, height: int, width: int, temperature: float
) -> None:
    low, out = picture("low.png", height, width), tmp_path / "out"
    assert pnf("upscale", demo, low, "--temperature", temperature, "--out", out).code == 0
    assert pngs(out) == {f"low-t{temperature}-1.png", "low-upscaled.png"}
    grown = levels(out / f"low-t{temperature}-1.png")
    assert grown.shape == (16, 16)
    # Downscaling gives the original image back, up to the rounding to 8 bits.
    means = grown.reshape(height, 16 // height, width, 16 // width).mean((1, 3))
    assert np.abs(means - levels(low)).max() <= 1


@pytest.mark.parametrize("shape", [(16, 16), (40, 33), (24, 24, 3)])
def test_upscale_takes_larger_files_down_and_up(
    pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    assert pnf("upscale", demo, picture("photo.png", *shape), "--out", tmp_path / "out").code == 0
    assert pngs(tmp_path / "out") == {"photo-t0-1.png", "photo-upscaled.png"}
    assert pixels(tmp_path / "out/photo-t0-1.png").shape == (16, 16)


def test_upscale_draws_at_several_temperatures(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    out = tmp_path / "out"
    temperatures = ["--temperature", 0, "--temperature", 0.5, "--temperature", 1]
    assert pnf("upscale", demo, picture("low.png", 8, 8), *temperatures, "--draws", 2, "--out", out).code == 0
    draws = ["low-t0-1.png", "low-t0.5-1.png", "low-t0.5-2.png", "low-t1-1.png", "low-t1-2.png"]
    assert pngs(out) == {*draws, "low-upscaled.png"}
    assert len({pixels(out / name).tobytes() for name in draws}) == len(draws)


def test_project_tells_how_far_images_are_from_their_projections(pnf: Pnf, progressive: Path) -> None:
    result = pnf("project", progressive, "-n", 3)
    assert result.code == 0
    assert "Root mean square error of the projection: 0." in result.out
    again = float(result.out.split("projecting again moves it by ")[1].split()[0])
    assert again < 1e-4
    assert pngs(progressive) == {"projection.png"}


def test_project_takes_files(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    files = [picture("a.png", 16, 16), picture("b.png", 50, 20, 3), picture("c.png", 3, 3)]
    assert pnf("project", demo, *files, "--out", tmp_path / "p.png").code == 0
    assert pixels(tmp_path / "p.png").size


def test_charts_are_vectors_if_they_are_named_so(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    run = demo / "progressive-bounded"
    for args, files in (
        (["curves", demo, "--out", tmp_path / "c.svg"], ["c.svg"]),
        (["sample", run, "-n", 2, "--out", tmp_path / "s.pdf"], ["s.pdf"]),
        (["evaluate", demo, "--limit", 5, "--out", tmp_path / "b.pdf"], ["metrics.json", "b.pdf"]),
        (
            ["quality", run, "-n", 2, "--draws", 1, "--out", tmp_path / "q.svg"],
            ["quality.json", "q.svg", "q-images.svg"],
        ),
    ):
        result = pnf(*args)
        assert result.code == 0, result.err
        assert result.out.splitlines()[-len(files) :] == [f"Written: {tmp_path / name}" for name in files]
        for path in (tmp_path / name for name in files):
            assert path.read_bytes().startswith({".pdf": b"%PDF", ".svg": b"<?xml", ".json": b"{"}[path.suffix])


def test_curves_draws_the_runs(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    result = pnf("curves", demo, "--out", tmp_path / "curves.png")
    assert result.code == 0
    assert pixels(tmp_path / "curves.png").size


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The training and validation curves that ``pnf curves`` draws."""
    seen: list[tuple[Any, Any]] = []
    draw = figures.training_curves

    def look(curves: Any, *, validation: Any, models: Any) -> Any:
        seen.append((curves["run"], validation["run"]))
        return draw(curves, validation=validation, models=models)

    monkeypatch.setattr(figures, "training_curves", look)
    return seen


def test_curves_of_stages_apart_are_those_of_all(
    pnf: Pnf, tiny: Tiny, tmp_path: Path, drawn: list[tuple[Any, Any]]
) -> None:
    apart, together = tmp_path / "apart/run", tmp_path / "together/run"
    assert pnf(*tiny(together)).code == 0
    assert pnf(*tiny(apart), "--stages", "f0").code == 0
    assert pnf("train", "--resume", apart, "--stages", "f1x,f1y", "--device", "cpu").code == 0
    for run in (together, apart):
        assert pnf("curves", run).code == 0
    assert drawn[0] == drawn[1]
    assert [step for step, _ in drawn[0][0]] == [2, 4, 6, 8, 10]
    assert [step for step, _ in drawn[0][1]] == [5, 10]


def test_curves_of_a_resumed_run_are_merged_by_step(
    pnf: Pnf, tiny: Tiny, tmp_path: Path, drawn: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed, undisturbed = tmp_path / "resumed/run", tmp_path / "undisturbed/run"
    assert pnf(*tiny(undisturbed)).code == 0
    batch = Batches.__call__

    def stop(self: Batches, step: int) -> Any:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", stop)
        result = pnf(*tiny(resumed))
    assert result.code == 143
    assert result.err.splitlines()[-1].startswith("pnf: stopped and saved at step 6; go on with: pnf train --resume")
    assert pnf("train", "--resume", resumed, "--device", "cpu").code == 0
    for run in (undisturbed, resumed):
        assert pnf("curves", run).code == 0
    assert drawn[0] == drawn[1]


def test_doctor_tells_versions_and_what_runs(pnf: Pnf) -> None:
    result = pnf("doctor")
    assert result.code == 0
    assert re.search(r"\d\.\d times as fast as 32", result.out)
    assert all(word in result.out for word in ("torch", "lightning", "GPU", "threads", "Implementations", "masking"))


def test_upscale_names_temperatures_that_print_alike(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    temperatures = [0, 0.7, 0.7000001, 1e-05, 0.1 + 0.2]
    options = [word for t in temperatures for word in ("--temperature", repr(t))]
    result = pnf("upscale", demo, picture("low.png", 8, 8), *options, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    named = [f"low-t{t}-1.png" for t in ("0", "0.7", "0.7000001", "1e-05", "0.30000000000000004")]
    assert pngs(tmp_path / "out") == {*named, "low-upscaled.png"}
    lines = [f"Written: {tmp_path / 'out' / name}" for name in [*named, "low-upscaled.png"]]
    assert result.out.splitlines() == lines


def test_upscale_takes_long_names(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    stem = "x" * 240
    assert pnf("upscale", demo, picture(f"{stem}.png", 8, 8), "--out", tmp_path / "out").code == 0
    assert pngs(tmp_path / "out") == {f"{stem}-t0-1.png", f"{stem}-upscaled.png"}


def test_the_list_of_commands_is_that_of_the_commands() -> None:
    for name in _COMMANDS:
        assert _load(name).help


def test_every_setting_of_a_run_is_an_option(pnf: Pnf) -> None:
    shown = " ".join(pnf("train", "--help").out.split())
    for setting in fields(RunConfig):
        if setting.metadata.get("group", "Model") is None:
            continue  # it is found in the data
        assert f"--{setting.name.replace('_', '-')} " in shown, setting.name
        assert setting.metadata["description"] in shown, setting.name
