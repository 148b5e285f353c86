"""Trials of Li et al. 2016, Sections 4.2 and 5: the numbers of the claims about learning, one for each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from resid.book.checks._worst import worst_of
from resid.book.checks.linear.dynamics_study import Study
from resid.ledger.evidence import Cases, Counterexample, Seeds
from resid.theory.shortcut import (
    ShortcutNetwork,
    balanced_hessian_spectrum,
    best_map,
    descend,
    hessian_eigenvalues,
    initial_weights,
)
from resid.theory.targets import random_rotation

__all__ = [
    "Conditioning",
    "Trained",
    "balanced_minimisers",
    "conditioning",
    "escape",
    "final_losses",
    "minimisers",
    "norms_fall_with_depth",
    "relu_losses",
    "trained_minimisers",
]

PLAIN = ("xavier", "orthogonal")


def norms_fall_with_depth(study: Study, depths: Sequence[int], rate: float, activation: str = "linear") -> Seeds:
    """Largest slope, over the quarters of the training, of log mean norm against log depth; 2-shortcut networks."""
    slopes = study.norm_slopes(depths, rate, activation)
    return _seeds(study, slopes.max(1), f"{study.data}, {activation}, depths {_list(depths)}, rate {rate:g}")


def escape(study: Study, depth: int = 12, scale: float = 0.03, rate: float = 0.1, limit: int = 20_000) -> Seeds:
    """Smaller log10 of the two ratios of successive steps to half the loss, for 2, 3 and 4 layers per unit."""
    steps = np.stack([study.steps_to_halve(length, depth, scale, rate, limit) for length in (2, 3, 4)])
    ratios = np.log10(steps[1:] / steps[:-1]).min(0)
    return _seeds(study, ratios, f"{study.data}, depth {depth}, {scale:g} Xavier, rate {rate:g}, at most {limit} steps")


@dataclass(frozen=True)
class Conditioning:
    """Outcome of `conditioning`, one number per seed each; the fields are named after the claims."""

    figure_5_smaller: Seeds
    figure_5_large_loss: Seeds
    figure_5_same_end: Seeds
    figure_6_left: Seeds
    figure_6_left_drop: Seeds
    figure_6_right: Seeds
    stays_near_zero: Seeds


#: Excess losses at which spectra are compared: 1, 0.3 and 0.1 for Figures 5 and 6, then the end.
LEVELS = (1.0, 0.3, 0.1, 0.03, 0.02)


def conditioning(
    study: Study, rates: Mapping[str, float], depth: int = 16, step: int = 4, count: int = 30
) -> Conditioning:
    """Spectra of the Hessian along trainings at one rate for each kind of network.

    Args:
        study: scale and data.
        rates: learning rate of "2-shortcut", "orthogonal" and "xavier".
        depth: of the networks.
        step: epochs between two points at which the index of the 2-shortcut network is taken, for the steepest drop.
        count: how many such points, the first at epoch 0.
    """
    levels = (*LEVELS, study.first_excess / 2)
    at = {kind: study.at_levels(kind, depth, rate, levels) for kind, rate in rates.items()}
    two = at["2-shortcut"]
    index, kappa = study.early("2-shortcut", depth, rates["2-shortcut"], step, count)
    log = {kind: np.log10(found["kappa"] / two["kappa"]) for kind, found in at.items()}
    plain = np.concatenate([log[kind][:, :3] for kind in PLAIN], 1)
    above = np.concatenate([at[kind]["index"][:, :3] - two["index"][:, :3] for kind in PLAIN], 1)
    fall = index[:, 0] - two["index"][:, 3]
    steepest = (index[:, :-1] - index[:, 1:]).argmax(1) * step + step / 2
    peak = study.path("2-shortcut", depth, rates["2-shortcut"])["gradient"].argmax(1)
    what = f"{study.data}, depth {depth}"
    return Conditioning(
        _seeds(study, np.nanmin(plain, 1), f"{what}, excess 1, 0.3 and 0.1"),
        _seeds(study, log["orthogonal"][:, 0] - log["orthogonal"][:, 3], f"{what}, excess 1 against 0.03"),
        _seeds(study, log["orthogonal"][:, 3], f"{what}, excess 0.03"),
        _seeds(study, np.nanmin(above, 1), f"{what}, excess 1, 0.3 and 0.1"),
        _seeds(study, (index[:, 0] - two["index"][:, 5]) / fall, f"{what}, down to excess 0.03"),
        _seeds(study, (steepest - peak) / peak, f"{what}, index every {step} epochs"),
        _seeds(study, np.log10(two["kappa"][:, 4] / kappa[:, 0]), f"{what}, excess 0.02 against the start"),
    )


def final_losses(study: Study, depths: Sequence[int], deep: Sequence[int], twelves: Sequence[int]) -> dict[str, Seeds]:
    """The claims about final losses of linear networks: Figure 7, abstract and Section 5, by their ids.

    Args:
        study: scale and data.
        depths: of Figure 7.
        deep: those among them from which the plain networks are compared, the last for the claim on all rates.
        twelves: depths that 12 divides.
    """
    two = {d: study.best("2-shortcut", d) for d in {*depths, *twelves}}
    other = {(kind, d): study.best(kind, d) for kind in PLAIN for d in deep}
    longer = {(kind, d): study.best(kind, d)[0] for kind in ("3-shortcut", "4-shortcut") for d in twelves}
    middle = deep[len(deep) // 2 - 1]
    alike = np.log10(study.best("orthogonal", middle)[0] / study.best("1-shortcut", middle)[0])
    rates = study.sweep("xavier", deep[-1]) + study.least_loss
    spread = np.log10(np.where(np.isfinite(rates), rates, -np.inf).max(1) / rates.min(1))
    worst = np.max([two[d][0] for d in depths], 0) / study.least_loss
    ahead = np.min([np.log10(loss / two[d][0]) for (_, d), (loss, _) in other.items()], 0)
    shorter = np.min([np.log10(loss / two[d][0]) for (_, d), loss in longer.items()], 0)
    faster = np.min([np.log10(two[d][1] / other["orthogonal", d][1]) for d in deep], 0)
    what = f"{study.data}, {study.epochs} epochs, {len(study.rates)} rates"
    return {
        "li/section-5-length-1-like-orthogonal": _seeds(study, alike, f"{what}, depth {middle}"),
        "li/figure-7-left": _seeds(study, worst, f"{what}, depths {_list(depths)}"),
        "li/figure-7-left-plain": _seeds(study, ahead, f"{what}, depths {_list(deep)}"),
        "li/abstract-longer-shortcuts": _seeds(study, shorter, f"{what}, depths {_list(twelves)}"),
        "li/figure-7-right": _seeds(study, faster, f"{what}, depths {_list(deep)}"),
        "li/figure-7-right-depth-96": _seeds(study, spread, f"{what}, depth {deep[-1]}"),
    }


def relu_losses(study: Study, shallow: int, deep: Sequence[int]) -> dict[str, Seeds]:
    """The claims about final losses with ReLU at the mid positions: Figure 8, by their ids.

    Args:
        study: scale and data.
        shallow: the depth that the deepest is compared with.
        deep: depths of the comparison.
    """
    depths = sorted({shallow, *deep})
    best = {(kind, d): study.best(kind, d, "relu")[0] for kind in ("2-shortcut", *PLAIN) for d in depths}
    last = deep[-1]
    ahead = np.min([np.log10(best[kind, d] / best["2-shortcut", d]) for kind in PLAIN for d in deep], 0)
    better = np.log10(best["2-shortcut", shallow] / best["2-shortcut", last])
    worse = np.min([np.log10(best[kind, last] / best[kind, shallow]) for kind in PLAIN], 0)
    spreads = []
    for kind in PLAIN:
        rates = study.sweep(kind, last, "relu")
        spreads.append(np.log10(np.where(np.isfinite(rates), rates, -np.inf).max(1) / rates.min(1)))
    what = f"{study.data}, {study.epochs} epochs, {len(study.rates)} rates"
    return {
        "li/figure-8-left": _seeds(study, ahead, f"{what}, depths {_list(deep)}"),
        "li/figure-8-left-deeper": _seeds(study, better, f"{what}, depths {shallow} and {last}"),
        "li/figure-8-left-plain": _seeds(study, worse, f"{what}, depths {shallow} and {last}"),
        "li/figure-8-right-depth-64": _seeds(study, np.max(spreads, 0), f"{what}, depth {last}"),
    }


def _seeds(study: Study, values: np.ndarray, what: str) -> Seeds:
    return Seeds(values.tolist(), list(study.seeds), what)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def minimisers(n: int, generator: Generator, depth: int = 6, d: int = 3) -> tuple[Cases, Counterexample]:
    """Hessians at random global minima of linear 2-shortcut networks, on a target without noise or with.

    Returns:
        Evidence for a rank of at most d^2: the largest further eigenvalue relative to the largest; and the largest and
        the least condition number, on the nonzero eigenvalues, of minimisers of one network, every other case.

    Raises:
        ArithmeticError: the widest gap between successive eigenvalues is not the one after the first d^2.
    """
    network = ShortcutNetwork(2, depth // 2, d)
    beyond, conditions = [], []
    eye = torch.eye(d, dtype=torch.float64)
    for case in range(n):
        half = torch.randn(d, d, generator=generator, dtype=torch.float64)
        xx = half @ half.mT + 0.2 * eye
        yx = torch.randn(d, d, generator=generator, dtype=torch.float64)
        if case % 2 == 0:  # the same problem again and again, for the counterexample
            xx, yx = eye, torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))
        W = _random_minimiser(network, best_map(xx, yx), generator)
        values = hessian_eigenvalues(network.hessian_from_moments(W, xx, yx)).abs().sort(descending=True).values
        steps = values[:-1] / values[1:].clamp_min(1e-14 * values[0])
        rank = 1 + int(steps.argmax())  # where the spectrum breaks off
        if rank != d * d:
            raise ArithmeticError(f"the spectrum breaks off after {rank} eigenvalues, not after d^2 = {d * d}")
        beyond.append(float(values[rank] / values[0]))
        conditions.append(float(values[0] / values[rank - 1]))
    about = (
        f"random minimisers of linear 2-shortcut networks, d = {d}, depth {depth}: eigenvalue d^2 + 1 over the first"
    )
    same = conditions[::2]
    what = f"log10 of the condition numbers on the nonzero eigenvalues, largest and least of {len(same)} minimisers"
    against = Counterexample(math.log10(max(same)), math.log10(min(same)), "==", f"{what} of one network")
    return Cases(n, worst_of(beyond), about, statement="corrected"), against


def _random_minimiser(network: ShortcutNetwork, best: Tensor, generator: Generator) -> Tensor:
    """Random weights of a linear 2-shortcut network whose last matrix is chosen such that its map is `best`."""
    d = network.width
    eye = torch.eye(d, dtype=torch.float64)
    W = 0.5 * torch.randn(network.units, 2, d, d, generator=generator, dtype=torch.float64)
    W[-1, 0] = torch.randn(d, d, generator=generator, dtype=torch.float64) + 2 * eye
    W[-1, 1] = 0
    others = network.linear_map(W)  # the last unit adds nothing yet
    W[-1, 1] = (best @ torch.linalg.inv(others) - eye) @ torch.linalg.inv(W[-1, 0])
    return W


def balanced_minimisers(n: int, generator: Generator) -> Cases:
    """`balanced_hessian_spectrum` against the Hessian at balanced minimisers, d = 1..4, 1 to 8 matrices.

    The matrices are U_i S^(1/D) U_(i-1)^T with random orthogonal U_i and the singular values S of the map; plain
    networks and shortcuts of length 1 in turn. Singular values spread over up to two decades.
    """
    errors = []
    for case in range(n):
        d, depth, shortcut = 1 + case % 4, 1 + case // 4 % 8, bool(case % 2)
        eye = torch.eye(d, dtype=torch.float64)
        bases = torch.stack([random_rotation(d, generator) for _ in range(depth + 1)])
        sizes = (2.3 * torch.randn(d, generator=generator, dtype=torch.float64)).clamp(-2.3, 2.3).exp()
        W = bases[1:] @ torch.diag(sizes ** (1 / depth)) @ bases[:-1].mT
        R = bases[-1] @ torch.diag(sizes) @ bases[0].mT
        network = ShortcutNetwork(1, depth, d, shortcut=shortcut)
        values = hessian_eigenvalues(network.hessian_from_moments((W - eye if shortcut else W)[:, None], eye, R))
        expected = torch.cat(
            [torch.zeros((depth - 1) * d * d, dtype=torch.float64), balanced_hessian_spectrum(R, depth)]
        )
        errors.append(float((values - expected).abs().max() / expected[-1]))
    return Cases(n, worst_of(errors), "random balanced minimisers, whitened inputs, d = 1..4, 1 to 8 matrices")


@dataclass(frozen=True)
class Trained:
    """Outcome of `trained_minimisers`.

    Args:
        spread: evidence, per seed the decimal logarithm of the largest over the least condition number.
        logs: (seeds, 3), decimal logarithms for 2-shortcut, 1-shortcut and orthogonal networks.
        balanced: (seeds,), the same by the formula for a balanced minimiser.
        random: (seeds,), at a random minimiser of the 2-shortcut network.
        excess: the largest excess loss where descent ended.
    """

    spread: Seeds
    logs: np.ndarray
    balanced: np.ndarray
    random: np.ndarray
    excess: float


def trained_minimisers(seeds: Sequence[int], depth: int = 8, d: int = 4) -> Trained:
    """Condition numbers, on the d^2 nonzero eigenvalues, where gradient descent ends; whitened inputs.

    The best map is I + 0.3 G with Gaussian G and a determinant above 0.1. Networks with shortcuts start from a
    hundredth of Xavier weights, plain ones from orthogonal weights whose product is a rotation.

    Raises:
        ArithmeticError: an excess loss above 1e-9 after 16,000 epochs.
    """
    logs, balanced, random, excess = [], [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(2000 + seed)
        R = -torch.eye(d, dtype=torch.float64)
        R[0, 0] = 1
        while not float(torch.linalg.det(R)) > 0.1:
            R = torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, generator=generator, dtype=torch.float64)
        found = []
        for length, shortcut in ((2, True), (1, True), (1, False)):
            network = ShortcutNetwork(length, depth // length, d, shortcut=shortcut)
            if shortcut:
                W = initial_weights(network, "xavier", generator, 0.01)
            else:
                W = initial_weights(network, "orthogonal", generator)
                W[0, 0, 0] *= float(torch.linalg.det(network.linear_map(W)).sign())
            W, reached = _to_the_end(network, W, R)
            found.append(_log_condition(network, W, R))
            excess.append(reached)
        logs.append(found)
        values = balanced_hessian_spectrum(R, depth)
        balanced.append(math.log10(float(values[-1] / values[0])))
        network = ShortcutNetwork(2, depth // 2, d)
        random.append(_log_condition(network, _random_minimiser(network, R, generator), R))
    table = np.array(logs)
    what = f"log10 of largest over least condition number of three trained networks, d = {d}, depth {depth}"
    spread = Seeds((table.max(1) - table.min(1)).tolist(), list(seeds), what)
    return Trained(spread, table, np.array(balanced), np.array(random), worst_of(excess))


def _to_the_end(network: ShortcutNetwork, W: Tensor, R: Tensor) -> tuple[Tensor, float]:
    """Weights and excess loss where gradient descent on the best map R ends, below 1e-9; inputs sqrt(d) e_i."""
    X = len(R) ** 0.5 * torch.eye(len(R), dtype=R.dtype)
    for _ in range(16):
        run = descend(network, W[None], 0.05, X, X @ R.mT, 1000)
        W, excess = run.weights[1000][0], float(run.loss[-1, 0])
        if excess <= 1e-9:
            return W, excess
    raise ArithmeticError(f"descent ended at an excess loss of {excess:.3g}, above 1e-9")


def _log_condition(network: ShortcutNetwork, W: Tensor, R: Tensor) -> float:
    """Decimal logarithm of the condition number on the d^2 largest eigenvalues at a minimiser, whitened inputs."""
    d = len(R)
    values = hessian_eigenvalues(network.hessian_from_moments(W, torch.eye(d, dtype=R.dtype), R))[-d * d :]
    return math.log10(float(values[-1] / values[0]))
