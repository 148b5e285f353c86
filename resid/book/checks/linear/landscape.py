"""Trials of Hardt & Ma 2016, Section 2: the risk, its gradient, Theorem 2.2 and the remarks about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.factor import compose, max_layer_norm
from resid.theory.landscape import (
    augment_negative_determinant,
    gradient_descent,
    gradient_lower_bound,
    population_risk,
    risk_gradient,
    smallest_nonzero_eigenvalue,
)
from resid.theory.targets import random_rotation, sample_target

__all__ = [
    "DescentTrial",
    "GlobalTrial",
    "RiskTrial",
    "TightCurves",
    "augmented_determinants",
    "bound_ratios",
    "descent_in_the_ball",
    "gradient_against_autograd",
    "missing_singular_values",
    "no_spurious_optima",
    "risk_on_samples",
    "standard_critical_points",
    "tight_curves",
    "zero_weights",
]


def _eye(d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class RiskTrial:
    """Outcome of `risk_on_samples`.

    Args:
        identity: evidence for Claim 2.3.
        constant: the same, for the corrected constant.
        printed_constant: the noise power against the trace of E[x x^T].
        standard_errors: the largest distance of a sample's mean loss from what the moments of the distribution predict.
    """

    identity: Cases
    constant: Cases
    printed_constant: Counterexample
    standard_errors: float


def risk_on_samples(n: int, generator: Generator, samples: int = 20_000) -> RiskTrial:
    """Mean loss of random networks on correlated inputs that are not centred, against excess risk plus noise power.

    With the sample's own second moment, noise power and cross term the two sides agree to rounding; with the moments of
    the distribution, to within the sampling error.
    """
    errors, distances = [], []
    for _ in range(n):
        A, R, mix = 0.3 * _normal(generator, 4, 3, 3), _normal(generator, 3, 3), _normal(generator, 3, 3)
        x = _normal(generator, samples, 3) @ mix + 1.0
        noise = 0.5 * _normal(generator, samples, 3)
        loss = (x @ compose(A).mT - x @ R.mT - noise).square().sum(-1)
        sigma, power = x.mT @ x / samples, noise.square().sum(-1).mean()
        cross = -2 * ((x @ (compose(A) - R).mT) * noise).sum(-1).mean()
        predicted = population_risk(A, R, sigma) + power + cross
        errors.append(float(abs(loss.mean() - predicted) / loss.mean()))
        expected = population_risk(A, R, mix.mT @ mix + torch.ones(3, 3, dtype=torch.float64)) + 3 * 0.5**2
        distances.append(abs(float(loss.mean() - expected)) / (float(loss.std()) / math.sqrt(samples)))
    worst = worst_of(errors)
    what = f"random networks, d = 3, on samples of {samples} with their own moments"
    against = Counterexample(float(power), float(sigma.trace()), "==", "noise power against the trace of E[x x^T]")
    return RiskTrial(Cases(n, worst, what), Cases(n, worst, what, statement="corrected"), against, worst_of(distances))


def gradient_against_autograd(n: int, generator: Generator) -> Cases:
    """`risk_gradient` against automatic differentiation of `population_risk`; d = 1..6, depth 1..9."""
    errors = []
    for case in range(n):
        d, depth = 1 + case % 6, 1 + case % 9
        A = (0.5 * _normal(generator, depth, d, d)).requires_grad_()
        R, half = _normal(generator, d, d), _normal(generator, d, d)
        (automatic,) = torch.autograd.grad(population_risk(A, R, half @ half.mT), A)
        ours = risk_gradient(A.detach(), R, half @ half.mT)
        errors.append(float((ours - automatic).norm() / automatic.norm()))
    return Cases(n, worst_of(errors), "random networks, d <= 6, depth <= 9", statement="corrected")


def bound_ratios(n: int, generator: Generator) -> dict[str, np.ndarray]:
    """Lower bounds over the squared gradient, for four bounds; a ratio above 1 is a violation.

    d = 1..5 in turn, depth 2..11, layers of norm below .95, second moments at random scales. One instance in four is
    near the extreme case of the proof, at a distance of .1, .01 or .001: layers near -tau I, the error near the weakest
    eigenvector of Sigma. One in seven has a singular Sigma.

    Returns:
        "corrected", "product form", "printed" and "exponent right, sigma_min squared", each (n,); instance i has
        d = 1 + i % 5.
    """
    ratio: dict[str, list[float]] = {
        name: [] for name in ("corrected", "product form", "printed", "exponent right, sigma_min squared")
    }
    for case in range(n):
        d = 1 + case % 5
        rank = max(1, d - 2) if case % 7 == 0 else d
        A, R, sigma = _instance(d, 2 + case % 10, rank, 10.0 ** -(1 + case % 3) if case % 4 == 0 else None, generator)
        squared = float(risk_gradient(A, R, sigma).square().sum())
        bound = float(gradient_lower_bound(A, R, sigma)) / squared
        low, room = smallest_nonzero_eigenvalue(sigma), 1 - float(max_layer_norm(A))
        ratio["corrected"].append(bound)
        ratio["product form"].append(float(gradient_lower_bound(A, R, sigma, form="product")) / squared)
        ratio["printed"].append(low * bound / room ** (len(A) - 1))
        ratio["exponent right, sigma_min squared"].append(low * bound)
    return {name: np.array(values) for name, values in ratio.items()}


def _instance(
    d: int, depth: int, rank: int, distance: float | None, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Layers, target and second moment; with a distance from the extreme case, or anywhere."""
    half = _normal(generator, d, rank)
    sigma = half @ half.mT / d + (0.1 * _eye(d) if rank == d else 0)
    sigma = sigma * float(_normal(generator, 1).mul(2).exp())
    direction = _normal(generator, depth, d, d)
    if distance is not None:
        direction = -_eye(d) + distance * direction
    equal = distance is not None
    size = 0.95 * torch.rand(1 if equal else depth, 1, 1, generator=generator, dtype=torch.float64)
    A = size * direction / torch.linalg.matrix_norm(direction, ord=2)[:, None, None]
    R = _normal(generator, d, d)
    if distance is not None:
        weakest = torch.linalg.eigh(sigma)[1][:, d - rank]  # of the nonzero ones
        R = compose(A) + torch.outer(_normal(generator, d), weakest + distance * _normal(generator, d))
    return A, R, sigma


