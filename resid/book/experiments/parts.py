"""Parts of the chapters on CIFAR and ImageNet: what is trained and recorded together.

A claim says in the ledger to which part it belongs, which recipes it compares and what it measures; a `Part` is all
claims of one name in a chapter. A notebook calls `run_parts` once.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resid import book
from resid._arguments import check_option
from resid.book.experiments.counts import counted
from resid.book.experiments.imagenet_layouts import parameter_evidence
from resid.book.experiments.measures import MEASURES, REMARKS, takes_depths
from resid.book.experiments.overhead import SOURCES, measure_overhead, overheads
from resid.book.journal import Journal
from resid.errors import OptionError
from resid.ledger import (
    Claim,
    Record,
    Seeds,
    Verdict,
    claims,
    get_claim,
    read_records,
    results_folder,
    start_run,
    verdicts,
)
from resid.ledger.evidence import Evidence
from resid.ledger.tables import accepted
from resid.training.engine import code_of_training
from resid.training.recipe import Recipe
from resid.training.recipes import RECIPES
from resid.training.sweep import Runs, finished_runs, run_recipes, runs_folder

__all__ = [
    "COMPUTE",
    "Part",
    "chapters",
    "evidence",
    "foreign_recipes",
    "get_part",
    "measured",
    "paper_and_ours",
    "parts_of",
    "parts_table",
    "recipes_for",
    "remarks_on_record",
    "run_parts",
    "seeds_of",
]

#: Fields of a recipe that say how it is computed, and nothing about what, with their values.
COMPUTE: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "tf32", "bf16"),
    "channels_last": (False, True),
    "compile": ("no", "default", "reduce-overhead"),
}
_PRECISIONS = {"fp32": "float32", "tf32": "float32 with TF32", "bf16": "bfloat16"}


def seeds_of(claim: Claim, count: int = 0, first: int = 0) -> tuple[int, ...]:
    """Return `count` seeds from the first on; those that the claim fixes if both are 0.

    Example:
        >>> seeds_of(get_claim("li/figure-9-longer"), 2, first=7)
        (7, 8)
    """
    return tuple(range(first, first + (count or claim.seeds)) if count or first else claim.fixed_seeds)


@dataclass(frozen=True)
class Part:
    """Claims of a chapter that are trained and recorded together.

    Args:
        chapter: "experiments/procresnet_cifar", say.
        name: "figure-3", say.
        claims: in the order of the ledger; at reduced scale as they are asked there.
        mode: "full" or "reduced".
    """

    chapter: str
    name: str
    claims: tuple[Claim, ...]
    mode: str = "full"

    @property
    def trains(self) -> bool:
        """Whether the part trains networks; others count parameters, or measure time."""
        return any(claim.recipes for claim in self.claims)

    @property
    def needs_gpu(self) -> bool:
        """Whether its claims are about the time of a step on a GPU."""
        return self.name == "overhead"

    @property
    def recipe_names(self) -> tuple[str, ...]:
        """Names of the recipes that its claims compare, each once."""
        return tuple(dict.fromkeys(name for claim in self.claims for name in claim.recipes))

    @property
    def of_a_precision(self) -> bool:
        """Whether its claims say in which precision they are trained."""
        return any(RECIPES[name].precision != "fp32" for name in self.recipe_names)

    def recipes(self, compute: str = "") -> dict[str, Recipe]:
        """Return the recipes that the part trains, by name, in the order of its claims.

        Args:
            compute: fields of `COMPUTE` for all of them, "precision=bf16 channels_last=true"; runs and records are
                others than those of the recipes as they are.

        Raises:
            OptionError: another field, or a part that trains nothing or is about a precision.
            resid.training.recipe.RecipeError: no such value.
        """
        settings = compute.split()
        for field in (setting.partition("=")[0] for setting in settings):
            check_option("compute", field, COMPUTE)
            if not self.trains:
                raise OptionError(f"compute = {compute!r}: the part {self.name!r} trains nothing")
            if field == "precision" and self.of_a_precision:
                raise OptionError(f"compute = {compute!r}: the part {self.name!r} is about a precision of its own")
        return {name: RECIPES[name].with_settings(settings) for name in self.recipe_names}

    def seeds(self, count: int = 0, first: int = 0) -> tuple[int, ...]:
        """Return all seeds that some claim of the part takes, see `seeds_of`."""
        return tuple(sorted({seed for claim in self.claims for seed in seeds_of(claim, count, first)}))

    def finished(self, count: int = 0, first: int = 0, folder: str | Path | None = None, compute: str = "") -> bool:
        """Tell whether all trainings of the part are finished in a folder of runs."""
        if not self.trains or ("precision" in compute and self.of_a_precision):
            return False
        wanted = {(name, seed) for c in self.claims for name in c.recipes for seed in seeds_of(c, count, first)}
        return wanted <= set(finished_runs(self.recipes(compute), sorted({seed for _, seed in wanted}), folder))

    def start(self, count: int = 0, first: int = 0, compute: str = "") -> tuple[int, ...]:
        """Open the run that the part records into, see `resid.ledger.start_run`; return its seeds.

        The device is the one that records; what was trained on another says so in its evidence. With a count of seeds,
        or another first one, the record is one of some seeds, and those of other seeds count together with it.
        """
        seeds, counts = self.seeds(count, first), not self.trains and not self.needs_gpu
        device = "cuda" if torch.cuda.is_available() and not counts else "cpu"
        trained = sorted({_PRECISIONS[recipe.precision] for recipe in self.recipes(compute).values()})
        precision = ", ".join(trained) or ("float64" if counts else "float32")
        some = bool(count or first) and not counts
        start_run(self.mode, seeds, recipe=self.name, precision=precision, device=device, some_seeds=some)
        return seeds

    def evidence(
        self, count: int = 0, first: int = 0, compute: str = "", **options: Any
    ) -> Iterator[tuple[str, Evidence]]:
        """Train the recipes of the part, or go on with them, and give the evidence for each of its claims.

        Args:
            count: of seeds, see `seeds_of`.
            first: seed.
            compute: see `recipes`.
            options: of `resid.training.sweep.run_recipes`.

        Raises:
            OptionError: no GPU for a part that measures time.
            UnfinishedError: the time was up, and the same call goes on.
        """
        if self.name == "counts":
            for claim in self.claims:
                yield from ((claim.id, counts) for counts in counted(claim.id))
        elif self.name == "parameters":
            for claim in self.claims:
                yield claim.id, parameter_evidence(seeds_of(claim, count, first))
        elif self.needs_gpu:
            if not torch.cuda.is_available():
                raise OptionError(f"PART = {self.name!r}: its claims are about times on a GPU, and there is none")
            journal = Journal("cifar-overhead", SOURCES)
            times = measure_overhead(self.seeds(count, first), journal=journal, max_seconds=options.get("max_seconds"))
            yield from overheads(times).items()
        else:
            recipes = self.recipes(compute)
            runs = run_recipes(recipes, self.seeds(count, first), **options)
            for claim in self.claims:
                yield claim.id, measured(claim, claim.recipes, runs, seeds_of(claim, count, first), recipes)


@functools.cache
def parts_of(chapter: str, mode: str = "full") -> dict[str, Part]:
    """Return the parts of a chapter by name, in the order in which the ledger names them first.

    Args:
        chapter: of `chapters`.
        mode: "full", or "reduced" for what is asked at reduced scale.

    Example:
        >>> list(parts_of("experiments/shortcut_depth_cifar"))[:3]
        ['figure-2', 'counts', 'figure-9']
    """
    check_option("mode", mode, ("full", "reduced"))
    named: dict[str, list[Claim]] = {}
    for claim in claims():
        if claim.chapter == chapter and (claim.part if mode == "full" else claim.reduced):
            asked = claim if mode == "full" else claim.at_reduced_scale
            named.setdefault(asked.part, []).append(asked)
    return {name: Part(chapter, name, tuple(several), mode) for name, several in named.items()}


def chapters() -> tuple[str, ...]:
    """Return the chapters that have parts."""
    return tuple(dict.fromkeys(claim.chapter for claim in claims() if claim.part))


def get_part(chapter: str, name: str, mode: str = "full") -> Part:
    """Return a part of a chapter, see `parts_of`.

    Raises:
        OptionError: the chapter has no part of this name; the text lists those that it has.
    """
    parts = parts_of(chapter, mode)
    if name not in parts:
        raise OptionError(f"PART = {name!r}: {chapter} has {', '.join(parts) or 'none'} in mode {mode}")
    return parts[name]


def run_parts(
    chapter: str,
    part: str = "",
    *,
    mode: str = "full",
    count: int = 0,
    first: int = 0,
    compute: str = "",
    **options: Any,
) -> Runs:
    """Train and record a part of a chapter; without a name, record all parts whose trainings are finished.

    Args:
        chapter: of `chapters`.
        part: its name, or "".
        mode: "full" or "reduced".
        count: of seeds, see `seeds_of`.
        first: seed.
        compute: see `Part.recipes`.
        options: of `resid.training.sweep.run_recipes`.

    Returns:
        The metrics of all trainings, (recipe, seed) -> a dictionary for each epoch.
    """
    if part:
        todo = [get_part(chapter, part, mode)]
    else:
        todo = [p for p in parts_of(chapter, mode).values() if p.finished(count, first, compute=compute)]
    runs: Runs = {}
    for one in todo:
        seeds = one.start(count, first, compute)
        for claim, found in one.evidence(count, first, compute, **options):
            book.record(claim, found)
        book.finish()
        if one.trains:
            runs |= finished_runs(one.recipes(compute), seeds)
    if not todo:
        print("no part has all of its runs finished in", runs_folder())
    return runs


def parts_table(chapter: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the header and the rows of a table of a chapter's parts, for `resid.book.table`."""
    rows = [(p.name, len(p.recipe_names) or "", len(p.seeds()), len(p.claims)) for p in parts_of(chapter).values()]
    return ("part", "networks", "seeds", "claims"), rows


