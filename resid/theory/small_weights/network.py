"""Memorising a finite sample with layers of size O(1/sqrt(R)): Li et al. 2016, Theorem 1 and its two lemmas.

The network is that of their equation (3): R units h -> h + W2 ReLU(W1 h + b). What this project adds: explicit
constants, a sharper threshold, a construction that survives rounding, and why it needs to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_real, as_samples, check_option, check_positive
from resid.errors import DepthError, MarginError, OptionError, ShapeError
from resid.theory.small_weights._separation import (
    check_room,
    check_unit,
    normalised,
    rounding_margin,
    separation,
)
from resid.theory.small_weights._sphere import SpherePath, path_round

THRESHOLDS = ("paper", "sharp")


@dataclass(frozen=True)
class SmallWeightNetwork:
    """Units h -> h + W2 ReLU(W1 h + b) of rank one, stored as vectors; made by `construct_small_weight_network`.

    Only the first hidden neuron of a unit is used: W1 has the first row `incoming`, b the first entry `offsets`, W2
    the first column `outgoing`; everything else in them is 0. Calling it on inputs (n, d) gives outputs (n, d) in their
    dtype, computed in float64 with sums over d in one fixed order, so that a sample gets the same bits in every batch
    and in the construction. That matters: see `log_gains`. Units act one after the other; rows that a stretch of units
    leaves alone are found by one matrix product and skip it.

    Attributes:
        incoming: (units, d).
        outgoing: (units, d).
        offsets: (units,).
        samples: how many were memorised.
        paths: one `SpherePath` each.
        rho: the separation that it was built for.
    """

    incoming: Tensor
    offsets: Tensor
    outgoing: Tensor
    samples: int
    paths: tuple[SpherePath, ...]
    rho: float

    @property
    def units(self) -> int:
        """Number of units R, the left-over zero ones included."""
        return len(self.offsets)

    @property
    def width(self) -> int:
        """Dimension d."""
        return self.incoming.shape[1]

    @property
    def steps(self) -> int:
        """Units a sample, floor(R/m)."""
        return self.units // self.samples

    @property
    def weights(self) -> Tensor:
        """The matrices, (units, 2, d, d), made when asked for."""
        d = self.width
        dense = self.incoming.new_zeros(self.units, 2, d, d)
        dense[:, 0, 0, :], dense[:, 1, :, 0] = self.incoming, self.outgoing
        return dense

    @property
    def biases(self) -> Tensor:
        """The biases b, (units, d)."""
        dense = torch.zeros_like(self.incoming)
        dense[:, 0] = self.offsets
        return dense

    @property
    @isolated
    def norms(self) -> Tensor:
        """Frobenius norms, which are the spectral norms, of both matrices of every unit, (units, 2)."""
        return torch.stack([self.incoming.norm(dim=1), self.outgoing.norm(dim=1)], 1)

    @property
    @isolated
    def max_norm(self) -> float:
        """The largest norm of a weight matrix, at most `max_norm_bound`."""
        return float(self.norms.max())

    @property
    @isolated
    def total_norm(self) -> float:
        """The norm of all weight matrices together, their distance from zero; biases are not counted."""
        return float(self.norms.norm())

    @property
    @isolated
    def log_gains(self) -> Tensor:
        """How fast an error in each sample grows on its way, (m,), as `SpherePath.log_gain` says."""
        return torch.tensor([path.log_gain for path in self.paths], dtype=torch.float64)

    @isolated
    def __call__(self, inputs: ArrayLike) -> Tensor:
        """Outputs (n, d) for inputs (n, d), in their dtype and on their device; differentiable."""
        given = _check_inputs(inputs, self.width)
        h = given.to(torch.float64)
        incoming, offsets, outgoing = (part.to(h.device) for part in (self.incoming, self.offsets, self.outgoing))
        for start in range(0, self.samples * self.steps, self.steps):
            block = slice(start, start + self.steps)
            rows = _woken(h.detach(), incoming[block], offsets[block])
            if not len(rows):
                continue
            moved = h[rows]
            for k in range(start, start + self.steps):
                moved = moved + _relu(ordered_dot(moved, incoming[k]) + offsets[k])[:, None] * outgoing[k]
            h = h.index_copy(0, rows, moved)
        return h.to(given.dtype)

    @isolated
    def trajectory(self, inputs: ArrayLike) -> Tensor:
        """(units + 1, n, d): the inputs and what every unit makes of them."""
        given = _check_inputs(inputs, self.width)
        h = [given.to(torch.float64)]
        for w, b, u in zip(*(p.to(given.device) for p in (self.incoming, self.offsets, self.outgoing)), strict=True):
            h.append(h[-1] + _relu(ordered_dot(h[-1], w) + b)[:, None] * u)
        return torch.stack(h).to(given.dtype)


def ordered_dot(a: Tensor, b: Tensor) -> Tensor:
    """sum_i a_i b_i over the last axis, summed by halves: the same bits in every batch."""
    terms = a * b
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        folded = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([folded, terms[..., 2 * half :]], -1) if terms.shape[-1] % 2 else folded
    return terms[..., 0]


@isolated
def construct_small_weight_network(
    X: ArrayLike, Y: ArrayLike, units: int, closed_loop: bool = True, threshold: str = "paper"
) -> SmallWeightNetwork:
    """A network of the form (3) that sends every row of X to that of Y, with weight norms O(sqrt(m/R)/rho).

    The samples move to their labels one after the other, along `sphere_paths`, in floor(R/m) steps each; the unit of a
    step moves one vector and leaves the others alone (Lemma 1). Left-over units are zero. Exact but for rounding.

    closed_loop=True: each unit is made for where rounding has left the vector, not for where the path has it. With
    False, the textbook way, the rounding of each unit is multiplied by the gain of all later ones: correct in exact
    arithmetic, and useless in float64 as soon as exp(`log_gains`) exceeds 1/eps.

    threshold="paper": ReLU opens at a.h = 1 - rho'^2/2, rho' = rho/2; then `max_norm` is at most `max_norm_bound`.
    threshold="sharp" (ours): it opens at the largest a.h of a resting vector: no weight is larger than with "paper".

    Args:
        X: samples and labels, (m, d), d >= 3, rows of norm 1 (to 1e-12; 1e-6 in float32). Labels need not be one-hot,
            but must differ from each other; so must samples, and a sample from the labels of earlier rows.
        Y: samples and labels, (m, d), d >= 3, rows of norm 1 (to 1e-12; 1e-6 in float32). Labels need not be one-hot,
            but must differ from each other; so must samples, and a sample from the labels of earlier rows.
        units: R, at least m.
        closed_loop: see above.
        threshold: see above.

    Returns:
        A `SmallWeightNetwork` in float64 on the CPU, whatever the dtype of X: float32 weights would be too coarse.

    Raises:
        ShapeError: d < 3, rows not of unit norm, shapes that differ.
        MarginError: rows that coincide, or are so close that in this precision no half-space separates them.
        DepthError: units < m.
        NotFiniteError: an entry is NaN or infinite.
        OptionError: an option is not one of those listed.

    Source: Li et al. 2016, Theorem 1; constants, closed loop and sharp threshold are this project's.

    Example:
        >>> X, Y = torch.eye(4), -torch.eye(4)    # four axes turn round
        >>> network = construct_small_weight_network(X, Y, units=400)
        >>> bool(torch.allclose(network(X), Y)), network.max_norm < max_norm_bound(network.rho, 4, 400)
        (True, True)
    """
    X, Y = as_samples(X, Y)
    units, m = as_depth("units", units), len(X)
    check_option("threshold", threshold, THRESHOLDS)
    if units < m:
        raise DepthError(f"units = {units} < m = {m}: every sample needs a unit of its own")
    rho = separation(X, Y)
    paths = sphere_paths(X, Y, rho)
    X, Y = (values.detach().to("cpu", torch.float64) for values in (X, Y))
    steps = units // m
    P = torch.stack([path.points(steps) for path in paths])
    P[:, 0], P[:, -1] = X, Y  # as given, of norm 1 up to their own rounding only
    opens = _thresholds(P, X, Y, None if threshold == "sharp" else rho / 2)
    incoming, outgoing = torch.zeros(2, units, X.shape[1], dtype=torch.float64)
    offsets = torch.zeros(units, dtype=torch.float64)
    h = X
    for k in range(steps):  # vectors at rest do not change at all, so that all columns are followed at once
        at = h if closed_loop else P[:, k]
        step = P[:, k + 1] - at
        w, b, u = _unit_for(at, step, opens[:, k], at.norm(dim=1) - opens[:, k])
        if closed_loop:  # what the unit will compute, rounding included
            fires = ordered_dot(at, w) + b
            u = torch.where(fires[:, None] > 0, step / fires[:, None], 0.0)
            h = at + fires[:, None] * u
        of_step = slice(k, m * steps, steps)
        incoming[of_step], offsets[of_step], outgoing[of_step] = w, b, u
    return SmallWeightNetwork(incoming, offsets, outgoing, m, tuple(paths), rho)


@isolated(grad=False)
def isolating_unit(
    points: ArrayLike, index: int, target: ArrayLike, clearance: float | None = None
) -> tuple[Tensor, ...]:
    """Lemma 1: W1, b, W2 of a unit that moves one of several unit vectors and leaves the others where they are.

    With a the moved vector, delta = ||target - a|| and a threshold t, the unit is W1 = c e1 a^T, b = -c t e1,
    W2 = c (target - a)/delta e1^T with c = sqrt(delta/(1 - t)).

    Args:
        points: unit vectors as rows, (n, d).
        index: the row to move.
        target: (d,), where to.
        clearance: rho', which must not exceed the distance of the moved row from any other: then t = 1 - rho'^2/2 and
            both matrices have the norm sqrt(2 delta)/rho', as in the paper. None: t is the largest inner product of the
            moved row with another, which makes the norms as small as this form allows.

    Returns:
        W1 (d, d), b (d,), W2 (d, d), in the dtype of `points`.

    Raises:
        MarginError: a row nearer than `clearance` to the moved one, or equal to it.
        ShapeError: an array has the wrong shape, or is no array of real numbers.
        NotFiniteError: an entry is NaN or infinite.
        OptionError: an option is not one of those listed.

    Example:
        >>> E = torch.eye(3, dtype=torch.float64)
        >>> W1, b, W2 = isolating_unit(E, 0, -E[0], clearance=1.0)
        >>> apply_units(torch.stack([W1, W2])[None], b[None], E).diagonal().round(decimals=12).tolist()
        [-1.0, 1.0, 1.0]
    """
    rows = as_real("points", points)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(f"points has shape {tuple(rows.shape)}: unit vectors as rows, (n, d), are needed")
    check_unit("points", rows)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(rows):
        raise ShapeError(f"index = {index!r}: an integer from 0 to {len(rows) - 1} is needed")
    moved, goal = rows[index], as_real("target", target).to(rows)
    if goal.shape != moved.shape:
        raise ShapeError(f"target has shape {tuple(goal.shape)}: {tuple(moved.shape)} is needed")
    others = torch.cat([rows[:index], rows[index + 1 :]])
    distances = (others - moved).norm(dim=1)
    nearest = float(distances.min()) if len(others) else 2.0
    rho = nearest if clearance is None else check_positive("clearance", clearance)
    # a clearance that is the distance of the nearest row, computed in another way, may exceed it by rounding
    if rho > nearest * (1 + 16 * torch.finfo(rows.dtype).eps) or not nearest > 0:
        j = int(distances.argmin())
        raise MarginError(
            f"points[{j + (j >= index)}] is at distance {nearest:.4g} from points[{index}]: "
            + (f"clearance = {rho:.4g} is more" if nearest else "a unit moves both or none")
        )
    gap = rows.new_tensor([rho**2 / 2])
    w, b, u = _unit_for(moved[None], (goal - moved)[None], 1 - gap, gap)
    d = rows.shape[1]
    W1, W2, bias = rows.new_zeros(d, d), rows.new_zeros(d, d), rows.new_zeros(d)
    W1[0], W2[:, 0], bias[0] = w[0], u[0], b[0]
    return W1, bias, W2


@isolated
def sphere_path(start: ArrayLike, goal: ArrayLike, obstacles: ArrayLike, clearance: float) -> SpherePath:
    """Lemma 2, one path: the minor great arc from `start` to `goal`, round every obstacle at distance `clearance`.

    Where the arc enters the cap of chord radius `clearance` about an obstacle it follows the shorter arc of the cap's
    boundary. That is at most pi/2 times as long, so that the path is no longer than pi^2/2. Antipodal ends have many
    arcs, and an obstacle right on the arc can be passed on any side; one choice is made.

    Args:
        start: unit vectors (d,), d >= 3: on a circle one cannot go round anything.
        goal: unit vectors (d,), d >= 3: on a circle one cannot go round anything.
        obstacles: unit vectors as rows (n, d), n >= 0, pairwise at distances of at least 2 clearance, and at least
            `clearance` from both ends.
        clearance: 0 < clearance <= 1.

    Raises:
        MarginError: obstacles too close to each other or to an end. ShapeError, NotFiniteError, OptionError.

    Example:
        >>> E = torch.eye(3, dtype=torch.float64)
        >>> middle = (E[:1] + E[1:2]) / 2**0.5              # right in the way from one axis to the next
        >>> path = sphere_path(E[0], E[1], middle, clearance=0.25)
        >>> nearest = (path.points(1000) - middle).norm(dim=1).min()
        >>> path.bypasses, round(float(nearest), 4), math.pi / 2 < path.length < math.pi**2 / 2
        (1, 0.25, True)
    """
    p, q, rows = as_real("start", start), as_real("goal", goal), as_real("obstacles", obstacles)
    if p.ndim != 1 or p.shape != q.shape or len(p) < 3:
        raise ShapeError(f"start has shape {tuple(p.shape)}, goal {tuple(q.shape)}: both must be (d,) with d >= 3")
    if rows.ndim != 2 or rows.shape[1] != len(p):
        raise ShapeError(f"obstacles has shape {tuple(rows.shape)}: (n, {len(p)}) is needed")
    radius = check_positive("clearance", clearance)
    if radius > 1:
        raise OptionError(f"clearance = {radius:.4g} > 1: no two points of the sphere are 2 clearance apart")
    for name, vectors in (("start", p[None]), ("goal", q[None]), ("obstacles", rows)):
        check_unit(name, vectors)
    p, q, rows = (normalised(vectors) for vectors in (p, q, rows))
    for name, end in (("start", p), ("goal", q)):
        check_room(rows, end[None], radius, "obstacles", name, False)
    check_room(rows, rows, 2 * radius, "obstacles", "obstacles", True)
    return path_round(p, q, rows, radius)


@isolated
def sphere_paths(X: ArrayLike, Y: ArrayLike, rho: float | None = None) -> list[SpherePath]:
    """Lemma 2: the paths of all samples to their labels, moved in the order of the rows, with clearance rho/2.

    While row i moves, the rows before it rest at their labels and the rows after it where they start.

    Args:
        X: unit vectors as rows, (m, d), d >= 3.
        Y: unit vectors as rows, (m, d), d >= 3.
        rho: at most, and by default, `separation(X, Y)`.

    Raises:
        MarginError: `rho` is more than the separation. Else as `separation`.
    """
    X, Y = as_samples(X, Y)
    least = separation(X, Y)
    rho = least if rho is None else check_positive("rho", rho)
    if rho > least * (1 + 16 * EPS):
        raise MarginError(f"rho = {rho:.4g} is more than the least distance {least:.4g}")
    X, Y = normalised(X), normalised(Y)
    return [path_round(X[i], Y[i], torch.cat([Y[:i], X[i + 1 :]]), rho / 2) for i in range(len(X))]


def max_norm_bound(rho: float, samples: int, units: int) -> float:
    """(2 pi/rho) floor(R/m)^(-1/2): no weight matrix of the construction has a larger Frobenius norm.

    Theorem 1 of Li et al. 2016 with explicit constants: steps of length at most pi^2/(2 floor(R/m)) by Lemma 2, norms
    sqrt(2 delta)/(rho/2) by Lemma 1. Bounds the biases as well.

    Raises:
        DepthError: units < samples.

    Example:
        >>> round(max_norm_bound(rho=0.5, samples=10, units=4000), 6) == round(4 * math.pi / 20, 6)
        True
    """
    rho, m, units = check_positive("rho", rho), as_depth("samples", samples), as_depth("units", units)
    if units < m:
        raise DepthError(f"units = {units} < samples = {m}: every sample needs a unit of its own")
    return 2 * math.pi / rho / math.sqrt(units // m)


def total_norm_bound(rho: float, samples: int) -> float:
    """2 pi sqrt(2 m)/rho: an upper bound on the norm of all weights together, at every depth.

    The sum of squares is 4 sum(delta)/(rho/2)^2, and the steps of a path add up to at most pi^2/2. Not in the paper.

    Example:
        >>> total_norm_bound(rho=2.0, samples=2) == 2 * math.pi
        True
    """
    return 2 * math.pi * math.sqrt(2 * as_depth("samples", samples)) / check_positive("rho", rho)


@isolated(grad=False)
def least_parameter_norm(X: ArrayLike, Y: ArrayLike) -> float:
    """A lower bound on the norm of all weights and biases of units (3) that send X to Y, whatever their number.

    The square is, for the worst sample, the larger of 2 |y - x|/sqrt(1 + max(|x|, |y|)^2) and
    2 (arsinh(|x| + |y - x|) - arsinh |x|). A unit moves h by at most |W2| (|W1| |h| + |b|)
    <= (|W1|^2 + |W2|^2 + |b|^2) sqrt(1 + |h|^2)/2, and it can move h by as much in any direction. For one sample with
    |y| <= |x| the first term is the larger one, and exact: one unit attains it, so that depth does not help at all. The
    second is attained for y = t x, t > 1, in the limit of many units. Else, and for several samples, a lower bound.
    Without the biases there is none. Not in the paper; proof in the chapter.

    Args:
        X: inputs and outputs, (n, d).
        Y: inputs and outputs, (n, d).

    Example:
        >>> axes = torch.eye(3)
        >>> round(least_parameter_norm(axes[:1], axes[1:2]), 6)
        1.414214
    """
    inputs, outputs = as_real("X", X), as_real("Y", Y)
    if inputs.ndim != 2 or 0 in inputs.shape or outputs.shape != inputs.shape:
        raise ShapeError(f"X, Y have the shapes {tuple(inputs.shape)}, {tuple(outputs.shape)}: (n, d) twice is needed")
    inputs, outputs = inputs.to(torch.float64), outputs.to("cpu", torch.float64)
    start, way = inputs.cpu().norm(dim=1), (outputs - inputs.cpu()).norm(dim=1)
    farther = torch.maximum(start, outputs.norm(dim=1))  # 1/sqrt(1 + r^2) by hypot: r^2 may overflow
    one_unit = way / torch.hypot(torch.ones_like(farther), farther)
    outwards = torch.asinh(start + way) - torch.asinh(start)
    return float((2 * torch.maximum(one_unit, outwards)).max().sqrt())


@isolated
def apply_units(weights: ArrayLike, biases: ArrayLike, X: ArrayLike) -> Tensor:
    """Equation (3): h -> h + W2 ReLU(W1 h + b), unit after unit, by matrix products.

    Args:
        weights: (units, 2, d, d), W1 and W2 of each unit.
        biases: (units, d).
        X: (n, d).

    Returns:
        (n, d), in the dtype of `weights`; differentiable.

    Example:
        >>> W = torch.ones(1, 2, 1, 1)
        >>> apply_units(W, torch.zeros(1, 1), [[2.0], [-3.0]]).flatten().tolist()
        [4.0, -3.0]
    """
    W = _check_units(weights)
    b, h = as_real("biases", biases).to(W), _check_inputs(X, W.shape[-1]).to(W)
    if b.shape != (len(W), W.shape[-1]):
        raise ShapeError(f"biases has shape {tuple(b.shape)}: {(len(W), W.shape[-1])} is needed to fit the weights")
    for (W1, W2), offset in zip(W, b, strict=True):
        h = h + torch.relu(h @ W1.mT + offset) @ W2.mT
    return h


@isolated(grad=False)
def least_stretch(weights: ArrayLike) -> float:
    """prod_r (1 - ||W1|| ||W2||), or 0 if a factor is not positive: a lower bound on ||f(x) - f(y)||/||x - y||.

    Each unit is the identity plus a map of Lipschitz constant ||W1|| ||W2||. Where all these are below 1 the network is
    injective: it gives different samples different outputs, and cannot send both to one label. Not in the paper.

    Args:
        weights: (units, 2, d, d).

    Example:
        >>> least_stretch(torch.full((2, 2, 1, 1), 0.5))
        0.5625
    """
    norms = torch.linalg.matrix_norm(_check_units(weights), ord=2)
    return float((1 - norms[:, 0] * norms[:, 1]).clamp_min(0).prod())


def _relu(values: Tensor) -> Tensor:
    return values.clamp_min(0)


def _unit_for(at: Tensor, step: Tensor, opens: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lemma 1 for many columns: vectors at (m, d) move by step (m, d); w, b, u of units whose ReLU opens at `opens`.

    gap (m,): ||at|| - opens, how far the vectors themselves are beyond that.
    """
    length, size = at.norm(dim=1, keepdim=True), step.norm(dim=1, keepdim=True)
    c = (size / gap[:, None]).sqrt()
    return c * at / length, -c[:, 0] * opens, torch.where(size > 0, step / (c * gap[:, None]), 0.0)


