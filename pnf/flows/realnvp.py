"""RealNVP, multi-scale convolutional or dense, unconditional or conditional.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016); the conditional form is that of
the flows f1x, f1y, ... of "PNF: Progressive normalizing flows", section 3.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Self, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn

from pnf.flows import invertible
from pnf.flows.config import FlowConfig, FlowSettings, flow_settings, shows_settings
from pnf.flows.couplings import ActNorm, ConvCoupling, Coupling, DenseCoupling, Injector
from pnf.flows.networks import ConvNetwork, DenseNetwork, ResidualNetwork
from pnf.flows.op_table import OpTable, check_bound
from pnf.flows.peak_memory import in_batches
from pnf.flows.saving import Pretrained
from pnf.flows.shapes import (
    as_channels,
    bits_per_dim,
    check_batch,
    check_shape,
    draw_noise,
    zero_log_det,
)
from pnf.flows.transforms import transformed

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)


class RealNVP(Pretrained):
    """A flow of affine couplings: ``z = f(x)``, ``log p(x) = log N(z; 0, I) + log |det df/dx|``.

    The flow of every stage of a :class:`ProgressiveFlow`, and the baseline f of the paper's Table 1, for which
    ``alpha=0.05``.

    Args:
        shape: of one example: ``(C, H, W)``, ``(C, D)`` or ``(D,)``.
        condition_shape: of one condition, ``None`` for an unconditional flow. It has the spatial size of ``shape`` and
            any number of channels.
        coupling: ``"conv"`` (multi-scale, residual networks; signals are taken as images of height 1) or ``"dense"``.
        hidden: width of the networks: at the first scale of a convolutional flow, from which it doubles scale by scale
            (default 32), or of the dense layers (default 256).
        blocks: residual blocks of a convolutional network (default 4), hidden layers of a dense one (default 2).
        num_couplings: convolutional: couplings under each kind of mask at each scale, one more at the last (default
            3); dense: couplings in all (default 6).
        scales: of a convolutional flow; by default as many as leave the last at least 4 pixels high and wide.
        norm: after each coupling: ``"act"`` (ActNorm, the default; also in front of the first), ``"batch"`` (batch
            normalisation, in the networks too, as published; ActNorm in front of an injector) or ``"none"``. Batch
            normalisation trains convolutional flows faster, but in training mode the likelihood of an example then
            depends on its batch.
        injector: a convolutional flow with a condition begins with an affine map of all of x, by a network that sees
            the condition alone. Other flows take no notice of it.
        alpha: if given, x is an image in [0, 1] and the flow models ``logit(alpha + (1 - 2 alpha) x)``.
        memory: ``"plain"``, or ``"invertible"`` for a backward of the convolutional couplings that computes their
            inputs from their outputs: what it holds grows with the couplings of a scale by their parameters only, for
            about a third more time. Its gradients are as good as ``x -> z -> x``, which ``pnf check`` measures, so that
            those of a flow that float32 cannot invert are wrong. It is no part of :meth:`config`.

    Raises:
        ValueError: a shape or size that no flow can have.
    """

    ops: ClassVar[OpTable]
    residual_network: ClassVar[type[ResidualNetwork]] = ResidualNetwork
    dense_network: ClassVar[type[DenseNetwork]] = DenseNetwork
    conv_network: ClassVar[type[ConvNetwork]] = ConvNetwork
    memory_format: ClassVar[torch.memory_format] = torch.preserve_format

    @shows_settings(FlowConfig)
    def __init__(
        self,
        shape: Sequence[int],
        *,
        condition_shape: Sequence[int] | None = None,
        **settings: Unpack[FlowSettings],
    ) -> None:
        check_bound(self)
        super().__init__()
        config = FlowConfig(**settings)  # type: ignore[arg-type]  # sizes of None become the default
        self.shape = check_shape("RealNVP", "shape", shape)
        self.condition_shape = (
            None if condition_shape is None else check_shape("RealNVP", "condition_shape", condition_shape)
        )
        if condition_shape is not None and as_channels(self.condition_shape)[1:] != as_channels(self.shape)[1:]:
            raise ValueError(
                f"RealNVP: condition_shape must have the spatial size of shape {self.shape}, got {self.condition_shape}"
            )
        if config.coupling == "conv" and config.scales is None:
            config = replace(config, scales=num_scales(self.shape))
        self.settings, self.alpha = config, config.alpha
        condition = as_channels(self.condition_shape)[0] if self.condition_shape else 0
        build = _DenseFlow if config.coupling == "dense" else _ConvFlow
        self.flow: _ConvFlow | _DenseFlow = build(self.shape, condition, config, type(self))

    def config(self) -> dict[str, object]:
        """The constructor's arguments, all but ``memory``."""
        settings = {key: value for key, value in flow_settings(self.settings).items() if key != "memory"}
        return {"shape": self.shape, "condition_shape": self.condition_shape, **settings}

    @property
    def dims(self) -> int:
        """Number of dimensions D of one example."""
        return math.prod(self.shape)

    def forward(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
    ) -> tuple[Tensor, Tensor]:
        """``z [B, D]`` and ``log_det [B] = log |det dz/dx|``, in nats."""
        check_batch(self, "x", x, self.shape, unit=self.alpha is not None)
        condition = self._check_condition(condition, x)
        log_det = zero_log_det(x)
        if self.alpha is not None:
            x, log_det = self.ops.logit(x, self.alpha)
        return self.flow(x.reshape(x.shape[0], *as_channels(self.shape)), log_det, condition)

    def inverse(
        self,
        z: Tensor,  # [B, D]
        condition: Tensor | None = None,  # [B, *condition_shape]
    ) -> tuple[Tensor, Tensor]:
        """``x [B, *shape]`` and ``log_det [B] = log |det dx/dz|``, in nats."""
        check_batch(self, "z", z, (self.dims,))
        condition = self._check_condition(condition, z)
        with _running_statistics(self.flow):
            x, log_det = self.flow.inverse(z, zero_log_det(z), condition)
        x = x.reshape(z.shape[0], *self.shape)
        if self.alpha is not None:
            x, logit_log_det = self.ops.logit_inverse(x, self.alpha)
            log_det = log_det + logit_log_det
        return x, log_det

    def log_prob(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
    ) -> Tensor:
        """``log p(x)`` or ``log p(x | condition)``: ``[B]`` in nats."""
        z, log_det = self(x, condition)
        return self.ops.standard_normal(z) + log_det

    def bits_per_dim(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
    ) -> Tensor:
        """``8 - log_prob / (D log 2)``: ``[B]``, for 8-bit images dequantized to [0, 1]."""
        return bits_per_dim(self.log_prob(x, condition), self.dims)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,  # [n, *condition_shape]
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:  # [n, *shape]
        """``f^-1(temperature * eps)``, ``eps ~ N(0, I)``; without a graph, which :meth:`inverse` keeps.

        With ``max_memory`` it is computed in batches that hold at most about so many bytes at once.

        Raises:
            ValueError: not even one draw can be made in so little.
        """
        noise = draw_noise(self, n, self.dims, temperature, generator)
        tensors = [noise] if condition is None else [noise, condition]
        return in_batches("RealNVP", lambda *part: self.inverse(*part)[0], tensors, max_memory)

    def set_network_dtype(self, dtype: torch.dtype | None) -> Self:
        """Run the conditioner networks, and nothing else, under autocast to ``dtype``; ``None`` turns it off."""
        set_network_dtype(self, dtype)
        return self

    def _check_condition(self, condition: Tensor | None, x: Tensor) -> Tensor | None:
        if self.condition_shape is None:
            if condition is not None:
                raise ValueError("RealNVP: condition must be None, since the flow has no condition_shape")
            return None
        if condition is None:
            raise ValueError(f"RealNVP: condition must be [B, {', '.join(map(str, self.condition_shape))}], got None")
        check_batch(self, "condition", condition, self.condition_shape)
        if condition.shape[0] != x.shape[0]:
            raise ValueError(f"RealNVP: condition must have a batch of {x.shape[0]}, got {condition.shape[0]}")
        return condition.reshape(x.shape[0], *as_channels(self.condition_shape))


