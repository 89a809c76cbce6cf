"""Saving and loading without pickle."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pnf.reference import ProgressiveFlow, RealNVP

SMALL = {"hidden": 4, "blocks": 1, "num_couplings": 2}
Change = Callable[[dict], object]


@pytest.fixture
def flow(randomise: Callable[..., nn.Module]) -> ProgressiveFlow:
    return randomise(ProgressiveFlow((1, 4, 4), 1, **SMALL)).eval()


@pytest.fixture
def folder(flow: ProgressiveFlow, tmp_path: Path) -> Path:
    flow.save_pretrained(tmp_path / "new" / "flow")
    return tmp_path / "new" / "flow"


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("norm", ["act", "batch", "none"])
@pytest.mark.parametrize("coupling", ["conv", "dense"])
@pytest.mark.parametrize(
    ("shape", "levels", "more"),
    [
        ((8,), 2, {}),
        ((2, 4), 1, {"alpha": 0.01}),
        ((1, 4, 2), 1, {"axes": "yx"}),
        ((1, 4, 4), 1, {"detail": "identity"}),
    ],
)
def test_comes_back_bit_for_bit(
    shape: tuple[int, ...],
    levels: int,
    more: dict[str, object],
    coupling: str,
    norm: str,
    randomise: Callable[..., nn.Module],
    tmp_path: Path,
) -> None:
    flow = randomise(ProgressiveFlow(shape, levels, coupling=coupling, norm=norm, **SMALL, **more)).train()
    x = torch.rand(4, *shape)
    flow.log_prob(x)
    flow.save_pretrained(tmp_path)
    other = ProgressiveFlow.from_pretrained(tmp_path)
    assert not other.training
    assert other.config() == flow.config()
    assert other.state_dict().keys() == flow.state_dict().keys()
    assert all(torch.equal(other.state_dict()[name], value) for name, value in flow.state_dict().items())
    assert torch.equal(other.log_prob(x), flow.eval().log_prob(x))
    assert all(p.requires_grad for p in other.parameters())
    assert torch.equal(other.train().log_prob(x), flow.train().log_prob(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": (2, 4, 4), "condition_shape": (3, 4, 4), "scales": 2},
        {"shape": (1, 4, 4), "alpha": 0.05, "norm": "batch"},
        {"shape": (6,), "coupling": "dense", "condition_shape": (6,)},
    ],
    ids=str,
)
def test_realnvp_comes_back(settings: dict, randomise: Callable[..., nn.Module], tmp_path: Path) -> None:
    flow = randomise(RealNVP(**settings, **SMALL)).eval()
    flow.save_pretrained(tmp_path)
    other = RealNVP.from_pretrained(tmp_path)
    x = torch.rand(2, *flow.shape)
    condition = torch.rand(2, *flow.condition_shape) if flow.condition_shape else None
    assert torch.equal(other.log_prob(x, condition), flow.log_prob(x, condition))


def test_float64_stays_float64(flow: ProgressiveFlow, tmp_path: Path) -> None:
    flow.double().save_pretrained(tmp_path)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(ProgressiveFlow.from_pretrained(tmp_path).log_prob(x), flow.log_prob(x))


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("saved", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["act", "batch"])
def test_the_default_dtype_has_no_say(
    saved: torch.dtype,
    default: torch.dtype,
    norm: str,
    randomise: Callable[..., nn.Module],
    default_dtype: Callable[[torch.dtype], None],
    tmp_path: Path,
) -> None:
    flow = randomise(ProgressiveFlow((3, 4, 4), 1, norm=norm, **SMALL)).to(saved).eval()
    flow.save_pretrained(tmp_path)
    x = torch.rand(2, 3, 4, 4, dtype=saved)
    expected, drawn = flow.log_prob(x), flow.sample(2, generator=torch.Generator().manual_seed(0))
    default_dtype(default)
    other = ProgressiveFlow.from_pretrained(tmp_path)
    assert all(value.dtype == flow.state_dict()[name].dtype for name, value in other.state_dict().items())
    assert torch.equal(other.log_prob(x), expected)
    assert torch.equal(other.sample(2, generator=torch.Generator().manual_seed(0)), drawn)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_numbers_of_numpy_and_torch(kind: Callable[[float], object], tmp_path: Path) -> None:
    integer = torch.tensor if kind is torch.tensor else np.int64
    flag = torch.tensor if kind is torch.tensor else np.bool_
    sizes = {name: integer(n) for name, n in SMALL.items()}
    flow = ProgressiveFlow(
        [integer(n) for n in (1, 4, 4)],
        integer(1),
        alpha=kind(0.05),
        injector=flag(True),
        scales=integer(1),
        axes=np.str_("xy"),
        **sizes,
    ).eval()
    assert flow.alpha == float(kind(0.05))
    assert {type(value) for value in flow.config().values()} <= {tuple, int, float, bool, str, np.str_, type(None)}
    flow.save_pretrained(tmp_path)
    other = ProgressiveFlow.from_pretrained(tmp_path)
    assert other.config() == flow.config()
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    RealNVP((integer(4),), coupling="dense", alpha=kind(0.05), injector=flag(False), **sizes).save_pretrained(tmp_path)
    assert RealNVP.from_pretrained(tmp_path).settings.injector is False


@pytest.mark.parametrize("make", [lambda **kw: ProgressiveFlow((4,), 1, **kw), lambda **kw: RealNVP((4,), **kw)])
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"alpha": "0.05"}, TypeError, "alpha must be a number, got '0.05'"),
        ({"alpha": True}, TypeError, "alpha must be a number, got True"),
        ({"alpha": np.bool_(True)}, TypeError, "alpha must be a number, got "),
        ({"alpha": 0.05j}, TypeError, "alpha must be a number, got 0.05j"),
        ({"alpha": np.array([0.1, 0.2])}, TypeError, r"alpha must be a number, got array\(\[0\.1, 0\.2\]\)"),
        ({"alpha": torch.tensor([0.1])}, TypeError, "alpha must be a number, got tensor"),
        ({"alpha": [0.1]}, TypeError, r"alpha must be a number, got \[0\.1\]"),
        ({"alpha": float("nan")}, ValueError, r"alpha must be in \[0, 0\.5\) or None, got nan"),
        ({"alpha": np.float32("inf")}, ValueError, r"alpha must be in \[0, 0\.5\) or None, got inf"),
        ({"injector": "no"}, TypeError, "injector must be True or False, got 'no'"),
        ({"injector": None}, TypeError, "injector must be True or False, got None"),
        ({"injector": 2}, TypeError, "injector must be True or False, got 2"),
        ({"hidden": torch.tensor(True)}, TypeError, r"hidden must be an integer, got tensor\(True\)"),
        ({"hidden": np.float32(4)}, TypeError, "hidden must be an integer, got "),
    ],
    ids=str,
)
def test_what_is_no_number(
    make: Callable[..., nn.Module], settings: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make(**settings)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_old_flow(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls: list[int] = []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        ProgressiveFlow((1, 4, 4), 1, coupling="dense").save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_json_cannot_hold_leaves_the_old_flow(
    flow: ProgressiveFlow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(flow, "config", lambda: {"axes": object()})
    for target in (folder, folder / "new"):
        with pytest.raises(TypeError):
            flow.save_pretrained(target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_configuration_is_json_and_the_weights_are_safetensors(flow: ProgressiveFlow, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config.pop("format"), config.pop("model")) == (1, "ProgressiveFlow")
    config["shape"] = tuple(config["shape"])
    assert config == flow.config()
    assert {*load_file(folder / "model.safetensors")} == {*flow.state_dict()}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_saving_again_replaces(flow: ProgressiveFlow, folder: Path) -> None:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(1)
    flow.save_pretrained(str(folder))
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(ProgressiveFlow.from_pretrained(str(folder)).log_prob(x), flow.log_prob(x))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"from_pretrained: .* has no {name}: is it a folder of save_pretrained"
    ):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"shape": [1, 4, 4],}'])
def test_damaged_json(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"from_pretrained: .*config\.json is no JSON file: "):
        ProgressiveFlow.from_pretrained(folder)


def test_json_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"from_pretrained: .*config\.json must hold a JSON object, got list"):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:0], lambda b: b[: len(b) // 2], lambda b: b"\xff" * len(b)])
def test_damaged_safetensors(damage: Callable[[bytes], bytes], folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"from_pretrained: .*model\.safetensors is no safetensors file: "):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize("position", [-1, -100, -2000])
def test_a_flipped_bit(position: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[position] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum is not that of its tensors$"):
        ProgressiveFlow.from_pretrained(folder)


def test_weights_without_a_checksum(flow: ProgressiveFlow, folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert ProgressiveFlow.from_pretrained(folder).state_dict().keys() == flow.state_dict().keys()


def test_another_model_class(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"from_pretrained: .* is of a ProgressiveFlow, wanted a RealNVP"):
        RealNVP.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [{"colour": "red"}, {"levels": "2"}, {"levels": None}, {"shape": 4}, {"hidden": 1.5}, {"ops": {}}],
    ids=str,
)
def test_arguments_of_a_wrong_kind(changes: dict[str, object], folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=r"from_pretrained: .*config\.json has wrong arguments: "):
        ProgressiveFlow.from_pretrained(folder)


def test_a_missing_argument(folder: Path) -> None:
    (folder / "config.json").write_text('{"model": "ProgressiveFlow"}')
    with pytest.raises(ValueError, match=r"from_pretrained: .*config\.json has wrong arguments: .*shape"):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{"axes": ["x"]}, {"alpha": 3}, {"levels": -1}, {"levels": 10**5}], ids=str)
def test_arguments_that_no_flow_can_have(changes: dict[str, object], folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must"):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.popitem(),
        lambda s: s.update(other=torch.zeros(1)),
        lambda s: s.update({next(iter(s)): torch.zeros(7, 7)}),
    ],
    ids=["missing", "unknown", "wrong shape"],
)
def test_weights_of_another_flow(change: Change, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"from_pretrained: .*model\.safetensors does not fit its configuration: "):
        ProgressiveFlow.from_pretrained(folder)


def test_sizes_that_the_weights_do_not_have(folder: Path) -> None:
    change_config(folder, num_couplings=10**6, blocks=10**6)
    with pytest.raises(ValueError, match=r"config\.json is of a model with more than 1000000000000 tensors, and model"):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 10**5, "nested too deep"), (" " * (2**20 + 1), "more than 1048576 bytes")],
    ids=["deep", "large"],
)
def test_a_hostile_configuration(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ProgressiveFlow.from_pretrained(folder)


@pytest.mark.parametrize("name", ["caf\udce9", "line\nbreak", "日本"])
def test_any_name_of_a_folder(name: str, flow: ProgressiveFlow, tmp_path: Path) -> None:
    flow.save_pretrained(tmp_path / name)
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(ProgressiveFlow.from_pretrained(tmp_path / name).log_prob(x), flow.log_prob(x))
