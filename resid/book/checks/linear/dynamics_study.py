"""How shortcut and plain networks learn whitened digits: trainings and spectra of Li et al. 2016, Figures 3 and 5 to 8.

The seed decides the initial weights; the data are always the same. Pieces of work go through a `Journal`, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from resid.book.journal import Journal
from resid.data.whitened import load_whitened
from resid.theory.shortcut import (
    Descent,
    ShortcutNetwork,
    choose_kernel,
    condition_number,
    descend,
    hessian_eigenvalues,
    hessian_index,
    initial_weights,
    least_linear_loss,
    second_moments,
)

__all__ = ["KINDS", "SOURCES", "Study", "make_network", "make_weights"]

#: The code that decides what a piece of a `Study` comes out as, for its `Journal`.
SOURCES = (Path(__file__),)

KINDS = ("xavier", "orthogonal", "1-shortcut", "2-shortcut", "3-shortcut", "4-shortcut")


def make_network(kind: str, depth: int, width: int = 10, activation: str = "linear") -> ShortcutNetwork:
    """The network of a kind with `depth` matrices. A plain network with an activation has it behind every odd layer.

    Raises:
        DepthError: the length of the shortcut does not divide the depth.
    """
    if kind in ("xavier", "orthogonal"):
        length = 1 if activation == "linear" else 2
        return ShortcutNetwork(length, _whole(depth / length), width, activation, shortcut=False)
    length = int(kind[0])
    return ShortcutNetwork(length, _whole(depth / length), width, activation)


def _whole(number: float) -> int:
    """A whole number, or what `ShortcutNetwork` refuses."""
    return int(number) if number == int(number) else 0


def make_weights(kind: str, network: ShortcutNetwork, seeds: Sequence[int], scale: float = 0.01) -> Tensor:
    """Initial weights (seeds, units, length, d, d): with shortcuts `scale` times Xavier (Li et al. 2016, Section 5)."""
    init = "orthogonal" if kind == "orthogonal" else "xavier"
    factor = scale if network.shortcut else 1.0
    found = []
    for seed in seeds:
        generator = Generator().manual_seed(1000 * seed + 10 * network.depth + KINDS.index(kind))
        found.append(initial_weights(network, init, generator, factor))
    return torch.stack(found)


@dataclass
class Study:
    """Everything one run of the chapter measures, on one data set and at one scale.

    Args:
        data: "mnist" or "digits".
        seeds: of the initial weights.
        epochs: of each training of a sweep, and for `norms`.
        rates: learning rates of sweeps.
        path_epochs: of the trainings along which Hessians are taken.
        journal: keeps pieces.
        device: of the networks with ReLU; linear ones are trained in float64 on the CPU.
        dtype: of the networks with ReLU; linear ones are trained in float64 on the CPU.
    """

    data: str
    seeds: Sequence[int]
    epochs: int
    rates: Sequence[float]
    journal: Journal
    path_epochs: int = 1000
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @cached_property
    def problem(self) -> tuple[Tensor, Tensor]:
        """Inputs and one-hot labels (m, 10)."""
        return load_whitened(self.data)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Second moments of the data."""
        return second_moments(*self.problem)

    @cached_property
    def least_loss(self) -> float:
        """Least loss of a linear map."""
        return least_linear_loss(*self.problem)

    @cached_property
    def first_excess(self) -> float:
        """Excess loss of a shortcut network at zero weights."""
        X, Y = self.problem
        return float((X - Y).square().sum() / (2 * len(X))) - self.least_loss

    def key(self, what: str, **more: object) -> dict[str, object]:
        """Key of a piece in the journal."""
        return {"what": what, "data": self.data, "seeds": list(self.seeds), "epochs": self.epochs} | more

    def kernel(self, activation: str) -> str:
        """What `descend` computes with here."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return choose_kernel(make_network("2-shortcut", 2, activation=activation), like)

    def _how(self, activation: str) -> dict[str, str]:
        """What a piece about networks with an activation depends on besides."""
        if activation == "linear":
            return {}
        return {"activation": activation, "device": self.device, "kernel": self.kernel(activation)}

    # ---------------------------------------------------------------------------------------------- Figures 3, 7 and 8

    def sweep(self, kind: str, depth: int, activation: str = "linear") -> np.ndarray:
        """Final losses (seeds, rates), for linear networks above the least; infinite where a run diverged."""
        if activation != "linear" and self.device == "cpu":  # minutes to compute: each seed is kept by itself
            return np.concatenate([self._sweep(kind, depth, activation, [seed]) for seed in self.seeds])
        return self._sweep(kind, depth, activation, self.seeds)

    def _sweep(self, kind: str, depth: int, activation: str, seeds: Sequence[int]) -> np.ndarray:
        def compute() -> dict[str, np.ndarray]:
            network = make_network(kind, depth, activation=activation)
            start = make_weights(kind, network, seeds)
            runs = start.repeat_interleave(len(self.rates), 0)
            rates = torch.tensor(list(self.rates), dtype=torch.float64).repeat(len(seeds))
            if activation != "linear":
                runs = runs.to(self.device, self.dtype)
            done = descend(network, runs, rates, *self.problem, self.epochs)
            return {"loss": done.loss[-1].double().cpu().view(len(seeds), -1).numpy()}

        extra = {"rates": list(self.rates), "seeds": list(seeds)} | self._how(activation)
        return self.journal(self.key("sweep", kind=kind, depth=depth, **extra), compute)["loss"]

    def best(self, kind: str, depth: int, activation: str = "linear") -> tuple[np.ndarray, np.ndarray]:
        """Per seed the least final loss over the rates, and the rate that reached it: (seeds,), (seeds,)."""
        losses = self.sweep(kind, depth, activation)
        return losses.min(1), np.asarray(self.rates)[losses.argmin(1)]

    def norms(self, depth: int, rate: float, activation: str = "linear", kind: str = "2-shortcut") -> np.ndarray:
        """Mean Frobenius norm of the weight matrices (seeds, 4) after each quarter of the epochs."""
        marks = [self.epochs * k // 4 for k in (1, 2, 3, 4)]

        def compute() -> dict[str, np.ndarray]:
            network = make_network(kind, depth, activation=activation)
            start = make_weights(kind, network, self.seeds)
            if activation != "linear":
                start = start.to(self.device, self.dtype)
            done = descend(network, start, rate, *self.problem, self.epochs, keep=marks)
            mean = [done.weights[e].flatten(-2).norm(dim=-1).mean((1, 2)) for e in marks]
            return {"norms": torch.stack(mean, 1).double().cpu().numpy()}

        key = self.key("norms", kind=kind, depth=depth, rate=rate, **self._how(activation))
        return self.journal(key, compute)["norms"]

    def norm_slopes(self, depths: Sequence[int], rate: float, activation: str = "linear") -> np.ndarray:
        """Slope of log mean norm against log depth (seeds, 4), after each quarter of the epochs."""
        logs = np.log(np.stack([self.norms(d, rate, activation) for d in depths]))  # (depths, seeds, 4)
        return np.polyfit(np.log(depths), logs.reshape(len(depths), -1), 1)[0].reshape(logs.shape[1:])

    # -------------------------------------------------------------------------------------------------- Figures 5 and 6

    def path(self, kind: str, depth: int, rate: float) -> dict[str, np.ndarray]:
        """A training of `path_epochs` epochs at one rate: "excess" and "gradient" norm, both (seeds, epochs + 1).

        Raises:
            ArithmeticError: a run diverged.
        """

        def compute() -> dict[str, np.ndarray]:
            done = self._train(kind, depth, rate, self.path_epochs, ())
            if bool(done.diverged.any()):
                raise ArithmeticError(f"{kind}, rate {rate:g}: a run diverged")
            return {"excess": done.loss.mT.numpy(), "gradient": done.gradient_norm.mT.numpy()}

        return self.journal(self.key("path", kind=kind, depth=depth, rate=rate, path=self.path_epochs), compute)

    def _train(self, kind: str, depth: int, rate: float, epochs: int, keep: Iterable[int]) -> Descent:
        network = make_network(kind, depth)
        return descend(network, make_weights(kind, network, self.seeds), rate, *self.problem, epochs, keep)

    def spectra(self, kind: str, depth: int, rate: float, epochs: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Hessian eigenvalues (len(epochs[i]), N) along the path of each seed i at the epochs asked for."""
        network = make_network(kind, depth)
        every = sorted({e for wanted in epochs for e in wanted})
        weights: dict[int, Tensor] = {}
        found = []
        for i, wanted in enumerate(epochs):

            def compute(i: int = i, wanted: Sequence[int] = wanted) -> dict[str, np.ndarray]:
                if not weights:  # the training once more, which is cheap, instead of keeping all its weights
                    weights.update(self._train(kind, depth, rate, max(every), every).weights)
                hessians = (network.hessian_from_moments(weights[e][i], *self.moments) for e in wanted)
                return {"values": np.stack([hessian_eigenvalues(H).numpy() for H in hessians])}

            key = self.key("spectra", kind=kind, depth=depth, rate=rate, seed=self.seeds[i], at=list(map(int, wanted)))
            found.append(self.journal(key, compute)["values"])
        return found

    def at_levels(self, kind: str, depth: int, rate: float, levels: Sequence[float]) -> dict[str, np.ndarray]:
        """ "kappa", "index", "epoch" (seeds, levels) where the excess loss first falls to a level, or NaN.

        Between the epochs before and after the crossing log kappa and the index are interpolated linearly in the
        logarithm of the excess loss.
        """
        excess = self.path(kind, depth, rate)["excess"]
        kappa = np.full((len(excess), len(levels)), np.nan)
        index, epoch = np.full_like(kappa, np.nan), np.full_like(kappa, np.nan)
        crossings = [[_first(row <= level) for level in levels] for row in excess]
        wanted = [sorted({e for c in row if c is not None for e in (max(c - 1, 0), c)}) for row in crossings]
        for i, values in enumerate(self.spectra(kind, depth, rate, wanted)):
            at = dict(zip(wanted[i], values, strict=True))
            for j, c in enumerate(crossings[i]):
                if c is None:
                    continue
                before, after = max(c - 1, 0), c
                low, high = np.log(excess[i, before]), np.log(excess[i, after])
                part = 0.0 if before == after else float((low - np.log(levels[j])) / (low - high))
                ends = [np.array([np.log(condition_number(at[e], 0.1)), hessian_index(at[e])]) for e in (before, after)]
                logk, index[i, j] = (1 - part) * ends[0] + part * ends[1]
                kappa[i, j], epoch[i, j] = np.exp(logk), after
        return {"kappa": kappa, "index": index, "epoch": epoch}

    def early(self, kind: str, depth: int, rate: float, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Index and kappa (seeds, count) at epochs 0, step, 2 step, ... of a training."""
        at = [step * k for k in range(count)]
        spectra = self.spectra(kind, depth, rate, [at] * len(self.seeds))
        index = np.array([[hessian_index(v) for v in values] for values in spectra])
        kappa = np.array([[condition_number(v, 0.1) for v in values] for values in spectra])
        return index, kappa

    # ------------------------------------------------------------------------------------------------------ Section 4.2

    def steps_to_halve(self, length: int, depth: int, scale: float, rate: float, limit: int) -> np.ndarray:
        """Steps (seeds,) until the loss is half that at zero, from `scale` times Xavier; `limit` where it is not."""

        def compute() -> dict[str, np.ndarray]:
            kind = f"{length}-shortcut"
            network = make_network(kind, depth)
            W, steps = make_weights(kind, network, self.seeds, scale), np.full(len(self.seeds), limit)
            goal = (self.first_excess + self.least_loss) / 2 - self.least_loss
            for start in range(0, limit, 500):
                count = min(500, limit - start)
                done = descend(network, W, rate, *self.problem, count)
                hit = done.loss.numpy() <= goal
                first = np.where(hit.any(0), hit.argmax(0) + start, limit)
                steps = np.minimum(steps, first)
                W = done.weights[count]
                if bool((steps < limit).all()):
                    break
            return {"steps": steps}

        key = self.key("halve", length=length, depth=depth, scale=scale, rate=rate, limit=limit)
        return self.journal(key, compute)["steps"]


def _first(condition: np.ndarray) -> int | None:
    """Index of the first true entry."""
    return int(condition.argmax()) if condition.any() else None
