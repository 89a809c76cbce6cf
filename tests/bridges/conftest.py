"""Fixtures of the tests of other libraries."""

from pathlib import Path

import pytest
from bridge_tests import flow as flow
from tensors import one_thread_and_one_seed as one_thread_and_one_seed


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, since sbi writes its logs there."""
    monkeypatch.chdir(tmp_path)
