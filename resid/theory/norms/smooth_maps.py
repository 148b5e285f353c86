"""Smooth invertible maps with certified constants: the targets of Theorem 1 of Zaeemzadeh et al. 2018.

Assumption 1 asks for a differentiable invertible h on a ball with ``||h'(x) - h'(y)|| <= alpha ||x - y||`` and
``||h^-1(u) - h^-1(v)|| <= beta ||u - v||``. Here are maps for which both constants are proved, not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_depth, as_real, as_square, check_option, check_positive
from resid.errors import DeterminantError, OptionError, ShapeError
from resid.theory.targets import random_rotation

#: sup |tanh''|, at tanh^2 = 1/3.
_TANH_CURVATURE = 4 / (3 * math.sqrt(3))


@dataclass(frozen=True)
class SmoothMap:
    """A map h of R^d into itself with the constants of Assumption 1 on the ball of `radius` about the origin.

    Whoever builds one vouches for alpha, beta and slope; nothing here can check them.

    Args:
        value: (..., d) -> (..., d), written in torch operations that `torch.func` can differentiate.
        dimension: d.
        alpha: Lipschitz constant of h' on the ball, in operator norm.
        beta: Lipschitz constant of the inverse on the image of the ball.
        radius: > 0.
        slope: h' as a function (..., d) -> (..., d, d), or None for automatic differentiation.

    Example:
        >>> h = SmoothMap(lambda x: 2 * x, dimension=3, alpha=0.0, beta=0.5)
        >>> h.jacobian(torch.zeros(1, 3))[0]
        tensor([[2., 0., 0.],
                [0., 2., 0.],
                [0., 0., 2.]])
    """

    value: Callable[[Tensor], Tensor]
    dimension: int
    alpha: float
    beta: float
    radius: float = 1.0
    slope: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        as_depth("dimension", self.dimension)
        check_positive("beta", self.beta)
        check_positive("radius", self.radius)
        if isinstance(self.alpha, (bool, str)) or not 0 <= self.alpha < math.inf:
            raise OptionError(f"alpha = {self.alpha!r}: a finite number >= 0 is needed")

    @isolated
    def __call__(self, x: Tensor) -> Tensor:
        """Compute h(x) for points (..., d)."""
        return self.value(x)

    @isolated
    def jacobian(self, x: Tensor) -> Tensor:
        """Compute h'(x) for points (..., d): (..., d, d)."""
        if self.slope is not None:
            return self.slope(x)
        flat = x.reshape(-1, self.dimension)
        jacobians: Tensor = torch.func.vmap(torch.func.jacrev(self.value))(flat)
        return jacobians.reshape(*x.shape, self.dimension)

    @isolated
    def points(self, n: int, generator: Generator) -> Tensor:
        """Sample n points of the ball, (n, d), float64; every fourth lies on the sphere."""
        x = torch.randn(n, self.dimension, generator=generator, dtype=torch.float64)
        size = torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / self.dimension)
        size[::4] = 1
        return self.radius * size * x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


@isolated(grad=False)
def residual_map(A: ArrayLike, W1: ArrayLike, W2: ArrayLike, radius: float = 1.0) -> SmoothMap:
    """Build h(x) = A (x + W2 tanh(W1 x)), invertible everywhere because ||W2|| ||W1|| < 1.

    ``alpha = (4 / sqrt(27)) ||A|| ||W2|| ||W1||^2`` since ``|tanh''| <= 4 / sqrt(27)``, and
    ``beta = ||A^-1|| / (1 - ||W2|| ||W1||)``.

    Args:
        A: invertible matrix (d, d).
        W1: (m, d).
        W2: (d, m).
        radius: of the ball, > 0.

    Raises:
        ShapeError: the matrices do not fit.
        NotFiniteError: a matrix holds NaN or infinity.
        DeterminantError: `A` is singular.
        OptionError: ||W2|| ||W1|| >= 1, or `radius` is not positive.

    Example:
        >>> h = residual_map(torch.eye(2), 0.5 * torch.eye(2), torch.eye(2))
        >>> round(h.alpha, 6), h.beta
        (0.19245, 2.0)
    """
    A = as_square("A", A)
    W1, W2 = as_real("W1", W1).to(A), as_real("W2", W2).to(A)
    if W1.ndim != 2 or W2.shape != W1.shape[::-1] or W1.shape[1] != len(A):
        raise ShapeError(
            f"A, W1, W2 have shapes {tuple(A.shape)}, {tuple(W1.shape)}, {tuple(W2.shape)}: "
            "(d, d), (m, d), (d, m) are needed"
        )
    sigma = _invertible_singular_values(A)
    inner, outer = _norm(W1), _norm(W2)
    if inner * outer >= 1:
        raise OptionError(f"||W2|| ||W1|| = {inner * outer:.4g}: it must be below 1 for h to be invertible")

    def value(x: Tensor) -> Tensor:
        return (x + torch.tanh(x @ W1.mT.to(x)) @ W2.mT.to(x)) @ A.mT.to(x)

    def slope(x: Tensor) -> Tensor:
        steep = 1 - torch.tanh(x @ W1.mT.to(x)) ** 2
        eye = torch.eye(len(A), dtype=x.dtype, device=x.device)
        return A.to(x) @ (eye + W2.to(x) @ (steep[..., None] * W1.to(x)))

    alpha = _TANH_CURVATURE * float(sigma[0]) * outer * inner**2
    return SmoothMap(value, len(A), alpha, 1 / (float(sigma[-1]) * (1 - inner * outer)), radius, slope)