@dataclass(frozen=True)
class TightCurves:
    """Squared gradient over 4 depth f, each (depths, taus): two bounds, the extreme instances, random instances."""

    corrected: np.ndarray
    printed: np.ndarray
    extreme: np.ndarray
    random: np.ndarray


def tight_curves(taus: np.ndarray, depths: list[int], generator: Generator) -> TightCurves:
    """Instances with all layers of norm tau, for a second moment whose smallest eigenvalue is 1; d = 3.

    The extreme ones have A_i = -tau I and the error on the weakest eigenvector: equality in the corrected bound.
    """
    half = _normal(generator, 3, 3)
    sigma = half @ half.mT / 3 + 0.2 * _eye(3)
    sigma = sigma / torch.linalg.eigvalsh(sigma)[0]
    weakest = torch.linalg.eigh(sigma)[1][:, 0]

    def ratio(A: Tensor, R: Tensor) -> float:
        return float(risk_gradient(A, R, sigma).square().sum() / (4 * len(A) * population_risk(A, R, sigma)))

    extreme, random = np.empty((len(depths), len(taus))), np.empty((len(depths), len(taus)))
    for i, depth in enumerate(depths):
        for j, tau in enumerate(taus):
            A = -float(tau) * _eye(3).repeat(depth, 1, 1)
            R = compose(A) - torch.outer(_normal(generator, 3), weakest)
            B = _normal(generator, depth, 3, 3)
            B = float(tau) * B / torch.linalg.matrix_norm(B, ord=2)[:, None, None]
            extreme[i, j], random[i, j] = ratio(A, R), ratio(B, R)
    exponents = np.array(depths)[:, None] - 1
    return TightCurves((1 - taus) ** (2 * exponents), (1 - taus) ** exponents, extreme, random)


