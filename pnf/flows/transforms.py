"""Detection of active transforms of PyTorch: ``torch.func`` or forward-mode differentiation.

Schedules for plain training (memory layouts, recomputation, fused updates in place) do not support every transform. So
under a transform the flows compute step by step.
"""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, or a dual level of ``torch.autograd.forward_ad`` is open.

    If this version of PyTorch cannot tell, return True, since step by step is always correct.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active() or forward_ad._current_level >= 0
