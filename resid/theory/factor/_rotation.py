"""Real powers of a rotation: Q = S T S^T with T made of plane rotations, hence Q^t = S T(t) S^T for every real t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import schur
from torch import Tensor

from resid.errors import DeterminantError


@dataclass(frozen=True)
class PlaneRotations:
    """A rotation Q in SO(d) as m plane rotations in an orthonormal basis.

    Attributes:
        basis: (d, d) orthogonal; its columns a and m + a span plane a, and columns 2 m .. d - 1 are fixed by Q.
        angle: (m,), in (0, pi]: Q turns column a towards column m + a by angle[a].
    """

    basis: Tensor
    angle: Tensor

    @property
    def largest_angle(self) -> float:
        """The largest rotation angle in [0, pi]; 0 for the identity."""
        return float(self.angle.max()) if self.angle.numel() else 0.0

    def root_minus_identity(self, t: float) -> Tensor:
        """Q^t - I of shape (d, d), computed as -2 sin^2(t angle/2) and sin(t angle): no cancellation for small t."""
        m = len(self.angle)
        first, second = self.basis[:, :m], self.basis[:, m : 2 * m]
        drop, sine = -2 * torch.sin(self.angle * (t / 2)) ** 2, torch.sin(self.angle * t)
        return (first * drop + second * sine) @ first.mT + (second * drop - first * sine) @ second.mT

    def conjugate(self, inner: Tensor, t: Tensor) -> Tensor:
        """T(t) inner T(-t) for every entry of t: (n, d, d) in the coordinates of `basis`, at a cost of d^2 each."""
        m = len(self.angle)
        phase = t[:, None] * self.angle
        out = inner.expand(len(t), *inner.shape).clone()
        for dim in (1, 2):  # rows by T(t), then columns by T(-t) = T(t)^T: the same formula
            cosine, sine = phase.cos().unsqueeze(3 - dim), phase.sin().unsqueeze(3 - dim)
            first, second = out.narrow(dim, 0, m), out.narrow(dim, m, m)
            before = first.clone()
            first.mul_(cosine).addcmul_(second, sine, value=-1)
            second.mul_(cosine).addcmul_(before, sine)
        return out

    def distance_to_identity(self, t: float) -> float:
        """||Q^t - I||_2 = 2 sin(t largest_angle / 2), exact for 0 <= t <= 1."""
        return 2 * math.sin(t * self.largest_angle / 2)


def plane_rotations(rotation: Tensor) -> PlaneRotations:
    """Decompose a rotation (orthogonal, det +1) by the real Schur form.

    Eigenvalues -1 come out as 1 x 1 blocks; their number is even because det = +1, and they are paired into half turns.
    """
    block, basis = schur(np.asarray(rotation), output="real")
    planes: list[tuple[int, int, float]] = []
    half_turns: list[int] = []
    fixed: list[int] = []
    i = 0
    while i < len(block):
        if i + 1 < len(block) and block[i + 1, i] != 0:
            angle = math.atan2(block[i + 1, i] - block[i, i + 1], block[i, i] + block[i + 1, i + 1])
            # exchanging the two columns of a plane reverses the turn: every angle is made positive
            planes.append((i, i + 1, angle) if angle > 0 else (i + 1, i, -angle))
            i += 2
        else:
            (half_turns if block[i, i] < 0 else fixed).append(i)
            i += 1
    if len(half_turns) % 2:
        raise DeterminantError(f"the orthogonal matrix has {len(half_turns)} eigenvalues -1, so its determinant is -1")
    planes += [(a, b, math.pi) for a, b in zip(half_turns[::2], half_turns[1::2], strict=True)]
    order = [a for a, _, _ in planes] + [b for _, b, _ in planes] + fixed
    return PlaneRotations(
        basis=torch.from_numpy(basis[:, order].copy()),
        angle=torch.tensor([angle for _, _, angle in planes], dtype=torch.float64),
    )