def recipes_for(claim_id: str) -> tuple[Recipe, ...]:
    """Return the recipes that an experiment compares, in the order in which its test names them.

    Raises:
        OptionError: the claim needs no training.

    Example:
        >>> [recipe.network_options["depth"] for recipe in recipes_for("li/figure-2")]
        [20, 56, 110]
    """
    names = get_claim(claim_id).recipes
    if not names:
        raise OptionError(f"claim_id = {claim_id!r}: no recipe trains for it")
    return tuple(RECIPES[name] for name in names)


def evidence(
    claim_id: str, runs: Runs, seeds: Sequence[int], small: bool = False, recipes: Mapping[str, Recipe] = RECIPES
) -> Seeds:
    """Return the claim's number for each seed, from runs of its recipes.

    Args:
        claim_id: of an experiment with recipes.
        runs: see `resid.training.sweep.run_recipes`.
        seeds: to take.
        small: of the small recipes instead of those of the papers.
        recipes: by which the runs were made.

    Raises:
        OptionError: the claim has no recipes, or a run is not there.
    """
    claim = get_claim(claim_id)
    names = claim.small if small else claim.recipes
    if not names:
        raise OptionError(f"claim_id = {claim_id!r}: the claim names no {'small ' if small else ''}recipes")
    return measured(claim, names, runs, seeds, recipes)


