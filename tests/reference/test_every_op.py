"""Properties of every reference op: derivatives, memory layouts, dtypes and empty batches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from tensors import normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pnf import reference as ref


class Case(NamedTuple):
    """An op as a function of floating tensors only, and a maker of float64 arguments for a batch of a given size.

    A batch may be empty, unless the op takes its statistics.
    """

    op: Callable[..., Tensor | Sequence[Tensor]]
    arguments: Callable[[int], list[Tensor]]
    may_be_empty: bool = True


def unit(*shape: int) -> Tensor:
    return 0.05 + 0.9 * torch.rand(*shape, dtype=torch.float64)


def dequantized(levels: int, *shape: int) -> Tensor:
    """Pixels with noise that is not nearly 0 or 1, where their levels change."""
    return (torch.randint(levels, shape) + unit(*shape)) / levels


def coupling(op: Callable[..., tuple[Tensor, Tensor]], mask: str | None, parity: int) -> Case:
    transformed = 2 if mask == "channel" else 4
    return Case(
        lambda x, raw, scale, log_det: op(x, raw, scale, log_det, mask, parity),
        lambda b: [normal(b, 4, 3, 2), normal(b, 2 * transformed, 3, 2), normal(transformed), normal(b)],
    )


def statistics(channels: int, given: bool) -> tuple[Tensor | None, Tensor | None]:
    """Statistics for an op, or none. They are constants of the op, and so no arguments here."""
    if not given:
        return None, None
    return torch.linspace(-1, 1, channels, dtype=torch.float64), torch.linspace(0.5, 2, channels, dtype=torch.float64)


def batch_norm_relu(given: bool) -> Case:
    return Case(
        lambda *args: ref.batch_norm_relu(*args, *statistics(4, given))[0],
        lambda b: [normal(b, 4, 3, 2), normal(4), normal(4)],
        may_be_empty=given,
    )


def conditioner_input(mask: str, parity: int, norm: str) -> Case:
    kept, given = 2 if mask == "channel" else 4, norm == "given"

    def op(x: Tensor, condition: Tensor, offset: Tensor | None = None) -> Tensor:
        used = statistics(kept, given)
        return ref.conditioner_input(x, condition, offset, *used, mask=mask, parity=parity, gain=2.0)[0]

    return Case(
        op,
        lambda b: [normal(b, 4, 3, 2), normal(b, 2, 3, 2), *([] if norm == "none" else [normal(kept)])],
        may_be_empty=norm != "batch",
    )


CASES = {
    **{
        f"haar_split {dim}": Case(lambda x, d=dim: ref.haar_split(x, d), lambda b: [normal(b, 2, 4, 6)])
        for dim in (1, 2, -2, -1)
    },
    **{
        f"haar_merge {dim}": Case(
            lambda s, d, dim=dim: ref.haar_merge(s, d, dim), lambda b: [normal(b, 2, 3, 5), normal(b, 2, 3, 5)]
        )
        for dim in (1, 2, -1)
    },
    **{
        f"haar_bounded_split {dim}": Case(
            lambda x, g, d=dim: ref.haar_bounded_split(x, g, d), lambda b: [unit(b, 2, 4, 2), normal(2)]
        )
        for dim in (2, -1)
    },
    **{
        f"haar_bounded_merge {dim}": Case(
            lambda s, u, g, d=dim: ref.haar_bounded_merge(s, u, g, d),
            lambda b: [unit(b, 2, 2, 3), normal(b, 2, 2, 3), unit(2)],
        )
        for dim in (2, -1)
    },
    **{
        f"lattice_split {dim}": Case(
            lambda x, d=dim: ref.lattice_split(x, 4, d), lambda b: [dequantized(4, b, 2, 4, 6)]
        )
        for dim in (1, -1)
    },
    **{
        f"lattice_merge {dim}": Case(
            lambda c, p, d=dim: ref.lattice_merge(c, p, 4, d),
            lambda b, d=dim: list(ref.lattice_split(dequantized(4, b, 2, 4, 6), 4, d)),
        )
        for dim in (1, -1)
    },
    **{
        f"haar_pyramid {axes}": Case(
            lambda x, a=axes: (lambda base, details: (base, *details))(*ref.haar_pyramid(x, 1, a)),
            lambda b: [normal(b, 1, 4, 2)],
        )
        for axes in ("x", "y", "xy", "yx")
    },
    "haar_pyramid_inverse": Case(
        lambda s, x, y: ref.haar_pyramid_inverse(s, [x, y], "xy"),
        lambda b: [normal(b, 1, 2, 2), normal(b, 1, 2, 2), normal(b, 1, 2, 4)],
    ),
    **{
        f"{op.__name__} {mask} {parity}": coupling(op, mask, parity)
        for op in (ref.affine_coupling, ref.affine_coupling_inverse)
        for mask, parity in ((None, 0), ("checkerboard", 0), ("checkerboard", 1), ("channel", 0), ("channel", 1))
    },
    **{
        op.__name__: Case(op, lambda b: [normal(b, 4, 3, 2), normal(4), normal(4), normal(b)])
        for op in (ref.act_norm, ref.act_norm_inverse)
    },
    **{
        f"squeeze {order}": Case(lambda x, o=order: ref.squeeze(x, o), lambda b: [normal(b, 2, 4, 2)])
        for order in ("plain", "factor")
    },
    **{
        f"squeeze_inverse {order}": Case(lambda y, o=order: ref.squeeze_inverse(y, o), lambda b: [normal(b, 8, 1, 3)])
        for order in ("plain", "factor")
    },
    "standard_normal": Case(ref.standard_normal, lambda b: [normal(b, 2, 3, 4)]),
    **{
        f"logit {alpha}": Case(lambda x, a=alpha: ref.logit(x, a), lambda b: [unit(b, 2, 3, 2)])
        for alpha in (0.0, 0.05)
    },
    **{
        f"logit_inverse {alpha}": Case(lambda y, a=alpha: ref.logit_inverse(y, a), lambda b: [normal(b, 2, 3, 2)])
        for alpha in (0.0, 0.05)
    },
    "convolution": Case(ref.convolution, lambda b: [normal(b, 2, 4, 3), normal(5, 2, 3, 3), normal(5)]),
    "dense_network": Case(
        lambda x, c, *p: ref.dense_network(x, c, p[:2], p[2:]),
        lambda b: [normal(b, 2), normal(b, 3), normal(4, 5), normal(3, 4), normal(4), normal(3)],
    ),
    **{f"batch_norm_relu {norm}": batch_norm_relu(norm == "given") for norm in ("batch", "given")},
    **{
        f"conditioner_input {mask} {parity} {norm}": conditioner_input(mask, parity, norm)
        for mask in ("checkerboard", "channel")
        for parity in (0, 1)
        for norm in ("batch", "given", "none")
    },
}

every_op = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def results(case: Case, arguments: Sequence[Tensor]) -> list[Tensor]:
    out = case.op(*arguments)
    return [out] if isinstance(out, Tensor) else list(out)


@every_op
def test_first_and_second_derivatives(case: Case) -> None:
    arguments = [a.requires_grad_() for a in case.arguments(2)]
    assert gradcheck(lambda *a: tuple(results(case, a)), arguments)
    assert gradgradcheck(lambda *a: tuple(results(case, a)), arguments)


@every_op
def test_memory_layout_changes_nothing(case: Case) -> None:
    arguments = case.arguments(3)
    want = results(case, arguments)
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "channels_last": lambda a: a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a,
        "transposed": lambda a: a.transpose(0, -1).contiguous().transpose(0, -1),
        "every second": lambda a: torch.stack((a, a + 1), -1)[..., 0],
        "backwards in memory": lambda a: a.flip(0).as_strided(a.shape, a.stride()).flip(0),
    }
    for name, layout in layouts.items():
        changed = [layout(a) for a in arguments]
        assert all(torch.equal(a, b) for a, b in zip(arguments, changed, strict=True))
        for a, b in zip(want, results(case, changed), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-14, atol=1e-14, msg=lambda m, name=name: f"{name}: {m}")


@every_op
def test_inputs_are_left_alone(case: Case) -> None:
    arguments = case.arguments(2)
    before = [a.clone() for a in arguments]
    for out in results(case, arguments):
        out.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, arguments, strict=True))


@every_op
def test_empty_batch(case: Case) -> None:
    if not case.may_be_empty:
        with pytest.raises(ValueError, match="at least one entry per channel"):
            case.op(*case.arguments(0))
        return
    one, none = results(case, case.arguments(1)), results(case, case.arguments(0))
    assert [a.shape[1:] for a in one] == [a.shape[1:] for a in none]
    assert all(a.shape[0] == 0 for a in none)


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rounds_results_once_and_sums_in_float32(case: Case, dtype: torch.dtype) -> None:
    arguments = [a.to(dtype) for a in case.arguments(3)]
    low, exact = results(case, arguments), results(case, [a.double() for a in arguments])
    for got, want in zip(low, exact, strict=True):
        is_sum = got.shape == (3,)
        assert got.dtype == (torch.float32 if is_sum else dtype)
        # One rounding to the dtype of x, after a few dozen roundings to float32.
        eps = torch.finfo(torch.float32).eps * 64 + (0 if is_sum else torch.finfo(dtype).eps)
        torch.testing.assert_close(got.double(), want, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_sums_do_not_stall(dtype: torch.dtype) -> None:
    # A sum of 2**16 ones stops at 256 in bfloat16, at 2048 in float16.
    z = torch.ones(1, 2**16, dtype=dtype)
    want = 2**16 * (-0.5 - 0.9189385332046727)
    assert ref.standard_normal(z).item() == pytest.approx(want, rel=1e-6)
    raw = torch.cat((z, z), 1).view(1, 2, -1)
    _, log_det = ref.affine_coupling(z.view(1, 1, -1), raw, torch.ones(1), torch.zeros(1, dtype=dtype))
    assert log_det.item() == pytest.approx(2**16 * torch.tensor(1.0).tanh().item(), rel=1e-6)
