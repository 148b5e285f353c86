"""A check of two minutes on the way: `make quick` lints and types what changed, and runs the tests nearest to it.

What changed is what differs from the last commit, or, where nothing does, what the last commit changed. Nearest are the
test files that changed, and those that import a module that changed by name. Chapters that changed, or that import such
a module, are executed while the time lasts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from resid._closure import imported_names
from tools.notebooks import code, execute, notebooks, reads_records
from tools.paths import ROOT

BIN = Path(sys.executable).parent


def changed() -> list[Path]:
    """Files that differ from the last commit, new ones among them; else those that the last commit changed."""

    def names(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    here = names("diff", "--name-only", "HEAD") + names("ls-files", "--others", "--exclude-standard")
    return [ROOT / name for name in here or names("diff", "--name-only", "HEAD~1", "HEAD") if (ROOT / name).is_file()]


def modules(files: list[Path]) -> set[str]:
    """Dotted names of the modules of `resid` among some files, and of the packages of the theory that offer them."""
    dotted = set()
    for path in files:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "resid"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            door = name.rpartition(".")[0]
            dotted |= {name, door} if door.startswith("resid.theory.") else {name}
    return dotted


def names_one(source: str, dotted: set[str]) -> bool:
    """Whether a source imports one of the modules by name, or a name from it."""
    return any(name == one or name.startswith(f"{one}.") for name in imported_names(source) for one in dotted)


def near(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Test files and chapters nearest to some files."""
    dotted = modules(files)
    tests = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path in files or names_one(path.read_text("utf-8"), dotted)
    ]
    chapters = [path for path in notebooks() if path in files or names_one(code(path), dotted)]
    return tests, sorted((path for path in chapters if not reads_records(path)), key=lambda path: path not in files)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.quick", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="no chapter is begun after so long")
    ends = time.perf_counter() + parser.parse_args().seconds
    files = changed()
    python = [str(p) for p in files if p.suffix in (".py", ".pyi", ".ipynb")]
    tests, chapters = near(files)
    print(f"{len(files)} files changed; {len(tests)} test files and {len(chapters)} chapters are near", flush=True)
    commands = [[str(BIN / "mypy")]]
    if python:
        commands[:0] = [[str(BIN / "ruff"), "check", *python], [str(BIN / "ruff"), "format", "--check", *python]]
    if tests:
        options = ["-q", "-m", "not slow", "-n", "logical", "--maxprocesses", "8"]
        commands.append([sys.executable, "-m", "pytest", *options, *map(str, tests)])
    failed = [" ".join(command[:3]) for command in commands if subprocess.run(command, cwd=ROOT).returncode]
    for path in chapters:
        if time.perf_counter() > ends:
            print(f"  left    {path.relative_to(ROOT)}: `make book` executes it")
            continue
        try:
            print(execute(path), flush=True)
        except RuntimeError as error:
            failed.append(str(error))
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
