"""The form of notebooks: what every one must have, and what must not be committed."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat

from tools.notebooks import notebooks, output_of
from tools.paths import ROOT
from tools.repository import colab_link, setup_cell

#: Columns of a line of code; longer ones scroll sideways on the page. The setup cell is folded and exempt.
COLUMNS = 88
_MADE_UP = re.compile(r"[0-9a-f]{8}(-[0-9a-f-]+)?|cell-\d+")
_DRAWS = re.compile(r"\bplt\.(show|subplots)\b")


def problems(path: Path) -> list[str]:
    """What is wrong with the form of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    found = []
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) < len(ids) or not all(ids) or any(map(_MADE_UP.fullmatch, ids)):
        found.append("every cell needs an id of its own, in words")
    else:  # validating would repair the ids
        try:
            nbformat.validate(notebook)
        except nbformat.ValidationError as error:
            found.append(f"not a valid notebook: {error}")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel must be python3")
    extra = set(notebook.metadata) - {"kernelspec", "language_info", "resid"}
    if extra:
        found.append(f"metadata that tools leave behind: {', '.join(sorted(extra))}")
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    found += [
        f"{tags.count(tag)} cells have the tag {tag!r}: exactly one must"
        for tag in ("parameters", "setup")
        if tags.count(tag) != 1
    ]
    if "injected-parameters" in tags:
        found.append("a cell with injected parameters was left behind")
    if notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        found.append("the first cell must be a title")
    elif colab_link(path) not in notebook.cells[0].source:
        found.append("the first cell needs the link to Colab that `make repository` writes")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found += [f"cell {cell.id}: {problem}" for problem in _code_problems(cell)]
    return found


def _code_problems(cell: nbformat.NotebookNode) -> list[str]:
    found = []
    tags = cell.metadata.get("tags", [])
    if cell.outputs or cell.execution_count is not None:
        found.append("committed with outputs")
    if "setup" in tags:
        if cell.source != setup_cell():
            found.append("is not the setup cell that `make repository` writes")
        return found
    if "parameters" in tags:
        names = {node.target.id for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)}
        if not {"MODE", "SEED"} <= names:
            found.append("the parameters MODE and SEED must stand there, with their types")
    drawn = cell.metadata.get("mystnb", {})
    if _DRAWS.search(cell.source) and not (
        drawn.get("image", {}).get("alt") and drawn.get("figure", {}).get("caption")
    ):
        found.append("draws a figure without a caption and an alternative text in its metadata")
    found += [
        f"line of {len(line)} columns: {line[:40]}..." for line in cell.source.splitlines() if len(line) > COLUMNS
    ]
    if re.search(r"(?<!\w)(https?://(?!colab)|/home/|/root/|/tmp/)", cell.source):
        found.append("names an address or a path of one machine")
    return found


def output_problems(path: Path) -> list[str]:
    """Executed copies: every image that a cell shows has an alternative text."""
    executed = nbformat.read(output_of(path), as_version=4)
    return [
        f"cell {cell.id}: shows an image without an alternative text"
        for cell in executed.cells
        if cell.cell_type == "code"
        and any(kind.startswith("image/") for out in cell.outputs for kind in out.get("data", {}))
        and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    ]


def main() -> None:
    """Command line: lint every notebook of the book and every one beside them that the book forgot."""
    in_book = notebooks()
    found = [f"{p.relative_to(ROOT)}: not in _toc.yml" for p in (ROOT / "book").rglob("*.ipynb") if p not in in_book]
    for path in in_book:
        found += [f"{path.relative_to(ROOT)}: {problem}" for problem in problems(path)]
        if output_of(path).exists():
            found += [f"{path.relative_to(ROOT)}: {problem}" for problem in output_problems(path)]
    print("\n".join(found))
    print(f"{len(in_book)} notebooks, {len(found)} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
