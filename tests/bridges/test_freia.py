"""pnf in FrEIA: modules with the numbers of FrEIA's own."""

from typing import Any

import pytest
import torch
from bridge_tests import EXACT, Network, assert_module, assert_same, condition_of, given, randomised, typical
from tensors import normal
from torch import Tensor
from torch.testing import assert_close

FrEIA = pytest.importorskip("FrEIA")
bridge = pytest.importorskip("pnf.bridges.freia")

from FrEIA import framework, modules  # noqa: E402

from pnf import RealNVP  # noqa: E402


def subnet(inputs: int, outputs: int) -> Network:
    return Network(inputs, outputs)


def dense_subnet(inputs: int, outputs: int) -> Network:
    return Network(inputs, outputs, spatial=False)


def test_a_flow_is_a_module(flow: Any) -> None:
    condition = condition_of(flow, 4)
    shapes = [] if condition is None else [tuple(condition.shape[1:])]
    module = bridge.WholeFlow([flow.shape], shapes, flow=flow)
    assert module.output_dims([flow.shape]) == [(flow.dims,)]
    x = typical(flow, condition, 4)
    c = None if condition is None else [condition]
    (z,), log_det = module([x], c)
    own = flow(x, **given(flow, condition))
    assert_close((z, log_det), own, **EXACT)
    (back,), back_log_det = module([z], c, rev=True)
    assert_close(back, x)
    assert_close(back_log_det, -log_det)


def test_a_flow_is_a_node_of_a_graph() -> None:
    flow = randomised(RealNVP((2, 4, 4), features=3, hidden=4, blocks=1, num_couplings=1)).eval()
    start, condition = framework.InputNode(2, 4, 4, name="x"), framework.ConditionNode(3, name="c")
    node = framework.Node(start, bridge.WholeFlow, {"flow": flow}, conditions=condition)
    model = framework.GraphINN([start, node, framework.OutputNode(node), condition])
    x, c = normal(3, 2, 4, 4), normal(3, 3)
    z, log_det = model(x, c=c)
    assert_close((z, log_det), flow(x, features=c), **EXACT)
    assert_close(model(z, c=c, rev=True)[0], x)


def pair(dims: tuple[int, ...], conditions: list[tuple[int, ...]], **settings: Any) -> tuple[Any, Any]:
    net = subnet if len(dims) == 3 else dense_subnet
    theirs = modules.GLOWCouplingBlock(
        [dims], conditions, subnet_constructor=net, clamp_activation="TANH", **settings
    ).double()
    ours = bridge.AffineCoupling([dims], conditions, subnet_constructor=net, **settings).double()
    # FrEIA's networks emit u first.
    last = (".2.weight", ".2.bias")
    state = {k: torch.cat(v.chunk(2)[::-1]) if k.endswith(last) else v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("dims", [(4,), (5,), (6, 4, 6), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("settings", [{}, {"clamp": 0.7, "split_len": 1}, {"split_len": 0.7}], ids=str)
def test_the_coupling_has_the_numbers_of_freia(
    dims: tuple[int, ...], conditional: bool, reverse: bool, settings: dict[str, Any]
) -> None:
    shapes = [(2, *dims[1:])] * 2 if conditional else []
    ours, theirs = pair(dims, shapes, **settings)
    c = [normal(3, *shape) for shape in shapes]

    def run(module: Any) -> Any:
        def call(x: Tensor) -> tuple[Tensor, Tensor]:
            (y,), log_det = module([x], c, rev=reverse)
            return y, log_det

        return call

    x = normal(3, *dims)
    assert_same(run(ours), run(theirs), x)
    for module in (ours, theirs):
        y, log_det = run(module)(x)
        (y.sin().sum() + log_det.sum()).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        grad = torch.cat(q.grad.chunk(2)[::-1]) if name.endswith((".2.weight", ".2.bias")) else q.grad
        assert_close(p.grad, grad, **EXACT)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_squeeze_has_the_numbers_of_freia(reverse: bool) -> None:
    dims = (8, 4, 6)
    ours, theirs = bridge.Squeeze([dims]), modules.IRevNetDownsampling([dims]).double()
    x = normal(2, 32, 2, 3) if reverse else normal(2, *dims)
    assert_same(lambda x: unpacked(ours([x], rev=reverse)), lambda x: unpacked(theirs([x], rev=reverse)), x)
    assert [tuple(d) for d in ours.output_dims([dims])] == [tuple(d) for d in theirs.output_dims([dims])]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("order_by_wavelet", [False, True])
@pytest.mark.parametrize("rebalance", [1.0, 0.5, -0.3])
def test_haar_has_the_numbers_of_freia(reverse: bool, order_by_wavelet: bool, rebalance: float) -> None:
    dims = (8, 4, 6)
    ours = bridge.Haar([dims], None, order_by_wavelet, rebalance)
    theirs = modules.HaarDownsampling([dims], None, order_by_wavelet, abs(rebalance)).double()
    theirs.fac_fwd, theirs.fac_rev = 0.5 * rebalance, 0.5 / rebalance
    # FrEIA's inverse scales its input in place.
    assert_same(
        lambda x: unpacked(ours([x], rev=reverse)),
        lambda x: unpacked(theirs([x.clone()], rev=reverse)),
        normal(2, 32, 2, 3) if reverse else normal(2, *dims),
    )


def unpacked(result: Any) -> tuple[Tensor, Any]:
    (y,), log_det = result
    return y, log_det


def sequence() -> Any:
    model = framework.SequenceINN(2, 8, 8)
    model.append(bridge.Squeeze)
    model.append(bridge.AffineCoupling, subnet_constructor=subnet)
    model.append(modules.PermuteRandom, seed=1)
    model.append(bridge.Haar, order_by_wavelet=True)
    model.append(bridge.AffineCoupling, cond=0, cond_shape=(3, 2, 2), subnet_constructor=subnet, split_len=0.25)
    model.append(modules.AllInOneBlock, subnet_constructor=subnet)
    model.append(modules.Flatten)
    return model


def test_layers_make_a_sequence() -> None:
    model = sequence().double()
    x, c = normal(3, 2, 8, 8), [normal(3, 3, 2, 2)]
    z, log_det = model(x, c=c)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, c=[c[0][:1]])[0].flatten(), x[:1])
    assert_close(log_det[0], torch.linalg.slogdet(jacobian.reshape(128, 128)).logabsdet)
    back, back_log_det = model(z, c=c, rev=True)
    assert_close(back, x)
    assert_close(back_log_det, -log_det)
    assert_module(model, sequence)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bridge.AffineCoupling([(4,)]), "AffineCoupling: subnet_constructor must be given"),
        (
            lambda: bridge.AffineCoupling([(4,)], subnet_constructor=dense_subnet, split_len=4),
            "AffineCoupling: split_len must leave both parts some of 4 channels, got 4",
        ),
        (lambda: bridge.Haar([(1, 4, 4)], rebalance=0), "Haar: rebalance must not be 0"),
        (
            lambda: bridge.Haar([(1, 4, 4)]).output_dims([(1, 3, 4)]),
            r"Haar: the input must be \(C, H, W\) with an even height and width, got \[\(1, 3, 4\)\]",
        ),
        (
            lambda: bridge.WholeFlow([(3,)], flow=RealNVP((4,), coupling="dense")),
            r"WholeFlow: dims_in must be \[\(4,\)\], the shape of the flow, got \[\(3,\)\]",
        ),
    ],
)
def test_modules_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
