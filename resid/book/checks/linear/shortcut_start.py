"""Trials of Li et al. 2016 on where training starts: Figure 4, the variance of outputs, Appendix B, and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Generator, Tensor

from resid.ledger.evidence import Seeds
from resid.theory.shortcut import (
    ShortcutNetwork,
    condition_number,
    condition_number_limit,
    hessian_at_zero,
    hessian_spectrum_at_zero,
)

__all__ = ["STARTS", "Start", "haar", "initial_kappas", "percentile_steps", "sign_spread", "variance_growth"]


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def haar(d: int, generator: Generator) -> Tensor:
    """A random orthogonal matrix (d, d), of either determinant."""
    Q, R = torch.linalg.qr(_normal(generator, d, d))
    return Q * torch.diagonal(R).sign()


@dataclass(frozen=True)
class Start:
    """Kappa where training starts. kappa: (seeds, depths). limits: (depths,), the noise of float64."""

    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    kappa: np.ndarray
    limits: np.ndarray

    def slopes(self, up_to: int) -> list[float]:
        """Per seed, the slope of log kappa against log depth up to a depth, values at the limit not counted.

        Raises:
            ArithmeticError: fewer than three values are left for a seed, or one is no number.
        """
        found = []
        for values in self.kappa:
            kept = (values < self.limits) & (np.array(self.depths) <= up_to)
            if kept.sum() < 3 or not np.isfinite(values).all():
                raise ArithmeticError(f"{int(kept.sum())} values below the noise of float64 in {values}: 3 are needed")
            found.append(float(np.polyfit(np.log(np.array(self.depths)[kept]), np.log(values[kept]), 1)[0]))
        return found


#: Length of the units, whether they have shortcuts, and how the weights are drawn.
STARTS: dict[str, tuple[int, bool, str]] = {
    "Xavier": (1, False, "xavier"),
    "orthogonal": (1, False, "orthogonal"),
    "1-shortcut": (1, True, "small"),
    "2-shortcut": (2, True, "small"),
    "3-shortcut": (3, True, "small"),
}


def initial_kappas(name: str, depths: Sequence[int], seeds: Sequence[int], sigma_yx: Tensor) -> Start:
    """Kappa of the Hessian at initial weights, whitened inputs; name: a key of `STARTS`.

    "xavier" weights are normal with variance 1/d, "small" ones 0.01 times that, "orthogonal" ones uniform.
    """
    length, shortcut, drawn = STARTS[name]
    d = len(sigma_yx)
    eye = torch.eye(d, dtype=sigma_yx.dtype)
    kappa = np.empty((len(seeds), len(depths)))
    for (i, seed), (j, depth) in product(enumerate(seeds), enumerate(depths)):
        generator = torch.Generator().manual_seed(1000 * seed + depth)
        network = ShortcutNetwork(length, depth // length, d, shortcut=shortcut)
        if drawn == "orthogonal":
            W = torch.stack([haar(d, generator) for _ in range(depth)])[:, None]
        else:
            W = _normal(generator, depth // length, length, d, d) / d**0.5 * (0.01 if drawn == "small" else 1)
        kappa[i, j] = condition_number(network.hessian_from_moments(W, eye, sigma_yx), 0.1)
    limits = np.array([condition_number_limit(depth // length * length * d * d) for depth in depths])
    return Start(tuple(depths), tuple(seeds), kappa, limits)


def variance_growth(seeds: Sequence[int], units: Sequence[int] = (2, 4, 8, 16, 32), width: int = 100) -> Seeds:
    """Slope of the binary logarithm of the output variance against the number of units; ReLU at mid, length 2.

    The first matrix of a unit has variance 1/d and the second 2/d, so that the variance along a path is kept.
    """
    slopes = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        X, logs = _normal(generator, 200, width), []
        for number in units:
            W = _normal(generator, number, 2, width, width) * torch.tensor([1.0, 2.0]).view(2, 1, 1).sqrt() / width**0.5
            output = ShortcutNetwork(2, number, width, "relu", "mid").forward(W, X)
            logs.append(math.log2(float(output.square().mean())))
        slopes.append(float(np.polyfit(units, logs, 1)[0]))
    return Seeds(slopes, seeds, f"slope of log2 of the output variance, {units[0]} to {units[-1]} units of {width}")


def percentile_steps(sigma_yx: Tensor, units: Sequence[int], seeds: Sequence[int]) -> tuple[Seeds, np.ndarray]:
    """1-shortcut networks at zero: steps of the full condition number and of kappa between numbers of units.

    Returns:
        Seeds: the largest step of the decimal logarithm of the full condition number minus that of kappa, with random
        signs of the principal components. (seeds, 2, units): both, the full one first.
    """
    d = len(sigma_yx)
    found = np.empty((len(seeds), 2, len(units)))
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(2, (d,), generator=generator) - 1
        M = torch.eye(d, dtype=sigma_yx.dtype) - sigma_yx * signs
        for j, number in enumerate(units):
            values = torch.linalg.eigvalsh(hessian_at_zero(1, number, M))
            found[i, :, j] = condition_number(values), condition_number(values, 0.1)
    steps = np.abs(np.diff(np.log10(found), axis=2)).max(2)
    what = f"decades, {units[0]} to {units[-1]} units, random signs of the components"
    return Seeds(steps[:, 0] - steps[:, 1], seeds, what), found


def sign_spread(sigma_yx: Tensor) -> np.ndarray:
    """Condition number and kappa (2^d, 2) at zero, length 2, whitened inputs, for all signs of the components."""
    d = len(sigma_yx)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=sigma_yx.dtype)] * d)
    found = []
    for sign in signs:
        spectrum = hessian_spectrum_at_zero(1, torch.eye(d, dtype=sigma_yx.dtype) - sigma_yx * sign)
        found.append((condition_number(spectrum), condition_number(spectrum, 0.1)))
    return np.array(found)