@contextmanager
def _running_statistics(flow: nn.Module) -> Iterator[None]:
    """Batch normalisation has one inverse, that of its running statistics, which must stay as they are."""
    training = [module for module in flow.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def set_network_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Set the precision of every conditioner network inside ``module``."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"set_network_dtype: dtype must be bfloat16, float16 or None, got {dtype}")
    for m in module.modules():
        if isinstance(m, Coupling):
            m.network_dtype = dtype


class _DenseFlow(nn.Module):
    """Couplings that transform the halves of a checkerboard over ``[B, C, *size]`` in turn, odd sites first."""

    def __init__(self, shape: Sequence[int], condition: int, config: FlowConfig, kind: type[RealNVP]) -> None:
        super().__init__()
        self.channels, *self.size = as_channels(shape)
        self.ops = kind.ops
        sites = math.prod(self.size)
        halves = (self.channels * ((sites + 1) // 2), self.channels * (sites // 2))
        norms = nn.ModuleList(ActNorm(half, kind.ops) for half in halves if config.norm == "act")
        self.norms = cast("Sequence[ActNorm]", norms)
        couplings = nn.ModuleList(
            DenseCoupling(
                halves[i % 2],
                halves[1 - i % 2],
                condition * sites,
                hidden=config.hidden,
                layers=config.blocks,
                norm=config.norm,
                ops=kind.ops,
                network_class=kind.dense_network,
            )
            for i in range(config.num_couplings)
        )
        self.couplings = cast("Sequence[DenseCoupling]", couplings)

    def forward(self, x: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        halves = [half.flatten(1) for half in self.ops.mask_pack(x, "checkerboard", 0)]
        condition = None if condition is None else condition.flatten(1)
        for i, norm in enumerate(self.norms):
            halves[i], log_det = norm(halves[i], log_det)
        for i, coupling in enumerate(self.couplings):
            kept = i % 2
            halves[1 - kept], log_det = coupling(halves[1 - kept], halves[kept], log_det, condition)
        return torch.cat(halves, 1), log_det

    def inverse(self, z: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        sites = math.prod(self.size)
        even = self.channels * ((sites + 1) // 2)
        halves = list(z.split((even, z.shape[1] - even), 1))
        condition = None if condition is None else condition.flatten(1)
        for i, coupling in reversed(list(enumerate(self.couplings))):
            kept = i % 2
            halves[1 - kept], log_det = coupling.inverse(halves[1 - kept], halves[kept], log_det, condition)
        for i, norm in enumerate(self.norms):
            halves[i], log_det = norm.inverse(halves[i], log_det)
        kept, rest = (half.reshape(z.shape[0], self.channels, half.shape[1] // self.channels) for half in halves)
        return self.ops.mask_unpack(kept, rest, "checkerboard", 0, self.size), log_det


class _Scale(nn.Module):
    """One scale of the convolutional flow: checkerboard couplings, then channel couplings but at the last."""

    def __init__(
        self,
        channels: int,
        condition: int,
        config: FlowConfig,
        kind: type[RealNVP],
        *,
        hidden: int,
        kernel: tuple[int, int],
        last: bool,
    ) -> None:
        super().__init__()

        def couplings(mask: str, count: int, factor: int) -> Sequence[ConvCoupling]:
            modules = nn.ModuleList(
                ConvCoupling(
                    factor**2 * channels,
                    factor**2 * condition,
                    mask,
                    i % 2,
                    hidden=factor * hidden,
                    blocks=config.blocks,
                    kernel=kernel,
                    norm=config.norm,
                    ops=kind.ops,
                    network_class=kind.residual_network,
                )
                for i in range(count)
            )
            return cast("Sequence[ConvCoupling]", modules)

        self.checkerboard = couplings("checkerboard", config.num_couplings + last, 1)
        self.channel = couplings("channel", 0 if last else config.num_couplings, 2)


class _ConvFlow(nn.Module):
    """The multi-scale flow over ``[B, C, H, W]``, half of whose dimensions are factored out after each scale.

    The condition is squeezed beside x and never factored out.
    """

    def __init__(self, shape: Sequence[int], condition: int, config: FlowConfig, kind: type[RealNVP]) -> None:
        super().__init__()
        assert config.scales is not None
        self.ops, self.memory, self.memory_format = kind.ops, config.memory, kind.memory_format
        self.channels, *size = as_channels(shape)
        self.signal = len(size) == 1
        self.size = (1, *size) if self.signal else tuple(size)
        self.scales = config.scales
        multiple = 2 ** (self.scales - 1)
        if self.size[0] % multiple or self.size[1] % multiple:
            raise ValueError(
                f"RealNVP: shape must have sizes that are multiples of {multiple} for {self.scales} scales, got {shape}"
            )
        kernel = (1 if self.size[0] == 1 else 3, 3)
        self.injector: Injector | None = None
        if config.injector and condition:
            network = kind.conv_network(condition, 2 * self.channels, hidden=4 * config.hidden, layers=2, kernel=kernel)
            self.injector = Injector(self.channels, network, kind.ops)
        in_front = config.norm == "act" or (config.norm == "batch" and self.injector is not None)
        self.norm = ActNorm(self.channels, kind.ops) if in_front else None
        levels = nn.ModuleList(
            _Scale(
                self.channels << k,
                condition << (2 * k),
                config,
                kind,
                hidden=config.hidden << k,
                kernel=kernel,
                last=k == self.scales - 1,
            )
            for k in range(self.scales)
        )
        self.levels = cast("Sequence[_Scale]", levels)

    def forward(self, x: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.signal:
            x, condition = x.unsqueeze(2), None if condition is None else condition.unsqueeze(2)
        x, condition = self._laid_out(x), self._laid_out(condition)
        if self.norm is not None:
            x, log_det = self.norm(x, log_det)
        if self.injector is not None and condition is not None:
            x, log_det = self.injector(x, log_det, condition)
        factored = []
        for level in self.levels[:-1]:
            x, log_det = self._couple(level.checkerboard, x, log_det, condition)
            x, condition = self.ops.squeeze(x), self._squeezed(condition)
            x, log_det = self._couple(level.channel, x, log_det, condition)
            x, z = self.ops.squeeze(self.ops.squeeze_inverse(x), "factor").chunk(2, 1)
            factored.append(z.flatten(1))
        x, log_det = self._couple(self.levels[-1].checkerboard, x, log_det, condition)
        return torch.cat((*factored, x.flatten(1)), 1), log_det

    def inverse(self, z: Tensor, log_det: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.signal:
            condition = None if condition is None else condition.unsqueeze(2)
        conditions = [self._laid_out(condition)]
        for _ in self.levels[:-1]:
            conditions.append(self._squeezed(conditions[-1]))
        dims = z.shape[1]
        *factored, x = z.split([dims >> (k + 1) for k in range(self.scales - 1)] + [dims >> (self.scales - 1)], 1)
        x = self._laid_out(x.reshape(-1, *self._shape(self.scales - 1)))
        for coupling in reversed(self.levels[-1].checkerboard):
            x, log_det = coupling.inverse(x, log_det, conditions[-1])
        for k in reversed(range(self.scales - 1)):
            x = torch.cat((x, self._laid_out(factored[k].reshape(-1, *self._shape(k + 1)))), 1)
            x = self.ops.squeeze(self.ops.squeeze_inverse(x, "factor"))
            for coupling in reversed(self.levels[k].channel):
                x, log_det = coupling.inverse(x, log_det, conditions[k + 1])
            x = self.ops.squeeze_inverse(x)
            for coupling in reversed(self.levels[k].checkerboard):
                x, log_det = coupling.inverse(x, log_det, conditions[k])
        if self.injector is not None and conditions[0] is not None:
            x, log_det = self.injector.inverse(x, log_det, conditions[0])
        if self.norm is not None:
            x, log_det = self.norm.inverse(x, log_det)
        return x.squeeze(2) if self.signal else x, log_det

    def _couple(
        self, couplings: Sequence[ConvCoupling], x: Tensor, log_det: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        plain = self.memory == "plain" or not torch.is_grad_enabled() or transformed()
        if not plain and not torch.jit.is_tracing():  # type: ignore[attr-defined]
            return invertible.couple(couplings, x, log_det, condition)
        for coupling in couplings:
            x, log_det = coupling(x, log_det, condition)
        return x, log_det

    def _laid_out(self, x: OptionalTensor) -> OptionalTensor:
        # Under torch.vmap a tensor has another number of dims than it shows.
        return x if x is None or transformed() else x.to(memory_format=self.memory_format)

    def _squeezed(self, condition: Tensor | None) -> Tensor | None:
        return None if condition is None else self.ops.squeeze(condition)

    def _shape(self, k: int) -> tuple[int, int, int]:
        """Shape of x at scale k."""
        return self.channels << k, self.size[0] >> k, self.size[1] >> k


def num_scales(shape: Sequence[int]) -> int:
    """As many scales of a convolutional flow as leave the last at least 4 pixels high and wide."""
    h, w = shape[-2:] if len(shape) != 1 else (1, shape[0])
    scales = 1
    while h % 2 == 0 and w % 2 == 0 and min(h, w) >= 8:
        h, w, scales = h // 2, w // 2, scales + 1
    return scales
