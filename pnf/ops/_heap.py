"""The memory that the process keeps for its next tensors."""

import sys

import torch

LARGEST = 2**25 - 2**16
"""Bytes of a block whose release glibc learns from; larger ones than 32 MiB teach it nothing."""


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB that is free at the end of the heap, where it is glibc.

    Otherwise a training step returns the memory of its activations to the system, and the next one fetches it again
    page by page: a tenth of a step of small networks. glibc keeps twice the largest block that was ever freed, so this
    frees a large one, whose pages are never touched.
    """
    if sys.platform == "linux":
        torch.empty(LARGEST, dtype=torch.uint8)
