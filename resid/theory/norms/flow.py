"""A smooth invertible map as a composition of blocks near the identity.

Zaeemzadeh et al. 2018, Theorem 1 and Lemma 2 (from Bartlett, Evans and Long 2018), and what this project adds: equally
spaced times, which give 1/depth where geometric ones give log(2 depth)/depth, with an explicit constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_depth, as_real, check_option
from resid.errors import ConvergenceError, DepthError, DeterminantError, ShapeError
from resid.theory.factor.constructions import factor_near_identity, rotation_angle, spectral_gamma
from resid.theory.norms.smooth_maps import SmoothMap

TIMES = ("uniform", "geometric")

#: Newton's method stops at a residual of so many times eps, relative to the size of the equation's terms.
_ROUNDING = 16
_MOST_STEPS = 60


@dataclass(frozen=True)
class NearIdentityFlow:
    """Blocks whose composition is a smooth map; callable on (n, d). Made by `near_identity_flow`.

    Attributes:
        target: the map.
        linear: layers A_i (m, d, d) of the first m blocks, whose product is h'(0).
        times: of the blocks that follow, 0 = t_0 < .. < t_k = 1; block i maps H_{t_{i-1}}(x) to H_{t_i}(x), where
            H_t(x) = (h(t x) - h(0)) / t and H_0(x) = h'(0) x. The last block adds h(0).
        bound: no block is farther than this from the identity in the Lipschitz seminorm, by the certified constants.
    """

    target: SmoothMap
    linear: Tensor
    times: Tensor
    bound: float

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.linear) + len(self.times) - 1

    @property
    def blocks(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The blocks, from the input, each a function of its input (n, d) alone; differentiable once."""
        every: list[Callable[[Tensor], Tensor]] = [partial(_linear_block, layer) for layer in self.linear]
        every += [partial(self._curved_block, i) for i in range(1, len(self.times))]
        return (*every[:-1], partial(self._last_block, every[-1]))

    @isolated
    def __call__(self, x: Tensor) -> Tensor:
        """Apply the blocks one after another to x (n, d) in the ball."""
        for block in self.blocks:
            x = block(x)
        return x

    @isolated
    def jacobians(self, x: ArrayLike) -> Tensor:
        """Compute the Jacobian of every block along the way of x (n, d) in the ball: (depth, n, d, d).

        In closed form: block i has h'(t_i x) h'(t_{i-1} x)^-1.
        """
        x = self._as_points(x)
        n, d = x.shape
        slopes = self.target.jacobian(self.times.to(x)[:, None, None] * x)
        curved = _divide(slopes[1:], slopes[:-1])
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        flat = (eye + self.linear.to(x))[:, None].expand(-1, n, d, d)
        return torch.cat([flat, curved])

    @isolated
    def _last_block(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return block(x) + self.target(torch.zeros_like(x))

    @isolated
    def _curved_block(self, i: int, x: Tensor) -> Tensor:
        start, stop = float(self.times[i - 1]), float(self.times[i])
        z = _preimage(self.target, self._as_points(x), start)
        return (self.target(stop * z) - self.target(torch.zeros_like(x))) / stop

    def _as_points(self, x: ArrayLike) -> Tensor:
        points = as_real("x", x)
        if points.ndim != 2 or points.shape[1] != self.target.dimension:
            raise ShapeError(f"x has shape {tuple(points.shape)}: points (n, {self.target.dimension}) are needed")
        return points


@isolated(grad=False)
def near_identity_flow(h: SmoothMap, depth: int, times: str = "uniform") -> NearIdentityFlow:
    """Construct `depth` blocks near the identity whose composition is h on its ball, exactly but for rounding.

    First h'(0) as linear blocks (`factor_near_identity`), then the flow H_t(x) = (h(t x) - h(0)) / t from t = 0 to 1.
    A block finds x again from its input by Newton's method. How many blocks are linear is chosen so that the certified
    bound of the worst block is least. With "uniform" times every block is within `flow_constant(h)` / (depth - 1) of
    the identity for depth >= 1 + flow_constant(h); with "geometric" times, those of Bartlett et al.,
    t_i = (2k)^((i - k)/(k - 1)), the rate is log(2 depth) / depth.

    Args:
        h: the map, det h'(0) > 0.
        depth: number of blocks; at least 2 unless h is linear or h'(0) = I.
        times: "uniform" or "geometric".

    Returns:
        A `NearIdentityFlow`, float64 unless its input is float32.

    Raises:
        DeterminantError: det h'(0) <= 0; `resid.theory.norms.mirror_augmented` repairs it.
        DepthError: `depth` too small.
        OptionError: unknown times.
        ConvergenceError: on calling the result: Newton's method finds no preimage, because the input is outside the
            image of the ball, or h bends too much.

    Source: Bartlett, Evans and Long 2018, Theorem 1, with this project's times, constant and division of the blocks.

    Example:
        >>> from resid.theory.norms.smooth_maps import shear
        >>> flow = near_identity_flow(shear(1.0), depth=5)
        >>> x = torch.tensor([[0.6, 0.0]], dtype=torch.float64)
        >>> [[round(v, 3) for v in block(x)[0].tolist()] for block in flow.blocks[:2]]   # each adds x_1^2 / 5
        [[0.6, 0.072], [0.6, 0.072]]
    """
    depth = as_depth("depth", depth)
    check_option("times", times, TIMES)
    A, bend, gamma, angle = _constants(h)
    count = _linear_count(bend, gamma, angle, depth, times)
    linear = factor_near_identity(A, count) if count else A.new_zeros(0, h.dimension, h.dimension)
    return NearIdentityFlow(
        h, linear, flow_times(depth - count, times), _worst(bend, gamma, angle, depth, count, times)
    )


@isolated(grad=False)
def flow_constant(h: SmoothMap) -> float:
    """Compute c = alpha beta radius + theta + (e - 1) gamma: blocks are within c / (depth - 1) of the identity.

    theta is the rotation angle and gamma the spectral gamma of h'(0); theta <= pi.

    Args:
        h: the map.

    Raises:
        DeterminantError: det h'(0) <= 0.

    Example:
        >>> from resid.theory.norms.smooth_maps import shear
        >>> round(flow_constant(shear(0.5)), 6)   # 2 (1/2) times the golden ratio
        1.618034
    """
    _, bend, gamma, angle = _constants(h)
    return bend + angle + (math.e - 1) * gamma


@isolated(grad=False)
def flow_bound(h: SmoothMap, depth: int, times: str = "uniform") -> float:
    """Bound the Lipschitz seminorm of every block of `near_identity_flow` minus the identity.

    The larger of alpha beta radius max(t_i - t_{i-1}) for the nonlinear blocks and
    ``e^(gamma/m) - 1 + 2 sin(theta/2m)`` for the m linear ones. At most `flow_constant(h)` / (depth - 1) for uniform
    times and depth >= 1 + flow_constant(h).

    Args:
        h: the map.
        depth: number of blocks.
        times: "uniform" or "geometric".

    Raises:
        DeterminantError: det h'(0) <= 0.
        DepthError: `depth` too small.
        OptionError: unknown times.
    """
    depth = as_depth("depth", depth)
    check_option("times", times, TIMES)
    _, bend, gamma, angle = _constants(h)
    return _worst(bend, gamma, angle, depth, _linear_count(bend, gamma, angle, depth, times), times)


@isolated
def flow_times(count: int, times: str = "uniform") -> Tensor:
    """Return 0 = t_0 < .. < t_count = 1: i / count, or (2 count)^((i - count)/(count - 1)) for "geometric".

    Args:
        count: number of steps.
        times: "uniform" or "geometric".

    Returns:
        (count + 1,), float64.

    Raises:
        OptionError: unknown times.

    Example:
        >>> flow_times(2), flow_times(2, "geometric")
        (tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64), tensor([0.0000, 0.2500, 1.0000], dtype=torch.float64))
    """
    check_option("times", times, TIMES)
    steps = torch.arange(count + 1, dtype=torch.float64)
    if times == "uniform" or count < 2:
        return steps / max(count, 1)
    spaced = (2 * count) ** ((steps - count) / (count - 1))
    spaced[0] = 0
    return spaced


def _constants(h: SmoothMap) -> tuple[Tensor, float, float, float]:
    """h'(0), alpha beta radius, gamma and theta of h'(0)."""
    A = h.jacobian(torch.zeros(h.dimension, dtype=torch.float64))
    try:
        angle = rotation_angle(A)
    except DeterminantError as error:
        raise DeterminantError(
            "det h'(0) <= 0: a composition of blocks near the identity has a derivative of positive determinant; "
            "resid.theory.norms.mirror_augmented(h) adds one dimension that repairs the sign"
        ) from error
    return A, h.alpha * h.beta * h.radius, spectral_gamma(A), angle


def _linear_count(bend: float, gamma: float, angle: float, depth: int, times: str) -> int:
    """How many of the blocks are linear."""
    flat = gamma < 1e-13 and angle < 1e-13
    if flat or bend == 0:
        return 0 if flat and bend else depth
    if depth < 2:
        raise DepthError(f"depth = {depth}: h is not linear and h'(0) is not the identity, each needs a block")
    return min(range(1, depth), key=lambda m: _worst(bend, gamma, angle, depth, m, times))


def _worst(bend: float, gamma: float, angle: float, depth: int, linear: int, times: str) -> float:
    k = depth - linear
    step = 1 / max(k, 1) if times == "uniform" or k < 2 else 1 - (2 * k) ** (-1 / (k - 1))
    curved = bend * step if k else 0.0
    straight = math.expm1(gamma / linear) + 2 * math.sin(angle / (2 * linear)) if linear else 0.0
    return max(curved, straight)


@isolated
def _linear_block(layer: Tensor, x: Tensor) -> Tensor:
    return x + x @ layer.mT.to(x)


def _preimage(h: SmoothMap, x: Tensor, scale: float) -> Tensor:
    """z (n, d) with (h(scale z) - h(0)) / scale = x, differentiable once in x."""
    origin = torch.zeros_like(x)
    if scale == 0:
        return _solve(h.jacobian(origin), x)
    with torch.no_grad():
        offset = h(origin)
        z, known = _newton(h, x.detach(), scale, offset)
        value = (h(scale * z) - offset) / scale
    # implicit function theorem: one more step in which only the right-hand side depends on x
    return z - _solve(known, value - x)


def _newton(h: SmoothMap, x: Tensor, scale: float, offset: Tensor) -> tuple[Tensor, Tensor]:
    """z, and h' at scale z; steps are halved until the residual falls."""

    def residual(z: Tensor) -> Tensor:
        return (h(scale * z) - offset) / scale - x

    z = _solve(h.jacobian(torch.zeros_like(x)), x)
    missing = residual(z)
    tolerance = _ROUNDING * torch.finfo(x.dtype).eps * (x.abs().amax(1) + (offset.abs().amax(1) / scale))
    for _ in range(_MOST_STEPS):
        slope = h.jacobian(scale * z)
        open_ = missing.abs().amax(1) > tolerance
        if not bool(open_.any()):
            return z, slope
        step = torch.where(open_[:, None], _solve(slope, missing), 0)
        size, share = missing.norm(dim=1), torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        for _ in range(30):
            trial = residual(z - share * step)
            worse = open_ & ~(trial.norm(dim=1) < size)
            if not bool(worse.any()):
                break
            share = torch.where(worse[:, None], share / 2, share)
        else:  # rounding: no step makes it smaller
            if bool((missing.abs().amax(1) <= 64 * tolerance).all()):
                return z, slope
            break
        z, missing = z - share * step, trial
    worst = float(missing.abs().max())
    raise ConvergenceError(
        f"Newton's method found no z with h({scale:.4g} z) - h(0) = {scale:.4g} x: the residual is still {worst:.3g}; "
        "x must lie in the image of the ball, and h must not bend too much"
    )


def _solve(matrices: Tensor, vectors: Tensor) -> Tensor:
    """matrices^-1 vectors, (n, d, d) and (n, d)."""
    Q, upper = torch.linalg.qr(matrices)
    return _triangular(Q, upper, vectors[..., None])[..., 0]


def _divide(left: Tensor, right: Tensor) -> Tensor:
    """left right^-1."""
    Q, upper = torch.linalg.qr(right.mT)
    return _triangular(Q, upper, left.mT).mT


def _triangular(Q: Tensor, upper: Tensor, values: Tensor) -> Tensor:
    """(Q upper)^-1 values: by QR, since batches of LU factorisations go wrong on some processors."""
    return torch.linalg.solve_triangular(upper, Q.mT @ values, upper=True)
