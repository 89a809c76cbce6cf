"""The code of docs/ecosystem.md runs, each block where its library is installed."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text()
BLOCKS = dict(re.findall(r"^## ([\w.]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_every_library_has_a_block() -> None:
    assert set(BLOCKS) == {"torch.distributions", "Pyro", "zuko", "nflows", "normflows", "FrEIA", "sbi"}


@pytest.mark.filterwarnings("default")  # the libraries may warn of what is theirs
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("library", BLOCKS)
def test_a_block_runs(library: str) -> None:
    pytest.importorskip(library.lower() if library == "Pyro" else library)
    exec(BLOCKS[library], {})
