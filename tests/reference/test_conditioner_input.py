"""The input stage of a conditioner network against its definition and the couplings."""

import itertools
from functools import partial

import pytest
import torch
from tensors import normal
from torch import Tensor, nn

from pnf.flows.couplings import ConvCoupling
from pnf.flows.networks import NETWORK_EPS
from pnf.reference import OPS, batch_norm_relu, conditioner_input

EPS = 1e-3
masks = pytest.mark.parametrize(
    ("mask", "parity"), [(mask, parity) for mask in ("checkerboard", "channel") for parity in (0, 1)]
)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@masks
@pytest.mark.parametrize("norm", ["batch", "given", "none"])
def test_is_its_definition(mask: str, parity: int, norm: str) -> None:
    b, c, height, width, n, gain = 2, 4, 3, 5, 3, 1.5
    x, condition = normal(b, c, height, width), normal(b, n, height, width)
    k = c // 2 if mask == "channel" else c
    offset = None if norm == "none" else normal(k)
    given = (normal(k), normal(k).square()) if norm == "given" else (None, None)
    h, mean, var = conditioner_input(x, condition, offset, *given, mask=mask, parity=parity, gain=gain, eps=EPS)
    assert h.shape == (b, 2 * k + (mask == "checkerboard") + n, height, width)
    sites = list(itertools.product(range(b), range(height), range(width)))

    def is_kept(row: int, column: int) -> bool:
        return mask == "channel" or (row + column) % 2 == parity

    for j in range(k):
        channel = parity * k + j if mask == "channel" else j
        kept = [x[i, channel, y, z].item() if is_kept(y, z) else 0.0 for i, y, z in sites]
        v = kept
        if offset is not None:
            m = sum(kept) / len(kept)
            s = sum((e - m) ** 2 for e in kept) / len(kept)
            if norm == "given":
                m, s = given[0][j].item(), given[1][j].item()
            close((mean[j].item(), var[j].item()), (m, s))
            v = [(e - m) / (s + EPS) ** 0.5 + offset[j].item() for e in kept]
        close(h[:, j].flatten().tolist(), [max(gain * e, 0.0) for e in v])
        close(h[:, k + j].flatten().tolist(), [max(-gain * e, 0.0) for e in v])
    if mask == "checkerboard":
        assert h[:, 2 * k].flatten().tolist() == [float(is_kept(y, z)) for _, y, z in sites]
    # The condition bypasses the ReLU.
    assert torch.equal(h[:, -n:], condition)
    assert norm != "none" or (mean is None and var is None)


def test_signals_and_vectors() -> None:
    x, condition, offset = normal(3, 4, 5), normal(3, 2, 5), normal(4)
    signal = conditioner_input(x, condition, offset, mask="checkerboard", parity=1)
    image = conditioner_input(x.unsqueeze(2), condition.unsqueeze(2), offset, mask="checkerboard", parity=1)
    close((signal[0].unsqueeze(2), *signal[1:]), image)
    vector = conditioner_input(x[..., 0], condition[..., 0], offset[:2], mask="channel", parity=0)
    signal = conditioner_input(x[..., :1], condition[..., :1], offset[:2], mask="channel", parity=0)
    close((vector[0].unsqueeze(2), *vector[1:]), signal)


def test_positive_part_is_batch_norm_relu() -> None:
    x, offset = normal(3, 6, 4, 5), normal(3)
    h, mean, var = conditioner_input(x, None, offset, mask="channel", parity=1, eps=EPS)
    want = batch_norm_relu(x[:, 3:], torch.ones_like(offset), offset, eps=EPS)
    close((h[:, :3], mean, var), want)
    close(h[:, 3:], batch_norm_relu(x[:, 3:], -torch.ones_like(offset), -offset, eps=EPS)[0])


@masks
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "act"])
@pytest.mark.parametrize("condition", [0, 3])
def test_is_what_the_couplings_compute(mask: str, parity: int, norm: str, condition: int, training: bool) -> None:
    sizes = {"hidden": 5, "blocks": 1, "kernel": (3, 3)}
    coupling = ConvCoupling(4, condition, mask, parity, **sizes, norm=norm, ops=OPS).double().train(training)
    network = coupling.network
    seen: list[Tensor] = []
    network.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, beside = normal(3, 4, 4, 5).requires_grad_(), normal(3, condition, 4, 5).requires_grad_()
    leaves = [x, beside] if condition else [x]
    offset, given = None, (None, None)
    if norm == "batch":
        nn.init.normal_(network.norm.offset)
        nn.init.normal_(network.norm.norm.running_mean)
        nn.init.uniform_(network.norm.norm.running_var, 0.5, 2.0)
        leaves.append(network.norm.offset)
        offset = network.norm.offset.flatten()
        running = network.norm.norm.running_mean.clone(), network.norm.norm.running_var.clone()
        given = (None, None) if training else running
    args = [x, beside if condition else None]
    coupling.raw(*args)
    (want,) = seen
    options = {"mask": mask, "parity": parity, "gain": network.gain, "eps": NETWORK_EPS}
    h, mean, var = conditioner_input(*args, offset, *given, **options)
    grad = torch.randn_like(h)
    got, want = ([out, *torch.autograd.grad(out, leaves, grad)] for out in (h, want))
    if norm != "batch":
        # There is no rounding.
        assert (mean, var) == (None, None)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        return
    close(got, want)
    if training:
        layer, n = network.norm.norm, x.numel() // x.shape[1]
        batch = mean, var * n / (n - 1)
        close(
            [layer.running_mean, layer.running_var],
            [old.lerp(new, layer.momentum) for old, new in zip(running, batch, strict=True)],
        )
