"""The last entries of tensors with more than 2^31 entries, on machines with enough memory."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnf import ops

Zeros = Callable[..., Tensor]

N = 2**31 + 64

MEMINFO = Path("/proc/meminfo")
AVAILABLE = (
    next(int(line.split()[1]) for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable")) / 2**20
    if MEMINFO.exists()
    else 0.0
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(AVAILABLE < 18, reason=f"needs 18 GiB of free memory, and there are {AVAILABLE:.0f}"),
]


@pytest.fixture(scope="module")
def zeros() -> Zeros:
    """Makes bfloat16 tensors that share memory: zeros, except the last four entries, which are 1 to 4 eighths."""
    x = torch.zeros(N, dtype=torch.bfloat16)
    x[-4:] = torch.arange(1, 5) / 8
    return lambda *shape: x[-math.prod(shape) :].view(shape)


def last(x: Tensor, count: int = 4) -> list[float]:
    """The last entries, in eighths."""
    return (8 * x.reshape(-1)[-count:]).tolist()


def test_squeeze(zeros: Zeros) -> None:
    y = ops.squeeze(zeros(1, 1, 2, N // 2))
    # The last two columns of the lower row in order.
    assert [last(y[:, k], 2) for k in range(4)] == [[0, 0], [0, 0], [1, 3], [2, 4]]
    assert last(ops.squeeze_inverse(y)) == [1, 2, 3, 4]


def test_haar(zeros: Zeros) -> None:
    s, d = ops.haar_split(zeros(1, N), -1)
    assert (last(s, 2), last(d, 2)) == ([1.5, 3.5], [-0.5, -0.5])
    assert last(ops.haar_merge(s, d, -1)) == [1, 2, 3, 4]


def test_haar_pyramid(zeros: Zeros) -> None:
    base, details = ops.haar_pyramid(zeros(1, N), 2, "x")
    assert (last(base, 1), last(details[1], 2)) == ([2.5], [-0.5, -0.5])
    assert last(ops.haar_pyramid_inverse(base, details, "x")) == [1, 2, 3, 4]


def test_haar_bounded(zeros: Zeros) -> None:
    x = zeros(1, 1, N)
    s, u, _ = ops.haar_bounded_split(x, torch.full((1,), 0.5), -1)
    small = ops.haar_bounded_split(x[..., -4:], torch.full((1,), 0.5), -1)
    assert (last(s, 2), last(u, 2)) == (last(small[0]), last(small[1]))


def test_lattice(zeros: Zeros) -> None:
    x = zeros(1, N)
    coarser, pairs = ops.lattice_split(x, 4, -1)
    small = ops.lattice_split(x[:, -4:], 4, -1)
    assert (last(coarser, 2), last(pairs)) == (last(small[0], 2), last(small[1]))
    assert last(ops.lattice_merge(coarser, pairs, 4, -1)) == last(ops.lattice_merge(*small, 4, -1))


def test_standard_normal(zeros: Zeros) -> None:
    z = zeros(1, N).clone()
    z[0, -4:] = 2.0**13
    want = -0.5 * math.log(2 * math.pi) * N - 0.5 * 4 * 2.0**26
    assert ops.standard_normal(z).item() == pytest.approx(want, rel=1e-6)


def test_logit(zeros: Zeros) -> None:
    x = zeros(1, N)
    assert last(ops.logit(x, 0.05)[0]) == last(ops.logit(x[:, -4:], 0.05)[0])


def test_act_norm(zeros: Zeros) -> None:
    shift, log_scale = torch.full((2,), -0.125), torch.full((2,), math.log(4.0))
    y, log_det = ops.act_norm(zeros(1, 2, N // 2), shift, log_scale, torch.zeros(1))
    assert last(y) == [0, 4, 8, 12]
    assert log_det.item() == pytest.approx(N * math.log(4.0), rel=1e-6)


def test_affine_coupling(zeros: Zeros) -> None:
    x = zeros(1, 2, N // 2)
    y, _ = ops.affine_coupling(x, x, torch.ones(1), torch.zeros(1), "channel", 0)
    tail, _ = ops.affine_coupling(x[..., -4:], x[..., -4:], torch.ones(1), torch.zeros(1), "channel", 0)
    assert last(y) == last(tail)


def test_batch_norm_relu(zeros: Zeros) -> None:
    statistics = torch.full((2,), 1.5 / 8), torch.full((2,), 4.0)
    y, *_ = ops.batch_norm_relu(zeros(1, 2, N // 2), torch.ones(2), torch.zeros(2), *statistics, 0.0)
    assert last(y) == [0, 0.25, 0.75, 1.25]


def test_conditioner_input(zeros: Zeros) -> None:
    x = zeros(1, 1, 1, N // 3 + 1)
    h, *_ = ops.conditioner_input(x, None, None, mask="checkerboard", parity=x.shape[3] % 2)
    assert h.numel() > 2**31
    assert [last(h[:, k]) for k in range(3)] == [[1, 0, 3, 0], [0, 0, 0, 0], [8, 0, 8, 0]]


def test_weight_norm(zeros: Zeros) -> None:
    (weight,) = ops.weight_norm([zeros(2, N // 2)], [torch.full((2, 1), 30**0.5 / 8, dtype=torch.bfloat16)])
    assert last(weight) == [1, 2, 3, 4]


def test_convolution() -> None:
    x = torch.zeros(1, 1, 1, N // 32).contiguous(memory_format=torch.channels_last)
    x[..., -1] = 2.0
    y = ops.convolution(x, torch.arange(32.0).view(32, 1, 1, 1), torch.ones(32))
    assert y.numel() > 2**31
    assert y[0, :, 0, -1].tolist() == [1.0 + 2.0 * k for k in range(32)]
    assert (y[0, :, 0, -2] == 1).all()
