"""The Progressive Normalizing Flow: a base flow at low resolution, and a conditional flow for each doubling.

Source: "PNF: Progressive normalizing flows", sections 2 and 3.
"""

from __future__ import annotations  # up to 2.9, torch.compile cannot trace a nested function's `Tensor | None`

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Self, Unpack, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pnf.flows.conditions import Condition
from pnf.flows.config import (
    FlowSettings,
    ProgressiveConfig,
    ProgressiveSettings,
    SupportKind,
    flow_settings,
    progressive_settings,
    shows_settings,
)
from pnf.flows.distribution import FlowDistribution
from pnf.flows.op_table import OpTable, check_bound
from pnf.flows.peak_memory import in_batches
from pnf.flows.realnvp import RealNVP, num_scales, set_network_dtype
from pnf.flows.saving import Pretrained
from pnf.flows.shapes import (
    as_channels,
    bits_per_dim,
    check_batch,
    check_choice,
    check_integer,
    check_shape,
    draw_noise,
    zero_log_det,
)

GAMMA_START = 0.2
"""The initial gamma, between a log-ratio (0), which suits flat backgrounds, and the plain detail (1)."""

COLOUR_GAMMA_START = 0.99
"""The initial gamma with several channels. They vary together, and only near 1 linearly."""

GAMMA_RATE = 4.0
"""The factor by which gamma moves faster than a plain logit would."""


GREY_LEVELS = 256
"""The number of levels of an 8-bit pixel."""

MOST_STEPS = 12
"""The most steps on the lattice: the levels double in each, and float32 must still have bits for their noise."""


