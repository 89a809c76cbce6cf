"""Affine couplings with their conditioner networks, and the normalisations between them."""

import math
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pnf.flows.networks import MOMENTUM, NETWORK_EPS, DenseNetwork, ResidualNetwork, WeightNormConv2d
from pnf.flows.op_table import OpTable
from pnf.flows.spline import spline, spline_outputs
from pnf.flows.transforms import transformed

INJECTOR_SCALE = 2.0
"""The initial bound of an injector's log-scale. Details near an edge are ten times those of a plain surface."""


class FlowNorm(nn.Module):
    """An invertible normalisation of each channel: ``x, log_det -> y, log_det``."""

    ops: OpTable

    def forward(self, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det, _ = self.transform(x, log_det)
        return y, log_det

    @abstractmethod
    def transform(self, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return ``y, log_det``, and the statistics that normalised x."""

    def transform_half(
        self, x: Tensor, log_det: Tensor, mask: str, parity: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The same for the half of x that a mask does not keep."""
        kept, rest = self.ops.mask_pack(x, mask, parity)
        rest, log_det, statistics = self.transform(rest, log_det)
        return self.ops.mask_unpack(kept, rest, mask, parity, x.shape[2:]), log_det, statistics

    @abstractmethod
    def inverse(
        self, y: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Invert ``transform``, with its statistics or those of evaluation."""


class ActNorm(FlowNorm):
    """ActNorm, ``y = (x + shift) * exp(log_scale)``, which gives its first training batch mean 0 and variance 1.

    A batch with few entries n for each channel says little about their deviation. So the deviation is at least
    ``2**(1 - n)``: 1/2 for two entries, and no limit for batches of usual size.

    Inside the forward of ``DistributedDataParallel`` the batches of all processes count as one, so that all processes
    start alike.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1.

    Args:
        channels: of the input, dim 1.
        ops: the op table.
    """

    initialized: Tensor

    def __init__(self, channels: int, ops: OpTable) -> None:
        super().__init__()
        self.ops = ops
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        # The buffer, once known to be true, since a read in each step would wait for the device. A flag would not do:
        # torch.func.functional_call replaces the module's state.
        self._known: Tensor | None = None

    def transform(self, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if self.training and self._known is not self.initialized:
            self._initialize(x.detach())
        return *self.ops.act_norm(x, self.shift, self.log_scale, log_det), ()

    def inverse(
        self,
        y: Tensor,
        log_det: Tensor,
        statistics: tuple[Tensor, ...] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        return self.ops.act_norm_inverse(y, self.shift, self.log_scale, log_det)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        """Set the parameters unless they are set already."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "ActNorm: torch.nn.DataParallel would forget what the first batch sets; call the flow once on a batch "
                "before it is wrapped, or use DistributedDataParallel"
            )
        if not self._is_set():
            n, mean, var = _joined(*_moments(x))
            if n == 0:
                return
            # A constant channel has no scale.
            log_scale = -0.5 * torch.where(var > 1e-12, var.clamp(min=4.0 ** (1 - n)), 1).log()
            try:
                # torch.vmap hides the flags of the states that it stacks. Some may be set, and others not.
                self.shift.copy_(torch.where(self.initialized, self.shift, -mean))
                self.log_scale.copy_(torch.where(self.initialized, self.log_scale, log_scale))
                self.initialized.fill_(True)
            except RuntimeError as error:
                if not transformed():
                    raise
                raise RuntimeError(
                    "ActNorm: the first batch in training mode sets shift and log_scale, which works outside of "
                    "torch.func transforms only; call the flow on a batch before"
                ) from error
        if not transformed():
            self._known = self.initialized

    def _is_set(self) -> bool:
        """Whether the current state has been set, if its flag can be read."""
        try:
            return not torch.compiler.is_compiling() and bool(self.initialized)
        except RuntimeError:
            return False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """The number of entries of each channel, their mean and their biased variance."""
    if x.numel() == 0:
        zeros = x.new_zeros(x.shape[1])
        return 0, zeros, zeros
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return x.numel() // x.shape[1], mean, var


def _joined(n: int, mean: Tensor, var: Tensor) -> tuple[int, Tensor, Tensor]:
    """Combine moments over all processes inside the forward of ``DistributedDataParallel``.

    Outside it they are returned unchanged, since the other processes may not be here, and waiting could take for ever.
    """
    wrapper: Any = DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or distributed.get_world_size(wrapper.process_group) == 1:
        return n, mean, var
    dtype = torch.promote_types(mean.dtype, torch.float32)
    count = torch.full((1,), n, dtype=torch.int64, device=mean.device)

    def total(values: Tensor) -> Tensor:
        values = values.contiguous()
        distributed.all_reduce(values, group=wrapper.process_group)
        return values

    entries = int(total(count))
    if entries == 0:
        return 0, mean, var
    centre = total(mean.to(dtype) * n) / entries
    spread = total((var.to(dtype) + (mean.to(dtype) - centre).square()) * n) / entries
    return entries, centre.to(mean.dtype), spread.to(var.dtype)


class BatchNormFlow(FlowNorm):
    """Batch normalisation as an invertible layer: ``y = (x - mean) / sqrt(var + eps)`` for each channel.

    Training uses the batch's statistics (biased variance). Evaluation and the inverse use running statistics (decay
    0.1). The log-determinant is ``-log(var + eps) / 2`` for each entry.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.7 and appendix E.

    Args:
        channels: of the input, dim 1.
        ops: the op table.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, ops: OpTable) -> None:
        super().__init__()
        self.ops = ops
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum = MOMENTUM

    def transform(self, x: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        return self._normalise(x, log_det)

    def transform_half(
        self, x: Tensor, log_det: Tensor, mask: str, parity: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        return self._normalise(x, log_det, mask, parity)

    def _normalise(
        self, x: Tensor, log_det: Tensor, mask: str | None = None, parity: int = 0
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        # A checkerboard over a single site has an empty half.
        of_batch = self.training and x.numel() > (x.shape[0] * x.shape[1] if mask == "checkerboard" else 0)
        given_mean, given_var = (None, None) if of_batch else (self.running_mean, self.running_var)
        y, log_det, mean, var = self.ops.batch_norm(x, log_det, given_mean, given_var, NETWORK_EPS, mask, parity)
        if of_batch:
            with torch.no_grad():
                torch._foreach_lerp_([self.running_mean, self.running_var], [mean, var], self.momentum)
        return y, log_det, (mean, var)

    def inverse(
        self, y: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, var = statistics or (self.running_mean, self.running_var)
        shape = (-1, *(1,) * (y.dim() - 2))
        x = y * (var + NETWORK_EPS).sqrt().view(shape) + mean.view(shape)
        return x, log_det + 0.5 * math.prod(y.shape[2:]) * (var + NETWORK_EPS).log().sum()


def make_norm(norm: str, channels: int, ops: OpTable) -> FlowNorm | None:
    """Make the normalisation layer of a name: ``"act"``, ``"batch"`` or ``"none"``."""
    if norm == "none":
        return None
    return (ActNorm if norm == "act" else BatchNormFlow)(channels, ops)


class Conditioner(nn.Module):
    """The base of what has a network, with the precision of it."""

    network_dtype: torch.dtype | None = None

    def precision(self, x: Tensor) -> AbstractContextManager[object]:
        """The autocast context of the network. Low precision is opt-in and ends with it."""
        if self.network_dtype is None:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.network_dtype)


class Encoder(Conditioner):
    """A network of the condition that all couplings of a convolutional flow share.

    Args:
        network: maps the condition to what the injector takes, and to a code for the networks of couplings.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision(condition):
            encoded, code = self.network(condition)
            return encoded, code


def network_outputs(transformed: int, bins: int) -> int:
    """The channels that a coupling takes of its network: shifts, log-scales, and parameters of splines."""
    return (2 + spline_outputs(bins)) * transformed


class Coupling(Conditioner):
    """The base of couplings, with the bound of the log-scale.

    Args:
        transformed: number of transformed channels.
        norm: normalisation of the transformed channels after the coupling, ``"act"``, ``"batch"`` or ``"none"``.
        ops: the op table.
        bins: of a spline for each entry in front of the affine map, 0 for none.
    """

    def __init__(self, transformed: int, norm: str, ops: OpTable, bins: int = 0) -> None:
        super().__init__()
        self.ops, self.bins = ops, bins
        self.scale = nn.Parameter(torch.ones(transformed))
        self.norm = make_norm(norm, transformed, ops)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output for the affine map and for the splines."""
        affine = 2 * self.scale.shape[0]
        return (raw[:, :affine], raw[:, affine:]) if self.bins else (raw, None)


class ConvCoupling(Coupling):
    """An affine coupling on ``[B, C, H, W]`` under a checkerboard or channel mask.

    Args:
        channels: C.
        condition: channels of the condition, 0 for none.
        mask, parity: the half to keep.
        hidden, blocks, kernel: see :class:`ResidualNetwork`.
        norm: see :class:`Coupling`. With ``"batch"`` the network has batch normalisation too.
        bins: see :class:`Coupling`.
        network_class: the class of the network.
        ops: the op table.
    """

    def __init__(
        self,
        channels: int,
        condition: int,
        mask: str,
        parity: int,
        *,
        hidden: int,
        blocks: int,
        kernel: tuple[int, int],
        norm: str,
        ops: OpTable,
        bins: int = 0,
        network_class: type[ResidualNetwork] = ResidualNetwork,
    ) -> None:
        transformed = channels if mask == "checkerboard" else channels // 2
        super().__init__(transformed, norm, ops, bins)
        self.mask, self.parity = mask, parity
        self.network = network_class(
            channels,
            network_outputs(transformed, bins),
            condition,
            mask,
            parity,
            hidden=hidden,
            blocks=blocks,
            kernel=kernel,
            batch_norm=norm == "batch",
            ops=ops,
        )

    def forward(self, x: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det, _ = self.transform(x, self.raw(x, condition), log_det)
        return y, log_det

    def inverse(self, y: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        # y and x have the same kept half.
        return self.undo(y, self.raw(y, condition), log_det)

    def raw(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The network's output for the kept half of x."""
        with self.precision(x):
            raw: Tensor = self.network(x, condition)
            return raw

    def transform(self, x: Tensor, raw: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return ``y, log_det``, and the statistics that normalised y."""
        raw, of_spline = self._split(raw)
        if of_spline is not None:
            x, log_det = self._bend(x, of_spline, log_det)
        y, log_det = self.ops.affine_coupling(x, raw, self.scale, log_det, self.mask, self.parity)
        if self.norm is None:
            return y, log_det, ()
        return self.norm.transform_half(y, log_det, self.mask, self.parity)

    def undo(
        self, y: Tensor, raw: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Invert ``transform``, with its statistics or those of evaluation."""
        raw, of_spline = self._split(raw)
        if self.norm is not None:
            kept, rest = self.ops.mask_pack(y, self.mask, self.parity)
            rest, log_det = self.norm.inverse(rest, log_det, statistics)
            y = self.ops.mask_unpack(kept, rest, self.mask, self.parity, y.shape[2:])
        x, log_det = self.ops.affine_coupling_inverse(y, raw, self.scale, log_det, self.mask, self.parity)
        return (x, log_det) if of_spline is None else self._bend(x, of_spline, log_det, inverse=True)

    def _bend(self, x: Tensor, raw: Tensor, log_det: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map the transformed half by the spline."""
        kept, rest = self.ops.mask_pack(x, self.mask, self.parity)
        if self.mask == "checkerboard":
            raw = self.ops.mask_pack(raw, self.mask, self.parity)[1]
        rest, own = spline(rest, raw, self.bins, inverse=inverse)
        return self.ops.mask_unpack(kept, rest, self.mask, self.parity, x.shape[2:]), log_det + own


class DenseCoupling(Coupling):
    """An affine coupling of one half of a vector given the other half and a condition.

    Args:
        kept: features of the kept half; may be 0.
        transformed: features of the transformed half.
        condition: features of the condition, 0 for none.
        hidden, layers: see :class:`DenseNetwork`.
        norm: see :class:`Coupling`.
        network_class: the class of the network.
        ops: the op table.
    """

    def __init__(
        self,
        kept: int,
        transformed: int,
        condition: int,
        *,
        hidden: int,
        layers: int,
        norm: str,
        ops: OpTable,
        network_class: type[DenseNetwork] = DenseNetwork,
    ) -> None:
        super().__init__(transformed, norm, ops)
        self.network = network_class(kept + condition, 2 * transformed, hidden=hidden, layers=layers)

    def forward(self, x: Tensor, kept: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        y, log_det = self.ops.affine_coupling(x, self._raw(kept, condition), self.scale, log_det)
        return (y, log_det) if self.norm is None else self.norm(y, log_det)

    def inverse(self, y: Tensor, kept: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.norm is not None:
            y, log_det = self.norm.inverse(y, log_det)
        return self.ops.affine_coupling_inverse(y, self._raw(kept, condition), self.scale, log_det)

    def _raw(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        with self.precision(kept):
            given = (kept,) if condition is None else (kept, condition)
            # An exchanged network, perhaps an nn.Sequential, has one input.
            raw: Tensor = self.network(*given if isinstance(self.network, DenseNetwork) else (torch.cat(given, 1),))
            return raw


class Injector(Coupling):
    """An affine map of all of x. A network of the condition gives its log-scale and shift.

    It removes at once the mean and the scale of x that the condition predicts, and leaves the rest to the couplings.
    With a spline in front, it can also give a density of several modes the form of a normal one.

    Source: Lugmayr et al., "SRFlow" (2020), section 3.3.

    Args:
        channels: channels of x.
        network: maps the condition to ``2 * channels`` channels, and those of the splines.
        ops: the op table.
        bins: see :class:`Coupling`.
    """

    def __init__(self, channels: int, network: nn.Module, ops: OpTable, bins: int = 0) -> None:
        super().__init__(channels, "none", ops, bins)
        nn.init.constant_(self.scale, INJECTOR_SCALE)
        self.network = network

    def forward(self, x: Tensor, log_det: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw, of_spline = self._split(self._raw(condition))
        if of_spline is not None:
            x, own = spline(x, of_spline, self.bins)
            log_det = log_det + own
        return self.ops.affine_coupling(x, raw, self.scale, log_det)

    def inverse(self, y: Tensor, log_det: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw, of_spline = self._split(self._raw(condition))
        x, log_det = self.ops.affine_coupling_inverse(y, raw, self.scale, log_det)
        if of_spline is None:
            return x, log_det
        x, own = spline(x, of_spline, self.bins, inverse=True)
        return x, log_det + own

    def _raw(self, condition: Tensor) -> Tensor:
        with self.precision(condition):
            raw: Tensor = self.network(condition)
            return raw


def scale_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The bounds of the log-scales and the magnitudes of weight normalisation, which training regularises."""
    found = []
    for m in module.modules():
        if isinstance(m, Coupling):
            found.append(m.scale)
        elif isinstance(m, WeightNormConv2d) and m.magnitude is not None:
            found.append(m.magnitude)
    return found


def weight_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers that, as ``[outputs, rest]``, have more than one row and column."""
    found: list[nn.Parameter] = []
    for m in module.modules():
        if isinstance(m, (WeightNormConv2d, nn.Conv2d, nn.Linear)):
            weight = cast(nn.Parameter, m.direction if isinstance(m, WeightNormConv2d) else m.weight)
            if weight.numel() > weight.shape[0] > 1:
                found.append(weight)
    return found
