"""Conditions of a progressive flow: class labels, vectors and maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pnf.flows.shapes import as_channels, check_batch, check_integer, check_shape

EMBEDDING = 16
"""The most features of a class: with more classes than that, they share features."""

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Condition(NamedTuple):
    """What a flow is conditioned on: classes, a vector of features, or a map with channels; at most one of them."""

    classes: int = 0
    features: int = 0
    channels: int = 0

    @classmethod
    def of(
        cls, shape: Sequence[int], num_classes: int | None, condition_shape: Sequence[int] | None
    ) -> tuple["Condition", tuple[int, ...] | None]:
        """The condition that the arguments of a flow ask for, and its checked shape.

        Raises:
            TypeError, ValueError: an argument that no flow can have, or both.
        """
        owner = "ProgressiveFlow"
        if num_classes is not None:
            if condition_shape is not None:
                raise ValueError(f"{owner}: give either num_classes or condition_shape, got both")
            return cls(classes=check_integer(owner, "num_classes", num_classes, 1)), None
        if condition_shape is None:
            return cls(), None
        try:
            sizes = check_shape(owner, "condition_shape", condition_shape)
        except ValueError:
            sizes = ()
        if len(sizes) == 1:
            return cls(features=sizes[0]), sizes
        spatial = as_channels(shape)[1:]
        if not sizes or sizes[1:] != spatial:
            raise ValueError(
                f"{owner}: condition_shape must be (F,) or (C, {', '.join(map(str, spatial))}), got {condition_shape}"
            )
        return cls(channels=sizes[0]), sizes

    def embedding(self) -> nn.Embedding | None:
        """The features of each class, at first one for each class if there are few."""
        if not self.classes:
            return None
        embedding = nn.Embedding(self.classes, min(self.classes, EMBEDDING))
        if self.classes <= EMBEDDING:
            nn.init.eye_(embedding.weight)
        return embedding

    @property
    def vector(self) -> int:
        """The number of features that the networks see beside a map."""
        return min(self.classes, EMBEDDING) or self.features

    def check(self, flow: nn.Module, condition: Tensor | None, batch: int, shape: Sequence[int] | None) -> None:
        """Raise unless the condition is as the flow wants it.

        Labels are looked at on the CPU only, where that does not wait for a device.
        """
        owner = type(flow).__name__
        if not any(self):
            if condition is not None:
                raise ValueError(
                    f"{owner}: condition must be None, since the flow has neither num_classes nor condition_shape"
                )
            return
        wanted = "labels [B]" if shape is None else f"[B, {', '.join(map(str, shape))}]"
        if condition is None:
            raise ValueError(f"{owner}: condition must be {wanted}, got None")
        if shape is not None:
            check_batch(flow, "condition", condition, shape)
        elif not isinstance(condition, Tensor) or condition.dtype not in INTEGERS:
            got = condition.dtype if isinstance(condition, Tensor) else type(condition).__name__
            raise TypeError(f"{owner}: condition must be an integer Tensor of labels, got {got}")
        elif condition.dim() != 1:
            raise ValueError(f"{owner}: condition must be {wanted}, got {list(condition.shape)}")
        if condition.shape[0] != batch:
            raise ValueError(f"{owner}: condition must have a batch of {batch}, got {condition.shape[0]}")
        if shape is None and condition.is_cpu and condition.numel() and not torch.compiler.is_compiling():
            low, high = torch.aminmax(condition)
            try:
                valid = bool(low >= 0) and bool(high < self.classes)
            except RuntimeError:
                return  # torch.vmap and tensors without memory show no values
            if not valid:
                raise ValueError(
                    f"{owner}: condition must have labels from 0 to {self.classes - 1}, got {int(low)} to {int(high)}"
                )
