"""`python -m tests.teeth [name ...]`: apply each mutation to a copy of the project; tests and chapter must go red.

Red means that a test fails or a chapter stops at one of its checks; code that does not even import proves nothing and
counts as a failure of the tooth. An unbroken copy must be green first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue

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
            "RESID_COMMAND": "teeth",
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


def main() -> None:
    """Run the control, then every mutation or those whose name contains an argument."""
    wanted = [m for m in MUTATIONS if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:])]
    if not wanted:
        sys.exit("no mutation has such a name")
    started = time.perf_counter()
    controls = dict.fromkeys(what for m in wanted for what in (m.tests, m.chapter) if what)
    jobs = [*(partial(unbroken, what=what) for what in controls), *(partial(bite, mutation=m) for m in wanted)]
    runners = [Runner() for _ in range(min(2, os.cpu_count() or 1))]
    idle: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        idle.put(runner)

    def work(job: Callable[[Runner], tuple[str, bool]]) -> tuple[str, bool]:
        runner = idle.get()
        try:
            return job(runner)
        finally:
            idle.put(runner)

    failures = 0
    with ThreadPoolExecutor(len(runners)) as pool:
        for line, good in pool.map(work, jobs):
            print(line, flush=True)
            failures += not good
    for runner in runners:
        runner.close()
    took = time.perf_counter() - started
    print(f"{len(wanted)} mutations, {failures} went unnoticed or could not be tried, in {took:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
