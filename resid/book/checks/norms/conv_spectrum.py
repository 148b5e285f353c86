"""Trials of Zaeemzadeh et al. 2018, Theorem 3 and how Section 3 uses it: spectra of convolutions.

Matrices are built here a second time, entry by entry, and frequencies are taken with NumPy's FFT.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import sympy as sp
import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.conv_spectrum.spectrum import conv_matrix, conv_singular_values, zero_padding_bound

__all__ = [
    "PaddingTrial",
    "StrideTrial",
    "aliased_singular_values",
    "block_diagonal_difference",
    "circular_matrix",
    "formula_singular_values",
    "isometry_transfers",
    "padding",
    "strides",
    "theorem_3",
]


def circular_matrix(kernel: Tensor, n: int, stride: int = 1) -> np.ndarray:
    """The matrix (d m^2, c n^2) of y[P] = sum over t of K[t] x[(stride P + t - (k - 1)//2) mod n], entry by entry."""
    K = kernel.numpy()
    d, c, k, _ = K.shape
    m, before = -(-n // stride), (k - 1) // 2
    matrix = np.zeros((d, m, m, c, n, n))
    for P, Q, s, t in itertools.product(range(m), range(m), range(k), range(k)):
        matrix[:, P, Q, :, (stride * P + s - before) % n, (stride * Q + t - before) % n] += K[:, :, s, t]
    return matrix.reshape(d * m * m, c * n * n)


def formula_singular_values(kernel: Tensor, n: int) -> np.ndarray:
    """Theorem 3 as printed, descending: the n^2 matrices of the slices' transforms, every frequency by itself."""
    folded = np.zeros((*kernel.shape[:2], n, n))
    for s, t in itertools.product(*map(range, kernel.shape[2:])):
        folded[:, :, s % n, t % n] += kernel[:, :, s, t].numpy()
    A = np.fft.fft2(folded).transpose(2, 3, 0, 1)
    return np.sort(np.linalg.svd(A, compute_uv=False).ravel())[::-1]


def aliased_singular_values(kernel: Tensor, n: int, stride: int) -> np.ndarray:
    """The correction for strides, descending: the (n/s)^2 matrices (1/s) [A(p + i n/s, q + j n/s)] of d x c s^2."""
    m = n // stride
    A = np.fft.fft2(kernel.numpy(), (n, n)).transpose(2, 3, 0, 1)
    blocks = [A[i * m : (i + 1) * m, j * m : (j + 1) * m] for i in range(stride) for j in range(stride)]
    return np.sort(np.linalg.svd(np.concatenate(blocks, 3) / stride, compute_uv=False).ravel())[::-1]


def _kernel(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _gap(found: np.ndarray | Tensor, exact: np.ndarray) -> float:
    """Largest difference of two lists of singular values relative to the largest; infinite if they differ in length."""
    values = np.asarray(found)
    return float(np.abs(values - exact).max() / exact[0]) if values.shape == exact.shape else float("inf")


def theorem_3(n: int, generator: Generator) -> Cases:
    """Printed formula and library against the explicit matrix: kernels of 1 to 5 taps, c and d up to 4, n 5 to 8."""
    gaps = []
    for case in range(n):
        k, size = 1 + case % 5, 5 + case // 5 % 4
        d, c = ((1, 3), (2, 2), (4, 2), (3, 1), (2, 3))[case // 20 % 5]
        K = _kernel(generator, d, c, k, k)
        exact = np.linalg.svd(circular_matrix(K, size), compute_uv=False)
        gaps += [_gap(formula_singular_values(K, size), exact), _gap(conv_singular_values(K, size), exact)]
    return Cases(n, worst_of(gaps), "random kernels, k = 1 to 5, n = 5 to 8, c and d up to 4; formula and library")


@dataclass(frozen=True)
class PaddingTrial:
    """Outcome of `padding`. smallest: the spectrum of a zero-padded map is not the formula's. compression: the zero-
    padded map is a part of the circular one on the larger torus. bound: worst ratio of its largest singular value to
    that of the torus. rows: n, smallest and largest singular value with zero padding, and by the formula."""

    smallest: Counterexample
    compression: Cases
    bound: float
    rows: list[tuple[int, float, float, float, float]]


def padding(n: int, generator: Generator, sizes: tuple[int, ...] = (6, 10, 14)) -> PaddingTrial:
    """Zero padding: one 3 x 3 kernel of two channels at growing n, and the compression for kernels of 2 to 5 taps."""
    K = _kernel(generator, 2, 2, 3, 3)
    rows = []
    for size in sizes:
        zero, formula = conv_singular_values(K, size, padding="zeros"), formula_singular_values(K, size)
        rows.append((size, float(zero[-1]), float(zero[0]), float(formula[-1]), float(formula[0])))
    against = Counterexample(
        rows[-1][1], rows[-1][3], "==", f"smallest singular value, 3 x 3, two channels, n = {sizes[-1]}, zeros, formula"
    )
    errors, bounds = [], []
    for case in range(n):
        k, size = 2 + case % 4, 3 + case // 4 % 4
        d, c = ((1, 2), (2, 2), (3, 1))[case // 16 % 3]
        K = _kernel(generator, d, c, k, k)
        torus = size + k - 1
        whole = circular_matrix(K, torus).reshape(d, torus, torus, c, torus, torus)
        part = whole[:, :size, :size, :, :size, :size].reshape(d * size**2, c * size**2)
        matrix = conv_matrix(K, size, padding="zeros").numpy()
        errors.append(float(np.abs(matrix - part).max() / np.abs(part).max()))
        bounds.append(float(conv_singular_values(K, size, padding="zeros")[0]) / zero_padding_bound(K, size))
    what = "random kernels, k = 2 to 5, n = 3 to 6: zero-padded matrix against rows and columns of the torus"
    return PaddingTrial(against, Cases(n, worst_of(errors), what, "corrected"), worst_of(bounds), rows)


@dataclass(frozen=True)
class StrideTrial:
    """Outcome of `strides`. largest: Theorem 3 at the output size for a 3 x 3 kernel with stride 2. copies: the sum of
    squares that it gives at the input size. aliased: the corrected formula, and the library, against the matrix.
    pointwise: largest gap for 1 x 1 kernels between sigma(W) and the matrix."""

    largest: Counterexample
    copies: Counterexample
    aliased: Cases
    pointwise: float


def strides(n: int, generator: Generator) -> StrideTrial:
    """Strides 2 and 3: kernels of 1 to 5 taps, c and d from 1 to 3."""
    gaps = []
    for case in range(n):
        k, stride = 1 + case % 5, 2 + case // 5 % 2
        size = stride * (1 + -(-k // stride) + case // 10 % 2)
        d, c = ((1, 2), (2, 1), (3, 2))[case // 20 % 3]
        K = _kernel(generator, d, c, k, k)
        exact = np.linalg.svd(circular_matrix(K, size, stride), compute_uv=False)
        gaps += [
            _gap(aliased_singular_values(K, size, stride), exact),
            _gap(conv_singular_values(K, size, stride), exact),
        ]
    K = _kernel(generator, 2, 2, 3, 3)
    exact = np.linalg.svd(circular_matrix(K, 8, 2), compute_uv=False)
    output, whole = formula_singular_values(K, 4), formula_singular_values(K, 8)
    what = "3 x 3 kernel, two channels, stride 2, n = 8:"
    W = _kernel(generator, 3, 2, 1, 1)
    pointwise = np.linalg.svd(circular_matrix(W, 6, 2), compute_uv=False)
    own = np.repeat(np.linalg.svd(W[..., 0, 0].numpy(), compute_uv=False), 9)
    return StrideTrial(
        Counterexample(output[0], exact[0], "==", f"{what} largest singular value, Theorem 3 with n = 4, exact"),
        Counterexample(
            float((whole**2).sum()),
            float((exact**2).sum()),
            "==",
            f"{what} sum of squares, Theorem 3 with n = 8, exact",
        ),
        Cases(n, worst_of(gaps), "random kernels, k = 1 to 5, strides 2 and 3; formula and library", "corrected"),
        float(np.abs(pointwise[: len(own)] - own).max()),
    )


def block_diagonal_difference(n: int = 4, k: int = 3, c: int = 2, d: int = 1) -> sp.Matrix:
    """One dimension, symbols for all taps: (F (x) I_d) M (F (x) I_c)^H minus the blocks sum_t K[t] e^(i w t): zero.

    F is the unitary Fourier matrix, so that M has the singular values of the blocks. Exact for n = 1, 2 or 4, where the
    roots of unity are Gaussian integers.

    Example:
        >>> block_diagonal_difference(n=2, k=2, c=1) == sp.zeros(2)
        True
    """
    taps = [sp.Matrix(d, c, sp.symbols(f"k{t}_:{d * c}")) for t in range(k)]
    root = sp.exp(-2 * sp.pi * sp.I / n)
    F = sp.Matrix(n, n, lambda p, x: root ** (p * x) / sp.sqrt(n))
    matrix = sp.zeros(n * d, n * c)
    for P, t in itertools.product(range(n), range(k)):
        x = (P + t) % n
        matrix[P * d : (P + 1) * d, x * c : (x + 1) * c] += taps[t]
    blocks = sp.diag(*(sum((taps[t] * root ** (-p * t) for t in range(k)), sp.zeros(d, c)) for p in range(n)))
    left, right = (sp.kronecker_product(F, sp.eye(size)) for size in (d, c))
    return sp.Matrix(left * matrix * right.H - blocks).applyfunc(lambda z: sp.expand(sp.simplify(z)))


def isometry_transfers(kernel: Tensor, sizes: tuple[int, ...]) -> list[tuple[int, float, float]]:
    """n, least and largest singular value of a kernel on grids of several sizes."""
    found = []
    for size in sizes:
        values = conv_singular_values(kernel, size)
        found.append((size, float(values[-1]), float(values[0])))
    return found
