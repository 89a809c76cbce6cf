"""Simulation-based inference from images with a flow of pnf, where the posterior is known exactly.

The simulator draws images ``theta_1 A + theta_2 B + noise``, with fixed pictures A and B, so the posterior is Gaussian.
Run it with: python examples/sbi_posterior.py
"""

import time
from functools import partial

import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pnf.bridges.sbi import build_posterior
from pnf.data import dequantize, load

NOISE = 1.5


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6))


def main(simulations: int = 3000) -> None:
    torch.manual_seed(0)
    pictures = dequantize(load("fashion-mini", "train", size=8).pixels[:2])
    design = (pictures - pictures.mean()).flatten(1).T  # [64, 2]
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        theta = prior.sample((n,))
        return theta, (theta @ design.T + NOISE * torch.randn(n, 64)).reshape(n, 1, 8, 8)

    theta, x = simulate(simulations)
    new_theta, new_x = simulate(1000)
    precision = torch.eye(2) + design.T @ design / NOISE**2
    means = torch.linalg.solve(precision, design.T @ new_x.flatten(1).T / NOISE**2).T
    exact = MultivariateNormal(means, precision_matrix=precision)

    for name, build in {
        "pnf": partial(build_posterior, embedding_net=network(), num_couplings=4, hidden=32),
        "maf of sbi": posterior_nn("maf", embedding_net=network(), z_score_x="none", hidden_features=32),
    }.items():
        start = time.process_time()
        inference = NPE(prior, density_estimator=build, show_progress_bars=False).append_simulations(theta, x)
        inference.train(training_batch_size=300, learning_rate=2e-3, stop_after_epochs=6)
        seconds = time.process_time() - start
        posterior = inference.build_posterior()
        log_prob = posterior.log_prob_batched(new_theta[None], new_x, norm_posterior=False)[0]
        divergence = (exact.log_prob(new_theta) - log_prob).mean()
        mean = posterior.sample((2000,), x=new_x[:1], show_progress_bars=False).mean(0)
        print(f"\n{name}, trained in {seconds:.1f} s of processor time")
        print(f"  KL divergence from the exact posterior, mean of 1000 images: {divergence:.3f} nats")
        print(f"  first image: mean {mean[0]:+.2f} {mean[1]:+.2f}, exactly {means[0, 0]:+.2f} {means[0, 1]:+.2f}")


if __name__ == "__main__":
    main()
