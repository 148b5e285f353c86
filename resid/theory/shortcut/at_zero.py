"""The Hessian of shortcut networks at zero weights: Li et al. 2016, Theorem 2, with its gaps closed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_covariance, as_depth, as_real, as_samples, as_square, check_option
from resid.errors import DepthError, OptionError, ShapeError
from resid.theory.shortcut._activation import ACTIVATIONS, activate, derivatives


@isolated
def moment_difference(X: ArrayLike, Y: ArrayLike, activation: str = "linear", position: str = "mid") -> Tensor:
    """Compute M = c (1/m) sum (x - y) sigma_pre(x)^T, which decides the Hessian at zero of a 2-shortcut network.

    c is the slope of the activation at zero where it stands at "mid" or "post", and 1 otherwise. For a linear network
    M = Sigma_XX - Sigma_YX.

    Args:
        X: inputs (m, d).
        Y: labels (m, d).
        activation: "linear", "relu", "tanh" or "silu".
        position: where it stands in a unit, "pre", "mid" or "post".

    Returns:
        M, (d, d).

    Raises:
        OptionError: unknown activation or position, or ReLU at "mid" or "post": there the loss has no Hessian at zero
            (`neuron_matrices` has what there is instead).
        ShapeError: `X` and `Y` have different shapes, or no rows.
        NotFiniteError: an argument holds NaN or infinity.

    Source: Li et al. 2016, Theorem 2.

    Example:
        >>> moment_difference([[1.0], [3.0]], [[2.0], [4.0]])
        tensor([[-2.]], dtype=torch.float64)
    """
    X, Y = as_samples(X, Y)
    Y = Y.to(X)
    check_option("activation", activation, ACTIVATIONS)
    check_option("position", position, ("pre", "mid", "post"))
    if position == "pre":
        return (X - Y).mT @ activate(activation, X) / len(X)
    if activation == "relu":
        raise OptionError(
            f"activation = 'relu' with position = {position!r}: the loss has no Hessian at zero; near zero each hidden "
            "neuron has a matrix of its own, see neuron_matrices"
        )
    slope, _ = derivatives(activation, torch.zeros((), dtype=X.dtype))
    return slope * ((X - Y).mT @ X) / len(X)


@isolated
def hessian_at_zero(length: int, units: int, M: ArrayLike, sigma: ArrayLike | None = None) -> Tensor:
    """Assemble the Hessian (N, N) at zero weights of an n-shortcut network, rows ordered like `weights.flatten()`.

    length 1: blocks of Toeplitz form, B on the diagonal, A everywhere below and A^T above, for a linear network:
    ``B[ab, ce] = delta_ac sigma_be`` and ``A[ab, ce] = delta_ac sigma_be + delta_bc M_ae``.
    length 2: the same block [[0, A^T], [A, 0]] for every unit and nothing between units, with
    ``A[ik, lj] = delta_kl M_ij`` between W_2[i, k] and W_1[l, j].
    length >= 3: zero.

    Args:
        length: matrices per unit, n.
        units: number of units.
        M: (d, d), from `moment_difference`.
        sigma: (d, d), (1/m) sum x x^T for length 1; default the identity (whitened inputs).

    Raises:
        DepthError: `length` or `units` is no integer >= 1.
        ShapeError: `M` or `sigma` has the wrong shape.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.

    Source: Li et al. 2016, Theorem 2.

    Example:
        >>> hessian_at_zero(2, 1, [[3.0]])
        tensor([[0., 3.],
                [3., 0.]], dtype=torch.float64)
    """
    length, units = as_depth("length", length), as_depth("units", units)
    M = as_square("M", M)
    d = len(M)
    H = M.new_zeros(units, length, d, d, units, length, d, d)
    eye = torch.eye(d, dtype=M.dtype, device=M.device)
    if length == 2:
        A = torch.einsum("kl,ij->iklj", eye, M)
        for r in range(units):
            H[r, 1, :, :, r, 0] = A
            H[r, 0, :, :, r, 1] = A.permute(2, 3, 0, 1)
    elif length == 1:
        sigma = eye if sigma is None else as_covariance("sigma", sigma, d).to(M)
        B = torch.einsum("ac,be->abce", eye, sigma)
        A = B + torch.einsum("bc,ae->abce", eye, M)
        for r in range(units):
            H[r, 0, :, :, r, 0] = B
            for s in range(r):
                H[r, 0, :, :, s, 0] = A
                H[s, 0, :, :, r, 0] = A.permute(2, 3, 0, 1)
    n = units * length * d * d
    return H.view(n, n)


@isolated
def hessian_spectrum_at_zero(units: int, M: ArrayLike) -> Tensor:
    """Compute the eigenvalues of the Hessian at zero of a 2-shortcut network: +-sigma_i(M), each d * units times.

    One d x d singular value decomposition, whatever the depth.

    Args:
        units: number of units.
        M: (d, d), from `moment_difference`.

    Returns:
        (2 d^2 units,), ascending.

    Raises:
        DepthError: `units` is no integer >= 1.
        ShapeError: `M` is not square.
        NotFiniteError: `M` holds NaN or infinity.

    Example:
        >>> hessian_spectrum_at_zero(1, [[3.0]])
        tensor([-3.,  3.], dtype=torch.float64)
    """
    M = as_square("M", M)
    values = torch.linalg.svdvals(M).repeat_interleave(len(M) * as_depth("units", units))
    return torch.cat([-values, values.flip(0)])


@isolated(grad=False)
def length_one_growth_bound(units: int, M: ArrayLike, sigma: ArrayLike | None = None) -> float:
    """Bound the condition number at zero of a linear 1-shortcut network from below; this project's.

    lambda_max(B + (units - 1)(A + A^T)/2) / sigma_max(M), with the blocks of `hessian_at_zero`. It holds for the least
    absolute eigenvalue, and for every quantile of the absolute eigenvalues, interpolated as `condition_number` does, up
    to (floor(units/2) d^2 - 1) / (units d^2 - 1). The numerator is the largest Rayleigh quotient of a vector that is
    the same in every unit. Vectors (V, -V) on disjoint pairs of neighbouring units are mapped to norm at most
    sigma_max(M) ||(V, -V)||, and there are floor(units/2) d^2 of them.

    For d >= 2 it is at least units lambda_max(Sigma) / sigma_max(M): growth at least linear in the depth. For d = 1 it
    need not grow: y = 2x has M = -1 and the Hessian I.

    Args:
        units: number of units, >= 2.
        M: (d, d), Sigma_XX - Sigma_YX.
        sigma: (d, d), Sigma_XX; default the identity (whitened inputs).

    Raises:
        DepthError: `units` is no integer >= 2.
        OptionError: `M` is zero.
        ShapeError: `M` or `sigma` has the wrong shape.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.

    Example:
        >>> length_one_growth_bound(2, [[0.5, 0.0], [0.0, 0.5]])  # eigenvalues 1/2 four times, 3/2, 5/2 three times
        5.0
    """
    units, M = as_depth("units", units), as_square("M", M)
    d = len(M)
    largest = float(torch.linalg.matrix_norm(M, ord=2))
    if units < 2:
        raise DepthError("units = 1: the bound is about pairs of units, an integer >= 2 is needed")
    if largest == 0:
        raise OptionError("M is zero: the bound divides by its largest singular value")
    H = hessian_at_zero(1, 2, M, sigma)
    B, A = H[: d * d, : d * d], H[d * d :, : d * d]
    return float(torch.linalg.eigvalsh(B + (units - 1) * (A + A.mT) / 2)[-1]) / largest


@isolated
def neuron_matrices(W1: ArrayLike, X: ArrayLike, Y: ArrayLike) -> Tensor:
    """Compute M(w) = (1/m) sum over samples with w.x > 0 of (x - y) x^T for each row w of `W1`: (rows, d, d).

    Close to zero a 2-shortcut network with ReLU at "mid" has, for each hidden neuron with incoming weights w and
    outgoing weights v, the second-order part v^T M(w) w, and its Hessian has the eigenvalues +- the singular values of
    these matrices. Only the average of M(w) and M(-w) is the M/2 that a slope of 1/2 at zero would give.

    Args:
        W1: incoming weights (rows, d).
        X: inputs (m, d).
        Y: labels (m, d).

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
    """
    X, Y = as_samples(X, Y)
    Y = Y.to(X)
    rows = as_real("W1", W1).to(X)
    if rows.ndim != 2 or rows.shape[1] != X.shape[1]:
        raise ShapeError(f"W1 has shape {tuple(rows.shape)}: (rows, {X.shape[1]}) is needed to fit X")
    active = (X @ rows.mT > 0).to(X)  # (m, rows)
    return torch.einsum("mr,mi,mj->rij", active, X - Y, X) / len(X)


@isolated(grad=False)
def whitened_condition_bound(shares: ArrayLike) -> float:
    """Bound the condition number of a linear 2-shortcut network at zero by (1 + s) / (1 - s); this project's.

    For centred and whitened inputs and one-hot labels; s^2 is the largest eigenvalue of diag(p) - p p^T, the covariance
    of the labels, with p the shares of the classes. Then s is the most that a singular value of Sigma_YX can be, and
    M = I - Sigma_YX. Since s^2 <= min(max p, 1/2), the bound is at most 3 + 2 sqrt(2), whatever the shares.

    Args:
        shares: of the classes, (K,), at least two of them positive, with the sum 1.

    Raises:
        OptionError: other shares.
        ShapeError: no vector.
        NotFiniteError: `shares` holds NaN or infinity.

    Example:
        >>> round(whitened_condition_bound([0.9, 0.1]), 3), round(whitened_condition_bound([0.1] * 10), 3)
        (2.474, 1.925)
    """
    p = as_real("shares", shares).to("cpu", torch.float64)
    if p.ndim != 1:
        raise ShapeError(f"shares has shape {tuple(p.shape)}: a vector (K,) is needed")
    if not bool((p >= 0).all()) or int((p > 0).sum()) < 2 or abs(float(p.sum()) - 1) > 1e-6:
        raise OptionError(
            f"shares = {p.tolist()!r}: numbers >= 0 with the sum 1 are needed, at least two of them positive"
        )
    root = math.sqrt(float(torch.linalg.eigvalsh(torch.diag(p) - torch.outer(p, p))[-1]))
    return (1 + root) / (1 - root)
