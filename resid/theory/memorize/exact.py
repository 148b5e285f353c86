"""The constructions of `resid.theory.memorize` in rational arithmetic: the error is not small, it is zero.

Plain lists of fractions and no rounding anywhere, for samples of a few dozen points.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational

from resid._arguments import as_depth, check_option
from resid.errors import MarginError, SampleConflictError, ShapeError

Vector = list[Fraction]
Matrix = list[Vector]
#: Rows of whole numbers and fractions.
Points = Sequence[Sequence[Rational | int]]


@dataclass(frozen=True)
class ExactMemorizer:
    """A residual network with rational weights; callable on one rational point, returns r fractions.

    Args:
        first: A_0, (k, d).
        shift: (k,), added to A_0 x.
        blocks: (U, s, V) of each block h + V ReLU(U h + s).
        last: (Q, t, V) of the last block V ReLU(Q h + t).
    """

    first: Matrix
    shift: Vector
    blocks: list[tuple[Matrix, Vector, Matrix]]
    last: tuple[Matrix, Vector, Matrix]

    def __call__(self, x: Sequence[Rational | int]) -> Vector:
        """Compute the output (r,) for one point (d,)."""
        return _relu_block(self.last, self.hidden(x)[-1])

    def hidden(self, x: Sequence[Rational | int]) -> Matrix:
        """Return the hidden vector of one point (d,) before the first block and after each."""
        h = _add(_apply(self.first, _rational(x)), self.shift)
        vectors = [h]
        for block in self.blocks:
            vectors.append(_add(vectors[-1], _relu_block(block, vectors[-1])))
        return vectors


def construct_exact_memorizer(
    X: Points,
    y: Sequence[int],
    width: int,
    mode: str = "triangular",
    seed: int = 0,
    *,
    first: Points | None = None,
    surrogates: Points | None = None,
) -> ExactMemorizer:
    """Construct the network of `construct_memorizer` with rational weights.

    Args:
        X: n rational points (int, Fraction) in d dimensions.
        y: class numbers, n.
        width: dimension k of the hidden vectors.
        mode: "triangular", or "shared" with one threshold for all points.
        seed: of the projection and its shift, whole numbers from -9 to 9, drawn again if two points or the origin
            coincide.
        first: A_0 (k, d) instead, without a shift.
        surrogates: surrogate labels (r, k) instead of multiples of the first axis, which are made small enough for
            "triangular".

    Raises:
        SampleConflictError: equal points with different labels.
        MarginError: `first` does not separate the points, or the common threshold does not exist.
        ShapeError: arrays that do not fit, or numbers that are not rational.
        OptionError: unknown mode.
        DepthError: `width` is no integer >= 1.

    Source: Hardt & Ma 2016, Theorem 3.2.

    Example:
        >>> net = construct_exact_memorizer([[0, 1], [1, 1], [2, 1]], [0, 1, 0], width=1)
        >>> net([1, 1])
        [Fraction(0, 1), Fraction(1, 1)]
    """
    k = as_depth("width", width)
    check_option("mode", mode, ("triangular", "shared"))
    points, labels = _samples(X, y)
    A, shift, z = _project(points, k, seed, first)
    if mode == "triangular":
        order = sorted(range(len(z)), key=lambda i: _dot(z[i], z[i]), reverse=True)
        z, labels = [z[i] for i in order], [labels[i] for i in order]
    q = _surrogates(max(labels) + 1, k, z, surrogates)
    bias = _thresholds(z, q, mode)
    blocks = []
    for start in range(0, len(z), k):
        rows = slice(start, start + k)
        moves = [[b - a for a, b in zip(z[i], q[labels[i]], strict=True)] for i in range(len(z))[rows]]
        blocks.append(_moving(z[rows], bias[rows], moves))
    r = len(q)
    ranked = sorted(range(r), key=lambda j: _dot(q[j], q[j]), reverse=True)
    ordered = [q[j] for j in ranked]
    one_hot = [[Fraction(int(i == j)) for i in range(r)] for j in ranked]
    return ExactMemorizer(A, shift, blocks, _moving(ordered, _thresholds(ordered, [], "triangular"), one_hot))


def rational_sphere_point(t: Sequence[Rational | int]) -> Vector:
    """Return the point of the unit sphere in d + 1 dimensions that stereographic projection sends to t.

    Args:
        t: rational point (d,).

    Raises:
        ShapeError: a number is not rational.

    Example:
        >>> rational_sphere_point([1, 2])
        [Fraction(1, 3), Fraction(2, 3), Fraction(2, 3)]
    """
    t = _rational(t)
    square = _dot(t, t)
    return [2 * v / (square + 1) for v in t] + [(square - 1) / (square + 1)]


def _samples(X: Points, y: Sequence[int]) -> tuple[Matrix, list[int]]:
    points = [_rational(x) for x in X]
    if not points or len(points) != len(y) or len({len(p) for p in points}) != 1 or not points[0]:
        raise ShapeError(f"X has {len(points)} points and y {len(y)} labels: n >= 1 points of one dimension are needed")
    if any(not isinstance(label, int) or label < 0 for label in y):
        raise ShapeError("y holds something that is no class number 0, 1, 2, ...")
    seen: dict[tuple[Fraction, ...], int] = {}
    for i, point in enumerate(points):
        first = seen.setdefault(tuple(point), i)
        if y[first] != y[i]:
            raise SampleConflictError(
                f"X[{first}] and X[{i}] are the same point and y[{first}] = {y[first]}, y[{i}] = {y[i]}"
            )
    return [points[i] for i in seen.values()], [y[i] for i in seen.values()]


def _project(points: Matrix, k: int, seed: int, fixed: Points | None) -> tuple[Matrix, Vector, Matrix]:
    rng = random.Random(seed)
    for _ in range(100):
        A = [[Fraction(rng.randint(-9, 9)) for _ in points[0]] for _ in range(k)] if fixed is None else _rows(fixed)
        if len(A) != k or any(len(row) != len(points[0]) for row in A):
            raise ShapeError(f"first: ({k}, {len(points[0])}) is needed")
        shift = [Fraction(rng.randint(-9, 9)) if fixed is None else Fraction(0) for _ in range(k)]
        z = [_add(_apply(A, p), shift) for p in points]
        if len({tuple(v) for v in z} | {(Fraction(0),) * k}) == len(z) + 1:
            return A, shift, z
        if fixed is not None:
            break
    raise MarginError("the projection maps two points, or a point and the origin, to the same place")


def _surrogates(r: int, k: int, z: Matrix, fixed: Points | None) -> Matrix:
    if fixed is not None:
        q = _rows(fixed)
        if len(q) < r or any(len(row) != k for row in q):
            raise ShapeError(f"surrogates: at least {r} vectors of {k} entries are needed")
        return q
    least = min(_dot(v, v) for v in z)
    radius = Fraction(1)
    while radius * radius >= least:
        radius /= 2
    return [[radius * Fraction(r - j, r + 1)] + [Fraction(0)] * (k - 1) for j in range(r)]


def _thresholds(z: Matrix, q: Matrix, mode: str) -> Vector:
    """Minus the middle between ||z_i||^2 and what neuron i must ignore; for all points together if "shared"."""
    squares, rivals = [_dot(v, v) for v in z], []
    for i, v in enumerate(z):
        others = z[i + 1 :] if mode == "triangular" else z[:i] + z[i + 1 :]
        rivals.append(max((_dot(v, w) for w in others + q), default=Fraction(0)))
    if mode == "shared":
        squares, rivals = [min(squares)] * len(z), [max(rivals)] * len(z)
    for i, (own, rival) in enumerate(zip(squares, rivals, strict=True)):
        if own <= rival:
            raise MarginError(f"mode = {mode!r}: neuron {i} has {own} of its own and {rival} from another vector")
    return [-(own + rival) / 2 for own, rival in zip(squares, rivals, strict=True)]


def _moving(z: Matrix, bias: Vector, moves: Matrix) -> tuple[Matrix, Vector, Matrix]:
    """U, s, V with V ReLU(U z_i + s) = moves_i, by back substitution: neuron a is zero on z_b for b > a."""
    V: Matrix = [[] for _ in z]  # column a
    for a in reversed(range(len(z))):
        column = list(moves[a])
        for c in range(a + 1, len(z)):
            active = max(Fraction(0), _dot(z[c], z[a]) + bias[c])
            column = [m - active * v for m, v in zip(column, V[c], strict=True)]
        own = _dot(z[a], z[a]) + bias[a]
        V[a] = [m / own for m in column]
    return z, bias, [list(row) for row in zip(*V, strict=True)]


def _relu_block(block: tuple[Matrix, Vector, Matrix], h: Vector) -> Vector:
    U, s, V = block
    return _apply(V, [max(Fraction(0), a) for a in _add(_apply(U, h), s)])


def _apply(matrix: Matrix, vector: Vector) -> Vector:
    return [_dot(row, vector) for row in matrix]


def _add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def _dot(a: Vector, b: Vector) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _rows(points: Points) -> Matrix:
    return [_rational(row) for row in points]


def _rational(values: Sequence[Rational | int]) -> Vector:
    if any(isinstance(v, bool) or not isinstance(v, Rational) for v in values):
        raise ShapeError(f"{list(values)!r}: int and Fraction are exact, other numbers are not taken")
    return [Fraction(int(v.numerator), int(v.denominator)) for v in values]
