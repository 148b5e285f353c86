"""Trials of Hardt & Ma 2016, Section 2: the risk, its gradient, Theorem 2.2 and the remarks about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

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
from resid.theory.targets import sample_target

__all__ = [
    "DescentTrial",
    "RiskTrial",
    "TightCurves",
    "augmented_determinants",
    "bound_ratios",
    "descent_in_the_ball",
    "gradient_against_autograd",
    "missing_singular_values",
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

    identity: evidence for Claim 2.3. constant: the same, for the corrected constant. printed_constant: the noise power
    against the trace of E[x x^T]. standard_errors: the largest distance of a sample's mean loss from the prediction.
    """

    identity: Cases
    constant: Cases
    printed_constant: Counterexample
    standard_errors: float


def risk_on_samples(n: int, generator: Generator, samples: int = 20_000) -> RiskTrial:
    """Mean loss of random networks on correlated inputs that are not centred, against excess risk plus noise power.

    With the sample's own second moment, noise power and cross term the two sides agree to rounding; without the cross
    term, whose expectation is zero, to within the sampling error.
    """
    worst, farthest = 0.0, 0.0
    for _ in range(n):
        A, R, mix = 0.3 * _normal(generator, 4, 3, 3), _normal(generator, 3, 3), _normal(generator, 3, 3)
        x = _normal(generator, samples, 3) @ mix + 1.0
        noise = 0.5 * _normal(generator, samples, 3)
        loss = (x @ compose(A).mT - x @ R.mT - noise).square().sum(-1)
        sigma, power = x.mT @ x / samples, noise.square().sum(-1).mean()
        cross = -2 * ((x @ (compose(A) - R).mT) * noise).sum(-1).mean()
        predicted = population_risk(A, R, sigma) + power
        worst = max(worst, float(abs(loss.mean() - predicted - cross) / loss.mean()))
        farthest = max(farthest, abs(float(loss.mean() - predicted)) / (float(loss.std()) / math.sqrt(samples)))
    what = f"random networks, d = 3, on samples of {samples} with their own moments"
    against = Counterexample(float(power), float(sigma.trace()), "==", "noise power against the trace of E[x x^T]")
    return RiskTrial(Cases(n, worst, what), Cases(n, worst, what, statement="corrected"), against, farthest)


def gradient_against_autograd(n: int, generator: Generator) -> Cases:
    """`risk_gradient` against automatic differentiation of `population_risk`; d = 1..6, depth 1..9."""
    worst = 0.0
    for case in range(n):
        d, depth = 1 + case % 6, 1 + case % 9
        A = (0.5 * _normal(generator, depth, d, d)).requires_grad_()
        R, half = _normal(generator, d, d), _normal(generator, d, d)
        (automatic,) = torch.autograd.grad(population_risk(A, R, half @ half.mT), A)
        ours = risk_gradient(A.detach(), R, half @ half.mT)
        worst = max(worst, float((ours - automatic).norm() / automatic.norm()))
    return Cases(n, worst, "random networks, d <= 6, depth <= 9", statement="corrected")


def bound_ratios(n: int, generator: Generator) -> dict[str, np.ndarray]:
    """Lower bounds over the squared gradient, for four bounds; a ratio above 1 is a violation.

    d = 1..5, depth 2..11, layers of norm below .95, second moments at random scales. One instance in four is near the
    extreme case of the proof: layers near -tau I, the error near the weakest eigenvector of Sigma.

    Returns:
        "corrected", "product form", "printed" and "exponent right, sigma_min squared", each (n,).
    """
    ratio: dict[str, list[float]] = {
        name: [] for name in ("corrected", "product form", "printed", "exponent right, sigma_min squared")
    }
    for case in range(n):
        A, R, sigma = _instance(1 + case % 5, 2 + case % 10, case % 4 == 0, generator)
        squared = float(risk_gradient(A, R, sigma).square().sum())
        bound = float(gradient_lower_bound(A, R, sigma)) / squared
        low, room = smallest_nonzero_eigenvalue(sigma), 1 - float(max_layer_norm(A))
        ratio["corrected"].append(bound)
        ratio["product form"].append(float(gradient_lower_bound(A, R, sigma, form="product")) / squared)
        ratio["printed"].append(low * bound / room ** (len(A) - 1))
        ratio["exponent right, sigma_min squared"].append(low * bound)
    return {name: np.array(values) for name, values in ratio.items()}


