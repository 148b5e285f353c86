"""Forward and backward pass of a training step, recorded once on a GPU and played again for every batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from resid.errors import OptionError

__all__ = ["WARM_UP", "StepGraph"]

#: So many calls come before the one that is recorded, to compile, to choose by trial and to allocate once.
WARM_UP = 3


class StepGraph:
    """Gradients of a batch by a CUDA graph: hundreds of kernels are started by one call instead of one by one.

    The first calls run as written, and train as the others do. The next one is recorded, with inputs and gradients in
    memory of their own; from then on inputs are copied there, and the kernels run in the recorded order, with the same
    arithmetic. What the body reads beside its inputs must lie in tensors on the device: a Python number stays what it
    was when it was recorded.

    Args:
        body: takes images and labels, always of the same shapes, and leaves gradients in the `grad` of the parameters,
            which are None before. parameters: those. device: a GPU.

    Raises:
        OptionError: another device.
    """

    def __init__(
        self, body: Callable[[Tensor, Tensor], None], parameters: Iterable[nn.Parameter], device: torch.device
    ) -> None:
        self._check(device)
        self._body, self._parameters, self._device = body, list(parameters), device
        self._left = WARM_UP
        self._play: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, Tensor]
        self._gradients: list[Tensor | None]

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """The gradients of this batch, in the `grad` of the parameters."""
        if self._left:
            self._left -= 1
            self._body(images, labels)
            return
        if self._play is None:
            self._inputs = images.clone(), labels.clone()
            self._play = self._record(partial(self._body, *self._inputs))
            self._gradients = [parameter.grad for parameter in self._parameters]
        for mine, given in zip(self._inputs, (images, labels), strict=True):
            mine.copy_(given)
        self._play()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Everything within goes into a stream of its own, as calls that are recorded and those before them must."""
        before, own = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        own.wait_stream(before)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            before.wait_stream(own)

    def _check(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise OptionError(f"graph = True records a CUDA graph: not on {device}")

    def _record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record a call without carrying it out; returns what does.

        Freeing what an older graph or a compiled kernel holds is not allowed meanwhile: garbage goes before.
        """
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self._device)
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(graph, stream=here, capture_error_mode="thread_local"):
                body()
        finally:
            if collecting:
                gc.enable()
        return graph.replay
