"""Trials of Hardt & Ma 2016, Theorem 2.1, its proof, and the bounds of this project."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy.linalg import block_diag, schur
from scipy.optimize import minimize_scalar
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.errors import DepthError
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.factor import (
    compose,
    factor_near_identity,
    factorization_error,
    max_layer_norm,
    near_identity_bound,
    near_identity_lower_bound,
    spectral_gamma,
)
from resid.theory.targets import FAMILIES, random_rotation, sample_target

__all__ = [
    "FamilyTrial",
    "complex_layers",
    "complex_targets",
    "determinants_stay_positive",
    "family_trial",
    "gamma_scaling",
    "normal_targets",
    "normal_targets_gap",
    "orthogonal_blocks",
    "positive_definite",
    "search_least_norm",
    "small_sums",
    "split_counterexample",
    "split_rounded",
]

#: A reconstruction with a larger relative error than this ends a trial.
_RECONSTRUCTS = 1e-12


@dataclass(frozen=True)
class FamilyTrial:
    """Outcome of `family_trial`.

    Args:
        rows: per family its name, the worst ratio to the bound of the later versions for "svd" and for "polar", and the
            mean for "polar".
        theorem: evidence for the later versions, both constructions.
        falls: for a constant that does not depend on the depth.
        submission: for the first version where det R > 0.
    """

    rows: list[tuple[str, float, float, float]]
    theorem: Cases
    falls: Cases
    submission: Cases


def family_trial(per_family: int, generator: Generator) -> FamilyTrial:
    """Factor targets of all nine families, d = 1..20, at depths from 3 gamma on; compare with both printed bounds.

    Every product is multiplied out. Where the theorem asks for fewer layers than "svd" has factors, it is left out.

    Raises:
        ArithmeticError: a product misses its target.
    """
    rows: list[tuple[str, float, float, float]] = []
    every: list[float] = []
    first: list[float] = []
    falls: list[float] = []
    for family in FAMILIES:
        ratios: dict[str, list[float]] = {"svd": [], "polar": []}
        for case in range(per_family):
            R = sample_target(family, 1 + case % 20, generator)
            gamma = spectral_gamma(R)
            depth = max(1, math.ceil(3 * gamma)) + (0, 2, 17)[case % 3]
            bound = near_identity_bound(R, depth, "v3")
            norm = _checked_norm(R, depth, "polar")
            ratios["polar"].append(norm / bound)
            first.append(norm / near_identity_bound(R, depth, "submission"))
            constant = 4 * math.pi + 3 * gamma
            falls += [deeper * _checked_norm(R, deeper, "polar") / constant for deeper in (2 * depth, 8 * depth)]
            try:
                ratios["svd"].append(_checked_norm(R, depth, "svd") / bound)
            except DepthError:
                continue
        every += ratios["svd"] + ratios["polar"]
        rows.append((family, worst_of(ratios["svd"]), worst_of(ratios["polar"]), float(np.mean(ratios["polar"]))))
    total, what = per_family * len(FAMILIES), f"nine families, {per_family} each, d <= 20"
    return FamilyTrial(
        rows,
        Cases(total, worst_of(every), f"{what}, both constructions"),
        Cases(total, worst_of(falls), f"{what}, at twice and eight times the depth"),
        Cases(total, worst_of(first), f"{what}, det R > 0, polar construction", statement="corrected"),
    )


def small_sums(per_family: int, generator: Generator) -> Cases:
    """Depth times the sum of the squared Frobenius norms of the layers, against what does not depend on the depth.

    All layers of the polar construction have one Frobenius norm, and with R = Q P it is at most
    (||log Q||_F + c ||log P||_F)/depth, c = 3(e^(1/3) - 1).

    Raises:
        ArithmeticError: a product misses its target; or no map comes within a tenth of the bound.
    """
    c, ratios = 3 * math.expm1(1 / 3), []
    for family in FAMILIES:
        for case in range(per_family):
            R = sample_target(family, 1 + case % 20, generator)
            U, S, Vh = np.linalg.svd(R.numpy())
            turn = float(np.linalg.norm(np.angle(np.linalg.eigvals(U @ Vh))))
            stretch = float(np.linalg.norm(np.log(S)))
            depth = max(1, math.ceil(3 * spectral_gamma(R))) * (1, 2, 8)[case % 3]
            squares = float(_checked_layers(R, depth, "polar").square().sum())
            bound = (turn + c * stretch) ** 2
            ratios.append(depth * squares / bound if bound > 1e-20 else depth * squares)  # of the identity
    if max(ratios) < 0.9:
        raise ArithmeticError(f"the largest ratio is {max(ratios):.3g}: the bound was not put to the test")
    what = f"nine families, {per_family} each, d <= 20, at once, twice and eight times the depth"
    return Cases(len(ratios), worst_of(ratios), what, statement="sharper")


def complex_layers(R: np.ndarray, depth: int) -> np.ndarray:
    """Layers A_i (depth, d, d) of the polar construction over the complex numbers, for every invertible R (d, d)."""
    U, S, Vh = np.linalg.svd(R)
    T, Z = schur(U @ Vh, output="complex")  # of a unitary matrix T is diagonal
    angles = np.angle(np.diag(T)) / depth
    stretch = Vh.conj().T * S ** (1 / depth) @ Vh
    turned = [Z * np.exp(1j * k * angles) @ Z.conj().T for k in range(depth + 1)]
    layers = [turned[i] @ stretch @ turned[i - 1].conj().T for i in range(1, depth + 1)]
    return np.array(layers) - np.eye(len(R))


def complex_targets(n: int, generator: Generator) -> Cases:
    """Largest layer norm over (pi + 3 gamma)/depth for complex maps, and for real ones of negative determinant.

    Raises:
        ArithmeticError: a product misses its target; or no map comes within a tenth of the bound.
    """
    ratios = []
    for case in range(n):
        d = 1 + case % 6
        parts = torch.randn(2, d, d, generator=generator, dtype=torch.float64).numpy()
        R = (parts[0] + 1j * parts[1], parts[0], -np.eye(d) + 1e-3 * parts[0])[case % 3]
        if case % 3 and np.linalg.det(R).real > 0:
            R[0] = -R[0]
        gamma = float(np.abs(np.log(np.linalg.svd(R, compute_uv=False))).max())
        depth = max(1, math.ceil(3 * gamma)) + (0, 3, 12)[case // 3 % 3]
        A = complex_layers(R, depth)
        product_of_all = np.eye(d, dtype=complex)
        for layer in A:
            product_of_all = (np.eye(d) + layer) @ product_of_all
        error = np.abs(product_of_all - R).max() / np.abs(R).max()
        if not error < _RECONSTRUCTS:
            raise ArithmeticError(f"depth {depth}: the product misses R by {error:.2e}")
        ratios.append(max(float(np.linalg.norm(layer, 2)) for layer in A) * depth / (math.pi + 3 * gamma))
    if max(ratios) < 0.9:
        raise ArithmeticError(f"the largest ratio is {max(ratios):.3g}: the bound was not put to the test")
    return Cases(n, worst_of(ratios), "complex maps, and real ones with det R < 0, d <= 6")


def _checked_norm(R: Tensor, depth: int, method: str) -> float:
    return float(max_layer_norm(_checked_layers(R, depth, method)))


def _checked_layers(R: Tensor, depth: int, method: str) -> Tensor:
    A = factor_near_identity(R, depth, method)
    error = factorization_error(A, R)
    if not error < _RECONSTRUCTS:
        raise ArithmeticError(f"{method}, depth {depth}: the product misses R by {error:.2e}")
    return A


def positive_definite(n: int, generator: Generator) -> tuple[Cases, Cases]:
    """Positive definite targets, d = 1..20: ||R^(1/l) - I|| against 3 gamma/l, and against e^(gamma/l) - 1."""
    ratios, roots = [], []
    for case in range(n):
        R = sample_target("positive definite", 1 + case % 20, generator)
        gamma = spectral_gamma(R)
        depth = max(1, math.ceil(3 * gamma)) + case % 7
        norm = _checked_norm(R, depth, "polar")
        ratios.append(norm / (3 * gamma / depth))
        roots.append(norm / math.expm1(gamma / depth))
    what = "random positive definite maps, d <= 20"
    return Cases(n, worst_of(ratios), what), Cases(n, worst_of(roots), what, statement="corrected")


def orthogonal_blocks(n: int, generator: Generator) -> tuple[Cases, Cases]:
    """Real Schur forms of orthogonal matrices of both determinants, and of normal matrices, d = 1..12.

    The first number is the worst of: what lies outside the blocks; the distance of a 2 x 2 block from a rotation; 1 if
    the parity of the blocks -1 disagrees with the determinant. The second is the error of S diag(blocks) S^T.
    """
    deviations, errors = [], []
    for case in range(n):
        d, sign = 1 + case % 12, (-1) ** (case // 12)
        Q = random_rotation(d, generator)
        Q[0] *= sign
        blocks, error = _schur_blocks(Q.numpy())
        turns = [np.linalg.norm(b.T @ b - np.eye(2)) + abs(np.linalg.det(b) - 1) for b in blocks if len(b) == 2]
        minus = sum(len(b) == 1 and b[0, 0] < 0 for b in blocks)
        deviations += [error, *turns, float((-1) ** minus != sign)]
        normal = Q.mT @ _normal_blocks(d, generator)[0] @ Q
        errors.append(_schur_blocks(normal.numpy())[1])
    return (
        Cases(n, worst_of(deviations), "random orthogonal matrices, d <= 12, both determinants", statement="corrected"),
        Cases(n, worst_of(errors), "random normal matrices, d <= 12"),
    )


def _schur_blocks(matrix: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Diagonal blocks of the real Schur form, and the relative error of S diag(blocks) S^T."""
    form, S = schur(matrix, output="real")
    starts = [i for i in range(len(form)) if i == 0 or form[i, i - 1] == 0]
    blocks = [form[i:j, i:j] for i, j in zip(starts, [*starts[1:], len(form)], strict=True)]
    return blocks, float(np.linalg.norm(S @ block_diag(*blocks) @ S.T - matrix) / np.linalg.norm(matrix))


