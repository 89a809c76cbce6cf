"""Models on the hub, with a small server in its place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import READER, WRITER, Hub, serve
from huggingface_hub import ModelCard, constants

from pnf import fast, reference
from pnf.cli.common import pick_run
from pnf.evaluation import load_run
from pnf.evaluation.pictures import samples
from pnf.hub import Run, is_name, model_card
from pnf.training import RunConfig, RunError
from pnf.training.build import build_flow

# huggingface_hub's upload of large files calls its own library in a way that is going out of use.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

DENSE = {"coupling": "dense", "hidden": 4, "blocks": 1, "num_couplings": 2}
RUN = Path(__file__).parent / "golden" / "0.1.0" / "runs" / "dense"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "home" / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield hub


@pytest.fixture
def flow() -> reference.ProgressiveFlow:
    return reference.ProgressiveFlow((1, 4, 4), 1, **DENSE).eval()


@pytest.fixture
def files(flow: reference.ProgressiveFlow, tmp_path: Path) -> dict[str, bytes]:
    """What a flow's folder holds."""
    flow.save_pretrained(tmp_path / "files")
    return {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", [fast, reference], ids=["fast", "reference"])
def test_what_is_pushed_comes_back(hub: Hub, kind: Any) -> None:
    flow = kind.ProgressiveFlow((1, 4, 4), 1, num_classes=3, **DENSE)
    address = flow.push_to_hub("owner/flow", token=WRITER)
    assert address.startswith(f"{hub.url}/owner/flow/commit/")
    assert hub.files("owner/flow").keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    other = kind.ProgressiveFlow.from_pretrained("owner/flow")
    assert same(flow, other)
    assert not other.training
    realnvp = kind.RealNVP((4,), **DENSE)
    realnvp.push_to_hub("realnvp", private=True, token=WRITER)  # of the owner of the token
    assert hub.repositories["owner/realnvp"].private
    assert b"RealNVP.from_pretrained('owner/realnvp')" in hub.files("owner/realnvp")["README.md"]
    assert same(realnvp, kind.RealNVP.from_pretrained("owner/realnvp", token=READER))


@pytest.mark.usefixtures("hub")
def test_a_revision(flow: reference.ProgressiveFlow) -> None:
    first = flow.push_to_hub("owner/flow", token=WRITER).rpartition("/")[2]
    other, third = (reference.ProgressiveFlow((1, 4, 4), 1, **DENSE) for _ in range(2))
    other.push_to_hub("owner/flow", token=WRITER, revision="new", commit_message="Another one")
    third.push_to_hub("owner/flow", token=WRITER)
    load = reference.ProgressiveFlow.from_pretrained
    assert same(load("owner/flow"), third)
    assert same(load("owner/flow", revision="new"), other)
    assert same(load("owner/flow", revision=first), flow)
    with pytest.raises(FileNotFoundError, match=r"^from_pretrained: the repository owner/flow has no revision v2$"):
        load("owner/flow", revision="v2")


RESULT = {"bits_per_dim": 2.5, "bits_per_dim_error": 0.25, "nats": 1234.5, "images": 100, "stage_nats": [1.0]}


def with_figures(folder: Path, config: RunConfig, result: dict[str, Any] = RESULT, **changes: object) -> Path:
    """A folder of a run with figures."""
    folder.mkdir(exist_ok=True)
    config.save(folder)
    model = {"settings": config.settings(), "data": config.data, "limit": None, "result": result, **changes}
    (folder / "metrics.json").write_text(json.dumps({"models": {"run": model}}))
    return folder


def of_run(config: RunConfig) -> Any:
    return build_flow(config, 1).eval()


def test_a_run_fills_in_the_card(hub: Hub, tmp_path: Path) -> None:
    config = RunConfig.load(RUN)
    flow = of_run(config)
    flow.push_to_hub("owner/flow", run=with_figures(tmp_path / "run", config), token=WRITER)
    found = hub.files("owner/flow")
    card = ModelCard(found["README.md"].decode())
    assert card.data.library_name == "pnf"
    assert card.data.license is None  # of the model, which its owner chooses
    assert "The data set fashion-mini has the licence MIT." in card.text
    assert {"normalizing-flow", "super-resolution"} <= {*card.data.tags}
    (evaluated,) = card.data.eval_results
    assert (evaluated.metric_type, evaluated.metric_value) == ("bits_per_dim", 2.5)
    assert (evaluated.dataset_type, evaluated.task_type) == ("fashion-mini", "unconditional-image-generation")
    for line in (
        "| flow | `ProgressiveFlow`, dense couplings, act normalisation |",
        "| data | 1x4x4 |",
        f"| parameters | {sum(p.numel() for p in flow.parameters()):,} |",
        "| data | fashion-mini |",
        "| steps | 6 |",
        "| bits per dimension | 2.500 ± 0.250 |",
        "| nats | 1,234.5 |",
        "flow = ProgressiveFlow.from_pretrained('owner/flow')",
    ):
        assert line in card.text
    assert json.loads(found["run.json"])["steps"] == 6


def test_commands_take_a_run_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    flow = build_flow(RunConfig.load(RUN), 1)
    flow.push_to_hub("owner/flow", run=RUN, token=WRITER)
    folder, here = pick_run(None, "owner/flow")
    assert here == Path()
    config, found = load_run(folder)
    assert config == RunConfig.load(RUN)
    assert same(found, flow)
    picture = tmp_path / "samples.png"
    assert samples(folder, picture, n=2, device=torch.device("cpu")) == [picture]
    flow.push_to_hub("owner/other", token=WRITER)
    with pytest.raises(
        RunError, match=r"^the repository owner/other has no run\.json, which its owner can add by push"
    ):
        pick_run(None, "owner/other")
    with pytest.raises(RunError, match=rf"no repository of that name on {hub.url} that you may read"):
        pick_run(None, "owner/nothing")


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "/home/somebody/MNIST"},
        {"limit": 10},
        {"settings": RunConfig(steps=7).settings()},
        {"settings": {}},
    ],
    ids=["data", "limit", "settings", "none"],
)
def test_figures_of_other_data_or_of_another_training_are_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = RunConfig.load(RUN)
    assert Run.read(with_figures(tmp_path, config)).result["images"] == 100
    assert Run.read(with_figures(tmp_path, config, limit=config.limit)).result
    assert not Run.read(with_figures(tmp_path, config, **changes)).result


