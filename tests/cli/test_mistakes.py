"""Each mistake of a user gives one line with a remedy, and never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pnf.files import printable

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]
Picture = Callable[..., Path]


def assert_told(result: Any, message: str, *, code: int = 1) -> None:
    """The command failed with one line of error. ``pnf train`` announces its work before that line."""
    assert result.code == code
    lines = [
        line for line in result.err.splitlines() if line.strip() and not line.startswith(("Training ", "step ", "f0 "))
    ]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("pnf: ")
    assert message in lines[0]
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 200}, "validation must be less than the 200 training images, got 200"),
        ({"validation": 0, "keep": "best"}, "chosen by held-out images: give --validation, or --keep last"),
        ({"levels": 5}, "multiple of 32 along dim -1 for 5 levels, got (1, 16, 16)"),
        ({"stages": "f0,f9"}, "there is no stage f9; there are f0, f1x, f1y"),
        ({"stages": ""}, "there is no stage"),
        ({"device": "tpu"}, "--device must be cpu, cuda or auto, got 'tpu'"),
        ({"data": "nowhere"}, "nowhere: wanted a folder, an .npz or .npy file, or the word fashion-mini, got no such"),
        ({"lr": "nan"}, "wrong settings: lr: Input should be"),
        ({"clip": "inf"}, "wrong settings: clip: Input should be a finite number"),
        ({"ema": "1"}, "wrong settings: ema: Input should be less than 1"),
        ({"steps": 0}, "wrong settings: steps: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_settings(pnf: Pnf, tiny: Tiny, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    assert_told(pnf(*tiny(tmp_path / "run", **settings)), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "dmeo"], "there is no preset 'dmeo'; there are demo, mnist-dense, mnist-conv, cifar10, celeba64"),
        (["train"], "name a preset (demo, "),
        (["train", "--resume", "nowhere"], "nowhere holds no run: there is no run.json in it"),
        (["train", "demo", "--resume", "x"], "--resume goes on with a run's own settings: give no preset, no --out"),
        (["train", "--resume", "x", "--lr", "1"], "--resume goes on with a run's own settings"),
        (["train", "--resume", "x", "--out", "y"], "--resume goes on with a run's own settings"),
        (["train", "--resume", "x", "--no-flip"], "--resume goes on with a run's own settings"),
        (["evaluate", "nowhere"], "nowhere holds no run: there is no run.json in it; train one with: pnf train demo"),
        (["curves", "nowhere"], "nowhere holds no run"),
        (["sample", "nowhere"], "nowhere holds no run"),
        (["upscale", "nowhere"], "nowhere holds no run"),
        (["project", "nowhere"], "nowhere holds no run"),
        (["train", "mnist-dense"], "MNIST: wanted a folder"),
    ],
)
def test_without_a_run(
    pnf: Pnf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_told(pnf(*args), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["frobnicate"], "frobnicate"),
        (["train", "demo", "--hidden", "wide"], "--hidden"),
        (["train", "demo", "--axes", "z"], "--axes"),
        (["train", "demo", "--precision", "8"], "--precision"),
        (["train", "demo", "--hiden", "8"], "--hiden"),
        (["sample", "x", "--temperature", "nan"], "--temperature"),
        (["sample", "x", "--temperature", "-1"], "--temperature"),
        (["upscale", "x", "--temperature", "inf"], "--temperature"),
        (["upscale", "x", "--draws", "0"], "--draws"),
        (["sample", "x", "-n", "0"], "--number"),
        (["sample", "x", "--seed", "-1"], "--seed"),
        (["evaluate", "x", "--limit", "1"], "--limit"),
        (["evaluate"], "runs"),
    ],
)
def test_wrong_usage_names_the_argument(pnf: Pnf, args: list[str], name: str) -> None:
    result = pnf(*args)
    assert result.code == 2
    assert name in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "{demo}"], "holds several runs, choose one: "),
        (["sample"], "give either the folder of a run or --pretrained"),
        (["upscale"], "give either the folder of a run or --pretrained"),
        (["sample", "{demo}", "--pretrained", "fashion-mnist"], "give either the folder of a run or --pretrained"),
        (["sample", "--pretrained", "mnist"], "there is no pretrained model 'mnist'; there are fashion-mnist"),
        (["upscale", "{demo}/realnvp"], "realnvp holds no ProgressiveFlow, and only that can grow images"),
        (["project", "{demo}/realnvp"], "realnvp holds no ProgressiveFlow"),
        (["sample", "{demo}/realnvp", "--device", "tpu"], "--device must be cpu, cuda or auto, got 'tpu'"),
        (["evaluate", "{demo}/realnvp", "--device", "gpu"], "--device must be cpu, cuda or auto, got 'gpu'"),
        (["upscale", "{demo}", "--device", "tpu"], "--device must be cpu, cuda or auto, got 'tpu'"),
        (["sample", "{demo}/realnvp", "--out", "x.jpg"], "--out must end in .png, .svg or .pdf, got x.jpg"),
        (["project", "{demo}", "--out", "x"], "--out must end in .png, .svg or .pdf, got x"),
        (["curves", "{demo}", "--out", "x.eps"], "--out must end in .png, .svg or .pdf, got x.eps"),
        (["evaluate", "{demo}", "--data", "nowhere"], "nowhere: wanted a folder"),
        (["upscale", "{demo}", "--data", "nowhere"], "nowhere: wanted a folder"),
        (["upscale", "{demo}", "x.png", "--sampled"], "--sampled and files exclude each other"),
        (["upscale", "{demo}", "x.png"], "x.png: there is no such file"),
        (["project", "{demo}", "x.png"], "x.png: there is no such file"),
    ],
)
def test_with_trained_runs(
    pnf: Pnf, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(demo.rglob("*"))
    assert_told(pnf(*(arg.format(demo=demo) for arg in args)), message)
    assert sorted(demo.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_several_progressive_flows_where_one_is_wanted(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(demo / "progressive-bounded", tmp_path / name)
    for command in ("upscale", "project"):
        assert_told(pnf(command, tmp_path), f"holds several runs, choose one: {tmp_path / 'a'}, {tmp_path / 'b'}")


@pytest.mark.parametrize("command", ["evaluate", "upscale", "project"])
def test_another_data_set_that_does_not_fit(pnf: Pnf, progressive: Path, colours: Path, command: str) -> None:
    result = pnf(command, progressive, "--data", colours)
    assert_told(result, "the model is of images [1, 16, 16], got colours with [3, 16, 16]")


def test_training_goes_on_with_its_own_images_only(pnf: Pnf, tiny: Tiny, colours: Path, tmp_path: Path) -> None:
    assert pnf(*tiny(tmp_path / "run", data=colours, limit=30, steps=1)).code == 0
    np.savez(colours, train=np.zeros((40, 3, 16, 16), np.uint8))
    assert_told(pnf("train", "--resume", tmp_path / "run"), "was trained on other images than those in")


@pytest.mark.parametrize("shape", [(5, 5), (16, 8), (12, 12), (8, 4)])
def test_an_image_of_a_size_between_the_stages(
    pnf: Pnf, progressive: Path, picture: Picture, shape: tuple[int, int]
) -> None:
    result = pnf("upscale", progressive, picture("odd.png", *shape))
    message = (
        f"odd.png has {shape[0]} x {shape[1]} pixels (height x width); the flow starts from 8 x 8, 8 x 16, 16 x 16"
    )
    assert_told(result, message)


# Pillow would pass PostScript to Ghostscript, which runs it.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half", POSTSCRIPT])
@pytest.mark.parametrize("command", ["upscale", "project"])
def test_a_file_that_is_no_image(pnf: Pnf, progressive: Path, tmp_path: Path, command: str, content: bytes) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    assert_told(pnf(command, progressive, path), "notes.png: wanted an image, got a file that Pillow refuses (")


def test_an_image_that_is_cut_short(pnf: Pnf, progressive: Path, picture: Picture) -> None:
    path = picture("photo.png", 64, 64)
    path.write_bytes(path.read_bytes()[:2000])
    assert_told(pnf("upscale", progressive, path), "photo.png: wanted an image, got a file that Pillow refuses (")


def test_a_run_that_is_not_finished(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pnf(*tiny(run, steps=1), "--stages", "f0").code == 0
    for command in ("evaluate", "sample", "upscale", "project"):
        assert_told(pnf(command, run), f"the training in {run} is not finished; go on with: pnf train --resume {run}")


def test_a_flow_of_one_stage_has_nothing_to_grow_from(pnf: Pnf, tiny: Tiny, picture: Picture, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pnf(*tiny(run, levels=0, steps=1)).code == 0
    for source in ([], ["--sampled"], [picture("photo.png", 16, 16)]):
        assert_told(pnf("upscale", run, *source), f"the flow in {run} has one stage, and no lower resolution to start")
    assert pnf("project", run).code == 0


def test_a_run_without_logs(pnf: Pnf, progressive: Path) -> None:
    shutil.rmtree(progressive / "logs")
    assert_told(pnf("curves", progressive), "has no logs yet: is it training?")


def test_a_folder_that_is_taken(pnf: Pnf, tiny: Tiny, demo: Path) -> None:
    run = demo / "progressive-bounded"
    assert_told(pnf(*tiny(run)), f"holds this run already: go on with --resume {run}, or choose another --out")
    assert_told(pnf(*tiny(run, lr=0.5)), "holds a run with other settings: choose another --out")


@pytest.mark.parametrize("path", ["run.json", "data.json", "checkpoints/f1x.ckpt"])
def test_a_damaged_file_of_a_run(pnf: Pnf, progressive: Path, path: str) -> None:
    (progressive / path).write_bytes((progressive / path).read_bytes()[:20])
    assert_told(pnf("train", "--resume", progressive, "--device", "cpu"), f"{progressive / path} is damaged")


@pytest.mark.parametrize("path", ["model/model.safetensors", "model/config.json"])
def test_a_damaged_model(pnf: Pnf, progressive: Path, path: str) -> None:
    (progressive / path).write_bytes((progressive / path).read_bytes()[:20])
    assert_told(pnf("sample", progressive), f"from_pretrained: {progressive / path} is no ")


def test_a_file_where_a_folder_should_be(pnf: Pnf, tiny: Tiny, progressive: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_told(pnf(*tiny(tmp_path / "taken")), "taken is not a folder: choose another --out")
    assert_told(pnf("evaluate", progressive, "--limit", 5, "--out", tmp_path / "taken"), "taken: File exists")
    assert_told(pnf("sample", progressive, "-n", 1, "--out", tmp_path / "taken/x.png"), "taken: ")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space and try again (a run's last checkpoints are"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to"),
        (errno.EACCES, "Permission denied; choose a folder that you may write to"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_takes_no_more(
    pnf: Pnf, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).suffix == ".ckpt":
            raise OSError(number, os.strerror(number), str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert_told(pnf(*tiny(tmp_path / "run")), f"f0.ckpt: {message}")
    assert pnf("train", "--resume", tmp_path / "run", "--device", "cpu").code == 0


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["train", "demo", "--out", "{}"], "--out"),
        (["train", "demo", "--out={}"], "--out"),
        (["train", "demo", "--data", "{}"], "--data"),
        (["train", "--resume", "{}"], "--resume"),
        (["train", "{}"], "an argument"),
        (["join", "{}", "--out", "x"], "an argument"),
        (["join", "x", "y", "--out", "{}"], "--out"),
        (["evaluate", "x", "{}"], "an argument"),
        (["evaluate", "x", "--data={}"], "--data"),
        (["sample", "{}"], "an argument"),
        (["sample", "x", "--out", "{}"], "--out"),
        (["upscale", "x", "{}"], "an argument"),
        (["upscale", "x", "--sampled", "--out", "{}"], "--out"),
        (["project", "x", "y", "{}"], "an argument"),
        (["curves", "x", "--out={}"], "--out"),
        (["check", "{}"], "an argument"),
        (["anomaly", "x", "{}"], "an argument"),
        (["quality", "{}"], "an argument"),
        (["reproduce", "table1", "--data", "{}", "--out", "x"], "--data"),
        (["reproduce", "scales", "--data", "x", "--out", "{}"], "--out"),
    ],
)
def test_an_empty_value(
    pnf: Pnf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], name: str, empty: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pnf(*(arg.format(empty) for arg in args))
    assert_told(result, f"{name} is empty: wanted a value (is a variable of the shell not set?)")
    assert not list(tmp_path.iterdir())


def test_upscale_replaces_no_image_that_it_reads(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    low, other = picture("low.png", 8, 8), picture("low-t0-1.png", 16, 16)
    before = other.read_bytes()
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    for files, out in (([low, other], tmp_path), ([linked / low.name, linked / other.name], tmp_path)):
        result = pnf("upscale", demo, *files, "--out", out)
        assert_told(result, f"{other} is one of the files to read, and would be replaced; choose another --out")
    assert other.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {low.name, other.name, "linked"}
    assert pnf("upscale", demo, low, other, "--out", tmp_path / "out").code == 0


def test_project_replaces_no_image_that_it_reads(pnf: Pnf, demo: Path, picture: Picture) -> None:
    photo = picture("photo.png", 16, 16)
    before = photo.read_bytes()
    assert_told(pnf("project", demo, photo, "--out", photo), f"{photo} is one of the files to read, and would be")
    assert photo.read_bytes() == before


def test_one_bad_image_among_several(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [picture("good.png", 16, 16), tmp_path / "bad.png"]
    assert_told(pnf("upscale", demo, *files, "--out", tmp_path / "out"), "bad.png: wanted an image")
    assert not (tmp_path / "out").exists()


def test_a_temperature_that_is_given_twice(pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path) -> None:
    twice = ["--temperature", "0.7", "--temperature", "0.70"]
    result = pnf("upscale", demo, picture("low.png", 8, 8), *twice, "--out", tmp_path / "out")
    assert_told(result, f"two of the pictures would be {tmp_path / 'out/low-t0.7-1.png'}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["upscale", "{demo}", "{image}", "--out", "{out}"], "-t0-1.png"),
        (["sample", "{demo}/realnvp", "--out", "{out}/{long}.png"], ".png"),
        (["evaluate", "{demo}", "--out", "{out}/{long}"], ""),
        (["quality", "{demo}", "--out", "{out}/{long}"], ""),
        (["anomaly", "{demo}/realnvp", "x", "--out", "{out}/{long}"], ""),
        (["project", "{demo}", "--out", "{out}/{long}.png"], ".png"),
        (["curves", "{demo}", "--out", "{out}/{long}.png"], ".png"),
    ],
)
def test_a_name_that_is_too_long(
    pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path, args: list[str], name: str
) -> None:
    image = picture("x" * 250 + ".png", 8, 8)
    long = "x" * (250 if args[0] == "upscale" else 256)
    result = pnf(*(arg.format(demo=demo, image=image, out=tmp_path / "out", long=long) for arg in args))
    assert_told(result, f"{tmp_path / 'out' / long}{name}")
    assert "File name too long" in result.err
    assert not (tmp_path / "out").exists()


def test_a_folder_where_a_picture_should_be(pnf: Pnf, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    assert_told(pnf("sample", demo / "realnvp", "--out", tmp_path / "x.png"), "x.png is a folder, and no picture")


def test_where_the_disk_is_full_the_figures_are_still_shown(
    pnf: Pnf, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    result = pnf("evaluate", demo, "--limit", 10, "--out", tmp_path)
    assert_told(result, f"{tmp_path / 'metrics.json'}: No space left on device")
    assert "Held-out log-likelihood" in result.out


def test_damaged_logs(pnf: Pnf, progressive: Path) -> None:
    path = progressive / "logs/version_0/metrics.csv"
    path.write_bytes(b"\xff" + path.read_bytes())
    assert_told(pnf("curves", progressive), f"{path} is damaged; restore it, or remove it")


@pytest.mark.parametrize("name", ["line\nbreak", "caf\udce9", "\x1b[31mred", "$x^$", "[/bold] :dog:"])
def test_names_that_cannot_be_printed(pnf: Pnf, progressive: Path, picture: Picture, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    run, shown = progressive.rename(tmp_path / name), f"{tmp_path}/{printable(name)}"
    for args, written in (
        (["sample", run, "-n", 1], ["samples.png"]),
        (["evaluate", run, "--limit", 5], ["metrics.json", "bits.png"]),
        (["curves", run], ["curves.png"]),
    ):
        result = pnf(*args)
        assert result.code == 0, result.err
        assert result.out.splitlines()[-len(written) :] == [f"Written: {shown}/{file}" for file in written]
    low = picture(f"{name.replace('/', '')}.png", 8, 8)
    assert pnf("upscale", run, low, "--out", tmp_path / "out").code == 0
    result = pnf("upscale", run, tmp_path / name / "missing.png")
    assert_told(result, f"pnf: {shown}/missing.png: there is no such file")
    assert_told(pnf("evaluate", tmp_path / name / "missing"), f"pnf: {shown}/missing holds no run")
    assert_told(pnf("train", "--resume", tmp_path / name / "missing"), f"pnf: {shown}/missing holds no run")
    assert_told(pnf("train", name), f"pnf: there is no preset {name!r}")


def test_training_in_a_folder_that_is_no_utf_8(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "caf\udce9"
    result = pnf(*tiny(run, steps=2))
    assert result.code == 0, result.err
    assert result.out == f"Trained: {tmp_path}/caf\\xe9\n"
    assert pnf("train", "--resume", run, "--device", "cpu").code == 0
    # TensorBoard cannot write there.
    assert {path.name for path in run.iterdir()} >= {"run.json", "logs", "checkpoints", "model"}
    assert not (run / "tensorboard").exists()


def test_foreign_images_of_another_shape_are_told_before_the_evaluation(
    pnf: Pnf, progressive: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pnf.evaluation.anomaly.stage_log_probs")
    result = pnf("anomaly", progressive, colours)
    assert_told(result, "pnf: the model is of images [1, 16, 16], got colours with [3, 16, 16]")
