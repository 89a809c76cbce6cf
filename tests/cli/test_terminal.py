"""What people see in a terminal: examples, bars, tables, colours, what to do next. And what scripts read."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from rich.table import Table

from pnf.cli.app import _COMMANDS, _load, app
from pnf.cli.output import LineConsole
from pnf.data import load
from pnf.training import preset_config, progress, train
from pnf.training.progress import StepBar, tracker

Pnf = Callable[..., Any]
Picture = Callable[..., Path]

WIDTHS = [20, 40, 80, 200]


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its name, and every group."""
    yield (), typer.main.get_command(app)
    for name in _COMMANDS:
        command = _load(name)
        yield (name,), command
        for sub, each in getattr(command, "commands", {}).items():
            yield (name, sub), each


def examples() -> list[tuple[str, ...]]:
    """The words of every example in a command's help."""
    found: list[tuple[str, ...]] = []
    for name, command in commands():
        lines = re.findall("Example: pnf (.*)", f"{command.help}\n{command.epilog}")
        assert lines, f"pnf {' '.join(name)} has no example"
        found += [tuple(shlex.split(line)) for line in lines]
        assert all(words[: len(name)] == name for words in found[-len(lines) :])
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_can_be_parsed(words: tuple[str, ...]) -> None:
    command, context = typer.main.get_command(app), None
    names, rest = [], list(words)
    while hasattr(command, "commands"):
        context = command.make_context(command.name, list(rest), parent=context)
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
    with command.make_context(names[-1], rest, parent=context) as parsed:
        assert not parsed.args


# The others train, need runs of other data, or wait for Ctrl-C.
RUNNABLE = [
    words
    for words in examples()
    if words[0] not in ("train", "join", "reproduce", "app") and "runs/mnist-dense/labels" not in words
]


FOLLOWING = {
    "evaluate": "curves runs/demo",
    "sample": "upscale MODEL --sampled",
    "upscale": "quality MODEL",
    "project": "quality MODEL",
    "curves": "evaluate MODEL",
    "check": "evaluate MODEL",
    "quality": "upscale MODEL --temperature 0.7 --draws 3",
}
"""What each command says to do next."""


