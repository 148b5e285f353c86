"""Trials of Zaeemzadeh et al. 2018, Section 2: norms of gradients across residual blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn import functional

from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.factor import compose, factorization_error, near_identity_lower_bound, spectral_gamma
from resid.theory.norms import (
    SLOPES,
    SMOOTH_FAMILIES,
    block_bound,
    flow_constant,
    gradient_norm_ratios,
    identity_plus_bounds,
    layers_bound,
    linear_bound,
    mirror_augmented,
    near_identity_flow,
    norm_deviation,
    norm_preserving_layers,
    sample_smooth_map,
    shear,
)
from resid.theory.targets import FAMILIES, sample_target

__all__ = [
    "FlowTrial",
    "corollary_1",
    "corollary_1_more_layers",
    "entrywise_norm",
    "flow_trial",
    "lemma_1",
    "orientation",
    "reflection_against_lemma_3",
    "scaled_network",
    "shear_rate",
    "theorem_2",
    "train_linear",
]

#: Activations with a point at which their slope is greatest.
_STEEPEST = {"tanh": 0.0, "relu": 1.0, "softplus": 40.0, "gelu": math.sqrt(2)}


def lemma_1(n: int, generator: Generator) -> tuple[Cases, Cases]:
    """Singular values of I + M for M of scales 1e-2 to 10, a third of them -I, multiples of I or singular; d = 1..7.

    First the lemma, then max ``|sigma_i(I + M) - 1|`` against sigma_max(M).
    """
    bounds, shifts = [], []
    for case in range(n):
        d, eye = 1 + case % 7, torch.eye(1 + case % 7, dtype=torch.float64)
        M = _normal(generator, d, d) * 10 ** _uniform(generator, -2, 1)
        if case % 9 == 3:
            M = -eye if case % 2 else M[0, 0] * eye
        elif case % 9 in (6, 7):
            M[:, 0] = M[:, -1] if d > 1 else 1e-3  # singular
        low, high = identity_plus_bounds(M)
        sigma, largest = torch.linalg.svdvals(eye + M), float(torch.linalg.matrix_norm(M, ord=2))
        bounds += [float(sigma[0] / high), float(1 / (sigma[-1] + (1 - low)))]
        shifts.append(float((sigma - 1).abs().max()) / largest)
    what = "random square matrices, d <= 7, singular ones and -I among them"
    return Cases(n, worst_of(bounds), what), Cases(n, worst_of(shifts), what, statement="corrected")


def theorem_2(n: int, generator: Generator) -> tuple[Cases, float]:
    """Norm-preserving layers for targets of nine families and both signs of the determinant, d = 1..12.

    The largest change of a gradient norm against the printed bound; and the largest distance from the exact optimum.

    Raises:
        ArithmeticError: a product misses its target.
    """
    ratios, gaps = [], []
    for case in range(n):
        R = sample_target(FAMILIES[case % len(FAMILIES)], 1 + case % 12, generator)
        R[0] *= (-1) ** (case // len(FAMILIES))
        depth = max(1, math.ceil(3 * spectral_gamma(R))) + (0, 2, 17)[case % 3]
        W = norm_preserving_layers(R, depth)
        if not (error := factorization_error(W, R)) < 1e-12:
            raise ArithmeticError(f"depth {depth}: the product misses R by {error:.2e}")
        delta = float(norm_deviation(W + torch.eye(len(R), dtype=torch.float64)).max())
        ratios.append(delta / linear_bound(R, depth, "printed"))
        gaps.append(abs(delta - linear_bound(R, depth)))
    return Cases(n, worst_of(ratios), "nine families, d <= 12, both signs of det R"), worst_of(gaps)


def reflection_against_lemma_3(depth: int = 7) -> Counterexample:
    """diag(1, -1): the least possible largest layer norm against the bound that is quoted without a determinant."""
    R = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    what = f"R = diag(1, -1), {depth} layers: least possible norm against the bound"
    return Counterexample(near_identity_lower_bound(R, depth), linear_bound(R, depth, "printed"), "<=", what)


def train_linear(R: Tensor, depth: int) -> tuple[Tensor, float]:
    """Minimise ``||(I + W_L) .. (I + W_1) - R||_F^2`` by L-BFGS from W = 0; the layers and the relative error."""
    W = torch.zeros(depth, *R.shape, dtype=R.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [W], max_iter=1000, tolerance_grad=1e-12, tolerance_change=0, history_size=30, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        W.grad = None
        value = (compose(W) - R).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    layers = W.detach()
    return layers, factorization_error(layers, R)


@dataclass(frozen=True)
class FlowTrial:
    """Outcome of `flow_trial`.

    c is `flow_constant`. theorem: change of gradient norms against c log(2L)/L. rate: the Lipschitz seminorm of a block
    minus the identity, which bounds that change, against c/(L - 1). lipschitz: against c log(2L)/L. represented: error
    of the whole network. optimal: the best that any network could do over what is reached, largest value.
    """

    theorem: Cases
    rate: Cases
    lipschitz: Cases
    represented: Cases
    optimal: float


def flow_trial(n: int, generator: Generator, points: int = 12) -> FlowTrial:
    """Networks for random maps of four families with certified constants, d = 2..5, L from 1 + c on, and from 3.

    Gradient norms are measured by backpropagation and, over all gradients, by singular values of the Jacobians; the
    seminorm over pairs of points and by the Jacobians.

    Raises:
        ArithmeticError: backpropagation disagrees with the Jacobians.
    """
    theorem, rate, lipschitz, represented, optimal = ([] for _ in range(5))
    for case in range(n):
        d = 2 + (case // len(SMOOTH_FAMILIES)) % 4
        h = sample_smooth_map(SMOOTH_FAMILIES[case % len(SMOOTH_FAMILIES)], d, generator)
        c = worst_of([flow_constant(h)])
        L = max(3, math.ceil(1 + c)) * (1, 2, 4)[case % 3]
        flow, x = near_identity_flow(h, L), h.points(points, generator)
        J = flow.jacobians(x)
        delta = float(norm_deviation(J).max())
        g = _normal(generator, points, d)
        ratios = gradient_norm_ratios(flow.blocks, x, partial(_pairing, g), direction="in/out", per_sample=True)
        seen = float((ratios - 1).abs().max())
        if not seen <= delta + 1e-9:
            raise ArithmeticError(f"backpropagation changes a norm by {seen:.6g}, the Jacobians by {delta:.6g} at most")
        secant, out = _largest_secant(flow.blocks, x)
        seminorm = max(_largest_distance(J), secant)
        slow, fast = c * math.log(2 * L) / L, c / (L - 1)
        theorem.append(max(seen, delta) / slow)
        rate.append(max(seen, delta, seminorm) / fast)
        lipschitz.append(seminorm / slow)
        represented.append(float((out - h(x)).norm() / h(x).norm()))
        optimal.append(worst_of(linear_bound(slope, L) for slope in h.jacobian(x)) / delta)
    what = f"four families of maps with certified constants, d <= 5, {points} points each"
    return FlowTrial(
        Cases(n, worst_of(theorem), what),
        Cases(n, worst_of(rate), what, statement="sharper"),
        Cases(n, worst_of(lipschitz), what),
        Cases(n, worst_of(represented), what, statement="corrected"),
        worst_of(optimal),
    )


def _pairing(g: Tensor, y: Tensor) -> Tensor:
    """<g, y>, whose gradient is g."""
    return (g * y).sum()


def _largest_distance(J: Tensor) -> float:
    """max ||J - I||."""
    return float(torch.linalg.matrix_norm(J - torch.eye(J.shape[-1], dtype=J.dtype), ord=2).max())


def _largest_secant(blocks: tuple[Callable[[Tensor], Tensor], ...], x: Tensor) -> tuple[float, Tensor]:
    """max ||(b(x) - x) - (b(y) - y)|| / ||x - y|| over blocks b and all pairs of states at their inputs; the output."""
    found = []
    first, second = torch.triu_indices(len(x), len(x), 1)
    for block in blocks:
        moved = block(x)
        added = moved - x
        found.append(((added[first] - added[second]).norm(dim=1) / (x[first] - x[second]).norm(dim=1)).max())
        x = moved
    return worst_of(found), x


def shear_rate(depths: tuple[int, int] = (16, 1024), bend: float = 1.0) -> tuple[float, float]:
    """L delta for the shear (x, y + bend x^2) at two depths: by what it grows, and by what log(2L) does."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    low, high = (
        depth * float(norm_deviation(near_identity_flow(shear(bend), depth).jacobians(x)).max()) for depth in depths
    )
    grown = math.log(2 * depths[1]) / math.log(2 * depths[0])
    return high / low, grown


