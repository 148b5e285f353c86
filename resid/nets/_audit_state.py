"""A model that is put back as it was, whatever was done with it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["left_as_it_was"]


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back modes, buffers, gradients and the random number generators of torch, NumPy and Python.

    Buffers: which tensors they are, also where one was assigned, created or taken away, their sizes and their values.
    Each thing is put back even if putting back another one fails; the error then passes on.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device.index for device in devices]))
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the global one is meant
        stack.callback(random.setstate, random.getstate())
        for parameter in model.parameters():
            stack.callback(setattr, parameter, "grad", parameter.grad)
        for buffer in model.buffers():
            if not is_lazy(buffer):
                stack.callback(_fill, buffer, buffer.detach().clone(), buffer.requires_grad)
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            if not any(buffer is not None and is_lazy(buffer) for buffer in module._buffers.values()):
                stack.callback(_assign, module, dict(module._buffers), set(module._non_persistent_buffers_set))
        yield


@torch.no_grad()
def _fill(buffer: Tensor, value: Tensor, requires_grad: bool) -> None:
    if buffer.requires_grad and not requires_grad:  # something that has a gradient was written into it
        buffer.detach_()
    with torch.inference_mode(buffer.is_inference()):
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        buffer.copy_(value)


def _assign(module: nn.Module, buffers: dict[str, Tensor | None], passing: set[str]) -> None:
    """The same tensors, or None, under the same names; `passing`: those that are not saved with the module."""
    module._buffers.clear()
    module._buffers.update(buffers)
    module._non_persistent_buffers_set.clear()
    module._non_persistent_buffers_set.update(passing)
