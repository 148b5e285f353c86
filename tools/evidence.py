"""Run chapters in full mode and keep their records in results/: `python -m tools.evidence [chapter ...]`.

A record is made from committed code, so that it can be traced: with uncommitted changes the command refuses, unless
`--dirty` is given, and then the record says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from resid.ledger import read_record, verdicts
from resid.ledger.run import git_commit
from tools.notebooks import failure, notebooks, reads_records, run_papermill
from tools.paths import BUILD, ROOT


def full_run(path: Path) -> list[Path]:
    """Execute one notebook with MODE full; returns its records in results/."""
    name = path.relative_to(ROOT / "book").with_suffix("").as_posix()
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        output = BUILD / "full" / f"{name}.ipynb"
        started = time.perf_counter()
        parameters = {"MODE": "full"} | full_parameters(path)
        given = [part for name_value in parameters.items() for part in ("-p", *name_value)]
        done = run_papermill(path, output, Path(folder), os.cpu_count() or 1, given)
        if done.returncode:
            sys.exit(f"{name} failed: {failure(output, done)}")
        kept = []
        for source in sorted(Path(folder).glob("*.json")):
            read_record(source)  # sound, or an error
            kept.append(Path(shutil.copy(source, ROOT / "results" / source.name)))
        print(
            f"{name}: {time.perf_counter() - started:.0f} s, {', '.join(p.name for p in kept) or 'no record'}",
            flush=True,
        )
        return kept


def full_parameters(path: Path) -> dict[str, str]:
    """What else a full run sets, from the notebook's metadata: {"resid": {"full": {"PART": "linear"}}}."""
    found = nbformat.read(path, as_version=4).metadata.get("resid", {}).get("full", {})
    return {name: str(value) for name, value in found.items()}


def refuse_changes(dirty: bool) -> None:
    """End here if the code is not committed, unless that is accepted."""
    if git_commit()[1] and not dirty:
        sys.exit("the code has uncommitted changes: commit them first, or give --dirty, which the records will say")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "chapters", nargs="*", help="such as linear/factor; default every chapter under linear, samples, norms"
    )
    parser.add_argument("--dirty", action="store_true", help="accept uncommitted changes")
    options = parser.parse_args()
    refuse_changes(options.dirty)
    BUILD.mkdir(exist_ok=True)
    known = {p.relative_to(ROOT / "book").with_suffix("").as_posix(): p for p in notebooks() if not reads_records(p)}
    wanted = options.chapters or [name for name in known if not name.startswith("experiments/")]
    if unknown := set(wanted) - set(known):
        sys.exit(f"no chapter {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in wanted:
        full_run(known[name])
    verdicts()  # all records together still make sense
    print("now `make readme`, and commit results/ and README.md")


if __name__ == "__main__":
    main()