@isolated(grad=False)
def shear(bend: float, A: ArrayLike | None = None, radius: float = 1.0) -> SmoothMap:
    """Build h(x) = A (x_1, x_2 + bend x_1^2, x_3, ...), for which everything can be worked out by hand.

    ``alpha = 2 |bend| ||A||``, attained; ``beta = ||A^-1||`` times the norm of ``[[1, 0], [2 |bend| radius, 1]]``.

    Args:
        bend: a number.
        A: invertible matrix (d, d), d >= 2; default the identity of the plane.
        radius: of the ball, > 0.

    Raises:
        ShapeError: `A` is not square, or d < 2.
        NotFiniteError: `A` holds NaN or infinity.
        DeterminantError: `A` is singular.
        OptionError: `bend` or `radius` is no such number.

    Example:
        >>> shear(3.0)(torch.tensor([2.0, 1.0]))
        tensor([ 2., 13.])
    """
    bend, radius = _number("bend", bend), check_positive("radius", radius)

    def value(x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x[..., 1:2] + bend * x[..., :1] ** 2, x[..., 2:]], -1)

    def slope(x: Tensor) -> Tensor:
        J = _eyes(x)
        J[..., 1, 0] = 2 * bend * x[..., 0]
        return J

    return _after(A, value, slope, 2 * abs(bend), _shear_norm(2 * abs(bend) * radius), radius)


@isolated(grad=False)
def twist(rate: float, A: ArrayLike | None = None, radius: float = 1.0) -> SmoothMap:
    """Build h(x) = A (x turned in the plane of x_1 and x_2 by the angle rate (x_1^2 + x_2^2)).

    With p = (x_1, x_2) and J the quarter turn the derivative in the plane is a rotation times ``I + 2 rate J p p^T``,
    a shear of norm at most ``b = (s + sqrt(s^2 + 4)) / 2``, ``s = 2 |rate| radius^2``. Differentiating once more gives
    ``alpha = 2 |rate| radius (2 + b) ||A||``; ``beta = ||A^-1|| b``.

    Args, Raises: as for `shear`, with `rate` for `bend`.

    Args:
        rate: a number.
        A: invertible matrix (d, d), d >= 2; default the identity of the plane.
        radius: of the ball, > 0.

    Raises:
        ShapeError: `A` is not square, or d < 2.
        NotFiniteError: `A` holds NaN or infinity.
        DeterminantError: `A` is singular.
        OptionError: `rate` or `radius` is no such number.

    Example:
        >>> import math
        >>> h = twist(math.pi)
        >>> bool(torch.allclose(h(torch.tensor([1.0, 0.0])), torch.tensor([-1.0, 0.0]), atol=1e-6))
        True
    """
    rate, radius = _number("rate", rate), check_positive("radius", radius)

    def value(x: Tensor) -> Tensor:
        first, second = x[..., :1], x[..., 1:2]
        angle = rate * (first**2 + second**2)
        cosine, sine = angle.cos(), angle.sin()
        return torch.cat([cosine * first - sine * second, sine * first + cosine * second, x[..., 2:]], -1)

    def slope(x: Tensor) -> Tensor:
        J, moved = _eyes(x), value(x)
        angle = rate * (x[..., 0] ** 2 + x[..., 1] ** 2)
        cosine, sine = angle.cos(), angle.sin()
        turns = ((cosine, -sine), (sine, cosine))
        for i, (sign, other) in enumerate(((-1, 1), (1, 0))):  # d(angle) moves p along the quarter turn of h(p)
            for j in range(2):
                J[..., i, j] = turns[i][j] + sign * moved[..., other] * 2 * rate * x[..., j]
        return J

    steep = _shear_norm(2 * abs(rate) * radius**2)
    return _after(A, value, slope, 2 * abs(rate) * radius * (2 + steep), steep, radius)


