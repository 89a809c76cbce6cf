"""The paper's results in one command, on two tiny data sets."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pnf.cli import reproduce
from pnf.data import Images, load
from pnf.evaluation import load_run
from pnf.experiments import ablation, budget, glow, rows, tables
from pnf.experiments import table1 as table_1
from pnf.experiments.budget import Budget, locked
from pnf.experiments.rows import Row
from pnf.training import RunConfig, RunError, train
from pnf.training.batches import Batches
from pnf.training.logs import read_logs

Pnf = Callable[..., Any]

_SETTINGS: dict[str, object] = {
    "size": 16,
    "levels": 1,
    "coupling": "dense",
    "hidden": 8,
    "blocks": 1,
    "num_couplings": 2,
    "batch_size": 8,
    "validation": 20,
}

ROWS = (
    Row("tiny", "Tiny, dense", ("tiny.npz",), _SETTINGS, ("other.npz",), {"hidden": 12}, paper=(1.5, 1.25)),
    Row("other", "Other, dense", ("other.npz",), _SETTINGS, ("tiny.npz",)),
    Row("absent", "Absent, dense", ("absent.npz", "absent"), _SETTINGS, ()),
)


@pytest.fixture(autouse=True, scope="module")
def _tiny_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (ablation, rows, table_1, reproduce, tables):
            patch.setattr(module, "ROWS", ROWS)
        # Fixed speeds, without a machine's drift: RealNVP gets 6 steps in 0.2 s, and the PNFs 4.
        patch.setattr(budget, "step_seconds", lambda *_, **__: [0.03, 0.04, 0.045])
        patch.setattr(ablation, "VARIANTS", {"dense": ({"norm": "none"}, {"detail": "identity", "num_couplings": 1})})
        patch.setattr(reproduce, "QUICK", Budget(0.05, {"limit": 60}, test_images=20))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of two rows: pictures, and the same pictures upside down and inverted."""
    folder = tmp_path_factory.mktemp("data")
    splits = {split: load("fashion-mini", split, 16, limit=150).pixels.numpy() for split in ("train", "test")}
    np.savez(folder / "tiny.npz", **splits)
    np.savez(folder / "other.npz", **{split: 255 - pixels[:, :, ::-1] for split, pixels in splits.items()})
    return folder


def table1(root: Path, out: Path, *args: object) -> list[object]:
    return ["reproduce", "table1", "--data", root, "--out", out, "--device", "cpu", *args]


