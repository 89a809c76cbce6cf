"""Training steps as CUDA graphs."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WARMUP = 3
"""Calls before a step is captured. They compile kernels, and make the state of the optimizer."""


def can_capture(device: torch.device) -> bool:
    """Whether work on a device can become a CUDA graph."""
    return device.type == "cuda"


class GraphedStep:
    """A training step that runs as one CUDA graph.

    A step of a flow is thousands of short kernels, and Python takes longer to launch them than a GPU to run them. A
    graph launches them all at once. The first calls run the step itself, then one call captures it. From then on a call
    copies its tensors to where the graph reads them, and launches the graph. The results are the same to the bit.

    A new shape, dtype or device of the tensors, and a new hyperparameter or state of an optimizer, let the step be
    captured again. Where a step cannot be captured, a warning says why, and it runs without a graph, as on a CPU.

    The step may use Python numbers that stay the same only: another one must be a tensor, such as a 0-dim one that
    ``fill_`` changes. It must not read a value from the GPU, as ``.item()`` does, and it must begin with
    ``optimizer.zero_grad()``.

    Args:
        step: takes tensors, and returns a tensor, or a tuple of tensors, or None.
        *optimizers: those that take their step in it, such as ``torch.optim.Adam(..., fused=True)``. On a GPU their
            learning rates become tensors. So a scheduler, or ``group["lr"] = value``, works as without a graph.

    Attributes:
        reason: why the step runs without a graph, or an empty text.

    Source: "CUDA Graphs" in the notes of the PyTorch documentation.

    Example:
        >>> import torch
        >>> import pnf
        >>> flow = pnf.ProgressiveFlow((1, 8, 8), levels=1, coupling="dense", hidden=16)
        >>> optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True)
        >>> def learn(x):
        ...     optimizer.zero_grad()
        ...     loss = -flow.log_prob(x).mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss.detach()
        >>> step = pnf.GraphedStep(learn, optimizer)
        >>> for x in torch.rand(5, 4, 1, 8, 8):  # on a GPU: .to("cuda"), and flow.to("cuda") before the optimizer
        ...     loss = step(x)
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, step: Callable[..., Any], *optimizers: Optimizer) -> None:
        self.step, self.optimizers, self.reason = step, optimizers, ""
        self._rates: dict[tuple[int, int], Tensor] = {}
        self._loads = 0
        for optimizer in optimizers:
            optimizer.register_load_state_dict_post_hook(self._loaded)
        self._key: object = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._results: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Take a step. A graph's results are overwritten by the next call."""
        if not inputs or not can_capture(inputs[0].device):
            return self.step(*inputs)
        device = inputs[0].device
        with torch.cuda.device(device):
            self._prepare(device)
            if self.reason:
                return self.step(*inputs)
            key = self._state(inputs)
            if key != self._key:
                self._key, self._calls, self._graph, self._results = key, 0, None, None
            self._calls += 1
            if self._calls <= WARMUP:
                return self._aside(device, inputs)
            if self._graph is None and not self._capture(inputs):
                return self.step(*inputs)
            for to, x in zip(self._inputs, inputs, strict=True):
                to.copy_(x)
            assert self._graph is not None
            self._graph.replay()
            return self._results

    def _prepare(self, device: torch.device) -> None:
        """Keep what may change from step to step in tensors of the graph."""
        for i, optimizer in enumerate(self.optimizers):
            for j, group in enumerate(optimizer.param_groups):
                if "capturable" in group:
                    group["capturable"] = True
                if "lr" not in group:
                    continue
                rate = self._rates.setdefault((i, j), torch.zeros((), device=device))
                if group["lr"] is not rate:
                    rate.fill_(float(group["lr"]))
                    group["lr"] = rate

    def _state(self, inputs: tuple[Tensor, ...]) -> object:
        """All that a graph depends on and that no tensor holds."""
        settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for optimizer in self.optimizers
            for group in optimizer.param_groups
        ]
        return [(x.shape, x.dtype, x.device) for x in inputs], settings, self._loads

    def _loaded(self, _: Optimizer) -> None:
        self._loads += 1

    def _aside(self, device: torch.device, inputs: tuple[Tensor, ...]) -> Any:
        """Take a step on another stream, since a capture cannot wait for work on the default one."""
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self.step(*inputs)
        current.wait_stream(stream)
        return results

    def _capture(self, inputs: tuple[Tensor, ...]) -> bool:
        """Capture the step without taking it. Return whether that succeeded."""
        self._inputs = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._results = self.step(*self._inputs)
        except RuntimeError as error:
            self.reason = str(error).strip().partition("\n")[0]
            message = f"the training step runs without a CUDA graph, which is slower: {self.reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            return False
        self._graph = graph
        return True