def test_figures_are_found_among_those_of_several_runs(tmp_path: Path) -> None:
    config = RunConfig.load(RUN)
    with_figures(tmp_path, config)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["models"]["other"] = metrics["models"]["run"] | {"settings": RunConfig(steps=7).settings()}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert Run.read(tmp_path).result["bits_per_dim"] == 2.5


def test_the_run_of_another_flow_is_refused(hub: Hub, tmp_path: Path) -> None:
    config = RunConfig.load(RUN)
    for change, message in (
        ({"hidden": 8}, r"hidden is 8 in its run\.json, and 4"),
        ({"size": 8}, r"shape is \[1, 8, 8\] in its run\.json, and \[1, 4, 4\]"),
        ({"classes": ("a", "b")}, r"num_classes is 2 in its run\.json, and None"),
        ({"model": "realnvp"}, r"model is RealNVP in its run\.json, and ProgressiveFlow"),
        ({"detail": "identity"}, r"detail is identity in its run\.json, and bounded"),
    ):
        replace(config, **change).save(tmp_path)
        with pytest.raises(ValueError, match=rf"^push_to_hub: the run did not train this flow: {message} in the flow$"):
            of_run(config).push_to_hub("owner/flow", run=tmp_path, token=WRITER)
    assert not hub.repositories
    for change in ({}, {"model": "realnvp"}, {"classes": ("a", "b")}, {"coupling": "conv", "scales": 1}):
        changed = replace(config, **change)
        changed.save(tmp_path)
        of_run(changed).push_to_hub("owner/flow", run=tmp_path, token=WRITER)


