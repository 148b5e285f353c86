"""Condition number and index of a Hessian, down to the rounding noise of float64 and not below it.

Li et al. 2016, Section 5: the largest absolute eigenvalue over the tenth percentile of the absolute eigenvalues, which
stands in place of the least one, and the share of negative eigenvalues. A solver errs by about N eps times the largest
absolute eigenvalue, so that smaller ones are noise: they count as zero, and a condition number is at most
`condition_number_limit(N)`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_real
from resid.errors import OptionError, ShapeError


@isolated
def hessian_eigenvalues(H: ArrayLike) -> Tensor:
    """Compute the eigenvalues of a symmetric matrix in ascending order, float64, on the CPU.

    Args:
        H: symmetric (N, N), or its eigenvalues (N,), which pass sorted.

    Raises:
        ShapeError: neither (N,) nor (N, N), or not symmetric to rounding.
        NotFiniteError: `H` holds NaN or infinity.

    Example:
        >>> hessian_eigenvalues([[0.0, 2.0], [2.0, 0.0]]).tolist()
        [-2.0, 2.0]
    """
    matrix = as_real("H", H).detach().to("cpu", torch.float64)
    if matrix.ndim == 1 and len(matrix):
        return matrix.sort().values
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ShapeError(f"H has shape {tuple(matrix.shape)}: a matrix (N, N) or its eigenvalues (N,) are needed")
    skew, size = float((matrix - matrix.mT).abs().max()), float(matrix.abs().max())
    if skew > 1e-6 * size:
        raise ShapeError(f"H is not symmetric: max |H - H^T| = {skew:.3g}, max |H| = {size:.3g}")
    return torch.linalg.eigvalsh(matrix)


def condition_number_limit(n: int) -> float:
    """Return 1 / (n eps): the largest condition number of n float64 eigenvalues that is more than rounding noise.

    Args:
        n: number of eigenvalues.

    Raises:
        DepthError: `n` is no integer >= 1.

    Example:
        >>> round(condition_number_limit(1000) / 1e12, 2)
        4.5
    """
    return 1 / (as_depth("n", n) * EPS)


@isolated
def condition_number(H: ArrayLike, quantile: float | None = None) -> float:
    """Compute the largest absolute eigenvalue over the least, or over a quantile of them (0.1 in Li et al.).

    Args:
        H: symmetric (N, N), or its eigenvalues (N,).
        quantile: None, or a number in (0, 1); linear interpolation between order statistics.

    Returns:
        A number >= 1, cut off at `condition_number_limit` (N): that value means "so much at least". Infinity for the
        zero matrix.

    Raises:
        OptionError: `quantile` outside (0, 1).
        ShapeError: neither (N,) nor (N, N), or not symmetric to rounding.
        NotFiniteError: `H` holds NaN or infinity.

    Example:
        >>> condition_number(torch.diag(torch.tensor([1.0, -4.0, 2.0])))
        4.0
    """
    if quantile is not None and (isinstance(quantile, (bool, str)) or not 0 < quantile < 1):
        raise OptionError(f"quantile = {quantile!r}: None or a number between 0 and 1, both excluded, is needed")
    sizes = hessian_eigenvalues(H).abs().numpy()
    largest = float(sizes.max())
    if largest == 0:
        return float("inf")
    small = float(sizes.min()) if quantile is None else float(np.quantile(sizes, quantile))
    limit = condition_number_limit(len(sizes))
    return limit if small * limit <= largest else largest / small


@isolated
def hessian_index(H: ArrayLike) -> float:
    """Compute the share of negative eigenvalues, those not counted that rounding cannot tell from zero.

    Args:
        H: symmetric (N, N), or its eigenvalues (N,).

    Raises:
        ShapeError: neither (N,) nor (N, N), or not symmetric to rounding.
        NotFiniteError: `H` holds NaN or infinity.

    Example:
        >>> hessian_index(torch.diag(torch.tensor([1.0, -4.0, 2.0, -1e-20])))
        0.25
    """
    values = hessian_eigenvalues(H)
    noise = len(values) * EPS * float(values.abs().max())
    return float((values < -noise).sum()) / len(values)
