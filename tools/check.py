"""Everything CI checks, in the order in which failures are cheapest to learn of; each step says how long it took.

`python -m tools.check [step ...]` runs the named steps only. Mutations have eight minutes and take turns by commit;
`make teeth` tries all of them, as CI does once a week.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tools.paths import ROOT

PYTHON = sys.executable
BIN = Path(PYTHON).parent
WORKFLOWS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / ".github" / "workflows").glob("*.yml"))

STEPS: dict[str, list[list[str]]] = {
    "lint": [
        [str(BIN / "ruff"), "check", "."],
        [str(BIN / "ruff"), "format", "--check", "."],
        [str(BIN / "codespell")],
        [str(BIN / "yamllint"), "--strict", "."],
    ],
    "workflows": [
        [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        [str(BIN / "zizmor"), "--offline", "--no-progress", "--quiet", *WORKFLOWS],
    ],
    "types": [[str(BIN / "mypy")]],
    "notebooks": [[PYTHON, "-m", "tools.lint_notebooks"]],
    "test": [["make", "--no-print-directory", "test"]],
    "book": [[PYTHON, "-m", "tools.site", "--all"]],
    "outputs": [[PYTHON, "-m", "tools.lint_notebooks"]],
    "links": [[PYTHON, "-m", "tools.links"], [PYTHON, "-m", "tools.shown"]],
    "twin": [[PYTHON, "-m", "tools.twin"]],
    "browser": [[PYTHON, "-m", "tools.browser"]],
    "teeth": [[PYTHON, "-m", "tests.mutations", "--minutes", "8"]],
}


def main() -> None:
    """Run the steps; stop at the first that fails."""
    wanted = sys.argv[1:] or list(STEPS)
    if unknown := set(wanted) - set(STEPS):
        sys.exit(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    started, times = time.perf_counter(), []
    for name in wanted:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        for command in STEPS[name]:
            done = subprocess.run(command, cwd=ROOT)
            if done.returncode:
                sys.exit(f"== {name} failed: {' '.join(command)}")
        times.append(f"{name} {time.perf_counter() - began:.0f} s")
    print(f"== all passed in {time.perf_counter() - started:.0f} s: {', '.join(times)}")


if __name__ == "__main__":
    main()
