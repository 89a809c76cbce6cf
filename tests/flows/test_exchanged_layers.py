"""Compiled flows with exchanged or wrapped inner layers equal the reference."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from torch.testing import assert_close

from pnf import fast, reference
from pnf.flows.networks import Block, Conv2d, ResidualNetwork, WeightNormConv2d

# In float32 and with 16 channels, the compiled networks run as one op in Winograd's form.
SETTINGS = {"hidden": 16, "blocks": 1, "num_couplings": 1, "scales": 1}
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


def pair(randomise: Callable[..., nn.Module], **settings: Any) -> list[Any]:
    torch.manual_seed(0)
    flow = reference.RealNVP((1, 4, 4), condition_shape=(1, 4, 4), **SETTINGS | settings)
    randomise(flow, 0.05).train()(pixels(8), pixels(8))
    twin = fast.RealNVP((1, 4, 4), condition_shape=(1, 4, 4), **SETTINGS | settings)
    twin.load_state_dict(flow.state_dict())
    return [flow, twin]


def pixels(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def norms(flow: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in flow.modules() if isinstance(m, nn.BatchNorm2d)]


def convolutions(flow: nn.Module) -> list[WeightNormConv2d]:
    return [m for m in flow.modules() if isinstance(m, WeightNormConv2d)]


def exchange(
    flow: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module], which: slice = slice(None)
) -> None:
    """Replace layers of a kind by the results of ``make``."""
    found = [
        (parent, name, child)
        for parent in flow.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]
    for parent, name, child in found[which]:
        setattr(parent, name, make(child))


class Adapter(nn.Module):
    """A layer with a parallel branch of low rank."""

    def __init__(self, layer: WeightNormConv2d) -> None:
        super().__init__()
        outputs, inputs = layer.direction.shape[:2]
        self.layer = layer
        self.down, self.up = nn.Conv2d(inputs, 2, 1, bias=False), nn.Conv2d(2, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class PlainBlock(nn.Module):
    """Another kind of block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = block.conv1

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv(h).tanh()


def set_all(name: str, value: Any, which: slice = slice(None)) -> Callable[[nn.Module], None]:
    def change(flow: nn.Module) -> None:
        for norm in norms(flow)[which]:
            setattr(norm, name, value)

    return change


def momentum_of_each(flow: nn.Module) -> None:
    for i, norm in enumerate(norms(flow)):
        norm.momentum = 0.1 + 0.05 * i


def without_statistics(flow: nn.Module) -> None:
    for norm in norms(flow):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        norm.num_batches_tracked = None


def without_affine(flow: nn.Module) -> None:
    for norm in norms(flow)[1:]:
        norm.register_parameter("weight", None)
        norm.register_parameter("bias", None)
        norm.affine = False


