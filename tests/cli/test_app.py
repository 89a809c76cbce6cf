"""``pnf app``: how it starts. tests/app has what it answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

Pnf = Callable[..., Any]


def test_without_gradio_it_says_how_to_get_it(pnf: Pnf, progressive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pnf.app.server", "pnf.app.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = pnf("app", progressive)
    assert (result.code, result.out) == (1, "")
    assert result.err == "pnf: pnf app needs gradio; install it with: pip install 'pnf[app]'\n"


def test_what_to_show_must_be_clear(pnf: Pnf, demo: Path) -> None:
    pytest.importorskip("gradio")
    for args in ((), (demo, "--pretrained", "fashion-mnist")):
        result = pnf("app", *args)
        assert (result.code, result.err) == (1, "pnf: give either the folder of a run or --pretrained\n")
    result = pnf("app", demo / "nothing", demo, "--port", 0)
    assert result.code == 1
    assert "nothing holds no run" in result.err


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command end where it would serve its page."""
    pytest.importorskip("gradio")
    monkeypatch.setattr("pnf.app.server.application", lambda *_: nullcontext())
    monkeypatch.setattr("pnf.app.server.serve", lambda *_: None)


@pytest.mark.usefixtures("unserved")
def test_others_are_let_in_with_a_warning_only(pnf: Pnf, demo: Path) -> None:
    result = pnf("app", demo, "--port", 0, "--host", "0.0.0.0", "--device", "cpu")
    assert result.code == 0, result.err
    assert "Warning: there is no password, and whoever reaches 0.0.0.0 can use this page\n" in result.err
    assert result.out.startswith("The page: http://")
    result = pnf("app", demo, "--port", 0, "--device", "cpu")
    assert result.code == 0, result.err
    assert "Warning" not in result.err
    assert result.out.startswith("The page: http://127.0.0.1:")


@pytest.mark.usefixtures("unserved")
def test_examples_are_draws_if_the_data_is_elsewhere(pnf: Pnf) -> None:
    result = pnf("app", "--pretrained", "mnist-labels", "--port", 0, "--device", "cpu")
    assert result.code == 0, result.err
    assert "The data of mnist-labels is not here: its examples are draws (--data names a data set)\n" in result.err
