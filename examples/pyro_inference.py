"""A flow of pnf as the guide of variational inference in Pyro, where the evidence is known exactly.

The latent ``z ~ N(0, I)`` is seen through ``x = W z + noise``, so that ``x`` is Gaussian. The guide ``q(z | x)`` is one
flow for all observations. Run it with: python examples/pyro_inference.py
"""

import pyro
import torch
from pyro import distributions, infer
from torch.distributions import MultivariateNormal

from pnf import RealNVP
from pnf.bridges.pyro import distribution

NOISE = 0.5


def main() -> None:
    torch.manual_seed(0)
    pyro.clear_param_store()
    loadings = torch.randn(4, 2)
    evidence = MultivariateNormal(torch.zeros(4), loadings @ loadings.T + NOISE**2 * torch.eye(4))
    x = evidence.sample((64,))
    # In training mode ActNorm would start from the first samples, which are to have a gradient.
    flow = RealNVP((2,), features=4, coupling="dense", hidden=32, num_couplings=4).eval()

    def model() -> None:
        with pyro.plate("examples", len(x)):
            z = pyro.sample("z", distributions.Normal(0.0, 1.0).expand((2,)).to_event(1))
            pyro.sample("x", distributions.Normal(z @ loadings.T, NOISE).to_event(1), obs=x)

    def guide() -> None:
        pyro.module("flow", flow)
        with pyro.plate("examples", len(x)):
            pyro.sample("z", distribution(flow, x))

    inference = infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), infer.Trace_ELBO())
    draws = infer.Trace_ELBO(num_particles=10)
    for step in range(121):
        if step % 60 == 0:
            with torch.no_grad():
                print(f"step {step:3}: evidence lower bound {-draws.loss(model, guide) / len(x):8.3f} nats an example")
        inference.step()
    print(f"the evidence itself:         {evidence.log_prob(x).mean():8.3f}")

    precision = torch.eye(2) + loadings.T @ loadings / NOISE**2
    exact = torch.linalg.solve(precision, loadings.T @ x.T / NOISE**2).T
    means = distribution(flow, x).sample((2000,)).mean(0)
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    error = ((means - exact) / deviation).square().mean().sqrt()
    print(f"posterior means err by {error:.2f} posterior deviations")


if __name__ == "__main__":
    main()
