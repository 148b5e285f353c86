"""Networks whose shortcuts span n layers, and their exact Hessians. Li et al. 2016, Sections 3 to 5.

A network of `units` units of `length` weight matrices each computes, with h_0 = x and the output h_units,

    h_r = h_(r-1) + sigma_post(W_(r,n) sigma_mid( ... sigma_mid(W_(r,1) sigma_pre(h_(r-1)))))

The loss is (1/2m) sum ||y_hat - y||^2 over m samples. Weights are a tensor (units, length, d, d) ordered from the
input, and rows and columns of a Hessian are ordered like `weights.flatten()`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import (
    ArrayLike,
    as_covariance,
    as_depth,
    as_real,
    as_samples,
    as_square,
    check_option,
    check_same_dimension,
)
from resid.errors import OptionError, ShapeError
from resid.theory.shortcut._activation import ACTIVATIONS, activate
from resid.theory.shortcut._closed_form import data_hessian, linear_hessian, places
from resid.theory.shortcut._moments import excess_and_gradient, linear_parts

POSITIONS = ("pre", "mid", "post")


@dataclass(frozen=True)
class ShortcutNetwork:
    """An n-shortcut network (Li et al. 2016, Definitions 1 and 2), or the plain network with the same weights.

    Args:
        length: weight matrices per unit, n >= 1.
        units: number of units, >= 1.
        width: d >= 1.
        activation: "linear", "relu", "tanh" or "silu" (smooth, sigma(0) = 0, sigma'(0) = 1/2).
        position: where it stands in a unit: "pre" (before the first matrix), "mid" (between matrices) or "post".
        shortcut: whether units add their input; False for the plain network.

    Raises:
        DepthError: length, units or width is no integer >= 1.
        OptionError: unknown activation or position, or an activation between the matrices of units that have one.

    Example:
        >>> network = ShortcutNetwork(length=2, units=8, width=10)
        >>> network.depth, network.n_parameters
        (16, 1600)
    """

    length: int
    units: int
    width: int
    activation: str = "linear"
    position: str = "mid"
    shortcut: bool = True

    def __post_init__(self) -> None:
        for name in ("length", "units", "width"):
            object.__setattr__(self, name, as_depth(name, getattr(self, name)))
        check_option("activation", self.activation, ACTIVATIONS)
        check_option("position", self.position, POSITIONS)
        if not isinstance(self.shortcut, bool):
            raise OptionError(f"shortcut = {self.shortcut!r}: True or False is needed")
        if self.activation != "linear" and self.position == "mid" and self.length == 1:
            raise OptionError(
                "position = 'mid' with length = 1: a unit of one matrix has no place between matrices; "
                "use 'pre' or 'post', or activation='linear'"
            )

    @property
    def depth(self) -> int:
        """Number of weight matrices."""
        return self.units * self.length

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return self.depth * self.width**2

    @isolated
    def forward(self, weights: ArrayLike, X: ArrayLike) -> Tensor:
        """Compute outputs (..., m, d); differentiable.

        Args:
            weights: (..., units, length, d, d).
            X: inputs (m, d).

        Raises:
            ShapeError: weights or inputs of another shape.
            NotFiniteError: an argument holds NaN or infinity.
        """
        W, X = self._weights(weights), self._data("X", X)
        X = X.to(W)
        where = places(self.length, self.activation, self.position)
        h = X.expand(*W.shape[:-4], *X.shape)
        for r in range(self.units):
            v = h
            for place in range(self.length + 1):
                if place in where:
                    v = activate(self.activation, v)
                if place < self.length:
                    v = v @ W[..., r, place, :, :].mT
            h = h + v if self.shortcut else v
        return h

    @isolated
    def loss(self, weights: ArrayLike, X: ArrayLike, Y: ArrayLike) -> Tensor:
        """Compute (1/2m) sum ||y_hat - y||^2, shape (...); differentiable.

        Args:
            weights: (..., units, length, d, d).
            X: inputs (m, d).
            Y: labels (m, d).

        Raises:
            ShapeError: shapes that do not fit.
            NotFiniteError: an argument holds NaN or infinity.
        """
        output = self.forward(weights, X)
        Y = self._data("Y", Y)
        if Y.shape != output.shape[-2:]:
            raise ShapeError(f"Y has shape {tuple(Y.shape)}: {tuple(output.shape[-2:])} is needed to fit X")
        return (output - Y.to(output)).square().sum((-2, -1)) / (2 * len(Y))

    @isolated
    def linear_map(self, weights: ArrayLike) -> Tensor:
        """Return the matrix (..., d, d) of a linear network; differentiable.

        Args:
            weights: (..., units, length, d, d).

        Raises:
            OptionError: the network is not linear.
            ShapeError: weights of another shape.
            NotFiniteError: `weights` holds NaN or infinity.
        """
        self._check_linear("linear_map")
        return linear_parts(self._weights(weights), self.shortcut)[2][-1]

    @isolated
    def gradient_from_moments(self, weights: ArrayLike, sigma_xx: ArrayLike, sigma_yx: ArrayLike) -> Tensor:
        """Compute the gradient of the loss of a linear network, shaped like `weights`, from the moments of the data.

        Args:
            weights: (..., units, length, d, d); leading axes are networks of their own.
            sigma_xx: (1/m) sum x x^T, (d, d).
            sigma_yx: (1/m) sum y x^T, (d, d).

        Raises:
            OptionError: the network is not linear.
            ShapeError: shapes that do not fit.
            NotFiniteError: an argument holds NaN or infinity.
            CovarianceError: `sigma_xx` is not symmetric positive semidefinite.
        """
        self._check_linear("gradient_from_moments")
        W = self._weights(weights)
        xx, yx = self._moments(sigma_xx, sigma_yx, W)
        return excess_and_gradient(W, xx, best_map(xx, yx), self.shortcut)[1]

    @isolated(grad=False)
    def hessian(self, weights: ArrayLike, X: ArrayLike, Y: ArrayLike) -> Tensor:
        """Compute the Hessian (N, N) of the loss, in closed form, N = units length d^2.

        A linear network needs the moments of the data alone. For ReLU it is the Hessian on the linear region in which
        the weights lie, as automatic differentiation gives it; where an argument of ReLU is exactly 0, as at zero
        weights, the loss has no Hessian, and the slope 0 is taken as in PyTorch.

        Args:
            weights: (units, length, d, d).
            X: inputs (m, d).
            Y: labels (m, d).

        Returns:
            (N, N), dtype and device of `weights`.

        Raises:
            ShapeError: shapes that do not fit.
            NotFiniteError: an argument holds NaN or infinity.

        Example:
            >>> network, eye = ShortcutNetwork(2, 1, 1), torch.ones(1, 1, dtype=torch.float64)
            >>> network.hessian(torch.zeros(1, 2, 1, 1, dtype=torch.float64), eye, 3 * eye)  # M = 1 - 3
            tensor([[ 0., -2.],
                    [-2.,  0.]], dtype=torch.float64)
        """
        W, X, Y = self._one(weights), self._data("X", X), self._data("Y", Y)
        if X.shape != Y.shape:
            raise ShapeError(f"Y has shape {tuple(Y.shape)}: {tuple(X.shape)} is needed to fit X")
        X, Y = X.to(W), Y.to(W)
        if self.activation == "linear":
            return linear_hessian(W, X.mT @ X / len(X), Y.mT @ X / len(X), self.shortcut)
        return data_hessian(W, X, Y, self.activation, self.position, self.shortcut)

    @isolated(grad=False)
    def hessian_from_moments(self, weights: ArrayLike, sigma_xx: ArrayLike, sigma_yx: ArrayLike) -> Tensor:
        """Compute the Hessian (N, N) of the loss of a linear network from the moments of the data.

        Args:
            weights: (units, length, d, d).
            sigma_xx: (1/m) sum x x^T, (d, d).
            sigma_yx: (1/m) sum y x^T, (d, d).

        Raises:
            OptionError: the network is not linear.
            ShapeError: shapes that do not fit.
            NotFiniteError: an argument holds NaN or infinity.
            CovarianceError: `sigma_xx` is not symmetric positive semidefinite.
        """
        self._check_linear("hessian_from_moments")
        W = self._one(weights)
        return linear_hessian(W, *self._moments(sigma_xx, sigma_yx, W), self.shortcut)

    # ------------------------------------------------------------------------------------------------------- private

    def _weights(self, weights: ArrayLike) -> Tensor:
        W = as_real("weights", weights)
        expected = (self.units, self.length, self.width, self.width)
        if W.shape[-4:] != expected:
            raise ShapeError(f"weights has shape {tuple(W.shape)}: (..., {', '.join(map(str, expected))}) is needed")
        return W

    def _one(self, weights: ArrayLike) -> Tensor:
        W = self._weights(weights).detach()
        if W.ndim != 4:
            raise ShapeError(f"weights has shape {tuple(W.shape)}: one network (units, length, d, d) is needed")
        return W

    def _data(self, name: str, data: ArrayLike) -> Tensor:
        rows = as_real(name, data)
        if rows.ndim != 2 or rows.shape[1] != self.width or not len(rows):
            raise ShapeError(f"{name} has shape {tuple(rows.shape)}: (m, {self.width}), m >= 1, is needed")
        return rows

    def _moments(self, sigma_xx: ArrayLike, sigma_yx: ArrayLike, W: Tensor) -> tuple[Tensor, Tensor]:
        yx = as_square("sigma_yx", sigma_yx)
        check_same_dimension("sigma_yx", yx, self.width, "the network")
        return as_covariance("sigma_xx", sigma_xx, self.width).to(W), yx.to(W)

    def _check_linear(self, method: str) -> None:
        if self.activation != "linear":
            raise OptionError(f"{method} needs a linear network, not activation = {self.activation!r}: use `hessian`")


@isolated
def second_moments(X: ArrayLike, Y: ArrayLike) -> tuple[Tensor, Tensor]:
    """Compute (1/m) sum x x^T and (1/m) sum y x^T, both (d, d), of data.

    Args:
        X: inputs (m, d).
        Y: labels (m, d).

    Raises:
        ShapeError: `X` and `Y` have different shapes, or no rows.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> second_moments([[1.0], [3.0]], [[2.0], [4.0]])
        (tensor([[5.]], dtype=torch.float64), tensor([[7.]], dtype=torch.float64))
    """
    X, Y = as_samples(X, Y)
    Y = Y.to(X)
    return X.mT @ X / len(X), Y.mT @ X / len(X)


@isolated
def best_map(sigma_xx: ArrayLike, sigma_yx: ArrayLike) -> Tensor:
    """Compute the matrix (d, d) of least loss, Sigma_YX Sigma_XX^+ with the pseudoinverse, from the two moments.

    Args:
        sigma_xx: (1/m) sum x x^T, (d, d).
        sigma_yx: (1/m) sum y x^T, (d, d).

    Raises:
        ShapeError: shapes that do not fit.
        NotFiniteError: an argument holds NaN or infinity.
        CovarianceError: `sigma_xx` is not symmetric positive semidefinite.

    Example:
        >>> best_map([[2.0]], [[6.0]])
        tensor([[3.]], dtype=torch.float64)
    """
    yx = as_square("sigma_yx", sigma_yx)
    xx = as_covariance("sigma_xx", sigma_xx, len(yx)).to(yx)
    return yx @ torch.linalg.pinv(xx, hermitian=True)


@isolated(grad=False)
def least_linear_loss(X: ArrayLike, Y: ArrayLike) -> float:
    """Compute the least loss (1/2m) sum ||Wx - y||^2 over all matrices W.

    Args:
        X: inputs (m, d).
        Y: labels (m, d).

    Raises:
        ShapeError: `X` and `Y` have different shapes, or no rows.
        NotFiniteError: an argument holds NaN or infinity.
    """
    xx, yx = second_moments(X, Y)
    Y = as_real("Y", Y).to(xx)
    return float(Y.square().sum() / (2 * len(Y)) - 0.5 * (best_map(xx, yx) * yx).sum())


@isolated
def balanced_hessian_spectrum(R: ArrayLike, depth: int) -> Tensor:
    """Compute the d^2 eigenvalues that need not vanish of the Hessian at a balanced minimiser with the map R.

    The network has `depth` matrices (no shortcuts, or shortcuts of length 1 with I + W for the matrices), inputs are
    whitened and R is the best map. Balanced means W_(i+1)^T W_(i+1) = W_i W_i^T. With s the singular values of R the
    eigenvalues are ``sum_i s_a^(2 (depth - i)/depth) s_b^(2 (i - 1)/depth)``, i = 1..depth, over all pairs a, b. So the
    condition number on them is (s_max/s_min)^(2 (depth - 1)/depth).

    Args:
        R: (d, d).
        depth: number of matrices, >= 1.

    Returns:
        (d^2,), ascending; where R is singular and depth >= 2, some are 0.

    Raises:
        DepthError: `depth` is no integer >= 1.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> balanced_hessian_spectrum([[4.0, 0.0], [0.0, 1.0]], depth=2)  # s_a + s_b
        tensor([2., 5., 5., 8.], dtype=torch.float64)
    """
    sizes, depth = torch.linalg.svdvals(as_square("R", R)), as_depth("depth", depth)
    share = torch.arange(depth, dtype=sizes.dtype, device=sizes.device) * (2 / depth)
    powers = sizes[:, None] ** share  # (d, depth)
    return (powers.flip(1) @ powers.mT).flatten().sort().values


@isolated(grad=False)
def orthogonal_as_shortcut(Q: ArrayLike) -> tuple[Tensor, Tensor]:
    """Write a plain linear network with orthogonal weights as a 1-shortcut network at zero; our identity.

    With U_l = Q_l ... Q_1 and W_l = Q_l + U_l V_l U_(l-1)^T the plain product W_D ... W_1 equals
    U_D (I + V_D) ... (I + V_1). So the plain network at W has the loss of the 1-shortcut network at V on labels
    U_D^T y, and because the change of variables is orthogonal, the same Hessian spectrum and the same path of gradient
    descent.

    Args:
        Q: orthogonal weights (depth, d, d), ordered from the input.

    Returns:
        U (depth + 1, d, d), the partial products U_0 = I, ..., U_D, and the turn of the labels U_D^T (d, d).

    Raises:
        ShapeError: not (depth, d, d), or not orthogonal to 1e-6.
        NotFiniteError: `Q` holds NaN or infinity.
    """
    weights = as_real("Q", Q)
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or 0 in weights.shape:
        raise ShapeError(f"Q has shape {tuple(weights.shape)}: (depth, d, d) is needed")
    eye = torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
    deviation = float((weights.mT @ weights - eye).abs().max())
    if deviation > 1e-6:
        raise ShapeError(f"Q is not orthogonal: max |Q^T Q - I| = {deviation:.3g}")
    products = [eye]
    for q in weights:
        products.append(q @ products[-1])
    return torch.stack(products), products[-1].mT
