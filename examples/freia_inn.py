"""An invertible network of FrEIA with pnf's couplings and Haar wavelets: FrEIA's numbers, and the time of each.

Run it with: python examples/freia_inn.py
"""

import time

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import Flatten, GLOWCouplingBlock, HaarDownsampling, PermuteRandom
from torch import Tensor, nn

from pnf.bridges.freia import AffineCoupling, Haar


class Network(nn.Module):
    """A subnet. pnf wants the shift first, and FrEIA what becomes the log-scale."""

    def __init__(self, inputs: int, outputs: int, shift_first: bool) -> None:
        super().__init__()
        self.shift_first = shift_first
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        raw = self.layers(x)
        return raw if self.shift_first else torch.cat(raw.chunk(2, 1)[::-1], 1)


def make(haar: type, coupling: type, shift_first: bool, **settings: object) -> SequenceINN:
    model = SequenceINN(3, 32, 32)
    for level in range(2):
        model.append(haar, order_by_wavelet=True, rebalance=0.5)
        for i in range(2):
            model.append(coupling, subnet_constructor=lambda i, o: Network(i, o, shift_first), clamp=1.0, **settings)
            model.append(PermuteRandom, seed=2 * level + i)
    model.append(Flatten)
    return model


def step(model: SequenceINN, x: Tensor) -> float:
    """Seconds of processor time for the negative log-likelihood and its gradients."""
    start = time.process_time()
    z, log_det = model(x)
    (0.5 * z.square().sum(1) - log_det).mean().backward()
    return time.process_time() - start


def main() -> None:
    torch.manual_seed(0)
    ours = make(Haar, AffineCoupling, shift_first=True)
    theirs = make(HaarDownsampling, GLOWCouplingBlock, shift_first=False, clamp_activation="TANH")
    theirs.load_state_dict(ours.state_dict(), strict=False)  # FrEIA keeps the wavelets there, too
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        (z, log_det), (their_z, their_log_det) = ours(x), theirs(x)
        back, _ = ours(z, rev=True)
    print(f"z differs by {(z - their_z).abs().max():.1e}, log_det by {(log_det - their_log_det).abs().max():.1e} nats")
    print(f"x -> z -> x errs by {(back - x).abs().max():.1e}")
    times = [(step(theirs, x), step(ours, x)) for _ in range(8)]
    of_theirs, of_ours = (sorted(column)[len(times) // 2] for column in zip(*times, strict=True))
    print(f"training step: FrEIA {of_theirs * 1e3:.0f} ms, with pnf's layers {of_ours * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
