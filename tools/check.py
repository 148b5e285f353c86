"""What CI checks: `python -m tools.check [--all] [step ...]`, the named steps only if some are named.

Steps that need one core each run side by side; each says how long it took. A commit's run leaves out the tests marked
`slow`, the second builder of the site, and all mutations but those of what changed and a few others; `--all` has them,
as CI has once a week.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.paths import ROOT

PYTHON = sys.executable
BIN = Path(PYTHON).parent
WORKFLOWS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / ".github" / "workflows").glob("*.yml"))
#: Minutes for the mutations of a commit.
MINUTES = 3

STEPS: dict[str, list[list[str]]] = {
    "lint": [
        [str(BIN / "ruff"), "check", "."],
        [str(BIN / "ruff"), "format", "--check", "."],
        [str(BIN / "codespell")],
        [str(BIN / "yamllint"), "--strict", "."],
        [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        [str(BIN / "zizmor"), "--offline", "--no-progress", "--quiet", *WORKFLOWS],
        [PYTHON, "-m", "tools.lint_notebooks"],
    ],
    "types": [[str(BIN / "mypy")]],
    "test": [["make", "--no-print-directory", "test"]],
    "book": [[PYTHON, "-m", "tools.site", "--all"]],
    "links": [
        [PYTHON, "-m", "tools.lint_notebooks"],  # of what was executed
        [PYTHON, "-m", "tools.links"],
        [PYTHON, "-m", "tools.shown"],
    ],
    "browser": [[PYTHON, "-m", "tools.browser"]],
    "mutations": [[PYTHON, "-m", "tests.mutations", "--changed", "--minutes", str(MINUTES)]],
}
#: What only `--all` has, and what takes the place of a step there.
ALL: dict[str, list[list[str]]] = {
    "test": [["make", "--no-print-directory", "test", "TESTS="]],
    "twin": [[PYTHON, "-m", "tools.twin"]],
    "mutations": [[PYTHON, "-m", "tests.mutations"]],
}
#: Steps of one line run side by side, at most two at a time; a line begins when the one above it has ended well.
ORDER = (("lint", "types"), ("test",), ("book",), ("links", "browser", "twin"), ("mutations",))


def run(name: str, commands: list[list[str]], aside: bool) -> tuple[str, str, float]:
    """Run one step; return the command that failed, or "", the output if it ran aside, and the seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        failed = ""
        for command in commands:
            stream = output if aside else None
            if subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT if aside else None).returncode:
                failed = " ".join(command)
                break
        output.seek(0)
        return failed, output.read(), time.perf_counter() - began


def main() -> None:
    """Run the steps, line by line of `ORDER`; stop after a line in which one has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"some of {', '.join({**STEPS, **ALL})}")
    parser.add_argument("--all", action="store_true", help="everything, as once a week")
    given = parser.parse_args()
    steps = {**STEPS, **ALL} if given.all else {**STEPS, **({"twin": ALL["twin"]} if "twin" in given.steps else {})}
    if unknown := set(given.steps) - {*STEPS, *ALL}:
        sys.exit(f"no step {', '.join(sorted(unknown))}; there are {', '.join({**STEPS, **ALL})}")
    started, times = time.perf_counter(), []
    for line in ORDER:
        names = [name for name in line if name in steps and (not given.steps or name in given.steps)]
        aside = len(names) > 1
        with ThreadPoolExecutor(2) as pool:
            jobs = {name: pool.submit(run, name, steps[name], aside) for name in names}
            for name, job in jobs.items():
                print(f"== {name}", flush=True)
                failed, output, seconds = job.result()
                print(output, end="", flush=True)
                times.append(f"{name} {seconds:.0f} s")
                if failed:
                    print(f"== {name} failed: {failed}", flush=True)
        if any(job.result()[0] for job in jobs.values()):
            sys.exit(1)
    print(f"== all passed in {time.perf_counter() - started:.0f} s: {', '.join(times)}")


if __name__ == "__main__":
    main()
