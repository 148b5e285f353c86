"""Activation functions with value, first and second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("linear", "relu", "tanh", "silu")


def activate(name: str, z: Tensor) -> Tensor:
    """sigma(z); "silu" is z / (1 + e^-z), a smooth ReLU with sigma(0) = 0 and sigma'(0) = 1/2."""
    if name == "relu":
        return z.clamp_min(0)
    if name == "tanh":
        return z.tanh()
    if name == "silu":
        return torch.nn.functional.silu(z)
    return z


def derivatives(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """sigma'(z) and sigma''(z); ReLU's at 0 are 0, as in PyTorch."""
    if name == "relu":
        return (z > 0).to(z), torch.zeros_like(z)
    if name == "tanh":
        t = z.tanh()
        slope = 1 - t * t
        return slope, -2 * t * slope
    if name == "silu":
        s = torch.sigmoid(z)
        change = s * (1 - s)
        return s + z * change, change * (2 + z * (1 - 2 * s))
    return torch.ones_like(z), torch.zeros_like(z)
