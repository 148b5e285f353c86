"""Trials of Hardt & Ma 2016, Appendix B: the lemmas behind Theorem 3.2 and the constants of its proof."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.book.checks.samples.memorize import random_problem, unit_points
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.memorize import construct_memorizer, isolating_block, projection_width, separation

__all__ = [
    "block_by_block",
    "distortion",
    "isolated_moves",
    "projection_scale",
    "projection_width_trial",
    "rho_third",
    "separation_counterexample",
    "surrogate_counterexample",
    "wrong_neuron",
]


def separation_counterexample() -> Counterexample:
    """slack 1/10, squared norms 9/10 and 11/10, squared distance 3/10 = 3 slack: the inner product is 17/20 > 4/5."""
    slack, first, second, distance = Fraction(1, 10), Fraction(9, 10), Fraction(11, 10), Fraction(3, 10)
    product = (first + second - distance) / 2
    return Counterexample(
        product, 1 - 2 * slack, "<=", "squared norms 9/10 and 11/10, squared distance 3/10", exact=True
    )


def wrong_neuron() -> float:
    """What the block of Lemma B.1 does to the vector of squared norm 11/10 of `separation_counterexample`, which it
    should leave alone: how far it moves when the other one is moved by 1."""
    angle = math.acos(0.85 / math.sqrt(0.9 * 1.1))
    alpha = torch.tensor(
        [[math.sqrt(0.9), 0.0], [math.sqrt(1.1) * math.cos(angle), math.sqrt(1.1) * math.sin(angle)]],
        dtype=torch.float64,
    )
    beta = alpha[:1] + torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    after = _apply(isolating_block(alpha, beta, [0], 0.1), alpha)
    return float((after[1] - alpha[1]).norm())


def isolated_moves(n: int, generator: Generator) -> Cases:
    """Random vectors with squared norms 1 +- slack; some, at squared distance >= 6 slack from all others, are moved."""
    errors = []
    for case in range(n):
        d, points = 2 + case % 7, 3 + case % 6
        moved = 1 + case % points
        alpha, slack = _separated(points, moved, d, generator)
        beta = torch.randn(moved, d, generator=generator, dtype=torch.float64)
        after = _apply(isolating_block(alpha, beta, range(moved), slack), alpha)
        errors.append(float((after - torch.cat([beta, alpha[moved:]])).abs().max()))
    return Cases(n, worst_of(errors), "3 to 8 vectors in 2 to 8 dimensions, 6 slack apart", statement="corrected")


def _separated(points: int, moved: int, d: int, generator: Generator) -> tuple[Tensor, float]:
    """Vectors and the largest slack for which they meet the corrected conditions of Lemma B.1 with 6 slack."""
    while True:
        units = unit_points(points, d, generator)
        closest = _least_distance(units, moved)
        slack = closest / 6.5
        if slack > 0.49 or closest < 1e-3:
            slack = min(slack, 0.49)
        spread = 2 * torch.rand(points, 1, generator=generator, dtype=torch.float64) - 1
        alpha = units * (1 + slack * spread).sqrt()
        if closest >= 1e-3 and _least_distance(alpha, moved) >= 6 * slack:
            return alpha, slack


def _least_distance(vectors: Tensor, moved: int) -> float:
    """Least squared distance of two vectors of which at least one is among the first `moved`."""
    squares = (vectors[:moved, None] - vectors).square().sum(2)
    squares[torch.arange(moved), torch.arange(moved)] = math.inf
    return float(squares.min())


def _apply(block: tuple[Tensor, Tensor, Tensor], h: Tensor) -> Tensor:
    U, s, V = block
    return h + torch.relu(h @ U.mT + s) @ V.mT


def block_by_block(n: int, generator: Generator) -> Cases:
    """Lemma B.2 under the corrected conditions: blocks of k vectors, one after another, all vectors at the end."""
    errors = []
    for case in range(n):
        d, k, points, r = 5 + case % 4, 1 + case % 4, 6 + case % 7, 2 + case % 3
        z, slack = _separated(points, points, d, generator)
        q = _surrogates_outside(z, r, 1 - 2 * slack, generator)
        targets = q[torch.randint(r, (points,), generator=generator)]
        errors.append(float((_blocks(z, targets, k, slack) - targets).abs().max()))
    return Cases(n, worst_of(errors), "6 to 12 vectors, 2 to 4 surrogate labels, k = 1 to 4", statement="corrected")


def _surrogates_outside(z: Tensor, r: int, limit: float, generator: Generator) -> Tensor:
    """r random unit vectors, shortened where an inner product with a vector of z is above the limit."""
    q = unit_points(r, z.shape[1], generator)
    return q * (limit / (q @ z.mT).amax(1, keepdim=True).clamp_min(limit))


def _blocks(z: Tensor, targets: Tensor, k: int, slack: float) -> Tensor:
    h = z
    for start in range(0, len(z), k):
        moved = range(start, min(start + k, len(z)))
        U, s, V = isolating_block(z, targets[moved.start : moved.stop], moved, slack)
        h = h + torch.relu(h @ U.mT + s) @ V.mT
    return h


def surrogate_counterexample() -> Counterexample:
    """A label q with 1 - 2 slack < <q, z_2> <= 1 - slack: once z_1 has become q, the block of z_2 moves it."""
    slack, z = 0.1, torch.eye(2, dtype=torch.float64)
    q = torch.tensor([[0.3, 0.85]], dtype=torch.float64)
    off = float((_blocks(z, torch.cat([q, -z[:1]]), 1, slack)[0] - q[0]).norm())
    return Counterexample(off, 0.0, "<=", "slack 1/10, <q, z_2> = 0.85: how far the first vector ends from q")


def rho_third(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """Isometric projections in four of five cases, Gaussian ones of sufficient width in the fifth; slack rho/10."""
    rho = 0.9
    turned = torch.tensor([1 - rho / 2, math.sqrt(1 - (1 - rho / 2) ** 2)], dtype=torch.float64)
    pair = torch.stack([torch.tensor([1.0, 0.0], dtype=torch.float64), turned])
    measured = float((pair[0] - pair[1]).square().sum())
    against = Counterexample(
        float(pair[0] @ pair[1]), 1 - 2 * measured / 3, "<=", "two unit vectors at squared distance rho = 0.9"
    )
    errors = []
    for case in range(n):
        r = 2 + case % 9
        gaussian = case % 5 == 4
        X, y = random_problem(40, 240, r, generator) if gaussian else random_problem(300, 60, r, generator)
        found, *_ = separation(X)
        width = projection_width(len(X), found, 800 / (1 - found / 15)) if gaussian else 60
        kind = "gaussian" if gaussian else "orthogonal"
        net = construct_memorizer(X, y, width, "shared", seed=case, projection=kind, slack=found / 10)
        errors.append(net.error(X, y))
    what = "300 points, isometric projection, and 40 points, Gaussian projection of sufficient width"
    return against, Cases(n, worst_of(errors), what, statement="corrected")


def distortion(X: Tensor, width: int, generator: Generator) -> float:
    """Worst relative change of a squared norm or squared distance by a Gaussian projection with entries N(0, 1/k)."""
    A = torch.randn(width, X.shape[1], generator=generator, dtype=torch.float64) / width**0.5
    before, after = _squares(X), _squares(X @ A.mT)
    return float((after / before - 1).abs().max())


def _squares(X: Tensor) -> Tensor:
    """Squared norms and squared distances of all pairs."""
    norms = X.square().sum(1)
    distances = norms[:, None] + norms - 2 * X @ X.mT
    i, j = torch.triu_indices(len(X), len(X), 1)
    return torch.cat([norms, distances[i, j]])


def projection_width_trial(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """c = 10 and c = 72/(1 - 2 rho/9) for n = 200, 1000, 2000 unit vectors in 150 dimensions."""
    ratios, worst = [], 0.0
    for case in range(n):
        X = unit_points((200, 1000, 2000)[case % 3], 150, generator)
        rho, *_ = separation(X)
        ratios.append(distortion(X, projection_width(len(X), rho), generator) / (rho / 3))
        worst = max(worst, distortion(X, projection_width(len(X), rho, c=10), generator) / (rho / 3))
    what = "n = 200, 1000, 2000, d = 150: worst change of a squared norm or distance over rho/3"
    return Counterexample(worst, 1.0, "<=", f"c = 10, {what}"), Cases(n, worst_of(ratios), what, statement="corrected")


def projection_scale(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """Mean squared norm of 10,000 projected unit vectors: entries of variance 1, and of variance 1/k."""
    errors = []
    for case in range(n):
        k, d = 20 + 10 * (case % 5), 10 + 20 * (case % 4)
        # one matrix for each 100 vectors: the mean over vectors alone would leave the deviation of a single matrix
        squares = []
        for _ in range(100):
            A = torch.randn(k, d, generator=generator, dtype=torch.float64)
            squares.append((unit_points(100, d, generator) @ A.mT).square().sum(1).mean())
        mean = float(torch.stack(squares).mean())
        errors.append(abs(mean / k - 1))
    against = Counterexample(mean, 1.0, "==", f"entries of variance 1, k = {k}: mean squared norm of 10,000 vectors")
    return against, Cases(n, worst_of(errors), "variance 1/k, k = 20 to 60, d = 10 to 70", statement="corrected")
