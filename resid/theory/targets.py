"""Random linear maps of positive determinant, in nine families that are awkward in different ways.

A theorem about every R with det R > 0 is tried on all of them: Gaussian matrices alone would never meet an eigenvalue
-1, a condition number of 1e10 or a Jordan block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from resid._ambient import isolated
from resid._arguments import as_depth, check_option

__all__ = ["FAMILIES", "random_rotation", "sample_target"]


@isolated
def sample_target(family: str, d: int, generator: Generator) -> Tensor:
    """Sample a random (d, d) matrix with det > 0, float64.

    Args:
        family: one of `FAMILIES`.
        d: dimension, >= 1.
        generator: source of randomness.

    Raises:
        OptionError: unknown family.
        DepthError: d is not an integer >= 1.

    Example:
        >>> R = sample_target("near half turn", 5, Generator().manual_seed(0))
        >>> bool(torch.linalg.det(R) > 0)
        True
    """
    check_option("family", family, FAMILIES)
    return _MAKERS[family](as_depth("d", d), generator)


@isolated
def random_rotation(d: int, generator: Generator) -> Tensor:
    """Sample a Haar-distributed rotation in SO(d): QR of a Gaussian matrix with the signs of R's diagonal fixed.

    Args:
        d: dimension, >= 1.
        generator: source of randomness.

    Raises:
        DepthError: `d` is no integer >= 1.
    """
    d = as_depth("d", d)
    Q, triangle = torch.linalg.qr(_normal(generator, d, d))
    return _positive(Q * triangle.diagonal().sign())


def _gaussian(d: int, generator: Generator) -> Tensor:
    return _positive(_normal(generator, d, d))


def _ill_conditioned(d: int, generator: Generator) -> Tensor:
    U, V = random_rotation(d, generator), random_rotation(d, generator)
    return U @ (_wide_spectrum(d, generator)[:, None] * V)


def _near_half_turn(d: int, generator: Generator) -> Tensor:
    """A rotation whose planes turn by pi - 10^-u, u uniform in [1, 16]."""
    S = random_rotation(d, generator)
    block = torch.eye(d, dtype=torch.float64)
    for i in range(0, d - 1, 2):
        angle = math.pi - 10 ** -_uniform(generator, 1, 16)
        cosine, sine = math.cos(angle), math.sin(angle)
        block[i : i + 2, i : i + 2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    return S @ block @ S.mT


def _positive_definite(d: int, generator: Generator) -> Tensor:
    V = random_rotation(d, generator)
    return V.mT @ ((2 * _normal(generator, d)).exp()[:, None] * V)


def _half_turn_times_ill_conditioned(d: int, generator: Generator) -> Tensor:
    V = random_rotation(d, generator)
    return _near_half_turn(d, generator) @ V.mT @ (_wide_spectrum(d, generator)[:, None] * V)


def _two_reflections(d: int, generator: Generator) -> Tensor:
    """U K V^T with det U = det V = -1."""
    U, V = random_rotation(d, generator), random_rotation(d, generator)
    U[:, 0] *= -1
    V[:, -1] *= -1
    return U @ (_normal(generator, d).exp()[:, None] * V.mT)


def _signs(d: int, generator: Generator) -> Tensor:
    """Eigenvalues exactly +1 and -1, an even number of the latter."""
    S = random_rotation(d, generator)
    negative = 2 * int(torch.randint(0, d // 2 + 1, (1,), generator=generator))
    signs = torch.ones(d, dtype=torch.float64)
    signs[:negative] = -1
    return S @ (signs[:, None] * S.mT)


def _jordan(d: int, generator: Generator) -> Tensor:
    """One Jordan block with eigenvalue in +-[0.7, 2]; negative only in even dimension."""
    value = _uniform(generator, 0.7, 2)
    if d % 2 == 0 and _uniform(generator, 0, 1) < 0.5:
        value = -value
    S = random_rotation(d, generator)
    shift = torch.diag(torch.ones(d - 1, dtype=torch.float64), 1)
    return S @ (value * torch.eye(d, dtype=torch.float64) + shift) @ S.mT


def _wide_spectrum(d: int, generator: Generator) -> Tensor:
    """Singular values over up to ten decades, the extremes included."""
    decades = _uniform(generator, 1, 10)
    exponents = torch.rand(d, generator=generator, dtype=torch.float64)
    exponents[0], exponents[-1] = 1, 0
    return 10 ** (decades * (exponents - 0.5))


def _positive(matrix: Tensor) -> Tensor:
    """The matrix, with its first row negated if that makes the determinant positive."""
    if float(torch.linalg.slogdet(matrix).sign) < 0:
        matrix = matrix.clone()
        matrix[0] *= -1
    return matrix


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


_MAKERS: dict[str, Callable[[int, Generator], Tensor]] = {
    "gaussian": _gaussian,
    "ill-conditioned": _ill_conditioned,
    "rotation": random_rotation,
    "near half turn": _near_half_turn,
    "positive definite": _positive_definite,
    "half turn x ill-conditioned": _half_turn_times_ill_conditioned,
    "two reflections": _two_reflections,
    "signs": _signs,
    "jordan": _jordan,
}
FAMILIES = tuple(_MAKERS)
