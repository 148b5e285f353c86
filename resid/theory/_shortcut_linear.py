"""Linear shortcut networks, many at once, from the moments of the data. No checks: NaN passes through."""

from __future__ import annotations

import torch
from torch import Tensor

from resid.theory._shortcut_hessian import within_unit


def linear_parts(W: Tensor, shortcut: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For weights (..., units, length, d, d): unit maps (..., units, d, d), the inputs of the units by x (the same
    shape), and the whole map (..., d, d)."""
    path = W[..., 0, :, :]
    for i in range(1, W.shape[-3]):
        path = W[..., i, :, :] @ path
    eye = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    maps = path + eye if shortcut else path
    before = [eye.expand_as(maps[..., 0, :, :])]
    for r in range(W.shape[-4]):
        before.append(maps[..., r, :, :] @ before[-1])
    return maps, torch.stack(before[:-1], -3), before[-1]


def excess_and_gradient(W: Tensor, xx: Tensor, best: Tensor, shortcut: bool) -> tuple[Tensor, Tensor]:
    """Loss above that of the best matrix (...), and the gradient, shaped like W; xx is (1/m) sum x x^T."""
    maps, first, whole = linear_parts(W, shortcut)
    error = whole - best
    weighted = error @ xx
    back = [weighted]
    for r in reversed(range(1, W.shape[-4])):
        back.append(maps[..., r, :, :].mT @ back[-1])
    by_unit = torch.stack(back[::-1], -3) @ first.mT  # by the product of the weights of each unit
    excess = 0.5 * (weighted * error).sum((-2, -1))
    if W.shape[-3] == 1:
        return excess, by_unit[..., None, :, :]
    before, after = within_unit(W)
    return excess, after.mT @ by_unit[..., None, :, :] @ before.mT
