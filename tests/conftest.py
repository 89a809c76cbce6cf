"""Without a GPU, Triton kernels run under its interpreter, which has to be known before they are imported.

With one, PyTorch's own convolutions are exact: results are compared within the rounding errors of float32.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
else:
    from pnf.training import exact_arithmetic

    exact_arithmetic()
