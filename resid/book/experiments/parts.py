"""The parts of the chapters on CIFAR and ImageNet: what is trained and recorded together, and what the records say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from resid._arguments import check_option
from resid.book.experiments.counts import counted
from resid.book.experiments.imagenet_layouts import parameter_evidence
from resid.book.experiments.measures import REMARKS, evidence, recipes_of
from resid.book.experiments.overhead import SOURCES, measure_overhead, overheads
from resid.book.experiments.speed import FAST, measure_speed, speed_evidence
from resid.book.journal import Journal
from resid.errors import OptionError
from resid.ledger import (
    Record,
    Seeds,
    Verdict,
    get_claim,
    read_records,
    results_folder,
    start_run,
    verdicts,
)
from resid.ledger.evidence import Evidence
from resid.ledger.tables import accepted
from resid.training.recipe import Recipe
from resid.training.recipes import FOR_CLAIM, RECIPES
from resid.training.sweep import finished_runs, run_recipes

__all__ = [
    "COMPUTE",
    "COUNTS",
    "OF_A_PRECISION",
    "PARTS",
    "check_part",
    "finished_parts",
    "paper_and_ours",
    "part_evidence",
    "part_recipes",
    "part_seeds",
    "remarks_on_record",
    "seeds_of",
    "start_part",
]

#: The parts of each chapter: a part is trained and recorded by itself, in a record of its own.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "experiments/allconv_cifar": {
        "counts": (
            "hardt-ma/table-1-convolutions", "hardt-ma/table-1-parameters", "hardt-ma/section-4.1-parameters",
            "hardt-ma/section-4.1-only-convolutions"),
        "figure-1-left": (
            "hardt-ma/figure-1-left", "hardt-ma/section-4.1-no-overfitting", "hardt-ma/section-4.1-peak-steps"),
        "figure-1-right": ("hardt-ma/figure-1-right",),
        "table-2-cifar10": (
            "hardt-ma/table-2-cifar10", "hardt-ma/intro-competitive-with-resnet",
            "hardt-ma/table-2-beats-all-cnn-cifar10"),
        "table-2-cifar100": (
            "hardt-ma/table-2-cifar100", "hardt-ma/table-2-beats-resnet-cifar100",
            "hardt-ma/table-2-beats-all-cnn-cifar100"),
        "initialization": ("hardt-ma/section-4.1-initialization-helps",),
        "fixed-projection": ("hardt-ma/section-4.1-fixed-projection",),
        "batch-norm": ("hardt-ma/section-4.1-batch-norm-overfits",),
        "bfloat16": ("beyond/allconv-bfloat16",),
        "layers": ("beyond/allconv-branches", "beyond/allconv-preserves-norms"),
        "modern-cifar10": ("beyond/allconv-modern-cifar10",),
        "modern-cifar100": ("beyond/allconv-modern-cifar100",),
        "speed": ("beyond/allconv-speed",),
    },
    "experiments/allconv_imagenet": {
        "parameters": ("hardt-ma/section-4.2-parameters",),
        "table-2": (
            "hardt-ma/table-2-imagenet", "hardt-ma/section-4.2-top-5", "hardt-ma/section-4.2-worse-than-resnet34",
            "hardt-ma/section-4.2-underfits", "hardt-ma/section-4.2-beats-alexnet",
            "hardt-ma/table-2-beats-all-cnn-imagenet"),
    },
    "experiments/shortcut_depth_cifar": {
        "counts": ("li/section-5.3.2-parameters",),
        "figure-2": ("li/figure-2",),
        "figure-9": (
            "li/figure-9-length-1", "li/figure-9-length-2", "li/figure-9-length-3", "li/figure-9-length-4",
            "li/figure-9-longer"),
        "lengths": ("beyond/shortcut-length-depth-74", "beyond/shortcut-length-depth-110"),
        "zero-start": ("beyond/shortcut-length-zero-start",),
        "branches": ("beyond/shortcut-branches",),
    },
    "experiments/procresnet_cifar": {
        "counts": (
            "zaeemzadeh/section-4-depth-resnet", "zaeemzadeh/section-4-depth-procresnet",
            "zaeemzadeh/table-2-parameters-resnet164", "zaeemzadeh/table-2-parameters-resnet1001",
            "zaeemzadeh/table-2-parameters-erased164", "zaeemzadeh/table-2-parameters-procresnet166",
            "zaeemzadeh/table-2-parameters-procresnet1003", "zaeemzadeh/section-4.3-under-one-percent",
            "zaeemzadeh/section-4.3-blocks", "zaeemzadeh/section-4.3-parameters-procresnet274",
            "zaeemzadeh/section-4.3-four-times"),
        "figure-3": (
            "zaeemzadeh/figure-3-plain164-unstable", "zaeemzadeh/figure-3-plain-diverges",
            "zaeemzadeh/figure-3-plain-depth", "zaeemzadeh/figure-3-residual-depth",
            "zaeemzadeh/figure-3-depth-20-alike", "zaeemzadeh/figure-3-depth-20-procresnet",
            "zaeemzadeh/figure-3-procresnet-stem", "zaeemzadeh/figure-3-procresnet-transitions",
            "zaeemzadeh/figure-3-around-one"),
        "figure-3-first": ("zaeemzadeh/figure-3-plain83-one-block", "zaeemzadeh/figure-3-plain83-large"),
        "figure-3-start": ("zaeemzadeh/section-4.1-worst-block",),
        "figure-4": (
            "zaeemzadeh/figure-4-plain-train", "zaeemzadeh/figure-4-residual-train",
            "zaeemzadeh/figure-4-resnet-fluctuation", "zaeemzadeh/figure-4-procresnet-smaller",
            "zaeemzadeh/figure-4-procresnet-fluctuation"),
        "figure-5": ("zaeemzadeh/figure-5-procresnet274",),
        "table-1-row-1": (
            "zaeemzadeh/table-1-plain20-mean", "zaeemzadeh/table-1-plain20-max",
            "zaeemzadeh/table-1-resnet20-mean", "zaeemzadeh/table-1-resnet20-max",
            "zaeemzadeh/table-1-procresnet20-mean", "zaeemzadeh/table-1-procresnet20-max"),
        "table-1-row-2": (
            "zaeemzadeh/table-1-plain83-mean", "zaeemzadeh/table-1-plain83-max",
            "zaeemzadeh/table-1-resnet83-mean", "zaeemzadeh/table-1-resnet83-max",
            "zaeemzadeh/table-1-procresnet83-mean", "zaeemzadeh/table-1-procresnet83-max"),
        "table-1-row-3": (
            "zaeemzadeh/table-1-resnet164-mean", "zaeemzadeh/table-1-resnet164-max",
            "zaeemzadeh/table-1-procresnet164-mean", "zaeemzadeh/table-1-procresnet164-max"),
        "table-1": ("zaeemzadeh/table-1-smaller-gap", "zaeemzadeh/table-1-smaller-fluctuation"),
        "table-2-row-1": ("zaeemzadeh/table-2-resnet164-cifar10", "zaeemzadeh/table-2-resnet164-cifar100"),
        "table-2-row-2": ("zaeemzadeh/table-2-resnet1001-cifar10", "zaeemzadeh/table-2-resnet1001-cifar100"),
        "table-2-row-3": ("zaeemzadeh/table-2-erased164-cifar10", "zaeemzadeh/table-2-erased164-cifar100"),
        "table-2-row-4": ("zaeemzadeh/table-2-erased1001-cifar10", "zaeemzadeh/table-2-erased1001-cifar100"),
        "table-2-row-5": ("zaeemzadeh/table-2-procresnet166-cifar10", "zaeemzadeh/table-2-procresnet166-cifar100"),
        "table-2-row-6": ("zaeemzadeh/table-2-procresnet1003-cifar10", "zaeemzadeh/table-2-procresnet1003-cifar100"),
        "table-2-row-7": (
            "zaeemzadeh/table-2-erased-procresnet166-cifar10", "zaeemzadeh/table-2-erased-procresnet166-cifar100"),
        "table-2-row-8": (
            "zaeemzadeh/table-2-erased-procresnet1003-cifar10", "zaeemzadeh/table-2-erased-procresnet1003-cifar100"),
        "table-2": ("zaeemzadeh/table-2-better-cifar10", "zaeemzadeh/table-2-better-cifar100"),
        "table-3-row-2": ("zaeemzadeh/table-3-modified",),
        "table-3": ("zaeemzadeh/table-3-architecture-helps", "zaeemzadeh/table-3-projection-helps"),
        "every-two": ("zaeemzadeh/section-4-every-two-iterations",),
        "overhead": (
            "zaeemzadeh/section-3-overhead", "zaeemzadeh/section-4-overhead-depth",
            "zaeemzadeh/section-4-overhead-svd"),
        "released": ("beyond/procresnet-released",),
        "speed": ("beyond/procresnet-speed",),
    },
}  # fmt: skip
_PRECISIONS = {"fp32": "float32", "tf32": "float32 with TF32", "bf16": "bfloat16"}
#: Fields of a recipe that say how it is computed, and nothing about what.
COMPUTE = ("precision", "channels_last", "compile")
#: Parts whose claims say in which precision they are trained.
OF_A_PRECISION = ("bfloat16", "modern-cifar10", "modern-cifar100")
#: What the part "speed" of a chapter times.
_TIMED = {
    "experiments/allconv_cifar": "hardt-ma-cifar10",
    "experiments/procresnet_cifar": "zaeemzadeh-proc166-cifar100-unprojected",
}
#: Parts that train nothing: they count, or they measure time.
COUNTS = ("counts", "parameters", "overhead", "speed")


def part_recipes(chapter: str, part: str, compute: str = "") -> dict[str, Recipe]:
    """The recipes that a part trains, by name, in the order of its claims.

    Args:
        chapter, part: of `PARTS`. compute: fields of `COMPUTE` for all of them, "compile=default"; runs and
            records are others than those of the recipes as they are.

    Raises:
        OptionError: another field, or a part that trains nothing or is about a precision.
        resid.training.recipe.RecipeError: no such value.

    Example:
        >>> fast = part_recipes("experiments/allconv_cifar", "batch-norm", "compile=default")
        >>> [recipe.compile for recipe in fast.values()]
        ['default', 'default']
    """
    settings = compute.split()
    for setting in settings:
        field = setting.partition("=")[0]
        check_option("compute", field, COMPUTE)
        if part in COUNTS:
            raise OptionError(f"compute = {compute!r}: the part {part!r} trains nothing")
        if field == "precision" and part in OF_A_PRECISION:
            raise OptionError(f"compute = {compute!r}: the part {part!r} is about a precision of its own")
    return {name: RECIPES[name].with_settings(settings) for name in recipes_of(PARTS[chapter][part])}


def finished_parts(
    chapter: str, count: int, first: int = 0, folder: str | Path | None = None, compute: str = ""
) -> tuple[str, ...]:
    """The parts of a chapter all of whose runs are finished, with `count` seeds, or as many as the claims fix if 0."""
    found = []
    for part, claims in PARTS[chapter].items():
        if part in COUNTS or ("precision" in compute and part in OF_A_PRECISION):
            continue
        wanted = {(name, seed) for c in claims for name in FOR_CLAIM[c] for seed in seeds_of(c, count, first)}
        seeds = sorted({seed for _, seed in wanted})
        if wanted <= set(finished_runs(part_recipes(chapter, part, compute), seeds, folder)):
            found.append(part)
    return tuple(found)


def seeds_of(claim_id: str, count: int = 0, first: int = 0) -> tuple[int, ...]:
    """`count` seeds from the first on, as many as claims.yaml fixes if 0."""
    return tuple(range(first, first + (count or get_claim(claim_id).seeds)))


def paper_and_ours(chapter: str, found: Mapping[str, Verdict] | None = None) -> list[tuple[str, str, str, str, str]]:
    """Rows (where, claim, accepted, verdict, ours) of a chapter's experiments that recorded full runs say something of.

    Args:
        chapter: "experiments/procresnet_cifar", say. found: verdicts; default those of the recorded full runs.
    """
    rows = []
    for verdict in (verdicts() if found is None else found).values():
        claim = verdict.claim
        if claim.chapter == chapter and claim.kind == "experiment" and verdict.verdict != "not run":
            printed = "" if claim.printed is None else f" Printed: {claim.printed:g} {claim.unit}."
            told = accepted(claim).removeprefix("Accepted: ")
            rows.append((claim.where, claim.statement + printed, told, verdict.verdict, verdict.detail))
    return rows


def remarks_on_record(chapter: str, records: Iterable[Record] | None = None) -> list[tuple[str, str]]:
    """Rows (where, what the full records say of it beside the number) of a chapter: `measures.REMARKS`."""
    rows = []
    for record in read_records(results_folder()) if records is None else records:
        for entry in record.entries:
            if record.info["chapter"] == chapter and entry.claim in REMARKS and isinstance(entry.evidence, Seeds):
                said = [remark for remark in entry.evidence.what.split("; ") if remark.startswith("seed ")]
                rows += [(get_claim(entry.claim).where, remark) for remark in said]
    return rows


def part_seeds(chapter: str, part: str, count: int = 0, first: int = 0) -> tuple[int, ...]:
    """All seeds that some claim of a part takes, see `seeds_of`."""
    return tuple(sorted({seed for claim in PARTS[chapter][part] for seed in seeds_of(claim, count, first)}))


def check_part(chapter: str, part: str) -> None:
    """Refuse a part that a chapter has not.

    Raises:
        OptionError: see there.
    """
    if part not in PARTS[chapter]:
        raise OptionError(f"PART = {part!r}: {chapter} has {', '.join(PARTS[chapter])}")


def start_part(
    chapter: str, part: str, mode: str, count: int = 0, first: int = 0, compute: str = ""
) -> tuple[int, ...]:
    """Open the run that a part records into, and return its seeds: see `resid.ledger.start_run` and `part_seeds`.

    The device is the one that records; what was trained on another says so in its evidence. With a count of seeds, or
    another first one, the record is one of some seeds, and those of other seeds count together with it.
    """
    seeds, counts = part_seeds(chapter, part, count, first), part in ("counts", "parameters")
    device = "cuda" if torch.cuda.is_available() and not counts else "cpu"
    some = bool(count or first) and not counts
    trained = {recipe.precision for recipe in part_recipes(chapter, part, compute).values()}
    if part == "speed":
        trained = {"tf32", str(FAST["precision"])}
    precision = ", ".join(sorted(_PRECISIONS[name] for name in trained)) or ("float64" if counts else "float32")
    start_run(mode, seeds, recipe=part, precision=precision, device=device, some_seeds=some)
    return seeds


def part_evidence(
    chapter: str, part: str, count: int = 0, first: int = 0, compute: str = "", **options: Any
) -> Iterator[tuple[str, Evidence]]:
    """Train the recipes of a part, or go on with them, and give the evidence for each of its claims.

    Args:
        chapter, part: of `PARTS`. count, first: see `seeds_of`. compute: see `part_recipes`. options: of
            `resid.training.sweep.run_recipes`.

    Raises:
        OptionError: no such part, or no GPU for those that measure time. UnfinishedError: the time was up, and the
            same call goes on.
    """
    check_part(chapter, part)
    claims = PARTS[chapter][part]
    if part == "counts":
        for claim in claims:
            yield from ((claim, found) for found in counted(claim))
    elif part == "parameters":
        for claim in claims:
            yield claim, parameter_evidence(seeds_of(claim, count, first))
    elif part in ("overhead", "speed") and not torch.cuda.is_available():
        raise OptionError(f"PART = {part!r}: its claims are about the time of a step on a GPU, and there is none")
    elif part == "speed":
        name = _TIMED[chapter]
        for claim in claims:
            seeds = seeds_of(claim, count, first)
            yield claim, speed_evidence(name, RECIPES[name], measure_speed(RECIPES[name], seeds))
    elif part == "overhead":
        kept = Journal("cifar-overhead", SOURCES)
        seeds = part_seeds(chapter, part, count, first)
        times = measure_overhead(seeds, journal=kept, max_seconds=options.get("max_seconds"))
        yield from overheads(times).items()
    else:
        recipes = part_recipes(chapter, part, compute)
        runs = run_recipes(recipes, part_seeds(chapter, part, count, first), **options)
        for claim in claims:
            yield claim, evidence(claim, runs, seeds_of(claim, count, first), recipes=recipes)