def standard_critical_points() -> list[tuple[str, float, float, float, int]]:
    """Critical points of W_depth ... W_1 that are not global, for Sigma = I and R = diag(2, 1).

    Returns:
        Per point: name, excess risk, norm of the gradient, least eigenvalue of the Hessian, number of negative ones.
    """
    R, sigma = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), _eye(2)

    def repeated(depth: int, a: float, b: float) -> Tensor:
        return torch.diag(torch.tensor([a, b], dtype=torch.float64)).repeat(depth, 1, 1)

    last_free = repeated(3, 0, 0)
    last_free[2] = torch.tensor([[0.3, -0.7], [0.5, 0.2]])
    points = {
        "depth 2, all zero": repeated(2, 0, 0),
        "depth 3, all zero": repeated(3, 0, 0),
        "depth 2, first singular value learned": repeated(2, math.sqrt(2), 0),
        "depth 3, first singular value learned": repeated(3, 2 ** (1 / 3), 0),
        "depth 4, first singular value learned": repeated(4, 2 ** (1 / 4), 0),
        "depth 3, second singular value learned": repeated(3, 0, 1),
        "depth 3, two layers zero, the last arbitrary": last_free,
    }
    rows = []
    for name, W in points.items():

        def loss(flat: Tensor, shape: torch.Size = W.shape) -> Tensor:
            return population_risk(flat.reshape(shape) - _eye(2), R, sigma)

        flat = W.flatten()
        values = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))
        gradient = float(torch.func.grad(loss)(flat).norm())
        least = float(values[0]) if abs(float(values[0])) > 1e-9 else 0.0
        rows.append((name, float(loss(flat)), gradient, least, int((values < -1e-9).sum())))
    return rows


def zero_weights(n: int, generator: Generator) -> Cases:
    """Gradient at W = 0 relative to ||R||_F, for random targets; d = 1..4, depth 2..6.

    Raises:
        ArithmeticError: the excess risk there is not positive.
    """
    gradients = []
    for case in range(n):
        d, depth = 1 + case % 4, 2 + case % 5
        R, A = _normal(generator, d, d), -_eye(d).repeat(depth, 1, 1)  # W = 0 is A = -I
        if not float(population_risk(A, R, _eye(d))) > 0:
            raise ArithmeticError("zero weights are optimal for this target")
        gradients.append(float(risk_gradient(A, R, _eye(d)).norm() / R.norm()))
    return Cases(n, worst_of(gradients), "random targets, d <= 4, depth 2 to 6")


