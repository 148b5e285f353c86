"""The textbook construction of Li et al. 2016, Theorem 1, in arithmetic of as many digits as one likes.

Written a second time, from the formulas of the proof and without `resid.theory.small_weights`, in mpmath.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mpmath
from mpmath import mpf
from torch import Tensor

__all__ = ["arc_round", "open_loop_error"]

Vector = list[mpf]


def open_loop_error(X: Tensor, Y: Tensor, steps: int, digits: int) -> float:
    """log10 of the largest error of the open-loop network with `steps` units a sample, built and run in `digits`.

    X, Y: (m, d), rows near unit norm; they are scaled to it in the working precision. -inf for no error at all.
    """
    with mpmath.workdps(digits):
        samples, labels = (
            [_scaled([mpf(v) for v in row]) for row in rows.detach().cpu().double().tolist()] for rows in (X, Y)
        )
        m = len(samples)
        pairs = [(a, b) for rows in (samples, labels) for i, a in enumerate(rows) for b in rows[:i]]
        pairs += [(a, b) for i, a in enumerate(samples) for b in labels[:i]]
        rho = min(_norm(_sum(a, b, -1)) for a, b in pairs)
        threshold = 1 - rho**2 / 8
        now = [list(x) for x in samples]
        for i in range(m):
            path = arc_round(samples[i], labels[i], labels[:i] + samples[i + 1 :], rho / 2, steps)
            for a, b in pairwise(path):
                move = _sum(b, a, -1)
                for h in now:
                    fires = _dot(a, h) - threshold
                    if fires > 0:
                        h[:] = _sum(h, move, fires / (1 - threshold))
        error = max(_norm(_sum(h, y, -1)) for h, y in zip(now, labels, strict=True))
        return float(mpmath.log10(error)) if error else float("-inf")


def arc_round(start: Vector, goal: Vector, obstacles: Sequence[Vector], clearance: mpf, steps: int) -> list[Vector]:
    """steps + 1 points, equally spaced in arc length, of the path of Lemma 2, in mpmath's working precision.

    start and goal not opposite each other, no obstacle exactly on the arc: the proof's formulas as they stand.
    """
    total = mpmath.acos(_dot(start, goal))
    tangent = _scaled(_sum(goal, start, -_dot(start, goal)))

    def on_arc(theta: mpf) -> Vector:
        return _sum([mpmath.cos(theta) * v for v in start], tangent, mpmath.sin(theta))

    height = 1 - clearance**2 / 2
    radius = mpmath.sqrt(1 - height**2)
    caps = []
    for o in obstacles:
        along, across = _dot(start, o), _dot(tangent, o)
        size, phi = mpmath.hypot(along, across), mpmath.atan2(across, along)
        if size > height and 0 < phi < total:
            half = mpmath.acos(height / size)
            caps.append((phi - half, phi + half, o))
    pieces, theta = [], mpf(0)
    for enter, leave, o in sorted(caps, key=lambda cap: cap[0]):
        first, last = (_scaled(_sum(on_arc(t), o, -height)) for t in (enter, leave))
        turn = mpmath.acos(_dot(first, last))
        aside = _scaled(_sum(last, first, -_dot(first, last)))
        pieces += [(enter - theta, theta, None), (radius * turn, mpf(0), (o, first, aside))]
        theta = leave
    pieces.append((total - theta, theta, None))
    length = sum(piece[0] for piece in pieces)
    points = []
    for k in range(steps + 1):
        left, index = k * length / steps, 0
        while index < len(pieces) - 1 and left > pieces[index][0]:
            left -= pieces[index][0]
            index += 1
        _, begin, circle = pieces[index]
        if circle is None:
            points.append(on_arc(begin + left))
        else:
            o, first, aside = circle
            t = left / radius
            ring = _sum([mpmath.cos(t) * v for v in first], aside, mpmath.sin(t))
            points.append(_sum([height * v for v in o], ring, radius))
    return points


def _dot(a: Vector, b: Vector) -> mpf:
    return mpmath.fdot(a, b)


def _sum(a: Vector, b: Vector, factor: mpf) -> Vector:
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def _norm(a: Vector) -> mpf:
    return mpmath.sqrt(_dot(a, a))


def _scaled(a: Vector) -> Vector:
    size = _norm(a)
    return [x / size for x in a]
