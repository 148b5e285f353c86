"""How far the points of a sample are apart, and the width of a random projection that keeps it so."""

from __future__ import annotations

import math

import torch

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_whole, check_positive
from resid.errors import DepthError, OptionError, ShapeError
from resid.theory.memorize._blocks import as_points


@isolated
def separation(X: ArrayLike) -> tuple[float, int, int]:
    """Return rho of Assumption 3.1, the least squared distance of two points, and which two; no (n, n) array.

    Found from inner products about the mean of the points, and then computed from the difference: squared distances
    below about 1e-14 of the largest squared distance are only known to be so small.

    Args:
        X: points (n, d).

    Returns:
        The squared distance, and the indices of the two points, the smaller one first.

    Raises:
        ShapeError: fewer than two points.
        NotFiniteError: `X` holds NaN or infinity.

    Source: Hardt & Ma 2016, Assumption 3.1.

    Example:
        >>> separation([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        (1.0, 0, 2)
    """
    z = as_points("X", X).to(torch.float64)
    n = len(z)
    if n < 2:
        raise ShapeError(f"X has {n} points: two are needed for a distance")
    middle = z - z.mean(0)
    squares = middle.square().sum(1)
    nearest = torch.empty(n, dtype=torch.int64, device=z.device)
    size = max(1, (1 << 23) // n)
    for start in range(0, n, size):
        rows = torch.arange(start, min(n, start + size), device=z.device)
        distances = squares - 2 * middle[rows] @ middle.mT
        distances[rows - start, rows] = math.inf
        nearest[rows] = distances.argmin(1)
    exact = (z - z[nearest]).square().sum(1)
    i = int(exact.argmin())
    j = int(nearest[i])
    return float(exact[i]), min(i, j), max(i, j)


def projection_width(n: int, rho: float, c: float | None = None) -> int:
    """Return ceil(c log(n)/rho^2), the width of a random projection that keeps squared distances to 1 +- rho/3.

    Squared norms, too. The default of c comes from the union bound over n norms and n(n - 1)/2 distances, each with the
    tail 2 exp(-k (e^2/4 - e^3/6)) at e = rho/3; the paper has c = 10, which fails.

    Args:
        n: number of points, >= 2.
        rho: their separation, in (0, 4].
        c: the constant; default 72/(1 - 2 rho/9).

    Raises:
        DepthError: `n` is no integer >= 2.
        OptionError: `rho` is not in (0, 4], or `c` is not positive.

    Example:
        >>> projection_width(1000, 1.0, c=10)
        70
    """
    count = as_whole(n)
    if count is None or count < 2:
        raise DepthError(f"n = {n!r}: an integer of at least 2 is needed")
    if check_positive("rho", rho) > 4:
        raise OptionError(f"rho = {rho!r}: squared distances of unit vectors are at most 4")
    constant = 72 / (1 - 2 * rho / 9) if c is None else check_positive("c", c)
    return math.ceil(constant * math.log(count) / rho**2)
