"""Affine couplings with their conditioner networks, and the normalisations between them."""

import math
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pnf.flows.networks import MOMENTUM, NETWORK_EPS, DenseNetwork, ResidualNetwork, WeightNormConv2d
from pnf.flows.op_table import OpTable
from pnf.flows.transforms import transformed

INJECTOR_SCALE = 2.0
"""Where the bound of an injector's log-scale starts: details near an edge are ten times those of a plain surface."""


class FlowNorm(nn.Module):
    """An invertible normalisation of each channel: ``x, log_det -> y, log_det``."""

    @abstractmethod
    def inverse(
        self, y: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inverse of ``forward``, with its statistics or those of evaluation."""

    @abstractmethod
    def statistics(self, x: Tensor) -> tuple[Tensor, ...]:
        """What ``forward`` normalises x by."""


class ActNorm(FlowNorm):
    """``y = (x + shift) * exp(log_scale)`` for each channel, set by the first training batch to mean 0 and variance 1.

    A batch of few entries for each channel says little about their deviation, which is taken to be at least
    ``2**(1 - n)`` for n entries: 1/2 for two, and no bound for the batches that one trains with.

    Inside the forward of ``DistributedDataParallel`` the batches of all processes count as one, so that all start
    alike.

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
        # The buffer that is known to be true: to read it in each step would wait for the device. It is the buffer
        # itself, and no flag, since torch.func.functional_call puts other states in the place of the module's own.
        self._known: Tensor | None = None

    def statistics(self, x: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        return ()

    def forward(
        self,
        x: Tensor,
        log_det: Tensor,
        statistics: tuple[Tensor, ...] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        if self.training and self._known is not self.initialized:
            self._initialize(x.detach())
        return self.ops.act_norm(x, self.shift, self.log_scale, log_det)

    def inverse(
        self,
        y: Tensor,
        log_det: Tensor,
        statistics: tuple[Tensor, ...] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        return self.ops.act_norm_inverse(y, self.shift, self.log_scale, log_det)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        """Set the parameters of a state that has not been set, and leave others as they are."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "ActNorm: torch.nn.DataParallel would forget what the first batch sets; call the flow once on a batch "
                "before it is wrapped, or use DistributedDataParallel"
            )
        if not self._is_set():
            n, mean, var = _joined(*_moments(x))
            if n == 0:
                return
            # A channel that does not vary says nothing about its scale.
            log_scale = -0.5 * torch.where(var > 1e-12, var.clamp(min=4.0 ** (1 - n)), 1).log()
            try:
                # torch.vmap shows no flag of the states that it stacks: some may be set, and others not.
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
        """Whether the state in use has been set, as far as its flag can be read."""
        try:
            return not torch.compiler.is_compiling() and bool(self.initialized)
        except RuntimeError:
            return False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Entries of each channel, their mean and their biased variance."""
    if x.numel() == 0:
        zeros = x.new_zeros(x.shape[1])
        return 0, zeros, zeros
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return x.numel() // x.shape[1], mean, var


def _joined(n: int, mean: Tensor, var: Tensor) -> tuple[int, Tensor, Tensor]:
    """Such moments over all processes, inside the forward of ``DistributedDataParallel``; elsewhere they are as given.

    Outside of it nothing says that the other processes are here, too, and to wait for them could take for ever.
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

    Statistics of the batch in training (biased variance), running statistics (decay 0.1) in evaluation and in the
    inverse. The log-determinant is ``-log(var + eps) / 2`` for each entry.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.7 and appendix E.

    Args:
        channels: of the input, dim 1.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum = MOMENTUM

    def statistics(self, x: Tensor) -> tuple[Tensor, ...]:
        if not (self.training and x.numel()):
            return self.running_mean, self.running_var
        return _moments(x)[1:]

    def forward(
        self, x: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, var = self.statistics(x) if statistics is None else statistics
        if self.training and x.numel():
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach(), self.momentum)
        shape = (-1, *(1,) * (x.dim() - 2))
        y = (x - mean.view(shape)) * (var + NETWORK_EPS).rsqrt().view(shape)
        return y, log_det + self._log_det(x, var)

    def inverse(
        self, y: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, var = statistics or (self.running_mean, self.running_var)
        shape = (-1, *(1,) * (y.dim() - 2))
        x = y * (var + NETWORK_EPS).sqrt().view(shape) + mean.view(shape)
        return x, log_det - self._log_det(y, var)

    def _log_det(self, x: Tensor, var: Tensor) -> Tensor:
        return -0.5 * math.prod(x.shape[2:]) * (var + NETWORK_EPS).log().sum()


def make_norm(norm: str, channels: int, ops: OpTable) -> FlowNorm | None:
    """The normalisation layer of that name: ``"act"``, ``"batch"`` or ``"none"``."""
    if norm == "none":
        return None
    return ActNorm(channels, ops) if norm == "act" else BatchNormFlow(channels)


class Coupling(nn.Module):
    """What convolutional and dense couplings share: the bound of the log-scale and the precision of the network.

    Args:
        transformed: channels that are transformed.
        norm: normalisation of the transformed channels after the coupling, ``"act"``, ``"batch"`` or ``"none"``.
        ops: the op table.
    """

    def __init__(self, transformed: int, norm: str, ops: OpTable) -> None:
        super().__init__()
        self.ops = ops
        self.scale = nn.Parameter(torch.ones(transformed))
        self.norm = make_norm(norm, transformed, ops)
        self.network_dtype: torch.dtype | None = None

    def precision(self, x: Tensor) -> AbstractContextManager[object]:
        """The context in which the network runs: low precision inside it is opt-in, and ends with it."""
        if self.network_dtype is None:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.network_dtype)


class ConvCoupling(Coupling):
    """An affine coupling on ``[B, C, H, W]`` under a checkerboard or channel mask.

    Args:
        channels: C.
        condition: channels of the condition, 0 for none.
        mask, parity: which half is kept.
        hidden, blocks, kernel: of the network.
        norm: see :class:`Coupling`; with ``"batch"`` the network has batch normalisation too.
        network_class: the network, as it is to be run.
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
        network_class: type[ResidualNetwork] = ResidualNetwork,
    ) -> None:
        transformed = channels if mask == "checkerboard" else channels // 2
        super().__init__(transformed, norm, ops)
        self.mask, self.parity = mask, parity
        self.network = network_class(
            channels,
            2 * transformed,
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
        # What is kept of y is what was kept of x.
        return self.undo(y, self.raw(y, condition), log_det)

    def raw(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """What the network makes of what is kept of x."""
        with self.precision(x):
            raw: Tensor = self.network(x, condition)
            return raw

    def transform(self, x: Tensor, raw: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``y, log_det``, and the statistics by which y was normalised."""
        y, log_det = self.ops.affine_coupling(x, raw, self.scale, log_det, self.mask, self.parity)
        if self.norm is None:
            return y, log_det, ()
        kept, rest = self.ops.mask_pack(y, self.mask, self.parity)
        statistics = self.norm.statistics(rest)
        rest, log_det = self.norm(rest, log_det, statistics)
        return self.ops.mask_unpack(kept, rest, self.mask, self.parity, y.shape[2:]), log_det, statistics

    def undo(
        self, y: Tensor, raw: Tensor, log_det: Tensor, statistics: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inverse of ``transform``, with its statistics or those of evaluation."""
        if self.norm is not None:
            kept, rest = self.ops.mask_pack(y, self.mask, self.parity)
            rest, log_det = self.norm.inverse(rest, log_det, statistics)
            y = self.ops.mask_unpack(kept, rest, self.mask, self.parity, y.shape[2:])
        return self.ops.affine_coupling_inverse(y, raw, self.scale, log_det, self.mask, self.parity)


class DenseCoupling(Coupling):
    """An affine coupling of one half of a vector given the other half and a condition.

    Args:
        kept: features of the half that is kept; may be 0.
        transformed: features of the half that is transformed.
        condition: features of the condition, 0 for none.
        hidden, layers: of the network.
        norm: see :class:`Coupling`.
        network_class: the network, as it is to be run.
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
            raw: Tensor = self.network(kept if condition is None else torch.cat((kept, condition), 1))
            return raw


class Injector(Coupling):
    """An affine map of all of x whose log-scale and shift a network makes of the condition alone.

    What the condition tells of where x is, and how much it varies there, is taken out at once, so that the couplings
    are left with what it does not tell.

    Source: Lugmayr et al., "SRFlow" (2020), section 3.3.

    Args:
        channels: of x.
        network: makes ``2 * channels`` channels of the condition.
        ops: the op table.
    """

    def __init__(self, channels: int, network: nn.Module, ops: OpTable) -> None:
        super().__init__(channels, "none", ops)
        nn.init.constant_(self.scale, INJECTOR_SCALE)
        self.network = network

    def forward(self, x: Tensor, log_det: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.affine_coupling(x, self._raw(condition), self.scale, log_det)

    def inverse(self, y: Tensor, log_det: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.affine_coupling_inverse(y, self._raw(condition), self.scale, log_det)

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
