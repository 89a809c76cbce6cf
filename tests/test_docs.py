"""The documents: their links and paths lead somewhere, their code runs, and they know the whole interface."""

import json
import re
from pathlib import Path

import pytest
import torch

import pnf
from pnf import ops
from pnf.cli.app import _COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "benchmarks/**/*.md", "pnf/**/*.md")
    for page in ROOT.glob(pattern)
)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def code(page: Path, language: str) -> list[str]:
    """The blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        target, _, anchor = "".join(link).partition("#")
        if "://" in target:
            continue
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@every_page
def test_paths_of_the_repository_exist(page: Path) -> None:
    paths = re.findall(
        r"\b(?:tests|benchmarks|docs|pnf|kernels|csrc|tools)(?:/\w+)+\.(?:py|md|h|cpp|cu|sh)\b", page.read_text()
    )
    assert not {path for path in paths if not (ROOT / path).is_file()}


def test_the_code_of_the_readme_runs() -> None:
    (block,) = code(ROOT / "README.md", "python")
    names: dict[str, torch.Tensor] = {}
    exec(block, names)
    assert names["samples"].shape == names["grown"].shape == (64, 1, 32, 32)
    low, high = names["samples"].aminmax()
    assert 0 <= low <= high <= 1


def test_the_page_of_the_interface_names_all_of_it() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    own = {name for kind in pnf.ProgressiveFlow.__mro__ if kind.__module__.startswith("pnf.") for name in vars(kind)}
    public = {name for name in own if not name.startswith("_")} - {"ops", "flow_class"}
    assert {name for name in public | set(ops.__all__) if f"`{name}" not in page} == set()


def test_the_reference_has_every_module_and_command() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst"))
    entries = [f"automodule:: pnf.reference.{path.stem}" for path in ROOT.glob("pnf/ops/[!_]*.py")]
    entries += [f"automodule:: pnf.bridges.{path.stem}" for path in ROOT.glob("pnf/bridges/[!_]*.py")]
    entries += [f"command-help:: {name}" for name in _COMMANDS]
    assert [entry for entry in entries if f"{entry}\n" not in pages] == []


def test_documents_agree_on_the_version() -> None:
    assert f"\nversion: {pnf.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{pnf.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()
