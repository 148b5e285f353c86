"""No page of the built site lets a quick check stand where a verdict belongs.

A claim that is not run, incomplete, inconclusive, not reproduced or false as we read it must not stand in one line of
output, or in one row of a table, with a word that says or seems to say that it holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from html.parser import HTMLParser
from pathlib import Path

from resid.ledger import UNSETTLED, verdicts
from tools.paths import SITE

#: Words that say of a claim that it holds.
PRAISE = re.compile(
    r"\b(passed|passes|held|holds|ok|succeeded|confirmed|verified|proved|(?<!not )reproduced)\b|[✓✔✅]", re.IGNORECASE
)
#: Columns that say what the claim is, not what became of it.
CLAIMED = {"where", "claim", "statement"}
#: Evidence for what was put in place of the claim.
INSTEAD = re.compile(r"\((corrected|sharper)\)")


class _Blocks(HTMLParser):
    """The rows of tables, each with the heads of its columns, and the lines of preformatted text, but for code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str]]] = []
        self.lines: list[str] = []
        self._heads: list[str] = []
        self._body = False
        self._row: list[str] = []
        self._inside: str = ""
        self._text = ""
        self._code = 0  # how many <div> are open from that of a cell's code on
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div" and (self._code or "cell_input" in (dict(attrs).get("class") or "").split()):
            self._code += 1
        elif tag == "table":
            self._heads, self._body = [], False
        elif tag == "tr":
            self._row = []
        elif tag in ("thead", "tbody"):
            self._body = tag == "tbody"
        elif tag in ("td", "th") or (tag in ("pre", "p", "li") and not self._inside):
            self._inside, self._text = tag, ""
        elif tag == "br":
            self._text += " "

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._code:
            self._code -= 1
        elif tag in ("pre", "p", "li") and self._inside == tag:
            text = self._text if tag == "pre" else self._text.replace("\n", " ")
            self.lines += [] if self._code else text.splitlines()
            self._inside = ""
        elif tag in ("td", "th") and self._inside == tag:
            head = tag == "th" and not self._row and not self._body
            (self._heads if head else self._row).append(self._text.strip())
            self._inside = ""
        elif tag == "tr" and self._row:
            heads = self._heads if len(self._heads) == len(self._row) else [""] * len(self._row)
            self.rows.append(list(zip(heads, self._row, strict=True)))

    def handle_data(self, data: str) -> None:
        self._text += data


def misleading(page: str, unsettled: Collection[str]) -> list[str]:
    """The lines and rows of a page that name one of these claims beside a word that says that it holds.

    Args:
        page: HTML.
        unsettled: ids of claims.
    """
    found = []
    blocks = _Blocks(page)
    for line in blocks.lines:
        about = [claim for claim in unsettled if _names(line, claim)]
        if about and PRAISE.search(line) and not INSTEAD.search(line):
            found.append(line.strip())
    for row in blocks.rows:
        if any(_names(cell, claim) for _, cell in row for claim in unsettled):
            said = " | ".join(cell for head, cell in row if head not in CLAIMED)
            if PRAISE.search(said):
                found.append(" | ".join(cell for _, cell in row))
    return found


def _names(text: str, claim: str) -> bool:
    return re.search(rf"(?<![\w/.-]){re.escape(claim)}(?![\w-]|\.\w)", text) is not None


def problems(site: Path) -> tuple[int, list[str]]:
    """How many pages were read, and what is misleading on them."""
    unsettled = {name for name, found in verdicts().items() if found.verdict in UNSETTLED}
    pages = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.relative_to(site).parts]
    found = []
    for path in pages:
        found += [f"{path.relative_to(site)}: {text}" for text in misleading(path.read_text("utf-8"), unsettled)]
    return len(pages), found


def main() -> None:
    """Command line: check the built site."""
    count, found = problems(SITE.resolve())
    if not count:
        sys.exit(f"{SITE} holds no page: run `make book`")
    print("\n".join(found))
    print(f"{count} pages, {len(found)} places where a quick check stands for a verdict")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
