"""Commands without a reader, with outputs that cannot be written, and on terminals that only know ASCII."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pnf_process
import pytest
import torch
from rich.console import Console
from rich.table import Table

from pnf.cli import main
from pnf.cli.output import LineConsole, Output, plain
from pnf.data import load
from pnf.files import printable
from pnf.training import preset_config, train
from pnf.training.progress import StepBar

Pnf = Callable[..., Any]

# Code that a process runs before the command, to prepare its streams.
CLOSED_PIPE = "r, w = os.pipe(); os.close(r); os.dup2(w, {}); os.close(w)"
DEAD_TERMINAL = "m, s = os.openpty(); os.dup2(s, 1); os.dup2(s, 2); os.close(s); "
FULL = "f = os.open('/dev/full', os.O_WRONLY); os.dup2(f, {})"
ASCII = "sys.stdout.reconfigure(encoding='ascii'); sys.stderr.reconfigure(encoding='ascii', errors='strict')"

PIPES = {
    "no reader": (f"{CLOSED_PIPE.format(1)}; os.dup2(1, 2)", 141),
    "no reader of the results": (CLOSED_PIPE.format(1), 141),
    "no reader of the progress": (CLOSED_PIPE.format(2), 0),
    "dead terminal": (f"{DEAD_TERMINAL}os.close(m)", 0),
    "dying terminal": (f"{DEAD_TERMINAL}import threading; threading.Timer(0.1, os.close, [m]).start()", 0),
    "closed": ("os.close(1); sys.stdout = None", 0),
    "closed, both": ("os.close(1); os.close(2); sys.stdout = sys.stderr = None", 0),
    "full disk": (FULL.format(1), 1),
    "full disk, progress": (FULL.format(2), 0),
    "ASCII": (ASCII, 0),
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pnf_process.Pnf]:
    with pnf_process.Pnf(tmp_path_factory.mktemp("process")) as server:
        yield server


@pytest.mark.parametrize(("before", "code"), PIPES.values(), ids=PIPES)
def test_training_goes_on(process: pnf_process.Pnf, tmp_path: Path, before: str, code: int) -> None:
    process.start(*pnf_process.train_args(tmp_path / "run", steps=20), before=before)
    assert process.wait() == code
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"f0.ckpt", "f1x.ckpt", "f1y.ckpt"}
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert "Traceback" not in process.output()


@pytest.mark.parametrize(("before", "code"), PIPES.values(), ids=PIPES)
def test_results_are_written(process: pnf_process.Pnf, demo: Path, tmp_path: Path, before: str, code: int) -> None:
    run, out = str(demo / "progressive-bounded"), tmp_path
    for args, written in (
        (["evaluate", run, "--limit", "20", "--out", f"{out}/e"], ["e/metrics.json", "e/bits.png"]),
        (["quality", run, "-n", "2", "--draws", "1", "--out", f"{out}/q"], ["q/quality.json", "q/quality.png"]),
        (["sample", run, "-n", "2", "--out", f"{out}/s.png"], ["s.png"]),
    ):
        process.start(*args, "--device", "cpu", before=before)
        assert process.wait() == code
        assert all((out / name).is_file() for name in written)
        assert "Traceback" not in process.output()


def test_a_full_disk_behind_standard_output_is_told(process: pnf_process.Pnf) -> None:
    process.start("--version", before=FULL.format(1))
    assert process.wait() == 1
    assert process.output() == "pnf: standard output: No space left on device\n"


@pytest.mark.parametrize(
    "args", [["--help"], ["train", "--help"], ["doctor"], ["evaluate", "café"], ["évaluate"], ["train", "--größe", "1"]]
)
def test_a_terminal_of_ascii(process: pnf_process.Pnf, args: list[str]) -> None:
    process.start(*args, before=ASCII)
    assert process.wait() == {"evaluate": 1, "évaluate": 2}.get(args[0], 2 if "--größe" in args else 0)
    assert process.output().isascii()
    assert "Traceback" not in process.output()
    assert "Error" not in process.output() or process.output().startswith("Usage: ")


def test_closed_standard_streams_are_no_files_of_ours(tmp_path: Path) -> None:
    # The first file that a process opens gets the number of a closed stream, and then everything that is printed.
    code = (
        "import os; from pnf.cli import _fill_standard_streams; _fill_standard_streams(); "
        "print(os.open('x', os.O_CREAT), file=open('y', 'w'))"
    )
    shell = f'exec "{sys.executable}" -c "{code}" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", shell], cwd=tmp_path, check=True)
    assert int((tmp_path / "y").read_text()) > 2


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves(process: pnf_process.Pnf, tmp_path: Path, number: int) -> None:
    checkpoint = tmp_path / "run/checkpoints/f0.ckpt"
    process.start(*pnf_process.train_args(tmp_path / "run", steps=10**6))
    wait_for(checkpoint)
    process.signal(number)
    assert process.wait() == 128 + number
    assert "stopped and saved at step" in process.output()


def test_a_terminal_that_is_closed_hangs_up_more_than_once(process: pnf_process.Pnf, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/f0.ckpt"
    closing = (
        f"{DEAD_TERMINAL}import signal, threading, time\n"
        "def close(*_):\n os.close(m)\n"
        " for _ in range(20): os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.001)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=close).start())"
    )
    process.start(*pnf_process.train_args(tmp_path / "run", steps=10**6), before=closing)
    wait_for(checkpoint)
    step = torch.load(checkpoint, weights_only=True)["step"]
    process.signal(signal.SIGUSR1)
    # A signal after everything is saved may end the process directly.
    assert process.wait() in (128 + signal.SIGHUP, -signal.SIGHUP)
    assert torch.load(checkpoint, weights_only=True)["step"] > step


def test_nohup(process: pnf_process.Pnf, tmp_path: Path) -> None:
    ignoring = (
        "import signal, threading; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "for i in range(5): threading.Timer(i / 5, os.kill, [os.getpid(), signal.SIGHUP]).start()"
    )
    process.start(*pnf_process.train_args(tmp_path / "run", steps=30), before=ignoring)
    assert process.wait() == 0


class Broken(io.StringIO):
    """A stream that fails."""

    def __init__(self, error: BaseException, *, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, _: str) -> int:
        raise self.error

    def isatty(self) -> bool:
        return self.terminal


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(5, "Input/output error"),
    UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range(128)"),
    ValueError("I/O operation on closed file"),
    SystemExit(1),
]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_bar_that_breaks_is_left_out(tmp_path: Path, error: BaseException, terminal: bool) -> None:
    config = preset_config(
        "demo", size=8, limit=60, levels=0, hidden=4, blocks=1, num_couplings=1, steps=4, batch_size=8, warmup=1,
        validation=10, validate_every=2, log_every=1,
    )  # fmt: skip
    console = Console(file=Broken(error, terminal=terminal), force_terminal=terminal)
    assert train(config, load("fashion-mini", "train", 8, limit=60), tmp_path, accelerator="cpu", console=console) == []
    assert (tmp_path / "model/model.safetensors").is_file()


def test_ctrl_c_is_no_broken_bar() -> None:
    bar = StepBar("f0", 2, Console(file=Broken(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        bar.report(1, 0.0)


def test_a_pipe_is_no_terminal_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not LineConsole(file=io.StringIO()).is_terminal


def test_an_output_takes_everything() -> None:
    for stream in (None, *(Broken(error) for error in ERRORS[:4])):
        output = Output(stream)
        assert output.write("some") == 4
        output.flush()
        assert not output.isatty()
        print("more", file=output)
        assert (output.lost is None) == (stream is None)
    closed = io.StringIO()
    closed.close()
    print("some", file=Output(closed))


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("1 ± 2 → 3 … ×", "ascii", "1 +- 2 -> 3 ... x"),
        ("━╭", "ascii", "??"),
        ("1 ± 2 → 3", "latin-1", "1 ± 2 -> 3"),
        ("1 ± 2 → 3 é", "utf-8", "1 ± 2 → 3 é"),
        ("caf\udce9 日", "utf-8", "caf\\xe9 日"),
        ("café 日", "ascii", "caf\\xe9 \\u65e5"),
    ],
)
def test_plain(text: str, encoding: str, expected: str) -> None:
    assert plain(text, encoding) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\r\tc\x1b[31m\x00", "a\\nb\\r\\tc\\x1b[31m\\x00"),
        ("caf\udce9", "caf\\xe9"),
        ("a\u2028b\u202ec\x85", "a\\u2028b\\u202ec\\x85"),
        ("café 日本 \\n", "café 日本 \\n"),
        (Path("a\nb"), "a\\nb"),
    ],
)
def test_printable(text: object, expected: str) -> None:
    assert printable(text) == expected


def test_tables_of_ascii_are_straight() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    table = Table("model", "bits", title="mean ± error")
    table.add_row("a\nb :dog: [b]", "1.0 ± 0.1")
    table.add_row("plain", "1")
    LineConsole(file=stream, width=60).print(table)
    lines = stream.buffer.getvalue().decode("ascii").splitlines()
    assert "mean +- error" in lines[0]
    assert "a\\nb :dog: [b]" in lines[4]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        ["-h"],
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["train", ""],
        ["evaluate", "x", "--out="],
    ],
)
def test_what_needs_no_torch_does_not_import_it(args: list[str]) -> None:
    code = (
        "import sys\nfrom pnf.cli import main\n"
        "try: main()\n"
        "except SystemExit: sys.exit(str({'torch', 'lightning', 'numpy', 'matplotlib'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait", [0.2, pytest.param(0.6, marks=pytest.mark.slow), 1.2])
def test_a_signal_during_the_imports(number: int, wait: float, tmp_path: Path) -> None:
    # Under nohup or in the background the signals would be ignored.
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pnf.cli import main; print(flush=True); main()"
    )
    # A command that does not end before the signal comes.
    command = ["sample", "--pretrained", "fashion-mnist", "-n", "50000", "--out", str(tmp_path / "samples.npz")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(wait)
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + number, "pnf: stopped\n")


def test_signals_that_are_ignored_stay_so() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pnf.cli import stopping_at_once\n"
        "with stopping_at_once(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with patch.object(sys, "argv", ["pnf", "--version"]), pytest.raises(SystemExit):
        main()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out.startswith("pnf ")
