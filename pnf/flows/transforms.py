"""Whether a transform of PyTorch is at work: ``torch.func`` or forward-mode differentiation.

Schedules that pay off in plain training (memory layouts, recomputation, fused updates in place) do not go together with
every transform, so that under one the flows compute step by step.
"""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, or a dual level of ``torch.autograd.forward_ad`` is open.

    Where PyTorch does not say so, it is taken to be: step by step is right everywhere.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active() or forward_ad._current_level >= 0
