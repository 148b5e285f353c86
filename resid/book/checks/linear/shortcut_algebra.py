"""Computer algebra on shortcut networks at zero weights: each function returns a difference that must be exactly zero.

A second derivative at zero is known once the loss is known on the plane of the two weights, so every pair of weights is
treated by itself, with all others zero. The loss is a mean over samples and the formulas are means too, so one general
sample is enough. Activations enter by their Taylor polynomials of second order, with symbols for coefficients: before
the first matrix around each entry of x, elsewhere around 0, where they vanish.
"""

from __future__ import annotations

import sympy as sp

__all__ = ["spectrum_of_block", "zero_hessian_difference"]


class _Sample:
    """One general sample (x, y) and general activations, as symbols."""

    def __init__(self, d: int) -> None:
        self.d = d
        self.x, self.y = sp.symbols(f"x:{d}"), sp.symbols(f"y:{d}")
        self.value, self.slope, self.bend = (sp.symbols(f"{name}:{d}") for name in ("p", "dp", "ddp"))
        self.mid, self.post = sp.symbols("m1 m2"), sp.symbols("q1 q2")

    def pre(self, h: list[sp.Expr]) -> list[sp.Expr]:
        """sigma_pre(h), with h = x + u."""
        u = [h[i] - self.x[i] for i in range(self.d)]
        return [self.value[i] + self.slope[i] * u[i] + self.bend[i] * u[i] ** 2 / 2 for i in range(self.d)]

    def loss(self, weights: dict[tuple[int, int, int, int], sp.Symbol], length: int, units: int) -> sp.Expr:
        """(1/2) ||y_hat - y||^2 where all weights (unit, layer, row, column) but the given ones are zero."""
        h: list[sp.Expr] = list(self.x)
        for r in range(units):
            v = self.pre(h)
            for layer in range(length):
                if layer:
                    v = [_jet(self.mid, z) for z in v]
                matrix = sp.zeros(self.d)
                for (unit, place, row, column), symbol in weights.items():
                    if (unit, place) == (r, layer):
                        matrix[row, column] = symbol
                v = list(matrix * sp.Matrix(v))
            h = [h[i] + _jet(self.post, v[i]) for i in range(self.d)]
        return sum((h[i] - self.y[i]) ** 2 for i in range(self.d)) / 2


def _jet(coefficients: tuple[sp.Symbol, sp.Symbol], z: sp.Expr) -> sp.Expr:
    return coefficients[0] * z + coefficients[1] * z**2 / 2


def _formula(sample: _Sample, length: int, one: tuple[int, ...], two: tuple[int, ...]) -> sp.Expr:
    """Theorem 2 for the weights one = (unit, layer, row, column) and two, with one not before two in the network."""
    (r, k, a, b), (s, m, c, e) = one, two
    gap = [sample.x[i] - sample.y[i] for i in range(sample.d)]
    p, q = sample.value, sample.post
    if length == 2:
        return q[0] * sample.mid[0] * gap[a] * p[e] if r == s and (k, m) == (1, 0) and b == c else sp.Integer(0)
    if length > 2:
        return sp.Integer(0)
    if r == s:
        return (q[0] ** 2 + q[1] * gap[a]) * p[b] * p[e] if a == c else sp.Integer(0)
    first = p[b] * p[e] if a == c else 0
    return q[0] ** 2 * (first + (gap[a] * sample.slope[b] * p[e] if b == c else 0))


def zero_hessian_difference(length: int, units: int, d: int = 2) -> sp.Matrix:
    """Hessian at zero minus the formula of Theorem 2, (N, N), for one general sample and general activations: zero.

    Source: Li et al. 2016, Theorem 2.

    Example:
        >>> zero_hessian_difference(2, 2, d=1) == sp.zeros(4)
        True
    """
    sample = _Sample(d)
    entries = [(r, layer, i, j) for r in range(units) for layer in range(length) for i in range(d) for j in range(d)]
    difference = sp.zeros(len(entries))
    one, two = sp.symbols("w1 w2")
    for i, late in enumerate(entries):
        for j, early in enumerate(entries[: i + 1]):
            loss = sample.loss({early: two, late: one}, length, units)
            other = one if early == late else two
            second = sp.diff(loss, one, other).subs({one: 0, two: 0})
            difference[i, j] = difference[j, i] = sp.expand(second - _formula(sample, length, late, early))
    return difference


def spectrum_of_block(d: int = 2) -> sp.Expr:
    """Characteristic polynomial of one unit's block for length 2 minus prod_i (s^2 - sigma_i(M)^2)^d, general M: zero.

    Source: Li et al. 2016, Theorem 2, part 2, and the text after it.
    """
    M, s = sp.Matrix(d, d, sp.symbols(f"m:{d * d}")), sp.Symbol("s")
    A = sp.Matrix(d * d, d * d, lambda row, column: M[row // d, column % d] if row % d == column // d else 0)
    block = sp.BlockMatrix([[sp.zeros(d * d), A.T], [A, sp.zeros(d * d)]]).as_explicit()
    squares = (s**2 * sp.eye(d) - M.T * M).det()
    return sp.expand(block.charpoly(s).as_expr() - squares**d)
