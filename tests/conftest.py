"""Without a GPU, run Triton kernels under its interpreter, which must be set before their import.

With one, make PyTorch's convolutions exact, since results are compared within the rounding errors of float32.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
else:
    from pnf.training import exact_arithmetic

    exact_arithmetic()
