"""Random flows on extreme images: ``python tests/fuzz_models.py --cases N``.

A flow has a random configuration, random parameters, some or all of them scaled by up to 1e3, and networks in float32
or bfloat16. For finite input its log-likelihoods, samples, upsampled images and gradients must be finite, unless
float64 shows that a number on the way leaves float32's range. With ``memory="invertible"`` that holds for the gradients
of flows that float32 can invert. The same seed makes the same cases; a failing one is shrunk and printed.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "support"))

from fuzzing import fuzz

from pnf import fast, reference
from pnf.flows.couplings import ActNorm, BatchNormFlow, Coupling

RANGE = 1e30
"""The bound of numbers that leave room for sums, and for the errors of bfloat16, below float32's end at 3e38."""

SQUARABLE = 1e15
"""The same bound for numbers that are squared: noise, and the inputs of batch normalisation."""

IMAGES = ("black", "white", "halves", "pairs", "noise", "least", "almost white", "dot", "denormal")

Counts = Counter[str]


class Case(NamedTuple):
    """A flow and its input. Everything else comes from the seed."""

    progressive: bool
    shape: tuple[int, ...]
    options: dict[str, Any]
    implementation: str
    network: str
    training: bool
    scaled: str
    factor: float
    image: str
    temperature: float
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    coupling = one("conv", "dense")
    progressive = one(True, False)
    levels = one(0, 1, 2) if progressive else 0
    edges = [one(1, 2, 3) << levels for _ in range(2)]
    shape = one((one(1, 2, 3), *edges), (one(1, 2), edges[0]), (edges[0],))
    options: dict[str, Any] = {"coupling": coupling, "norm": one("act", "batch", "none")}
    options |= {"hidden": one(1, 2, 5, 8), "blocks": one(1, 2, 3), "num_couplings": one(1, 2, 4)}
    if coupling == "conv":
        options |= {"scales": 1, "memory": one("plain", "invertible"), "injector": one(True, False)}
        options |= {"encoder": one(0, 1, 2), "spline": one(0, 1, 8)}
    if progressive:
        options |= {"levels": levels, "axes": one("xy", "yx", "x", "y"), "detail": one("bounded", "identity")}
        options["lattice"] = options["detail"] == "bounded" and one(True, False)
        options["alpha"] = one(None, 0.0, 0.05, 0.499)
    else:
        options["alpha"] = one(0.0, 1e-6, 0.05)
    scaled = one("nothing", "everything", "one parameter", "scales")
    factor = 1.0 if scaled == "nothing" else 10 ** draw(st.floats(-3, 3))
    temperature = one(0.0, 0.7, 1.0, 10.0)
    return Case(
        progressive,
        shape,
        options,
        one("fast", "reference"),
        one("float32", "bfloat16"),
        one(True, False),
        scaled,
        factor,
        one(*IMAGES),
        temperature,
        draw(st.integers(0, 2**31)),
    )


def build(case: Case) -> Any:
    module = fast if case.implementation == "fast" else reference
    options = dict(case.options)
    if case.progressive:
        return module.ProgressiveFlow(case.shape, options.pop("levels"), **options)
    return module.RealNVP(case.shape, **options)


def picture(kind: str, count: int, shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    noise = torch.rand(count, *shape, generator=chance)
    x = {
        "black": torch.zeros_like(noise),
        "white": torch.ones_like(noise),
        "halves": (noise > 0.5).float(),
        "noise": noise,
        "least": torch.full_like(noise, 2.0**-24),
        "almost white": torch.full_like(noise, 1 - 2.0**-24),
        "denormal": torch.full_like(noise, 1e-42),
    }.get(kind, torch.zeros_like(noise))
    if kind == "pairs":
        x[..., ::2] = 1
    elif kind == "dot":
        x[..., 0] = 1
    return x


def disturb(flow: nn.Module, case: Case, chance: torch.Generator) -> None:
    """Set random parameters, and scale some of them."""
    parameters = dict(flow.named_parameters())
    chosen = set(parameters)
    if case.scaled == "one parameter":
        chosen = {sorted(chosen)[case.seed % len(chosen)]}
    elif case.scaled == "scales":
        chosen = {name for name in chosen if name.rpartition(".")[2] in ("scale", "log_scale", "magnitude")}
    for name, parameter in parameters.items():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)
        if name in chosen:
            parameter.data *= case.factor


