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

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, check_option, check_positive
from resid.errors import DepthError, MarginError, OptionError
from resid.theory.memorize._blocks import (
    affine,
    as_labels,
    as_points,
    check_no_overflow,
    clear_origin,
    competitors,
    first_of_equal,
    moving_blocks,
    projection_matrix,
    random_units,
    surrogates,
    too_close,
)
from resid.theory.memorize.network import Memorizer

MODES = ("triangular", "shared", "neuron")
PROJECTIONS = ("gaussian", "orthogonal")
OUTPUTS = ("paper", "clipped")
#: Draws of a triangular projection, and the gap (relative to a squared norm) that ends the search for a better one.
_DRAWS, _ENOUGH = 8, 1e-8


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
    """Construct a residual network that maps every row of X exactly to its one-hot label.

    "triangular" needs nothing but that equal points have equal labels. The other modes follow the paper and need the
    margins of `measure_margins` to be positive; points of norm 1 and a large width help.

    Args:
        X: points (n, d) or (n, ...), real or integer.
        y: class numbers 0, 1, 2, ..., (n,).
        width: dimension k >= 1 of the hidden vectors, also the number of points a block moves.
        mode: "triangular", "shared" or "neuron".
        seed: of the projection and the surrogate labels.
        classes: number r of classes; default the largest label plus one.
        projection: A_0 with entries of variance 1/k ("gaussian"), or with orthonormal columns (rows, if k < d;
            "orthogonal").
        slack: with "shared", the threshold 1 - 2 slack of Lemma B.1; default the middle of the measured gap.
        output: last block with r neurons ("paper") or with 2r, ReLU(u) - ReLU(u - 1), which is flat around the
            surrogate labels and does not pass on the rounding of hidden vectors ("clipped"). Default "clipped" for
            "triangular" in width 2 and more, else "paper".
        skip: let the last block add the hidden vector, cut or padded with zeros to r entries ("paper" only).
        shift: with "triangular", move the origin into the middle of the points; else A_0 x is linear, and a point
            projected to zero is an error.
        verify: evaluate the network on X at the end.

    Returns:
        The network, float64, on the device of `X`.

    Raises:
        SampleConflictError: equal points with different labels.
        MarginError: the margins of "shared" or "neuron" are not positive, or points cannot be told apart in float64.
        OptionError: an unknown option, or `slack` or "clipped" where they have no meaning.
        DepthError: `width` is no integer >= 1.
        ShapeError: points or labels of the wrong shape.
        NotFiniteError: `X` or `y` holds NaN or infinity, or a projection overflows.
        ArithmeticError: the check at the end finds a label missed, which would be a defect of this function.

    Source: Hardt & Ma 2016, Theorem 3.2; "triangular" is this project's.

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
    different = first_of_equal(X, y)
    points, labels = (X, y) if len(different) == len(X) else (X[different], y[different])
    generator = Generator().manual_seed(seed)
    if mode == "triangular":
        layout = _triangular(points, r, k, projection, shift, generator)
    else:
        layout = _margin_based(points, r, k, mode, projection, slack, generator)
    U, s, V = moving_blocks(layout.z, layout.q[labels[layout.order]], layout.bias, k)
    last_in, last_bias, last_out = _last_block(layout.q, output, skip)
    net = Memorizer(layout.first, layout.origin, U, s, V, last_in, last_bias, last_out, skip, mode, layout.gap)
    if verify:
        missed = int((net.predict(X) != y).sum())
        if missed:
            raise ArithmeticError(f"{missed} of {len(X)} labels are missed although the least gap is {layout.gap:.3g}")
    return net


@dataclass(frozen=True)
class _Layout:
    """A_0 and its shift; projected points z in their order, surrogate labels q, biases of the neurons, least gap."""

    first: Tensor
    origin: Tensor
    z: Tensor
    order: Tensor
    q: Tensor
    bias: Tensor
    gap: float


def _triangular(X: Tensor, r: int, k: int, projection: str, shift: bool, generator: Generator) -> _Layout:
    """Project, order by falling norm, put the surrogate labels inside, threshold between a point and all later ones."""
    directions = surrogates(r, k, generator).to(X.device)
    best: _Layout | None = None
    for _ in range(_DRAWS):
        first = projection_matrix(X, k, projection, generator)
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
        if best is None or float(gap.min()) > best.gap:
            best = _Layout(first, origin, z, order, q, -(squares + rivals) / 2, float(gap.min()))
            if not best.gap > _resolution(k):
                advice = "equal up to rounding in every draw: scale or centre the data"
                worst = too_close(z, order, gap, "triangular", advice)
        if best.gap >= _ENOUGH:
            break
    assert best is not None
    if not best.gap > _resolution(k):
        raise worst
    return best


def _margin_based(
    X: Tensor, r: int, k: int, mode: str, projection: str, slack: float | None, generator: Generator
) -> _Layout:
    """The paper's construction: random unit surrogate labels, one threshold ("shared") or one for each neuron."""
    first = projection_matrix(X, k, projection, generator, unit=False)
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
    return _Layout(first, origin, z, order, q, bias, least)


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
