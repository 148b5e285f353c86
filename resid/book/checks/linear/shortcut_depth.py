"""Trials of Li et al. 2016, Section 4: the Hessian of shortcut networks at zero weights.

Networks are defined here a second time, and derivatives are taken by automatic differentiation of that definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.book.checks.linear.shortcut_start import haar
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.shortcut import (
    ShortcutNetwork,
    condition_number,
    hessian_at_zero,
    hessian_eigenvalues,
    hessian_spectrum_at_zero,
    length_one_growth_bound,
    moment_difference,
    neuron_matrices,
    orthogonal_as_shortcut,
    second_moments,
)
from resid.theory.shortcut._activation import derivatives

__all__ = [
    "BiasTrial",
    "LengthTwoTrial",
    "OrderTrial",
    "OrthogonalTrial",
    "ReluTrial",
    "SaddleTrial",
    "biases",
    "direct_loss",
    "gradient_at_zero",
    "lemma_four",
    "lemma_three",
    "length_one_at_zero",
    "length_one_growth",
    "length_one_last_quantile",
    "length_two_at_zero",
    "long_units_at_zero",
    "orthogonal_identity",
    "relu_near_zero",
    "taylor_orders",
    "toeplitz_blocks",
]

Kind = tuple[str, str]
#: Activation and position; all have the derivatives at zero that Theorem 2 needs for length 2.
KINDS: tuple[Kind, ...] = (
    ("linear", "mid"),
    ("tanh", "pre"),
    ("relu", "pre"),
    ("silu", "pre"),
    ("tanh", "mid"),
    ("silu", "mid"),
    ("tanh", "post"),
    ("silu", "post"),
)
SIGMA: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "tanh": lambda z: 2 * torch.sigmoid(2 * z) - 1,
    "silu": lambda z: z * (1 + torch.tanh(z / 2)) / 2,
}


def direct_loss(W: Tensor, X: Tensor, Y: Tensor, activation: str = "linear", position: str = "mid") -> Tensor:
    """(1/2m) sum ||y_hat - y||^2 by Definition 2, samples as columns; W (units, length, d, d), X and Y (m, d)."""
    pre, mid, post = (SIGMA[activation if position == place else "linear"] for place in ("pre", "mid", "post"))
    h = X.mT
    for unit in W:
        v = unit[0] @ pre(h)
        for matrix in unit[1:]:
            v = matrix @ mid(v)
        h = h + post(v)
    return (h - Y.mT).square().sum() / (2 * len(X))


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _second(W: Tensor, X: Tensor, Y: Tensor, kind: Kind) -> Tensor:
    return torch.func.hessian(lambda w: direct_loss(w.reshape(W.shape), X, Y, *kind))(W.flatten())


def _first(W: Tensor, X: Tensor, Y: Tensor, kind: Kind) -> Tensor:
    return torch.func.grad(lambda w: direct_loss(w, X, Y, *kind))(W)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _mixed_derivative(loss: Callable[[Tensor], Tensor], at: Tensor, directions: Sequence[Tensor]) -> float:
    for direction in directions:
        loss = _along(loss, direction)
    return float(loss(at))


def _along(loss: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.func.jvp(loss, (w,), (direction,))[1]


@dataclass(frozen=True)
class LengthTwoTrial:
    """Outcome of `length_two_at_zero`: the Hessian, its condition number, its spectrum, the negative curvature, the
    least eigenvalue, A P = I (x) M; and a point of lower loss than zero, for the data of the last case."""

    hessian: Cases
    condition: Cases
    copies: Cases
    saddle: Cases
    least: Cases
    permutation: Cases
    lower: Counterexample


def length_two_at_zero(n: int, generator: Generator) -> LengthTwoTrial:
    """Theorem 2, part 2, against automatic differentiation: d = 1..3, 1 to 7 units, linear, pre, mid and post."""
    found: dict[str, list[float]] = {name: [] for name in ("hessian", "condition", "copies", "saddle", "least", "AP")}
    for case in range(n):
        d, units, kind = 1 + case % 3, 1 + case % 7, KINDS[case % len(KINDS)]
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)
        zero = _zeros(units, 2, d, d)
        H = _second(zero, X, Y, kind)
        M = moment_difference(X, Y, *kind)
        sigma = torch.linalg.svdvals(M)
        values, vectors = torch.linalg.eigh(H)
        top = float(values.abs().max())
        closed = ShortcutNetwork(2, units, d, *kind).hessian(zero, X, Y)
        found["hessian"] += [_relative(hessian_at_zero(2, units, M), H), _relative(closed, H)]
        found["condition"].append(abs(float(sigma[0] / sigma[-1]) / (top / float(values.abs().min())) - 1))
        found["copies"].append(float((hessian_spectrum_at_zero(units, M) - values).abs().max()) / top)
        found["saddle"].append(float(sigma[0]) / -float(values[0]) if values[0] < 0 else math.inf)
        found["least"].append(abs(float(values[0] + sigma[0])) / top)
        block = H.view(units, 2, d, d, units, 2, d, d)[-1, 1, :, :, -1, 0]  # W_2[i, k], W_1[l, j]
        A = block.permute(1, 0, 3, 2).reshape(d * d, d * d)  # rows (k, i), columns (j, l): columns of matrices first
        P = torch.eye(d * d, dtype=H.dtype).view(d, d, d, d).transpose(0, 1).reshape(d * d, d * d)
        found["AP"].append(_relative(A @ P, torch.kron(torch.eye(d, dtype=H.dtype), M)))
    step = zero + 0.1 * vectors[:, 0].view_as(zero)
    here, there = float(direct_loss(zero, X, Y, *kind)), float(direct_loss(step, X, Y, *kind))
    what = "random data, d <= 3, 1 to 7 units, linear, pre, mid, post"
    worst = {name: worst_of(values) for name, values in found.items()}
    return LengthTwoTrial(
        Cases(n, worst["hessian"], what),
        Cases(n, worst["condition"], what),
        Cases(n, worst["copies"], what),
        Cases(n, worst["saddle"], what),
        Cases(n, worst["least"], what, statement="corrected"),
        Cases(n, worst["AP"], what),
        Counterexample(here, there, "<=", "loss at zero, loss a step of 0.1 along the last eigenvector away"),
    )


def toeplitz_blocks(X: Tensor, Y: Tensor, activation: str = "linear", position: str = "mid") -> tuple[Tensor, Tensor]:
    """The blocks A (later unit by earlier) and B of the Hessian at zero for length 1, (d^2, d^2), rows as W.flatten().

    With p = sigma_pre(x), q = sigma_post'(0) and c = sigma_post''(0),

        B[ab, ce] = delta_ac mean(q^2 p_b p_e + c (x - y)_a p_b p_e)
        A[ab, ce] = q^2 mean(delta_ac p_b p_e + delta_bc (x - y)_a sigma_pre'(x_b) p_e)
    """
    m, d = X.shape
    p = SIGMA[activation](X) if position == "pre" else X
    slope = derivatives(activation if position == "pre" else "linear", X)[0]
    q, c = (float(v) for v in derivatives(activation if position == "post" else "linear", _zeros()))
    eye, gap = torch.eye(d, dtype=X.dtype), X - Y
    power = p.mT @ p / m
    bent = torch.einsum("ma,mb,me->abe", gap, p, p) / m
    B = torch.einsum("ac,abe->abce", eye, q**2 * power.expand(d, d, d) + c * bent)
    crossed = torch.einsum("ma,mb,me->abe", gap, slope, p) / m
    A = q**2 * (torch.einsum("ac,be->abce", eye, power) + torch.einsum("bc,abe->abce", eye, crossed))
    return A.reshape(d * d, d * d), B.reshape(d * d, d * d)


def length_one_at_zero(n: int, generator: Generator) -> Cases:
    """Theorem 2, part 3, with A and B from `toeplitz_blocks`, and the library's closed forms as well."""
    errors = []
    kinds = [kind for kind in KINDS if kind[0] == "linear" or kind[1] != "mid"]
    for case in range(n):
        d, units, kind = 1 + case % 3, 2 + case % 5, kinds[case // 5 % len(kinds)]
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)
        zero = _zeros(units, 1, d, d)
        H = _second(zero, X, Y, kind)
        A, B = toeplitz_blocks(X, Y, *kind)
        below = torch.ones(units, units, dtype=H.dtype).tril(-1)
        ours = torch.kron(torch.eye(units, dtype=H.dtype), B) + torch.kron(below, A) + torch.kron(below.mT, A.mT)
        errors += [_relative(ours, H), _relative(ShortcutNetwork(1, units, d, *kind).hessian(zero, X, Y), H)]
        if kind[0] == "linear":
            xx, yx = second_moments(X, Y)
            errors.append(_relative(hessian_at_zero(1, units, xx - yx, xx), H))
    return Cases(n, worst_of(errors), "random data, d <= 3, 2 to 6 units, linear, pre, post")


def length_one_growth(n: int, generator: Generator) -> Cases:
    """`length_one_growth_bound` against the condition numbers of the Hessian at zero, d = 1..4, 2 to 32 units.

    With the least absolute eigenvalue; with the tenth percentile where the statement covers it; and with the greatest
    quantile that it covers. Whitened inputs and others in turn. One case in four is extreme, M a multiple of the
    identity: there the bound is attained.
    """
    ratios = []
    for case in range(n):
        d, units = 1 + case % 4, 2 ** (1 + case // 4 % 5)
        X, Y = _normal(generator, 30, d), _normal(generator, 30, d)
        extreme = case // 4 % 4 == 0
        if case % 8 < 4 or extreme:
            half = torch.linalg.cholesky(X.mT @ X / len(X))
            X = torch.linalg.solve_triangular(half, X.mT, upper=False).mT
        if extreme:
            Y = float(torch.rand((), generator=generator)) * X
        xx, yx = second_moments(X, Y)
        values = hessian_eigenvalues(ShortcutNetwork(1, units, d).hessian_from_moments(_zeros(units, 1, d, d), xx, yx))
        bound, last = length_one_growth_bound(units, xx - yx, xx), length_one_last_quantile(units, d)
        ratios.append(bound / condition_number(values))
        ratios += [bound / condition_number(values, q) for q in (0.1, last) if 0 < q <= last]
    return Cases(n, worst_of(ratios), "random data, whitened and not, d = 1..4, 2 to 32 units")


def length_one_last_quantile(units: int, d: int) -> float:
    """The greatest quantile of the absolute eigenvalues that `length_one_growth_bound` covers, less rounding.

    The interpolated quantile q of N numbers is the number at place q (N - 1), counted from 0.
    """
    return (units // 2 * d * d - 1) / (units * d * d - 1) * (1 - 1e-12)


def long_units_at_zero(n: int, generator: Generator) -> Cases:
    """The largest entry of the Hessian at zero for lengths 3 and 4, by automatic differentiation and in closed form."""
    largest = []
    for case in range(n):
        length, d, kind = 3 + case % 2, 1 + case % 3, KINDS[case % len(KINDS)]
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)
        zero = _zeros(1 + case % 2, length, d, d)
        automatic = _second(zero, X, Y, kind)
        closed = ShortcutNetwork(length, len(zero), d, *kind).hessian(zero, X, Y)
        largest += [float(automatic.abs().max()), float(closed.abs().max())]
    return Cases(n, worst_of(largest), "random data, lengths 3 and 4, d <= 3, linear and smooth activations")


@dataclass(frozen=True)
class OrderTrial:
    """Outcome of `taylor_orders`. leading: the largest relative error of tr(M^T W_n ... W_1) for the order n."""

    lower: Cases
    leading: float


def taylor_orders(n: int, generator: Generator) -> OrderTrial:
    """Taylor coefficients of the loss along random directions, lengths 2 to 4, against the order of the length."""
    ratios, errors = [], []
    for case in range(n):
        length, d, units, kind = 2 + case % 3, 1 + case // 3 % 3, 1 + case % 2, KINDS[case % len(KINDS)]
        X, Y, W = _normal(generator, 20, d), _normal(generator, 20, d), _normal(generator, units, length, d, d)

        def loss(w: Tensor, X: Tensor = X, Y: Tensor = Y, kind: Kind = kind) -> Tensor:
            return direct_loss(w, X, Y, *kind)

        derivative = [_mixed_derivative(loss, 0 * W, [W] * k) for k in range(1, length + 1)]
        coefficients = [value / math.factorial(k) for k, value in enumerate(derivative, 1)]
        lower = coefficients[:-1]
        ratios.append(worst_of(map(abs, lower)) / abs(coefficients[-1]))
        if len(lower) < length - 1:  # nothing is left out
            raise ArithmeticError(f"{len(lower)} coefficients below the order {length}")
        M = _path_slope(length, kind) * moment_difference(X, Y, *kind)
        expected = sum(float((M * torch.linalg.multi_dot([*unit.flip(0)])).sum()) for unit in W)
        errors.append(abs(coefficients[-1] / expected - 1))
    what = "random directions and data, lengths 2 to 4, d <= 3, linear, pre, mid, post"
    return OrderTrial(Cases(n, worst_of(ratios), what), worst_of(errors))


def _path_slope(length: int, kind: Kind) -> float:
    """What the slopes of the activations between matrices contribute beyond the one that `moment_difference` has."""
    return float(derivatives(kind[0], _zeros())[0]) ** (length - 2) if kind[1] == "mid" else 1.0


def lemma_three(n: int, generator: Generator) -> tuple[Cases, float]:
    """Mixed derivatives at zero, up to order 5, in weights that miss a matrix in every unit.

    Returns:
        The largest one; and, beside it, the largest relative error of slope times M_ij for derivatives in one weight of
        each matrix of a unit that form a path from j to i.
    """
    missing, errors, orders = [], [], set()
    for case in range(n):
        length, d, units, kind = 2 + case % 3, 1 + case % 3, 1 + case // 2 % 3, KINDS[case % len(KINDS)]
        X, Y, zero = _normal(generator, 20, d), _normal(generator, 20, d), _zeros(units, length, d, d)

        def loss(w: Tensor, X: Tensor = X, Y: Tensor = Y, kind: Kind = kind) -> Tensor:
            return direct_loss(w, X, Y, *kind)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        skipped = [draw(length) for _ in range(units)]
        allowed = [
            (r, k, i, j) for r, k, i, j in product(range(units), range(length), range(d), range(d)) if k != skipped[r]
        ]
        chosen = [allowed[draw(len(allowed))] for _ in range(1 + case % 5)]
        orders.add(len(chosen))
        missing.append(abs(_mixed_derivative(loss, zero, [_unit_vector(zero, place) for place in chosen])))
        nodes, unit = [draw(d) for _ in range(length + 1)], draw(units)
        path = [(unit, k, nodes[k + 1], nodes[k]) for k in range(length)]
        found = _mixed_derivative(loss, zero, [_unit_vector(zero, place) for place in path])
        M = _path_slope(length, kind) * moment_difference(X, Y, *kind)
        errors.append(abs(found - float(M[nodes[-1], nodes[0]])) / float(M.abs().max()))
    if len(orders) < min(n, 5):
        raise ArithmeticError(f"derivatives of the orders {orders} only: 1 to 5 are claimed")
    what = "random sets of up to 5 weights, lengths 2 to 4, d <= 3, up to 3 units, linear, pre, mid, post"
    return Cases(n, worst_of(missing), what), worst_of(errors)


def _unit_vector(like: Tensor, place: tuple[int, ...]) -> Tensor:
    return torch.zeros_like(like).index_put(tuple(map(torch.tensor, place)), torch.ones_like(like[place]))


def lemma_four(n: int, generator: Generator) -> tuple[Cases, float]:
    """Losses with the weights of two units put into every pair of places in the same order, all other units zero.

    Returns:
        The worst relative difference; and the smallest one, over the cases, when the order is reversed.
    """
    same, reversed_order = [], []
    for case in range(n):
        length, d, units, kind = 1 + case % 3, 2 + case % 2, 3 + case % 3, KINDS[case % len(KINDS)]
        X, Y, pair = _normal(generator, 20, d), _normal(generator, 20, d), 0.7 * _normal(generator, 2, length, d, d)
        kind = kind if length > 1 or kind[1] != "mid" else ("linear", "mid")
        network = ShortcutNetwork(length, units, d, *kind)
        losses = []
        for first, second in product(range(units), range(units)):
            if first != second:
                W = _zeros(units, length, d, d)
                W[first], W[second] = pair
                losses.append((first < second, float(network.loss(W, X, Y)), float(direct_loss(W, X, Y, *kind))))
        ordered = [loss for in_order, *both in losses if in_order for loss in both]
        swapped = next(loss for in_order, loss, _ in losses if not in_order)
        same.append((max(ordered) - min(ordered)) / max(ordered))
        reversed_order.append(-abs(swapped / ordered[0] - 1))
    what = "random weights in two of 3 to 5 units, lengths 1 to 3, linear, pre, mid, post"
    return Cases(n, worst_of(same), what), -worst_of(reversed_order)


@dataclass(frozen=True)
class SaddleTrial:
    """Outcome of `gradient_at_zero`: the corrected statement, and the gradient for length 1 and integers."""

    gradient: Cases
    not_critical: Counterexample


def gradient_at_zero(n: int, generator: Generator) -> SaddleTrial:
    """The gradient at zero: M in every unit for length 1, nothing for lengths 2 to 4, relative to ||M||."""
    errors = []
    for case in range(n):
        length, d, units, kind = 1 + case % 4, 1 + case % 3, 1 + case % 5, KINDS[case // 4 % len(KINDS)]
        kind = kind if length > 1 or kind[1] != "mid" else ("linear", "mid")
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)
        gradient = _first(_zeros(units, length, d, d), X, Y, kind)
        M = moment_difference(X, Y, *kind)
        expected = M.expand_as(gradient) if length == 1 else torch.zeros_like(gradient)
        errors.append(float((gradient - expected).abs().max() / M.abs().max()))
    what = "random data, lengths 1 to 4, d <= 3, up to 5 units, linear, pre, mid, post"
    gradient = _first(_zeros(1, 1, 1, 1), _zeros(1, 1) + 1, _zeros(1, 1) + 3, ("linear", "mid"))
    against = Counterexample(float(gradient.norm()), 0.0, "==", "gradient norm at zero, d = 1, one unit, x = 1, y = 3")
    return SaddleTrial(Cases(n, worst_of(errors), what, statement="corrected"), against)


@dataclass(frozen=True)
class BiasTrial:
    """Outcome of `biases`: the corrected spectrum, and the number of zero eigenvalues in the last case."""

    spectrum: Cases
    zeros: Counterexample


def biases(n: int, generator: Generator) -> BiasTrial:
    """The spectrum at zero of units h + W_2 tanh(W_1 h + b): +- singular values of [M, mean(x - y)], and d zeros."""
    errors = []
    for case in range(n):
        d, units = 1 + case % 3, 1 + case % 4
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)

        def loss(theta: Tensor, d: int = d, units: int = units, X: Tensor = X, Y: Tensor = Y) -> Tensor:
            h = X.mT
            for unit in theta.view(units, -1):
                first, second, bias = unit[: d * d].view(d, d), unit[d * d : 2 * d * d].view(d, d), unit[2 * d * d :]
                h = h + second @ torch.tanh(first @ h + bias[:, None])
            return (h - Y.mT).square().sum() / (2 * len(X))

        values = torch.linalg.eigvalsh(torch.func.hessian(loss)(_zeros(units * (2 * d * d + d))))
        wide = torch.cat([moment_difference(X, Y, "tanh", "mid"), (X - Y).mean(0)[:, None]], 1)
        sigma = torch.linalg.svdvals(wide).repeat_interleave(d * units)
        expected = torch.cat([-sigma, _zeros(d * units), sigma]).sort().values
        errors.append(float((values - expected).abs().max() / values.abs().max()))
    zeros = int((values.abs() < 1e-12 * values.abs().max()).sum())
    what = "random data, d <= 3, up to 4 units, tanh"
    against = Counterexample(zeros, 0, "==", f"number of zero eigenvalues, d = {d}, {units} units", exact=True)
    return BiasTrial(Cases(n, worst_of(errors), what, statement="corrected"), against)


@dataclass(frozen=True)
class ReluTrial:
    """Outcome of `relu_near_zero`: the matrices M(w), the slope 1/2 refuted, the error of M(w) + M(-w) = M, and what
    automatic differentiation takes for the Hessian at zero, its largest entry."""

    neurons: Cases
    half: Counterexample
    average: float
    automatic_at_zero: float


def relu_near_zero(n: int, generator: Generator) -> ReluTrial:
    """ReLU at mid, weights of size 1e-6: the exact spectrum, that of the neurons' matrices, and that of slope 1/2.

    The library's closed form is compared with automatic differentiation on the way.
    """
    errors, average, at_zero, refuted = [], [], [], []
    for case in range(n):
        d, units = 2 + case % 2, 1 + case % 3
        X, Y = _normal(generator, 20, d), _normal(generator, 20, d)
        W = 1e-6 * _normal(generator, units, 2, d, d)
        H = _second(W, X, Y, ("relu", "mid"))
        errors.append(_relative(ShortcutNetwork(2, units, d, "relu", "mid").hessian(W, X, Y), H))
        values = torch.linalg.eigvalsh(H)
        rows = W[:, 0].reshape(-1, d)
        own, mirrored = neuron_matrices(rows, X, Y), neuron_matrices(-rows, X, Y)
        sigma = torch.linalg.svdvals(own).flatten()
        top = float(values.abs().max())
        errors.append(float((torch.cat([-sigma, sigma]).sort().values - values).abs().max()) / top)
        M = moment_difference(X, Y)
        average.append(_relative(own + mirrored, M.expand_as(own)))
        at_zero.append(float(_second(0 * W, X, Y, ("relu", "mid")).abs().max()))
        refuted.append((top, float(torch.linalg.matrix_norm(M, ord=2)) / 2))
    exact, predicted = max(refuted, key=lambda pair: abs(math.log(pair[0] / pair[1])))
    what = "largest eigenvalue near zero, and with slope 1/2"
    return ReluTrial(
        Cases(n, worst_of(errors), "random data, d = 2 and 3, up to 3 units, 20 samples", statement="corrected"),
        Counterexample(exact, predicted, "==", what),
        worst_of(average),
        worst_of(at_zero),
    )


@dataclass(frozen=True)
class OrthogonalTrial:
    """Outcome of `orthogonal_identity`. products: the largest relative difference after descent alone."""

    identity: Cases
    products: float


def orthogonal_identity(n: int, generator: Generator, steps: int = 200) -> OrthogonalTrial:
    """Orthogonal plain networks against 1-shortcut networks with turned labels: spectra, and gradient descent.

    The plain side is differentiated automatically, the other one uses the library's closed forms.
    """
    spectra, products = [], []
    for case in range(n):
        d, depth = 2 + case % 2, 2 + case % 4
        X, Y = _normal(generator, 20, d), 0.5 * _normal(generator, 20, d)
        xx, yx = second_moments(X, Y)
        Q = torch.stack([haar(d, generator) for _ in range(depth)])
        U, turn = orthogonal_as_shortcut(Q)
        V = 0.1 * _normal(generator, depth, d, d)
        W = Q + U[1:] @ V @ U[:-1].mT

        def plain(w: Tensor, X: Tensor = X, Y: Tensor = Y) -> Tensor:
            h = X.mT
            for matrix in w:
                h = matrix @ h
            return (h - Y.mT).square().sum() / (2 * len(X))

        flat = torch.func.hessian(lambda w, plain=plain, like=W: plain(w.view_as(like)))(W.flatten())
        network = ShortcutNetwork(1, depth, d)
        closed = network.hessian_from_moments(V[:, None], xx, turn @ yx)
        ours, other = torch.linalg.eigvalsh(flat), torch.linalg.eigvalsh(closed)
        spectra.append(float((ours - other).abs().max() / ours.abs().max()))
        slope = torch.func.grad(plain)
        for _ in range(steps):
            W = W - 0.01 * slope(W)
            V = V - 0.01 * network.gradient_from_moments(V[:, None], xx, turn @ yx)[:, 0]
        end = torch.linalg.multi_dot([*W.flip(0)])
        products.append(_relative(U[-1] @ network.linear_map(V[:, None]), end))
    what = f"spectra, and products after {steps} steps; d = 2 and 3, depth 2 to 5"
    return OrthogonalTrial(Cases(n, worst_of([*spectra, *products]), what, statement="sharper"), worst_of(products))