def _normal_blocks(d: int, generator: Generator, largest_angle: float = math.pi) -> tuple[Tensor, list[complex]]:
    """diag of scaled plane rotations, and a 1 x 1 block e^g if d is odd; with its eigenvalues, one of each pair."""
    blocks, values = [], []
    for _ in range(d // 2):
        u, w = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        value = math.exp(2 * w - 1) * complex(math.cos(largest_angle * u), math.sin(largest_angle * u))
        blocks.append(torch.tensor([[value.real, -value.imag], [value.imag, value.real]], dtype=torch.float64))
        values.append(value)
    if d % 2:
        value = math.exp(float(torch.randn((), generator=generator, dtype=torch.float64)))
        blocks.append(torch.tensor([[value]], dtype=torch.float64))
        values.append(complex(value))
    return torch.block_diag(*blocks), values


def normal_targets(n: int, generator: Generator) -> list[tuple[Tensor, int, float]]:
    """Normal targets without negative eigenvalues, d <= 7: R, depth, max ``|lambda^(1/depth) - 1|`` (principal)."""
    found = []
    for case in range(n):
        d, depth = 2 + case % 6, 2 + case % 9
        S = random_rotation(d, generator)
        block, values = _normal_blocks(d, generator, largest_angle=3.1)
        found.append((S @ block @ S.mT, depth, max(abs(value ** (1 / depth) - 1) for value in values)))
    return found


def normal_targets_gap(n: int, generator: Generator) -> tuple[float, float]:
    """How far the polar norm, and the lower bound, are at most from max ``|lambda^(1/depth) - 1|`` (cut off at 1)."""
    gaps, slacks = [], []
    for R, depth, exact in normal_targets(n, generator):
        gaps.append(abs(_checked_norm(R, depth, "polar") - exact))
        slacks.append(abs(min(exact, 1.0) - near_identity_lower_bound(R, depth)))
    return worst_of(gaps), worst_of(slacks)


def split_counterexample(depth: int = 5) -> Counterexample:
    """The best of all whole splits, and of all signs of singular vectors, against the bound of the first version.

    d = 6, U and V Haar-distributed, distinct singular values with gamma = 1e-5. So the decomposition U K V^T with
    falling singular values is determined up to the signs of pairs of columns, of which those count that make U and V
    rotations.
    """
    rng, d = np.random.default_rng(41), 6
    U, V = (_haar(d, rng) for _ in range(2))
    K = np.exp(np.linspace(1e-5, -1e-5, d))
    splits = [(q, p, depth - q - p) for q in range(1, depth) for p in range(1, depth - q)]
    norms = []
    for signs in product((1.0, -1.0), repeat=d):
        rotations = U * signs, (V * signs).T
        if all(np.linalg.det(rotation) > 0 for rotation in rotations):
            norms += [max(_three_factor_norms(rotations[0], K, rotations[1], split)) for split in splits]
    what = (
        f"d = 6, distinct singular values, {depth} layers: best whole split and signs against the first version's bound"
    )
    return Counterexample(min(norms), near_identity_bound((U * K) @ V.T, depth, "submission"), "<=", what)


def _haar(d: int, rng: np.random.Generator) -> np.ndarray:
    Q, R = np.linalg.qr(rng.standard_normal((d, d)))
    return Q * np.sign(np.diag(R))


def split_rounded(n: int, generator: Generator) -> Cases:
    """Layers of the three factors rounded to whole numbers, against (4 pi + 3 gamma)/depth.

    Each rotation gets q = floor(2 pi depth/(4 pi + 3 gamma)) layers, the stretch the rest. Counted where q >= 1 and the
    stretch has at least max(1, gamma) layers.
    """
    ratios, stretched = [], 0
    for case in range(n):
        R = sample_target(FAMILIES[case % len(FAMILIES)], 2 + case % 12, generator)
        U, K, Vh = np.linalg.svd(R.numpy())
        if np.linalg.det(U) < 0:
            U[:, -1], Vh[-1] = -U[:, -1], -Vh[-1]
        gamma = float(np.abs(np.log(K)).max())
        depth = max(3, math.ceil(3 * gamma)) + case % 5
        q = math.floor(2 * math.pi * depth / (4 * math.pi + 3 * gamma))
        p = depth - 2 * q
        if q >= 1 and p >= max(1, gamma):
            norms = _three_factor_norms(U, K, Vh, (q, p, q))
            ratios.append(max(norms) * depth / (4 * math.pi + 3 * gamma))
            stretched += norms[1] == max(norms)
    if not stretched:
        raise ArithmeticError("no map has its largest layer among those of the stretch: they were not tried")
    return Cases(
        len(ratios), worst_of(ratios), "nine families, d <= 13, numbers of layers rounded down", statement="corrected"
    )


def _three_factor_norms(U: np.ndarray, K: np.ndarray, Vh: np.ndarray, counts: tuple[int, int, int]) -> list[float]:
    """Layer norms of U, K and V^T when they get so many layers; 0 layers only for a trivial K."""
    q_u, p, q_v = counts
    angles = [float(np.abs(np.angle(np.linalg.eigvals(rotation))).max()) for rotation in (U, Vh)]
    stretch = float(np.abs(np.expm1(np.log(K) / p)).max()) if p else 0.0
    return [2 * math.sin(angles[0] / (2 * q_u)), stretch, 2 * math.sin(angles[1] / (2 * q_v))]


def gamma_scaling(n: int, generator: Generator) -> Cases:
    """Numerical minimum of gamma(cR) over c > 0 against half the logarithm of the condition number; d = 4."""
    errors = []
    for _ in range(n):
        U, V = random_rotation(4, generator), random_rotation(4, generator)
        decades = 1 + 7 * float(torch.rand((), generator=generator))
        R = U @ (torch.logspace(1, 1 - decades, 4, dtype=torch.float64)[:, None] * V)
        best = minimize_scalar(
            lambda c, R=R: spectral_gamma(math.exp(c) * R), bounds=(-30, 30), method="bounded", options={"xatol": 1e-10}
        )
        half = 0.5 * math.log(np.linalg.cond(R.numpy()))
        errors.append(abs(best.fun - half) / half)
    return Cases(n, worst_of(errors), "random maps, d = 4, condition numbers from 10 to 1e8")


def search_least_norm(R: Tensor, depth: int) -> tuple[float, float]:
    """Least largest layer norm that L-BFGS finds from the polar construction, and the relative error of the product.

    All layers but the last are free, the last makes the product exact; power means of growing power stand in for the
    maximum. An estimate from above of the true minimum.
    """
    R = R.detach().to("cpu", torch.float64)
    if depth == 1:
        return float(torch.linalg.matrix_norm(R - torch.eye(len(R), dtype=R.dtype), ord=2)), 0.0
    eye = torch.eye(len(R), dtype=R.dtype)
    free = factor_near_identity(R, depth)[:-1].clone().requires_grad_()

    def layers() -> Tensor:
        last = torch.linalg.solve(compose(free).mT, R.mT).mT - eye
        return torch.cat([free, last[None]])

    def loss(power: int) -> Tensor:
        free.grad = None
        norms = torch.linalg.matrix_norm(layers(), ord=2)
        largest = norms.max().detach()
        value = largest * ((norms / largest) ** power).mean() ** (1 / power)
        value.backward()
        return value

    for power in (16, 64, 256, 1024):
        optimizer = torch.optim.LBFGS([free], max_iter=150, line_search_fn="strong_wolfe", tolerance_grad=1e-12)
        optimizer.step(partial(loss, power))
    A = layers().detach()
    return float(max_layer_norm(A)), factorization_error(A, R)


def determinants_stay_positive(n: int, generator: Generator) -> float:
    """Least ratio of det(I + A) to .001^d over random A of norm .999, d = 2..6.

    Every other A is -.999 I but for 1e-3, 1e-5, 1e-7 or 1e-9 times a Gaussian matrix, brought to the norm .999 again.
    """
    found = []
    for case in range(n):
        d = 2 + case % 5
        A = torch.randn(d, d, generator=generator, dtype=torch.float64)
        if case // 5 % 2:
            A = -0.999 * torch.eye(d, dtype=torch.float64) + 10.0 ** -(3 + 2 * (case // 10 % 4)) * A
        A = 0.999 * A / torch.linalg.matrix_norm(A, ord=2)
        found.append(-float(torch.linalg.det(torch.eye(d, dtype=torch.float64) + A)) / 0.001**d)
    return -worst_of(found)
