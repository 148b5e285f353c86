"""Closed forms of the Hessian of shortcut networks, assembled without a temporary as large as the result.

Weight matrices are numbered p = 0 .. D-1 from the input. For the loss (1/2m) sum ||y_hat - y||^2 and one sample let
u_p be the input of weight p, G_p the derivative of the output by the output of weight p, C_pq that of u_p by the output
of weight q < p, and delta_p = G_p^T (y_hat - y). Then, with weight entries (a, b) of p and (c, e) of q,

    H = mean of (G_p^T G_q + curvature)_{ac} u_p[b] u_q[e]  +  [p > q] delta_p[a] u_q[e] (C_pq)_{bc}  +  [p < q] (sym.)

where the curvature of the activation functions is sum_s D_sp^T diag(gradient at s times sigma''_s) D_sq over the places
s of an activation, D_sp being the derivative of its argument by the output of weight p. ReLU has none. In a linear
network G, C and the maps from x to u do not depend on the sample, and the means are moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resid.theory.shortcut._activation import activate, derivatives

#: Numbers per chunk of samples in one (sample, unit input, weight output) array of derivatives.
_CHUNK = 1 << 21


def linear_hessian(W: Tensor, sigma_xx: Tensor, sigma_yx: Tensor, shortcut: bool) -> Tensor:
    """Hessian (N, N) of a linear network with weights (units, length, d, d) from the moments; rows as W.flatten()."""
    units, length, d, _ = W.shape
    D = units * length
    before, after = within_unit(W)
    A, B, between, whole = _linear_maps(W, before, after, shortcut)
    error = whole @ sigma_xx - sigma_yx
    C = _weight_to_weight(W, before, after, between)  # (D, D, d, d), zero unless p > q
    BS, AtE, Bt = B @ sigma_xx, A.mT @ error, B.mT
    H = W.new_empty(D, d, d, D, d, d)
    for p in range(D):
        row = H[p]  # (a, b, q, c, e)
        outer = (A[p].mT @ A).transpose(0, 1)  # (a, q, c)
        inner = (BS[p] @ Bt).transpose(0, 1)  # (b, q, e)
        torch.mul(outer[:, None, :, :, None], inner[None, :, :, None, :], out=row)
        if p:
            left = (AtE[p] @ Bt[:p]).transpose(0, 1)  # (a, q, e)
            row[:, :, :p].addcmul_(left[:, None, :, None, :], C[p, :p].transpose(0, 1)[None, :, :, :, None])
        if p + 1 < D:
            right = (AtE[p + 1 :] @ Bt[p]).permute(2, 0, 1)  # (b, q, c)
            later = C[p + 1 :, p].permute(2, 0, 1)  # C_qp[e, a] as (a, q, e)
            row[:, :, p + 1 :].addcmul_(right[None, :, :, :, None], later[:, None, :, None, :])
    return H.view(D * d * d, D * d * d)


def within_unit(W: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the weights of a unit before and after each of them, of the shape of W (..., units, length, d, d)."""
    length = W.shape[-3]
    before, after = torch.empty_like(W), torch.empty_like(W)
    eye = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    before[..., 0, :, :] = eye
    after[..., -1, :, :] = eye
    for i in range(1, length):
        before[..., i, :, :] = W[..., i - 1, :, :] @ before[..., i - 1, :, :]
        after[..., -1 - i, :, :] = after[..., -i, :, :] @ W[..., -i, :, :]
    return before, after


