"""Apply each mutation to a copy of the project; its tests and its chapter must go red.

`python -m tests.mutations [--changed] [--minutes M] [name ...]`. Red means that a test fails or a chapter
stops at one of its checks; code that does not even import proves nothing and counts as a failure. An unbroken copy must
be green.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from resid.ledger.run import git_commit
from tests.mutations.catalogue import MUTATIONS, Mutation
from tools.notebooks import TIMEOUT, code
from tools.paths import ROOT

COPIED = ("resid", "tests", "book", "results", "pyproject.toml")
#: What a chapter may stop with: its own checks, and errors that its trials raise about numbers.
STOPS = ("CheckFailed", "ClaimFailed", "ArithmeticError", "AssertionError", "DeterminantError", "ConvergenceError")
Job = partial[tuple[str, bool]]


@contextmanager
def copy(mutation: Mutation | None) -> Iterator[Path]:
    """A copy of the project, mutated, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
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


class Runner:
    """Runs programs one after the other, each forked from a process that has torch loaded: see `preloaded`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("preloaded.py"))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, root: Path, folder: Path, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a program in a copy of the project."""
        output = root / "output.txt"
        environment = {
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "RESID_RESULTS": str(root / "records"),
            "RESID_COMMAND": "mutations",
        }
        job = {
            "arguments": arguments, "folder": str(folder), "environment": environment, "root": str(root),
            "output": str(output), "seconds": TIMEOUT,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), output.read_text("utf-8", "replace")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def run_tests(runner: Runner, root: Path, tests: str) -> int:
    """Exit status of pytest on a file of the copy: 0 all pass, 1 some fail, others mean that nothing was tested."""
    return runner(root, root, "-q", "-x", "-p", "no:cacheprovider", tests)[0]


def run_chapter(runner: Runner, root: Path, chapter: str) -> str:
    """Name of the error that stops the chapter in the copy; "" if none does.

    The chapter's code runs as a script, without a kernel, which is several seconds faster; CI runs the notebooks
    themselves in another step.
    """
    source = root / "book" / f"{chapter}.ipynb"
    script = root / "chapter.py"
    script.write_text(code(source), "utf-8")
    status, output = runner(root, source.parent, str(script))
    if not status:
        return ""
    last = (output.strip().splitlines() or [""])[-1]
    name = re.match(r"(?:\w+\.)*(\w+)(?::|$)", last)
    return name.group(1) if name else f"exit {status}: {output[-300:]}"


def bite(runner: Runner, mutation: Mutation) -> tuple[str, bool]:
    """Try one mutation; a line for the log, and whether everything noticed it."""
    started = time.perf_counter()
    with copy(mutation) as root:
        tests = run_tests(runner, root, mutation.tests)
        stop = run_chapter(runner, root, mutation.chapter) if mutation.chapter else None
    good = tests == 1 and (stop is None or stop in STOPS)
    said = f"pytest {'fails' if tests == 1 else f'exits {tests}'}"
    if stop is not None:
        said += f", {mutation.chapter} {f'stops: {stop}' if stop else 'PASSES'}"
    return f"{'bites' if good else 'BLUNT'}  {mutation.name}: {said} ({time.perf_counter() - started:.0f} s)", good


def unbroken(runner: Runner, what: str) -> tuple[str, bool]:
    """The control: a test file or a chapter of an unbroken copy is green."""
    started = time.perf_counter()
    with copy(None) as root:
        if what.endswith(".py"):
            status = run_tests(runner, root, what)
            said = f"exits {status}" if status else ""
        else:
            said = run_chapter(runner, root, what)
    return f"{'RED  ' if said else 'green'}  unbroken: {what} {said} ({time.perf_counter() - started:.0f} s)", not said


def in_turn(mutations: Sequence[Mutation], start: int) -> tuple[Mutation, ...]:
    """The mutations from one of them on, and the first ones after the last."""
    start %= len(mutations)
    return (*mutations[start:], *mutations[:start])


def changed() -> set[str]:
    """Files that differ from where this branch left `origin/main`, or from twenty commits ago where that is unknown."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return "" if done.returncode else done.stdout.strip()

    bases = (git("merge-base", "origin/main", "HEAD"), git("rev-parse", "--verify", "HEAD~20"))
    base = next((base for base in bases if base and base != git("rev-parse", "HEAD")), "HEAD")
    return set(git("diff", "--name-only", base).splitlines())


def nearest_first(mutations: Sequence[Mutation], files: set[str]) -> tuple[Mutation, ...]:
    """Mutations of files that changed, or whose tests did, before the others; each kind in its order."""
    near = [bool({m.file, m.tests, f"book/{m.chapter}.ipynb"} & files) for m in mutations]
    return tuple(m for wish in (True, False) for m, is_near in zip(mutations, near, strict=True) if is_near == wish)


def with_controls(mutations: Iterable[Mutation]) -> Iterator[Job]:
    """What is to be done for some mutations, each control once, before the first that needs it."""
    seen: set[str] = set()
    for mutation in mutations:
        for what in (mutation.tests, mutation.chapter):
            if what and what not in seen:
                seen.add(what)
                yield partial(unbroken, what=what)
        yield partial(bite, mutation=mutation)


def perform(jobs: Iterable[Job], seconds: float) -> tuple[int, int]:
    """Do the jobs, two at a time, none begun after so many seconds; returns how many mutations were tried, and how many
    jobs failed."""
    ends, lock = time.perf_counter() + seconds, threading.Lock()
    left, tried, failures = iter(jobs), 0, 0

    def work() -> None:
        nonlocal tried, failures
        runner = Runner()
        while True:
            with lock:
                job = next(left, None) if time.perf_counter() < ends else None
            if job is None:
                runner.close()
                return
            line, good = job(runner)
            with lock:
                print(line, flush=True)
                tried += job.func is bite
                failures += not good

    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(work) for _ in range(min(2, os.cpu_count() or 1))]
    for worker in workers:
        worker.result()
    return tried, failures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of mutations; default all")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin none after so long, and begin where the commit says"
    )
    parser.add_argument("--changed", action="store_true", help="begin with those of files that changed")
    given = parser.parse_args()
    wanted = [m for m in MUTATIONS if not given.names or any(word in m.name for word in given.names)]
    if not wanted:
        sys.exit("no mutation has such a name")
    started, first = time.perf_counter(), wanted[0].name
    if math.isfinite(given.minutes):
        wanted = list(in_turn(wanted, int((git_commit()[0] or "0")[:8], 16)))
        first = wanted[0].name
    if given.changed:
        wanted = list(nearest_first(wanted, changed()))
        first = wanted[0].name
    tried, failures = perform(with_controls(wanted), 60 * given.minutes)
    took = time.perf_counter() - started
    print(f"{tried} of {len(wanted)} mutations tried in {took:.0f} s, {failures} went unnoticed or could not be tried")
    if tried < len(wanted):
        print(f"this commit began at {first!r}; the others are the turn of other commits, and of `make mutations`")
    sys.exit(bool(failures) or not tried)


if __name__ == "__main__":
    main()
