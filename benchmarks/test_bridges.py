"""Layers of pnf.bridges against those of the libraries, by turns and on equal numbers; networks cost nothing here.

On a CPU the clock is the time of the processor, so that other work on the machine counts little.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import RACE_SECONDS, ROUND_SECONDS, ROUNDS, Call, Replay
from torch import Tensor, nn
from torch.testing import assert_close

IMAGES = [(4, 8, 8, 8), (32, 12, 32, 32)]
VECTORS = [(64, 8), (1024, 64)]


class Fixed(nn.Module):
    """A network whose output is a parameter, in the order that the layer wants."""

    def __init__(self, raw: Tensor, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.raw, self.arrange = nn.Parameter(arrange(raw)), arrange

    def forward(self, *_: Any) -> Tensor:
        return self.raw


def same(raw: Tensor) -> Tensor:
    return raw


def in_turn(raw: Tensor) -> Tensor:
    """Shift and u of a channel beside each other."""
    return torch.stack(raw.chunk(2, 1), 2).flatten(1, 2)


def swapped(raw: Tensor) -> Tensor:
    return torch.cat(raw.chunk(2, 1)[::-1], 1)


Layers = tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], list[nn.Parameter], list[nn.Parameter]]


def nflows_coupling(x: Tensor, raw: Tensor, mask: Tensor) -> Layers:
    from nflows.transforms import AffineCouplingTransform

    from pnf.bridges.nflows import AffineCoupling

    class TanhCoupling(AffineCouplingTransform):
        def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
            shift, u = transform_params.chunk(2, 1)
            return u.tanh().exp(), shift

    ours, theirs = (kind(mask, lambda *_: Fixed(raw, same)).to(x.device) for kind in (AffineCoupling, TanhCoupling))
    return ours, theirs, [ours.transform_net.raw], [theirs.transform_net.raw]


def nflows_halves(x: Tensor, raw: Tensor) -> Layers:
    return nflows_coupling(x, raw, torch.arange(x.shape[1]) >= x.shape[1] // 2)


def nflows_every_second(x: Tensor, raw: Tensor) -> Layers:
    return nflows_coupling(x, raw, torch.arange(x.shape[1]) % 2)


def nflows_squeeze(x: Tensor, raw: Tensor) -> Layers:  # noqa: ARG001
    from nflows.transforms import SqueezeTransform

    from pnf.bridges.nflows import Squeeze

    return Squeeze(), SqueezeTransform(), [], []


def normflows_coupling(x: Tensor, raw: Tensor) -> Layers:
    from normflows.flows import AffineCouplingBlock

    from pnf.bridges.normflows import AffineCoupling

    class Bounded(nn.Module):
        """The usual bound of the log-scale, which normflows leaves to the network."""

        def __init__(self) -> None:
            super().__init__()
            self.network = Fixed(raw, in_turn)

        def forward(self, x: Tensor) -> Tensor:
            param = self.network(x)
            return torch.stack((param[:, 0::2], param[:, 1::2].tanh()), 2).flatten(1, 2)

    ours = AffineCoupling(x.shape[1], Fixed(raw, same)).to(x.device)
    theirs = AffineCouplingBlock(Bounded()).to(x.device)
    return ours, theirs, [ours.param_map.raw], [theirs.flows[1].param_map.network.raw]


def normflows_squeeze(x: Tensor, raw: Tensor) -> Layers:  # noqa: ARG001
    from normflows.flows import Squeeze as Theirs

    from pnf.bridges.normflows import Squeeze

    return Squeeze().inverse, Theirs().inverse, [], []


def unpacked(module: Any) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        (y,), log_det = module([x])
        return y, log_det

    return run


def freia_coupling(x: Tensor, raw: Tensor) -> Layers:
    from FrEIA.modules import GLOWCouplingBlock

    from pnf.bridges.freia import AffineCoupling

    dims = [tuple(x.shape[1:])]
    ours = AffineCoupling(dims, subnet_constructor=lambda *_: Fixed(raw, same)).to(x.device)
    theirs = GLOWCouplingBlock(dims, subnet_constructor=lambda *_: Fixed(raw, swapped), clamp_activation="TANH").to(
        x.device
    )
    return unpacked(ours), unpacked(theirs), list(ours.parameters()), list(theirs.parameters())


def freia_haar(x: Tensor, raw: Tensor) -> Layers:  # noqa: ARG001
    from FrEIA.modules import HaarDownsampling

    from pnf.bridges.freia import Haar

    dims = [tuple(x.shape[1:])]
    settings = {"order_by_wavelet": True, "rebalance": 0.5}
    return unpacked(Haar(dims, **settings)), unpacked(HaarDownsampling(dims, **settings).to(x.device)), [], []


def freia_squeeze(x: Tensor, raw: Tensor) -> Layers:  # noqa: ARG001
    from FrEIA.modules import IRevNetDownsampling

    from pnf.bridges.freia import Squeeze

    dims = [tuple(x.shape[1:])]
    return unpacked(Squeeze(dims)), unpacked(IRevNetDownsampling(dims).to(x.device)), [], []


def zuko_coupling(x: Tensor, raw: Tensor) -> Layers:
    import zuko
    from torch.distributions import Transform, constraints

    from pnf.bridges.zuko import AffineCoupling

    class TanhAffine(Transform):
        domain = codomain = constraints.real
        bijective = True

        def __init__(self, shift: Tensor, u: Tensor) -> None:
            super().__init__()
            self.shift, self.log_scale = shift, u.tanh()

        def _call(self, x: Tensor) -> Tensor:
            return x * self.log_scale.exp() + self.shift

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
            return self.log_scale

    mask = torch.arange(x.shape[1]) < x.shape[1] // 2
    ours = AffineCoupling(x.shape[1], mask=mask)
    theirs = zuko.flows.coupling.GeneralCouplingTransform(x.shape[1], mask=mask, univariate=TanhAffine)
    ours.hyper, theirs.hyper = Fixed(raw, same), Fixed(raw, in_turn)
    ours, theirs = ours.to(x.device), theirs.to(x.device)
    return (
        lambda x: ours(None).call_and_ladj(x),
        lambda x: theirs(None).call_and_ladj(x),
        [ours.hyper.raw],
        [theirs.hyper.raw],
    )


ON_IMAGES = [
    ("FrEIA", freia_coupling),
    ("FrEIA", freia_haar),
    ("FrEIA", freia_squeeze),
    ("nflows", nflows_halves),
    ("nflows", nflows_every_second),
    ("nflows", nflows_squeeze),
    ("normflows", normflows_coupling),
    ("normflows", normflows_squeeze),
]
ON_VECTORS = [("nflows", nflows_halves), ("normflows", normflows_coupling), ("zuko", zuko_coupling)]

every_pass = pytest.mark.parametrize("passes", ["forward", "forward+backward"])


def both_ways(function: Callable[[Tensor], Any], x: Tensor, raws: list[nn.Parameter], grad: Tensor) -> list[Tensor]:
    """Values, log-determinants and gradients of x and the networks' outputs."""
    x = x.detach().requires_grad_()
    y, log_det = function(x)
    loss = (y * grad.reshape(y.shape)).sum()
    if isinstance(log_det, Tensor) and log_det.requires_grad:
        loss = loss + log_det.sum()
    return [y, *torch.autograd.grad(loss, [x, *raws])]


