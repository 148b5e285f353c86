"""The paths that samples take to their labels (Li et al. 2016, Lemma 2)."""

from __future__ import annotations

import torch

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_real, as_samples, check_positive
from resid.errors import MarginError, OptionError, ShapeError
from resid.theory.small_weights._separation import check_room, check_unit, normalised, separation
from resid.theory.small_weights._sphere import SpherePath, path_round


@isolated
def sphere_path(start: ArrayLike, goal: ArrayLike, obstacles: ArrayLike, clearance: float) -> SpherePath:
    """Construct the minor great arc from `start` to `goal`, round every obstacle at a distance (Lemma 2).

    Where the arc enters the cap of chord radius `clearance` about an obstacle it follows the shorter arc of the cap's
    boundary. That is at most pi/2 times as long, so that the path is no longer than pi^2/2. Antipodal ends have many
    arcs, and an obstacle right on the arc can be passed on any side; one choice is made.

    Args:
        start: unit vector (d,), d >= 3: on a circle one cannot go round anything.
        goal: unit vector (d,).
        obstacles: unit vectors as rows (n, d), n >= 0, pairwise at distances of at least 2 clearance, and at least
            `clearance` from both ends.
        clearance: 0 < clearance <= 1.

    Raises:
        MarginError: obstacles too close to each other or to an end.
        ShapeError: shapes that do not fit, d < 3, or vectors not of unit norm.
        OptionError: `clearance` is not in (0, 1].
        NotFiniteError: an argument holds NaN or infinity.

    Source: Li et al. 2016, Lemma 2.

    Example:
        >>> import math
        >>> E = torch.eye(3, dtype=torch.float64)
        >>> middle = (E[:1] + E[1:2]) / 2**0.5              # right in the way from one axis to the next
        >>> path = sphere_path(E[0], E[1], middle, clearance=0.25)
        >>> nearest = (path.points(1000) - middle).norm(dim=1).min()
        >>> path.bypasses, round(float(nearest), 4), math.pi / 2 < path.length < math.pi**2 / 2
        (1, 0.25, True)
    """
    p, q, rows = as_real("start", start), as_real("goal", goal), as_real("obstacles", obstacles)
    if p.ndim != 1 or p.shape != q.shape or len(p) < 3:
        raise ShapeError(f"start has shape {tuple(p.shape)}, goal {tuple(q.shape)}: both must be (d,) with d >= 3")
    if rows.ndim != 2 or rows.shape[1] != len(p):
        raise ShapeError(f"obstacles has shape {tuple(rows.shape)}: (n, {len(p)}) is needed")
    radius = check_positive("clearance", clearance)
    if radius > 1:
        raise OptionError(f"clearance = {radius:.4g} > 1: no two points of the sphere are 2 clearance apart")
    for name, vectors in (("start", p[None]), ("goal", q[None]), ("obstacles", rows)):
        check_unit(name, vectors)
    p, q, rows = (normalised(vectors) for vectors in (p, q, rows))
    for name, end in (("start", p), ("goal", q)):
        check_room(rows, end[None], radius, "obstacles", name, False)
    check_room(rows, rows, 2 * radius, "obstacles", "obstacles", True)
    return path_round(p, q, rows, radius)


@isolated
def sphere_paths(X: ArrayLike, Y: ArrayLike, rho: float | None = None) -> list[SpherePath]:
    """Construct the paths of all samples to their labels, one after another, with clearance rho/2 (Lemma 2).

    While row i moves, the rows before it rest at their labels and the rows after it where they start.

    Args:
        X: samples as rows of norm 1, (m, d), d >= 3.
        Y: labels as rows of norm 1, (m, d).
        rho: at most, and by default, `separation(X, Y)`.

    Raises:
        MarginError: `rho` is more than the separation, or two of the vectors coincide.
        ShapeError: d < 3, shapes that differ, or rows not of unit norm.
        NotFiniteError: an argument holds NaN or infinity.

    Source: Li et al. 2016, Lemma 2.
    """
    X, Y = as_samples(X, Y)
    least = separation(X, Y)
    rho = least if rho is None else check_positive("rho", rho)
    if rho > least * (1 + 16 * EPS):
        raise MarginError(f"rho = {rho:.4g} is more than the least distance {least:.4g}")
    X, Y = normalised(X), normalised(Y)
    return [path_round(X[i], Y[i], torch.cat([Y[:i], X[i + 1 :]]), rho / 2) for i in range(len(X))]
