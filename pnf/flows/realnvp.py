"""RealNVP, multi-scale convolutional or dense, unconditional or conditional.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016). The conditional form is from the
flows f1x, f1y, ... of "PNF: Progressive normalizing flows", section 3.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Self, Unpack, cast

import torch
from torch import Tensor, nn

from pnf.flows import invertible
from pnf.flows.config import FlowConfig, FlowSettings, flow_settings, shows_settings
from pnf.flows.couplings import ActNorm, Conditioner, ConvCoupling, DenseCoupling, Encoder, Injector, network_outputs
from pnf.flows.networks import ConvEncoder, ConvNetwork, DenseNetwork, ResidualNetwork
from pnf.flows.op_table import OpTable, check_bound
from pnf.flows.peak_memory import in_batches
from pnf.flows.saving import Pretrained
from pnf.flows.shapes import (
    as_channels,
    bits_per_dim,
    check_batch,
    check_integer,
    check_shape,
    draw_noise,
    zero_log_det,
)
from pnf.flows.transforms import transformed


class RealNVP(Pretrained):
    """A flow of affine couplings: ``z = f(x)``, ``log p(x) = log N(z; 0, I) + log |det df/dx|``.

    It is the flow of every stage of a :class:`ProgressiveFlow`, and with ``alpha=0.05`` the baseline f of the paper's
    Table 1.

    Args:
        shape: the shape of one example, ``(C, H, W)``, ``(C, D)`` or ``(D,)``.
        condition_shape: the shape of one condition, with the spatial size of ``shape`` and any number of channels;
            ``None`` for a flow without one.
        features: the number of features of a second condition, a vector for each example; 0 for a flow without one.
        coupling: ``"conv"`` (multi-scale residual networks; a signal is an image of height 1) or ``"dense"``.
        hidden: width of the networks. A convolutional flow has it at its first scale and doubles it at each next one
            (default 32). The default for dense layers is 256.
        blocks: residual blocks of a convolutional network (default 4), hidden layers of a dense one (default 2).
        num_couplings: convolutional: couplings under each kind of mask at each scale, one more at the last (default
            3); dense: couplings in all (default 6).
        scales: number of scales of a convolutional flow. By default the last is at least 4 pixels high and wide.
        norm: normalisation after each coupling: ``"act"`` (ActNorm, the default; also before the first), ``"batch"``
            (batch normalisation, in the networks too, as published; ActNorm before an injector) or ``"none"``. Batch
            normalisation trains convolutional flows faster, but in training mode the likelihood of an example then
            depends on its batch.
        injector: whether a convolutional flow with a condition begins with an affine map of all of x, by a network of
            the condition. Other flows ignore it.
        encoder: residual blocks of a network of the condition, four times as wide as ``hidden``, whose result the
            injector takes and, as a code of ``hidden / 2`` channels, every coupling beside the condition. 0, the
            default, is none. Flows without a condition ignore it.
        spline: bins of a monotone rational-quadratic spline (Durkan et al., 2019) for each entry in front of the
            injector's affine map, or, in flows without an injector, that of all couplings: for data with several modes,
            such as black and white pixels. 0, the default, is none.
        alpha: if given, x is an image in [0, 1] and the flow models ``logit(alpha + (1 - 2 alpha) x)``.
        memory: ``"plain"``, or ``"invertible"`` for a backward that computes the inputs of convolutional couplings from
            their outputs. Then only the memory of parameters grows with the couplings of a scale, for about a third
            more time. Gradients are as precise as ``x -> z -> x``, which ``pnf check`` measures. They are wrong if
            float32 cannot invert the flow. :meth:`config` leaves it out.

    Raises:
        ValueError: the shape or a setting is invalid.

    Example:
        >>> import torch
        >>> from pnf import RealNVP
        >>> flow = RealNVP((2, 8, 8), condition_shape=(1, 8, 8), hidden=8, blocks=1).eval()
        >>> x, condition = torch.randn(4, 2, 8, 8), torch.randn(4, 1, 8, 8)
        >>> z, log_det = flow(x, condition)
        >>> z.shape, torch.allclose(flow.inverse(z, condition)[0], x, atol=1e-3)
        (torch.Size([4, 128]), True)
    """

    ops: ClassVar[OpTable]
    residual_network: ClassVar[type[ResidualNetwork]] = ResidualNetwork
    dense_network: ClassVar[type[DenseNetwork]] = DenseNetwork
    conv_network: ClassVar[type[ConvNetwork]] = ConvNetwork
    conv_encoder: ClassVar[type[ConvEncoder]] = ConvEncoder
    memory_format: ClassVar[torch.memory_format] = torch.preserve_format

    @shows_settings(FlowConfig)
    def __init__(
        self,
        shape: Sequence[int],
        *,
        condition_shape: Sequence[int] | None = None,
        features: int = 0,
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
        self.features = check_integer("RealNVP", "features", features, 0)
        condition = as_channels(self.condition_shape)[0] if self.condition_shape else 0
        build = _DenseFlow if config.coupling == "dense" else _ConvFlow
        self.flow: _ConvFlow | _DenseFlow = build(self.shape, condition, self.features, config, type(self))

    def config(self) -> dict[str, object]:
        """The constructor's arguments, except ``memory``."""
        settings = {key: value for key, value in flow_settings(self.settings).items() if key != "memory"}
        conditions = {"condition_shape": self.condition_shape, "features": self.features}
        return {"shape": self.shape, **conditions, **settings}

    @property
    def dims(self) -> int:
        """The number of dimensions D of one example."""
        return math.prod(self.shape)

    def forward(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
        features: Tensor | None = None,  # [B, features]
    ) -> tuple[Tensor, Tensor]:
        """Map x to ``z [B, D]`` and ``log_det [B] = log |det dz/dx|`` in nats."""
        check_batch(self, "x", x, self.shape, unit=self.alpha is not None)
        condition = self._check_condition(condition, features, x)
        log_det = zero_log_det(x)
        if self.alpha is not None:
            x, log_det = self.ops.logit(x, self.alpha)
        return self.flow(x.reshape(x.shape[0], *as_channels(self.shape)), log_det, condition, features)

    def inverse(
        self,
        z: Tensor,  # [B, D]
        condition: Tensor | None = None,  # [B, *condition_shape]
        features: Tensor | None = None,  # [B, features]
    ) -> tuple[Tensor, Tensor]:
        """Map z to ``x [B, *shape]`` and ``log_det [B] = log |det dx/dz|`` in nats."""
        check_batch(self, "z", z, (self.dims,))
        condition = self._check_condition(condition, features, z)
        with _running_statistics(self.flow):
            x, log_det = self.flow.inverse(z, zero_log_det(z), condition, features)
        x = x.reshape(z.shape[0], *self.shape)
        if self.alpha is not None:
            x, logit_log_det = self.ops.logit_inverse(x, self.alpha)
            log_det = log_det + logit_log_det
        return x, log_det

    def log_prob(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
        features: Tensor | None = None,  # [B, features]
    ) -> Tensor:
        """The log-likelihood ``log p(x)`` or ``log p(x | condition, features)``: ``[B]`` in nats."""
        z, log_det = self(x, condition, features)
        return self.ops.standard_normal(z) + log_det

    def bits_per_dim(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B, *condition_shape]
        features: Tensor | None = None,  # [B, features]
    ) -> Tensor:
        """Bits per dimension of 8-bit images dequantized to [0, 1]: ``8 - log_prob / (D log 2)``, ``[B]``."""
        return bits_per_dim(self.log_prob(x, condition, features), self.dims)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,  # [n, *condition_shape]
        features: Tensor | None = None,  # [n, features]
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:  # [n, *shape]
        """Draw n samples ``f^-1(temperature * eps)``, ``eps ~ N(0, I)``.

        They have no graph; use :meth:`inverse` for one. With ``max_memory`` they are made in batches that hold at most
        about that number of bytes at once.

        Raises:
            ValueError: one sample needs more than ``max_memory``.
        """
        noise = draw_noise(self, n, [self.dims], temperature, generator)
        given = {"condition": condition, "features": features}
        names = [name for name, tensor in given.items() if tensor is not None]

        def draw(noise: Tensor, *conditions: Tensor) -> Tensor:
            return self.inverse(noise, **dict(zip(names, conditions, strict=True)))[0]

        return in_batches("RealNVP", draw, [noise, *(t for t in given.values() if t is not None)], max_memory)

    def set_network_dtype(self, dtype: torch.dtype | None) -> Self:
        """Run only the conditioner networks under autocast to ``dtype``. ``None`` turns it off."""
        set_network_dtype(self, dtype)
        return self

    @property
    def unit_samples(self) -> bool:
        """Whether samples are in [0, 1], or any real numbers, as the support of a distribution.

        Raises:
            ValueError: samples can leave [0, 1], where ``log_prob`` ends.
        """
        if self.alpha:
            raise ValueError(
                f"RealNVP: samples with alpha={self.alpha:g} can leave [0, 1], where log_prob ends, so they are no "
                "distribution with a support: use alpha=0 or, for data that is no image, alpha=None"
            )
        return self.alpha is not None

    def _check_condition(self, condition: Tensor | None, features: Tensor | None, x: Tensor) -> Tensor | None:
        """The condition with a dim of channels, if both conditions are as the flow wants them."""
        if self.features:
            if features is None:
                raise ValueError(f"RealNVP: features must be [B, {self.features}], got None")
            check_batch(self, "features", features, (self.features,))
            if features.shape[0] != x.shape[0]:
                raise ValueError(f"RealNVP: features must have a batch of {x.shape[0]}, got {features.shape[0]}")
        elif features is not None:
            raise ValueError("RealNVP: features must be None, since the flow has none")
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
    """Let batch normalisation use its running statistics, without updates: only then it has one inverse."""
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
        if isinstance(m, Conditioner):
            m.network_dtype = dtype


