"""A CUDA graph played by hand on a CPU: every operation of a call with the tensors it took, carried out again later."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resid.training.step_graph import StepGraph


class Tape(TorchDispatchMode):
    """Keeps operations, in order; what Python computes beside them is not kept, as in a graph."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for a number"
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, found in self.calls:
            for old, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedStep(StepGraph):
    """`StepGraph` of an `Engine` on the CPU; `played` counts."""

    played = 0

    def _check(self, device):
        assert device.type == "cpu"

    def stream(self):
        return nullcontext()

    def _record(self, body):
        engine = self._body.__self__
        state = [*engine.model.buffers(), engine._sums, engine._bad]
        before = [tensor.clone() for tensor in state]
        with Tape() as tape:
            body()
        for tensor, value in zip(state, before, strict=True):  # recording carries nothing out
            tensor.copy_(value)

        def play():
            TapedStep.played += 1
            tape.replay()

        return play
