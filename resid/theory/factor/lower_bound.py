"""How near to the identity a factorisation can possibly be: a lower bound on max_i ||A_i||_2."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_square
from resid.errors import DeterminantError

#: Supporting lines of the joint numerical range tried per decade of slope, and mixtures between neighbours.
_PER_DECADE, _MIXTURES = 6, 9
#: Local maxima along the edge that are refined, rounds of refinement, lines per round.
_PEAKS, _ROUNDS, _LINES = 3, 3, 16


@isolated
def near_identity_lower_bound(R: ArrayLike, depth: int) -> float:
    """Bound max_i ||A_i||_2 from below over all factorisations (I + A_depth) ... (I + A_1) = R.

    It is the maximum over v of ``|rho^(1/l) e^(i phi/l) - 1|``. Here l = depth, rho = ||Rv||/||v||, and phi in [0, pi]
    is the angle between v and Rv. Ours; proof in the chapter: one layer of norm a < 1 moves (log length, angle) by a
    point of ``{log(1 + z): |z| <= a}``, which is convex and symmetric, and depth such steps must add up to
    (log rho, phi).

    The inequality is proved for a < 1, so the bound is cut off at 1; for det R <= 0 the answer is 1 at every depth.
    Every v gives a valid bound, so an imperfect search can only return a smaller valid one; an allowance for the
    rounding of Rv is subtracted, which matters for condition numbers above 1e8. The search covers all v: with
    ||v|| = 1 the quantity depends on (||Rv||^2, v.Rv) alone, whose range is convex for d >= 3 (Brickman 1961), and it
    grows as v.Rv falls; so the maximum lies on the lower edge of that range, which extreme eigenvectors of
    s R^T R - (R + R^T)/2 trace out as s varies. The edge is swept over all slopes s and refined round its highest
    points.

    Equal to the norm of `factor_near_identity(R, depth)` whenever R is normal without negative eigenvalues and that
    norm is at most 1.

    Args:
        R: real matrix (d, d).
        depth: number of layers, >= 1.

    Returns:
        A number in [0, 1].

    Raises:
        DeterminantError: `R` is not exactly singular, but its determinant cannot be told from 0 in float64.
        DepthError: `depth` is no integer >= 1.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

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
    exponent = math.frexp(float(sigma[0]))[1]
    unit, log_scale = torch.ldexp(matrix, torch.tensor(-exponent)), exponent * math.log(2)  # without rounding
    slopes = _all_slopes(float(sigma[0] / sigma[-1]))
    tried = _special_vectors(unit)
    for _ in range(_ROUNDS):
        vectors = _edge_vectors(unit, slopes)
        values = _step(unit, log_scale, vectors.flatten(0, 1), depth).reshape(vectors.shape[:2])
        peaks = _peaks(values.amax(dim=1))
        tried = torch.cat([tried, vectors[peaks, values[peaks].argmax(dim=1)]])
        slopes = _between_neighbours(slopes, peaks)
    best = tried[_step(unit, log_scale, tried, depth).topk(min(_PEAKS, len(tried))).indices]
    polished = torch.stack([_polish(unit, log_scale, v, depth) for v in best])
    return min(max(_certified(unit, log_scale, torch.cat([tried, polished]), depth), 0.0), 1.0)


def _step(unit: Tensor, log_scale: float, vectors: Tensor, depth: int) -> Tensor:
    """``|rho^(1/depth) e^(i phi/depth) - 1|`` of R = e^log_scale unit for each row v of `vectors` (n, d): (n,)."""
    v = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    image = v @ unit.mT
    along = (image * v).sum(-1)
    across = torch.linalg.vector_norm(image - along[:, None] * v, dim=-1)
    log_step = (torch.linalg.vector_norm(image, dim=-1).log() + log_scale) / depth
    angle_step = torch.atan2(across, along) / depth
    return (log_step.expm1() ** 2 + 4 * log_step.exp() * torch.sin(angle_step / 2) ** 2).sqrt()