def _linear_maps(W: Tensor, before: Tensor, after: Tensor, shortcut: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (D, d, d): output by output of a weight; B (D, d, d): input of a weight by x; between (units, units, d, d):
    input of unit r by output of unit s < r; whole (d, d): output by x."""
    units, _, d, _ = W.shape
    eye = torch.eye(d, dtype=W.dtype, device=W.device)
    maps = W[:, -1] @ before[:, -1] + (eye if shortcut else 0)
    between = W.new_zeros(units, units, d, d)
    for r in range(1, units):
        between[r, : r - 1] = maps[r - 1] @ between[r - 1, : r - 1]
        between[r, r - 1] = eye
    first = torch.cat([eye[None], between[1:, 0] @ maps[0]])  # input of unit r by x
    last = torch.cat([maps[-1] @ between[-1, :-1], eye[None]])  # output of the network by output of unit r
    return (last[:, None] @ after).flatten(0, 1), (before @ first[:, None]).flatten(0, 1), between, maps[-1] @ first[-1]


def _weight_to_weight(W: Tensor, before: Tensor, after: Tensor, between: Tensor) -> Tensor:
    units, length, d, _ = W.shape
    C = before[:, None, :, None] @ (between[:, :, None, None] @ after[None, :, None, :])  # (r, s, l, k, d, d)
    eye = torch.eye(d, dtype=W.dtype, device=W.device)
    own = torch.arange(units)
    for k in range(length):  # within a unit: the weights strictly between k and l
        path = eye.expand(units, d, d)
        for i in range(k + 1, length):
            C[own, own, i, k] = path
            path = W[:, i] @ path
    return C.transpose(1, 2).reshape(units * length, units * length, d, d)


@dataclass(frozen=True)
class _Trace:
    """One chunk of samples: residual (m, d); inputs of the weights (D, m, d); per place of an activation its sigma' and
    sigma'' (m, d), keyed (unit, position), position 0 for "pre" and l + 1 behind weight l."""

    residual: Tensor
    inputs: Tensor
    slopes: dict[tuple[int, int], Tensor]
    bends: dict[tuple[int, int], Tensor]


def places(length: int, activation: str, position: str) -> tuple[int, ...]:
    """Where in a unit the activation stands: 0 before the first weight, l + 1 behind weight l."""
    if activation == "linear":
        return ()
    return {"pre": (0,), "mid": tuple(range(1, length)), "post": (length,)}[position]


def data_hessian(W: Tensor, X: Tensor, Y: Tensor, activation: str, position: str, shortcut: bool) -> Tensor:
    """Hessian (N, N) of the loss on data for any activation; for ReLU that of the linear region the weights are in."""
    units, length, d, _ = W.shape
    D, m = units * length, len(X)
    where = places(length, activation, position)
    H = W.new_zeros(D, d, d, D, d, d)
    step = max(1, _CHUNK // (d * d * D))
    for start in range(0, m, step):
        chunk = slice(start, start + step)
        trace = _forward(W, X[chunk], Y[chunk], activation, where, shortcut)
        G, place_gradients = _backward(W, trace, where, shortcut)
        _add_chunk(H, W, trace, G, place_gradients, where, shortcut)
    H /= m
    for p in range(D):  # the blocks above the diagonal mirror those below it
        for q in range(p):
            H[q, :, :, p] = H[p, :, :, q].permute(2, 3, 0, 1)
    return H.view(D * d * d, D * d * d)


def _forward(W: Tensor, X: Tensor, Y: Tensor, activation: str, where: tuple[int, ...], shortcut: bool) -> _Trace:
    inputs, slopes, bends = [], {}, {}
    h = X
    for r, unit in enumerate(W):
        v = h
        for place in range(len(unit) + 1):
            if place in where:
                slopes[r, place], bends[r, place] = derivatives(activation, v)
                v = activate(activation, v)
            if place < len(unit):
                inputs.append(v)
                v = v @ unit[place].mT
        h = h + v if shortcut else v
    return _Trace(h - Y, torch.stack(inputs), slopes, bends)


def _backward(
    W: Tensor, trace: _Trace, where: tuple[int, ...], shortcut: bool
) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """G (D, m, d, d): output by the output of each weight; and the loss's derivative by each activation's value."""
    units, length, d, _ = W.shape
    m = len(trace.residual)
    eye = torch.eye(d, dtype=W.dtype, device=W.device).expand(m, d, d)
    G = W.new_empty(units * length, m, d, d)
    place_gradients: dict[tuple[int, int], Tensor] = {}
    through = eye
    for r in reversed(range(units)):
        path = through
        for place in reversed(range(length + 1)):
            if place in where:
                place_gradients[r, place] = (trace.residual[:, None] @ path)[:, 0]
                path = path * trace.slopes[r, place][:, None, :]
            if place:
                G[r * length + place - 1] = path
                path = (path.reshape(m * d, d) @ W[r, place - 1]).view(m, d, d)
        through = through + path if shortcut else path
    return G, place_gradients


def _add_chunk(
    H: Tensor,
    W: Tensor,
    trace: _Trace,
    G: Tensor,
    place_gradients: dict[tuple[int, int], Tensor],
    where: tuple[int, ...],
    shortcut: bool,
) -> None:
    units, length, d, _ = W.shape
    D, m = units * length, len(trace.residual)
    inputs = trace.inputs
    delta = (trace.residual[None, :, None] @ G)[:, :, 0]  # (D, m, d)
    curved = {s: g * trace.bends[s] for s, g in place_gradients.items() if bool(trace.bends[s].any())}
    arguments: list[dict[tuple[int, int], Tensor]] = [{} for _ in range(D)]  # D_sq of the curved places s behind q
    for q in range(D):
        for p, C in _tangents(W, trace, q, where, shortcut, curved, arguments[q]):
            outer = (delta[p][:, :, None] * inputs[q][:, None, :]).reshape(m, d * d)  # (a, e)
            block = outer.mT @ C.reshape(m, d * d)  # (a, e), (b, c)
            H[p, :, :, q] += block.view(d, d, d, d).permute(0, 2, 3, 1)
    for p in range(D):
        for q in range(p + 1):
            outer = G[p].mT @ G[q]  # (m, a, c)
            for s in arguments[p].keys() & arguments[q].keys():
                outer = outer + (arguments[p][s] * curved[s][:, :, None]).mT @ arguments[q][s]
            inner = (inputs[p][:, :, None] * inputs[q][:, None, :]).reshape(m, d * d)  # (b, e)
            block = outer.reshape(m, d * d).mT @ inner
            H[p, :, :, q] += block.view(d, d, d, d).permute(0, 2, 1, 3)


def _tangents(
    W: Tensor,
    trace: _Trace,
    q: int,
    where: tuple[int, ...],
    shortcut: bool,
    curved: dict[tuple[int, int], Tensor],
    arguments: dict[tuple[int, int], Tensor],
) -> Iterator[tuple[int, Tensor]]:
    """Follow the output of weight q through the network: yields (p, C_pq) and fills in D_sq for the curved places."""
    units, length, d, _ = W.shape
    m = len(trace.residual)
    own, first = divmod(q, length)
    T = torch.eye(d, dtype=W.dtype, device=W.device).expand(m, d, d)
    for r in range(own, units):
        unit_input = T
        for place in range(first + 1 if r == own else 0, length + 1):
            if place in where:
                if (r, place) in curved:
                    arguments[r, place] = T
                T = T * trace.slopes[r, place][:, :, None]
            if place < length:
                yield r * length + place, T
                T = (W[r, place] @ T.transpose(0, 1).reshape(d, m * d)).view(d, m, d).transpose(0, 1)
        if shortcut and r > own:
            T = T + unit_input