def missing_singular_values(n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Critical points outside the ball: networks that have learned only some singular values of R Sigma^(1/2).

    Layers diag(S_j^(1/depth)) over the learned ones, zero over the missing ones, in the bases of the decomposition;
    d = depth = 3, no, one or two learned in turn. The singular values lie between .6 and 1.7, the determinants have
    either sign.

    Returns:
        Layers A (n, 3, 3, 3), the same with every layer moved along one missing pair by a tenth of the cube root of its
        singular value, R (n, 3, 3) and Sigma (n, 3, 3).
    """
    d = 3
    points: list[Tensor] = []
    moved: list[Tensor] = []
    maps, moments = [], []
    for case in range(n):
        half = _normal(generator, d, d)
        sigma = half @ half.mT / d + 0.1 * _eye(d)
        values, vectors = torch.linalg.eigh(sigma)
        inverse_root = vectors * values**-0.5 @ vectors.mT
        weighted = _mild_map(d, generator)  # R Sigma^(1/2)
        U, S, Vh = torch.linalg.svd(weighted)
        for share, found in ((0.0, points), (0.1, moved)):
            diagonal = (torch.arange(d) < case % d) * S ** (1 / d)
            diagonal[-1] = share * S[-1] ** (1 / d)
            W = torch.diag(diagonal).repeat(d, 1, 1)
            W[0], W[-1] = W[0] @ Vh @ inverse_root, U @ W[-1]
            found.append(W - _eye(d))
        maps.append(weighted @ inverse_root)
        moments.append(sigma)
    return torch.stack(points), torch.stack(moved), torch.stack(maps), torch.stack(moments)


def _mild_map(d: int, generator: Generator) -> Tensor:
    """Singular values between e^-.5 and e^.5, Haar singular vectors, determinant of either sign."""
    U, V = random_rotation(d, generator), random_rotation(d, generator)
    logs = torch.rand(d, generator=generator, dtype=torch.float64) - 0.5
    signs = torch.where(torch.rand(d, generator=generator) < 0.5, -1.0, 1.0)
    return U @ ((signs * logs.exp())[:, None] * V)


@dataclass(frozen=True)
class GlobalTrial:
    """Outcome of `no_spurious_optima`.

    Args:
        descent: evidence, the worst risk at the end over that at the start.
        critical: the largest gradient at the points that have learned only some singular values.
        outside: the least norm of a layer there.
        downhill: the worst ratio of the risk after the small move to that before it.
    """

    descent: Cases
    critical: float
    outside: float
    downhill: float


def no_spurious_optima(n: int, generator: Generator) -> GlobalTrial:
    """Descend from far outside the ball; a local minimum that is not global would be an end above zero risk.

    Half of the starts are the bad critical points of `missing_singular_values`, moved a little; half are random layers
    I + A of Gaussian entries, of norms up to about 4. Conjugate gradients, d = depth = 3. Where they stop above zero,
    at a saddle say, every entry is shaken by .05 and they go on, at most ten times: from a local minimum this would
    lead back.
    """
    points, moved, maps, moments = missing_singular_values(n // 2, generator)
    wild = 1.2 * _normal(generator, n - n // 2, 3, 3, 3) - _eye(3)
    others = [_mild_map(3, generator) for _ in wild]
    critical, downhill, ends = [], [], []
    for A, start, R, sigma in zip(points, moved, maps, moments, strict=True):
        critical.append(float(risk_gradient(A, R, sigma).norm()))
        downhill.append(float(population_risk(start, R, sigma) / population_risk(A, R, sigma)))
        ends.append(_descend(start, R, sigma, generator))
    for start, R in zip(wild, others, strict=True):
        ends.append(_descend(start, R, _eye(3), generator))
    what = (
        "conjugate gradients from far outside the ball, d = depth = 3, half of the starts next to bad critical points"
    )
    outside = float(torch.linalg.matrix_norm(points, ord=2).min())
    return GlobalTrial(Cases(n, worst_of(ends), what), worst_of(critical), outside, worst_of(downhill))


def _descend(start: Tensor, R: Tensor, sigma: Tensor, generator: Generator) -> float:
    """Risk where conjugate gradients end, over that at the start. Quasi-Newton steps run away next to flat saddles."""
    first = float(population_risk(start, R, sigma))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        A = torch.from_numpy(flat).reshape(start.shape)
        return float(population_risk(A, R, sigma)), risk_gradient(A, R, sigma).numpy().ravel()

    options = {"maxiter": 3000, "gtol": 1e-9}
    at = start.numpy().ravel()
    for _ in range(10):
        end = minimize(loss, at, jac=True, method="CG", options=options)
        if end.fun <= 1e-8 * first:
            break
        at = end.x + 0.05 * _normal(generator, start.numel()).numpy()
    return float(end.fun) / first


@dataclass(frozen=True)
class DescentTrial:
    """Outcome of `descent_in_the_ball`.

    Args:
        decrease: evidence for the promised decrease.
        solved: share of runs that reached 1e-10.
        left_ball: iterates outside.
    """

    decrease: Cases
    solved: float
    left_ball: int


def descent_in_the_ball(n: int, generator: Generator, depth: int = 16, rate: float = 0.005) -> DescentTrial:
    """Gradient descent from A = 0 on targets of positive determinant, d = 4: risk after a step over the promised risk.

    With a step size for which f(A+) <= f(A) - rate/2 ||gradient||^2, the inequality of Theorem 2.2 promises
    f(A+) <= f - rate/2 bound. The first 150 steps are compared, then the run goes on for up to 4,000. The targets are
    I + .35 G. Beside each run stands one step that attains the promise, see `_extreme_step`, d = 1..4.
    """
    ratios, left_ball, solved, sigma = [], 0, 0, _eye(4)
    for _ in range(n):
        R = _eye(4)
        R[0, 0] = -1
        while not (float(torch.linalg.det(R)) > 0 and float(torch.linalg.svdvals(R)[-1]) > 0.15):
            R = _eye(4) + 0.35 * _normal(generator, 4, 4)
        A = torch.zeros(depth, 4, 4, dtype=torch.float64)
        for _ in range(150):
            f = float(population_risk(A, R, sigma))
            if f < 1e-20:
                break
            promised = f - rate / 2 * float(gradient_lower_bound(A, R, sigma, form="product"))
            A = A - rate * risk_gradient(A, R, sigma)
            ratios.append(float(population_risk(A, R, sigma)) / promised)
            left_ball += not float(max_layer_norm(A)) < 1
        solved += bool(gradient_descent(A, R, sigma, rate, 4000).converged)
    for case in range(n):
        A, R, second, longest = _extreme_step(1 + case % 4, 2 + case % 5, generator)
        promised = float(population_risk(A, R, second)) - longest / 2 * float(gradient_lower_bound(A, R, second))
        ratios.append(float(population_risk(A - longest * risk_gradient(A, R, second), R, second)) / promised)
    what = f"{n} targets, d = 4, depth {depth}, 150 steps each, and {n} extreme steps: risk over promised risk"
    return DescentTrial(Cases(n, worst_of(ratios), what), solved / n, left_ball)


def _extreme_step(d: int, depth: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """Layers -tau I, an error on the weakest eigenvector of Sigma, and the longest step that keeps its promise.

    There the bound is ||gradient||^2, and the longest step size is that with f(A+) = f(A) - rate/2 ||gradient||^2.

    Returns:
        A, R, Sigma and the step size.
    """
    half = _normal(generator, d, d)
    sigma = half @ half.mT / d + 0.1 * _eye(d)
    tau = 0.1 + 0.5 * float(torch.rand((), generator=generator))
    A = -tau * _eye(d).repeat(depth, 1, 1)
    R = compose(A) + torch.outer(_normal(generator, d), torch.linalg.eigh(sigma)[1][:, 0])
    gradient, first = risk_gradient(A, R, sigma), float(population_risk(A, R, sigma))
    squared = float(gradient.square().sum())

    def spare(rate: float) -> float:
        return first - rate / 2 * squared - float(population_risk(A - rate * gradient, R, sigma))

    high = 1e-3
    while spare(high) > 0:
        high *= 2
    return A, R, sigma, float(brentq(spare, high * 1e-9, high, xtol=1e-15, rtol=1e-14))


def augmented_determinants(n: int, generator: Generator) -> Cases:
    """Relative error of det diag(R, -1) = -det R for random R of negative determinant, d = 1..8."""
    errors = []
    for case in range(n):
        R = sample_target("gaussian", 1 + case % 8, generator)
        R[0] *= -1
        det = float(torch.linalg.det(R))
        errors.append(abs(float(torch.linalg.det(augment_negative_determinant(R))) + det) / abs(det))
    return Cases(n, worst_of(errors), "random maps of negative determinant, d <= 8")
