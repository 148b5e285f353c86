"""Trials of Hardt & Ma 2016, Section 3, Theorem 3.2 and the conjecture of the conclusion."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample, Seeds, Symbolic
from resid.theory.memorize import (
    ExactMemorizer,
    Memorizer,
    construct_exact_memorizer,
    construct_memorizer,
    projection_width,
    rational_sphere_point,
    separation,
    smallest_width,
)

__all__ = [
    "Coincidences",
    "Memorized",
    "coincidences",
    "conjecture_at_zero",
    "conjecture_away_from_zero",
    "exact_networks",
    "final_block",
    "memorize_labels",
    "parameter_bound",
    "parameter_count",
    "random_networks",
    "random_problem",
    "smallest_widths",
    "surrogate_vectors",
    "unit_points",
    "untouched",
]


def unit_points(n: int, d: int, generator: Generator) -> Tensor:
    """n random points of the unit sphere (n, d), float64."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def random_problem(n: int, d: int, r: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Random unit points and random labels; the first points have one label each, so that all classes occur."""
    labels = torch.randint(r, (n,), generator=generator)
    labels[: min(n, r)] = torch.arange(r)[:n]
    return unit_points(n, d, generator), labels


@dataclass(frozen=True)
class Coincidences:
    """Pairs of points that coincide after scaling to norm 1, and how many of them have different labels."""

    pairs: int
    conflicting: int


