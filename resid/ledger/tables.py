"""The scoreboard: verdicts as tables in Markdown, for the page, the introduction and the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from resid.ledger.catalog import BEYOND, Claim, papers
from resid.ledger.judge import VERDICTS, Verdict, verdicts


def scoreboard(
    paper: str | None = None, found: Mapping[str, Verdict] | None = None, pages: Collection[str] = ()
) -> str:
    """One row per claim: where it stands, what it says and how it is tested, the verdict of the record with what it
    rests on and the chapter, and, apart from it, what the quick check of this build was.

    Args:
        paper: key of one paper; default all.
        found: verdicts; default those of the recorded full runs.
        pages: chapters that exist as pages beside the table, and are linked.

    Returns:
        A Markdown table.
    """
    rows = ["| where | claim | verdict of the record |", "|---|---|---|"]
    for verdict in _select(found, paper):
        claim = verdict.claim
        where = f"{claim.where}<br>`{claim.id}`"
        if claim.status != "printed" and claim.paper != BEYOND:
            where += f"<br>*{claim.status}*"
        statement = claim.statement
        if claim.printed is not None:
            statement += f" Printed: {claim.printed:g} {claim.unit}."
        if claim.correction:
            statement += f" **Instead:** {claim.correction}"
        if claim.sharper:
            statement += f" **Sharper:** {claim.sharper}"
        statement += f"<br>*Test:* {claim.test} *{accepted(claim)}.*"
        judged = [f"**{verdict.label}**"]
        if verdict.detail and verdict.detail not in verdict.label:
            judged.append(verdict.detail)
        judged.append(f"[{claim.chapter}]({claim.chapter}.ipynb)" if claim.chapter in pages else claim.chapter)
        beside = [f"At reduced scale: {verdict.reduced}, {verdict.reduced_detail}"] if verdict.reduced else []
        beside += [f"This build: {verdict.quick_check}"] if verdict.quick_check else []
        judged = ["; ".join(judged), *(f"*{text}*" for text in beside)]
        cells = (where, statement, "<br>".join(judged))
        rows.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(rows)


def accepted(claim: Claim) -> str:
    """What the number of the test must be, in words, with what was fixed before the run.

    Example:
        >>> from resid.ledger.catalog import get_claim
        >>> accepted(get_claim("zaeemzadeh/section-3-relu-factor"))
        'Accepted: between 0.45 and 0.55, over the seeds 10 to 14'
    """
    if claim.kind != "experiment":
        return f"Accepted: a worst {claim.measure} of at most {claim.limit:.12g}, in at least {claim.cases} cases"
    assert claim.target is not None
    if claim.seeds == 1 and claim.sense != "equal":  # one run has no interval: it has to be clear of the edge
        sign, word = (1, "more") if claim.sense == "at-least" else (-1, "less")
        return f"Accepted: {word} than {claim.target + sign * claim.margin:.4g}, with seed {claim.first_seed} alone"
    low, high = f"{claim.target - claim.margin:.4g}", f"{claim.target + claim.margin:.4g}"
    number = {"equal": f"between {low} and {high}", "at-least": f"at least {low}", "at-most": f"at most {high}"}
    seeds = claim.fixed_seeds
    told = f"the seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} alone"
    return f"Accepted: {number[claim.sense]}, over {told}"


def retest_summary(found: Mapping[str, Verdict]) -> str:
    """A sentence on what the quick runs beside a page tested, and what they did not.

    Args:
        found: verdicts with the records of smoke runs, see `resid.ledger.judge.verdicts`.
    """
    tried = [verdict for verdict in found.values() if verdict.quick]
    if not tried:
        return "No chapter has been run beside this page."
    again = [v for v in tried if v.quick_check.startswith("tested again")]
    corrected = sum("false as printed" in v.quick_check for v in again)
    wiring = [v for v in tried if v.quick == "right" and v not in again]
    failed = [v for v in tried if v.quick == "wrong"]
    text = (
        f"When this page was built, {len(again)} theorems and identities were tested again on fewer cases than the "
        f"record has, with the same outcome; {corrected} of them are false as printed. For {len(wiring)} other claims, "
        "most of them experiments, a quick check ran on small networks: it tries the wiring, and says nothing about "
        "the claim."
    )
    return f"{text} **{len(failed)} claims failed in this build.**" if failed else text


def summary(found: Mapping[str, Verdict] | None = None) -> str:
    """How many claims of each paper have each verdict, as a Markdown table with totals."""
    counts = {paper.key: Counter(v.verdict for v in _select(found, paper.key)) for paper in papers()}
    names = [paper.name for paper in papers()]
    rows = [f"| verdict | {' | '.join(names)} | all |", "|---|" + "---:|" * (len(names) + 1)]
    for verdict in VERDICTS:
        numbers = [counts[paper.key][verdict] for paper in papers()]
        if sum(numbers):
            rows.append(f"| {verdict} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    totals = [counts[paper.key].total() for paper in papers()]
    rows.append(f"| **claims** | {' | '.join(f'**{n}**' for n in totals)} | **{sum(totals)}** |")
    return "\n".join(rows)


def _select(found: Mapping[str, Verdict] | None, paper: str | None) -> list[Verdict]:
    found = verdicts() if found is None else found
    return [v for v in found.values() if paper in (None, v.claim.paper)]


def _cell(text: str) -> str:
    """Text that cannot break a table row; a bar inside mathematics is written as a command."""
    return text.replace("||", r"\|").replace("|", r"\vert ") if "$" in text else text.replace("|", r"\|")
