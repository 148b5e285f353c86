"""Lay out a new chapter: `make chapter NAME=linear/foo` writes everything that belongs to it, with the least inside.

That is: a claim, the check that it needs, a test of the check, the notebook, its line in the table of contents, and
that of the check in the reference. All of it runs as it is; replace the content from the claim on.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.paths import ROOT
from tools.repository import colab_link, setup_cell

CLAIM = """
  - id: beyond/{claim}
    where: Where the statement stands
    kind: theorem
    statement: >-
      What is claimed, in our words: here that no square of a real number is negative.
    chapter: {part}/{name}
    test: >-
      What is run, and what the number is: the share of squares of random numbers that are negative.
    measure: error
    cases: 1000
    margin: 0.0
    seeds: 1
"""
CHECK = '''"""Checks of the chapter {part}/{name}: one function for each statement, which returns the evidence."""

from __future__ import annotations

import torch

from resid.ledger import Cases

__all__ = ["statement"]


def statement(n: int = 1000, generator: torch.Generator | None = None) -> Cases:
    """Count the squares of random numbers that are negative, as a share.

    Args:
        n: how many numbers.
        generator: of the numbers; default one seeded with 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    return Cases(n, float((x.square() < 0).sum()) / n, f"{{n}} normal numbers")
'''
TEST = '''"""The checks of the chapter {part}/{name}."""

from resid.book.checks.{part} import {name}
from tests.checks.helpers import generator, passes


def test_statement():
    passes("beyond/{claim}", {name}.statement(50, generator()))
'''


def notebook(part: str, name: str) -> str:
    """The notebook as text: title, parameters, setup, the statement, its check, takeaways."""
    path = ROOT / "book" / part / f"{name}.ipynb"
    title = (
        f"# A question that the chapter answers?\n\n*Paper, Theorem · seconds on two CPU cores · {colab_link(path)}*"
    )
    statement = (
        "## The statement\n\n:::{prf:theorem} Paper, Theorem\n"
        f":label: thm-{name.replace('_', '-')}\nFor every $x\\in\\mathbb R$, $x^2\\ge0$.\n:::"
    )
    check = (
        "evidence = checks.statement(1000 if full else 50)\n"
        f'book.record("beyond/{name.replace("_", "-")}", evidence)\n'
        'book.check("share of negative squares", evidence.worst, at_most=0)'
    )
    cells = [
        new_markdown_cell(title, id="title"),
        new_code_cell(
            'MODE: str = "smoke"  # "smoke" (seconds) or "full" (every case)\nSEED: int = 0  # seed of the numbers',
            id="parameters",
            metadata={"tags": ["parameters"]},
        ),
        new_code_cell(setup_cell(), id="setup", metadata={"tags": ["setup", "hide-input"]}),
        new_code_cell(
            f'from resid.book.checks.{part} import {name} as checks\n\nfull = MODE == "full"',
            id="imports",
            metadata={"tags": ["hide-input"]},
        ),
        new_markdown_cell(statement, id="statement"),
        new_code_cell(check, id="check"),
        new_markdown_cell("## Takeaways\n\n- What the reader knows now.", id="takeaways"),
        new_code_cell("book.finish()", id="finish"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    return json.dumps(json.loads(nbformat.writes(content)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def inserted(text: str, after: str, line: str) -> str:
    """A text with a line behind the last one that begins so."""
    lines = text.splitlines(keepends=True)
    last = max(i for i, known in enumerate(lines) if known.startswith(after))
    return "".join([*lines[: last + 1], line, *lines[last + 1 :]])


def layout(part: str, name: str) -> dict[Path, str]:
    """The files of a new chapter, with what will stand in them."""
    words = {"part": part, "name": name, "claim": name.replace("_", "-")}
    claims = ROOT / "resid" / "ledger" / "claims" / "beyond.yaml"
    reference, toc = ROOT / "book" / "api_trials.md", ROOT / "_toc.yml"
    entry = f"\n.. automodule:: resid.book.checks.{part}.{name}\n   :members:\n"
    first = f".. automodule:: resid.book.checks.{part}.".replace(".", r"\.")
    marked = list(re.finditer(rf"{first}\w+\n   :members:\n", text := reference.read_text("utf-8")))[-1]
    return {
        claims: claims.read_text("utf-8") + CLAIM.format(**words),
        ROOT / "resid" / "book" / "checks" / part / f"{name}.py": CHECK.format(**words),
        ROOT / "tests" / "checks" / f"test_{name}.py": TEST.format(**words),
        ROOT / "book" / part / f"{name}.ipynb": notebook(part, name),
        toc: inserted(toc.read_text("utf-8"), f"      - file: book/{part}/", f"      - file: book/{part}/{name}\n"),
        reference: text[: marked.end()] + entry + text[marked.end() :],
    }


def main() -> None:
    """Command line."""
    given = sys.argv[1] if len(sys.argv) == 2 else ""
    parts = sorted(p.name for p in (ROOT / "resid" / "book" / "checks").iterdir() if (p / "__init__.py").exists())
    if not re.fullmatch(rf"({'|'.join(parts)})/[a-z][a-z0-9_]*", given):
        sys.exit(f"NAME = {given!r}: part/name is needed, part one of {', '.join(parts)}, name in lower case")
    part, name = given.split("/")
    if there := [p for p in (f"resid/book/checks/{part}/{name}.py", f"book/{given}.ipynb") if (ROOT / p).exists()]:
        sys.exit(f"{', '.join(there)} is there already: another name is needed")
    for path, text in layout(part, name).items():
        state = "changed" if path.exists() else "wrote"
        path.write_text(text, "utf-8")
        print(f"{state} {path.relative_to(ROOT)}")
    print(f"now the claim beyond/{name.replace('_', '-')} in your words, and `make quick`")


if __name__ == "__main__":
    main()
