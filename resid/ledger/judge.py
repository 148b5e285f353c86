"""What the evidence amounts to: one verdict per claim, computed from records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from resid.ledger.catalog import BEYOND, Claim, claims
from resid.ledger.errors import LedgerError
from resid.ledger.evidence import Cases, Counterexample, Seeds, Symbolic
from resid.ledger.store import Entry, Record, read_records

#: Every verdict there is, from best known to not known.
VERDICTS = (
    "proved symbolically",
    "verified numerically",
    "sharpened",
    "corrected",
    "refuted (counterexample)",
    "fails as we read it",
    "reproduced",
    "held",
    "consistent",
    "inconclusive",
    "not reproduced",
    "did not hold",
    "incomplete",
    "not run",
)
#: Verdicts beside which no word may stand that says or seems to say that the claim holds.
UNSETTLED = ("fails as we read it", "inconclusive", "not reproduced", "did not hold", "incomplete", "not run")
#: What records at reduced scale may say.
REDUCED = ("holds", "does not hold", "no effect seen", "undecided", "incomplete")
#: What is said instead of claims that no paper makes.
_OF_OURS = {"reproduced": "held", "not reproduced": "did not hold"}
#: Confidence of the interval for the mean over seeds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Args:
        claim: the claim.
        verdict: one of `VERDICTS`, from records of full runs alone.
        detail: what it rests on.
        records: names of the record files.
        quick: how this build's quick run went, "right", "wrong" or "" where none came to the claim; `quick_check` says
            what that amounts to.
        reduced: what records at reduced scale say, one of `REDUCED`, or "" without one. It is no verdict on the claim.
        reduced_detail: what that rests on.
    """

    claim: Claim
    verdict: str
    detail: str
    records: tuple[str, ...]
    quick: str
    reduced: str = ""
    reduced_detail: str = ""

    @property
    def quick_check(self) -> str:
        """What the quick run of this build says, in words; "" without one.

        A theorem or an identity was tested on fewer cases, by the same limit. Of an experiment a small network was
        trained for seconds: that tries the wiring and says nothing of the claim. Nor is a claim that has no verdict
        said to hold because it was tried.
        """
        if self.quick != "right":
            return "**failed in this build**" if self.quick else ""
        if self.claim.kind != "experiment" and self.verdict == "fails as we read it":
            return "tested again: fails as we read it"
        if self.claim.kind == "experiment" or self.verdict in UNSETTLED:
            return "quick check ran: wiring right"
        if self.verdict == "corrected":
            return "tested again: false as printed, the correction holds"
        if self.verdict == "refuted (counterexample)":
            return "tested again: false as printed"
        return "tested again: holds"

    @property
    def label(self) -> str:
        """The verdict as shown, for example "verified numerically (2700 cases)"."""
        return f"{self.verdict} ({self.detail})" if self.verdict == "verified numerically" else self.verdict