@isolated
def mirror_augmented(h: SmoothMap) -> SmoothMap:
    """Build (x, b) -> (h(x), -b), whose derivative has the determinant -det h'(x).

    So Assumption 1 (iii) costs one dimension. alpha is that of h, beta the larger of h's and 1; the ball of the same
    radius in one more dimension lies in the product of h's ball with an interval.

    Args:
        h: the map.

    Example:
        >>> mirror_augmented(shear(1.0))(torch.tensor([1.0, 2.0, 5.0]))
        tensor([ 1.,  3., -5.])
    """

    def value(x: Tensor) -> Tensor:
        return torch.cat([h.value(x[..., :-1]), -x[..., -1:]], -1)

    def slope(x: Tensor) -> Tensor:
        J = -_eyes(x)
        J[..., :-1, :-1] = h.jacobian(x[..., :-1])
        return J

    return SmoothMap(value, h.dimension + 1, h.alpha, max(h.beta, 1.0), h.radius, slope)


@isolated
def sample_smooth_map(family: str, d: int, generator: Generator, sign: int = 1) -> SmoothMap:
    """Sample a random map of one of `SMOOTH_FAMILIES` with radius 1 and moderate constants.

    "residual", "shear", "twist": nonlinear, after a linear map of condition number at most e^1.4.
    "nearly linear": a shear of size 1e-3 after half turns, where the linear part is what counts.

    Args:
        family: one of `SMOOTH_FAMILIES`.
        d: dimension, >= 2.
        generator: source of randomness.
        sign: +1 or -1, that of det h'.

    Raises:
        OptionError: unknown family, or another sign.
        ShapeError: d = 1.
        DepthError: `d` is no integer >= 1.
    """
    check_option("family", family, SMOOTH_FAMILIES)
    if as_depth("d", d) < 2:
        raise ShapeError(f"d = {d}: at least two dimensions are needed")
    if sign not in (1, -1):
        raise OptionError(f"sign = {sign!r}: 1 or -1 is needed")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    U, V = random_rotation(d, generator), random_rotation(d, generator)
    stretch = (0.7 * (2 * torch.rand(d, generator=generator, dtype=torch.float64) - 1)).exp()
    stretch[0] *= sign
    A = U @ (stretch[:, None] * V)
    if family == "shear":
        return shear(uniform(0.2, 1.5), A)
    if family == "twist":
        return twist(uniform(0.1, 0.6), A)
    if family == "nearly linear":
        signs = torch.ones(d, dtype=torch.float64)
        signs[: 2 * (d // 2)] = -1
        signs[-1] *= sign
        return shear(1e-3, U @ (signs[:, None] * U.mT))
    W1, W2 = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((2 * d, d), (d, 2 * d)))
    W1 *= uniform(0.5, 2) / _norm(W1)
    W2 *= uniform(0.2, 0.6) / (_norm(W2) * _norm(W1))
    return residual_map(A, W1, W2)


SMOOTH_FAMILIES = ("residual", "shear", "twist", "nearly linear")


def _after(
    A: ArrayLike | None,
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    alpha: float,
    beta: float,
    radius: float,
) -> SmoothMap:
    """A after a map that changes only the first two coordinates."""
    if A is None:
        return SmoothMap(value, 2, alpha, beta, radius, slope)
    A = as_square("A", A)
    if len(A) < 2:
        raise ShapeError(f"A has shape {tuple(A.shape)}: at least two dimensions are needed")
    sigma = _invertible_singular_values(A)

    def whole(x: Tensor) -> Tensor:
        return value(x) @ A.mT.to(x)

    def steepness(x: Tensor) -> Tensor:
        return A.to(x) @ slope(x)

    return SmoothMap(whole, len(A), alpha * float(sigma[0]), beta / float(sigma[-1]), radius, steepness)


def _eyes(x: Tensor) -> Tensor:
    """An identity matrix for each point (..., d)."""
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(*x.shape, -1).clone()


def _shear_norm(s: float) -> float:
    """||[[1, 0], [s, 1]]||, which is also the norm of the inverse."""
    return (s + math.hypot(s, 2)) / 2


def _invertible_singular_values(A: Tensor) -> Tensor:
    sigma = torch.linalg.svdvals(A)
    if float(sigma[-1]) <= len(sigma) * torch.finfo(A.dtype).eps * float(sigma[0]):
        raise DeterminantError(
            f"A is singular to its precision, and h would not be invertible: sigma_min = {float(sigma[-1]):.3g}, "
            f"sigma_max = {float(sigma[0]):.3g}"
        )
    return sigma


def _norm(W: Tensor) -> float:
    return float(torch.linalg.matrix_norm(W, ord=2))


def _number(name: str, value: float) -> float:
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise OptionError(f"{name} = {value!r}: a finite number is needed")
    return float(value)