def test_an_error_in_the_card_leaves_no_repository(
    hub: Hub, flow: reference.ProgressiveFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> bytes:  # noqa: ARG001
        raise RuntimeError("broken")

    monkeypatch.setattr("pnf.hub.model_card", broken)
    with pytest.raises(RuntimeError, match=r"^broken$"):
        flow.push_to_hub("owner/flow", token=WRITER)
    assert not hub.repositories


REAL = {"detail": "identity", "support": "real", "shape": (2, 4), "mean": (100.0, -3.0), "std": (5.0, 0.5)}


def test_the_card_of_real_data_applies_the_standardisation(hub: Hub, tmp_path: Path) -> None:
    config = replace(RunConfig.load(RUN), **REAL)
    flow = of_run(config)
    result = {"nats": -12.5, "nats_error": 0.5, "nats_per_dim": -1.5, "nats_per_dim_error": 0.1, "examples": 20}
    flow.push_to_hub("owner/flow", run=with_figures(tmp_path, config, result), token=WRITER)
    text = hub.files("owner/flow")["README.md"].decode()
    found = execute(text)
    assert "| nats, in the units of the data | -12.5 ± 0.5 |" in text
    assert "unconditional-image-generation" not in text
    assert found["samples"].mean((0, 2))[0] > 50  # in the units of the data
    standardisation = config.standardisation
    assert standardisation is not None
    with torch.no_grad():
        wanted = flow.log_prob(standardisation.apply(found["samples"]).float()) + standardisation.log_det
    torch.testing.assert_close(found["log_probs"].float(), wanted)


def test_the_card_of_labels_has_their_names_and_the_likelihood_without_them(hub: Hub, tmp_path: Path) -> None:
    config = replace(RunConfig.load(RUN), classes=("a|b", "shirt"))
    without = {"bits_per_dim": 2.75, "bits_per_dim_error": 0.5, "accuracy": 0.9, "accuracy_error": 0.01}
    run = with_figures(tmp_path, config, {**RESULT, "classification": without})
    of_run(config).push_to_hub("owner/flow", run=run, token=WRITER)
    card = ModelCard(hub.files("owner/flow")["README.md"].decode())
    assert [found.metric_value for found in card.data.eval_results] == [2.75]
    assert card.data.pipeline_tag is None
    for line in (
        "| 0 | a\\|b |",
        "| 1 | shirt |",
        "| bits per dimension, without the label | 2.750 ± 0.500 |",
        "| bits per dimension, given the label | 2.500 |",
        "| accuracy by Bayes' rule | 90.00 ± 1.00 % |",
    ):
        assert line in card.text
    assert execute(card.text)["log_probs"].shape == (16,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fast.ProgressiveFlow((1, 4, 4), 1, **DENSE),
        lambda: fast.ProgressiveFlow((1, 4, 4), 1, detail="identity", **DENSE),
        lambda: fast.ProgressiveFlow((1, 4, 4), 1, condition_shape=(3,), **DENSE),
        lambda: fast.ProgressiveFlow((1, 4, 4), 1, condition_shape=(2, 4, 4), **DENSE),
        lambda: fast.RealNVP((4,), alpha=0.4, **DENSE),
        lambda: fast.RealNVP((4,), features=2, **DENSE),
        lambda: fast.RealNVP((4,), features=2, condition_shape=(4,), **DENSE),
    ],
    ids=["bounded", "identity", "vector", "map", "logit", "features", "both"],
)
def test_the_code_of_the_card_runs(hub: Hub, make: Any) -> None:
    make().push_to_hub("owner/flow", token=WRITER)
    found = execute(hub.files("owner/flow")["README.md"].decode())
    assert found["log_probs"].isfinite().all()
    assert found["log_probs"].shape == (16,)


def execute(card: str) -> dict[str, Any]:
    """Run the code of a card as its reader would."""
    found: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], found)
    return found


def test_the_path_of_the_data_stays_at_home(hub: Hub, tmp_path: Path) -> None:
    settings = json.loads((RUN / "run.json").read_text()) | {"data": "/home/somebody/sets/a|b"}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    of_run(RunConfig.load(RUN)).push_to_hub("owner/flow", run=tmp_path, token=WRITER)
    assert not [name for name, content in hub.files("owner/flow").items() if b"somebody" in content]
    card = hub.files("owner/flow")["README.md"].decode()
    assert "| data | a\\|b |" in card
    assert "license" not in card
    assert "Held-out" not in card


