"""pnf's products against PyTorch's, for the layers of the presets: ``python benchmarks/products.py [THREADS]``.

Forward and backward of each layer by turns, with nothing but the product: minima of thread time for one thread, of wall
time for more. ``LINEAR_BY_LIBRARY`` of pnf/ops/_processor.py rests on the linear layers.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from racing import by_turns
from rich.console import Console
from rich.table import Table

import pnf.ops  # noqa: F401 - registers the products

# Images, inputs, outputs, size of the filter, height and width.
LAYERS = [
    (128, 256, 256, 1, 1, 1),
    (128, 256, 64, 1, 1, 1),
    (128, 768, 256, 1, 1, 1),
    (128, 32, 256, 1, 1, 1),
    (16, 64, 64, 1, 8, 8),
    (16, 64, 64, 1, 16, 16),
    (16, 64, 64, 3, 8, 8),
    (16, 64, 64, 3, 16, 16),
    (16, 256, 256, 3, 8, 8),
]


def calls(batch: int, inputs: int, outputs: int, size: int, height: int, width: int) -> dict[str, Callable[[], Any]]:
    last = torch.channels_last
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=last)
    weight = torch.randn(outputs, inputs, size, size).contiguous(memory_format=last)
    grad = torch.randn(batch, outputs, height, width).contiguous(memory_format=last)
    bias, padding = torch.randn(outputs), [size // 2] * 2
    ours, theirs = torch.ops.pnf, torch.ops.aten
    found = {
        "forward, pnf": lambda: ours.convolution(x, weight, bias, None, False),
        "forward, PyTorch": lambda: theirs.convolution(x, weight, bias, [1, 1], padding, [1, 1], False, [0, 0], 1),
        "backward, pnf": lambda: ours.convolution_backward(grad, x, weight, True),
        "backward, PyTorch": lambda: theirs.convolution_backward(
            grad, x, weight, [outputs], [1, 1], padding, [1, 1], False, [0, 0], 1, [True] * 3
        ),
    }
    if height * width * size == 1:
        a, b, g = x.flatten(1), weight.flatten(1), grad.flatten(1)
        found["forward, PyTorch"] = lambda: torch.addmm(bias, a, b.t())
        found["backward, PyTorch"] = lambda: (g @ b, g.t() @ a, g.sum(0))
    return found


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    title = f"GFLOPS on {threads} thread(s), and the time of pnf over that of PyTorch"
    table = Table("layer", "forward", "backward", title=title)
    for layer in LAYERS:
        batch, inputs, outputs, size, height, width = layer
        durations = by_turns(calls(*layer), time.thread_time if threads == 1 else time.perf_counter)
        found = {name: min(seconds) for name, seconds in durations.items()}
        flops, cells = 2e-9 * batch * inputs * outputs * size**2 * height * width, []
        for name, work in (("forward", flops), ("backward", 2 * flops)):
            ours, theirs = found[f"{name}, pnf"], found[f"{name}, PyTorch"]
            cells.append(f"{work / ours:.0f} against {work / theirs:.0f}, {ours / theirs:.2f}")
        table.add_row(f"{size}x{size}, {inputs} to {outputs}, {batch}x{height}x{width}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