@pytest.fixture(scope="module")
def done(pnf: Pnf, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished results of both rows. Tests must not change them."""
    out = tmp_path_factory.mktemp("table1")
    result = pnf(*table1(root, out, "--budget", 0.02))  # minutes for six models
    assert result.code == 0, result.err
    assert f"Left out Absent, dense: {root} holds no absent.npz or absent" in result.err
    assert (out / "table1.md").read_text() in result.out
    return out


def test_every_model_of_a_row_gets_the_same_time(done: Path) -> None:
    for row in ("tiny", "other"):
        plan = json.loads((done / row / "plan.json").read_text())
        assert plan["budget"] == {"seconds": pytest.approx(0.2), "settings": {}, "test_images": None}
        for name, run in plan["runs"].items():
            config = RunConfig.load(done / row / name)
            assert config == RunConfig.from_dict(run)
            assert config.steps == max(1, int(0.98 * plan["budget"]["seconds"] / plan["step_seconds"][name]))
            assert config.warmup == min(100, config.steps // 10)
            assert config.validate_every == config.checkpoint_every == -(-config.steps // 20)
            assert config.keep == "best"


def test_the_table_has_what_was_measured(done: Path) -> None:
    document = json.loads((done / "table1.json").read_text())
    assert {row: list(models) for row, models in document.items()} == {
        row: ["realnvp", "identity", "bounded"] for row in ("tiny", "other")
    }
    lines = (done / "table1.md").read_text().splitlines()
    bits = {name: result["bits_per_dim"] for name, result in document["tiny"].items()}
    summary, details = (line for line in lines if line.startswith("| Tiny, dense |") and bits_text(bits) in line), lines
    assert next(summary).endswith("| 1.50, 1.25 |")
    for name, result in document["tiny"].items():
        config, flow = load_run(done / "tiny" / name)
        assert result["parameters"] == sum(p.numel() for p in flow.parameters())
        assert (result["steps"], result["seed"], result["images"]) == (config.steps, 0, 150)
        assert result["seconds"] > 0
        assert result["peak_memory_bytes"] > 2**20
        assert result["hardware"]
        assert result["threads"] == 1
        assert any(f"{result['nats']:,.1f} ± {result['nats_error']:.1f}" in line for line in details)


def bits_text(bits: dict[str, float]) -> str:
    return f"**{min(bits.values()):.3f} ± "


def test_the_margin_is_that_of_the_same_images(done: Path) -> None:
    models = json.loads((done / "table1.json").read_text())["tiny"]
    bits = {name: np.load(done / "tiny" / name / "log_probs.npy").sum(1) / 256 / np.log(2) for name in models}
    assert "below_realnvp" not in models["realnvp"]
    for name in ("identity", "bounded"):
        difference = bits[name] - bits["realnvp"]
        assert models[name]["below_realnvp"] == pytest.approx(difference.mean())
        assert models[name]["below_realnvp_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(150))
        total = models["realnvp"]["bits_per_dim"] - models[name]["bits_per_dim"]
        assert models[name]["below_realnvp"] == pytest.approx(total)


def test_what_is_finished_is_not_done_again(
    pnf: Pnf, root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    (out / "table1.md").unlink()
    monkeypatch.setattr(table_1, "train", None)
    result = pnf(*table1(root, out, "--budget", 5))
    assert result.code == 0, result.err
    assert (out / "table1.md").read_text() == (done / "table1.md").read_text()


def test_a_lost_result_is_made_from_the_finished_run(pnf: Pnf, root: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    path = out / "tiny/bounded/result.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert pnf(*table1(root, out)).code == 0
    after = json.loads(path.read_text())
    assert after["nats"] == before["nats"]
    assert after["seconds"] == before["seconds"]
    assert after["peak_memory_bytes"] is None


def test_stopped_it_goes_on_and_ends_in_the_same_bits(
    pnf: Pnf, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, batch, calls = tmp_path / "out", Batches.__call__, []

    def stop(self: Batches, step: int) -> Any:
        if (out / "tiny/realnvp/result.json").exists():
            calls.append(step)
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", stop)
        result = pnf(*table1(root, out, "--budget", 0.01, "--row", "tiny"))
    assert result.code == 143, result.err
    assert calls == [0, 1, 2]
    assert list(json.loads((out / "table1.json").read_text())["tiny"]) == ["realnvp"]
    assert pnf(*table1(root, out, "--row", "tiny")).code == 0
    assert list(json.loads((out / "table1.json").read_text())["tiny"]) == ["realnvp", "identity", "bounded"]
    assert not (out / "other").exists()
    config = RunConfig.load(out / "tiny/identity")
    train(config, load(root / "tiny.npz", "train", 16), tmp_path / "undisturbed", accelerator="cpu")
    model = "model/model.safetensors"
    weights, expected = load_file(out / "tiny/identity" / model), load_file(tmp_path / "undisturbed" / model)
    assert all((weights[key] == expected[key]).all() for key in expected)


def test_another_process_keeps_its_row(pnf: Pnf, root: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "tiny"):
        result = pnf(*table1(root, tmp_path, "--row", "tiny", "--quick"))
    assert result.code == 1
    assert result.err.endswith(f"{tmp_path / 'tiny'} is being trained by another process: name other rows with --row\n")


def test_quick_is_a_trial_of_its_own(pnf: Pnf, root: Path, tmp_path: Path, done: Path) -> None:
    result = pnf(*table1(root, tmp_path, "--row", "tiny", "--quick"))
    assert result.code == 0, result.err
    models = json.loads((tmp_path / "table1.json").read_text())["tiny"]
    assert {result["images"] for result in models.values()} == {20}
    assert json.loads((tmp_path / "tiny/bounded/data.json").read_text())["images"] == 60
    for out, args, was in ((tmp_path, [], "with"), (shutil.copytree(done, tmp_path / "d"), ["--quick"], "without")):
        (out / "tiny/bounded/result.json").unlink()
        result = pnf(*table1(root, out, "--row", "tiny", *args))
        assert result.code == 1
        assert f"{out / 'tiny'} was begun {was} --quick: choose another --out" in result.err


def test_a_model_that_fails_does_not_stop_the_others(
    pnf: Pnf, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: RunConfig, images: Images, folder: Path, **options: Any) -> list[str]:
        if config.detail == "identity":
            raise RunError("the loss is nan")
        return train(config, images, folder, **options)

    monkeypatch.setattr(table_1, "train", fail)
    result = pnf(*table1(root, tmp_path, "--row", "tiny", "--quick"))
    assert result.code == 1
    assert "pnf: not all models could be trained: the loss is nan" in result.err
    assert list(json.loads((tmp_path / "table1.json").read_text())["tiny"]) == ["realnvp", "bounded"]


@pytest.fixture
def _small_glow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("normflows")
    for name, value in (("BLOCKS", 2), ("HIDDEN", 8), ("BATCH", 16)):
        monkeypatch.setattr(glow, name, value)
    # As many steps as RealNVP has.
    monkeypatch.setattr(glow, "step_seconds", lambda *_, **__: [0.02, 0.02])


def glow_of(root: Path, out: Path, *args: object) -> list[object]:
    return ["reproduce", "glow", "--data", root, "--out", out, "--device", "cpu", *args]


@pytest.mark.usefixtures("_small_glow")
def test_glow_has_a_column_of_its_own(pnf: Pnf, root: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    result = pnf(*glow_of(root, out, "--row", "tiny"))
    assert result.code == 0, result.err
    document = json.loads((out / "table1.json").read_text())
    assert list(document["tiny"]) == ["realnvp", "identity", "bounded", "glow"]
    assert list(document["other"]) == ["realnvp", "identity", "bounded"]
    found, realnvp = document["tiny"]["glow"], document["tiny"]["realnvp"]
    assert (found["steps"], found["images"], found["seed"]) == (realnvp["steps"], 150, 0)
    difference = (np.load(out / "tiny/glow/log_probs.npy") - np.load(out / "tiny/realnvp/log_probs.npy")).mean()
    assert found["below_realnvp"] == pytest.approx(difference / 256 / np.log(2))
    table = (out / "table1.md").read_text()
    assert "| Glow by normflows | ours below RealNVP |" in table
    assert f"{found['bits_per_dim']:.3f} ± " in table
    # What reads runs leaves it out.
    result = pnf("reproduce", "figures", "--data", root, "--out", out, "--row", "tiny", "--device", "cpu")
    assert result.code == 0, result.err
    assert not list((out / "tiny/glow").glob("*.png"))


@pytest.mark.usefixtures("_small_glow")
def test_glow_goes_on_from_its_checkpoint(
    pnf: Pnf, root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (shutil.copytree(done, tmp_path / name) for name in ("whole", "parts"))
    assert pnf(*glow_of(root, whole, "--row", "tiny")).code == 0
    batch, steps = Batches.__call__, []

    def stop(self: Batches, step: int) -> Any:
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", stop)
        assert pnf(*glow_of(root, parts, "--row", "tiny")).code
    steps.append(-1)
    assert pnf(*glow_of(root, parts, "--row", "tiny")).code == 0
    bits = [json.loads((out / "tiny/glow/result.json").read_text())["bits_per_dim"] for out in (whole, parts)]
    assert bits[0] == bits[1]


def test_glow_needs_normflows_and_a_plan(
    pnf: Pnf, root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pnf(*glow_of(root, tmp_path))
    assert result.code == 1
    assert "holds no row of pnf reproduce table1, whose times Glow gets: train its models first" in result.err
    result = pnf(*glow_of(root, tmp_path, "--row", "tiny"))
    assert result.code == 1
    assert "has no plan of equal times yet: train its models first, with pnf reproduce table1" in result.err
    out = shutil.copytree(done, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "normflows", None)
    result = pnf(*glow_of(root, out, "--row", "tiny"))
    assert result.code == 1
    assert "Glow is that of normflows, which is not installed: pip install 'pnf[normflows]'" in result.err


def test_ablation(pnf: Pnf, root: Path, tmp_path: Path) -> None:
    args = ["reproduce", "ablation", "--data", root, "--out", tmp_path, "--row", "tiny", "--device", "cpu"]
    result = pnf(*args, "--budget", 0.01)
    assert result.code == 0, result.err
    text = (tmp_path / "ablation.md").read_text()
    assert text in result.out
    found = json.loads((tmp_path / "ablation.json").read_text())["tiny"]
    assert list(found) == ["ours", "norm-none", "detail-identity-num-couplings-1"]
    assert [RunConfig.load(tmp_path / "tiny" / name).norm for name in found] == ["act", "none", "act"]
    assert [RunConfig.load(tmp_path / "tiny" / name).detail for name in found] == ["bounded", "bounded", "identity"]
    for name, result in found.items():
        run = tmp_path / "tiny" / name
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["f1y.ckpt"]
        each = np.load(run / "log_probs.npy") / 128
        assert each.shape == (20,)
        assert result["nats_per_dim"] == pytest.approx(each.mean())
        # The best of the run's logged validations, in single precision.
        logged = read_logs(run)["validation/f1y/nats_per_dim"].values()
        assert result["nats_per_dim"] == pytest.approx(max(logged), rel=1e-5)
        assert f"| {result['nats_per_dim']:.3f} | " in text
        if name != "ours":
            difference = each - np.load(tmp_path / "tiny/ours/log_probs.npy") / 128
            assert result["above_ours"] == pytest.approx(difference.mean())
            error = difference.std(ddof=1) / np.sqrt(20)
            assert f"| {difference.mean():+.3f} ± {error:.3f} | " in text
    assert "| `--detail identity --num-couplings 1` | " in text
    before = text
    assert pnf(*args).code == 0
    assert (tmp_path / "ablation.md").read_text() == before


def test_the_variants_are_settings() -> None:
    for row in rows.ROWS:
        ours = rows.row_settings(row, Path("data"), Budget(1.0))["bounded"]
        for settings in ablation.variants(row).values():
            RunConfig.from_dict(asdict(ours) | settings)
    assert ablation.options({"injector": False, "num_couplings": 3}) == "--no-injector --num-couplings 3"


def test_figures(pnf: Pnf, root: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    result = pnf("reproduce", "figures", "--data", root, "--out", out, "--row", "tiny")
    assert result.code == 0, result.err
    drawn = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    every = ("samples", "upscaled-samples", "upscaled-real", "projection")
    assert drawn == {
        "tiny/realnvp/samples.png",
        *(f"tiny/{name}/{picture}.png" for name in ("identity", "bounded") for picture in every),
        "tiny/curves.png",
        "tiny/bits.png",
    }
    assert all(f"Written: {out / name}" in result.out for name in drawn)


def test_scales(pnf: Pnf, root: Path, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    result = pnf("reproduce", "scales", "--data", root, "--out", out, "--row", "tiny")
    assert result.code == 0, result.err
    text = (out / "scales.md").read_text()
    assert text in result.out
    document = json.loads((out / "table1.json").read_text())
    stages = document["tiny"]["bounded"]["stage_bits_per_dim"]
    assert f"| Tiny, dense | PNF, ours | {' | '.join(f'{bits:.3f}' for bits in stages.values())} |" in text
    # The base has a quarter of the pixels, and its image has no other bits. At full resolution all stages count.
    scaled = [f"{4 * stages['f0']:.3f}", f"{document['tiny']['bounded']['bits_per_dim']:.3f}"]
    line = next(line for line in text.split("resolution of each stage")[1].splitlines() if "ours" in line)
    assert [line.split(" | ")[2], line.removesuffix(" |").split(" | ")[-1]] == scaled
    for name, measured in (("realnvp", {"anomaly"}), ("identity", {"quality"}), ("bounded", {"anomaly", "quality"})):
        found = {path.stem for path in (out / "tiny" / name).glob("*.json")}
        assert found & {"anomaly", "quality"} == measured
    auroc = json.loads((out / "tiny/bounded/anomaly.json").read_text())["auroc"]["other"]
    assert f"| other | log p at this scale | {auroc['image']['f0']:.3f} |" in text
    assert "| 8x8 |" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table1", "--quick", "--budget", "1"], "--quick has a budget of its own: leave out --budget"),
        (["ablation", "--quick", "--budget", "1"], "--quick has a budget of its own: leave out --budget"),
        (["table1", "--row", "huge"], "there is no row huge; there are tiny, other, absent"),
        (["table1", "--row", "absent"], "holds the data of none of the rows; docs/results.md lists what they need"),
        (["figures"], "holds no finished run of these rows; train them with: pnf reproduce table1 --out"),
        (["scales"], "holds no finished run of these rows; train them with: pnf reproduce table1 --out"),
    ],
)
def test_mistakes(pnf: Pnf, root: Path, tmp_path: Path, args: list[str], message: str) -> None:
    result = pnf("reproduce", *args, "--data", root, "--out", tmp_path / "out")
    assert result.code == 1
    assert message in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("pnf: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["table1", "ablation", "figures", "scales"])
def test_help_has_an_example(pnf: Pnf, command: str) -> None:
    result = pnf("reproduce", command, "--help")
    assert result.code == 0
    assert f"Example: pnf reproduce {command} --data data --out runs/" in result.out