def test_a_folder_without_a_run(hub: Hub, flow: reference.ProgressiveFlow, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^push_to_hub: .* holds no run: there is no run\.json in it$"):
        flow.push_to_hub("owner/flow", run=tmp_path, token=WRITER)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^push_to_hub: .*run\.json is damaged: it holds no settings$"):
        flow.push_to_hub("owner/flow", run=tmp_path, token=WRITER)
    assert not hub.repositories


def test_the_card_of_a_flow_without_images() -> None:
    config = {"model": "RealNVP", **reference.RealNVP((4,), condition_shape=(4,), **DENSE).config()}
    card = ModelCard(model_card("owner/flow", config, 1, None).decode())
    assert card.data.pipeline_tag is None
    assert "samples = flow.sample(16, condition=condition)" in card.text
    labels = reference.ProgressiveFlow((1, 4, 4), 1, num_classes=3, **DENSE)
    text = model_card("owner/flow", {"model": "ProgressiveFlow", **labels.config()}, 1, None).decode()
    assert "| condition | labels, 3 classes |" in text
    assert "| levels | 1, bounded details |" in text


def test_an_edited_card_stays(hub: Hub, flow: reference.ProgressiveFlow) -> None:
    flow.push_to_hub("owner/flow", token=WRITER)
    hub.repositories["owner/flow"].commit("main", {"README.md": b"---\nlicense: mit\n---\nMine"})
    other = reference.ProgressiveFlow((1, 4, 4), 1, **DENSE)
    other.push_to_hub("owner/flow", token=WRITER)
    assert hub.files("owner/flow")["README.md"].endswith(b"Mine")
    assert same(other, reference.ProgressiveFlow.from_pretrained("owner/flow"))


def test_nothing_but_the_files_of_a_flow_is_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(
        "owner/flow", files | {"pytorch_model.bin": b"pickle", "code.py": b"raise SystemExit", "sub/config.json": b""}
    )
    reference.ProgressiveFlow.from_pretrained("owner/flow")
    assert not [line for line in hub.requests if "pytorch_model" in line or "code.py" in line or "sub" in line]
    hub.add("owner/pickle", {"pytorch_model.bin": b"pickle", "config.json": files["config.json"]})
    with pytest.raises(
        FileNotFoundError,
        match=r"repository owner/pickle has no model\.safetensors: only flows that .*, and no pickles$",
    ):
        reference.ProgressiveFlow.from_pretrained("owner/pickle")
    hub.add("owner/empty", {".gitattributes": b""})
    with pytest.raises(FileNotFoundError, match=r"repository owner/empty has no config\.json"):
        reference.ProgressiveFlow.from_pretrained("owner/empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": b"[" * 10**5}, "nested too deep"),
        ({"config.json": b" " * (2**20 + 1)}, "more than 1048576 bytes"),
        ({"model.safetensors": b"\x80\x04N."}, "is no safetensors file"),
    ],
    ids=["deep", "large", "pickle"],
)
def test_what_is_downloaded_is_untrusted(
    hub: Hub, files: dict[str, bytes], change: dict[str, bytes], message: str
) -> None:
    hub.add("owner/flow", files | change)
    with pytest.raises(ValueError, match=message):
        reference.ProgressiveFlow.from_pretrained("owner/flow")


