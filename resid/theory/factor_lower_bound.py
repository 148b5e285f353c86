"""How near to the identity a factorisation can possibly be: a lower bound on max_i ||A_i||_2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from resid.errors import DeterminantError
from resid.theory._check import EPS, as_depth, as_square

#: Supporting lines of the joint numerical range tried per decade of slope, and mixtures between neighbours.
_PER_DECADE, _MIXTURES = 6, 9
_POLISHED = 4


def near_identity_lower_bound(R: Any, depth: int) -> float:
    """A lower bound on max_i ||A_i||_2 over all (I + A_depth) ... (I + A_1) = R.

    It is the maximum over v of ``|rho^(1/l) e^(i phi/l) - 1|``. Here l = depth, rho = ||Rv||/||v||, and phi in [0, pi]
    is the angle between v and Rv. Ours; proof in the chapter: one layer of norm a < 1 moves (log length, angle) by a
    point of ``{log(1 + z): |z| <= a}``, which is convex and symmetric, and depth such steps must add up to
    (log rho, phi).

    The inequality is proved for a < 1, so the bound is cut off at 1; for det R <= 0 the answer is 1 at every depth.
    Every v gives a valid bound, so an imperfect search can only return a smaller valid one. The search is global: with
    ||v|| = 1 the quantity depends on (||Rv||^2, v.Rv) alone, whose range is convex for d >= 3 (Brickman 1961), and it
    grows as v.Rv falls; so the maximum lies on the lower edge of that range, which extreme eigenvectors of
    s R^T R - (R + R^T)/2 trace out as s varies.

    Equal to the norm of `factor_near_identity(R, depth)` whenever R is normal without negative eigenvalues.

    Args:
        R: (d, d), real.
        depth: number of layers, >= 1.

    Returns:
        A number in [0, 1].

    Raises:
        DeterminantError: R is not exactly singular, but its determinant cannot be told from 0 in float64.
        ShapeError, NotFiniteError, DepthError: other bad input.

    Example:
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # by pi/2
        >>> round(near_identity_lower_bound(turn, depth=3), 12) == round(2 * math.sin(math.pi / 12), 12)
        True
    """
    matrix, depth = as_square("R", R).detach().to("cpu", torch.float64), as_depth("depth", depth)
    sigma = torch.linalg.svdvals(matrix)
    sign = float(torch.linalg.slogdet(matrix).sign)
    if sign != 0 and float(sigma[-1]) <= len(sigma) * EPS * float(sigma[0]):
        raise DeterminantError(
            f"det R cannot be told from 0 in float64: sigma_min = {float(sigma[-1]):.3g}, sigma_max = "
            f"{float(sigma[0]):.3g}; an exactly singular R has the bound 1"
        )
    if sign <= 0:
        return 1.0
    vectors = torch.cat([_edge_vectors(matrix, sigma), _special_vectors(matrix)])
    values = step_from_identity(matrix, vectors, depth)
    starts = vectors[values.topk(min(_POLISHED, len(values))).indices]
    polished = torch.stack([_polish(matrix, v, depth) for v in starts])
    best = torch.cat([values, step_from_identity(matrix, polished, depth)]).max()
    return min(float(best), 1.0)


def step_from_identity(R: Tensor, vectors: Tensor, depth: int) -> Tensor:
    """|rho^(1/depth) e^(i phi/depth) - 1| for each row v of `vectors` (n, d): (n,), each a lower bound where <= 1."""
    v = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    image = v @ R.mT
    along = (image * v).sum(-1)
    across = torch.linalg.vector_norm(image - along[:, None] * v, dim=-1)
    log_step = torch.linalg.vector_norm(image, dim=-1).log() / depth
    angle_step = torch.atan2(across, along) / depth
    return (log_step.expm1() ** 2 + 4 * log_step.exp() * torch.sin(angle_step / 2) ** 2).sqrt()


def _edge_vectors(R: Tensor, sigma: Tensor) -> Tensor:
    """Vectors on the lower edge of {(||Rv||^2, v.Rv)}, in order along it, and mixtures of neighbours for flat parts."""
    unit = R / sigma[0]
    decades = math.log10(float(sigma[0] / sigma[-1])) + 6
    slopes = torch.logspace(-3, decades - 3, round(decades * _PER_DECADE), dtype=torch.float64)
    slopes = torch.cat([-slopes.flip(0), torch.zeros(1, dtype=torch.float64), slopes])
    gram, symmetric = unit.mT @ unit, (unit + unit.mT) / 2
    edge = torch.linalg.eigh(slopes[:, None, None] * gram - symmetric)[1][..., -1]
    angle = torch.linspace(0, math.pi, _MIXTURES + 1, dtype=torch.float64)[1:-1]
    mixed = angle.cos()[:, None, None] * edge[:-1] + angle.sin()[:, None, None] * edge[1:]
    mixed = mixed.reshape(-1, len(R))
    return torch.cat([edge, mixed[torch.linalg.vector_norm(mixed, dim=-1) > 1e-6]])


def _special_vectors(R: Tensor) -> Tensor:
    """Right singular vectors and the real and imaginary parts of eigenvectors."""
    parts = torch.linalg.eig(R)[1].mT
    rows = torch.cat([torch.linalg.svd(R)[2], parts.real, parts.imag])
    return rows[torch.linalg.vector_norm(rows, dim=-1) > 1e-6]


def _polish(matrix: Tensor, start: Tensor, depth: int) -> Tensor:
    """A local maximiser near one vector, by L-BFGS."""
    R = matrix.numpy()

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the square of `step_from_identity`, and its gradient by hand: called hundreds of times."""
        image = R @ v
        square, image_square = v @ v, image @ image
        cosine = np.clip(v @ image / math.sqrt(square * image_square), -1.0, 1.0)
        log_step, angle = math.log(image_square / square) / (2 * depth), math.acos(cosine)
        size, small = math.exp(log_step), angle / depth
        back = R.T @ image
        grow = (back / image_square - v / square) / depth
        turn = (image + R.T @ v) / math.sqrt(square * image_square) - cosine * (v / square + back / image_square)
        sine = max(math.sin(angle), 1e-12)  # at 0 and pi the angle has no derivative
        gradient = 2 * size * ((size - math.cos(small)) * grow - math.sin(small) / (depth * sine) * turn)
        value = math.expm1(log_step) ** 2 + 4 * size * math.sin(small / 2) ** 2
        return -value, -gradient

    options = {"maxiter": 200, "ftol": 1e-15, "gtol": 1e-12}
    return torch.from_numpy(minimize(loss, start.numpy(), jac=True, method="L-BFGS-B", options=options).x)
