"""When the half-spaces of Hardt & Ma 2016, Appendix B, exist: margins, the width they need, and Lemma B.1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_real, check_option, check_positive
from resid.errors import MarginError, ShapeError
from resid.theory.memorize._blocks import affine, as_points, competitors, projection_matrix, random_units


@dataclass(frozen=True)
class Margins:
    """How far the half-spaces of the paper's construction are from failing, in units of squared norms; > 0: they exist.


    Attributes:
        shared: min ||z_i||^2 minus the largest inner product of two different points or of a point and a surrogate
            label.
        neuron: the least difference between ||z_i||^2 and the inner products of its own row.
    """

    shared: float
    neuron: float


@isolated(grad=False)
def measure_margins(z: ArrayLike, q: ArrayLike | None = None) -> Margins:
    """Measure the margins of projected points and surrogate labels.

    Args:
        z: projected points (n, k).
        q: surrogate labels (r, k); default none.

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> measure_margins([[1.0, 0.0], [0.0, 2.0]])
        Margins(shared=1.0, neuron=1.0)
    """
    z = as_real("z", z)
    q = z[:0] if q is None else as_real("q", q).to(z)
    if z.ndim != 2 or 0 in z.shape or q.ndim != 2 or q.shape[1] != z.shape[1]:
        raise ShapeError(f"z has shape {tuple(z.shape)}, q {tuple(q.shape)}: (n, k) and (r, k) are needed")
    squares, rivals = z.square().sum(1), competitors(z, q)
    return Margins(float(squares.min() - rivals.max()), float((squares - rivals).min()))


@isolated
def isolating_block(alpha: ArrayLike, beta: ArrayLike, moved: ArrayLike, slack: float) -> tuple[Tensor, Tensor, Tensor]:
    """Build U (k, d), s (k,), V (d, k) of Lemma B.1, which move some points of alpha to beta and leave the rest.

    Rows of U are the points, s = -(1 - 2 slack), columns of V are (beta - alpha)/(||alpha||^2 - (1 - 2 slack)). True
    if all squared norms are within 1 +- slack and every moved point is at squared distance at least 6 slack from all
    others (the paper prints 3 slack, which is not enough). The conditions are not checked here.

    Args:
        alpha: points (n, d).
        beta: where the moved points go, (k, d).
        moved: indices of the k moved points.
        slack: > 0, of the lemma.

    Raises:
        OptionError: `slack` is no finite number > 0.
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.

    Source: Hardt & Ma 2016, Lemma B.1.

    Example:
        >>> U, s, V = isolating_block([[1.0, 0.0], [0.0, 1.0]], [[5.0, 5.0]], [0], slack=0.1)
        >>> (torch.eye(2) + (U.float() @ torch.eye(2) + s.float()[:, None]).relu().T @ V.float().T).round(decimals=5)
        tensor([[5., 5.],
                [0., 1.]])
    """
    alpha, beta = as_points("alpha", alpha), as_points("beta", beta)
    indices = torch.as_tensor(moved, dtype=torch.int64, device=alpha.device)
    if beta.shape != (len(indices), alpha.shape[1]):
        raise ShapeError(f"beta has shape {tuple(beta.shape)}: ({len(indices)}, {alpha.shape[1]}) is needed")
    threshold = 1 - 2 * check_positive("slack", slack)
    U = alpha[indices].to(torch.float64)
    scale = U.square().sum(1) - threshold
    return U, U.new_full((len(U),), -threshold), ((beta.to(U) - U) / scale[:, None]).mT


@isolated
def smallest_width(
    X: ArrayLike, mode: str, classes: int, generator: Generator, draws: int = 6, successes: int = 5
) -> int:
    """Estimate the least width at which Gaussian projections give positive margins in `successes` of `draws` draws.

    By doubling and bisection, that is, as if success were monotone in the width.

    Args:
        X: points (n, d).
        mode: "shared" or "neuron".
        classes: number of surrogate labels.
        generator: source of randomness.
        draws: projections tried at each width.
        successes: draws that must succeed.

    Raises:
        OptionError: another mode.
        MarginError: no width separates the points.
        ShapeError: `X` is no array of points.
        NotFiniteError: `X` holds NaN or infinity.
    """
    X = as_points("X", X).to(torch.float64)
    check_option("mode", mode, ("shared", "neuron"))

    def works(k: int) -> bool:
        count = 0
        for _ in range(draws):
            z = affine(X, projection_matrix(X, k, "gaussian", generator, unit=False), X.new_zeros(k))
            count += getattr(measure_margins(z, random_units(classes, k, generator).to(z)), mode) > 0
        return count >= successes

    high = 2
    while not works(high):
        if high > 64 * len(X):
            raise MarginError(f"no width up to {high} separates the points with mode = {mode!r}")
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high
