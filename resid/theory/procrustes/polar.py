"""The nearest matrix with orthonormal columns or rows: the unitary polar factor, by several methods.

For A = U S V^H of full rank the polar factor is U V^H = A (A^H A)^(-1/2) for at least as many rows as columns, and
(A A^H)^(-1/2) A otherwise. Work is done on the shorter side. All methods take batches of real or complex matrices and
are free of LU decompositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, check_option
from resid._precision import float32_products
from resid.errors import ConvergenceError, NotFiniteError, ShapeError

#: Quintics X -> X (a I + b G + c G^2), G = X^H X, for singular values in [1e-3, 1]; Amsel et al. 2025. Each is the odd
#: one that is nearest to 1 on the interval [l, u] which the one before leaves; for the first three, l is raised to
#: 0.0240733 u and the result scaled so that the true ends of the interval are equally far from 1. The last one repeats.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
#: Each quintic but the last is applied to X / 1.01, so that rounding cannot push a singular value out of its interval.
_SAFETY = 1.01
_MOST_STEPS = 80
#: Blocks of the binomial series, whose order is the square of their number, and its coefficients.
_MOST_BLOCKS = 5
_BINOMIAL = tuple(math.comb(2 * j, j) / 4**j for j in range(_MOST_BLOCKS**2 + 2))


@isolated
def polar_factor(A: ArrayLike, method: str = "auto") -> Tensor:
    """Compute the polar factor of each matrix: the nearest one in Frobenius norm with orthonormal columns (or rows).

    "svd": U V^H, the reference; where A lacks full rank one of the nearest is returned. "gram": A (A^H A)^(-1/2) by an
    eigendecomposition in float64. "newton-schulz": X <- X (3I - X^H X)/2 from a scaled start. "polar-express": minimax
    quintics, then the last of them until it has converged. "qdwh": dynamically weighted Halley steps by QR and Cholesky
    decompositions. "auto": a binomial series where A is close to a multiple of an isometry (so a kernel projected
    before costs little), else "gram" for oblong A of moderate condition number and "svd" for the rest; on a GPU
    "polar-express", then "svd".

    With "auto" the columns (or rows) are orthonormal to 1e-5 in float32 and 1e-10 in float64 for every A that is not
    singular, whatever its scale. How near the result is to the polar factor of A depends on the condition number: the
    rounding of the entries of A alone moves that by about eps sigma_max/sigma_min, and so far the result may be off.

    Differentiable once; the derivative is in closed form and is not harmed by equal singular values.

    Args:
        A: (..., m, n), real or complex, float32 or float64.
        method: "auto", "svd", "gram", "newton-schulz", "polar-express" or "qdwh".

    Returns:
        Shaped like `A`, same dtype and device.

    Raises:
        ShapeError: no matrices, an empty axis, or another dtype.
        NotFiniteError: `A` holds NaN or infinity.
        OptionError: unknown method.
        ConvergenceError: a method other than "svd" and "auto" ends without an isometry, because a matrix lacks full
            rank to the precision it works in; or the derivative of such a matrix is asked for.

    Source: Zaeemzadeh et al. 2018, equation (8); Higham 1997; Nakatsukasa, Bai & Gygi 2010; Amsel et al. 2025.

    Example:
        >>> polar_factor([[0.0, -2.0], [3.0, 0.0]])
        tensor([[ 0., -1.],
                [ 1.,  0.]], dtype=torch.float64)
    """
    matrix = _as_matrices(A)
    check_option("method", method, METHODS)
    if matrix.requires_grad and torch.is_grad_enabled():
        return _Polar.apply(matrix, method)
    return _polar(matrix.detach(), method)


@isolated(grad=False)
def inverse_square_root(gram: Tensor, tolerance: float, eigenvalues: bool = True) -> tuple[Tensor, Tensor]:
    """Compute G^(-1/2) of Hermitian positive definite matrices, and which are accurate, in relative terms.

    Near a multiple of the identity, a binomial series whose remainder is below the tolerance; else by eigenvalues,
    where rounding in G costs eps lambda_max/lambda_min. Where that is above the tolerance, or `eigenvalues` is False,
    the result is zero and not accurate.

    Args:
        gram: G, (..., n, n).
        tolerance: relative error that is accepted.
        eigenvalues: decompose where the series does not serve.

    Returns:
        The roots (..., n, n), and booleans (...,).
    """
    flat = gram.reshape(-1, *gram.shape[-2:])
    mean = flat.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    if bool((mean > 0).all()):
        eye = torch.eye(flat.shape[-1], dtype=flat.dtype, device=flat.device)
        off = eye - flat / mean[:, None, None]
        near = _binomial_series(off, eye, tolerance)
        if near is not None:
            root = near * mean.rsqrt()[:, None, None]
            return root.view(gram.shape), torch.ones(gram.shape[:-2], dtype=torch.bool, device=gram.device)
    if not eigenvalues:
        return torch.zeros_like(gram), torch.zeros(gram.shape[:-2], dtype=torch.bool, device=gram.device)
    values, vectors = torch.linalg.eigh(flat)
    least = torch.finfo(values.dtype).eps / tolerance * values[:, -1]
    good = (values[:, 0] > least) & (values[:, 0] > 0)
    scale = torch.where(good[:, None], values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0)
    root = (vectors * scale[:, None, :].to(vectors.dtype)) @ vectors.mH
    return root.view(gram.shape), good.view(gram.shape[:-2])


def _binomial_series(off: Tensor, eye: Tensor, tolerance: float) -> Tensor | None:
    """(I - E)^(-1/2) for Hermitian E of norm below about 1/2, to the order that the tolerance needs, or None."""
    if float(off.abs().amax()) > 0.5:  # no entry is above the norm
        return None
    powers = [eye, off, off @ off]
    # sqrt(||E^2||_F) bounds the spectral norm, and is nearer to it than ||E||_F
    size = float(torch.linalg.matrix_norm(powers[2]).amax()) ** 0.5
    for m in range(2, _MOST_BLOCKS + 1):
        if size < 1 and _BINOMIAL[m * m + 1] * size ** (m * m + 1) / (1 - size) <= tolerance:
            break
    else:
        return None
    for _ in range(m - 2):
        powers.append(powers[-1] @ off)
    # order m^2 by 2 (m - 1) products: m blocks of m terms, joined by E^m, the last block with one term more
    result = sum(_BINOMIAL[m * m - m + i] * powers[i] for i in range(m + 1))
    for block in range(m - 2, -1, -1):
        result = powers[m] @ result + sum(_BINOMIAL[m * block + i] * powers[i] for i in range(m))
    return result


# ----------------------------------------------------------------------------------------------------------- private


def _as_matrices(value: ArrayLike) -> Tensor:
    """A finite batch of dense real or complex matrices in single or double precision."""
    matrix = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value) + 0.0)
    if matrix.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise ShapeError(f"A has dtype {matrix.dtype}: single or double precision, real or complex, is needed")
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise ShapeError(f"A has shape {tuple(matrix.shape)}: matrices (..., m, n) without an empty axis are needed")
    if not bool(torch.isfinite(matrix.detach()).all()):
        raise NotFiniteError("A holds entries that are NaN or infinite: every entry must be finite")
    return matrix.resolve_conj()


def _polar(A: Tensor, method: str) -> Tensor:
    if A.shape[-2] < A.shape[-1]:  # work on tall matrices, whose Gram matrix A^H A is the small one
        return _polar(A.mH, method).mH.resolve_conj()
    flat = scaled_to_one(A.reshape(-1, *A.shape[-2:]))
    with float32_products():
        return _METHODS[method](flat).view(A.shape)


def scaled_to_one(A: Tensor) -> Tensor:
    """Scale each A[i] by a power of two, which is exact, so that its largest real or imaginary part is near 1.

    No square over- or underflows then. The polar factor does not change. Zero stays zero.
    """
    parts = torch.view_as_real(A.detach().resolve_conj()) if A.is_complex() else A.detach()
    _, exponent = torch.frexp(parts.abs().flatten(1).amax(1))
    most = math.frexp(torch.finfo(parts.dtype).max)[1] - 2
    factor = torch.ldexp(parts.new_ones(len(A)), (-exponent).clamp(-most, most))
    return A * factor.view(-1, *[1] * (A.ndim - 1))


def accuracy(A: Tensor) -> float:
    """Return the relative error that "auto" allows itself where it works through the Gram matrix, in float64."""
    return 1e-7 if A.dtype in (torch.float32, torch.complex64) else 1e-12


def prefers_gram(rows: int, columns: int) -> bool:
    """Say whether the Gram matrix is small and, for random entries, well-conditioned."""
    return max(rows, columns) >= 1.5 * min(rows, columns)


def _svd(A: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(A, full_matrices=False)
    return U @ Vh


def _by_gram(A: Tensor, eigenvalues: bool = True) -> tuple[Tensor, Tensor]:
    root, good = inverse_square_root(A.mH @ A, accuracy(A), eigenvalues=False)
    if not eigenvalues or bool(good.all()):
        return A @ root, good
    wide = A.to(torch.complex128 if A.is_complex() else torch.float64)
    root, good = inverse_square_root(wide.mH @ wide, accuracy(A))
    return (wide @ root).to(A.dtype), good


def _gram(A: Tensor) -> Tensor:
    factor, good = _by_gram(A)
    if not bool(good.all()):
        raise ConvergenceError(
            f'method = "gram": {int((~good).sum())} of {len(good)} matrices are too close to singular for the Gram '
            'matrix, whose condition number is the square; "svd" or "auto" can take them'
        )
    return factor


def _auto(A: Tensor) -> Tensor:
    if A.is_cuda:
        factor, residual = _polar_express(A)
        good = residual <= _target(A)
    else:
        factor, good = _by_gram(A, prefers_gram(*A.shape[-2:]))
    if not bool(good.all()):
        factor[~good] = _svd(A[~good])
    return factor


def _target(A: Tensor) -> float:
    """Largest residual ||X^H X - I||_F at which an iteration ends."""
    return 20 * math.sqrt(A.shape[-1]) * torch.finfo(A.dtype).eps


def _scaled(A: Tensor) -> Tensor:
    """A divided by an upper bound on its spectral norm, so that singular values are in [0, 1]; zero stays."""
    bound = (A.abs().sum(-1).amax(-1) * A.abs().sum(-2).amax(-1)).sqrt()  # sqrt(||A||_inf ||A||_1)
    bound = torch.minimum(bound, torch.linalg.matrix_norm(A))
    return A / bound.clamp_min(torch.finfo(bound.dtype).tiny)[:, None, None]


def _finish(X: Tensor, step: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Repeat X <- step(X, X^H X) until X^H X = I or the residual no longer falls; with the residuals (batch,)."""
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    for _ in range(_MOST_STEPS):
        gram = X.mH @ X
        residual = torch.linalg.matrix_norm(gram - eye)
        if bool((residual <= _target(X)).all()):
            break
        X = step(X, gram)
    else:
        residual = torch.linalg.matrix_norm(X.mH @ X - eye)
    return X, residual


