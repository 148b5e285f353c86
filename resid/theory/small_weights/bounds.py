"""Bounds on the weights of units h -> h + W2 ReLU(W1 h + b), and the network that any such units make."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_depth, as_real, check_positive
from resid.errors import DepthError, ShapeError
from resid.theory.small_weights._separation import check_inputs


def max_norm_bound(rho: float, samples: int, units: int) -> float:
    """Bound the Frobenius norm of every weight matrix of the construction: (2 pi/rho) floor(R/m)^(-1/2).

    Theorem 1 of Li et al. 2016 with explicit constants: steps of length at most pi^2/(2 floor(R/m)) by Lemma 2, norms
    sqrt(2 delta)/(rho/2) by Lemma 1. Bounds the biases as well.

    Args:
        rho: the separation, > 0.
        samples: m.
        units: R, >= m.

    Raises:
        DepthError: units < samples, or a count is no integer >= 1.
        OptionError: `rho` is no finite number > 0.

    Example:
        >>> round(max_norm_bound(rho=0.5, samples=10, units=4000), 6) == round(4 * math.pi / 20, 6)
        True
    """
    rho, m, units = check_positive("rho", rho), as_depth("samples", samples), as_depth("units", units)
    if units < m:
        raise DepthError(f"units = {units} < samples = {m}: every sample needs a unit of its own")
    return 2 * math.pi / rho / math.sqrt(units // m)


def total_norm_bound(rho: float, samples: int) -> float:
    """Bound the norm of all weights together, at every depth: 2 pi sqrt(2 m)/rho.

    The sum of squares is 4 sum(delta)/(rho/2)^2, and the steps of a path add up to at most pi^2/2. Not in the paper.

    Args:
        rho: the separation, > 0.
        samples: m.

    Raises:
        DepthError: `samples` is no integer >= 1.
        OptionError: `rho` is no finite number > 0.

    Example:
        >>> total_norm_bound(rho=2.0, samples=2) == 2 * math.pi
        True
    """
    return 2 * math.pi * math.sqrt(2 * as_depth("samples", samples)) / check_positive("rho", rho)


@isolated(grad=False)
def least_parameter_norm(X: ArrayLike, Y: ArrayLike) -> float:
    """Bound from below the norm of all weights and biases of units (3) that send X to Y, whatever their number.

    The square is, for the worst sample, the larger of ``2 |y - x|/sqrt(1 + max(|x|, |y|)^2)`` and
    ``2 (arsinh(|x| + |y - x|) - arsinh |x|)``. A unit moves h by at most ``|W2| (|W1| |h| + |b|)``
    ``<= (|W1|^2 + |W2|^2 + |b|^2) sqrt(1 + |h|^2)/2``, and it can move h by as much in any direction. For one sample
    with ``|y| <= |x|`` the first term is the larger one, and exact: one unit attains it, so that depth does not help at
    all. The second is attained for y = t x, t > 1, in the limit of many units. Else, and for several samples, a lower
    bound. Without the biases there is none. Not in the paper; proof in the chapter.

    Args:
        X: inputs (n, d).
        Y: outputs (n, d).

    Raises:
        ShapeError: arrays of other shapes.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> axes = torch.eye(3)
        >>> round(least_parameter_norm(axes[:1], axes[1:2]), 6)
        1.414214
    """
    inputs, outputs = as_real("X", X), as_real("Y", Y)
    if inputs.ndim != 2 or 0 in inputs.shape or outputs.shape != inputs.shape:
        raise ShapeError(f"X, Y have the shapes {tuple(inputs.shape)}, {tuple(outputs.shape)}: (n, d) twice is needed")
    inputs, outputs = inputs.to(torch.float64), outputs.to("cpu", torch.float64)
    start, way = inputs.cpu().norm(dim=1), (outputs - inputs.cpu()).norm(dim=1)
    farther = torch.maximum(start, outputs.norm(dim=1))  # 1/sqrt(1 + r^2) by hypot: r^2 may overflow
    one_unit = way / torch.hypot(torch.ones_like(farther), farther)
    outwards = torch.asinh(start + way) - torch.asinh(start)
    return float((2 * torch.maximum(one_unit, outwards)).max().sqrt())


@isolated
def apply_units(weights: ArrayLike, biases: ArrayLike, X: ArrayLike) -> Tensor:
    """Apply equation (3), h -> h + W2 ReLU(W1 h + b), unit after unit, by matrix products.

    Args:
        weights: (units, 2, d, d), W1 and W2 of each unit.
        biases: (units, d).
        X: inputs (n, d).

    Returns:
        (n, d), in the dtype of `weights`; differentiable.

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> W = torch.ones(1, 2, 1, 1)
        >>> apply_units(W, torch.zeros(1, 1), [[2.0], [-3.0]]).flatten().tolist()
        [4.0, -3.0]
    """
    W = _check_units(weights)
    b, h = as_real("biases", biases).to(W), check_inputs(X, W.shape[-1]).to(W)
    if b.shape != (len(W), W.shape[-1]):
        raise ShapeError(f"biases has shape {tuple(b.shape)}: {(len(W), W.shape[-1])} is needed to fit the weights")
    for (W1, W2), offset in zip(W, b, strict=True):
        h = h + torch.relu(h @ W1.mT + offset) @ W2.mT
    return h


@isolated(grad=False)
def least_stretch(weights: ArrayLike) -> float:
    """Bound ||f(x) - f(y)||/||x - y|| from below: prod_r (1 - ||W1|| ||W2||), or 0 if a factor is not positive.

    Each unit is the identity plus a map of Lipschitz constant ||W1|| ||W2||. Where all these are below 1 the network is
    injective: it gives different samples different outputs, and cannot send both to one label. Not in the paper.

    Args:
        weights: (units, 2, d, d).

    Raises:
        ShapeError: `weights` has another shape.
        NotFiniteError: `weights` holds NaN or infinity.

    Example:
        >>> least_stretch(torch.full((2, 2, 1, 1), 0.5))
        0.5625
    """
    norms = torch.linalg.matrix_norm(_check_units(weights), ord=2)
    return float((1 - norms[:, 0] * norms[:, 1]).clamp_min(0).prod())


def _check_units(weights: ArrayLike) -> Tensor:
    W = as_real("weights", weights)
    if W.ndim != 4 or W.shape[1] != 2 or W.shape[2] != W.shape[3] or 0 in W.shape:
        raise ShapeError(f"weights has shape {tuple(W.shape)}: (units, 2, d, d) is needed")
    return W
