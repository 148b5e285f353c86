"""Memorising a finite sample with layers of size O(1/sqrt(R)): Li et al. 2016, Theorem 1 and its two lemmas.

The network is that of their equation (3): R units h -> h + W2 ReLU(W1 h + b). What this project adds: explicit
constants, a sharper threshold, a construction that survives rounding, and why it needs to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_depth, as_real, as_samples, check_option, check_positive
from resid.errors import DepthError, MarginError, ShapeError
from resid.theory.small_weights._separation import check_inputs, check_unit, normalised, rounding_margin, separation
from resid.theory.small_weights._sphere import SpherePath
from resid.theory.small_weights.paths import sphere_paths

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
        offsets: (units,).
        outgoing: (units, d).
        samples: how many were memorised.
        paths: a `SpherePath` for each sample.
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
        """Logarithm of the growth of an error in each sample on its way, (m,), by the `log_gain` of its path."""
        return torch.tensor([path.log_gain for path in self.paths], dtype=torch.float64)

    @isolated
    def __call__(self, inputs: ArrayLike) -> Tensor:
        """Compute outputs (n, d) for inputs (n, d), in their dtype and on their device; differentiable."""
        X = check_inputs(inputs, self.width)
        h = X.to(torch.float64)
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
        return h.to(X.dtype)

    @isolated
    def trajectory(self, inputs: ArrayLike) -> Tensor:
        """Return (units + 1, n, d): the inputs (n, d) and what every unit makes of them."""
        X = check_inputs(inputs, self.width)
        h = [X.to(torch.float64)]
        for w, b, u in zip(*(p.to(X.device) for p in (self.incoming, self.offsets, self.outgoing)), strict=True):
            h.append(h[-1] + _relu(ordered_dot(h[-1], w) + b)[:, None] * u)
        return torch.stack(h).to(X.dtype)


def ordered_dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute sum_i a_i b_i over the last axis, summed by halves: the same bits in every batch."""
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
    """Construct a network of the form (3) that sends every row of X to that of Y, with weight norms O(sqrt(m/R)/rho).

    The samples move to their labels one after the other, along `sphere_paths`, in floor(R/m) steps each; the unit of a
    step moves one vector and leaves the others alone (Lemma 1). Left-over units are zero. Exact but for rounding.

    closed_loop=True: each unit is made for where rounding has left the vector, not for where the path has it. With
    False, the textbook way, the rounding of each unit is multiplied by the gain of all later ones: correct in exact
    arithmetic, and useless in float64 as soon as exp(`log_gains`) exceeds 1/eps.

    threshold="paper": ReLU opens at a.h = 1 - rho'^2/2, rho' = rho/2; then `max_norm` is at most `max_norm_bound`.
    threshold="sharp" (ours): it opens at the largest a.h of a resting vector: no weight is larger than with "paper".

    Args:
        X: samples (m, d), d >= 3, rows of norm 1 (to 1e-12; 1e-6 in float32), all different.
        Y: labels (m, d), rows of norm 1, all different, and different from the samples of later rows; need not be
            one-hot.
        units: R, at least m.
        closed_loop: make each unit for where rounding has left the vector.
        threshold: "paper" or "sharp".

    Returns:
        A `SmallWeightNetwork` in float64 on the CPU, whatever the dtype of X: float32 weights would be too coarse.

    Raises:
        ShapeError: d < 3, rows not of unit norm, shapes that differ.
        MarginError: rows that coincide, or are so close that in this precision no half-space separates them.
        DepthError: units < m.
        OptionError: unknown threshold.
        NotFiniteError: an argument holds NaN or infinity.

    Source: Li et al. 2016, Theorem 1; constants, closed loop and sharp threshold are this project's.

    Example:
        >>> from resid.theory.small_weights import max_norm_bound
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
    """Build W1, b, W2 of a unit that moves one of several unit vectors and no other (Lemma 1).

    With a the moved vector, delta = ||target - a|| and a threshold t, the unit is W1 = c e1 a^T, b = -c t e1,
    W2 = c (target - a)/delta e1^T with c = sqrt(delta/(1 - t)).

    Args:
        points: unit vectors as rows, (n, d).
        index: the row to move.
        target: (d,), where to.
        clearance: rho', at most the distance of the moved row from any other: then t = 1 - rho'^2/2 and both matrices
            have the norm sqrt(2 delta)/rho', as in the paper. None: t is the largest inner product of the moved row
            with another, which makes the norms as small as this form allows.

    Returns:
        W1 (d, d), b (d,), W2 (d, d), in the dtype of `points`.

    Raises:
        MarginError: a row nearer than `clearance` to the moved one, or equal to it.
        ShapeError: shapes that do not fit, rows not of unit norm, or no such row.
        OptionError: `clearance` is no finite number > 0.
        NotFiniteError: an argument holds NaN or infinity.

    Source: Li et al. 2016, Lemma 1.

    Example:
        >>> from resid.theory.small_weights import apply_units
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
