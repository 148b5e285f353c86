"""What the experiments on CIFAR and ImageNet measure: numbers out of the metrics of trainings.

A measure is a function of the metrics of a claim's recipes, in the claim's order and all with the same seed. A claim
names it in its field `measure`; its `test` says the same in words. Errors are of the last epoch, never the best one, in
percent. A run that diverged counts as guessing there, and has no value, NaN, in measures over epochs.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np

from resid.training.sweep import Metrics

__all__ = ["MEASURES", "REMARKS", "Measure", "error"]

#: Of the metrics of several runs and, where it has a parameter `depths`, of the depths of the networks.
Measure = Callable[..., float]

#: Names of the blocks that change the shape: the first, whose input are the images or the stem's channels, and others.
FIRST, LATER = ("stem", "transitions.0"), ("transitions.1", "transitions.2")
NORM_EPOCHS = (10, 40, 80, 120, 160, 200)
#: Epochs over which the paper's Table 1 is read, and those over which fluctuations are.
GAP_EPOCHS, SETTLED = 100, 10


def error(run: Metrics) -> float:
    """Test error after the last epoch, in percent."""
    return 100 * float(run[-1]["test_error"])


def training_error(run: Metrics) -> float:
    """Training error after the last epoch, in percent, on the augmented batches of the epoch as they came."""
    return 100 * float(run[-1]["train_error"])


def top5_error(run: Metrics) -> float:
    """Top-5 test error after the last epoch, in percent."""
    return 100 * float(run[-1]["test_top5_error"])


def plain_training_error(run: Metrics) -> float:
    """Error after the last epoch on training images without augmentation, in percent."""
    return 100 * float(run[-1]["plain_train_error"])


def errors(run: Metrics) -> np.ndarray:
    """Test errors of all epochs in percent."""
    return np.array([100 * line["test_error"] for line in run])


def gaps(run: Metrics) -> np.ndarray:
    """Generalisation gap, test error minus training error, of the first epochs, in points."""
    return 100 * np.array([line["test_error"] - line["train_error"] for line in run[:GAP_EPOCHS]])


def last_gap(run: Metrics) -> float:
    """Generalisation gap after the last epoch, in points."""
    return error(run) - training_error(run)


def excess_gap(run: Metrics) -> float:
    """Largest minus mean gap, in points."""
    return float(gaps(run).max() - gaps(run).mean())


def fluctuation(run: Metrics) -> float:
    """Standard deviation of the change of the test error from one epoch to the next, from epoch 11 on, in points."""
    return float(np.std(np.diff(errors(run)[SETTLED:]), ddof=1))


def ratios(run: Metrics, epochs: int | None = None) -> dict[str, np.ndarray]:
    """Gradient ratios of each block over the epochs in which they were taken."""
    found = [line["ratios"] for line in run[:epochs] if "ratios" in line]
    return {name: np.array([line[name] for line in found]) for name in found[0]}


def deviations(run: Metrics, epochs: int | None = None) -> dict[str, np.ndarray]:
    """|log ratio| of each block over the epochs."""
    with np.errstate(divide="ignore"):
        return {name: np.abs(np.log(values)) for name, values in ratios(run, epochs).items()}


def mean_deviation(run: Metrics, identity: bool = False) -> float:
    """Mean over blocks and epochs; identity: only over blocks with an identity skip."""
    return float(np.mean([v for name, v in deviations(run).items() if not identity or name not in FIRST + LATER]))


def largest_deviation(
    run: Metrics, epochs: int | None = None, only: Callable[[str], bool] = lambda name: True
) -> float:
    """Largest over blocks and epochs."""
    return most([float(v) for name, values in deviations(run, epochs).items() if only(name) for v in values])


def most(values: Sequence[float]) -> float:
    """The largest; NaN if one of them is."""
    return float(np.max(values))


def least(values: Sequence[float]) -> float:
    """The least; NaN if one of them is."""
    return float(np.min(values))


def _of_one(measure: Callable[[Metrics], float]) -> Measure:
    def number(runs: Sequence[Metrics]) -> float:
        (run,) = runs
        return measure(run)

    return number


def _first_minus_second(measure: Callable[[Metrics], float]) -> Measure:
    def number(runs: Sequence[Metrics]) -> float:
        first, second = runs
        return measure(first) - measure(second)

    return number


def _second_minus_first(measure: Callable[[Metrics], float]) -> Measure:
    def number(runs: Sequence[Metrics]) -> float:
        first, second = runs
        return measure(second) - measure(first)

    return number


def takes_depths(measure: Measure) -> bool:
    """Whether a measure is to be told the depths of the networks."""
    return "depths" in inspect.signature(measure).parameters


def _while_finite(measure: Measure, epochs: int | None = None) -> Measure:
    """A measure over the first epochs, or all, that has no value where a run diverged within them."""

    @functools.wraps(measure)  # whose parameters tell whether it takes depths
    def number(runs: Sequence[Metrics], *depths: Sequence[int], **named: Sequence[int]) -> float:
        if any("diverged" in line for run in runs for line in run[:epochs]):
            return math.nan
        return measure(runs, *depths, **named)

    return number


def _last_over_best(run: Metrics) -> float:
    return float(errors(run)[-1] - errors(run).min())


def _steps_to_peak(run: Metrics) -> float:
    """Thousands of steps after which the error stays within 0.2 points of its last value."""
    away = np.abs(errors(run) - errors(run)[-1]) > 0.2 + 1e-9  # a difference of 0.2 is within
    settled = int(np.flatnonzero(away)[-1]) + 1 if away.any() else 0
    return run[settled]["step"] / 1000


def _drop(run: Metrics) -> float:
    """Mean error over steps 28,000 to 30,000 minus that over steps 32,000 to 34,000."""
    found = errors(run)
    steps = np.array([line["step"] for line in run])
    before, after = (found[(steps >= low) & (steps <= low + 2000)] for low in (28_000, 32_000))
    return float(before.mean() - after.mean()) if len(before) and len(after) else math.nan


def _norm_slope(runs: Sequence[Metrics], depths: Sequence[int]) -> float:
    """Largest slope, over some epochs, of log mean weight norm against log depth; of a short run all epochs count."""
    epochs = NORM_EPOCHS if len(runs[0]) >= NORM_EPOCHS[-1] else range(1, len(runs[0]) + 1)
    norms = np.log([[run[epoch - 1]["weight_norm"] for run in runs] for epoch in epochs])
    return most([float(np.polyfit(np.log(depths), row, 1)[0]) for row in norms])


def _at_the_end(run: Metrics, what: str) -> np.ndarray:
    """ "ratios" or "branches" of all blocks that have them, where they were last measured."""
    return np.array(list(next(line[what] for line in reversed(run) if what in line).values()))


def _branch_slope(runs: Sequence[Metrics], depths: Sequence[int]) -> float:
    """Slope of log mean branch over input against log depth, at the end minus at the start."""
    slopes = []
    for ordered in ([run[::-1] for run in runs], runs):  # what stands last is taken
        means = [float(_at_the_end(run, "branches").mean()) for run in ordered]
        slopes.append(float(np.polyfit(np.log(depths), np.log(means), 1)[0]))
    return slopes[1] - slopes[0]


def _least_of_others_minus_first(values: Sequence[float], guessing: float) -> float:
    """NaN where the first one guesses: nothing was learned that could be compared."""
    return least(values[1:]) - values[0] if values[0] < guessing else math.nan


def _length_two_by_error(runs: Sequence[Metrics]) -> float:
    return _least_of_others_minus_first([error(run) for run in runs], 90)


def _length_two_by_loss(runs: Sequence[Metrics], lengths: int = 4) -> float:
    return _least_of_others_minus_first(_best_losses(runs, lengths), math.log(10))


def _best_losses(runs: Sequence[Metrics], lengths: int) -> list[float]:
    """Least training loss of the last epoch over the rates, for each length; a run that diverged guesses among ten."""
    rates = len(runs) // lengths
    losses = [math.log(10) if "diverged" in run[-1] else float(run[-1]["loss"]) for run in runs]
    return [least(losses[i : i + rates]) for i in range(0, len(losses), rates)]


def _diverged_in(run: Metrics) -> float:
    """Epoch in which the loss is first not finite, or 100."""
    return float(run[-1]["epoch"]) if "diverged" in run[-1] else 100.0


def _growth(run: Metrics) -> float:
    return largest_deviation(run) - largest_deviation(run, 1)


def _one_block(run: Metrics) -> float:
    first = largest_deviation(run, 5, lambda name: name in FIRST)
    return first - largest_deviation(run, 5, lambda name: name not in FIRST)


def _large_block(run: Metrics) -> float:
    """With the sign that a deviation leaves out: log of the first block's largest ratio over the others' largest."""
    early = ratios(run, 5)
    first = most([float(v) for name, values in early.items() if name in FIRST for v in values])
    return math.log(first / most([float(v) for name, values in early.items() if name not in FIRST for v in values]))


def _stem(run: Metrics) -> float:
    means = {name: float(values.mean()) for name, values in deviations(run).items()}
    return means.pop("stem") - most(list(means.values()))


def _residual_depth(runs: Sequence[Metrics]) -> float:
    """Of ResNet and ProcResNet, each shallow and deep."""
    means = [mean_deviation(run, identity=True) for run in runs]
    return least([means[0] - means[1], means[2] - means[3]])


def _start_of_worst(runs: Sequence[Metrics]) -> float:
    """Identity blocks at initial weights, shallow minus deep."""
    shallow, deep = (largest_deviation(run, 1, lambda name: name not in FIRST + LATER) for run in runs)
    return shallow - deep


def _around_one(runs: Sequence[Metrics]) -> float:
    return most([abs(float(np.median(np.concatenate(list(ratios(run).values())))) - 1) for run in runs])


def _loss_falls(runs: Sequence[Metrics]) -> float:
    """ResNet and ProcResNet in turn, from shallow to deep."""
    losses = [float(run[-1]["loss"]) for run in runs]
    falls = [shallow - deep for shallow, deep in zip(losses, losses[2:], strict=False)]
    return least(falls)


def _in_pairs(measure: Callable[[Metrics], float]) -> Measure:
    """The least difference of pairs, first minus second."""

    def number(runs: Sequence[Metrics]) -> float:
        return least([measure(a) - measure(b) for a, b in zip(runs[::2], runs[1::2], strict=True)])

    return number


def _fluctuation_ratio(runs: Sequence[Metrics]) -> float:
    deep, shallow = runs
    return fluctuation(deep) / fluctuation(shallow)


def _mean_gap(run: Metrics) -> float:
    return float(gaps(run).mean())


def _over_epochs(measures: dict[str, Measure]) -> dict[str, Measure]:
    return {name: _while_finite(measure) for name, measure in measures.items()}


#: Measures by the names that the claims use.
MEASURES: dict[str, Measure] = {
    # of the last epoch: a run that diverged guesses
    "error": _of_one(error),
    "top-5 error": _of_one(top5_error),
    "plain training error": _of_one(plain_training_error),
    "error, first minus second": _first_minus_second(error),
    "error, second minus first": _second_minus_first(error),
    "error, least difference of pairs": _in_pairs(error),
    "error, least of the others minus first": _length_two_by_error,
    "training error, first minus second": _first_minus_second(training_error),
    "gap, first minus second": _first_minus_second(last_gap),
    "loss at the best rate, least of the others minus first": _length_two_by_loss,
    "loss at the best rate, least of two others minus first": functools.partial(_length_two_by_loss, lengths=3),
    "epoch of divergence": _of_one(_diverged_in),
    # of several epochs: a run that diverged has no value
    **_over_epochs(
        {
            "error, last over best": _of_one(_last_over_best),
            "steps to the peak": _of_one(_steps_to_peak),
            "drop of the error": _of_one(_drop),
            "slope of the weight norm": _norm_slope,
            "slope of the branches": _branch_slope,
            "largest branch": _of_one(lambda run: float(_at_the_end(run, "branches").max())),
            "growth of the largest deviation": _of_one(_growth),
            "mean deviation, first minus second": _first_minus_second(mean_deviation),
            "mean deviation of identity blocks, shallow minus deep": _residual_depth,
            "mean deviation at the end": _of_one(lambda run: float(abs(np.log(_at_the_end(run, "ratios"))).mean())),
            "deviation of the stem over the others": _of_one(_stem),
            "largest deviation of later transitions, first minus second": _first_minus_second(
                lambda run: largest_deviation(run, None, lambda name: name in LATER)
            ),
            "distance of the median ratio from one": _around_one,
            "least fall of the loss with depth": _loss_falls,
            "fluctuation, first minus second": _first_minus_second(fluctuation),
            "fluctuation, first over second": _fluctuation_ratio,
            "mean gap": _of_one(_mean_gap),
            "mean gap, least difference of pairs": _in_pairs(_mean_gap),
            "largest gap": _of_one(lambda run: float(gaps(run).max())),
            "excess gap, least difference of pairs": _in_pairs(excess_gap),
        }
    ),
    # of the first epochs
    "largest initial deviation, first minus second": _while_finite(_start_of_worst, 1),
    "deviation of the first block over the others": _while_finite(_of_one(_one_block), 5),
    "log ratio of the first block over the others": _while_finite(_of_one(_large_block), 5),
}


def _extreme_ratios(runs: Sequence[Metrics]) -> str:
    """What a deviation leaves out: which way the ratios go; and whether the network has learned anything."""
    (run,) = runs
    first: list[float] = []
    others: list[float] = []
    for line in run:
        for name, ratio in line.get("ratios", {}).items():
            (first if name in FIRST else others).append(ratio)
    ranges = (f"{what} from {min(r):.2g} to {max(r):.2g}" for what, r in (("first block", first), ("others", others)))
    return f"out/in, {', '.join(ranges)}, training error at the end {training_error(run):.1f}%"


#: What a record says beside the number, of each seed, by the name of the measure.
REMARKS: dict[str, Callable[[Sequence[Metrics]], str]] = {
    "deviation of the first block over the others": _extreme_ratios,
}
