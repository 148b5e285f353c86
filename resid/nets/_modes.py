"""A network in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from resid._ambient import uncompiled


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients and uncompiled, so that hooks are called; then each module in its old mode."""
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()
        with torch.no_grad(), uncompiled():
            yield
    finally:
        for module in training:
            module.training = True