def orientation(n: int, generator: Generator) -> Cases:
    """det of the derivative of (h(x), -b) for maps h of negative determinant, against -det h'(x); d = 2..6.

    The derivative of the augmented map is taken in closed form and by automatic differentiation.
    """
    errors = []
    for case in range(n):
        d = 2 + case % 5
        h = sample_smooth_map(SMOOTH_FAMILIES[case % len(SMOOTH_FAMILIES)], d, generator, sign=-1)
        wide = mirror_augmented(h)
        x = wide.points(8, generator)
        before = torch.linalg.det(h.jacobian(x[:, :-1]))
        for slope in (wide.jacobian(x), replace(wide, slope=None).jacobian(x)):
            after = torch.linalg.det(slope)
            errors += ((after + before).abs() / before.abs()).tolist()
            errors.append(float(not bool((before < 0).all() and (after > 0).all())))
    return Cases(n, worst_of(errors), "four families of maps of negative determinant, d <= 6, 8 points each")


def scaled_network(depth: int = 64, scale: float = 100.0) -> tuple[Counterexample, float]:
    """An exact network whose first block scales by `scale` and whose second undoes it and applies the whole map.

    The largest gradient ratio in/out against 1 + delta of Theorem 1, and the relative error of the map.
    """
    h = shear(0.5)
    x = h.points(20, torch.Generator().manual_seed(0))
    blocks = [lambda x: scale * x, lambda x: h(x / scale), *[lambda x: x] * (depth - 2)]
    out = x
    for block in blocks:
        out = block(out)
    largest = float(gradient_norm_ratios(blocks, x, torch.sum, direction="in/out").max())
    delta = flow_constant(h) * math.log(2 * depth) / depth
    what = f"a network of {depth} blocks that is exact and scales by {scale:g}: largest ratio against 1 + delta"
    return Counterexample(largest, 1 + delta, "<=", what), float((out - h(x)).norm() / h(x).norm())


