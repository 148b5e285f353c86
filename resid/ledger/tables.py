"""The scoreboard: verdicts as tables in Markdown, for the page, the introduction and the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from resid.ledger.catalog import papers
from resid.ledger.judge import VERDICTS, Verdict, verdicts


def scoreboard(
    paper: str | None = None, found: Mapping[str, Verdict] | None = None, pages: Collection[str] = ()
) -> str:
    """One row a claim: where it stands, what it says, the verdict with what it rests on and the chapter that tests it.

    Args:
        paper: key of one paper; default all.
        found: verdicts; default those of the recorded full runs.
        pages: chapters that exist as pages beside the table, and are linked.

    Returns:
        A Markdown table.
    """
    rows = ["| where | claim | verdict |", "|---|---|---|"]
    for verdict in _select(found, paper):
        claim = verdict.claim
        statement = claim.statement
        if claim.printed is not None:
            statement += f" Printed: {claim.printed:g} {claim.unit}."
        if claim.correction:
            statement += f" **Instead:** {claim.correction}"
        judged = [f"**{verdict.label}**"]
        if verdict.detail and verdict.detail not in verdict.label:
            judged.append(verdict.detail)
        if verdict.smoke:
            judged.append({"passed": "held again in this build", "failed": "**failed in this build**"}[verdict.smoke])
        judged.append(f"[{claim.chapter}]({claim.chapter}.ipynb)" if claim.chapter in pages else claim.chapter)
        rows.append("| " + " | ".join(_cell(c) for c in (claim.where, statement, "; ".join(judged))) + " |")
    return "\n".join(rows)


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
