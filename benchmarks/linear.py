"""Rows of the linear chapters."""

from __future__ import annotations

from typing import Any

import torch
from scipy.linalg import fractional_matrix_power, polar
from torch import Tensor

from benchmarks.harness import Row, Side
from resid.theory.factor import factor_near_identity, factorization_error
from resid.theory.landscape import population_risk, risk_gradient
from resid.theory.targets import sample_target

D, DEPTH, PEER_LAYERS = 256, 1000, 6


def _target() -> Tensor:
    return sample_target("gaussian", D, torch.Generator().manual_seed(0))


def _factor(R: Tensor) -> None:
    error = factorization_error(factor_near_identity(R, DEPTH), R)
    if not error <= 1e-10:
        raise ArithmeticError(f"the product misses R by {error:.1e}")


def _polar() -> Any:
    """What the peer needs once for all layers, outside its clock: Q and P^(1/depth)."""
    Q, P = polar(_target().numpy())
    return Q, fractional_matrix_power(P, 1 / DEPTH).real


def _powers(given: Any) -> None:
    """The first layers of the same construction, each power of Q taken anew, and their part of the product."""
    Q, root = given
    product = torch.eye(D, dtype=torch.float64)
    for i in range(1, PEER_LAYERS + 1):
        forward = fractional_matrix_power(Q, i / DEPTH).real
        back = fractional_matrix_power(Q, -(i - 1) / DEPTH).real
        product = torch.from_numpy(forward @ root @ back) @ product


def _network() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = 0.01 * torch.randn(64, 128, 128, generator=generator, dtype=torch.float64)
    return A, torch.randn(128, 128, generator=generator, dtype=torch.float64), torch.eye(128, dtype=torch.float64)


def _autograd(given: Any) -> None:
    A, R, sigma = given
    A = A.clone().requires_grad_()
    torch.autograd.grad(population_risk(A, R, sigma), A)


ROWS = (
    Row(
        name="factor",
        what=f"near-identity factorisation, d = {D}, depth {DEPTH}, with the product checked",
        ours=Side("factor_near_identity and factorization_error", _target, _factor, DEPTH),
        peer=Side("SciPy's fractional_matrix_power, layer by layer", _polar, _powers, PEER_LAYERS),
        threads=2,
        least_ratio=20,
        most_seconds=5,
        most_gib=1.5,
        unit="layer",
    ),
    Row(
        name="risk-gradient",
        what="gradient of the population risk, d = 128, depth 64",
        ours=Side("risk_gradient", _network, lambda given: risk_gradient(*given)),
        peer=Side("autograd through population_risk", _network, _autograd),
        threads=2,
        least_ratio=0.9,
    ),
)
