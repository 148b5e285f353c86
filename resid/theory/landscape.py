"""The landscape of linear residual networks: y = Rx + noise fitted by (I + A_depth) ... (I + A_1) x in mean square.

Hardt & Ma 2016, Section 2 (Claim 2.3, Lemma 2.4, Theorem 2.2), with the order of the gradient and the inequality (2.3)
corrected. Throughout E = (I + A_depth) ... (I + A_1) - R, and Sigma = E[x x^T] is the second moment of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import (
    EPS,
    ArrayLike,
    as_covariance,
    as_layers,
    as_samples,
    as_square,
    as_whole,
    check_option,
    check_positive,
    check_same_dimension,
)
from resid.errors import DeterminantError, OptionError, ShapeError

__all__ = [
    "Descent",
    "augment_covariance",
    "augment_negative_determinant",
    "gradient_descent",
    "gradient_lower_bound",
    "population_risk",
    "regression_map",
    "risk_gradient",
    "smallest_nonzero_eigenvalue",
]

FORMS = ("norm", "product")


@isolated
def population_risk(A: ArrayLike, R: ArrayLike, sigma: ArrayLike) -> Tensor:
    """Compute the excess population risk f(A) - E||noise||^2 = ||E Sigma^(1/2)||_F^2 = tr(E Sigma E^T).

    Args:
        A: layers (..., depth, d, d), ordered from the input.
        R: (d, d), the linear map to learn.
        sigma: (d, d), second moment of the input; symmetric positive semidefinite, not centred.

    Returns:
        (...), the risk without the constant E||noise||^2; >= 0, zero at a global minimum. Differentiable in `A`.

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.

    Source: Hardt & Ma 2016, Claim 2.3 (whose proof prints the constant as E[x x^T]; it is E||noise||^2).

    Example:
        >>> R = torch.diag(torch.tensor([2.0, 1.0]))
        >>> float(population_risk(torch.zeros(3, 2, 2), R, torch.eye(2)))  # ||I - R||_F^2
        1.0
    """
    A, R, sigma = _arguments(A, R, sigma)
    error = _forward(A)[-1] - R
    return ((error @ sigma) * error).sum((-2, -1)).clamp_min(0)  # rounding may fall below zero for a singular sigma


@isolated
def risk_gradient(A: ArrayLike, R: ArrayLike, sigma: ArrayLike) -> Tensor:
    """Compute the gradient of `population_risk` in every layer.

    2 (W_l ... W_(i+1))^T E Sigma (W_(i-1) ... W_1)^T with W_j = I + A_j. Lemma 2.4 of Hardt & Ma 2016 prints both
    chains in reversed order; this is the order that autograd confirms. Cost: 3 depth products of (d, d) matrices.

    Args:
        A: layers (..., depth, d, d), ordered from the input.
        R: (d, d), the linear map to learn.
        sigma: (d, d), second moment of the input.

    Returns:
        Like `A`.

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.

    Example:
        >>> A = torch.zeros(2, 1, 1)
        >>> risk_gradient(A, torch.tensor([[3.0]]), torch.tensor([[1.0]])).flatten()  # 2 (1 - 3)
        tensor([-4., -4.])
    """
    return _risk_and_gradient(*_arguments(A, R, sigma))[1]


@isolated
def gradient_lower_bound(A: ArrayLike, R: ArrayLike, sigma: ArrayLike, form: str = "norm") -> Tensor:
    """Bound the squared norm of the risk gradient from below: every critical point with all ||A_i|| < 1 is global.

    form="norm": 4 depth (1 - tau)^(2 (depth - 1)) sigma_min(Sigma) f, with tau = max_i ||A_i||_2 and f the excess risk.
    form="product": 4 sum_i prod_(j != i) (1 - ||A_j||)^2 sigma_min(Sigma) f, finer, equal when all norms agree.

    A bound, tight in every dimension (equality: A_i = -tau I with the error on the smallest eigenvector of Sigma).
    sigma_min(Sigma) is the smallest nonzero eigenvalue, so that a singular Sigma is covered; f is counted on the
    directions of the nonzero eigenvalues, so that one that rounding cannot tell from zero does no harm. Where some
    ||A_j|| >= 1 the factor 1 - ||A_j|| is replaced by 0 and the bound is trivial.

    This corrects inequality (2.3) of Hardt & Ma 2016 in its first version, which has (1 - tau)^(depth - 1) and
    sigma_min(Sigma)^2; both are refuted in the chapter `linear/landscape`.

    Args:
        A: layers (..., depth, d, d), ordered from the input.
        R: (d, d), the linear map to learn.
        sigma: (d, d), second moment of the input.
        form: "norm" or "product".

    Returns:
        (...), the bound for each network.

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.
        OptionError: unknown form.

    Example:
        >>> A = -0.5 * torch.ones(4, 1, 1, dtype=torch.float64)
        >>> R, sigma = torch.tensor([[3.0]]).double(), torch.tensor([[1.0]]).double()
        >>> bool(torch.isclose(gradient_lower_bound(A, R, sigma), risk_gradient(A, R, sigma).square().sum()))
        True
    """
    check_option("form", form, FORMS)
    smallest, part = _nonzero_part(as_square("sigma", sigma))
    A, R, sigma = _arguments(A, R, sigma)
    depth = A.shape[-3]
    room = (1 - torch.linalg.matrix_norm(A, ord=2)).clamp_min(0)  # (..., depth), 1 - ||A_i||
    if form == "norm":
        chain = depth * room.amin(-1) ** (2 * (depth - 1))
    else:
        others = room[..., None, :].expand(*room.shape[:-1], depth, depth).clone()
        others.diagonal(dim1=-2, dim2=-1).fill_(1)
        chain = (others.prod(-1) ** 2).sum(-1)
    return 4 * chain * smallest * population_risk(A, R, part)


@isolated
def smallest_nonzero_eigenvalue(sigma: ArrayLike) -> float:
    """Return the smallest eigenvalue of a covariance above rounding (d eps of its dtype times the largest), or 0.

    Args:
        sigma: symmetric matrix (d, d).

    Raises:
        ShapeError: `sigma` is not square.
        NotFiniteError: `sigma` holds NaN or infinity.

    Example:
        >>> smallest_nonzero_eigenvalue(torch.diag(torch.tensor([3.0, 2.0, 0.0])))
        2.0
    """
    return _nonzero_part(as_square("sigma", sigma))[0]


def _nonzero_part(sigma: Tensor) -> tuple[float, Tensor]:
    """The smallest nonzero eigenvalue, and sigma without the directions of eigenvalues that are zero up to rounding."""
    values, vectors = torch.linalg.eigh(sigma.detach().to(torch.float64))
    nonzero = values > len(sigma) * torch.finfo(sigma.dtype).eps * float(values[-1])
    values, vectors = values[nonzero], vectors[:, nonzero]
    return (float(values[0]) if len(values) else 0.0), (vectors * values) @ vectors.mT


@isolated
def augment_negative_determinant(R: ArrayLike) -> Tensor:
    """Build diag(R, -1): the map of the augmented data x' = (x, b), y' = (y, -b), with determinant -det R > 0.

    b is a random variable independent of x (say standard normal); `augment_covariance` gives the second moment of x'.
    Hardt & Ma 2016, remark after Theorem 2.1. Gradient descent on the augmented problem must not start at exactly zero:
    diag(R, -1) is block diagonal, so are then all gradients, and nothing is gained. Noise on every entry is needed.

    Args:
        R: (d, d), det R < 0.

    Returns:
        (d + 1, d + 1), dtype and device of `R`.

    Raises:
        DeterminantError: det R >= 0, where the augmentation would make it negative.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> augment_negative_determinant(torch.tensor([[-1.0]]))
        tensor([[-1.,  0.],
                [ 0., -1.]])
    """
    matrix = as_square("R", R)
    precise = matrix.detach().to("cpu", torch.float64)
    sign, singular = float(torch.linalg.slogdet(precise).sign), torch.linalg.svdvals(precise)
    if float(singular[-1]) <= len(matrix) * EPS * float(singular[0]):
        raise DeterminantError("det R is 0 to float64 precision: only a map of negative determinant is augmented")
    if sign > 0:
        raise DeterminantError("det R is positive: only a map of negative determinant is augmented; use R as it is")
    return torch.block_diag(matrix, -torch.ones(1, 1, dtype=matrix.dtype, device=matrix.device))


@isolated
def augment_covariance(sigma: ArrayLike, variance: float = 1.0) -> Tensor:
    """Build diag(Sigma, variance): the second moment of x' = (x, b), b independent of x with mean 0 and this variance.

    Args:
        sigma: covariance (d, d).
        variance: of b, > 0.

    Returns:
        The second moment (d + 1, d + 1).

    Raises:
        CovarianceError: `sigma` is not symmetric positive semidefinite.
        OptionError: `variance` is not a finite number > 0.
        ShapeError: `sigma` is not square.
        NotFiniteError: `sigma` holds NaN or infinity.

    Example:
        >>> augment_covariance(torch.eye(1), variance=4.0)
        tensor([[1., 0.],
                [0., 4.]])
    """
    matrix = as_square("sigma", sigma)
    matrix = as_covariance("sigma", matrix, matrix.shape[0])
    corner = torch.full((1, 1), check_positive("variance", variance), dtype=matrix.dtype, device=matrix.device)
    return torch.block_diag(matrix, corner)


@isolated(grad=False)
def regression_map(X: ArrayLike, Y: ArrayLike) -> tuple[Tensor, Tensor, float]:
    """Fit the linear model y = Rx + noise to data: least squares of Y on X, without intercept.

    Args:
        X: inputs (n, d).
        Y: targets (n, d).

    Returns:
        R: (d, d), the minimiser of E||Rx - y||^2.
        sigma: (d, d), the second moment E[x x^T] = X^T X / n.
        noise: E||Rx - y||^2, the part no linear map explains, to which `population_risk` is the excess.

    Raises:
        ShapeError: the shapes differ, or n < d, or the inputs span less than d dimensions, so that R is not unique.
        NotFiniteError: the data hold NaN or infinity.

    Example:
        >>> X = torch.eye(2)
        >>> R, sigma, noise = regression_map(X, 2 * X)
        >>> R, noise
        (tensor([[2., 0.],
                [0., 2.]]), 0.0)
    """
    X, Y = as_samples(X, Y, "(n, d)")
    dtype = torch.promote_types(X.dtype, Y.dtype)
    X, Y = X.to(dtype), Y.to(X.device, dtype)
    n, d = X.shape
    rank = int(torch.linalg.matrix_rank(X))
    if rank < d:
        raise ShapeError(f"X has rank {rank} < d = {d}: R is not unique; drop the directions the data do not span")
    solution = torch.linalg.lstsq(X, Y).solution.mT
    noise = float((X @ solution.mT - Y).square().sum() / n)
    return solution, X.mT @ X / n, noise


@dataclass(frozen=True)
class Descent:
    """The result of `gradient_descent`.

    Attributes:
        A: the last layers, like the start.
        risk: (steps + 1, ...), the excess risk before the first and after every step.
        steps: (...), the step after which the risk was first <= `target`, -1 where it never was.
    """

    A: Tensor
    risk: Tensor
    steps: Tensor

    @property
    def converged(self) -> Tensor:
        """(...), whether the target was reached."""
        return self.steps >= 0


@isolated
def gradient_descent(
    A: ArrayLike, R: ArrayLike, sigma: ArrayLike, learning_rate: float, steps: int, target: float = 1e-10
) -> Descent:
    """Run plain gradient descent on `population_risk` from many starts at once, until all have reached `target`.

    Runs are independent: one that diverges becomes infinite or NaN in its own slice only, and counts as not converged.

    Args:
        A: starting layers (..., depth, d, d); leading dimensions are independent runs.
        R: (d, d), the linear map to learn.
        sigma: (d, d), second moment of the input.
        learning_rate: step size > 0.
        steps: number of steps, >= 0.
        target: excess risk that counts as solved, > 0.

    Returns:
        A `Descent`.

    Raises:
        OptionError: `learning_rate` or `target` is not positive, or `steps` is no integer >= 0.
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma` is not symmetric positive semidefinite.

    Example:
        >>> run = gradient_descent(torch.zeros(4, 1, 1), [[2.0]], [[1.0]], learning_rate=0.05, steps=100)
        >>> bool(run.converged)
        True
    """
    A, R, sigma = _arguments(A, R, sigma)
    check_positive("learning_rate", learning_rate)
    check_positive("target", target)
    count = as_whole(steps)
    if count is None or count < 0:
        raise OptionError(f"steps = {steps!r}: an integer of at least 0 is needed")
    A = A.detach()
    history, reached = [], torch.full(A.shape[:-3], -1, device=A.device)
    for step in range(count + 1):
        risk, gradient = _risk_and_gradient(A, R, sigma)
        history.append(risk)
        reached = torch.where((reached < 0) & (risk <= target), step, reached)
        if step == count or bool((reached >= 0).all()):
            break
        A = A - learning_rate * gradient
    return Descent(A=A, risk=torch.stack(history), steps=reached)


def _arguments(A: ArrayLike, R: ArrayLike, sigma: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    A, R = as_layers("A", A), as_square("R", R)
    d = A.shape[-1]
    check_same_dimension("R", R, d, "A")
    return A, R.to(A), as_covariance("sigma", sigma, d).to(A)


def _forward(A: Tensor) -> list[Tensor]:
    """[I, W_1, W_2 W_1, ..., W_depth ... W_1], each (..., d, d)."""
    products = [torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(*A.shape[:-3], -1, -1)]
    for i in range(A.shape[-3]):
        products.append(products[-1] + A[..., i, :, :] @ products[-1])
    return products


def _risk_and_gradient(A: Tensor, R: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The risk and its gradient from one forward and one backward pass."""
    products = _forward(A)
    error = products[-1] - R
    weighted = error @ sigma
    back = 2 * weighted  # (W_depth ... W_(i+1))^T 2 E Sigma, from the last layer to the first
    gradient = torch.empty_like(A)
    for i in reversed(range(A.shape[-3])):
        gradient[..., i, :, :] = back @ products[i].mT
        back = back + A[..., i, :, :].mT @ back
    return (weighted * error).sum((-2, -1)).clamp_min(0), gradient
