"""ReLU residual networks that reproduce any finite sample: Hardt & Ma 2016, Theorem 3.2 and Appendix B, repaired.

Every sample x is projected to k dimensions, z = A_0 x. Blocks h -> h + V ReLU(U h + s) then move one group of k points
after another from z to the surrogate label q of their class, and a last block turns q into the one-hot label. A neuron
looks at one half-space, which contains the point it moves and no other; the three modes differ in how the half-spaces
are found:

- "shared": <z_i, h> > t with one t for all, as in the paper. Works if max <z_i, z_j>, <z_i, q> < min ||z_i||^2.
- "neuron": <z_i, h> > t_i. Works if every ||z_i||^2 is above the inner products of its own row.
- "triangular": points by falling norm, the surrogate labels inside the smallest norm. Then <z_i, z_j> < ||z_i||^2 for
  every later point by Cauchy and Schwarz: it works for all distinct points, in every width, so that O(n + d + r^2)
  parameters are enough.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_real, check_option, check_positive
from resid.errors import DepthError, MarginError, OptionError, ShapeError
from resid.theory.memorize._blocks import (
    affine,
    as_labels,
    as_points,
    check_no_overflow,
    chunks,
    clear_origin,
    competitors,
    first_of_equal,
    moving_blocks,
    random_units,
    surrogates,
    too_close,
)

MODES = ("triangular", "shared", "neuron")
PROJECTIONS = ("gaussian", "orthogonal")
OUTPUTS = ("paper", "clipped")
#: Draws of a triangular projection, and the gap (relative to a squared norm) that ends the search for a better one.
_DRAWS, _ENOUGH = 8, 1e-8
#: Points evaluated at a time: the hidden vectors of a chunk stay in a core's cache.
_POINTS = 1 << 13


@dataclass(frozen=True)
class Memorizer:
    """A residual network x -> one-hot label; callable on (n, d), returns (n, r).

    Attributes:
        first: A_0, (k, d).
        shift: (k,), added to A_0 x.
        U: (blocks, k, k), s: (blocks, k), V: (blocks, k, k): the blocks h + V ReLU(U h + s).
        last_in: (p, k), last_bias: (p,), last_out: (r, p): the last block, with p = r neurons ("paper") or 2r
            ("clipped").
        skip: whether the last block adds the hidden vector, cut or padded with zeros to r entries.
        mode: how it was constructed.
        gap: the least relative gap between a point and what its neuron must ignore.
    """

    first: Tensor
    shift: Tensor
    U: Tensor
    s: Tensor
    V: Tensor
    last_in: Tensor
    last_bias: Tensor
    last_out: Tensor
    skip: bool
    mode: str
    gap: float

    @property
    def width(self) -> int:
        """Dimension k of the hidden vectors."""
        return len(self.first)

    @property
    def classes(self) -> int:
        """Number r of classes."""
        return len(self.last_out)

    @property
    def depth(self) -> int:
        """Number of residual blocks, the last one included."""
        return len(self.U) + 1

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of "first", "shift" (0 where it is not used), "blocks" and "last"."""
        shift = self.shift.numel() if bool((self.shift != 0).any()) else 0
        blocks = self.U.numel() + self.s.numel() + self.V.numel()
        last = self.last_in.numel() + self.last_bias.numel() + self.last_out.numel()
        return {"first": self.first.numel(), "shift": shift, "blocks": blocks, "last": last}

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        return sum(self.parameter_counts.values())

    @isolated
    def __call__(self, X: ArrayLike) -> Tensor:
        """Outputs (n, r) for points (n, d) or (n, ...), in the network's precision; no gradients are kept.

        Raises:
            ShapeError: an array has the wrong shape, or is no array of real numbers.
            NotFiniteError: an entry is NaN or infinite.
        """
        X = self._points(X)
        found = self.first.new_empty(len(X), self.classes)
        for start in range(0, len(X), _POINTS):
            rows = slice(start, start + _POINTS)
            h = affine(X[rows], self.first, self.shift)
            for U, s, V in zip(self.U, self.s, self.V, strict=True):
                h.addmm_(torch.addmm(s, h, U.mT).relu_(), V.mT)
            out = torch.addmm(self.last_bias, h, self.last_in.mT).relu_() @ self.last_out.mT
            if self.skip:
                common = min(self.width, self.classes)
                out[:, :common] += h[:, :common]
            found[rows] = out
        return found

    @isolated
    def predict(self, X: ArrayLike) -> Tensor:
        """Class numbers (n,): the largest output."""
        return self(X).argmax(1)

    @isolated
    def hidden(self, X: ArrayLike) -> Tensor:
        """Hidden vectors (blocks + 1, n, k) before the first block and after each; meant for small samples."""
        h = affine(self._points(X), self.first, self.shift)
        found = [h]
        for U, s, V in zip(self.U, self.s, self.V, strict=True):
            h = torch.addmm(h, torch.addmm(s, h, U.mT).relu_(), V.mT)
            found.append(h)
        return torch.stack(found)

    @isolated
    def error(self, X: ArrayLike, y: ArrayLike) -> float:
        """Largest entry of output minus one-hot label.

        Raises:
            ShapeError: bad points or labels.
            NotFiniteError: an entry is NaN or infinite.
        """
        X = self._points(X)
        y, _ = as_labels("y", y, len(X), self.classes)
        return float(self(X).scatter_add_(1, y.to(X.device)[:, None], -self.first.new_ones(len(X), 1)).abs().max())

    def to(self, *args: Any, **kwargs: Any) -> Memorizer:
        """The same network in another precision or on another device, arguments as for `torch.Tensor.to`."""
        moved = {
            f.name: getattr(self, f.name).to(*args, **kwargs)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def _points(self, X: ArrayLike) -> Tensor:
        X = as_points("X", X)
        if X.shape[1] != self.first.shape[1]:
            raise ShapeError(f"X has {X.shape[1]} numbers a point: the network was made for {self.first.shape[1]}")
        return X.to(self.first.device)


@isolated
def construct_memorizer(
    X: ArrayLike,
    y: ArrayLike,
    width: int,
    mode: str = "triangular",
    seed: int = 0,
    *,
    classes: int | None = None,
    projection: str = "gaussian",
    slack: float | None = None,
    output: str | None = None,
    skip: bool = False,
    shift: bool = True,
    verify: bool = True,
) -> Memorizer:
    """A residual network that maps every row of X exactly to its one-hot label (Hardt & Ma 2016, Theorem 3.2).

    "triangular" needs nothing but that equal points have equal labels. The other modes follow the paper and need the
    margins of `measure_margins` to be positive; points of norm 1 and a large width help.

    Args:
        X: (n, d) or (n, ...), real or integer.
        y: (n,), class numbers 0, 1, 2, ...
        width: dimension k >= 1 of the hidden vectors, also the number of points a block moves.
        mode: "triangular", "shared" or "neuron".
        seed: of the projection and the surrogate labels.
        classes: number r of classes, default the largest label plus one.
        projection: A_0 with entries of variance 1/k ("gaussian"), or with orthonormal columns (rows, if k < d).
        slack: with "shared", the threshold 1 - 2 slack of Lemma B.1; default the middle of the measured gap.
        output: last block with r neurons ("paper") or with 2r, ReLU(u) - ReLU(u - 1), which is flat around the
            surrogate labels and does not pass on the rounding of hidden vectors ("clipped"). Default "clipped" for
            "triangular" in width 2 and more, else "paper".
        skip: let the last block add the hidden vector, cut or padded with zeros to r entries ("paper" only).
        shift: with "triangular", move the origin into the middle of the points; else A_0 x is linear, and a point
            projected to zero is an error.
        verify: evaluate the network on X at the end.

    Returns:
        the network, float64, on the device of X.

    Raises:
        SampleConflictError: equal points with different labels.
        MarginError: the margins of "shared" or "neuron" are not positive, or points are too close to be told apart in
            float64.
        OptionError: an option is not one of those listed.
        ShapeError: an array has the wrong shape, or is no array of real numbers.
        DepthError: a count is no integer >= 1.
        NotFiniteError: an entry is NaN or infinite.
        ArithmeticError: the check at the end finds a label missed, which would be a defect of this function.

    Example:
        >>> net = construct_memorizer([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0], width=2)
        >>> net([[0.0, 0.0], [1.0, 0.0]]).round().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    X, k = as_points("X", X), _as_width(width)
    y, r = as_labels("y", y, len(X), classes)
    check_option("mode", mode, MODES)
    check_option("projection", projection, PROJECTIONS)
    output = _check_output(output, mode, k, skip)
    if slack is not None and mode != "shared":
        raise OptionError(f"slack = {slack!r} with mode = {mode!r}: only 'shared' has a common threshold")
    y = y.to(X.device)
    kept = first_of_equal(X, y)
    points, labels = (X, y) if len(kept) == len(X) else (X[kept], y[kept])
    generator = Generator().manual_seed(seed)
    build = _triangular if mode == "triangular" else _margin_based
    first, origin, z, order, q, bias, gap = build(points, r, k, mode, projection, slack, shift, generator)
    U, s, V = moving_blocks(z, q[labels[order]], bias, k)
    last_in, last_bias, last_out = _last_block(q, output, skip)
    net = Memorizer(first, origin, U, s, V, last_in, last_bias, last_out, skip, mode, gap)
    if verify:
        missed = int((net.predict(X) != y).sum())
        if missed:
            raise ArithmeticError(f"{missed} of {len(X)} labels are missed although the least gap is {gap:.3g}")
    return net


_Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]


def _triangular(
    X: Tensor, r: int, k: int, mode: str, projection: str, slack: float | None, shift: bool, generator: Generator
) -> _Parts:
    """Project, order by falling norm, put the surrogate labels inside, threshold between a point and all later ones."""
    directions = surrogates(r, k, generator).to(X.device)
    best: _Parts | None = None
    for _ in range(_DRAWS):
        first = _projection(X, k, projection, generator)
        w = affine(X, first, first.new_zeros(k))
        origin = -clear_origin(w, generator) if shift else first.new_zeros(k)
        z = affine(X, first, origin)
        check_no_overflow("X", z)
        squares = z.square().sum(1)
        order = squares.argsort(descending=True, stable=True)
        z, squares = z[order], squares[order]
        if float(squares[-1]) == 0:
            index = int(order[-1])
            raise MarginError(f"X[{index}] is projected to the origin, where no neuron can see it: use shift=True")
        q = 0.5 * squares[-1].sqrt() * directions
        rivals = competitors(z, q, later=True)
        gap = (squares - rivals) / squares
        found = first, origin, z, order, q, -(squares + rivals) / 2, float(gap.min())
        if best is None or found[-1] > best[-1]:
            best = found
            if not best[-1] > _resolution(k):
                worst = too_close(z, order, gap, mode, "equal up to rounding in every draw: scale or centre the data")
        if best[-1] >= _ENOUGH:
            break
    assert best is not None
    if not best[-1] > _resolution(k):
        raise worst
    return best


def _margin_based(
    X: Tensor, r: int, k: int, mode: str, projection: str, slack: float | None, shift: bool, generator: Generator
) -> _Parts:
    """The paper's construction: random unit surrogate labels, one threshold ("shared") or one for each neuron."""
    first = _projection(X, k, projection, generator, unit=False)
    q = random_units(r, k, generator).to(X.device)
    origin, order = first.new_zeros(k), torch.arange(len(X), device=X.device)
    z = affine(X, first, origin)
    check_no_overflow("X", z)
    if r > 1 and float(competitors(q, q[:0]).max()) > 1 - _resolution(k):
        raise MarginError(f"width = {k} has no {r} different random unit vectors for the classes: take a larger one")
    squares, rivals = z.square().sum(1), competitors(z, q)
    if mode == "shared":
        low, high = float(rivals.max()), float(squares.min())
        threshold = (low + high) / 2 if slack is None else 1 - 2 * check_positive("slack", slack)
        gap = torch.minimum(squares - threshold, threshold - rivals) * (2 / float(squares.max()))
        bias = squares.new_full((len(X),), -threshold)
    else:
        gap = (squares - rivals) / squares
        bias = -(squares + rivals) / 2
    least = float(gap.min())
    if not least > _resolution(k):
        advice = "take a larger width, projection='orthogonal' with width = d, or mode='triangular'"
        raise too_close(z, order, gap, mode, advice)
    return first, origin, z, order, q, bias, least


def _projection(X: Tensor, k: int, kind: str, generator: Generator, unit: bool = True) -> Tensor:
    """A_0 (k, d). unit: scaled so that the projected points are of the order of 1, whatever the data's units are."""
    d = X.shape[1]
    if kind == "orthogonal":
        long, short = max(k, d), min(k, d)
        Q = torch.linalg.qr(torch.randn(long, short, generator=generator, dtype=torch.float64))[0]
        matrix = Q if k >= d else Q.mT * (d / k) ** 0.5
    else:
        matrix = torch.randn(k, d, generator=generator, dtype=torch.float64) / k**0.5
    matrix = matrix.to(X.device)
    if unit:
        largest = max(float(chunk.abs().max()) for _, chunk in chunks(X))
        matrix = matrix / max(largest, 1e-290) if largest else matrix
        w = affine(X, matrix, matrix.new_zeros(k))
        spread = float((w - w.mean(0)).square().sum(1).mean().sqrt())
        matrix = matrix / spread if spread > 1e-12 else matrix
    return matrix


def _last_block(q: Tensor, output: str, skip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The block that turns surrogate labels q (r, k) into one-hot labels."""
    r, k = q.shape
    eye = torch.eye(r, dtype=q.dtype, device=q.device)
    squares = q.square().sum(1)
    if output == "clipped":
        rivals = competitors(q, q[:0]).clamp_min(-float(squares.max()))
        third = (squares - rivals) / 3
        rows = q / third[:, None]  # <rows, h> is 1 more than `low` at the far side of the middle third
        low = rivals / third + 1
        return torch.cat([rows, rows]), -torch.cat([low, low + 1]), torch.cat([eye, -eye], 1)
    targets = eye.clone()
    if skip:
        common = min(r, k)
        targets[:, :common] -= q[:, :common]
    # the triangular order serves every case: by falling norm the activations of the last block are triangular, too
    order = squares.argsort(descending=True, stable=True)
    z, labels = q[order], targets[order]
    rivals = competitors(z, z[:0], later=k == 1)
    rivals = torch.where(rivals.isinf(), torch.zeros_like(rivals), rivals)
    bias = -(z.square().sum(1) + rivals) / 2
    G = torch.relu(z @ z.mT + bias[:, None]).tril()
    return z, bias, torch.linalg.solve_triangular(G, labels.mT, upper=False, left=False)


@dataclass(frozen=True)
class Margins:
    """How far the half-spaces of the paper's construction are from failing, in the units of squared norms.

    Attributes:
        shared: min ||z_i||^2 minus the largest inner product of two different points or of a point and a surrogate
            label.
        neuron: the least difference between ||z_i||^2 and the inner products of its own row. Positive: it works.
    """

    shared: float
    neuron: float


@isolated(grad=False)
def measure_margins(z: ArrayLike, q: ArrayLike | None = None) -> Margins:
    """The margins of projected points z (n, k) and surrogate labels q (r, k), default none.

    Raises:
        ShapeError: an array has the wrong shape, or is no array of real numbers.
        NotFiniteError: an entry is NaN or infinite.

    Example:
        >>> measure_margins([[1.0, 0.0], [0.0, 2.0]])
        Margins(shared=1.0, neuron=1.0)
    """
    z = as_real("z", z)
    q = z[:0] if q is None else as_real("q", q).to(z)
    if z.ndim != 2 or 0 in z.shape or q.ndim != 2 or q.shape[1] != z.shape[1]:
        raise ShapeError(f"z has shape {tuple(z.shape)}, q {tuple(q.shape)}: (n, k) and (r, k) are needed")
    squares, rivals = z.square().sum(1), competitors(z, q)
    return Margins(float(squares.min() - rivals.max()), float((squares - rivals).min()))


@isolated
def isolating_block(alpha: ArrayLike, beta: ArrayLike, moved: ArrayLike, slack: float) -> tuple[Tensor, Tensor, Tensor]:
    """U (k, d), s (k,), V (d, k) of Lemma B.1: move the points `moved` of alpha (n, d) to beta (k, d), leave the rest.

    Rows of U are the points, s = -(1 - 2 slack), columns of V are (beta - alpha)/(||alpha||^2 - (1 - 2 slack)). True
    if all squared norms are within 1 +- slack and every moved point is at squared distance at least 6 slack from all
    others (the paper prints 3 slack, which is not enough). The conditions are not checked here.

    Raises:
        OptionError: slack is no positive number.
        ShapeError: an array has the wrong shape, or is no array of real numbers.
        NotFiniteError: an entry is NaN or infinite.

    Example:
        >>> U, s, V = isolating_block([[1.0, 0.0], [0.0, 1.0]], [[5.0, 5.0]], [0], slack=0.1)
        >>> (torch.eye(2) + (U.float() @ torch.eye(2) + s.float()[:, None]).relu().T @ V.float().T).round(decimals=5)
        tensor([[5., 5.],
                [0., 1.]])
    """
    alpha, beta = as_points("alpha", alpha), as_points("beta", beta)
    indices = torch.as_tensor(moved, dtype=torch.int64, device=alpha.device)
    if beta.shape != (len(indices), alpha.shape[1]):
        raise ShapeError(f"beta has shape {tuple(beta.shape)}: ({len(indices)}, {alpha.shape[1]}) is needed")
    threshold = 1 - 2 * check_positive("slack", slack)
    U = alpha[indices].to(torch.float64)
    scale = U.square().sum(1) - threshold
    return U, U.new_full((len(U),), -threshold), ((beta.to(U) - U) / scale[:, None]).mT


@isolated
def smallest_width(
    X: ArrayLike, mode: str, classes: int, generator: Generator, draws: int = 6, successes: int = 5
) -> int:
    """The smallest width at which a Gaussian projection gives positive margins in `successes` of `draws` draws.

    Found by doubling and bisection, that is, as if success were monotone in the width; an estimate.

    Args:
        X: (n, d).
        mode: "shared" or "neuron".
        classes: number of surrogate labels.
        generator: source of randomness.

    Raises:
        OptionError: another mode.
        ShapeError: an array has the wrong shape, or is no array of real numbers.
        NotFiniteError: an entry is NaN or infinite.
    """
    X = as_points("X", X).to(torch.float64)
    check_option("mode", mode, MODES[1:])

    def works(k: int) -> bool:
        found = 0
        for _ in range(draws):
            z = affine(X, _projection(X, k, "gaussian", generator, unit=False), X.new_zeros(k))
            found += getattr(measure_margins(z, random_units(classes, k, generator).to(z)), mode) > 0
        return found >= successes

    high = 2
    while not works(high):
        if high > 64 * len(X):
            raise MarginError(f"no width up to {high} separates the points with mode = {mode!r}")
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _as_width(width: int) -> int:
    try:
        return as_depth("width", width)
    except DepthError as error:
        raise DepthError(f"{error}: the dimension of the hidden vectors") from None


def _check_output(output: str | None, mode: str, k: int, skip: bool) -> str:
    if output is None:
        return "clipped" if mode == "triangular" and k >= 2 and not skip else "paper"
    check_option("output", output, OUTPUTS)
    if output == "clipped" and (k == 1 or skip):
        raise OptionError(f"output = 'clipped' with width = {k}, skip = {skip}: it needs width >= 2 and no skip")
    return output


def _resolution(k: int) -> float:
    """Relative gaps below this are rounding of inner products of k terms."""
    return 32 * (k + 4) * EPS
