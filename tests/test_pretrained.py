"""The models that come with pnf: the claims of their cards, and their use."""

import re
from pathlib import Path

import pytest
import torch

from pnf import fast, pretrained, reference
from pnf.data import BUNDLED, load
from pnf.evaluation import evaluate, load_run
from pnf.training import RunConfig

MOST_BYTES = 10_000_000

each_model = pytest.mark.parametrize("name", pretrained.names())
of_clothes = pytest.mark.parametrize("name", [name for name in pretrained.names() if "fashion" in name])
with_labels = pytest.mark.parametrize("name", [name for name in pretrained.names() if name.endswith("-labels")])


def test_there_are_some() -> None:
    assert pretrained.names() == ["fashion-mnist", "fashion-mnist-labels", "mnist-28", "mnist-labels", "photos64"]
    with pytest.raises(ValueError, match=r"^there is no pretrained model 'x'; there are fashion-mnist, fashion-mnist"):
        pretrained.folder("x")


@each_model
def test_is_small_and_described(name: str) -> None:
    files = {str(path.relative_to(pretrained.folder(name))) for path in pretrained.folder(name).rglob("*.*")}
    assert files == {"README.md", "run.json", "model/config.json", "model/model.safetensors"}
    assert sum((pretrained.folder(name) / path).stat().st_size for path in files) < MOST_BYTES
    card = (pretrained.folder(name) / "README.md").read_text()
    for what in ("Data", "Licence", "Held-out", "How it was made"):
        assert f"## {what}" in card


@of_clothes
@pytest.mark.parametrize("limit", [50, pytest.param(None, marks=pytest.mark.slow)])
def test_is_what_its_card_says(name: str, limit: int | None) -> None:
    """The likelihood of some images is the card's, within four standard errors."""
    config, flow = load_run(pretrained.folder(name))
    card = (pretrained.folder(name) / "README.md").read_text()
    (bits,) = re.findall(r"bundled test images[^|]*\| ([0-9.]+) ", card)
    assert config.data == BUNDLED
    result = evaluate(flow, load("fashion-mini", "test", config.size, limit=limit, labels=config.labelled))
    assert result.bits_per_dim == pytest.approx(float(bits), abs=4 * result.bits_per_dim_error if limit else 2e-3)


@with_labels
def test_draws_the_class_that_it_is_asked_for(name: str) -> None:
    """Bayes' rule finds the class in most samples."""
    classes = RunConfig.load(pretrained.folder(name)).classes
    assert classes is not None
    flow = fast.ProgressiveFlow.from_pretrained(name)
    labels = torch.arange(10).repeat(2)
    with torch.no_grad():
        x = flow.sample(20, labels, temperature=0.8, generator=torch.Generator().manual_seed(0))
        log_probs = torch.stack([flow.log_prob(x, torch.full((20,), c)) for c in range(len(classes))], 1)
    assert (log_probs.argmax(1) == labels).sum() >= 15


@each_model
def test_loads_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fast.ProgressiveFlow.from_pretrained(pretrained.folder(name) / "model").state_dict()
    for kind in (fast, reference):
        found = kind.ProgressiveFlow.from_pretrained(name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())
    monkeypatch.chdir(tmp_path)
    fast.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=4).save_pretrained(name)
    assert fast.ProgressiveFlow.from_pretrained(name).shape == (1, 4, 4), "a folder of that name comes first"
    with pytest.raises(FileNotFoundError, match=rf"is it a folder of save_pretrained\? Models .* pnf: .*{name}"):
        fast.ProgressiveFlow.from_pretrained("nothing")


@each_model
def test_loads_into_both_flows(name: str) -> None:
    model: Path = pretrained.folder(name) / "model"
    with torch.no_grad():
        fast_flow, flow = (kind.ProgressiveFlow.from_pretrained(model) for kind in (fast, reference))
        x = torch.rand(2, *flow.shape)
        labels = torch.tensor([3, 5]) if flow.num_classes else None
        torch.testing.assert_close(fast_flow.log_prob(x, labels), flow.log_prob(x, labels), rtol=1e-5, atol=0)
        samples = fast_flow.sample(2, labels, generator=torch.Generator().manual_seed(0))
    assert samples.min() >= 0
    assert samples.max() <= 1
