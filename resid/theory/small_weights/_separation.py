"""How far apart unit vectors are, and whether that is far enough for a half-space to tell them apart in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resid._arguments import EPS, ArrayLike, as_real, as_samples
from resid.errors import MarginError, ShapeError

#: The gap between a moved and a resting vector must be this many times what rounding can do to it.
_ROOM = 64


def minimum_distance(points: ArrayLike) -> float:
    """Return the least distance between two rows (Definition 3); 0 if a row is repeated.

    Args:
        points: (n, d), n >= 2.

    Raises:
        ShapeError: fewer than two points.
        NotFiniteError: `points` holds NaN or infinity.

    Example:
        >>> minimum_distance([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
        0.0
    """
    rows = as_real("points", points)
    if rows.ndim != 2 or len(rows) < 2:
        raise ShapeError(f"points has shape {tuple(rows.shape)}: (n, d) with n >= 2 is needed")
    return nearest_pair(rows, rows, earlier=True)[0]


def separation(X: ArrayLike, Y: ArrayLike) -> float:
    """Return rho: the least distance between two samples, two labels, or a sample and the label of an earlier row.

    At least `minimum_distance` of samples and labels together, which also counts each sample with its own label and
    with later ones; those never rest at the same time, since samples move in the order of the rows. For a single sample
    2, the largest distance on the sphere.

    Args:
        X: samples as rows of norm 1, (m, d), d >= 3.
        Y: labels as rows of norm 1, (m, d).

    Raises:
        MarginError: two of them coincide, or are so close that in this precision no half-space separates them.
        ShapeError: d < 3, shapes that differ, or rows not of unit norm.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> round(separation(torch.eye(3).roll(1, 0), -torch.eye(3)), 6)
        1.414214
    """
    X, Y = as_samples(X, Y)
    if X.shape[1] < 3:
        raise ShapeError(f"d = {X.shape[1]} < 3: on a circle a vector cannot go round another")
    noise = max(check_unit("X", X), check_unit("Y", Y))
    X, Y = normalised(X), normalised(Y)
    pairs = [(*nearest_pair(A, B, True), a, b) for A, a, B, b in ((X, "X", X, "X"), (Y, "Y", Y, "Y"), (X, "X", Y, "Y"))]
    rho, i, j, first, second = min(pairs)
    # rho^2/8 is the gap that the threshold leaves
    least = math.sqrt(8 * _ROOM * max(noise, rounding_margin(X.shape[1])))
    if rho < least:
        raise MarginError(
            f"{first}[{i}] and {second}[{j}] are at distance {rho:.3g}: a distance of at least {least:.2g} is needed "
            "for a half-space to separate them in this precision; repeated labels need noise, scaled back to norm 1"
        )
    return rho


def nearest_pair(A: Tensor, B: Tensor, earlier: bool) -> tuple[float, int, int]:
    """Least distance between rows of A and B and where; with `earlier`, row i is compared with the rows before it only.

    Where there are no such rows 2, the largest distance on the sphere.
    """
    best = (2.0 if len(A) == 1 and earlier else math.inf, 0, 0)
    for start in range(0, len(A), 1024):
        distances = torch.cdist(A[start : start + 1024], B, compute_mode="donot_use_mm_for_euclid_dist")
        if earlier:
            distances[torch.ones_like(distances, dtype=torch.bool).triu(start)] = math.inf
        value, where = distances.flatten().min(0)
        row, column = divmod(int(where), len(B))
        if float(value) < best[0]:
            best = (float(value), start + row, column)
    return best


def check_room(A: Tensor, B: Tensor, least: float, first: str, second: str, same: bool) -> None:
    """Every row of A is at least so far from B, or from the other rows where `same` says that B is A."""
    if not len(A):
        return
    distance, i, j = nearest_pair(A, B, same)
    if distance < least * (1 - 16 * EPS):
        where = f"{second}[{j}]" if same else second
        raise MarginError(
            f"{first}[{i}] is at distance {distance:.4g} from {where}: at least {least:.4g} is needed for the clearance"
        )


def check_unit(name: str, rows: Tensor) -> float:
    """The largest difference of a row norm from 1, which must be rounding."""
    off = (rows.detach().to(torch.float64).norm(dim=1) - 1).abs()
    allowed = 1e-6 if rows.dtype == torch.float32 else 1e-12
    if len(off) and not float(off.max()) <= allowed:
        worst = int(off.argmax())
        raise ShapeError(
            f"{name}[{worst}] has norm {float(rows[worst].norm()):.6g}: unit norm, to {allowed:g}, is needed; "
            f"{name} / {name}.norm(dim=1, keepdim=True) has it"
        )
    return float(off.max()) if len(off) else 0.0


def normalised(rows: Tensor) -> Tensor:
    rows = rows.detach().to("cpu", torch.float64)
    return rows / rows.norm(dim=-1, keepdim=True)


def rounding_margin(d: int) -> float:
    """More than the rounding of an inner product of unit vectors."""
    return (2 * d + 16) * EPS


def check_inputs(X: ArrayLike, d: int) -> Tensor:
    """Return finite real inputs (n, d)."""
    X = as_real("inputs", X)
    if X.ndim != 2 or X.shape[1] != d:
        raise ShapeError(f"inputs has shape {tuple(X.shape)}: (n, {d}) is needed")
    return X