def test_folders_and_bundled_models_come_first(
    hub: Hub, flow: reference.ProgressiveFlow, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/flow", files)
    assert reference.ProgressiveFlow.from_pretrained("fashion-mnist").shape == (1, 32, 32)
    monkeypatch.chdir(tmp_path)
    local = reference.ProgressiveFlow((4,), 1, **DENSE)
    local.save_pretrained("owner/flow")
    assert same(reference.ProgressiveFlow.from_pretrained("owner/flow"), local)
    assert not [line for line in hub.requests if "owner" in line]
    shutil.rmtree("owner")
    with pytest.raises(FileNotFoundError, match="is it a folder of save_pretrained"):
        reference.ProgressiveFlow.from_pretrained(Path("owner/flow"))  # a Path is never a name
    assert same(reference.ProgressiveFlow.from_pretrained("owner/flow"), flow)


@pytest.mark.parametrize("name", ["owner/flow", "a-b.c/d_e.f"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["flow", "/owner/flow", "./flow", "../flow", "owner/flow/", "a/b/c", "ö/f", Path("a/b")]
)
def test_paths_that_are_no_names(name: object) -> None:
    assert not is_name(name)


def test_what_cannot_be_read(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("owner/private", files, private=True)
    hub.add("owner/gated", files, gated=True)
    load = reference.ProgressiveFlow.from_pretrained
    missing = (
        rf"^from_pretrained: there is no folder {{}}, and no repository of that name on {hub.url} that you may read"
    )
    for name in ("runs/typo", "owner/private"):
        with pytest.raises(
            FileNotFoundError, match=missing.format(name) + ".*log in with `hf auth login`, or give a token$"
        ):
            load(name)
    with pytest.raises(FileNotFoundError, match=missing.format("owner/private")):
        load("owner/private", token="hf_expired")
    load("owner/private", token=READER)
    with pytest.raises(PermissionError, match=rf"access to owner/gated must be asked for at {hub.url}/owner/gated"):
        load("owner/gated", token=READER)
    with pytest.raises(PermissionError, match=r"^from_pretrained: there is no token: log in"):
        load("owner/private", token=True)
    with pytest.raises(ValueError, match=r"^from_pretrained: 'owner/a--b' is no name of a repository, owner/name: "):
        load("owner/a--b")


def test_what_cannot_be_written(hub: Hub, flow: reference.ProgressiveFlow) -> None:
    refused = rf"^push_to_hub: {hub.url} lets nobody write to {{}} with this token: log in .* that may write$"
    for name, token in (("owner/flow", READER), ("owner/flow", False), ("other/flow", WRITER)):
        with pytest.raises(PermissionError, match=refused.format(name)):
            flow.push_to_hub(name, token=token)
    with pytest.raises(ValueError, match=r"^push_to_hub: 'a/b/c' is no name of a repository, owner/name: "):
        flow.push_to_hub("a/b/c", token=WRITER)
    assert not hub.repositories


def test_without_a_network(hub: Hub, flow: reference.ProgressiveFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    load = reference.ProgressiveFlow.from_pretrained
    flow.push_to_hub("owner/flow", token=WRITER)
    load("owner/flow")
    hub.broken = True
    assert same(load("owner/flow"), flow)
    with pytest.raises(
        ConnectionError, match=rf"^from_pretrained: {hub.url} cannot be asked for a/b, and .* not in the"
    ):
        load("a/b")
    with pytest.raises(
        ConnectionError, match=rf"^push_to_hub: {hub.url} did not answer as it should about owner/flow: "
    ):
        flow.push_to_hub("owner/flow", token=WRITER)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert same(load("owner/flow"), flow)
    with pytest.raises(
        ConnectionError, match=r"^from_pretrained: http://127\.0\.0\.1:9 cannot be asked for a/b, and its"
    ):
        load("a/b")
    with pytest.raises(ConnectionError, match=r"^push_to_hub: http://127\.0\.0\.1:9 did not answer as it should"):
        flow.push_to_hub("owner/flow", token=WRITER)


@pytest.mark.usefixtures("hub")
def test_another_process_finds_the_cache(flow: reference.ProgressiveFlow, tmp_path: Path) -> None:
    """It is set up as users do, by the environment, and offline."""
    flow.push_to_hub("owner/flow", token=WRITER)
    reference.ProgressiveFlow.from_pretrained("owner/flow")
    code = (
        "import sys, pnf.reference as r\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "print(r.ProgressiveFlow.from_pretrained('owner/flow').shape)\n"
        "try: r.ProgressiveFlow.from_pretrained('a/b')\n"
        "except ConnectionError as error: print(error)"
    )
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "https://hub.invalid", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shape, error = done.stdout.splitlines()
    assert shape == "(1, 4, 4)"
    assert error.startswith(
        "from_pretrained: https://hub.invalid cannot be asked for a/b, and its files are not in the"
    )


def test_without_the_library(flow: reference.ProgressiveFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        FileNotFoundError, match=r"no folder runs/typo; to load .* from the hub: pip install 'pnf\[hub\]'$"
    ):
        reference.ProgressiveFlow.from_pretrained("runs/typo")
    with pytest.raises(ImportError, match=r"^push_to_hub needs huggingface_hub: pip install 'pnf\[hub\]'$"):
        flow.push_to_hub("owner/flow")