def values(function: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        y, log_det = function(x)
        return [y, torch.as_tensor(log_det, dtype=x.dtype, device=x.device).expand(len(x))]


def by_turns(calls: dict[str, Call], device: str) -> dict[str, list[float]]:
    """Seconds of a call in each of many rounds, in which the implementations take turns."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(call: Call, repeats: int) -> float:
        synchronise()
        start = clock()
        for _ in range(repeats):
            call()
        synchronise()
        return (clock() - start) / repeats

    once = {name: min(timed(call, 3) for _ in range(3)) for name, call in calls.items()}
    repeats = {name: max(1, round(10 * ROUND_SECONDS / seconds)) for name, seconds in once.items()}
    rounds = round(RACE_SECONDS / sum(once[name] * repeats[name] for name in calls))
    durations: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(min(max(rounds, ROUNDS[0]), ROUNDS[1])):
        order = order[::-1]
        for name in order:
            durations[name].append(timed(calls[name], repeats[name]))
    return durations


@pytest.fixture
def race(replay: Replay, benchmark: Any) -> Callable[..., None]:
    """The race of a layer of pnf against that of its library, once their results are found to be equal."""

    def run(library: str, make: Callable[..., Layers], shape: tuple[int, ...], passes: str, device: str) -> None:
        pytest.importorskip(library)
        torch.manual_seed(0)
        x = torch.randn(shape, device=device)
        ours, theirs, our_raws, their_raws = make(x, torch.randn(shape, device=device))
        assert_close(values(ours, x), values(theirs, x), rtol=1e-4, atol=1e-4)
        if passes == "forward":
            calls = {library: lambda: values(theirs, x), "pnf": lambda: values(ours, x)}
        else:
            grad = torch.randn(shape, device=device)
            calls = {
                library: lambda: both_ways(theirs, x, their_raws, grad),
                "pnf": lambda: both_ways(ours, x, our_raws, grad),
            }
            assert_close(*(found()[:2] for found in calls.values()), rtol=1e-4, atol=1e-4)
        if benchmark.disabled:
            benchmark.pedantic(calls["pnf"])
            return
        durations = by_turns(calls, device)
        seconds = {name: sorted(rounds)[len(rounds) // 2] for name, rounds in durations.items()}
        replay.durations = iter(durations["pnf"])
        benchmark.group = f"bridges {library}"
        benchmark.pedantic(replay.advance, rounds=len(durations["pnf"]))
        benchmark.extra_info.update(
            library=library,
            layer=make.__name__,
            passes=passes,
            arguments=f"{'x'.join(map(str, shape))} {device}",
            seconds=seconds,
            times_library=seconds[library] / seconds["pnf"],
        )

    return run


@every_pass
@pytest.mark.parametrize(("library", "make"), ON_IMAGES)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images(
    race: Callable[..., None], library: str, make: Any, shape: tuple[int, ...], passes: str, device: str
) -> None:
    race(library, make, shape, passes, device)


@every_pass
@pytest.mark.parametrize(("library", "make"), ON_VECTORS)
@pytest.mark.parametrize("shape", VECTORS, ids=str)
def test_vectors(
    race: Callable[..., None], library: str, make: Any, shape: tuple[int, ...], passes: str, device: str
) -> None:
    race(library, make, shape, passes, device)