def corollary_1(n: int, generator: Generator) -> Cases:
    """Blocks of two layers, n for each of four activations and both forms; every second one attains its bound."""
    ratios = [
        _block_ratio(2, name, form, bool(case % 2), generator)
        for case in range(n)
        for name in _STEEPEST
        for form in ("plain", "preactivation")
    ]
    return Cases(len(ratios), worst_of(ratios), "blocks of two layers, four activations, both forms")


def entrywise_norm(n: int, generator: Generator) -> Cases:
    """Largest singular value over the Frobenius norm; every second matrix has rank one and attains it."""
    ratios = []
    for case in range(n):
        rows, columns = 1 + case % 5, 1 + case // 5 % 7
        W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        W = W[:, :1] * W[:1] if case % 2 else W
        ratios.append(float(torch.linalg.matrix_norm(W, ord=2) / W.norm()))
    return Cases(n, worst_of(ratios), "random matrices up to 5 x 7, every second one of rank one")


def corollary_1_more_layers(n: int, generator: Generator) -> Cases:
    """The same for blocks of 3 to 5 layers."""
    ratios = [
        _block_ratio(3 + case // 2 % 3, name, form, bool(case % 2), generator)
        for case in range(n)
        for name in _STEEPEST
        for form in ("plain", "preactivation")
    ]
    return Cases(len(ratios), worst_of(ratios), "blocks of 3 to 5 layers, four activations, both forms")


def _block_ratio(layers: int, name: str, form: str, extreme: bool, generator: Generator) -> float:
    """max ``|in/out - 1|`` / delta over gradients, for one block."""
    make = _extreme_block if extreme else _random_block
    weights, x, g = make(layers, name, form, generator)
    block = residual_block(weights, getattr(functional, name), form)
    ratios = gradient_norm_ratios([block], x, partial(_pairing, g), direction="in/out", per_sample=True)
    slope = SLOPES[name]
    two = layers == 2
    delta = block_bound(weights[0], weights[1], slope, form) if two else layers_bound(weights, slope, form)
    return float((ratios - 1).abs().max()) / delta


def residual_block(weights: list[Tensor], rho: Callable[[Tensor], Tensor], form: str) -> Callable[[Tensor], Tensor]:
    """x + W_m rho(.. rho(W_1 x)), or with rho(x) in place of x in the branch; samples are rows."""

    def block(x: Tensor) -> Tensor:
        h = rho(x) if form == "preactivation" else x
        for W in weights[:-1]:
            h = rho(h @ W.mT)
        return x + h @ weights[-1].mT

    return block


def _random_block(layers: int, name: str, form: str, generator: Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    d, inner = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
    sizes = [d, *[inner] * (layers - 1), d]
    scale = 10 ** _uniform(generator, -1, 0.5)
    weights = [scale * _normal(generator, b, a) / math.sqrt(a) for a, b in pairwise(sizes)]
    return weights, 2 * _normal(generator, 8, d), _normal(generator, 8, d)


def _extreme_block(layers: int, name: str, form: str, generator: Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """Multiples of the projection on (1, .., 1), at an input where every unit stands where rho is steepest."""
    d = 1 + int(torch.randint(0, 8, (), generator=generator))
    ones, at = torch.ones(1, d, dtype=torch.float64), _STEEPEST[name]
    after = float(getattr(functional, name)(torch.tensor(at, dtype=torch.float64)))
    sizes = [at / after if at else _uniform(generator, 0.5, 2) for _ in range(layers - 1)]
    if form == "plain":
        sizes[0] = _uniform(generator, 0.5, 2)
    slopes = SLOPES[name] ** (layers - (form == "plain"))
    delta = _uniform(generator, 0.05, 0.95) * (1 if _uniform(generator, -1, 1) > 0 else -1)
    sizes.append(delta / (math.prod(sizes) * slopes))
    x = ones * (at / sizes[0] if form == "plain" else at)
    return [size * ones.mT @ ones / d for size in sizes], x, ones


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
