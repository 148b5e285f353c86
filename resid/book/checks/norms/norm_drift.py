"""Trials of the experiments of Zaeemzadeh et al. 2018, Section 3 and Figure 2, on the digits or on CIFAR-10."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resid.book.checks.norms.norm_study import NormStudy, Passage
from resid.ledger.evidence import Seeds

__all__ = ["Figure2", "energy_assumption", "figure_2"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Figure2:
    """Trainings of the three-layer network: runs[projected][pair] has one `Passage` for each seed."""

    runs: dict[bool, dict[Pair, list[Passage]]]
    seeds: tuple[int, ...]
    what: str

    def mean(self, projected: bool, pair: Pair, name: str, dead: float | None = None) -> np.ndarray:
        """Mean over the last epoch of "ratio", "deviation", "share" or "passed", (seeds,).

        Args:
            projected: of the networks that are projected, or of the others.
            pair: channels (c, d) of the middle layer.
            name: "ratio", "deviation", "share" or "passed".
            dead: value of a network that died in every draw.

        Raises:
            ArithmeticError: there is one, and no value for it.
        """
        runs = self.runs[projected][pair]
        return np.array([run.last_epoch(name)[0] if dead is None or not run.dead else dead for run in runs])

    def projection_helps(self) -> Seeds:
        """Mean deviation without projection minus that with it, over the pairs that live both ways, for each seed.

        Raises:
            ArithmeticError: none does.
        """
        without, projected = (
            np.array([self.mean(which, pair, "deviation", math.nan) for pair in self.runs[which]])
            for which in (False, True)
        )
        live = np.isfinite(without - projected)
        if not live.any(0).all():
            raise ArithmeticError("the networks of every pair have died")
        return self._seeds(np.mean(without - projected, 0, where=live))

    def many_channels(self, least: int) -> Seeds:
        """Largest distance of a mean ratio from 1 among pairs of at least so many channels, with projection."""
        return self._seeds(np.max([np.abs(self.mean(True, p, "ratio") - 1) for p in self._many(least)], 0))

    def few_channels(self, least: int) -> Seeds:
        """Deviation at 2 to 2 channels minus the largest of the pairs of many channels, with projection."""
        largest = np.max([self.mean(True, p, "deviation") for p in self._many(least)], 0)
        return self._seeds(self.mean(True, (2, 2), "deviation") - largest)

    def passed(self, pair: Pair) -> Seeds:
        """Share of the gradient's energy that passes the ReLU of a pair, with projection."""
        return self._seeds(self.mean(True, pair, "passed"))

    @property
    def redrawn(self) -> dict[Pair, int]:
        """Networks that died and were drawn again, of the pairs that have any."""
        count: dict[Pair, int] = {}
        for runs in self.runs.values():
            for pair, passages in runs.items():
                again = sum(run.seed != seed for run, seed in zip(passages, self.seeds, strict=True))
                if again:
                    count[pair] = count.get(pair, 0) + again
        return count

    @property
    def dead(self) -> dict[Pair, int]:
        """Networks that died in every draw, of the pairs that have any."""
        count: dict[Pair, int] = {}
        for runs in self.runs.values():
            for pair, passages in runs.items():
                if lost := sum(run.dead for run in passages):
                    count[pair] = count.get(pair, 0) + lost
        return count

    def _many(self, least: int) -> list[Pair]:
        return [pair for pair in self.runs[True] if min(pair) >= least]

    def _seeds(self, values: np.ndarray) -> Seeds:
        what = self.what
        for told, found in (("drawn again since they died", self.redrawn), ("dead in every draw", self.dead)):
            if found:
                what += f"; {told}: " + ", ".join(f"{count} of {c} to {d}" for (c, d), count in found.items())
        return Seeds(values.tolist(), self.seeds, what)


def figure_2(
    study: NormStudy,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    epochs: int,
    kernel: int = 3,
    which: Sequence[bool] = (False, True),
) -> Figure2:
    """Train the three-layer network of every pair (c, d), without projection and with it, or only `which`."""
    # the largest first, so that processes beside each other end at about the same time
    cases = sorted(((pair, projected) for projected in which for pair in pairs), key=lambda case: -math.prod(case[0]))
    found = dict(zip(cases, study.three_layers(cases, seeds, epochs, kernel), strict=True))
    runs = {projected: {pair: found[pair, projected] for pair in pairs} for projected in which}
    shown = ", ".join(f"{c} to {d}" for c, d in pairs)
    what = f"{study.data.name}, {epochs} epochs, {kernel} x {kernel}, rate {study.recipe.rate:g}, channels {shown}"
    return Figure2(runs, tuple(seeds), what + _kept(study))


def energy_assumption(
    study: NormStudy, seeds: Sequence[int], epochs: int, width: int = 4
) -> tuple[Seeds, list[Passage]]:
    """Share of the gradient's energy in the range of the transitions of ProcResNet-22, over 1/2, in the last epoch."""
    runs = study.transitions(seeds, epochs, width=width)
    shares = [float(run.last_epoch("share").mean()) / 0.5 for run in runs]
    net = f"ProcResNet-22 of width {width}, both transitions"
    what = f"{study.data.name}, {epochs} epochs, rate {study.recipe.rate:g}, {net}"
    return Seeds(shares, seeds, what + _kept(study)), runs


def _kept(study: NormStudy) -> str:
    """A remark on the trainings that an earlier process had made: the seconds on record do not have theirs."""
    kept = study.journal.reused
    return f"; {kept} of {kept + study.journal.computed} trainings made by an earlier process" if kept else ""