def _certified(unit: Tensor, log_scale: float, vectors: Tensor, depth: int) -> float:
    """The largest step of some vectors less what rounding may have added to it, in NumPy's longest floats.

    The relative error of Rv is d eps ||R|| ||v|| / ||Rv||, and that is the error of the complex logarithm of the step.
    """
    wide = np.longdouble
    R, v = unit.numpy().astype(wide), vectors.numpy().astype(wide)
    v = v / np.sqrt((v * v).sum(-1, keepdims=True))
    image = v @ R.T
    along, length = (image * v).sum(-1), np.sqrt((image * image).sum(-1))
    across = np.sqrt(((image - along[:, None] * v) ** 2).sum(-1))
    log_step = (np.log(length) + wide(log_scale)) / depth
    value = np.sqrt(
        np.expm1(log_step) ** 2 + 4 * np.exp(log_step) * np.sin(np.arctan2(across, along) / (2 * depth)) ** 2
    )
    error = 4 * len(unit) * np.finfo(wide).eps / length + 2 * EPS * abs(log_scale)  # of the logarithm, times depth
    return float((value - (1 + value) * error / depth).max()) * (1 - 2 * EPS)


def _all_slopes(condition: float) -> Tensor:
    """Slopes of supporting lines from far below to far above every slope that occurs, in order."""
    decades = math.log10(condition) + 6
    positive = torch.logspace(-3, decades - 3, round(decades * _PER_DECADE), dtype=torch.float64)
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])


def _peaks(values: Tensor) -> Tensor:
    """Indices of the highest local maxima of a sequence."""
    padded = torch.cat([values[:1] - 1, values, values[-1:] - 1])
    peaks = ((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:])).nonzero().flatten()
    return peaks[values[peaks].argsort(descending=True)[:_PEAKS]]


def _between_neighbours(slopes: Tensor, peaks: Tensor) -> Tensor:
    """Finer slopes round each peak, from its lower to its upper neighbour, in order."""
    low, high = slopes[(peaks - 1).clamp_min(0)], slopes[(peaks + 1).clamp_max(len(slopes) - 1)]
    part = torch.linspace(0, 1, _LINES, dtype=torch.float64)
    return (low[:, None] + (high - low)[:, None] * part).flatten().unique()


def _edge_vectors(unit: Tensor, slopes: Tensor) -> Tensor:
    """Vectors on the lower edge of {(||Rv||^2, v.Rv)} in order along it, each followed by mixtures with the next.

    Mixtures cover flat parts of the edge, where the eigenvector jumps. Shape (len(slopes), _MIXTURES, d).
    """
    gram, symmetric = unit.mT @ unit, (unit + unit.mT) / 2
    edge = torch.linalg.eigh(slopes[:, None, None] * gram - symmetric)[1][..., -1]
    following = torch.cat([edge[1:], edge[-1:]])
    # an eigenvector's sign is arbitrary: mixtures over half a circle cover both
    angle = torch.linspace(0, math.pi, _MIXTURES + 1, dtype=torch.float64)[:-1, None]
    mixed = angle.cos() * edge[:, None] + angle.sin() * following[:, None]
    short = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True) < 1e-6
    return torch.where(short, edge[:, None], mixed)


def _polish(unit: Tensor, log_scale: float, start: Tensor, depth: int) -> Tensor:
    """A local maximiser near one vector, by L-BFGS."""
    from scipy.optimize import minimize  # a sixth of a second, which nobody else who factors need wait for

    R = unit.numpy()

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the square of the step, and its gradient by hand: called hundreds of times."""
        image = R @ v
        square, image_square = v @ v, image @ image
        if not 0 < image_square < math.inf or not 0 < square < math.inf:
            return 0.0, np.zeros_like(v)  # a wild step: no better than any other
        cosine = np.clip(v @ image / math.sqrt(square * image_square), -1.0, 1.0)
        log_step = (math.log(image_square / square) / 2 + log_scale) / depth
        angle = math.acos(cosine)
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


def _special_vectors(unit: Tensor) -> Tensor:
    """Right singular vectors and the real and imaginary parts of eigenvectors."""
    parts = torch.linalg.eig(unit)[1].mT
    rows = torch.cat([torch.linalg.svd(unit)[2], parts.real, parts.imag])
    return rows[torch.linalg.vector_norm(rows, dim=-1) > 1e-6]
