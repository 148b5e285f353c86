"""The experiments of the three papers on CIFAR and ImageNet, and those beyond them: what each claim measures.

A measure is a function of the metrics of the claim's recipes (`resid.training.recipes.FOR_CLAIM`, in that order), all
with the same seed, to the number that the claim's `test` in claims.yaml describes. Errors are of the last epoch, never
the best one, in percent; a run that diverged counts as guessing there, and has no value, NaN, in
measures over epochs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resid.errors import OptionError
from resid.ledger import Seeds
from resid.training.engine import code_of_training
from resid.training.recipe import Recipe
from resid.training.recipes import FOR_CLAIM, RECIPES
from resid.training.sweep import Metrics, Runs

__all__ = ["DIGITS", "MEASURES", "evidence", "foreign_recipes", "recipes_of"]

Measure = Callable[[Sequence[Metrics]], float]

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


def _while_finite(measure: Measure, epochs: int | None = None) -> Measure:
    """A measure over the first epochs, or all, that has no value where a run diverged within them."""

    def number(runs: Sequence[Metrics]) -> float:
        return math.nan if any("diverged" in line for run in runs for line in run[:epochs]) else measure(runs)

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


def _norm_slope(
    runs: Sequence[Metrics], depths: Sequence[int] = (20, 56, 110), epochs: Sequence[int] = NORM_EPOCHS
) -> float:
    """Largest slope, over some epochs, of log mean weight norm against log depth."""
    norms = np.log([[run[epoch - 1]["weight_norm"] for run in runs] for epoch in epochs])
    return most([float(np.polyfit(np.log(depths), row, 1)[0]) for row in norms])


def _at_the_end(run: Metrics, what: str) -> np.ndarray:
    """ "ratios" or "branches" of all blocks that have them, where they were last measured."""
    return np.array(list(next(line[what] for line in reversed(run) if what in line).values()))


def _branch_slope(runs: Sequence[Metrics], depths: Sequence[int] = (20, 56, 110)) -> float:
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


def _length_two_by_loss(runs: Sequence[Metrics]) -> float:
    return _least_of_others_minus_first(_best_losses(runs), math.log(10))


def _best_losses(runs: Sequence[Metrics], lengths: int = 4) -> list[float]:
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


def _measures() -> dict[str, Measure]:
    second_minus_first, mean_gap = _second_minus_first(error), lambda run: float(gaps(run).mean())
    last_epoch: dict[str, Measure] = {
        "hardt-ma/section-4.1-initialization-helps": _first_minus_second(error),
        "hardt-ma/section-4.1-fixed-projection": _first_minus_second(error),
        "hardt-ma/section-4.1-batch-norm-overfits": _first_minus_second(last_gap),
        "hardt-ma/section-4.2-top-5": _of_one(top5_error),
        "hardt-ma/section-4.2-underfits": _of_one(plain_training_error),
        "li/figure-9-length-1": second_minus_first,
        "li/figure-9-length-2": _first_minus_second(error),
        "li/figure-9-length-3": second_minus_first,
        "li/figure-9-length-4": second_minus_first,
        "li/figure-9-longer": _first_minus_second(error),
        "zaeemzadeh/section-4-every-two-iterations": _first_minus_second(error),
        "zaeemzadeh/figure-3-plain164-unstable": _of_one(_diverged_in),
        "zaeemzadeh/figure-4-plain-train": _first_minus_second(training_error),
        "zaeemzadeh/table-2-better-cifar10": _in_pairs(error),
        "zaeemzadeh/table-2-better-cifar100": _in_pairs(error),
        "zaeemzadeh/table-3-architecture-helps": _first_minus_second(error),
        "zaeemzadeh/table-3-projection-helps": _first_minus_second(error),
        "beyond/allconv-bfloat16": _first_minus_second(error),
        "beyond/procresnet-released": _first_minus_second(error),
        "beyond/shortcut-length-depth-74": _length_two_by_error,
        "beyond/shortcut-length-depth-110": _length_two_by_error,
        "beyond/shortcut-length-zero-start": _length_two_by_loss,
    }
    over_epochs: dict[str, Measure] = {
        "hardt-ma/section-4.1-no-overfitting": _of_one(_last_over_best),
        "hardt-ma/section-4.1-peak-steps": _of_one(_steps_to_peak),
        "hardt-ma/figure-1-left": _of_one(_drop),
        "hardt-ma/figure-1-right": _of_one(_drop),
        "li/figure-2": _norm_slope,
        "zaeemzadeh/figure-3-plain-diverges": _of_one(_growth),
        "zaeemzadeh/figure-3-plain-depth": _first_minus_second(mean_deviation),
        "zaeemzadeh/figure-3-residual-depth": _residual_depth,
        "zaeemzadeh/figure-3-depth-20-alike": _first_minus_second(mean_deviation),
        "zaeemzadeh/figure-3-depth-20-procresnet": _first_minus_second(mean_deviation),
        "zaeemzadeh/figure-3-procresnet-stem": _of_one(_stem),
        "zaeemzadeh/figure-3-procresnet-transitions": _first_minus_second(
            lambda run: largest_deviation(run, None, lambda name: name in LATER)
        ),
        "zaeemzadeh/figure-3-around-one": _around_one,
        "zaeemzadeh/figure-4-residual-train": _loss_falls,
        "zaeemzadeh/figure-4-resnet-fluctuation": _first_minus_second(fluctuation),
        "zaeemzadeh/figure-4-procresnet-smaller": _first_minus_second(fluctuation),
        "zaeemzadeh/figure-4-procresnet-fluctuation": _fluctuation_ratio,
        "zaeemzadeh/table-1-smaller-gap": _in_pairs(mean_gap),
        "zaeemzadeh/table-1-smaller-fluctuation": _in_pairs(excess_gap),
        "beyond/allconv-branches": _of_one(lambda run: float(_at_the_end(run, "branches").max())),
        "beyond/allconv-preserves-norms": _of_one(lambda run: float(abs(np.log(_at_the_end(run, "ratios"))).mean())),
        "beyond/shortcut-branches": _branch_slope,
    }
    for claim in FOR_CLAIM:
        if "/table-1-" in claim and claim.endswith("-mean"):
            over_epochs[claim] = _of_one(mean_gap)
        elif "/table-1-" in claim and claim.endswith("-max"):
            over_epochs[claim] = _of_one(lambda run: float(gaps(run).max()))
    early = {
        "zaeemzadeh/section-4.1-worst-block": _while_finite(_start_of_worst, 1),
        "zaeemzadeh/figure-3-plain83-one-block": _while_finite(_of_one(_one_block), 5),
        "zaeemzadeh/figure-3-plain83-large": _while_finite(_of_one(_large_block), 5),
    }
    found = last_epoch | {claim: _while_finite(measure) for claim, measure in over_epochs.items()} | early
    return {claim: _of_one(error) for claim in FOR_CLAIM if claim not in found} | found  # headline numbers


MEASURES: dict[str, Measure] = _measures()


def _extreme_ratios(runs: Sequence[Metrics]) -> str:
    """What a deviation leaves out: which way the ratios go; and whether the network has learned anything."""
    (run,) = runs
    first: list[float] = []
    others: list[float] = []
    for line in run:
        for name, ratio in line.get("ratios", {}).items():
            (first if name in FIRST else others).append(ratio)
    told = (f"{what} from {min(r):.2g} to {max(r):.2g}" for what, r in (("first block", first), ("others", others)))
    return f"out/in, {', '.join(told)}, training error at the end {training_error(run):.1f}%"


#: What the records of some claims say beside the number, of each seed.
REMARKS: dict[str, Callable[[Sequence[Metrics]], str]] = {
    "zaeemzadeh/figure-3-plain83-one-block": _extreme_ratios,
}

#: The ways to compute a recipe.
_WAYS = tuple(
    {"precision": precision, "channels_last": last, "compile": blocks}
    for precision in ("fp32", "tf32", "bf16")
    for last in (False, True)
    for blocks in ("no", "default", "reduce-overhead")
)
#: Small networks, on digits or on generated images, for the claims about which a run of seconds can say something, in
#: the order of `FOR_CLAIM`.
DIGITS: dict[str, tuple[str, ...]] = {
    "hardt-ma/section-4.1-initialization-helps": ("digits-allconv-standard", "digits-allconv"),
    "hardt-ma/section-4.1-fixed-projection": ("digits-allconv-trained-head", "digits-allconv"),
    "hardt-ma/section-4.1-no-overfitting": ("digits-allconv",),
    "hardt-ma/section-4.1-batch-norm-overfits": ("digits-allconv-batch-norm", "digits-allconv"),
    "hardt-ma/table-2-imagenet": ("images-allconv",),
    "hardt-ma/section-4.2-top-5": ("images-allconv",),
    "hardt-ma/section-4.2-underfits": ("images-allconv",),
    "li/figure-2": ("digits-shortcut-20-2", "digits-shortcut-38-2", "digits-shortcut-74-2"),
    "zaeemzadeh/section-4-every-two-iterations": ("digits-proc22-every2", "digits-proc22-every1"),
    "zaeemzadeh/figure-3-plain164-unstable": ("digits-plain164",),
    "zaeemzadeh/figure-3-plain-diverges": ("digits-plain56",),
    "zaeemzadeh/figure-3-plain-depth": ("digits-plain56", "digits-plain20"),
    "zaeemzadeh/figure-3-residual-depth": ("digits-resnet20", "digits-resnet56", "digits-proc22", "digits-proc58"),
    "zaeemzadeh/figure-3-plain83-one-block": ("digits-plain56",),
    "zaeemzadeh/figure-3-plain83-large": ("digits-plain56",),
    "zaeemzadeh/section-4.1-worst-block": ("digits-resnet20", "digits-resnet56"),
    "zaeemzadeh/figure-3-depth-20-alike": ("digits-plain20", "digits-resnet20"),
    "zaeemzadeh/figure-3-depth-20-procresnet": ("digits-resnet20", "digits-proc22"),
    "zaeemzadeh/figure-3-procresnet-transitions": ("digits-resnet56", "digits-proc58"),
    "zaeemzadeh/figure-3-around-one": (
        "digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56", "digits-proc22", "digits-proc58"),
    "zaeemzadeh/figure-4-plain-train": ("digits-plain56", "digits-plain20"),
    "zaeemzadeh/table-3-projection-helps": ("digits-proc22-unprojected", "digits-proc22"),
    "beyond/allconv-bfloat16": ("digits-allconv-bf16", "digits-allconv"),
    "beyond/allconv-modern-cifar10": ("digits-allconv-modern",),
    "beyond/allconv-branches": ("digits-allconv",),
    "beyond/allconv-preserves-norms": ("digits-allconv",),
    "beyond/procresnet-released": ("digits-proc22-released", "digits-proc22"),
    "beyond/shortcut-length-depth-74": tuple(f"digits-shortcut-74-{k}" for k in (2, 1, 3, 4)),
    "beyond/shortcut-length-zero-start": tuple(f"digits-zero-38-{k}" for k in (2, 1, 3, 4)),
    "beyond/shortcut-branches": ("digits-shortcut-20-2", "digits-shortcut-38-2", "digits-shortcut-74-2"),
}  # fmt: skip


def evidence(
    claim_id: str,
    runs: Runs,
    seeds: Sequence[int],
    small: bool = False,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Seeds:
    """The claim's number for each seed, from runs of its recipes.

    Args:
        claim_id: of `MEASURES`. runs: see `resid.training.sweep.run_recipes`. seeds: to take.
        small: of the small recipes (`DIGITS`) instead of those of the papers. recipes: by which the runs were made.

    Raises:
        OptionError: no measure, no small recipes, or a run that is not there.
    """
    known = DIGITS if small else FOR_CLAIM
    if claim_id not in MEASURES or claim_id not in known:
        raise OptionError(f"claim_id = {claim_id!r}: no {'digits' if small else 'CIFAR'} runs measure this claim")
    names = known[claim_id]
    if missing := [f"{name} seed {seed}" for seed in seeds for name in names if (name, seed) not in runs]:
        raise OptionError(f"{claim_id}: there are no runs of {', '.join(missing)}")
    measure: Measure = MEASURES[claim_id]
    depths = [RECIPES[name].network_options.get("depth", 0) for name in names]
    if small and claim_id == "li/figure-2":  # other depths, and every epoch of the few there are
        epochs = range(1, (RECIPES[names[0]].epochs or 0) + 1)
        measure = functools.partial(_norm_slope, depths=depths, epochs=epochs)
    if small and claim_id == "beyond/shortcut-branches":
        measure = functools.partial(_branch_slope, depths=depths)
    values = [measure([runs[name, seed] for name in names]) for seed in seeds]
    what = [", ".join(f"{name} ({recipes[name].hash})" for name in names)]
    devices = {line["device"] for seed in seeds for name in names for line in runs[name, seed] if "device" in line}
    what += [f"trained on {', '.join(sorted(devices))}"] if devices else []
    codes = {
        line.get("code", "unknown") for seed in seeds for name in names for line in runs[name, seed] if "lr" in line
    }
    if others := codes - {code_of_training()}:
        what += [f"trained by other code than that of the record ({', '.join(sorted(others))})"]
    if claim_id in REMARKS:
        what += [f"seed {seed}: {REMARKS[claim_id]([runs[name, seed] for name in names])}" for seed in seeds]
    return Seeds(values, seeds, "; ".join(what))


def foreign_recipes(claim_id: str, measured: Seeds) -> str:
    """What a record's evidence says of its recipes that is not so; "" if they are those of the claim, at their hashes.

    How a recipe is computed (`resid.book.experiments.parts.COMPUTE`) may differ: the record's precision tells of it.

    Args:
        claim_id: of `MEASURES`. measured: made by `evidence`, of the recipes of the papers.
    """
    told = re.findall(r"([\w-]+) \(([0-9a-f]{16})\)", measured.what.partition(";")[0])
    wanted = FOR_CLAIM[claim_id]
    if tuple(name for name, _ in told) != wanted:
        return f"measured on {', '.join(name for name, _ in told) or 'no recipe'}, not on {', '.join(wanted)}"
    for name, stored in told:
        if stored not in {RECIPES[name].replace(**ways).hash for ways in _WAYS}:
            return f"{name} has the hash {RECIPES[name].hash}, not {stored}"
    return ""


def recipes_of(claims: Sequence[str], small: bool = False) -> tuple[str, ...]:
    """Names of all recipes that some claims compare, each once."""
    known = DIGITS if small else FOR_CLAIM
    return tuple(dict.fromkeys(name for claim in claims for name in known.get(claim, ())))