def override_forward(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        layer.forward = lambda x, layer=layer: 1.1 * WeightNormConv2d.forward(layer, x)  # type: ignore[method-assign]


def without_bias(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        layer.register_parameter("bias", None)


def other_filters(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        if layer.direction.shape[2:] == (1, 1) and layer.direction.shape[0] == 16:
            wide = torch.nn.functional.pad(layer.direction.detach(), (1, 1, 1, 1), value=0.1)
            layer.direction, layer.padding = nn.Parameter(wide), (1, 1)


def scaled_inputs(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        layer.register_forward_pre_hook(lambda m, args: (1.1 * args[0],))


def scaled_outputs(flow: nn.Module) -> None:
    for module in flow.modules():
        if isinstance(module, Block | nn.BatchNorm2d | nn.Identity):
            module.register_forward_hook(lambda m, args, y: 1.1 * y)


def pruned(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        prune.ln_structured(layer, "direction", 0.3, 1, 0)


def with_spectral_norm(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        spectral_norm(layer, "direction")


def parametrized(flow: nn.Module) -> None:
    for layer in convolutions(flow):
        parametrizations.weight_norm(layer, "direction")


def shared(flow: nn.Module) -> None:
    first, *others = [m for m in flow.modules() if isinstance(m, ResidualNetwork)]
    for network in others:
        network.blocks, network.out_norm = first.blocks, first.out_norm


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def halved_weights(flow: nn.Module) -> None:
    for norm in (norm for norm in norms(flow) if norm.affine):
        parametrize.register_parametrization(norm, "weight", Half())


RESIDUAL: dict[str, Callable[[nn.Module], None]] = {
    "nothing": lambda flow: None,
    "eps": set_all("eps", 0.1),
    "eps of one": set_all("eps", 0.1, slice(2, 3)),
    "momentum": set_all("momentum", 0.7),
    "momentum of each": momentum_of_each,
    "no momentum": set_all("momentum", None),
    "tracking ends": set_all("track_running_stats", False),
    "no statistics": without_statistics,
    "no affine": without_affine,
    "frozen statistics": lambda flow: [norm.eval() for norm in norms(flow)] and None,
    "one frozen": lambda flow: [norm.eval() for norm in norms(flow)[1:2]] and None,
    "one learns in evaluation": lambda flow: None,
    "group norm": lambda flow: exchange(flow, nn.BatchNorm2d, lambda n: nn.GroupNorm(1, n.num_features)),
    "instance norm": lambda flow: exchange(
        flow, nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n.num_features, track_running_stats=True)
    ),
    "one identity": lambda flow: exchange(flow, nn.BatchNorm2d, lambda n: nn.Identity(), slice(1, 2)),
    "all identities": lambda flow: exchange(flow, nn.BatchNorm2d, lambda n: nn.Identity()),
    "adapters": lambda flow: exchange(flow, WeightNormConv2d, Adapter),
    "one plain convolution": lambda flow: exchange(
        flow, WeightNormConv2d, lambda c: nn.Conv2d(c.direction.shape[1], c.direction.shape[0], 1), slice(1, 2)
    ),
    "other blocks": lambda flow: exchange(flow, Block, PlainBlock),
    "forward": override_forward,
    "no bias": without_bias,
    "other filters": other_filters,
    "pre-hooks": scaled_inputs,
    "hooks": scaled_outputs,
    "pruned": pruned,
    "spectral norm": with_spectral_norm,
    "parametrized": parametrized,
    "parametrized norms": halved_weights,
    "shared by networks": shared,
}


def assert_alike(flows: list[Any], training: bool) -> None:
    x, condition, found = pixels(6, 1), pixels(6, 2), []
    for flow in flows:
        flow.zero_grad()
        y = x.clone().requires_grad_()
        z, log_det = flow(y, condition)
        (z.square().sum() - log_det.sum()).backward()
        with torch.no_grad():
            again, _ = flow.inverse(z.detach(), condition)
            quiet, _ = flow(x, condition) if not training else (z.detach(), None)
        grads = {name: p.grad for name, p in flow.named_parameters() if p.grad is not None}
        buffers = {name: b.clone() for name, b in flow.named_buffers() if b.is_floating_point()}
        found.append((z.detach(), log_det.detach(), y.grad, again, quiet, grads, buffers))
    assert_close(found[1], found[0], **TOLERANCE)


@pytest.mark.parametrize("norm", ["batch", "act"])
@pytest.mark.parametrize("change", RESIDUAL)
def test_residual_networks(randomise: Callable[..., nn.Module], change: str, norm: str) -> None:
    flows = pair(randomise, norm=norm, injector=False)
    for flow in flows:
        torch.manual_seed(1)
        RESIDUAL[change](flow)
    assert_alike(flows, True)
    for flow in flows:
        flow.eval()
        if change == "one learns in evaluation":
            [layer.train() for layer in norms(flow)[1:2]]
    assert_alike(flows, False)


CHAINS: dict[str, Callable[[nn.Module], None]] = {
    "nothing": lambda flow: None,
    "activation": lambda flow: exchange(flow, nn.ReLU, lambda m: nn.SiLU()),
    "one activation": lambda flow: exchange(flow, nn.ReLU, lambda m: nn.Tanh(), slice(0, 1)),
    "adapter": lambda flow: exchange(flow, nn.Linear, lambda m: nn.Sequential(m, nn.Tanh())),
    "hooks": lambda flow: (
        [m.register_forward_hook(lambda m, a, y: 1.1 * y) for m in flow.modules() if isinstance(m, nn.Linear | nn.ReLU)]
        and None
    ),
    "no bias": lambda flow: (
        [m.register_parameter("bias", None) for m in flow.modules() if isinstance(m, nn.Linear | nn.Conv2d)] and None
    ),
    "circular": lambda flow: (
        [setattr(m, "padding_mode", "circular") for m in flow.modules() if isinstance(m, Conv2d)] and None
    ),
    "appended": lambda flow: (
        [m.append(nn.Tanh()) for m in list(flow.modules()) if isinstance(m, nn.Sequential)] and None
    ),
    "spectral norm": lambda flow: [spectral_norm(m) for m in flow.modules() if isinstance(m, nn.Linear)] and None,
}


@pytest.mark.parametrize(("coupling", "encoder"), [("dense", 0), ("conv", 0), ("conv", 1)])
@pytest.mark.parametrize("change", CHAINS)
def test_chains_of_layers(randomise: Callable[..., nn.Module], change: str, coupling: str, encoder: int) -> None:
    flows = pair(randomise, coupling=coupling, encoder=encoder, scales=None)
    for flow in flows:
        torch.manual_seed(1)
        CHAINS[change](flow)
    assert_alike(flows, True)
    assert_alike([flow.eval() for flow in flows], False)


def test_synchronised_batch_normalisation_is_not_dropped(
    randomise: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    flows = [nn.SyncBatchNorm.convert_sync_batchnorm(flow) for flow in pair(randomise, norm="batch")]
    assert_alike(flows, True)
    assert_alike([flow.eval() for flow in flows], False)
    called = []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: called.append(self) or x)
    for flow in flows:
        flow.log_prob(pixels(4), pixels(4))
    assert len(called) == 2 * sum(isinstance(m, nn.SyncBatchNorm) for m in flows[0].modules())


@pytest.mark.parametrize("hook", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hooks_on_all_modules_see_every_layer(randomise: Callable[..., nn.Module], hook: str) -> None:
    counts = []
    for flow in pair(randomise, norm="batch"):
        seen: list[str] = []
        handle = getattr(nn.modules.module, hook)(lambda m, *_, seen=seen: seen.append(type(m).__name__))
        flow.log_prob(pixels(4), pixels(4))
        handle.remove()
        counts.append(sorted(seen))
    assert counts[0] == counts[1]


def test_exactly_one_entry_of_each_channel_has_no_statistics() -> None:
    for module in (reference, fast):
        flow = module.RealNVP((2, 1, 1), norm="batch", scales=1, hidden=4, blocks=1, num_couplings=1).train()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            flow.log_prob(torch.rand(1, 2, 1, 1))


def test_networks_as_they_were_built_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would prove little if every network ran layer by layer."""
    monkeypatch.setattr(ResidualNetwork, "forward", lambda *_: pytest.fail("layer by layer"))
    for norm in ("batch", "act"):
        flow = fast.RealNVP((1, 4, 4), norm=norm, **SETTINGS).train()
        flow.log_prob(pixels(4)).sum().backward()
        copy.deepcopy(flow).eval().sample(2)


@pytest.mark.parametrize("module", [reference, fast])
def test_gradient_of_a_single_image_with_its_channels_last(randomise: Callable[..., nn.Module], module: Any) -> None:
    """PyTorch's batch normalisation errs there: see InputNorm."""
    flow = module.RealNVP((2, 4, 4), norm="batch", **SETTINGS).double()
    randomise(flow, 0.1).eval()
    image = torch.rand(4, 4, 2, dtype=torch.float64).permute(2, 0, 1).unsqueeze(0)
    assert torch.autograd.gradcheck(flow.log_prob, image.detach().requires_grad_())