def coincidences(images: Tensor, labels: Tensor) -> Coincidences:
    """Count, in whole numbers, the pairs of images (n, ...) that are multiples of each other.

    Images of whole pixel values are divided by the greatest common divisor of their pixels; two are multiples of each
    other exactly if the quotients are equal.
    """
    pixels = images.flatten(1).numpy()
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(pixels):
        divisor = int(np.gcd.reduce(row))
        groups.setdefault((row // divisor if divisor else row).tobytes(), []).append(int(labels[i]))
    pairs = conflicting = 0
    for group in groups.values():
        same = sum(group.count(label) * (group.count(label) - 1) // 2 for label in set(group))
        here = len(group) * (len(group) - 1) // 2
        pairs, conflicting = pairs + here, conflicting + here - same
    return Coincidences(pairs, conflicting)


def random_networks(n: int, generator: Generator) -> Cases:
    """Samples of 1 to 80 points, 3 to 12 dimensions, 1 to 10 classes; all modes, both last blocks.

    "shared" and "neuron" get an isometry as projection, so that the margins of distinct unit vectors are positive.
    """
    errors = []
    for case in range(n):
        mode = ("triangular", "triangular", "shared", "neuron")[case % 4]
        d, r = 3 + case % 10, 1 + case % 10
        X, y = random_problem(1 + (case * 7) % 80, d, r, generator)
        width = 2 + case % 7 if mode == "triangular" else d + case % 5
        kind = "gaussian" if mode == "triangular" else "orthogonal"
        output = ("paper", "clipped")[(case // 4) % 2]
        net = construct_memorizer(X, y, width, mode, seed=case, classes=r, projection=kind, output=output)
        errors.append(net.error(X, y))
    return Cases(n, worst_of(errors), "random unit vectors and labels, n <= 80, all three modes")


@dataclass(frozen=True)
class Memorized:
    """A network for one data set: rows for a table, and the largest entry of output minus label."""

    data: str
    n: int
    width: int
    n_parameters: int
    gap: float
    error: float
    seconds: float


def memorize_labels(data: str, images: Tensor, labels: Tensor, width: int, shuffled: Generator | None) -> Memorized:
    """Memorize the labels of images (n, ...), or random ones of the same classes; time construction and check.

    Raises:
        ArithmeticError: a label is missed.
    """
    if shuffled is not None:
        labels = torch.randint(int(labels.max()) + 1, labels.shape, generator=shuffled)
    started = time.perf_counter()
    net = construct_memorizer(images, labels, width, verify=False)
    error = net.error(images, labels)
    seconds = time.perf_counter() - started
    if not error < 0.5:
        raise ArithmeticError(f"{data}: a label is missed, the outputs are off by up to {error:.3g}")
    kind = "true" if shuffled is None else "random"
    return Memorized(f"{data}, {kind} labels", len(labels), width, net.n_parameters, net.gap, error, seconds)


def exact_networks() -> Symbolic:
    """Rational arithmetic: triangular networks of width 1, 2 and 3 through 20 points of Q^5 with 4 labels, and one with
    a common threshold through 18 rational points of the sphere; every output is compared with its label by `==`."""
    rng = random.Random(0)
    X = [[Fraction(rng.randint(-20, 20), rng.randint(1, 9)) for _ in range(5)] for _ in range(20)]
    y = [i % 4 for i in range(20)]
    holds = all(_exact(construct_exact_memorizer(X, y, width), X, y) for width in (1, 2, 3))
    axes = [[Fraction(v) for v in row] for row in ((1, 0, 0), (0, 1, 0), (0, 0, -1))]
    sphere: list[list[Fraction]] = []
    for a in range(-4, 5):
        for b in range(-4, 5):
            p = rational_sphere_point([Fraction(a, 2), Fraction(b, 2)])
            if all(sum((u - v) ** 2 for u, v in zip(p, w, strict=True)) > Fraction(1, 4) for w in sphere + axes):
                sphere.append(p)
    labels = [i % 3 for i in range(18)]
    eye = [[int(i == j) for j in range(3)] for i in range(3)]
    net = construct_exact_memorizer(sphere[:18], labels, 3, "shared", first=eye, surrogates=axes)
    return Symbolic(
        holds and _exact(net, sphere[:18], labels), "rational samples of 18 and 20 points, all errors exactly 0"
    )


def _exact(net: ExactMemorizer, X: list[list[Fraction]], y: list[int]) -> bool:
    r = max(y) + 1
    return all(net(x) == [int(j == label) for j in range(r)] for x, label in zip(X, y, strict=True))


def parameter_count(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """Parameters of constructed networks against the printed count and against the one with all biases."""
    errors = []
    for case in range(n):
        mode = ("triangular", "shared", "neuron")[case % 3]
        samples, d, r = 5 + 3 * case, 2 + case % 9, 2 + case % 6
        k = 2 + case % 7 if mode == "triangular" else d + case % 3
        X, y = random_problem(samples, d, r, generator)
        kind = "gaussian" if mode == "triangular" else "orthogonal"
        net = construct_memorizer(X, y, k, mode, seed=case, projection=kind, output="paper", shift=False)
        blocks = -(-samples // k)
        printed = k * d + blocks * 2 * k**2 + r * k + r**2
        errors.append(abs(net.n_parameters - printed - blocks * k - r) / (printed + blocks * k + r))
    against = Counterexample(net.n_parameters, printed, "==", f"n = {samples}, k = {k}, d = {d}, r = {r}", exact=True)
    return against, Cases(n, worst_of(errors), "all three modes, n <= 152, 1 <= k <= 12", statement="corrected")


def parameter_bound(n: int, generator: Generator) -> Cases:
    """Width ceil(c log n/rho^2) <= n, c = 72/(1 - 2 rho/9), a bias for each neuron: parameters over 8nk + 2r^2."""
    ratios = []
    for case in range(n):
        samples, r = 400 + 60 * (case % 6), 2 + case % 9
        X, y = random_problem(samples, 240, r, generator)
        rho, *_ = separation(X)
        k = projection_width(samples, rho)
        if k > samples:
            raise ArithmeticError(f"case {case}: the width {k} is above n = {samples}, the statement says nothing")
        net = construct_memorizer(X, y, k, "neuron", seed=case)
        missed = bool((net.predict(X) != y).any()) or not net.error(X, y) < 1e-9
        ratios.append(float("inf") if missed else net.n_parameters / (8 * samples * k + 2 * r**2))
    return Cases(n, worst_of(ratios), "random unit vectors, d = 240, 400 <= n <= 700")


def final_block(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """Both repairs of the last block: no skip, and the hidden vector cut or padded with zeros to r entries."""
    errors = []
    for case in range(n):
        k, r = 2 + case % 9, 2 + (case * 5) % 13
        X, y = random_problem(40, 6, r, generator)
        for skip in (False, True):
            net = construct_memorizer(X, y, k, seed=case, classes=r, output="paper", skip=skip)
            errors.append(net.error(X, y))
    against = Counterexample(9, 10, "==", "entries of the hidden vector for k = 9, of the output for 10 classes", True)
    return against, Cases(n, worst_of(errors), "widths 2 to 10, 2 to 14 classes, both repairs", statement="corrected")


def surrogate_vectors(seeds: int, draws: int, classes: tuple[int, ...], first: int = 0) -> Seeds:
    """Share of draws in which r random unit vectors in ceil(4 log r) + 1 dimensions have products below 1/2, the least
    over r, in the order given; once one share is zero it is the least, and the rest is not drawn."""
    shares = []
    for seed in range(first, first + seeds):
        generator = Generator().manual_seed(seed)
        each = []
        for r in classes:
            k = int(np.ceil(4 * np.log(r))) + 1
            good = 0
            for _ in range(draws):
                q = unit_points(r, k, generator).to(torch.float32)
                good += bool((q @ q.mT).fill_diagonal_(-1.0).max() < 0.5)
            each.append(good / draws)
            if not good:
                break
        shares.append(min(each))
    what = f"{draws} draws each for r = {', '.join(map(str, classes))}"
    return Seeds(shares, range(first, first + seeds), what)


def _relu_network(weights: list[tuple[Tensor, Tensor, Tensor]], X: Tensor) -> Tensor:
    h = X
    for U, V, s in weights:
        h = h + torch.relu(h @ U.mT + s) @ V.mT
    return h


def _random_weights(blocks: int, d: int, scale: float, generator: Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(normal(d, d), normal(d, d), normal(d)) for _ in range(blocks)]


def conjecture_at_zero(generator: Generator) -> Counterexample:
    """U = V = s = 0, labels from a network of the same form: squared gradient norm against the excess risk."""
    X = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    Y = _relu_network(_random_weights(4, 3, 0.3, generator), X)
    zero = [tuple(torch.zeros_like(w).requires_grad_() for w in block) for block in _random_weights(4, 3, 1, generator)]
    risk = (_relu_network(zero, X) - Y).square().sum() / len(X)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(risk, [w for block in zero for w in block])
    squares = float(sum(g.square().sum() for g in gradients))
    return Counterexample(
        squares, float(risk.detach()), ">=", "all weights zero: squared gradient norm, and excess risk (any constant)"
    )


def conjecture_away_from_zero(n: int, generator: Generator) -> Cases:
    """V = 0 with random U and s: the change of the risk along a random change of V, against what the gradient says."""
    errors = []
    for case in range(n):
        d, blocks = 2 + case % 4, 1 + case % 5
        X = torch.randn(30, d, generator=generator, dtype=torch.float64)
        Y = torch.randn(30, d, generator=generator, dtype=torch.float64)
        start = [(U, torch.zeros_like(V), s) for U, V, s in _random_weights(blocks, d, 1, generator)]
        gradients = _gradient_in_v(start, X, Y)
        # along the gradient itself: there the first-order change is as large as it can be, not zero by accident
        predicted = float(sum(g.square().sum() for g in gradients))
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = [(U, V + sign * step * g, s) for (U, V, s), g in zip(start, gradients, strict=True)]
            ends.append(float((_relu_network(moved, X) - Y).square().sum()) / len(X))
        errors.append(abs((ends[0] - ends[1]) / (2 * step) / predicted - 1) if predicted else float("inf"))
    return Cases(n, worst_of(errors), "1 to 5 blocks, d <= 5, V = 0, central differences", statement="corrected")


def _gradient_in_v(weights: list[tuple[Tensor, Tensor, Tensor]], X: Tensor, Y: Tensor) -> list[Tensor]:
    """The gradient of the risk in the matrices V where they are zero: (2/m) sum of error times activation."""
    error = X - Y  # the network is the identity there
    return [2 / len(X) * error.mT @ torch.relu(X @ U.mT + s) for U, _, s in weights]


def untouched(net: Memorizer, X: Tensor, y: Tensor) -> tuple[int, float]:
    """Follow every point through the blocks.

    Returns:
        how often a hidden vector changes, bit by bit, in another block than the one that moves it; and the largest
        distance at the end between points of one class, over the least distance between points of different classes.
    """
    h = net.hidden(X)
    moves = (h[1:] != h[:-1]).any(2).sum(0)
    distances = torch.cdist(h[-1], h[-1], compute_mode="donot_use_mm_for_euclid_dist")
    same = y[:, None] == y
    spread = float(distances[same].max() / distances[~same].min())
    return int((moves - 1).clamp_min(0).sum()), spread


def smallest_widths(counts: tuple[int, ...], d: int, generator: Generator) -> list[tuple[int, int, int]]:
    """For each n: n, and the smallest width that works in 5 of 6 draws with a common threshold, and with one each."""
    rows = []
    for n in counts:
        X = unit_points(n, d, generator)
        shared = smallest_width(X, "shared", 10, generator)
        rows.append((n, shared, smallest_width(X, "neuron", 10, generator)))
    return rows
