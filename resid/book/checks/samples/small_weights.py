"""Trials of Li et al. 2016, Section 4.1: a finite sample memorised with small weights, and what small means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.data.whitened import WHITENED, load_whitened
from resid.ledger.evidence import Cases, Counterexample, Seeds
from resid.theory.memorize import construct_memorizer
from resid.theory.small_weights import (
    SmallWeightNetwork,
    apply_units,
    construct_small_weight_network,
    isolating_unit,
    least_parameter_norm,
    least_stretch,
    max_norm_bound,
    minimum_distance,
    sphere_paths,
)

__all__ = [
    "NormTrial",
    "PathTrial",
    "at_rest",
    "awkward_samples",
    "cheapest_unit",
    "distance_from_zero",
    "distinct_outputs",
    "few_kinks",
    "lemma_one",
    "lemma_two",
    "measured_log_gains",
    "memorised",
    "memorised_anyhow",
    "noisy_labels",
    "normalised_multiples",
    "on_sphere",
    "random_samples",
    "rate_of_fall",
    "row_norms",
    "same_label",
    "with_noise",
]

#: An output farther than this from its label counts as missed.
_REACHED = 1e-9


def on_sphere(rows: Tensor) -> Tensor:
    """Rows scaled to unit norm."""
    return rows / rows.norm(dim=-1, keepdim=True)


def random_samples(m: int, d: int, generator: Generator, one_hot: bool = False) -> tuple[Tensor, Tensor]:
    """m samples and as many labels on the unit sphere, uniform; one-hot labels are distinct, which needs m <= d."""
    X = on_sphere(torch.randn(m, d, generator=generator, dtype=torch.float64))
    if one_hot:
        return X, torch.eye(d, dtype=X.dtype)[torch.randperm(d, generator=generator)[:m]]
    return X, on_sphere(torch.randn(m, d, generator=generator, dtype=X.dtype))


def awkward_samples(kind: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Four to six samples that try a path: 0 opposite ends, 1 all on one great circle, 2 a way barred in its middle,
    3 two samples next to each other, 4 labels that are the samples in another order."""
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    angles = torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(12, dtype=torch.float64) * (
        math.pi / 6
    )
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ turn[:2]
    if kind == 0:
        X = on_sphere(torch.randn(4, d, generator=generator, dtype=torch.float64))
        return X, on_sphere(torch.cat([-X[:2], X[2:].roll(1, 1) + 0.1 * turn[:2]]))
    if kind == 1:
        order = torch.randperm(12, generator=generator)
        return circle[order[:6]], circle[order[6:]]
    if kind == 2:
        X, Y = circle[[0, 2, 6, 8]], circle[[4, 10, 9, 5]]
        return X, Y
    X, Y = random_samples(5, d, generator)
    if kind == 3:
        X[1] = on_sphere(X[0] + 1e-3 * turn[0])
        return X, Y
    return X, X.roll(1, 0) @ torch.linalg.matrix_exp(0.2 * (turn - turn.mT))


def few_kinks() -> Counterexample:
    """Hardt & Ma 2016, abstract: five parameters, four samples on a line with the labels 0, 1, 0, 1.

    x -> a x + b -> h + v ReLU(u h + s) has one kink, so that its slope changes its sign at most once.
    """
    labels = (0, 1, 0, 1)
    slopes = [b - a for a, b in pairwise(labels)]
    needed = sum(first * second < 0 for first, second in pairwise(slopes))
    what = "five parameters, four samples: changes of sign that the labels need, and that one kink allows"
    return Counterexample(needed, 1, "<=", what, exact=True)