class _DenseFlow(nn.Module):
    """Couplings over ``[B, C, *size]`` that transform the halves of a checkerboard in turn, odd sites first."""

    def __init__(
        self, shape: Sequence[int], condition: int, features: int, config: FlowConfig, kind: type[RealNVP]
    ) -> None:
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
                condition * sites + features,
                hidden=config.hidden,
                layers=config.blocks,
                norm=config.norm,
                ops=kind.ops,
                network_class=kind.dense_network,
            )
            for i in range(config.num_couplings)
        )
        self.couplings = cast("Sequence[DenseCoupling]", couplings)

    def forward(
        self, x: Tensor, log_det: Tensor, condition: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        halves = [half.flatten(1) for half in self.ops.mask_pack(x, "checkerboard", 0)]
        condition = self._joined(condition, features)
        for i, norm in enumerate(self.norms):
            halves[i], log_det = norm(halves[i], log_det)
        for i, coupling in enumerate(self.couplings):
            kept = i % 2
            halves[1 - kept], log_det = coupling(halves[1 - kept], halves[kept], log_det, condition)
        return torch.cat(halves, 1), log_det

    def inverse(
        self, z: Tensor, log_det: Tensor, condition: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sites = math.prod(self.size)
        even = self.channels * ((sites + 1) // 2)
        halves = list(z.split((even, z.shape[1] - even), 1))
        condition = self._joined(condition, features)
        for i, coupling in reversed(list(enumerate(self.couplings))):
            kept = i % 2
            halves[1 - kept], log_det = coupling.inverse(halves[1 - kept], halves[kept], log_det, condition)
        for i, norm in enumerate(self.norms):
            halves[i], log_det = norm.inverse(halves[i], log_det)
        kept, rest = (half.reshape(z.shape[0], self.channels, half.shape[1] // self.channels) for half in halves)
        return self.ops.mask_unpack(kept, rest, "checkerboard", 0, self.size), log_det

    @staticmethod
    def _joined(condition: Tensor | None, features: Tensor | None) -> Tensor | None:
        """Both conditions as one vector."""
        given = [part.flatten(1) for part in (condition, features) if part is not None]
        return torch.cat(given, 1) if len(given) == 2 else (given[0] if given else None)


class _Scale(nn.Module):
    """One scale of the convolutional flow: checkerboard couplings, then channel couplings except at the last."""

    def __init__(
        self,
        channels: int,
        conditions: tuple[int, int],
        config: FlowConfig,
        kind: type[RealNVP],
        *,
        hidden: int,
        kernel: tuple[int, int],
        last: bool,
        bins: int,
    ) -> None:
        super().__init__()

        def couplings(mask: str, count: int, condition: int, factor: int) -> Sequence[ConvCoupling]:
            modules = nn.ModuleList(
                ConvCoupling(
                    factor**2 * channels,
                    condition,
                    mask,
                    i % 2,
                    hidden=factor * hidden,
                    blocks=config.blocks,
                    kernel=kernel,
                    norm=config.norm,
                    ops=kind.ops,
                    bins=bins,
                    network_class=kind.residual_network,
                )
                for i in range(count)
            )
            return cast("Sequence[ConvCoupling]", modules)

        self.checkerboard = couplings("checkerboard", config.num_couplings + last, conditions[0], 1)
        self.channel = couplings("channel", 0 if last else config.num_couplings, conditions[1], 2)


class _ConvFlow(nn.Module):
    """The multi-scale flow over ``[B, C, H, W]``, which factors out half of its dimensions after each scale.

    The condition is squeezed like x but never factored out. Beside it, features are constant maps at every scale.
    """

    def __init__(
        self, shape: Sequence[int], condition: int, features: int, config: FlowConfig, kind: type[RealNVP]
    ) -> None:
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
        self.encoder: Encoder | None = None
        self.injector: Injector | None = None
        width, code, seen = 4 * config.hidden, 0, condition + features
        if config.encoder and condition:
            code = max(config.hidden // 2, 1)
            self.encoder = Encoder(kind.conv_encoder(seen, code, hidden=width, blocks=config.encoder, kernel=kernel))
        if config.injector and seen:
            inputs, layers = (width, 0) if self.encoder else (seen, 2)
            outputs = network_outputs(self.channels, config.spline)
            network = kind.conv_network(inputs, outputs, hidden=width, layers=layers, kernel=kernel)
            self.injector = Injector(self.channels, network, kind.ops, config.spline)
        conditions = [((condition + code) << (2 * k)) + features for k in range(self.scales + 1)]
        in_front = config.norm == "act" or (config.norm == "batch" and self.injector is not None)
        self.norm = ActNorm(self.channels, kind.ops) if in_front else None
        levels = nn.ModuleList(
            _Scale(
                self.channels << k,
                (conditions[k], conditions[k + 1]),
                config,
                kind,
                hidden=config.hidden << k,
                kernel=kernel,
                last=k == self.scales - 1,
                bins=config.spline if self.injector is None else 0,
            )
            for k in range(self.scales)
        )
        self.levels = cast("Sequence[_Scale]", levels)

    def forward(
        self, x: Tensor, log_det: Tensor, condition: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        injected, conditions = self._conditions(condition, features)
        x = self._laid_out(x.unsqueeze(2) if self.signal else x)
        if self.norm is not None:
            x, log_det = self.norm(x, log_det)
        if self.injector is not None and injected is not None:
            x, log_det = self.injector(x, log_det, injected)
        factored = []
        for k, level in enumerate(self.levels[:-1]):
            x, log_det = self._couple(level.checkerboard, x, log_det, conditions[k])
            x = self.ops.squeeze(x)
            x, log_det = self._couple(level.channel, x, log_det, conditions[k + 1])
            x, z = self.ops.squeeze(self.ops.squeeze_inverse(x), "factor").chunk(2, 1)
            x = self._laid_out(x)
            factored.append(z.flatten(1))
        x, log_det = self._couple(self.levels[-1].checkerboard, x, log_det, conditions[-1], last=True)
        return torch.cat((*factored, x.flatten(1)), 1), log_det

    def inverse(
        self, z: Tensor, log_det: Tensor, condition: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        injected, conditions = self._conditions(condition, features)
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
        if self.injector is not None and injected is not None:
            x, log_det = self.injector.inverse(x, log_det, injected)
        if self.norm is not None:
            x, log_det = self.norm.inverse(x, log_det)
        return x.squeeze(2) if self.signal else x, log_det

    def _couple(
        self,
        couplings: Sequence[ConvCoupling],
        x: Tensor,
        log_det: Tensor,
        condition: Tensor | None,
        last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        plain = self.memory == "plain" or not torch.is_grad_enabled() or transformed()
        if not plain and not torch.jit.is_tracing():  # type: ignore[attr-defined]
            # The backward begins with the flow's last coupling, so to keep its activations takes no more memory.
            again = len(couplings) - last
            if again:
                x, log_det = invertible.couple(list(couplings)[:again], x, log_det, condition)
            couplings = list(couplings)[again:]
        for coupling in couplings:
            x, log_det = coupling(x, log_det, condition)
        return x, log_det

    def _laid_out(self, x: Tensor) -> Tensor:
        # Under torch.vmap a tensor hides its batched dim.
        if transformed() or self.memory_format == torch.preserve_format:
            return x
        return x.contiguous(memory_format=self.memory_format)  # ``to`` would leave gaps

    def _conditions(
        self, condition: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """What the injector is given, and what the networks of each scale are."""
        if condition is not None:
            condition = self._laid_out(condition.unsqueeze(2) if self.signal else condition)
        injected = self._beside(condition, features, 0)
        if self.encoder is not None and condition is not None:
            injected, code = self.encoder(injected)
            condition = self._laid_out(torch.cat((condition, code), 1))
        found = []
        for k in range(self.scales):
            if condition is not None and k:
                condition = self.ops.squeeze(condition)
            found.append(self._beside(condition, features, k))
        return injected, found

    def _beside(self, condition: Tensor | None, features: Tensor | None, k: int) -> Tensor | None:
        """The condition at scale k, with the features as maps behind it."""
        if features is None:
            return condition
        maps = features[:, :, None, None].expand(-1, -1, *self._shape(k)[1:])
        return self._laid_out(maps if condition is None else torch.cat((condition, maps), 1))

    def _shape(self, k: int) -> tuple[int, int, int]:
        """The shape of x at scale k."""
        return self.channels << k, self.size[0] >> k, self.size[1] >> k


def num_scales(shape: Sequence[int]) -> int:
    """The largest number of scales that leaves the last at least 4 pixels high and wide."""
    h, w = shape[-2:] if len(shape) != 1 else (1, shape[0])
    scales = 1
    while h % 2 == 0 and w % 2 == 0 and min(h, w) >= 8:
        h, w, scales = h // 2, w // 2, scales + 1
    return scales
