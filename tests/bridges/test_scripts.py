"""The scripts in the folder of examples run, each where its library is installed."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
PRINTS = {
    "freia_inn": ("FrEIA", "training step: FrEIA"),
    "nflows_multiscale": ("nflows", "bits/dim held out"),
    "normflows_glow": ("normflows", "log_prob of both differs by"),
    "pyro_inference": ("pyro", "evidence lower bound"),
    "sbi_posterior": ("sbi", "KL divergence from the exact posterior"),
    "zuko_flow": ("zuko", "nats held out"),
}


def test_every_script_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PRINTS)


# The libraries may warn of what is theirs.
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", PRINTS)
def test_a_script_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    library, line = PRINTS[name]
    pytest.importorskip(library)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert line in capsys.readouterr().out
