"""Computer algebra on linear networks: each function returns a difference that must be exactly zero."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

__all__ = ["chain", "risk_identity", "symmetric", "zero_hessians"]


def symmetric(name: str, d: int) -> sp.Matrix:
    """A general symmetric (d, d) matrix of symbols."""
    return sp.Matrix(d, d, lambda i, j: sp.Symbol(f"{name}{min(i, j)}{max(i, j)}"))


def chain(factors: Sequence[sp.Matrix], d: int = 2) -> sp.Matrix:
    """factors[-1] ... factors[0], the identity if there are none; so the first factor acts first.

    Example:
        >>> a, b = sp.Matrix([[1, 1], [0, 1]]), sp.Matrix([[1, 0], [1, 1]])
        >>> chain([a, b]) == b * a
        True
    """
    return sp.prod(reversed(factors), start=sp.eye(d))


def risk_identity(d: int = 3) -> sp.Expr:
    """E||Ex - xi||^2 - ||E Sigma^(1/2)||_F^2 - E||xi||^2 for a general error, second moment and noise: zero.

    The square is expanded and every product of two variables replaced by its expectation; those of x and xi are zero.

    Source: Hardt & Ma 2016, Claim 2.3.
    """
    E = sp.Matrix(d, d, sp.symbols(f"e:{d * d}"))
    x, xi = (sp.Matrix(sp.symbols(f"{name}:{d}")) for name in ("x", "xi"))
    root, noise = symmetric("h", d), symmetric("n", d)  # root = Sigma^(1/2)
    moments = sp.diag(root * root, noise)  # second moment of the stacked vector (x, xi)
    squared = sp.Poly(sp.expand((E * x - xi).dot(E * x - xi)), *x, *xi)
    expectation = sp.Integer(0)
    for powers, coefficient in squared.terms():
        i, j = (k for k, power in enumerate(powers) for _ in range(power))
        expectation += coefficient * moments[i, j]
    frobenius = sum(entry**2 for entry in E * root)
    return sp.expand(expectation - frobenius - noise.trace())


def zero_hessians() -> tuple[sp.Expr, sp.Matrix]:
    """The Hessian at W = 0 of ||(W_l ... W_1 - R) Sigma^(1/2)||_F^2, d = 2, depth 2 and 3, general R and Sigma.

    Returns:
        Depth 2: its characteristic polynomial minus that with the roots +-2 sigma_j(R Sigma), each twice. Depth 3: the
        Hessian itself. Both are zero.

    Raises:
        ArithmeticError: the gradient at W = 0 is not zero.
    """
    R, sigma, s = sp.Matrix(2, 2, sp.symbols("r:4")), symmetric("s", 2), sp.Symbol("s")
    found = []
    for depth in (2, 3):
        W = [sp.Matrix(2, 2, sp.symbols(f"w{i}_:4")) for i in range(depth)]
        error = chain(W) - R
        risk = (error * sigma * error.T).trace()
        weights = [entry for layer in W for entry in layer]
        at_zero = dict.fromkeys(weights, 0)
        if any(sp.diff(risk, w).subs(at_zero) != 0 for w in weights):
            raise ArithmeticError(f"depth {depth}: zero weights are not critical")
        found.append(sp.hessian(risk, weights).subs(at_zero))
    four = 4 * (R * sigma).T * (R * sigma)
    wanted = (s**4 - s**2 * four.trace() + four.det()) ** 2
    return sp.expand(found[0].charpoly(s).as_expr() - wanted), found[1]