def results_folder(name: str = "results") -> Path:
    """Where recorded runs lie: that folder of the checkout, or the copy inside an installed package.

    Args:
        name: "results" for full runs of chapters, "benchmarks/results" for rows of `make bench`.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / name
    return checkout if checkout.is_dir() else package / "_recorded" / name


def verdicts(
    full: Iterable[Record] | Path | str | None = None, smoke: Iterable[Record] | Path | str | None = None
) -> dict[str, Verdict]:
    """The verdict on every claim.

    Args:
        full: records of full runs and of those at reduced scale, or their folder; default `results_folder()`.
        smoke: records of smoke runs, or their folder; default none. They never change a verdict; they say how the quick
            run of this build went.

    Returns:
        Claim id -> `Verdict`, in the order of the papers.

    Raises:
        RecordError: a record file is not sound.
        LedgerError: a record names an unknown claim or one of another chapter, a smoke record stands among the full
            ones or the reverse, evidence failed when it was recorded, the terms of a claim were changed after the run,
            or two pieces of evidence contradict or repeat each other.
    """
    records = tuple(_records(results_folder() if full is None else full))
    full_entries = _by_claim((record for record in records if record.mode != "reduced"), "full")
    reduced_entries = _by_claim((record for record in records if record.mode == "reduced"), "reduced")
    smoke_entries = _by_claim(_records(() if smoke is None else smoke), "smoke")
    found = {}
    for claim in claims():
        verdict = _judge(claim, full_entries.get(claim.id, []), smoke_entries.get(claim.id, []))
        if several := reduced_entries.get(claim.id):
            said, detail = _experiment(claim.at_reduced_scale, several, judge_reduced)
            verdict = replace(verdict, reduced=said, reduced_detail=detail)
        found[claim.id] = verdict
    return found


def _records(source: Iterable[Record] | Path | str) -> Iterable[Record]:
    return read_records(Path(source)) if isinstance(source, (str, Path)) else source


def _by_claim(records: Iterable[Record], mode: str) -> dict[str, list[tuple[Record, Entry]]]:
    known = {claim.id: claim for claim in claims()}
    found: dict[str, list[tuple[Record, Entry]]] = {}
    for record in records:
        if record.mode != mode:
            raise LedgerError(f"{record.path}: a {record.mode} record where {mode} records belong")
        for entry in record.entries:
            if entry.claim not in known:
                raise LedgerError(f"{record.path}: claim {entry.claim!r} is not in the ledger")
            claim = known[entry.claim]
            problems = _unsound(record, entry, claim if mode != "reduced" else claim.at_reduced_scale)
            if problems:
                raise LedgerError(f"{record.path}: {entry.claim}: {'; '.join(problems)}")
            found.setdefault(entry.claim, []).append((record, entry))
    return found


def _unsound(record: Record, entry: Entry, claim: Claim) -> list[str]:
    """Reasons why an entry cannot be judged; evidence against an experiment, or a smoke run that failed, is none."""
    found = entry.evidence.malformed(claim)
    if record.info["chapter"] != claim.chapter:
        found.append(f"the claim belongs to {claim.chapter}, the record to {record.info['chapter']}")
    told = entry.evidence.seeds if isinstance(entry.evidence, Seeds) and record.info.get("some_seeds") else ()
    if strangers := sorted(set(told) - set(record.info["seeds"])):
        found.append(f"the record is of the seeds {record.info['seeds']}, its evidence of {strangers}")
    changed = [name for name, value in claim.terms.items() if entry.terms[name] != value]
    found += [
        f"{name} was {entry.terms[name]} when it was run and is {claim.terms[name]} now: run it again"
        for name in changed
    ]
    if record.mode == "full" and claim.kind != "experiment" and not found:
        found += entry.evidence.unfavourable(claim, "full")
        if not entry.passed:
            found.append("it failed when it was recorded")
    return found


def _judge(claim: Claim, full: list[tuple[Record, Entry]], smoke: list[tuple[Record, Entry]]) -> Verdict:
    names = tuple(dict.fromkeys(record.path.name for record, _ in full))
    if claim.kind != "experiment" and len(names) > 1:
        raise LedgerError(f"{claim.id}: recorded in {' and '.join(names)}; one record must have all its evidence")
    verdict, detail = _experiment(claim, full) if claim.kind == "experiment" else _theorem(claim, full)
    if claim.status == "our reading" and verdict == "not reproduced":
        verdict = "fails as we read it"
    if claim.paper == BEYOND:
        verdict = _OF_OURS.get(verdict, verdict)
    if any(record.info["dirty"] is not False or record.info["commit"] is None for record, _ in full):
        detail += "; the code of the run is not known to be committed"
    if any(entry.words and entry.words != claim.words for _, entry in full):
        detail += "; the words of the claim or of its test were changed after the run"
    quick = "" if not smoke else "right" if all(entry.passed for _, entry in smoke) else "wrong"
    return Verdict(claim, verdict, detail, names, quick)


def _theorem(claim: Claim, full: list[tuple[Record, Entry]]) -> tuple[str, str]:
    evidence = [entry.evidence for _, entry in full]
    against = [e for e in evidence if isinstance(e, Counterexample)]
    for_printed = [e for e in evidence if e.statement == "printed" and not isinstance(e, Counterexample)]
    for_corrected = [e for e in evidence if e.statement == "corrected"]
    for_sharper = [e for e in evidence if e.statement == "sharper"]
    if against and for_printed:
        raise LedgerError(f"{claim.id}: the record both refutes the printed statement and verifies it")
    if against:
        first = against[0]
        shown = f"{first.what}: {float(first.lhs):.4g} {first.relation} {float(first.rhs):.4g} is false"
        if for_corrected:
            shown += f"; the correction: {_support(for_corrected)}"
        if claim.status == "our reading":
            return "fails as we read it", shown
        if for_corrected:
            return "corrected", shown
        return "refuted (counterexample)", shown
    if for_sharper:
        return "sharpened", f"what more holds: {_support(for_sharper)}"
    support = for_printed or for_corrected
    if not support:
        return "not run", ""
    if not for_printed:
        return (
            "inconclusive",
            f"the correction: {_support(for_corrected)}; the printed statement is not refuted on record",
        )
    if any(isinstance(e, Symbolic) and e.complete for e in support):
        return "proved symbolically", _support(support)
    if any(isinstance(e, Cases) for e in support):
        return "verified numerically", _support(support)
    return "inconclusive", _support(support)  # symbolic, but for a part of the statement only


def _support(evidence: list) -> str:
    tried = sum(e.n for e in evidence if isinstance(e, Cases))
    parts = [f"{tried} cases"] if tried else []
    parts += [f"symbolically for {e.scope}" for e in evidence if isinstance(e, Symbolic)]
    return ", ".join(parts)


def _experiment(
    claim: Claim,
    full: list[tuple[Record, Entry]],
    judge: Callable[[Claim, list[float]], tuple[str, str]] | None = None,
) -> tuple[str, str]:
    values: dict[int, float] = {}
    recipes = {record.info["recipe"] for record, _ in full}
    if len(recipes) > 1:
        raise LedgerError(f"{claim.id}: recorded with the recipes {', '.join(map(str, sorted(map(str, recipes))))}")
    # what a measurement is, up to a semicolon; remarks about the seeds of one record follow it
    precisions, measurements = set(), set()
    for record, entry in full:
        assert isinstance(entry.evidence, Seeds)  # _unsound has seen to it
        precisions.add(record.info["precision"])
        measurements.add(entry.evidence.what.partition(";")[0])
        for seed, value in zip(entry.evidence.seeds, entry.evidence.values, strict=True):
            if seed in values:
                raise LedgerError(f"{record.path}: {claim.id}: seed {seed} is recorded twice")
            values[seed] = value
    for name, told in (("precisions", precisions), ("measurements", measurements)):
        if len(told) > 1:
            raise LedgerError(f"{claim.id}: records of the different {name} {' | '.join(sorted(told))}")
    if not values:
        return "not run", ""
    counted = [seed for seed in claim.fixed_seeds if seed in values]
    if not counted:
        return "incomplete", f"no record of the seeds {_listed(claim.fixed_seeds)}, only of others"
    verdict, detail = (judge or judge_experiment)(claim, [values[seed] for seed in counted])
    if len(counted) < claim.seeds:
        detail += f"; no record of seed {_listed(seed for seed in claim.fixed_seeds if seed not in values)}"
    left = len(values) - len(counted)
    return verdict, f"{detail}; {left} further seeds not counted" if left else detail


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def judge_experiment(claim: Claim, values: list[float]) -> tuple[str, str]:
    """The verdict on one measured number per seed against the claim's target, sense and margin.

    With fewer seeds than were fixed beforehand there is none: "incomplete", and the numbers so far. With all of them
    the 95% interval of the mean decides: inside the accepted range is "reproduced", outside is "not reproduced". Across
    an edge of the range is "inconclusive" on whichever side the mean lies, for a mean without an effect lies on either
    side equally often; the size of an effect that would have been seen is told. Only where the paper prints the number
    itself, a mean within the margin is "consistent". Where one run was fixed there is no interval: within the margin of
    a printed number it is "consistent", and it is so for a one-sided claim where it is beyond the target by more than
    the margin; against the claim by more than the margin (twice the margin from a number) it is "not reproduced".
    """
    if claim.target is None:
        raise LedgerError(f"{claim.id}: the ledger gives the experiment no target")
    low, high = {
        "equal": (claim.target - claim.margin, claim.target + claim.margin),
        "at-least": (claim.target - claim.margin, math.inf),
        "at-most": (-math.inf, claim.target + claim.margin),
    }[claim.sense]
    n, finite = len(values), all(map(math.isfinite, values))
    mean = float(np.mean(values))
    half = 0.0
    if n > 1 and finite:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    detail = f"{mean:.4g} +- {half:.2g} (95%, {n} seeds)" if n > 1 else f"{mean:.4g} (1 seed)"
    if n < claim.seeds:
        return (
            "incomplete",
            f"{n} of {claim.seeds} seeds, so far {detail.partition(' (')[0] if finite else 'not finite'}",
        )
    if not finite:
        return "not reproduced", "a run did not end in a finite value"
    if n == 1:
        return _single(claim, mean), detail
    if mean + half < low or mean - half > high:
        return "not reproduced", detail
    if low <= mean - half and mean + half <= high:
        return "reproduced", detail
    if claim.printed is not None and claim.sense == "equal" and low <= mean <= high:
        return "consistent", detail
    return "inconclusive", f"{detail}; an effect of {2 * half:.2g} would have been seen"


def judge_reduced(claim: Claim, values: list[float]) -> tuple[str, str]:
    """What one number per seed says at reduced scale, by the 95% interval of its mean; one of `REDUCED`.

    Args:
        claim: as it is asked there, see `resid.ledger.catalog.Claim.at_reduced_scale`. The margin is the effect that
            matters; the target is the value without an effect, or, where the sense is "equal", what is claimed.
        values: one for each seed that was fixed.

    Returns:
        For "equal": "holds" where the interval lies within the margin of the target, "does not hold" where it lies
        outside, else "undecided". For a one-sided claim: "holds" and "does not hold" where the interval lies on one
        side of the target; "no effect seen" where it has the target in it and no effect that matters; else "undecided".
        Without an effect at most one in twenty says "holds" or "does not hold". With fewer seeds "incomplete".
    """
    assert claim.target is not None
    n, finite = len(values), all(map(math.isfinite, values))
    mean = float(np.mean(values))
    if n < claim.seeds:
        return "incomplete", f"{n} of {claim.seeds} seeds, so far {mean:.4g}"
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    detail = f"{mean:.4g} +- {half:.2g} (95%, {n} seeds)"
    if not finite:
        return "does not hold", "a run did not end in a finite value"
    low, high = mean - half - claim.target, mean + half - claim.target
    if claim.sense == "equal":
        if -claim.margin <= low and high <= claim.margin:
            return "holds", detail
        return ("does not hold" if low > claim.margin or high < -claim.margin else "undecided"), detail
    if claim.sense == "at-most":
        low, high = -high, -low
    if low > 0 or high < 0:
        return ("holds" if low > 0 else "does not hold"), detail
    seen = f"{detail}; an effect of {2 * half:.2g} would have been seen"
    return ("no effect seen" if max(high, -low) < claim.margin else "undecided"), seen


def _single(claim: Claim, value: float) -> str:
    """The verdict on the value of a single run, where no more were fixed."""
    assert claim.target is not None
    if claim.sense == "equal":
        off = abs(value - claim.target)
        return "consistent" if off <= claim.margin else "not reproduced" if off > 2 * claim.margin else "inconclusive"
    beyond = (value - claim.target) * (1 if claim.sense == "at-least" else -1)
    return "consistent" if beyond > claim.margin else "not reproduced" if beyond < -claim.margin else "inconclusive"