class Peak:
    """The largest number on the way through a flow in float64, forward and backward."""

    def __init__(self) -> None:
        self.tensors: dict[float, list[Tensor]] = {RANGE: [], SQUARABLE: []}

    @property
    def value(self) -> float:
        """The largest number, with all bounds scaled to ``RANGE``; infinite if one is NaN."""
        found = 0.0
        for bound, tensors in self.tensors.items():
            if tensors:
                largest = max(torch.stack(torch._foreach_norm(tensors, torch.inf)).nan_to_num(torch.inf).tolist())
                found = max(found, largest * (RANGE / bound))
        return found

    def add(self, x: Any, bound: float = RANGE) -> None:
        """Include numbers with a given bound."""
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            self.tensors[bound].append(x.detach())
            if x.requires_grad and bound == RANGE:
                x.register_hook(self.add)
        elif isinstance(x, tuple | list):
            for item in x:
                self.add(item, bound)

    @contextmanager
    def of(self, flow: nn.Module) -> Iterator[None]:
        handles = []
        for module in flow.modules():
            handles.append(
                module.register_forward_hook(lambda _m, args, out: (self.add(args), self.add(out), None)[-1])
            )
            if isinstance(module, Coupling):
                self.add(module.scale.detach().abs().exp())
            elif isinstance(module, ActNorm):
                self.add(module.log_scale.detach().abs().exp())
            elif isinstance(module, BatchNormFlow | nn.BatchNorm2d):
                handles.append(module.register_forward_hook(lambda _m, args, _out: self.add(args[0], SQUARABLE)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def results(flow: Any, case: Case, x: Tensor) -> dict[str, Tensor]:
    """All results of a flow for images, and its samples."""
    found = {}
    x = x.clone().requires_grad_()
    with torch.no_grad():
        found["z"], found["log_det"] = flow(x)
    found["log_prob"] = log_prob = flow.log_prob(x)
    parameters = list(flow.parameters())
    grads = torch.autograd.grad(log_prob.mean(), [x, *parameters], allow_unused=True)
    names = ["x", *(name for name, _ in flow.named_parameters())]
    found |= {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    generator = torch.Generator().manual_seed(case.seed)
    noise = torch.randn(2, flow.dims, generator=generator, dtype=torch.float64).to(x.dtype)
    with torch.no_grad():
        found["sample"], found["sample's log_det"] = flow.inverse(case.temperature * noise)
        if case.progressive:
            code = flow.encode(x.detach())
            found["decoded"] = flow.decode(code)
            dims = flow.dims - flow.stage_dims[0]
            found["upsampled"] = flow.upsample(code, noise=case.temperature * noise[:1, :dims].expand(len(x), -1))
    return found


def faults(found: dict[str, Tensor], case: Case) -> list[str]:
    """Descriptions of wrong results."""
    wrong = [f"{name} is not finite" for name, value in found.items() if not value.isfinite().all()]
    if case.options.get("detail") == "bounded":
        images = ("sample", "decoded", "upsampled")
        wrong += [f"{name} leaves [0, 1]" for name in images if not ((found[name] >= 0) & (found[name] <= 1)).all()]
    return wrong


def restore(case: Case, state: dict[str, Tensor]) -> Any:
    """The flow of a case with given parameters."""
    flow = build(case)
    flow.load_state_dict(state)
    flow.train(case.training)
    flow.set_network_dtype(torch.bfloat16 if case.network == "bfloat16" else None)
    return flow


def largest_number(case: Case, state: dict[str, Tensor], x: Tensor) -> float:
    """The largest number on the way through the same flow in float64."""
    exact = restore(case._replace(implementation="reference", network="float32"), state).double()
    peak = Peak()
    with peak.of(exact):
        expected = results(exact, case, x.double())
    for name, value in expected.items():
        peak.add(value.detach(), SQUARABLE if name == "z" else RANGE)
    return peak.value


@torch.no_grad()
def comes_back(flow: Any, x: Tensor) -> bool:
    """Whether x -> z -> x errs by less than two of 256 levels."""
    flow.eval()
    z, _ = flow(x)
    back, _ = flow.inverse(z)
    return bool((back - x).abs().max() < 2 / 256)


def check(case: Case, counts: Counts) -> None:
    """Check a case: its results are finite wherever float32 allows it."""
    chance = torch.Generator().manual_seed(case.seed)
    torch.manual_seed(case.seed)
    flow = build(case)
    x = picture(case.image, 2, case.shape, chance)
    flow(torch.rand(4, *case.shape, generator=chance))  # initialises ActNorm
    disturb(flow, case, chance)
    flow.train(case.training)
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.set_network_dtype(torch.bfloat16 if case.network == "bfloat16" else None)
    wrong = faults(results(flow, case, x), case)
    if not wrong:
        counts[f"{case.implementation}, {case.network} networks"] += 1
        return
    largest = largest_number(case, state, x)
    if largest <= RANGE and case.options.get("memory") == "invertible" and not comes_back(flow, x):
        # Then the activations that its backward reconstructs, and so the gradients, may be anything.
        plain = case._replace(options=case.options | {"memory": "plain"})
        wrong = faults(results(restore(plain, state), plain, x), plain)
        assert not wrong, f"{', '.join(wrong)} with plain memory"
        counts["not invertible"] += 1
        return
    assert largest > RANGE, f"{', '.join(wrong)}; the largest number on the way was {largest:.1e}"
    counts["out of range"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counts = Counter()
    try:
        fuzz(cases(), lambda case: check(case, counts), options.cases, options.seed)
    except Exception as error:
        print(*getattr(error, "__notes__", []), repr(error), "FAILED", sep="\n")
        return 1
    for kind, count in sorted(counts.items()):
        print(f"{count:8} {kind}")
    finite = counts.total() - counts["out of range"] - counts["not invertible"]
    print(f"{counts.total()} cases: {finite} finite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