def measured(
    claim: Claim, names: Sequence[str], runs: Runs, seeds: Sequence[int], recipes: Mapping[str, Recipe]
) -> Seeds:
    """Return the number that a claim's measure makes of the runs of some recipes, for each seed, and say of what.

    Args:
        claim: its `measure` counts.
        names: of the recipes, in the order of the claim's test.
        runs: see `resid.training.sweep.run_recipes`.
        seeds: to take.
        recipes: by which the runs were made.

    Raises:
        OptionError: a run is not there.
    """
    if missing := [f"{name} seed {seed}" for seed in seeds for name in names if (name, seed) not in runs]:
        raise OptionError(f"{claim.id}: there are no runs of {', '.join(missing)}")
    measure = MEASURES[claim.measure]
    if takes_depths(measure):
        measure = functools.partial(measure, depths=[RECIPES[name].network_options["depth"] for name in names])
    values = [measure([runs[name, seed] for name in names]) for seed in seeds]
    words = [", ".join(f"{name} ({recipes[name].hash})" for name in names)]
    lines = [line for seed in seeds for name in names for line in runs[name, seed]]
    if devices := {line["device"] for line in lines if "device" in line}:
        words.append(f"trained on {', '.join(sorted(devices))}")
    if others := {line.get("code", "unknown") for line in lines if "lr" in line} - {code_of_training()}:
        words.append(f"trained by other code than that of the record ({', '.join(sorted(others))})")
    if claim.measure in REMARKS:
        words += [f"seed {seed}: {REMARKS[claim.measure]([runs[name, seed] for name in names])}" for seed in seeds]
    return Seeds(values, seeds, "; ".join(words))