def _instance(d: int, depth: int, extreme: bool, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    half = _normal(generator, d, d)
    sigma = (half @ half.mT / d + 0.1 * _eye(d)) * float(_normal(generator, 1).mul(2).exp())
    direction = _normal(generator, depth, d, d)
    if extreme:
        direction = -_eye(d) + 0.1 * direction
    size = 0.95 * torch.rand(1 if extreme else depth, 1, 1, generator=generator, dtype=torch.float64)
    A = size * direction / torch.linalg.matrix_norm(direction, ord=2)[:, None, None]
    R = _normal(generator, d, d)
    if extreme:
        weakest = torch.linalg.eigh(sigma)[1][:, 0]
        R = compose(A) + torch.outer(_normal(generator, d), weakest + 0.1 * _normal(generator, d))
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
        rows.append((name, float(loss(flat)), gradient, float(values[0]), int((values < -1e-9).sum())))
    return rows


def zero_weights(n: int, generator: Generator) -> Cases:
    """Gradient at W = 0 relative to ||R||_F, for random targets; d = 1..4, depth 2..6.

    Raises:
        ArithmeticError: the excess risk there is not positive.
    """
    worst = 0.0
    for case in range(n):
        d, depth = 1 + case % 4, 2 + case % 5
        R, A = _normal(generator, d, d), -_eye(d).repeat(depth, 1, 1)  # W = 0 is A = -I
        if not float(population_risk(A, R, _eye(d))) > 0:
            raise ArithmeticError("zero weights are optimal for this target")
        worst = max(worst, float(risk_gradient(A, R, _eye(d)).norm() / R.norm()))
    return Cases(n, worst, "random targets, d <= 4, depth 2 to 6")


def missing_singular_values(n: int, generator: Generator) -> tuple[Cases, float]:
    """Critical points that have learned only some singular values of R Sigma^(1/2), and a way down from each.

    All layers are moved along one missing pair, by a tenth of the depth-th root of its singular value. d = 2..4,
    depth 2..4.

    Returns:
        Evidence, the worst ratio of the risk after the move to that before; the least norm of a layer at the points.

    Raises:
        ArithmeticError: a point is not critical.
    """
    worst, least_norm = 0.0, math.inf
    for case in range(n):
        d = depth = 2 + case % 3
        half, R = _normal(generator, d, d), _normal(generator, d, d)
        sigma = half @ half.mT / d + 0.1 * _eye(d)
        values, vectors = torch.linalg.eigh(sigma)
        root, inverse_root = (vectors * values**power @ vectors.mT for power in (0.5, -0.5))
        U, S, Vh = torch.linalg.svd(R @ root)
        learned = (torch.arange(d) < case % d).to(torch.float64)
        pair = d - 1 - case % (d - case % d)  # one of the missing ones
        risks = []
        for share in (0.0, 0.1):
            diagonal = learned * S ** (1 / depth)
            diagonal[pair] = share * S[pair] ** (1 / depth)
            W = torch.diag(diagonal).repeat(depth, 1, 1)
            W[0], W[-1] = W[0] @ Vh @ inverse_root, U @ W[-1]
            A = W - _eye(d)
            risks.append(float(population_risk(A, R, sigma)))
            if share == 0:
                gradient = float(risk_gradient(A, R, sigma).norm())
                if not gradient < 1e-10:
                    raise ArithmeticError(f"the gradient at a supposed critical point is {gradient:.2e}")
                least_norm = min(least_norm, float(torch.linalg.matrix_norm(A, ord=2).min()))
        worst = max(worst, risks[1] / risks[0])
    return Cases(n, worst, "critical points with missing singular values, d <= 4, 2 to 4 layers"), least_norm


@dataclass(frozen=True)
class DescentTrial:
    """Outcome of `descent_in_the_ball`.

    decrease: evidence for the promised decrease. solved: share of runs that reached 1e-10. left_ball: iterates outside.
    """

    decrease: Cases
    solved: float
    left_ball: int


def descent_in_the_ball(n: int, generator: Generator, depth: int = 16, rate: float = 0.005) -> DescentTrial:
    """Gradient descent from A = 0 on targets of positive determinant, d = 4: risk after a step over the promised risk.

    With a step size for which f(A+) <= f(A) - rate/2 ||gradient||^2, the inequality of Theorem 2.2 promises
    f(A+) <= f - rate/2 bound. The first 150 steps are compared, then the run goes on for up to 4,000.
    """
    worst, left_ball, solved, sigma = 0.0, 0, 0, _eye(4)
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
            worst = max(worst, float(population_risk(A, R, sigma)) / promised)
            left_ball += float(max_layer_norm(A)) >= 1
        solved += bool(gradient_descent(A, R, sigma, rate, 4000).converged)
    what = f"{n} targets, d = 4, depth {depth}, 150 steps each: risk over promised risk"
    return DescentTrial(Cases(n, worst, what), solved / n, left_ball)


def augmented_determinants(n: int, generator: Generator) -> Cases:
    """Relative error of det diag(R, -1) = -det R for random R of negative determinant, d = 1..8."""
    worst = 0.0
    for case in range(n):
        R = sample_target("gaussian", 1 + case % 8, generator)
        R[0] *= -1
        det = float(torch.linalg.det(R))
        worst = max(worst, abs(float(torch.linalg.det(augment_negative_determinant(R))) + det) / abs(det))
    return Cases(n, worst, "random maps of negative determinant, d <= 8")