class ProgressiveFlow(Pretrained):
    """An exact density on [0, 1]^D, or R^D, that upscales an image, or a vector, along one axis at each stage.

    With ``S x = (x0 + x1) / 2`` and ``Δ x = (x0 - x1) / 2`` over neighbours along an axis, and n pairs, each stage
    applies::

        log p(x) = log p(S x) + log p(Δ x | S x) - n log 2

    Stage 0 is a flow of the coarsest image. Each later stage is a conditional flow of Δ given S, so stages can be
    trained apart.

    With ``num_classes`` or ``condition_shape`` every stage is conditioned, so that ``log p(x | c)`` is exact.

    Args:
        shape: the shape of one example, ``(C, H, W)``, ``(C, D)`` or ``(D,)``, with multiples of ``2**levels`` along
            the axes.
        levels: the number of times that each axis is halved. An image has ``1 + levels * len(axes)`` stages, a vector
            ``1 + levels``.
        num_classes: K, if the flow is conditioned on labels: methods then take ``condition``, integers ``[B]`` from 0
            to K - 1.
        condition_shape: ``(F,)`` if the flow is conditioned on a vector, ``[B, F]``; or ``(C', *spatial)``, with the
            spatial size of ``shape``, if it is conditioned on a map. Each stage sees a map averaged down by S to the
            resolution of its own flow.
        support: ``"unit"``, or ``"real"`` for a density on R^D of data that is no image: ``detail="identity"``, and no
            logit in the base. The networks see such data as it is, so it should have a scale near 1.
        axes: the order in which an image grows at each level, ``"xy"`` (width first, as in the paper), ``"yx"``,
            ``"x"`` or ``"y"``. Vectors ignore it.
        coupling, hidden, blocks, num_couplings, norm, injector, encoder, spline, memory: the settings of every stage's
            flow, see :class:`RealNVP`.
        scales: the most scales of a convolutional stage. By default, and at most, the last scale is at least 4 pixels
            high and wide.
        detail: ``"bounded"`` models ``u = m**gamma atanh(d / m)``, ``m = min(s, 1 - s)``, so that every sample is a
            valid image. Gamma is learned for each channel, and the channels of u are rotated, which separates
            brightness from colour. ``"identity"`` models Δ itself, as the paper does.
        lattice: whether the flow is of 8-bit images, dequantized by :func:`pnf.data.dequantize`, with bounded details.
            Then S is that of their levels. The uniform noise of two pixels becomes that of their mean and, independent
            of it, that of their detail, so networks see means without noise, and flat regions cost nothing. All images
            in [0, 1] have a density, but ``log_prob`` jumps where a pixel passes to the next level.
        alpha: the base flow models ``logit(alpha + (1 - 2 alpha) s)``. Default: 1e-6 for bounded details, on the
            lattice the distance of its levels; 0.05 for identity details, as published. With bounded details, samples
            of the base are clamped to [0, 1].

    Attributes:
        stages: the base, then f1x, f1y, f2x, f2y, ...
        stage_names: ``"f0"``, ``"f1x"``, ``"f1y"``, ...
        stage_shapes: the shape of each stage's image.

    Raises:
        ValueError: the shape cannot be halved that often, or a setting is invalid.

    Example:
        >>> import torch
        >>> from pnf import ProgressiveFlow
        >>> flow = ProgressiveFlow((1, 8, 8), levels=1, coupling="dense", hidden=16).eval()
        >>> x = torch.rand(4, 1, 8, 8)
        >>> flow.log_prob(x).shape, flow.stage_names
        (torch.Size([4]), ['f0', 'f1x', 'f1y'])
        >>> low = flow.encode(x)
        >>> low.shape, flow.upsample(low).shape, flow.sample(2).shape
        (torch.Size([4, 1, 4, 4]), torch.Size([4, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """

    ops: ClassVar[OpTable]
    flow_class: ClassVar[type[RealNVP]]

    @shows_settings(ProgressiveConfig)
    def __init__(
        self,
        shape: Sequence[int],
        levels: int,
        *,
        num_classes: int | None = None,
        condition_shape: Sequence[int] | None = None,
        support: SupportKind = "unit",
        **settings: Unpack[ProgressiveSettings],
    ) -> None:
        check_bound(self)
        super().__init__()
        check_choice("ProgressiveFlow", "support", support, get_args(SupportKind))
        self.support: SupportKind = support
        if support == "real":
            settings.setdefault("detail", "identity")
            if settings["detail"] != "identity" or settings.get("alpha") is not None:
                raise ValueError('ProgressiveFlow: with support="real", detail must be "identity" and alpha None')
        config = ProgressiveConfig(levels=levels, **settings)  # type: ignore[arg-type]  # sizes of None become the default
        if config.levels > 62:
            raise ValueError(f"ProgressiveFlow: levels must be at most 62, got {levels}")
        self.levels, self.axes, self.detail = config.levels, config.axes, config.detail
        self.shape = check_shape("ProgressiveFlow", "shape", shape)
        self._condition, self.condition_shape = Condition.of(self.shape, num_classes, condition_shape)
        self.num_classes = self._condition.classes or None
        self._dims = [-1 if axis == "x" else -2 for axis in self.axes] if len(self.shape) == 3 else [-1]
        for dim in self._dims:
            if self.shape[dim] % 2**self.levels:
                raise ValueError(
                    f"ProgressiveFlow: shape must have a multiple of {2**self.levels} along dim {dim} for "
                    f"{self.levels} levels, got {self.shape}"
                )
        self.stage_shapes = self._stage_shapes()
        if config.lattice and len(self.stage_shapes) > MOST_STEPS + 1:
            steps = len(self.stage_shapes) - 1
            raise ValueError(
                f"ProgressiveFlow: on the lattice there are at most {MOST_STEPS} steps, got {steps}: halve less "
                "often, or use no lattice"
            )
        if config.alpha is None and support == "unit":
            default = 1 / self._grey_levels(0) if config.lattice else 1e-6
            config = replace(config, alpha=default if config.detail == "bounded" else 0.05)
        self.settings, self.alpha = config, config.alpha
        self.stage_names = ["f0"]
        for level in range(1, self.levels + 1):
            self.stage_names += [f"f{level}{'x' if dim == -1 else 'y'}" for dim in self._dims]
        # With splines on the lattice, networks see the logarithm of the bound of the detail, too.
        means = 2 if config.lattice and config.spline else 1
        stages: list[Stage] = []
        for k, shape_in in enumerate(self.stage_shapes[:1] + self.stage_shapes[:-1]):
            scales = None if config.scales is None else min(config.scales, num_scales(shape_in))
            own: FlowSettings = {**flow_settings(config), "scales": scales, "alpha": self.alpha if k == 0 else None}
            own_channels, *size = as_channels(shape_in)
            channels = self._condition.channels + (means * own_channels if k else 0)
            flow = self.flow_class(
                shape_in,
                condition_shape=(channels, *size) if channels else None,
                features=self._condition.vector,
                **own,
            )
            embedding = self._condition.embedding()
            if k == 0:
                stages.append(BaseStage(flow, embedding, clamp=self.detail == "bounded"))
            else:
                dim, real = self._dims[(k - 1) % len(self._dims)], support == "real"
                grey_levels = self._grey_levels(k) if config.lattice else None
                stages.append(DetailStage(flow, embedding, dim, self.detail, real, grey_levels))
        self.stages = nn.ModuleList(stages)

    def config(self) -> dict[str, object]:
        """The constructor's arguments, except ``memory``."""
        settings = {key: value for key, value in progressive_settings(self.settings).items() if key != "memory"}
        conditions = {"num_classes": self.num_classes, "condition_shape": self.condition_shape}
        return {"shape": self.shape, "levels": self.levels, **conditions, "support": self.support, **settings}

    @property
    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    @property
    def dims(self) -> int:
        """The number of dimensions D of one example."""
        return math.prod(self.shape)

    @property
    def stage_dims(self) -> list[int]:
        """The number of dimensions that each stage models. They sum to D."""
        sizes = [math.prod(shape) for shape in self.stage_shapes]
        return [sizes[0], *(after - before for before, after in pairwise(sizes))]

    def forward(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> tuple[Tensor, Tensor]:
        """Map x to the noise of all stages ``z [B, D]``, coarse first, and to ``log_det [B] = log |det dz/dx|``."""
        self._check(x)
        conditions = self._conditions(condition, x.shape[0])
        zs, log_det = [], zero_log_det(x)
        for stage, given in zip(self._stages[::-1], conditions[::-1], strict=True):
            x, z, stage_log_det = stage(x, given)
            zs.append(z)
            log_det = log_det + stage_log_det
        return torch.cat(zs[::-1], 1), log_det

    def inverse(
        self,
        z: Tensor,  # [B, D]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> tuple[Tensor, Tensor]:
        """Map z to ``x [B, *shape]`` and ``log_det [B] = log |det dx/dz|`` in nats."""
        check_batch(self, "z", z, (self.dims,))
        conditions = self._conditions(condition, z.shape[0])
        x, log_det = None, zero_log_det(z)
        for stage, noise, given in zip(self._stages, z.split(self.stage_dims, 1), conditions, strict=True):
            x, stage_log_det = stage.inverse(x, noise, given)
            log_det = log_det + stage_log_det
        assert x is not None
        return x, log_det

    def log_prob(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """The log-likelihood ``log p(x)`` or ``log p(x | condition)``: ``[B]`` in nats."""
        return self.stage_log_probs(x, condition).sum(1)

    def stage_log_probs(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """Each stage's share in ``log p(x)``: ``[B, stages]`` in nats.

        That of stage 0 is ``log p(S^k x)``. That of a later stage is ``log p(Δ | S) - n log 2`` for its n pairs.
        """
        self._check(x)
        conditions = self._conditions(condition, x.shape[0])
        log_probs = []
        for stage, given in zip(self._stages[::-1], conditions[::-1], strict=True):
            x, z, log_det = stage(x, given)
            log_probs.append(self.ops.standard_normal(z) + log_det)
        return torch.stack(log_probs[::-1], 1)

    def stage_loss(
        self,
        x: Tensor,  # [B, *shape]
        stage: int,
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """The mean negative log-likelihood of one stage, in nats for each dimension that it models: ``[]``.

        It depends only on the parameters of that stage, so stages can be trained apart, in any order.

        Raises:
            ValueError: the stage does not exist.
        """
        self._check(x)
        stage = check_integer("ProgressiveFlow", "stage", stage, 0)
        if stage >= len(self.stages):
            raise ValueError(f"ProgressiveFlow: stage must be from 0 to {len(self.stages) - 1}, got {stage}")
        given = self._conditions(condition, x.shape[0])[stage]
        log_prob = self._stages[stage].log_prob(self._down(x, len(self.stages) - 1 - stage), given)
        return -log_prob.mean() / self.stage_dims[stage]

    def bits_per_dim(
        self,
        x: Tensor,  # [B, *shape]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """Bits per dimension of 8-bit images dequantized to [0, 1]: ``8 - log_prob / (D log 2)``, ``[B]``.

        Raises:
            ValueError: the flow has ``support="real"``, whose data has no bits.
        """
        if self.support == "real":
            raise ValueError('ProgressiveFlow: bits_per_dim is of images in [0, 1]; with support="real" use log_prob')
        return bits_per_dim(self.log_prob(x, condition), self.dims)

    def distribution(
        self,
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> FlowDistribution:
        """The flow as a :class:`torch.distributions.Distribution`, with a batch of distributions for conditions.

        ``event_shape`` is ``shape``, ``batch_shape`` is ``[B]`` with a condition and empty without one. It has
        ``log_prob``, ``sample``, ``rsample`` and ``support``.

        Raises:
            ValueError: the flow is of images with identity details, whose samples can leave the support.

        Example:
            >>> import torch
            >>> from pnf import ProgressiveFlow
            >>> flow = ProgressiveFlow((1, 4, 4), levels=1, coupling="dense", hidden=8, num_classes=3).eval()
            >>> digits = flow.distribution(torch.tensor([0, 2]))
            >>> digits.sample((5,)).shape, digits.log_prob(torch.rand(5, 2, 1, 4, 4)).shape
            (torch.Size([5, 2, 1, 4, 4]), torch.Size([5, 2]))
        """
        batch_shape = torch.Size() if condition is None else condition.shape[:1]
        self._condition.check(self, condition, 1 if condition is None else condition.shape[0], self.condition_shape)
        return FlowDistribution(self, condition, unit=self.unit_samples, batch_shape=batch_shape)

    @property
    def unit_samples(self) -> bool:
        """Whether samples are in [0, 1], or any real numbers, as the support of a distribution.

        Raises:
            ValueError: samples can leave [0, 1], where ``log_prob`` ends.
        """
        if self.detail == "identity" and self.support == "unit":
            raise ValueError(
                "ProgressiveFlow: samples of identity details can leave [0, 1], where log_prob ends, so they are no "
                'distribution with a support: use detail="bounded" or, for data that is no image, support="real"'
            )
        return self.detail == "bounded"

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,  # [n], [n, F] or [n, C', *spatial]
        *,
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:  # [n, *shape]
        """Draw n samples from noise ``temperature * eps``, ``eps ~ N(0, I)``; in [0, 1] with ``detail="bounded"``.

        There is one temperature for all stages, or a sequence with one for each: ``[0.7, 1, 1]`` keeps to the likely
        coarse images and draws all of their details.

        They have no graph; use :meth:`inverse` for one. With ``max_memory`` they are made in batches that hold at most
        about that number of bytes at once.

        Raises:
            ValueError: one sample needs more than ``max_memory``, or there is not a temperature for each stage.
        """
        noise = draw_noise(self, n, self.stage_dims, temperature, generator)
        self._condition.check(self, condition, n, self.condition_shape)
        tensors = [noise] if condition is None else [noise, condition]
        return in_batches("ProgressiveFlow", lambda *part: self.inverse(*part)[0], tensors, max_memory)

    def downsample(
        self,
        x: Tensor,  # [B, *shape] or any intermediate resolution
        steps: int,
    ) -> Tensor:
        """Apply S ``steps`` times, one axis a step, from the last stage down. On the lattice S is that of levels."""
        k = self._stage_of(x)
        steps = check_integer("ProgressiveFlow", "steps", steps, 0)
        if steps > k:
            raise ValueError(f"ProgressiveFlow: steps must be from 0 to {k} for {list(x.shape)}, got {steps}")
        return self._down(x, steps)

    def upsample(
        self,
        x: Tensor,  # [B, *shape of any stage]
        steps: int | None = None,
        *,
        noise: Tensor | float | None = None,
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:
        """Upsample x by ``steps`` stages, one axis a step (the paper's Φ).

        Args:
            x: a batch of images at the resolution of any stage, which is found from their shape.
            steps: the number of stages; by default all that are left.
            noise: ``None`` draws ``temperature * eps``; 0 is the paper's zero noise; or ``[B, dims of those stages]``.
            condition: the condition of each image; a map has the spatial size of ``shape``.
            temperature, generator: the scale of the noise, one for all of those stages or one for each, and its source.
            max_memory: if given, x is upsampled in batches that hold at most about that number of bytes at once,
                without a graph.

        Returns:
            ``[B, *shape]`` of the last stage. Downsampling it gives x back.

        Raises:
            ValueError: no stage has images of this shape, fewer steps are left, or one image needs more than
                ``max_memory``.
        """
        k = self._stage_of(x)
        self._check_values(x, k)
        left = len(self.stages) - 1 - k
        steps = left if steps is None else check_integer("ProgressiveFlow", "steps", steps, 0)
        if steps > left:
            raise ValueError(f"ProgressiveFlow: steps must be from 0 to {left} for {list(x.shape)}, got {steps}")
        dims = self.stage_dims[k + 1 : k + 1 + steps]
        if noise is None:
            noise = draw_noise(self, x.shape[0], dims, temperature, generator)
        elif not isinstance(noise, Tensor):
            if noise != 0:
                raise ValueError(f"ProgressiveFlow: noise must be None, 0 or a Tensor, got {noise}")
            noise = x.new_zeros(x.shape[0], sum(dims))
        elif noise.shape != (x.shape[0], sum(dims)):
            raise ValueError(
                f"ProgressiveFlow: noise must be {[x.shape[0], sum(dims)]} for {steps} steps, got {list(noise.shape)}"
            )
        self._condition.check(self, condition, x.shape[0], self.condition_shape)
        chosen = slice(k + 1, k + 1 + steps)

        def grow(image: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
            conditions = self._conditions(condition, image.shape[0])[chosen]
            noises = noise.split(dims, 1) if dims else ()
            for stage, z, given in zip(self._stages[chosen], noises, conditions, strict=True):
                image, _ = stage.inverse(image, z, given)
            return image

        if max_memory is None:
            return grow(x, noise, condition)
        tensors = [x, noise] if condition is None else [x, noise, condition]
        return in_batches("ProgressiveFlow", grow, tensors, max_memory)

    def encode(
        self,
        x: Tensor,  # [B, *shape]
    ) -> Tensor:
        """Downsample x to the lowest resolution (the paper's encoder)."""
        self._check(x)
        return self._down(x, len(self.stages) - 1)

    def decode(
        self,
        z: Tensor,  # [B, *stage_shapes[0]]
        *,
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """Upsample z to full resolution with zero noise (the paper's decoder)."""
        check_batch(self, "z", z, self.stage_shapes[0])
        return self.upsample(z, noise=0, condition=condition)

    def project(
        self,
        x: Tensor,  # [B, *shape]
        *,
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial]
    ) -> Tensor:
        """Project x onto the decoder's images: ``decode(encode(x))``, a true projection."""
        return self.decode(self.encode(x), condition=condition)

    def set_network_dtype(self, dtype: torch.dtype | None) -> Self:
        """Run only the conditioner networks under autocast to ``dtype``. ``None`` turns it off."""
        set_network_dtype(self, dtype)
        return self

    def _down(self, x: Tensor, steps: int) -> Tensor:
        k = self._stage_of(x)
        for i in range(k, k - steps, -1):
            x = cast("DetailStage", self.stages[i]).coarser(x)
        return x

    def _conditions(self, condition: Tensor | None, batch: int) -> list[Tensor | None]:
        """The checked condition of each stage."""
        self._condition.check(self, condition, batch, self.condition_shape)
        if condition is None or not self._condition.channels:
            return [condition] * len(self.stages)
        # A stage's flow works at the resolution below, but that of the base.
        maps = [condition]
        for i in range(len(self.stages) - 1, 0, -1):
            maps.append(self.ops.haar_split(maps[-1], self._dims[(i - 1) % len(self._dims)])[0])
        return [maps[-1], *maps[:0:-1]]

    def _check(self, x: Tensor) -> None:
        self._check_values(x, -1)

    def _check_values(self, x: Tensor, stage: int) -> None:
        # With identity details, all images but the coarsest may leave [0, 1].
        check_batch(self, "x", x, self.stage_shapes[stage], unit=self.detail == "bounded")

    def _stage_of(self, x: Tensor) -> int:
        """The stage with the resolution of x."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"ProgressiveFlow: x must be a floating Tensor, got {got}")
        if tuple(x.shape[1:]) not in self.stage_shapes:
            wanted = " or ".join(f"[B, {', '.join(map(str, shape))}]" for shape in self.stage_shapes)
            raise ValueError(f"ProgressiveFlow: x must be {wanted}, got {list(x.shape)}")
        return self.stage_shapes.index(tuple(x.shape[1:]))

    def _grey_levels(self, k: int) -> int:
        """The number of levels of the images of stage k."""
        return (GREY_LEVELS - 1) * 2 ** (len(self.stage_shapes) - 1 - k) + 1

    def _stage_shapes(self) -> list[tuple[int, ...]]:
        shape = list(self.shape)
        shapes = [tuple(shape)]
        for dim in self._dims[::-1] * self.levels:
            shape[dim] //= 2
            shapes.append(tuple(shape))
        return shapes[::-1]


class Stage(nn.Module):
    """A stage maps an image to the next coarser one and the noise of its detail, and back."""

    def __init__(self, flow: RealNVP, embedding: nn.Embedding | None) -> None:
        super().__init__()
        self.flow, self.ops, self.embedding = flow, flow.ops, embedding

    @abstractmethod
    def inverse(self, s: Tensor | None, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the coarser image s and the noise z to the image x and ``log |det dx/d(s, z)|``."""

    def log_prob(
        self,
        x: Tensor,  # [B, *shape of the stage]
        condition: Tensor | None = None,  # [B], [B, F] or [B, C', *spatial of the stage's flow]
    ) -> Tensor:
        """This stage's share in the log-density of the image x: ``[B]`` in nats."""
        _, z, log_det = self(x, condition)
        return self.ops.standard_normal(z) + log_det

    def _given(self, s: Tensor | None, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The map and the features that condition the flow, from the scaled mean and the condition."""
        if condition is None:
            return s, None
        if self.embedding is not None:
            return s, self.embedding(condition.long())
        if condition.dim() == 2:
            return s, condition
        return condition if s is None else torch.cat((s, condition), 1), None

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape of what the flow models, with a dim of channels."""
        return as_channels(self.flow.shape)


class BaseStage(Stage):
    """The flow f0 of the coarsest image, through the logit."""

    def __init__(self, flow: RealNVP, embedding: nn.Embedding | None, clamp: bool) -> None:
        super().__init__(flow, embedding)
        self.clamp = clamp

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x, z, log_det``: the image itself, its noise and ``log |det dz/dx|``."""
        return x, *self.flow(x, *self._given(None, condition))

    def inverse(self, s: Tensor | None, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the noise z to the image and ``log |det dx/dz|``. There is no coarser image."""
        assert s is None
        x, log_det = self.flow.inverse(z, *self._given(None, condition))
        return x.clamp(0, 1) if self.clamp else x, log_det


def mix_channels(
    x: Tensor,  # [B, C, *spatial]
    inverse: bool = False,
) -> Tensor:  # as x
    """Apply the orthonormal cosine transform to the channels, or its inverse, which preserves volumes.

    ``y_k = sqrt((1 + [k > 0]) / C) sum_c x_c cos(pi k (c + 1/2) / C)``: first the brightness, then the differences of
    colours. A single channel stays unchanged.

    Source: Ahmed, Natarajan and Rao, "Discrete cosine transform" (1974).
    """
    channels = x.shape[1]
    if channels == 1:
        return x
    # In float64, which autocast and TF32 leave alone, since this is part of the flow itself. MPS has none.
    dtype = torch.float32 if x.is_mps else torch.float64
    k = torch.arange(channels, dtype=dtype, device=x.device).unsqueeze(1)
    matrix = (math.pi / channels * k * (k.mT + 0.5)).cos() * ((1 + k.clamp(max=1)) / channels).sqrt()
    return linear(x.movedim(1, -1).to(dtype), matrix.mT if inverse else matrix).movedim(-1, 1).to(x.dtype)


def whole_mean(
    coarser: Tensor,
    levels: int,
) -> Tensor:  # as coarser
    """The mean ``(N + 1) / (2 L)`` of the pairs on a lattice of L levels, from the coarser ``(N + v) / (2 L - 1)``."""
    return (((2 * levels - 1) * coarser).floor().clamp(0, 2 * levels - 2) + 1) / (2 * levels)


class DetailStage(Stage):
    """A conditional flow of the detail along one axis, given the mean. With ``grey_levels`` it is on the lattice."""

    def __init__(
        self, flow: RealNVP, embedding: nn.Embedding | None, dim: int, detail: str, real: bool, grey_levels: int | None
    ) -> None:
        super().__init__(flow, embedding)
        self.dim, self.detail, self.real, self.grey_levels = dim, detail, real, grey_levels
        if detail == "bounded":
            start = GAMMA_START if self.channels[0] == 1 else COLOUR_GAMMA_START
            logit = math.log(start / (1 - start)) / GAMMA_RATE
            self.gamma_logit = nn.Parameter(torch.full((self.channels[0],), logit))
        self.pairs = math.prod(flow.shape)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map x to ``s, z, log_det``: the mean, the noise of the detail, and ``log |det d(s, z)/dx|``."""
        if self.detail == "identity":
            s, d = self.ops.haar_split(x, self.dim)
            z, log_det = self.flow(d, *self._given(self._seen(s), condition))
            return s, z, log_det - self.pairs * math.log(2)
        coarser: Tensor | None = None
        pairs = x
        if self.grey_levels is not None:
            coarser, pairs = self.ops.lattice_split(x, self.grey_levels, self.dim)
        pairs = pairs.reshape(x.shape[0], 1, *x.shape[1:]) if x.dim() == 2 else pairs
        s, u, log_det = self.ops.haar_bounded_split(pairs, self.gamma, self.dim)
        s, u = s.reshape(-1, *self.flow.shape), mix_channels(u).reshape(-1, *self.flow.shape)
        z, flow_log_det = self.flow(u, *self._given(self._seen(s), condition))
        log_det = log_det + flow_log_det
        return (s, z, log_det) if coarser is None else (coarser, z, log_det + self._lattice_log_det)

    def inverse(self, s: Tensor | None, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the mean s and the noise z of the detail to the image and ``log |det dx/d(s, z)|``."""
        assert s is not None
        coarser = s
        if self.grey_levels is not None:
            s = whole_mean(s, self.grey_levels)
        d, log_det = self.flow.inverse(z, *self._given(self._seen(s), condition))
        if self.detail == "identity":
            return self.ops.haar_merge(s, d, self.dim), log_det + self.pairs * math.log(2)
        size = (s.shape[0], *self.channels)
        u = mix_channels(d.reshape(size), inverse=True)
        x, merge_log_det = self.ops.haar_bounded_merge(s.reshape(size), u, self.gamma, self.dim)
        x, log_det = x.flatten(1) if s.dim() == 2 else x, log_det + merge_log_det
        if self.grey_levels is None:
            return x, log_det
        return self.ops.lattice_merge(coarser, x, self.grey_levels, self.dim), log_det - self._lattice_log_det

    def coarser(self, x: Tensor) -> Tensor:
        """The image that the stage before models, from that of this stage."""
        if self.grey_levels is None:
            return self.ops.haar_split(x, self.dim)[0]
        return self.ops.lattice_split(x, self.grey_levels, self.dim)[0]

    @property
    def _lattice_log_det(self) -> float:
        assert self.grey_levels is not None
        return self.pairs * math.log(2 * self.grey_levels / (2 * self.grey_levels - 1))

    @property
    def gamma(self) -> Tensor:
        """The exponent of each channel, ``[C]``, between 0 and 1."""
        return (GAMMA_RATE * self.gamma_logit).sigmoid()

    def _seen(self, s: Tensor) -> Tensor:
        """The mean as an input of the networks: that of images scaled to about -2 to 2.

        With splines on the lattice also ``2 log(2 L m) / log L - 1``, from -1 to 1, of the bound ``m = min(s, 1 - s)``.
        So networks can tell a mean from the next one near black and white, where the detail has few values.
        """
        s = s.reshape(s.shape[0], *self.channels)
        if self.real:
            return s
        if self.grey_levels is None or not self.flow.settings.spline:
            return 4 * s - 2
        m = 2 * self.grey_levels * torch.minimum(s, 1 - s)
        return torch.cat((4 * s - 2, 2 * m.log() / math.log(self.grey_levels) - 1), 1)