def normalised_multiples(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """Hardt & Ma 2016, Section 3: x and 2 x scaled to unit norm; and with a constant appended before.

    The number is the count of distinct samples, multiples of each other among them, that become one.
    """
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    both = torch.unique(on_sphere(torch.stack([x, 2 * x])), dim=0)
    against = Counterexample(len(both), 2, "==", "points that x and 2x become at unit norm", exact=True)
    lost = []
    for case in range(n):
        directions = torch.randn(6, 1 + case % 5, generator=generator, dtype=torch.float64)
        X = torch.cat([directions, 2 * directions, -0.5 * directions, 0 * directions[:1]])
        scaled = on_sphere(torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], 1))
        distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
        distance.fill_diagonal_(math.inf)
        lost.append(int((distance < 1e-9).sum()) // 2)
    what = "random samples with their multiples and zero, up to five dimensions, a constant appended"
    return against, Cases(n, worst_of(lost), what, statement="corrected")


def memorised_anyhow(n: int, generator: Generator) -> Cases:
    """Share of labels missed by the network of Theorem 3.2 as constructed here, random samples and labels."""
    missed = []
    for case in range(n):
        X = torch.randn(20 + case, 1 + case % 4, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (len(X),), generator=generator)
        y[:4] = torch.arange(4)
        network = construct_memorizer(X, y, width=4, seed=case)
        missed.append(float((network(X).argmax(1) != y).double().mean()))
    return Cases(n, worst_of(missed), "random samples, 4 labels, up to 4 dimensions", statement="corrected")


def with_noise(Y: Tensor, size: float, generator: Generator) -> Tensor:
    """Labels with Gaussian noise of standard deviation `size` on every entry, scaled back to unit norm."""
    return on_sphere(Y + size * torch.randn(Y.shape, generator=generator, dtype=Y.dtype))


def at_rest(X: Tensor, Y: Tensor, i: int) -> Tensor:
    """The vectors that rest while sample i moves: labels before it, samples after it."""
    return torch.cat([Y[:i], X[i + 1 :]])


def lemma_one(n: int, generator: Generator) -> Cases:
    """Units for random unit vectors, 2 to 9 of them in d = 2..8, both thresholds, against what Lemma 1 says of them."""
    errors = []
    for case in range(n):
        d, count = 2 + case % 7, 2 + case % 8
        points = on_sphere(torch.randn(count + 1, d, generator=generator, dtype=torch.float64))
        points, target, index = points[:-1], points[-1], case % count
        if case % 3 == 0:  # a short move, as in the construction
            target = on_sphere(points[index] + 0.05 * target)
        others = torch.cat([points[:index], points[index + 1 :]])
        nearest = float((others - points[index]).norm(dim=1).min())
        clearance = (1.0, 0.7, None)[case % 3]
        used = nearest if clearance is None else clearance * nearest
        W1, b, W2 = isolating_unit(points, index, target, None if clearance is None else used)
        after = apply_units(torch.stack([W1, W2])[None], b[None], points)
        wanted = points.clone()
        wanted[index] = target
        size = math.sqrt(2 * float((target - points[index]).norm())) / used
        norms = [abs(float(W.norm()) - size) for W in (W1, W2)]
        errors.append(max(float((after - wanted).abs().max()), *norms) / max(1.0, size))
    return Cases(n, worst_of(errors), "2 to 9 random unit vectors, d = 2..8, three clearances")


@dataclass(frozen=True)
class PathTrial:
    """Outcome of `lemma_two`: clearance, length, and how many obstacles were passed."""

    clearance: Cases
    length: Cases
    bypasses: int


def lemma_two(n: int, generator: Generator) -> PathTrial:
    """Paths of random samples and of awkward ones, d = 3..7: 300 points of each against the vectors at rest.

    Raises:
        ArithmeticError: a path leaves the sphere, misses an end, or has steps longer than its length says.
    """
    clearances, lengths, bypasses = [], [], 0
    for case in range(n):
        d = 3 + case % 5
        X, Y = random_samples(2 + case % 11, d, generator) if case % 2 else awkward_samples(case // 2 % 5, d, generator)
        for i, path in enumerate(sphere_paths(X, Y)):
            points = path.points(300)
            steps = (points[1:] - points[:-1]).norm(dim=1)
            off = [float((points.norm(dim=1) - 1).abs().max()), float((points[0] - X[i]).norm())]
            off += [float((points[-1] - Y[i]).norm()), float(steps.max()) - path.length / 300]
            if not max(off) < 1e-9:
                raise ArithmeticError(f"the path of sample {i} is none: {off}")
            nearest = torch.cdist(points, at_rest(X, Y, i), compute_mode="donot_use_mm_for_euclid_dist").min()
            clearances.append(path.clearance / float(nearest))
            lengths.append(max(path.length, 300 * float(steps.mean())) / (math.pi**2 / 2))
            bypasses += path.bypasses
    what = f"random and awkward samples, d = 3..7, {len(lengths)} paths, {bypasses} obstacles passed"
    return PathTrial(Cases(n, worst_of(clearances), what), Cases(n, worst_of(lengths), what), bypasses)


def memorised(n: int, generator: Generator) -> Cases:
    """Theorem 1: one-hot labels for at most d samples, or labels anywhere on the sphere; R = m..64m, d = 3..10."""
    ratios = []
    for case in range(n):
        d, one_hot = 3 + case // 2 % 8, case % 2 == 0
        m = 1 + case % d if one_hot else 2 + case % 13
        X, Y = random_samples(m, d, generator, one_hot)
        units = m * (1, 4, 16, 64)[case // 3 % 4]
        units += case % m if units < 64 * m else 0  # some of these are left over
        network = construct_small_weight_network(X, Y, units)
        reached = float((network(X) - Y).norm(dim=1).max()) <= _REACHED
        ratio = network.max_norm / max_norm_bound(network.rho, m, units)
        ratios.append(ratio if reached else math.inf)
    return Cases(n, worst_of(ratios), "one-hot labels and labels on the sphere, d = 3..10, R = m..64m")


def rate_of_fall(seeds: Sequence[int], m: int = 20, d: int = 10) -> Seeds:
    """Slope of log max norm against log R over R/m = 4, ..., 64, one random sample a seed."""
    slopes = []
    for seed in seeds:
        X, Y = random_samples(m, d, torch.Generator().manual_seed(seed))
        units = [m * steps for steps in (4, 8, 16, 32, 64)]
        norms = [construct_small_weight_network(X, Y, R).max_norm for R in units]
        slopes.append(float(np.polyfit(np.log(units), np.log(norms), 1)[0]))
    return Seeds(slopes, seeds, f"slope for R/m = 4..64, {m} samples, d = {d}")


@dataclass(frozen=True)
class NormTrial:
    """Outcome of `distance_from_zero`.

    Args:
        formula: of the construction's norm.
        bound: what no network falls below.
        attained: by one unit, which shows that more of them do not help.
        limit: worst relative gap of the construction's norm to its limit.
        sharpest: bound over norm, the largest of all, for moves outwards by many units.
    """

    formula: Cases
    bound: Cases
    attained: Cases
    limit: float
    sharpest: float


def distance_from_zero(n: int, generator: Generator) -> NormTrial:
    """Sum of squares of all weights, from the dense matrices, against 4 sum(delta)/rho'^2 with measured moves; and the
    norm of all weights and biases of networks of all kinds against the least that their outputs allow."""
    errors, limits, shares, gaps, outwards = [], [], [], [], []
    for case in range(n):
        d, m, steps = 3 + case % 8, 2 + case % 9, (1, 3, 8, 40)[case % 4]
        X, Y = random_samples(m, d, generator)
        network = construct_small_weight_network(X, Y, m * steps + case % m)
        h = network.trajectory(X)
        moves = (h[1:] - h[:-1]).norm(dim=2).sum()
        clearance = network.rho / 2
        total = float(network.weights.square().sum())
        errors.append(abs(total / float(4 * moves / clearance**2) - 1))
        if steps == 40:
            limits.append(abs(total * clearance**2 / (4 * sum(path.length for path in network.paths)) - 1))
        weights, biases = _other_units(case, d, generator)
        for W, b, inputs in ((network.weights, network.biases, X), (weights, biases, X[:3])):
            shares.append(_share(W, b, inputs))
        outwards.append(_share(*_outward(X[0], steps)))
        size = 10.0 ** (case % 5 - 2)
        x, y = size * X[:1], size * (1.0 if case % 2 else 0.9 * float(X[0, 0].abs())) * Y[:1]  # |y| <= |x|
        W, b = cheapest_unit(x[0], y[0])
        missed = float((apply_units(W, b, x) - y).norm()) / size
        gaps.append(max(missed, abs(least_parameter_norm(x, y) / math.hypot(float(W.norm()), float(b.norm())) - 1)))
    over = [max(0.0, share - 1) for share in shares + outwards]
    return NormTrial(
        Cases(n, worst_of(errors), "random samples, d = 3..10, R = m..40m", statement="sharper"),
        Cases(n, worst_of(over), "constructed, random, outward", statement="sharper"),
        Cases(n, worst_of(gaps), "one unit for one sample, |y| <= |x|, |x| = .01..100", statement="sharper"),
        worst_of(limits),
        worst_of(outwards),
    )


def _share(W: Tensor, b: Tensor, inputs: Tensor) -> float:
    """The least norm that the outputs allow over the norm of all weights and biases."""
    return least_parameter_norm(inputs, apply_units(W, b, inputs)) / math.hypot(float(W.norm()), float(b.norm()))


def cheapest_unit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (1, 2, d, d) and biases (1, d) of the one unit of least norm that moves x to y, vectors (d,).

    Row and bias along (x, 1), the outgoing vector along y - x, both of norm v with ``v^2 sqrt(1 + |x|^2) = |y - x|``.
    """
    way = y - x
    length, size = float(way.norm()), math.hypot(1.0, float(x.norm()))
    W, b = x.new_zeros(1, 2, len(x), len(x)), x.new_zeros(1, len(x))
    v = math.sqrt(length / size)
    W[0, 0, 0], b[0, 0] = v * x / size, v / size
    if length:
        W[0, 1, :, 0] = v * way / length
    return W, b


def _other_units(case: int, d: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Dense random units, from nearly nothing to wild, one to twelve of them; every other time without biases."""
    units, size = 1 + case % 12, 10.0 ** (case % 5 - 3)
    weights = size * torch.randn(units, 2, d, d, generator=generator, dtype=torch.float64)
    biases = size * torch.randn(units, d, generator=generator, dtype=torch.float64)
    return weights, biases if case % 2 else torch.zeros_like(biases)


def _outward(x: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and biases of units that move x outwards at the least cost, and x: for these the bound is sharp."""
    at, weights, biases = x, [], []
    for _ in range(steps):
        size = float(at.norm())
        v = math.sqrt(1.5 / steps)
        W, b = x.new_zeros(2, len(x), len(x)), x.new_zeros(len(x))
        W[0, 0], b[0] = v * at / math.hypot(size, 1), v / math.hypot(size, 1)
        W[1, :, 0] = v * at / size
        at = at + W[1, :, 0] * (W[0, 0] @ at + b[0])
        weights.append(W)
        biases.append(b)
    return torch.stack(weights), torch.stack(biases), x[None]


def distinct_outputs(n: int, generator: Generator) -> Cases:
    """Random small units, dense or all along one direction, d = 2..6: the lower bound on distances of outputs."""
    ratios = []
    for case in range(n):
        d, units = 2 + case % 5, 1 + case % 25
        x, y = on_sphere(torch.randn(2, d, generator=generator, dtype=torch.float64))
        W = torch.randn(units, 2, d, d, generator=generator, dtype=x.dtype)
        b = 0.3 * torch.randn(units, d, generator=generator, dtype=x.dtype)
        if case % 2:  # every unit takes away from x - y as much as it can
            a = on_sphere(x - y)
            W = torch.zeros_like(W)
            W[:, 0, 0], W[:, 1, :, 0], b = a, -a, b.abs() + 2
        sizes = torch.rand(units, 2, generator=generator, dtype=x.dtype) / (1 if units < 9 else 2)
        W = W / torch.linalg.matrix_norm(W, ord=2)[..., None, None] * sizes[..., None, None]
        out = apply_units(W, b, torch.stack([x, y]))
        ratios.append(least_stretch(W) * float((x - y).norm()) / float((out[0] - out[1]).norm()))
    return Cases(
        n,
        worst_of(ratios),
        "1 to 25 random units, dense and aligned, norms below 1",
        statement="corrected",
    )


def same_label(units: int, generator: Generator) -> Counterexample:
    """Two handwritten digits of one class in a random network of small units: how far apart they stay at least."""
    X, Y = load_whitened("digits")
    x, y = on_sphere(X[Y[:, 0] == 1][:2])
    W = torch.randn(units, 2, 10, 10, generator=generator, dtype=X.dtype)
    W *= (0.5 / math.sqrt(units)) / torch.linalg.matrix_norm(W, ord=2)[..., None, None]
    apart = apply_units(W, torch.zeros(units, 10), torch.stack([x, y])).diff(dim=0).norm()
    bound = least_stretch(W) * float((x - y).norm())
    if not bound <= float(apart):
        raise ArithmeticError(f"the outputs are {float(apart):.4g} apart, below the bound {bound:.4g}")
    what = f"least distance of the outputs of two zeros, {units} units; one label for both would make it 0"
    return Counterexample(bound, 0.0, "==", what)


def row_norms() -> tuple[Cases, Counterexample, list[tuple[str, float, float, float]]]:
    """Whitened data: norms of the rows, before and after scaling; rows (name, least, largest norm, spread).

    The last number is the ratio of the largest to the least eigenvalue of the second moment after scaling, 1 for data
    that are white.
    """
    errors, rows = [], []
    for name in WHITENED:
        X, _ = load_whitened(name)
        norms, scaled = X.norm(dim=1), on_sphere(X)
        errors.append(float((scaled.square().sum(1).sqrt() - 1).abs().max()))
        spread = torch.linalg.eigvalsh(scaled.mT @ scaled)
        rows.append((name, float(norms.min()), float(norms.max()), float(spread[-1] / spread[0])))
    against = Counterexample(rows[0][2], rows[0][1], "==", "largest and least row norm of whitened digits")
    done = Cases(len(errors), worst_of(errors), "whitened digits and MNIST, rows scaled", statement="corrected")
    return done, against, rows


def noisy_labels(n: int, generator: Generator) -> tuple[Cases, Counterexample]:
    """Digits with noise on their labels, memorised: the loss on the true labels against half the mean square noise."""
    data, labels = load_whitened("digits")
    errors = []
    for case in range(n):
        rows = torch.randperm(len(data), generator=generator)[: 12 + case % 20]
        X, Y = on_sphere(data[rows]), labels[rows]
        noisy = with_noise(Y, (0.3, 0.1, 0.03)[case % 3], generator)
        network = construct_small_weight_network(X, noisy, 4 * len(X), threshold=("paper", "sharp")[case % 2])
        loss = float((network(X) - Y).square().sum() / (2 * len(X)))
        errors.append(abs(loss / (0.5 * float((noisy - Y).square().sum(1).mean())) - 1))
    X = with_noise(X, 0.01, generator)
    inputs, together = minimum_distance(X), minimum_distance(torch.cat([X, Y]))
    what = f"least distance with {len(X)} one-hot labels, against that of the noisy inputs alone"
    return (
        Cases(n, worst_of(errors), "12 to 31 digits, noise .03 to .3 on the labels", statement="corrected"),
        Counterexample(together, inputs, ">=", what),
    )


def measured_log_gains(network: SmallWeightNetwork, X: Tensor) -> Tensor:
    """log of the spectral norm of the derivative of the network at each sample (m,), by automatic differentiation."""
    inputs = X.detach().clone().requires_grad_()
    out = network(inputs)  # rows do not depend on one another: one gradient serves all of them
    rows = [torch.autograd.grad(out[:, j].sum(), inputs, retain_graph=True)[0] for j in range(out.shape[1])]
    return torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2).log()