def _thresholds(P: Tensor, X: Tensor, Y: Tensor, clearance: float | None) -> Tensor:
    """Where the ReLU of each unit opens, (m, steps): Lemma 1's 1 - clearance^2/2, or the least possible value.

    Never below what keeps the resting vectors asleep in spite of rounding.
    """
    m, steps = len(P), P.shape[1] - 1
    lowest = -1.0 if clearance is None else 1 - clearance**2 / 2
    opens = torch.full((m, steps), lowest, dtype=P.dtype)
    for i in range(m if m > 1 else 0):
        resting = torch.cat([Y[:i], X[i + 1 :]])
        nearest = (normalised(P[i, :-1]) @ resting.mT).amax(1)
        opens[i] = torch.maximum(opens[i], nearest + rounding_margin(P.shape[2]))
    return opens


def _woken(h: Tensor, incoming: Tensor, offsets: Tensor) -> Tensor:
    """Rows of h (n, d) that one of the units may move; those it leaves out are moved by none."""
    before = h @ incoming.mT + offsets
    size = h.norm(dim=1, keepdim=True) * incoming.norm(dim=1) + offsets.abs()
    return (before > -rounding_margin(h.shape[1]) * size).any(1).nonzero().flatten()


def _check_inputs(X: ArrayLike, d: int) -> Tensor:
    X = as_real("inputs", X)
    if X.ndim != 2 or X.shape[1] != d:
        raise ShapeError(f"inputs has shape {tuple(X.shape)}: (n, {d}) is needed")
    return X


def _check_units(weights: ArrayLike) -> Tensor:
    W = as_real("weights", weights)
    if W.ndim != 4 or W.shape[1] != 2 or W.shape[2] != W.shape[3] or 0 in W.shape:
        raise ShapeError(f"weights has shape {tuple(W.shape)}: (units, 2, d, d) is needed")
    return W