def _newton_schulz(A: Tensor) -> tuple[Tensor, Tensor]:
    return _finish(_scaled(A), lambda X, gram: 1.5 * X - 0.5 * (X @ gram))


def _quintic(X: Tensor, gram: Tensor, a: float, b: float, c: float) -> Tensor:
    polynomial = b * gram + c * (gram @ gram)
    return a * X + X @ polynomial


def _polar_express(A: Tensor) -> tuple[Tensor, Tensor]:
    X = _scaled(A)
    for a, b, c in POLAR_EXPRESS[:-1]:
        X = X / _SAFETY
        X = _quintic(X, X.mH @ X, a, b, c)
    return _finish(X, lambda X, gram: _quintic(X, gram, *POLAR_EXPRESS[-1]))


def _qdwh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Nakatsukasa, Bai & Gygi 2010: X <- X (a I + b G) (I + c G)^(-1), a, b, c from a lower bound on sigma_min."""
    X = _scaled(A)
    rows, columns = X.shape[-2:]
    eye = torch.eye(columns, dtype=X.dtype, device=X.device).expand(len(X), columns, columns)
    lower = torch.finfo(X.dtype).eps
    while lower < 1 - 1e-3:
        d = (4 * (1 - lower**2) / lower**4) ** (1 / 3)
        a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - lower**2) / (lower**2 * math.sqrt(1 + d)))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        if c > 100:  # I + c G is too ill-conditioned: by QR of the two stacked
            Q, _ = torch.linalg.qr(torch.cat([math.sqrt(c) * X, eye], -2))
            X = (b / c) * X + (a - b / c) / math.sqrt(c) * (Q[:, :rows] @ Q[:, rows:].mH)
        else:
            factor = torch.linalg.cholesky(eye + c * (X.mH @ X))
            X = (b / c) * X + (a - b / c) * torch.cholesky_solve(X.mH, factor).mH
        lower = min(1.0, lower * (a + b * lower**2) / (1 + c * lower**2))
    return _finish(X, lambda X, gram: 1.5 * X - 0.5 * (X @ gram))


def _checked(name: str, iteration: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """An iteration that raises where a residual is left."""

    def method(A: Tensor) -> Tensor:
        factor, residual = iteration(A)
        if not bool((residual <= 10 * _target(A)).all()):
            raise ConvergenceError(
                f'method = "{name}": max ||X^H X - I||_F = {float(residual.max()):.3g} is left, since a matrix lacks '
                'full rank to working precision; "svd" and "auto" return one of the nearest isometries'
            )
        return factor

    return method


_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "auto": _auto,
    "svd": _svd,
    "gram": _gram,
    "newton-schulz": _checked("newton-schulz", _newton_schulz),
    "polar-express": _checked("polar-express", _polar_express),
    "qdwh": _checked("qdwh", _qdwh),
}
METHODS = tuple(_METHODS)


class _Polar(torch.autograd.Function):
    """Q = A P^(-1) has the derivative dQ = Q V K V^H + (I - Q Q^H) dA P^(-1).

    Here P = V diag(p) V^H and K_ij = (V^H (Q^H dA - dA^H Q) V)_ij / (p_i + p_j).
    The map dA -> dQ is symmetric, being the second derivative of the nuclear norm, so it is its own adjoint.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, method: str) -> Tensor:
        Q = _polar(A, method)
        ctx.save_for_backward(A, Q)
        return Q

    @staticmethod
    @torch.autograd.function.once_differentiable
    @isolated
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        A, Q = ctx.saved_tensors
        if A.shape[-2] < A.shape[-1]:
            return _derivative(A.mH, Q.mH, grad.mH).mH, None
        return _derivative(A, Q, grad), None


def _derivative(A: Tensor, Q: Tensor, dA: Tensor) -> Tensor:
    P = Q.mH @ A
    values, V = torch.linalg.eigh((P + P.mH) / 2)
    if bool((values[..., 0] <= values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1]).any()):
        raise ConvergenceError("a matrix lacks full rank, where the polar factor has no derivative")
    inner = Q.mH @ dA
    skew = V.mH @ (inner - inner.mH) @ V / (values[..., :, None] + values[..., None, :])
    outside = (dA - Q @ inner) @ (V / values[..., None, :]) @ V.mH
    return Q @ (V @ skew @ V.mH) + outside
