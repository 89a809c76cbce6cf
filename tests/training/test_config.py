from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pnf.data import DataError
from pnf.training import PRESETS, RunConfig, RunError, preset_config
from pnf.training.build import build_flow

_CHANNELS = {"cifar10": 3, "celeba64": 3}


def _parameters(config: RunConfig, channels: int = 1) -> int:
    return sum(p.numel() for p in build_flow(config, channels).parameters())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model", ["progressive", "realnvp"])
def test_presets_are_settings_of_flows_that_exist(name: str, model: str) -> None:
    config = preset_config(name, model=model)
    channels = _CHANNELS.get(name, 1)
    flow = build_flow(config, channels)
    assert flow.shape == (channels, config.size, config.size)
    assert config.warmup < config.steps


@pytest.mark.parametrize("name", ["demo", "mnist-dense"])
def test_the_baseline_has_as_many_parameters(name: str) -> None:
    progressive, baseline = (_parameters(preset_config(name, model=model)) for model in ("progressive", "realnvp"))
    assert abs(baseline / progressive - 1) < 0.1


@pytest.mark.parametrize(
    ("settings", "lattice"),
    [
        ({}, True),
        ({"lattice": False}, False),
        ({"model": "realnvp"}, False),
        ({"detail": "identity"}, False),
        ({"support": "real"}, False),
    ],
    ids=str,
)
def test_presets_of_grey_images_are_on_the_lattice(settings: dict[str, object], lattice: bool) -> None:
    for name in ("demo", "mnist-dense", "mnist-conv"):
        assert preset_config(name, **settings).lattice is lattice


@pytest.mark.parametrize(
    ("settings", "encoder"),
    [
        ({}, 2),
        ({"encoder": 0}, 0),
        ({"coupling": "dense"}, 0),
        ({"injector": False}, 0),
        ({"injector": False, "encoder": 1}, 1),
    ],
    ids=str,
)
def test_convolutional_presets_have_an_encoder(settings: dict[str, object], encoder: int) -> None:
    for name in ("mnist-conv", "cifar10", "celeba64"):
        # A number of scales is for convolutions.
        dense = {"scales": None} if "coupling" in settings else {}
        assert preset_config(name, **settings, **dense).encoder == encoder
    assert preset_config("mnist-dense").encoder == 0


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, ("muon", 0.03)),
        ({"lr": 0.02}, ("muon", 0.02)),
        ({"optimizer": "adam"}, ("adam", 0.001)),
        ({"optimizer": "adam", "lr": 0.005}, ("adam", 0.005)),
        ({"coupling": "dense"}, ("adam", 0.001)),
        ({"coupling": "dense", "optimizer": "muon"}, ("muon", 0.03)),
    ],
    ids=str,
)
def test_a_preset_has_the_learning_rate_of_its_optimiser(settings: dict[str, object], found: tuple[str, float]) -> None:
    for name in ("mnist-conv", "celeba64"):
        config = preset_config(name, **settings)
        assert (config.optimizer, config.lr) == found
    assert preset_config("mnist-dense").optimizer == "adam"


def test_the_baseline_has_no_lattice() -> None:
    with pytest.raises(RunError, match="the realnvp baseline has no lattice: leave out --lattice"):
        preset_config("demo", model="realnvp", lattice=True)


def test_a_width_that_is_asked_for_holds_for_the_baseline_too() -> None:
    assert preset_config("demo", model="realnvp", hidden=8).hidden == 8


def test_the_path_of_the_data_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert preset_config("demo").data == "fashion-mini"
    assert preset_config("mnist-dense").data == str(tmp_path / "MNIST")
    assert preset_config("demo", data="../set.npz").data == str(tmp_path / "../set.npz")
    with pytest.raises(DataError, match="got an empty name"):
        preset_config("demo", data=" ")
    with pytest.raises(RunError, match=r"^wrong settings: data: .*Input should be a valid string"):
        preset_config("demo", data=3)


def test_a_path_of_any_bytes(tmp_path: Path) -> None:
    config = RunConfig(data=os.fsdecode(b"/caf\xe9 \xc3\xa9\n"))
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config
    assert os.fsencode(RunConfig.load(tmp_path).data) == b"/caf\xe9 \xc3\xa9\n"
    assert config.same_model(config.to_json())
    assert config.same_model(replace(config, data="elsewhere").to_json())
    assert not config.same_model(replace(config, seed=1))
    assert not config.same_model("no settings")


def test_an_error_has_one_line() -> None:
    assert str(RunError("caf\udce9\nb")) == r"caf\xe9\nb"


def test_an_unknown_preset() -> None:
    with pytest.raises(RunError, match=r"^there is no preset 'dmeo'; there are demo, mnist-dense, "):
        preset_config("dmeo")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "steps: Input should be greater than or equal to 1"),
        ("lr", 0.0, "lr: Input should be greater than 0"),
        ("lr", float("nan"), "lr: Input should be"),
        ("clip", float("inf"), "clip: Input should be a finite number"),
        ("scale_l2", -1e-3, "scale_l2: Input should be greater than or equal to 0"),
        ("ema", 1.0, "ema: Input should be less than 1"),
        ("seed", -1, "seed: Input should be greater than or equal to 0"),
        ("seed", 2**32, "seed: Input should be less than 4294967296"),
        ("axes", "z", "axes: Input should be 'xy', 'yx', 'x' or 'y'"),
        ("hiden", 8, "hiden: Unexpected keyword argument"),
    ],
)
def test_wrong_settings_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(RunError, match=rf"^wrong settings: {message}") as caught:
        preset_config("demo", **{key: value})
    assert "\n" not in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(RunError, match=r"steps: .*; ema: "):
        preset_config("demo", steps=0, ema=2)


def test_settings_that_no_flow_has(tiny: Callable[..., RunConfig]) -> None:
    with pytest.raises(RunError, match=r"^wrong settings: .* multiple of 32 .* for 5 levels, got \(1, 8, 8\)"):
        build_flow(tiny(levels=5), 1)


def test_initial_weights_belong_to_the_seed(tiny: Callable[..., RunConfig]) -> None:
    weights = [build_flow(tiny(seed=seed), 1).state_dict() for seed in (0, 0, 1)]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    assert any((weights[0][key] != weights[2][key]).any() for key in weights[0])


def test_settings_come_back_from_a_folder(tmp_path: Path, tiny: Callable[..., RunConfig]) -> None:
    config = tiny(limit=None, flip=True, lr=1.2345678901234567e-4)
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run: there is no run.json in it"),
        ("{", "run.json is damaged: "),
        ("[]", "run.json has wrong settings: settings: "),
        (json.dumps({"stepz": 3}), "run.json has wrong settings: stepz: Unexpected keyword argument"),
        (b"\xff\xfe", "run.json is damaged: "),
    ],
)
def test_a_folder_without_sound_settings(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=message):
        RunConfig.load(tmp_path)


def test_settings_that_would_fill_the_memory(tiny: Callable[..., RunConfig]) -> None:
    with pytest.raises(RunError, match=r"wrong settings: settings: Value error, blocks times num_couplings must be at"):
        tiny(blocks=256, num_couplings=256)
    with pytest.raises(RunError, match=r"wrong settings: the flow would have [\d,]+ parameters; choose a smaller"):
        build_flow(tiny(hidden=16384, blocks=64), 1)
