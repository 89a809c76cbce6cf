"""Simulation-based inference with a flow of pnf: a posterior that is known exactly, from images as observations.

The simulator draws images ``theta_1 A + theta_2 B + noise``, with fixed pictures A and B. Its posterior is Gaussian.
Run it with: python examples/sbi_posterior.py
"""

from functools import partial

import torch
from sbi.inference import NPE
from torch import nn
from torch.distributions import MultivariateNormal

from pnf.bridges.sbi import build_posterior
from pnf.data import dequantize, load

NOISE = 1.5


def main() -> None:
    torch.manual_seed(0)
    pictures = dequantize(load("fashion-mini", "train", size=8).pixels[:2])
    design = (pictures - pictures.mean()).flatten(1).T  # [64, 2]
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((6000,))
    x = (theta @ design.T + NOISE * torch.randn(6000, 64)).reshape(-1, 1, 8, 8)

    network = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6))
    build = partial(build_posterior, embedding_net=network, num_couplings=4, hidden=32)
    inference = NPE(prior, density_estimator=build, show_progress_bars=False)
    inference.append_simulations(theta, x).train(training_batch_size=300, learning_rate=2e-3, stop_after_epochs=6)
    posterior = inference.build_posterior()

    observed = (torch.tensor([1.0, -0.5]) @ design.T).reshape(1, 1, 8, 8)
    precision = torch.eye(2) + design.T @ design / NOISE**2
    exact = MultivariateNormal(
        torch.linalg.solve(precision, design.T @ observed.flatten() / NOISE**2), precision_matrix=precision
    )
    print()  # below sbi's line of progress
    draws = posterior.sample((5000,), x=observed, show_progress_bars=False)
    for name, mean, deviation in (
        ("exact", exact.mean, exact.stddev),
        ("pnf in sbi", draws.mean(0), draws.std(0)),
    ):
        print(f"{name:10}: mean {mean[0]:+.2f} {mean[1]:+.2f}, deviation {deviation[0]:.2f} {deviation[1]:.2f}")
    points = exact.sample((2000,))
    divergence = (exact.log_prob(points) - posterior.log_prob(points, x=observed)).mean()
    print(f"KL divergence of the posterior from the exact one: {divergence:.3f} nats")


if __name__ == "__main__":
    main()