@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_an_example_runs(
    words: tuple[str, ...], pnf: Pnf, demo: Path, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    for name, run in (("pnf", "progressive-bounded"), ("realnvp", "realnvp")):
        Path("runs/demo", name).symlink_to(demo / run)
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    picture("photo.png", 20, 20)
    Path("data/MNIST/test").mkdir(parents=True)
    for i in range(4):
        picture(f"data/MNIST/test/{i}.png", 16, 16)
    out = {"sample": "s.png", "project": "p.png", "curves": "c.png", "doctor": "", "check": ""}.get(words[0], "out")
    result = pnf(*words, *(["--out", out] if out else []))
    assert result.code == 0, result.err
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    assert ("Written: " in result.out) == bool(out)
    following = FOLLOWING.get(words[0])
    if following is None:
        assert "Next" not in result.err
    else:
        model = " ".join(words[1:3]) if words[1] == "--pretrained" else words[1]
        assert result.err == f"Next: pnf {following.replace('MODEL', model)}\n"


def test_help_keeps_the_names_of_options_in_a_narrow_terminal() -> None:
    code = "from pnf.cli import main; main()"
    for width in (20, 40):
        result = subprocess.run(
            [sys.executable, "-c", code, "--help"],
            env=os.environ | {"COLUMNS": str(width)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(word in result.stdout for word in ("--version", "--install-completion", "evaluate", "Example: pnf"))


def in_a_terminal(*args: str, **env: str) -> str:
    """What a command writes into a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from pnf.cli import main; main()", *args]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | env)
    os.close(theirs)
    written = b""
    while True:
        try:
            received = os.read(ours, 4096)
        except OSError:
            break
        if not received:
            break
        written += received
    os.close(ours)
    process.wait()
    return written.decode()


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


COLOUR = re.compile("\x1b\\[[0-9;]*(3[0-7]|38;|9[0-7])")


def test_no_color_is_honoured() -> None:
    terminal = {"TERM": "xterm-256color", "COLUMNS": "80"}
    assert COLOUR.search(in_a_terminal("--help", **terminal))
    assert not COLOUR.search(in_a_terminal("--help", **terminal, NO_COLOR="1"))
    assert not COLOUR.search(in_a_terminal("frobnicate", **terminal, NO_COLOR="1"))


def test_no_color_is_honoured_by_bars_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for on in (True, False):
        if not on:
            monkeypatch.setenv("NO_COLOR", "1")
        console = LineConsole(file=Terminal(), width=80)
        table = Table("check", "measured")
        table.add_row("finite", "1", style="bold red")
        console.show(table)
        with StepBar("f0", 2, console) as bar:
            bar.move(1)
            bar.report(1, 2.0)
        assert bool(COLOUR.search(console.file.getvalue())) == on  # type: ignore[attr-defined]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,]*\.?\d*", text))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_keeps_its_numbers(width: int) -> None:
    console = LineConsole(file=io.StringIO(), width=width)
    table = Table(title="Held-out log-likelihood, mean ± standard error over images")
    table.add_column("model")
    cells = {"nats": "12,759.0 ± 110.0", "bits/dim": "4.113 ± 0.155", "calibration error": "0.074", "steps": "100,000"}
    for header in cells:
        table.add_column(header, justify="right")
    for name in ("fashion-mnist-dense/bounded", "realnvp"):
        table.add_row(name, *cells.values())
    console.show(table)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in written.splitlines()]
    assert max(map(len, lines)) <= width
    assert "…" not in written
    for cell in cells.values():
        assert sum(cell in line for line in lines) == 2
    # One row below the other, or side by side.
    assert any("nats" in line and "bits/dim" in line for line in lines) == (width >= 80)
    if width < 80:
        assert all(header in written for header in cells)


@pytest.mark.parametrize("width", WIDTHS)
def test_evaluate_keeps_its_numbers(
    pnf: Pnf, demo: Path, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pnf.cli import common

    monkeypatch.setattr(common.console, "_width", width)
    monkeypatch.setattr(common.console, "_height", 25)
    result = pnf("evaluate", demo, "--limit", 20, "--out", tmp_path)
    assert result.code == 0, result.err
    for model in json.loads((tmp_path / "metrics.json").read_text())["models"].values():
        found = model["result"]
        assert f"{found['nats']:,.1f} ± {found['nats_error']:.1f}" in result.out
        assert f"{found['bits_per_dim']:.3f} ± {found['bits_per_dim_error']:.3f}" in result.out
        assert all(f"{bits:.3f}" in result.out for bits in found["stage_bits_per_dim"].values())


def terminal(width: int) -> LineConsole:
    return LineConsole(file=Terminal(), force_terminal=True, width=width, color_system=None)


def frames(console: Console) -> list[str]:
    """The lines that a console has drawn, one after the other."""
    return re.split("[\r\n]+", re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_bar_of_long_work(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    console = terminal(width)
    seen = []
    for item in tracker("Evaluating fashion-mnist-dense/bounded [b]", console)([1, 2, 3, 4]):
        seen.append(item)
        time.sleep(0.15)
    assert seen == [1, 2, 3, 4]
    drawn = frames(console)
    assert max(map(len, drawn)) <= width
    assert any(" 50%" in line or " 75%" in line for line in drawn)
    assert any(line.startswith("Evalu") for line in drawn)


def test_short_work_shows_no_bar() -> None:
    console = terminal(80)
    assert list(tracker("Reading", console)(range(3))) == [0, 1, 2]
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_pipe_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    console, items = Console(file=io.StringIO(), width=80), [1, 2]
    for each in (console, None, Console(quiet=True, force_terminal=True)):
        assert tracker("Reading", each)(items) is items
    with StepBar("f0 f1x", 4, console) as bar:
        bar.move(2)
        bar.show(2.0, 100.0)
        bar.report(2, 2.0)
    assert console.file.getvalue() == "step 2: held-out 2.000 nats/dim, 5.115 bits/dim\n"  # type: ignore[attr-defined]


def test_a_bar_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    console = terminal(80)

    def work() -> None:
        with closing(tracker("Reading", console)([1, 2])) as items:  # type: ignore[type-var]
            for _ in items:
                time.sleep(0.1)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_in_a_terminal_shows_held_out_bits_as_they_fall(width: int) -> None:
    console = terminal(width)
    with StepBar("f0 f1x f1y f2x f2y", 10000, console) as bar:
        for step, nats in ((5000, 2.0), (10000, 2.5)):
            bar.show(nats - 0.1, 12345.0)
            bar.move(step)
            bar.report(step, nats)
    drawn = frames(console)
    assert "step 5,000: held-out 2.000 nats/dim, 5.115 bits/dim" in drawn
    assert "step 10,000: held-out 2.500 nats/dim, 4.393 bits/dim" in drawn
    last = drawn[-2] if not drawn[-1] else drawn[-1]
    assert {"10000", "4.538"} <= numbers(last)
    assert len(last) <= width
    units = "bits/dim" in last, "12,345 images/s" in last, "nats/dim" in last
    assert units == (width >= 34, width >= 60, width >= 100)


def test_a_terminal_does_not_change_a_run(tmp_path: Path) -> None:
    config = preset_config(
        "demo", size=8, limit=60, levels=1, hidden=4, blocks=1, num_couplings=1, steps=6, batch_size=8, warmup=1,
        validation=10, validate_every=2, log_every=1, checkpoint_every=3,
    )  # fmt: skip
    images = load("fashion-mini", "train", 8, limit=60)
    for name, console in (("terminal", terminal(80)), ("none", None)):
        assert train(config, images, tmp_path / name, accelerator="cpu", console=console) == []
    for file in ("model/model.safetensors", "checkpoints/f0.ckpt", "checkpoints/f1y.ckpt"):
        assert (tmp_path / "terminal" / file).read_bytes() == (tmp_path / "none" / file).read_bytes()


def test_json_is_what_is_written(pnf: Pnf, demo: Path, tmp_path: Path, colours: Path) -> None:
    run = demo / "progressive-bounded"
    np.savez(tmp_path / "grey.npz", test=np.load(colours)["test"][:, :1])
    for args, name in (
        (["evaluate", demo, "--limit", 10], "metrics.json"),
        (["quality", run, "-n", 3, "--draws", 1], "quality.json"),
        (["anomaly", run, tmp_path / "grey.npz", "--limit", 10], "anomaly.json"),
    ):
        result = pnf(*args, "--out", tmp_path, "--json")
        assert result.code == 0, result.err
        assert result.out == (tmp_path / name).read_text()
        assert f"Written: {tmp_path / name}" in result.err


def test_json_of_check_and_doctor(pnf: Pnf, demo: Path) -> None:
    run = demo / "progressive-bounded"
    result = pnf("check", run, "-n", 2, "--json")
    assert result.code == 0, result.err
    checks = json.loads(result.out)["checks"]
    assert checks[0] == {"name": "likelihoods of the images: not finite", "measured": 0, "bound": 0, "passed": True}
    assert all(check["passed"] for check in checks)
    assert f"{run}: every check holds" in result.err
    found = json.loads(pnf("doctor", "--json").out)
    assert found["rich"]
    assert {"family": "haar", "device": "cpu"}.items() <= next(
        op for op in found["ops"] if op["family"] == "haar" and op["device"] == "cpu"
    ).items()


def test_what_comes_next_can_be_pasted(pnf: Pnf, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    size = ["--size", 8, "--levels", 0, "--hidden", 4, "--steps", 1, "--validation", 0, "--limit", 40]
    result = pnf("train", "demo", *size, "--num-couplings", 1, "--out", folder, "--device", "cpu")
    assert result.code == 0, result.err
    following = result.err.splitlines()[-1].removeprefix("Next: pnf ")
    assert shlex.split(following) == ["evaluate", str(folder)]
