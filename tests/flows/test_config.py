"""The one declaration of the flows' settings."""

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args, get_type_hints

import pytest

from pnf import fast, reference
from pnf.flows.config import FlowConfig, FlowSettings, ProgressiveConfig, ProgressiveSettings


@pytest.mark.parametrize("module", [fast, reference])
@pytest.mark.parametrize(("name", "config"), [("RealNVP", FlowConfig), ("ProgressiveFlow", ProgressiveConfig)])
def test_help_lists_every_setting(module: Any, name: str, config: type[FlowConfig]) -> None:
    shown = inspect.signature(getattr(module, name)).parameters
    assert all(type(None) in get_args(p.annotation) for p in shown.values() if p.default is None)
    assert all(shown[f.name].default is f.default for f in fields(config) if f.name != "levels")
    own = {"RealNVP": {"features"}, "ProgressiveFlow": {"num_classes", "support"}}[name]
    assert shown.keys() - {f.name for f in fields(config)} == {"shape", "condition_shape", *own}


@pytest.mark.parametrize(("config", "keywords"), [(FlowConfig, FlowSettings), (ProgressiveConfig, ProgressiveSettings)])
def test_type_checkers_see_every_setting(config: type[FlowConfig], keywords: type) -> None:
    sizes = {"hidden", "blocks", "num_couplings"}
    wanted = {name: kind | None if name in sizes else kind for name, kind in get_type_hints(config).items()}
    assert get_type_hints(keywords) == {n: k for n, k in wanted.items() if n not in ("flow", "levels")}


@pytest.mark.parametrize(("coupling", "sizes"), [("conv", (32, 4, 3)), ("dense", (256, 2, 6))])
def test_default_sizes_follow_the_networks(coupling: Any, sizes: tuple[int, ...]) -> None:
    config = FlowConfig(coupling=coupling)
    assert (config.hidden, config.blocks, config.num_couplings) == sizes
    flow = reference.ProgressiveFlow((1, 8, 8), 1, coupling=coupling)
    assert (flow.settings.hidden, flow.settings.blocks, flow.settings.num_couplings) == sizes
    assert flow.stages[0].flow.settings.hidden == sizes[0]


def test_settings_stay_as_they_are() -> None:
    with pytest.raises(FrozenInstanceError):
        FlowConfig().hidden = 3  # type: ignore[misc]


def test_an_unknown_setting() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        fast.RealNVP((1, 4, 4), colour=True)
