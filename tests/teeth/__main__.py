"""`python -m tests.teeth [name ...]`: apply each mutation to a copy of the project; tests and chapter must go red.

Red means that a test fails or a chapter stops at one of its checks; code that does not even import proves nothing and
counts as a failure of the tooth. An unbroken copy must be green first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from tests.teeth.mutations import MUTATIONS, Mutation
from tools.notebooks import TIMEOUT, code
from tools.paths import ROOT

COPIED = ("resid", "tests", "book", "results", "pyproject.toml")
#: What a chapter may stop with: its own checks, and errors that its trials raise about numbers.
STOPS = ("CheckFailed", "ClaimFailed", "ArithmeticError", "AssertionError", "DeterminantError", "ConvergenceError")


@contextmanager
def copy(mutation: Mutation | None) -> Iterator[Path]:
    """A copy of the project, mutated, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="teeth-") as folder:
        root = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)
        if mutation is not None:
            path = root / mutation.file
            text = path.read_text("utf-8")
            if text.count(mutation.old) != 1:
                raise ValueError(
                    f"{mutation.name}: the passage occurs {text.count(mutation.old)} times in {mutation.file}"
                )
            path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
        yield root


def run_tests(root: Path, tests: str) -> int:
    """Exit status of pytest on a file of the copy: 0 all pass, 1 some fail, others mean that nothing was tested."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True).returncode


def run_chapter(root: Path, chapter: str) -> str:
    """Name of the error that stops the chapter in the copy; "" if none does.

    The chapter's code runs as a script, without a kernel, which is several seconds faster; CI runs the notebooks
    themselves in another step.
    """
    source = root / "book" / f"{chapter}.ipynb"
    script = root / "chapter.py"
    script.write_text(code(source), "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "RESID_RESULTS": str(root / "records"),
        "RESID_COMMAND": "teeth",
    }
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, cwd=source.parent, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if not done.returncode:
        return ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    name = re.match(r"(?:\w+\.)*(\w+)(?::|$)", last)
    return name.group(1) if name else f"exit {done.returncode}: {done.stderr[-300:]}"


def bite(mutation: Mutation) -> tuple[str, bool]:
    """Try one mutation; a line for the log, and whether everything noticed it."""
    started = time.perf_counter()
    with copy(mutation) as root:
        tests = run_tests(root, mutation.tests)
        stop = run_chapter(root, mutation.chapter) if mutation.chapter else None
    good = tests == 1 and (stop is None or stop in STOPS)
    said = f"pytest {'fails' if tests == 1 else f'exits {tests}'}"
    if stop is not None:
        said += f", {mutation.chapter} {f'stops: {stop}' if stop else 'PASSES'}"
    return f"{'bites' if good else 'BLUNT'}  {mutation.name}: {said} ({time.perf_counter() - started:.0f} s)", good


def unbroken(what: tuple[str, str]) -> tuple[str, bool]:
    """The control: an unbroken copy is green."""
    tests, chapter = what
    with copy(None) as root:
        status = run_tests(root, tests)
        stop = run_chapter(root, chapter) if chapter else ""
    good = status == 0 and stop == ""
    return f"{'green' if good else 'RED  '}  unbroken: {tests} exits {status}, {chapter or 'no chapter'} {stop}", good


def main() -> None:
    """Run the control, then every mutation or those whose name contains an argument."""
    wanted = [m for m in MUTATIONS if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:])]
    if not wanted:
        sys.exit("no mutation has such a name")
    failures = 0
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        controls = dict.fromkeys((m.tests, m.chapter) for m in wanted)
        for line, good in chain(pool.map(unbroken, controls), pool.map(bite, wanted)):
            print(line, flush=True)
            failures += not good
    print(f"{len(wanted)} mutations, {failures} went unnoticed or could not be tried")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
