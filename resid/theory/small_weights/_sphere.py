"""Paths on the unit sphere round obstacles (Li et al. 2016, Lemma 2), as pieces of circles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid._arguments import EPS


@dataclass(frozen=True)
class SpherePath:
    """A path from `start` to `goal`, made of circular arcs: pieces of the great arc, and ways round obstacles.

    Piece j is centres[j] + radii[j] (cos(t) first[j] + sin(t) second[j]), from t = begins[j], over the length
    lengths[j]; a great arc has centre 0 and radius 1. start, goal: (d,). clearance: least distance to an obstacle.

    Attributes:
        start: (d,).
        goal: (d,).
        clearance: least distance to an obstacle.
        centres: of the pieces, (pieces, d).
        first: (pieces, d), the direction of the beginning of the circle.
        second: (pieces, d), a quarter turn on.
        radii: (pieces,).
        begins: (pieces,), angle at which a piece begins.
        lengths: (pieces,).
    """

    start: Tensor
    goal: Tensor
    clearance: float
    centres: Tensor
    first: Tensor
    second: Tensor
    radii: Tensor
    begins: Tensor
    lengths: Tensor

    @property
    def length(self) -> float:
        """Length of the whole path, at most pi^2/2."""
        return float(self.lengths.sum())

    @property
    def bypasses(self) -> int:
        """Number of obstacles that the path goes round."""
        return len(self.lengths) // 2

    @property
    def log_gain(self) -> float:
        """Growth exponent of a small error along the path, in the limit of many units with the paper's threshold.

        A unit that moves h by v multiplies a small error by I + v h^T/g, g = clearance^2/2. In the limit of short
        moves its component along h obeys r'' = (1/g - 1) r on a great arc, and r''' = (1/g - 1/radius^2) r' on a
        way round: exponential growth with the square roots of these factors as rates. Exact up to the constants in
        front of the exponentials. Not in the paper.
        """
        gap = self.clearance**2 / 2
        rates = (1 / gap - self.radii**-2).clamp_min(0).sqrt()
        return float((rates * self.lengths).sum())

    def points(self, count: int) -> Tensor:
        """Return (count + 1, d): the start, then `count` steps of equal arc length to the goal."""
        ends = self.lengths.cumsum(0)
        targets = ends[-1] * torch.arange(1, count, dtype=ends.dtype) / count
        piece = torch.searchsorted(ends, targets).clamp_max(len(ends) - 1)
        t = (self.begins[piece] + (targets - (ends - self.lengths)[piece]) / self.radii[piece])[:, None]
        on_circle = t.cos() * self.first[piece] + t.sin() * self.second[piece]
        inner = self.centres[piece] + self.radii[piece, None] * on_circle
        return torch.cat([self.start[None], inner, self.goal[None]])


def path_round(start: Tensor, goal: Tensor, obstacles: Tensor, clearance: float) -> SpherePath:
    """The minor great arc, with each cap of chord radius `clearance` about an obstacle passed along its boundary.

    The caps must be disjoint and must not contain start or goal; nothing is checked here. float64 on the CPU.
    """
    tangent, angle = _great_arc(start, goal)
    height = 1 - clearance**2 / 2  # the cap is x.o > height; its boundary is a circle about height o
    radius = clearance * math.sqrt((1 + height) / 2)
    along, across = obstacles @ start, obstacles @ tangent
    normals = obstacles - along[:, None] * start - across[:, None] * tangent
    distance, shadow, middle = normals.norm(dim=1), torch.hypot(along, across), torch.atan2(across, along)
    hit = ((distance < radius) & (middle > 0) & (middle < angle)).nonzero().flatten()
    circles = [(torch.zeros_like(start), start, tangent)]
    radii, begins, lengths = [1.0], [0.0], []
    for j in hit[middle[hit].argsort()].tolist():
        n, A, phi = float(distance[j]), float(shadow[j]), float(middle[j])
        half = math.asin(math.sqrt(radius**2 - n**2) / A)  # the arc is in the cap where |theta - phi| < half
        inward = math.cos(phi) * start + math.sin(phi) * tangent
        onward = math.cos(phi) * tangent - math.sin(phi) * start
        aside = _unit(normals[j], start, tangent) if n > 4 * EPS else orthogonal_to(start, tangent)
        away = _unit((n / A) * inward - aside, obstacles[j], onward)  # from the obstacle to the side of the arc
        turn = math.atan2(math.sin(half), height * n / A)  # entry and exit are at -turn and +turn on the boundary
        circles += [(height * obstacles[j], away, onward), circles[0]]
        radii += [radius, 1.0]
        lengths += [max(phi - half - begins[-1], 0.0), 2 * radius * turn]
        begins += [-turn, phi + half]
    lengths.append(max(angle - begins[-1], 0.0))
    centres, first, second = (torch.stack(vectors) for vectors in zip(*circles, strict=True))
    numbers = [torch.tensor(values, dtype=start.dtype) for values in (radii, begins, lengths)]
    return SpherePath(start, goal, clearance, centres, first, second, *numbers)


def orthogonal_to(*vectors: Tensor) -> Tensor:
    """A unit vector orthogonal to orthonormal vectors (d,), fewer than d: from the axis that they contain least of."""
    frame = torch.stack(vectors)
    axis = torch.zeros_like(vectors[0])
    axis[int(frame.square().sum(0).argmin())] = 1
    return _unit(axis, *vectors)


def _great_arc(start: Tensor, goal: Tensor) -> tuple[Tensor, float]:
    """Unit tangent at the start of a minor great arc to the goal, and its angle; any tangent where there are many."""
    angle = 2 * math.atan2(float((goal - start).norm()), float((goal + start).norm()))
    aside = goal - (goal @ start) * start
    if float(aside.norm()) <= 4 * EPS:  # goal = start or goal = -start
        return orthogonal_to(start), angle
    return _unit(aside, start), angle


def _unit(vector: Tensor, *orthogonal: Tensor) -> Tensor:
    """`vector` without its parts along unit vectors, taken out twice against rounding, at norm 1."""
    vector = vector / vector.norm()
    for _ in range(2):
        for other in orthogonal:
            vector = vector - (vector @ other) * other
        vector = vector / vector.norm()
    return vector
