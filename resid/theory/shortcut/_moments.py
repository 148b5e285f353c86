"""Linear shortcut networks, many at once, from the moments of the data. No checks: NaN passes through."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_parts(W: Tensor, shortcut: bool) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """For weights (..., units, length, d, d), ordered from the input.

    Returns:
        The products of the first 1, 2, ... matrices of each unit, each (..., units, d, d); the unit maps (..., units,
        d, d); and the maps (..., d, d) from x to the input of each unit, and last to the output.
    """
    products = [W[..., 0, :, :]]
    for i in range(1, W.shape[-3]):
        products.append(W[..., i, :, :] @ products[-1])
    eye = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    maps = products[-1] + eye if shortcut else products[-1]
    whole = [eye.expand_as(maps[..., 0, :, :]), maps[..., 0, :, :]]
    for r in range(1, W.shape[-4]):
        whole.append(maps[..., r, :, :] @ whole[-1])
    return products, maps, whole


def excess_and_gradient(W: Tensor, xx: Tensor, best: Tensor, shortcut: bool) -> tuple[Tensor, Tensor]:
    """Loss above that of the best matrix (...), and the gradient, shaped like W; xx is (1/m) sum x x^T."""
    products, maps, whole = linear_parts(W, shortcut)
    error = whole[-1] - best
    weighted = error @ xx
    excess = 0.5 * (weighted * error).sum((-2, -1))
    back = [weighted]
    for r in reversed(range(1, W.shape[-4])):
        back.append(maps[..., r, :, :].mT @ back[-1])
    # by the output of the last matrix of a unit, and then of the one before it, and so on
    by_output = torch.stack(back[::-1], -3) @ torch.stack(whole[:-1], -3).mT
    gradient = torch.empty_like(W)
    for i in reversed(range(W.shape[-3])):
        gradient[..., i, :, :] = by_output @ products[i - 1].mT if i else by_output
        if i:
            by_output = W[..., i, :, :].mT @ by_output
    return excess, gradient
