"""Couplings of pnf inside a zuko flow, and a class-conditional flow of pnf as a zuko distribution.

Run it with: python examples/zuko_flow.py
"""

import math
import time

import torch
import zuko
from torch import Tensor

from pnf import ProgressiveFlow
from pnf.bridges.zuko import AffineCoupling, LazyFlow
from pnf.data import dequantize, load


def spirals(n: int) -> Tensor:
    """Points of two noisy spirals, [n, 2]."""
    angle = 3 * math.pi * torch.rand(n).sqrt()
    sign = torch.randint(2, (n,)) * 2 - 1
    return torch.stack((angle.cos(), angle.sin()), 1) * (sign * angle)[:, None] / 4 + 0.05 * torch.randn(n, 2)


def train(flow: zuko.lazy.Flow, steps: int = 100) -> tuple[float, float]:
    """Held-out nats of a flow after this number of steps, and the seconds that they took."""
    optimiser = torch.optim.Adam(flow.parameters(), 5e-3)
    start = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -flow().log_prob(spirals(256)).mean()
        loss.backward()
        optimiser.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return -flow().log_prob(spirals(10_000)).mean().item(), seconds


def main() -> None:
    torch.manual_seed(0)
    theirs = zuko.flows.RealNVP(2, transforms=4, hidden_features=(64, 64))
    masks = [torch.arange(2) % 2 == i % 2 for i in range(4)]
    ours = zuko.lazy.Flow([AffineCoupling(2, mask=mask, hidden_features=(64, 64)) for mask in masks], theirs.base)
    for name, flow in {"couplings of zuko": theirs, "couplings of pnf": ours}.items():
        nats, seconds = train(flow)
        print(f"two spirals, {name}: {nats:.3f} nats held out after {seconds:.1f} s")

    # The other way round: images under a flow of pnf, as a distribution that zuko can use.
    pixels = dequantize(load("fashion-mini", "test", size=16).pixels[:64])
    flow = ProgressiveFlow((1, 16, 16), levels=2, coupling="dense", hidden=32, condition_shape=(1,))
    brightness = pixels.mean((2, 3))
    flow(pixels, brightness)  # the first batch sets the scales
    lazy = LazyFlow(flow.eval())
    given = lazy(brightness)
    print(f"{len(pixels)} images given their brightness: {given.log_prob(pixels).mean():.0f} nats, untrained")
    x, log_prob = lazy(torch.tensor([[0.2], [0.8]])).rsample_and_log_prob((4,))
    print(f"draws {tuple(x.shape)} with their density {tuple(log_prob.shape)}, and gradients: {x.requires_grad}")


if __name__ == "__main__":
    main()
