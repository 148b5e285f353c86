"""Trials of Zaeemzadeh et al. 2018, Section 3, equations (5) to (9) and Algorithm 1: the projection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import mpmath
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor
from torch.nn import functional as F

from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample
from resid.theory.conv_spectrum.spectrum import conv_matrix, conv_singular_values, conv_svd
from resid.theory.procrustes.orthonormal_taps import project_orthonormal_taps
from resid.theory.procrustes.polar import polar_factor
from resid.theory.procrustes.projection import norm_preserving_scale, project_norm_preserving, projection_report
from resid.theory.procrustes.released import coupled_newton_schulz, released_projection

__all__ = [
    "NewtonTrial",
    "ReleasedTrial",
    "algorithm_1",
    "border_share",
    "crop_table",
    "energy",
    "equal_singular_values",
    "isometric_kernel",
    "iteration",
    "nearest",
    "polar_is_svd",
    "quadratic",
    "released",
    "transition",
    "zero_padded",
]


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _input_gradients(kernel: Tensor, gradients: Tensor) -> Tensor:
    """What automatic differentiation sends back through a circular convolution: (m, c, n, n) from (m, d, n, n)."""
    n, k = gradients.shape[-1], kernel.shape[-1]
    x = torch.zeros(len(gradients), kernel.shape[1], n, n, dtype=kernel.dtype, requires_grad=True)
    before = (k - 1) // 2
    y = F.conv2d(F.pad(x, (before, k - 1 - before) * 2, "circular"), kernel)
    return torch.autograd.grad(y, x, gradients)[0]


def _mean_energy(gradients: Tensor) -> float:
    return float(gradients.square().sum() / len(gradients))


def _uneven_gradients(generator: Generator, count: int, d: int, n: int) -> Tensor:
    """Gradients that are larger in some directions than in others."""
    flat = _normal(generator, count, d * n * n) @ torch.diag(_normal(generator, d * n * n).exp())
    return flat.view(count, d, n, n)


_SHAPES = ((1, 1), (2, 3), (3, 2), (4, 1))


def energy(n: int, generator: Generator) -> Cases:
    """Equations (5) and (6): kernels of 1 to 3 taps, maps of 3 to 5, five gradients each, singular vectors of ours."""
    errors = []
    for case in range(n):
        k, size, (d, c) = 1 + case % 3, 3 + case // 3 % 3, _SHAPES[case // 9 % 4]
        K = _normal(generator, d, c, k, k)
        gradients = _uneven_gradients(generator, 5, d, size)
        parts = conv_svd(K, size)
        along = gradients.flatten(1) @ parts.left.flatten(1).mT
        right = float((along.square() * parts.sigma.square()).sum() / 5)
        errors.append(abs(right / _mean_energy(_input_gradients(K, gradients)) - 1))
    return Cases(n, worst_of(errors), "random kernels of 1 to 3 taps, n = 3 to 5, five uneven gradients each")


def equal_singular_values(n: int, generator: Generator) -> Cases:
    """Equation (7): kernels of n x n taps, which need no crop, their singular values set to the s of five gradients."""
    errors = []
    for case in range(n):
        size, (d, c) = 3 + case % 3, _SHAPES[case // 3 % 4]
        K = project_norm_preserving(_normal(generator, d, c, size, size), size)
        gradients = _uneven_gradients(generator, 5, d, size)
        along = gradients.flatten(1) @ conv_svd(K, size).left.flatten(1).mT
        s = math.sqrt(_mean_energy(gradients) / (float(along.square().sum()) / 5))
        wanted = s / norm_preserving_scale(c, d) * K
        errors.append(abs(_mean_energy(_input_gradients(wanted, gradients)) / _mean_energy(gradients) - 1))
    return Cases(n, worst_of(errors), "random kernels of n x n taps, n = 3 to 5, five uneven gradients each")


# ------------------------------------------------------------------------------------------------ equations (8) and (9)


def _complex(generator: Generator, *shape: int) -> Tensor:
    return torch.complex(_normal(generator, *shape), _normal(generator, *shape))


def nearest(n: int, generator: Generator) -> Cases:
    """Equation (8) for complex d x c matrices, d and c up to 5: random competitors, small moves, a search by L-BFGS."""
    ratios = []
    for case in range(n):
        d, c = 1 + case % 5, 1 + case // 5 % 5
        s = math.exp(float(_normal(generator, 1)))
        A = _complex(generator, d, c)
        own = s * polar_factor(A)
        least = float(torch.linalg.matrix_norm(A - own))
        rivals = [s * _isometry(_complex(generator, d, c)) for _ in range(3)]
        for size in (1e-1, 1e-3):
            left, right = (_complex(generator, m, m) for m in (d, c))
            turn = torch.linalg.matrix_exp(size * (left - left.mH))
            rivals.append(turn @ own @ torch.linalg.matrix_exp(size * (right - right.mH)))
        if case % 20 == 0:
            rivals.append(_search(A, s, generator))
        ratios += [least / float(torch.linalg.matrix_norm(A - rival)) for rival in rivals]
    return Cases(n, worst_of(ratios), "random complex matrices up to 5 x 5, five competitors each, a search in some")


def _isometry(A: Tensor) -> Tensor:
    """Orthonormal columns (or rows) by a QR decomposition."""
    return torch.linalg.qr(A)[0] if A.shape[0] >= A.shape[1] else torch.linalg.qr(A.mH)[0].mH


def _search(A: Tensor, s: float, generator: Generator) -> Tensor:
    """s times the isometry nearest to A that L-BFGS finds from a random start, through the QR decomposition."""
    start = _complex(generator, *A.shape)

    def candidate(x: np.ndarray) -> tuple[Tensor, Tensor]:
        flat = torch.from_numpy(x).requires_grad_()
        return flat, s * _isometry(torch.view_as_complex(flat.view(*A.shape, 2)))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        flat, rival = candidate(x)
        value = (A - rival).abs().square().sum()
        value.backward()
        assert flat.grad is not None
        return float(value.detach()), flat.grad.numpy()

    found = minimize(loss, torch.view_as_real(start).flatten().numpy(), jac=True, method="L-BFGS-B")
    return candidate(found.x)[1].detach()


def polar_is_svd(n: int, generator: Generator) -> Cases:
    """s A (A^H A)^(-1/2), by NumPy's eigenvalues, and the library's polar factor against s U V^H, d and c up to 6."""
    errors = []
    for case in range(n):
        d, c = 1 + case % 6, 1 + case // 6 % 6
        A = _complex(generator, d, c)
        U, _, Vh = np.linalg.svd(A.numpy(), full_matrices=False)
        tall = A.numpy() if d >= c else A.numpy().conj().T
        values, vectors = np.linalg.eigh(tall.conj().T @ tall)
        root = tall @ (vectors / np.sqrt(values)) @ vectors.conj().T
        both = (root if d >= c else root.conj().T, polar_factor(A).numpy())
        errors += [float(np.linalg.norm(found - U @ Vh) / np.linalg.norm(U @ Vh)) for found in both]
    return Cases(n, worst_of(errors), "random complex matrices up to 6 x 6; by the Gram matrix, and the library's")


@dataclass(frozen=True)
class NewtonTrial:
    """Outcome of `iteration`. wrong_sign: Z for A = 2I against A^(-1). divided: with the division by the norm.
    diverges: norm of Z after twelve steps for A^H A = 5.1 I."""

    wrong_sign: Counterexample
    divided: Cases
    diverges: float


def iteration(n: int, generator: Generator) -> NewtonTrial:
    """Iteration (9), for A = 2I in fractions, and divided by the Frobenius norm for condition numbers up to 100."""
    Y, Z = Fraction(4), Fraction(1)
    for _ in range(6):
        T = (3 - Z * Y) / 2
        Y, Z = Y * T, T * Z
    errors = []
    for case in range(n):
        d, c = 5 + case % 3, 2 + case % 4
        sigma = torch.logspace(0, -2 * float(torch.rand((), generator=generator)), c, dtype=torch.float64)
        U, V = (torch.linalg.qr(_complex(generator, m, c))[0] for m in (d, c))
        A = (U * sigma) @ V.mH * math.exp(float(_normal(generator, 1)))
        gram = A.mH @ A
        norm = float(torch.linalg.matrix_norm(gram))
        steps = 8 + math.ceil(math.log(math.sqrt(norm) / float(torch.linalg.svdvals(A)[-1])) / math.log(1.5))
        found = coupled_newton_schulz(gram / norm, steps)[1] / math.sqrt(norm)
        exact = (V / torch.linalg.svdvals(A)) @ V.mH
        errors.append(float(torch.linalg.matrix_norm(found - exact) / torch.linalg.matrix_norm(exact)))
    far = coupled_newton_schulz(torch.tensor([[5.1]], dtype=torch.float64), 12)[1]
    return NewtonTrial(
        Counterexample(Z, Fraction(1, 2), "==", "A = 2I: Z after six steps, and (A^H A)^(-1/2)", exact=True),
        Cases(
            n,
            worst_of(errors),
            "random A with condition numbers up to 100, Gram matrix divided by its norm",
            "corrected",
        ),
        float(far.abs()),
    )


def quadratic(n: int, generator: Generator, digits: int = 300) -> Cases:
    """Residuals ||I - Z Y||_F of iteration (9) in `digits` digits, from where they fall below 1, for six steps."""
    ratios = []
    with mpmath.workdps(digits):
        for case in range(n):
            c = 1 + case % 3
            A = mpmath.matrix((_normal(generator, c + 1, c) / 2).tolist())
            Y, Z, eye = A.T * A, mpmath.eye(c), mpmath.eye(c)
            Y = Y / (mpmath.mnorm(Y, "f") * mpmath.mpf("0.7"))  # eigenvalues below 1/0.7
            before = None
            counted = 0
            while counted < 6:
                residual = mpmath.mnorm(eye - Z * Y, "f")
                if before is not None and before < 1:
                    ratios.append(float(residual / before**2))
                    counted += 1
                before = residual
                T = (3 * eye - Z * Y) / 2
                Y, Z = Y * T, T * Z
    return Cases(n, worst_of(ratios), f"random A with up to three columns, {digits} digits, six steps each")


# ---------------------------------------------------------------------------------------------------------- Algorithm 1


def algorithm_1(n: int, generator: Generator) -> tuple[Counterexample, Cases]:
    """One application: a 3 x 3 kernel of 16 to 32 channels on n = 16, and random 1 x 1 kernels against s."""
    K = project_norm_preserving(_normal(generator, 32, 16, 3, 3), 16)
    least = projection_report(K, 16).sigma_min
    errors = []
    for case in range(n):
        d, c, relu = 1 + case % 7, 1 + case // 7 % 5, case % 2 == 0
        s = norm_preserving_scale(c, d, relu)
        W = project_norm_preserving(_normal(generator, d, c, 1, 1), 3, relu)
        values = conv_singular_values(W, 3)
        errors.append(float((values / s - 1).abs().max()))
        target = math.sqrt((2 if relu else 1) * max(d / c, 1))
        errors.append(abs(s / target - 1))
    return (
        Counterexample(least, 1.0, "==", "32 <- 16 channels, 3 x 3, n = 16: least singular value over s, and 1"),
        Cases(n, worst_of(errors), "random 1 x 1 kernels, up to 7 <- 5 channels, with and without ReLU", "corrected"),
    )


def crop_table(
    generator: Generator, layers: tuple[tuple[int, int, int], ...], repeats: tuple[int, ...]
) -> list[tuple[str, int, float, float, float]]:
    """Layer, times projected, energy lost by the last crop, least and greatest singular value over s; 3 x 3 kernels.

    Args:
        generator: of the kernels.
        layers: (d, c, n) each: outputs, inputs, size of the map.
        repeats: how often to project.
    """
    rows = []
    for d, c, n in layers:
        K = _normal(generator, d, c, 3, 3)
        for times in repeats:
            report = projection_report(project_norm_preserving(K, n, repeats=times), n)
            rows.append((f"{d} <- {c}, n = {n}", times, report.energy_lost, report.sigma_min, report.sigma_max))
    return rows


def border_share(kernel: Tensor) -> float:
    """The share of a kernel's energy that pixels in the four corners see on average, with zeros around the map.

    The middle tap, which reads the pixel itself, counts fully, the taps beside it in its row and column by half, the
    others by a quarter: so many of the four corners have them. kernel: (d, c, height, width).
    """
    energies = _tap_energies(kernel)
    by_axis = [torch.full((size,), 0.5, dtype=energies.dtype) for size in energies.shape]
    for weights in by_axis:
        weights[(len(weights) - 1) // 2] = 1
    return float(by_axis[0] @ energies @ by_axis[1])


def zero_padded(n: int, generator: Generator) -> Cases:
    """(least/largest singular value)^2 with zero padding over `border_share`, for kernels from 1 x 2 to 5 x 4 taps.

    Random ones with taps of very different size, those with orthonormal taps, and those with nearly all in the middle.
    """
    ratios = []
    for case in range(n):
        height, width = 1 + case % 5, 2 + case // 5 % 3
        d, c = 1 + int(torch.randint(4, (), generator=generator)), 1 + int(torch.randint(3, (), generator=generator))
        if case % 3 == 0:
            K = project_orthonormal_taps(_normal(generator, height * width * c, c, height, width))
        else:
            K = _normal(generator, d, c, height, width) * (2 * _normal(generator, 1, 1, height, width)).exp()
        if case % 3 == 1:
            basis = torch.linalg.qr(_normal(generator, max(c, d), min(c, d)))[0]
            K *= 10.0 ** -int(torch.randint(9, (), generator=generator))
            K[:, :, (height - 1) // 2, (width - 1) // 2] += basis if d >= c else basis.mT
        values = conv_singular_values(K, (height + case % 2, width + case // 2 % 2), padding="zeros")
        ratios.append(float(values[-1] / values[0]) ** 2 / border_share(K))
    return Cases(n, worst_of(ratios), "random kernels, orthonormal taps, nearly one tap; up to 5 x 4 taps")


def isometric_kernel(d: int, c: int, generator: Generator) -> Tensor:
    """A random 3 x 3 kernel (d, c, 3, 3), d >= c, that is norm-preserving exactly: A(w)^H A(w) = (d/c) I for all w.

    A product of a random orthogonal matrix and factors P + (I - P) z with orthogonal projections P, two for each of
    the two directions z, of which c columns are kept. Each factor is unitary where z has modulus 1.
    """
    taps = {(0, 0): torch.linalg.qr(_normal(generator, d, d))[0]}
    for step in ((1, 0), (1, 0), (0, 1), (0, 1)):
        rank = 1 + int(torch.randint(max(1, d - 1), (), generator=generator))
        basis = torch.linalg.qr(_normal(generator, d, d))[0][:, :rank]
        P = basis @ basis.mT
        grown: dict[tuple[int, int], Tensor] = {}
        for (a, b), tap in taps.items():
            for at, factor in (((a, b), P), ((a + step[0], b + step[1]), torch.eye(d, dtype=P.dtype) - P)):
                grown[at] = grown.get(at, torch.zeros(d, d, dtype=P.dtype)) + tap @ factor
        taps = grown
    kernel = torch.zeros(d, c, 3, 3, dtype=torch.float64)
    for (a, b), tap in taps.items():
        kernel[:, :, a, b] = tap[:, :c]
    return norm_preserving_scale(c, d) * kernel


@dataclass(frozen=True)
class ReleasedTrial:
    """Outcome of `released`. tap: the share of the energy in the largest tap after the released steps, and after ours.
    unchanged: exactly norm-preserving kernels come back. agrees: our projection against the released steps with the
    sign corrected. before, after, ours: energies of the nine taps."""

    tap: Counterexample
    unchanged: Cases
    agrees: float
    before: Tensor
    after: Tensor
    ours: Tensor


def released(n: int, generator: Generator, size: int = 32) -> ReleasedTrial:
    """The stem, 64 <- 3 channels of 3 x 3 taps, in float32 as released; and exactly norm-preserving 3 x 3 kernels."""
    K = torch.randn(64, 3, 3, 3, generator=generator)
    slipped, right = released_projection(K, size), released_projection(K, size, slip=False)
    ours = project_norm_preserving(K, size)
    shares = [_tap_energies(one) for one in (K, slipped, ours)]
    changes = []
    for case in range(n):
        d, c = 2 + case % 5, 1 + case // 5 % 2
        kernel = isometric_kernel(d, c, generator)
        found = project_norm_preserving(kernel, 5 + case % 4)
        changes.append(float((found - kernel).norm() / kernel.norm()))
    what = "stem, 64 <- 3 channels, n = 32: share of the energy in the largest tap, released and with the right sign"
    return ReleasedTrial(
        Counterexample(float(shares[1].max()), float(shares[2].max()), "==", what),
        Cases(n, worst_of(changes), "random norm-preserving 3 x 3 kernels, 2 to 6 outputs, n = 5 to 8", "corrected"),
        float((right - ours).abs().max() / ours.abs().max()),
        *shares,
    )


def _tap_energies(kernel: Tensor) -> Tensor:
    """Shares of the energy of the taps, (k, k)."""
    energies = kernel.square().sum((0, 1))
    return energies / energies.sum()


def transition(generator: Generator, c: int = 8, n: int = 8) -> dict[str, tuple[float, float]]:
    """Least and greatest ratio of gradient norms (output over input) over gradients of all kinds, two transitions.

    "1 x 1" from c to 2c channels with stride 2 and s = sqrt(2); "2 x 2" with stride 2. Gradients: random ones, single
    entries, and the singular vectors.
    """
    kernels = {
        "1 x 1": project_norm_preserving(_normal(generator, 2 * c, c, 1, 1), n),
        "2 x 2": project_norm_preserving(_normal(generator, 2 * c, c, 2, 2), n, stride=2),
    }
    found = {}
    for name, kernel in kernels.items():
        back = conv_matrix(kernel, n, stride=2).mT
        rows = back.shape[1]
        gradients = torch.cat([_normal(generator, rows, 20), torch.eye(rows, dtype=back.dtype)], 1)
        gradients = torch.cat([gradients, torch.linalg.svd(back).Vh.mT], 1)
        ratios = gradients.norm(dim=0) / (back @ gradients).norm(dim=0).clamp_min(1e-12 * float(gradients.norm()))
        found[name] = float(ratios.min()), float(ratios.max())
    return found