def foreign_recipes(claim: Claim, evidence_: Seeds) -> str:
    """Say what a record's evidence tells of its recipes that is not so; "" if they are the claim's, at their hashes.

    How a recipe is computed (`COMPUTE`) may differ: the record's precision tells of it.

    Args:
        claim: an experiment with recipes; of a record at reduced scale as it is asked there.
        evidence_: made by `measured`.
    """
    told = re.findall(r"([\w.-]+) \(([0-9a-f]{16})\)", evidence_.what.partition(";")[0])
    wanted = claim.recipes
    if tuple(name for name, _ in told) != wanted:
        return f"measured on {', '.join(name for name, _ in told) or 'no recipe'}, not on {', '.join(wanted)}"
    for name, stored in told:
        ways = (dict(zip(COMPUTE, values, strict=True)) for values in itertools.product(*COMPUTE.values()))
        if stored not in {RECIPES[name].replace(**way).hash for way in ways}:
            return f"{name} has the hash {RECIPES[name].hash}, not {stored}"
    return ""


def paper_and_ours(chapter: str, known: Mapping[str, Verdict] | None = None) -> list[tuple[str, str, str, str, str]]:
    """Return rows (where, claim, accepted, verdict, ours) of a chapter's experiments that full runs say something of.

    Args:
        chapter: "experiments/procresnet_cifar", say.
        known: verdicts; default those of the recorded full runs.
    """
    rows = []
    for verdict in (verdicts() if known is None else known).values():
        claim = verdict.claim
        if claim.chapter == chapter and claim.kind == "experiment" and verdict.verdict != "not run":
            printed = "" if claim.printed is None else f" Printed: {claim.printed:g} {claim.unit}."
            limits = accepted(claim).removeprefix("Accepted: ")
            rows.append((claim.where, claim.statement + printed, limits, verdict.verdict, verdict.detail))
    return rows


def remarks_on_record(chapter: str, records: Iterable[Record] | None = None) -> list[tuple[str, str]]:
    """Return rows (where, what the full records of a chapter say beside the number): `measures.REMARKS`."""
    rows = []
    for record in read_records(results_folder()) if records is None else records:
        for entry in record.entries if record.info["chapter"] == chapter else ():
            claim = get_claim(entry.claim)
            if claim.measure in REMARKS and isinstance(entry.evidence, Seeds):
                remarks = [remark for remark in entry.evidence.what.split("; ") if remark.startswith("seed ")]
                rows += [(claim.where, remark) for remark in remarks]
    return rows
