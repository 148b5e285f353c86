"""Execute notebooks with papermill, each once, and again only when something it depends on has changed.

A notebook depends on its own code cells and their ids, on the modules of `resid` that it imports (directly or through
others), on the data files of the package and on constraints.txt. Text may change without a new run. Notebooks whose
metadata say `"resid": {"reads": "records"}` run last and depend on the records of the others and on results/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import yaml

from resid._closure import imported_files
from tools.paths import EXECUTED, RECORDS, ROOT

TIMEOUT = 900
SLOW = 60
#: What a chapter calls that shows the verdicts of recorded full runs.
VERDICTS = re.compile(r"\b(verdicts|paper_and_ours)\(")


def in_toc() -> list[Path]:
    """Every file of the table of contents, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    names = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [next(p for p in (ROOT / f"{name}.ipynb", ROOT / f"{name}.md") if p.exists()) for name in names]


def notebooks() -> list[Path]:
    """The notebooks of the book, in order."""
    return [path for path in in_toc() if path.suffix == ".ipynb"]


def reads_records(path: Path) -> bool:
    """Whether the notebook shows what the others recorded."""
    return nbformat.read(path, as_version=4).metadata.get("resid", {}).get("reads") == "records"


def code(path: Path) -> str:
    """The code cells, line magics removed, so that it parses."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.MULTILINE)


def dependencies(source: str) -> set[Path]:
    """The files of `resid` that running `source` imports, followed through the package."""
    return imported_files(source, ROOT)


def fingerprint(path: Path) -> str:
    """A hash of everything the outputs of a notebook depend on."""
    source = code(path)
    files = dependencies(source) | {ROOT / "constraints.txt", Path(__file__)}
    files |= {p for p in (ROOT / "resid").rglob("*") if p.suffix in (".yaml", ".json", ".npz", ".csv")}
    if reads_records(path) or VERDICTS.search(source):
        files |= set((ROOT / "results").glob("*.json"))
    elif "finish(" in source:  # which shows the verdicts on the chapter's own claims
        name = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("book/").replace("/", "-")
        files |= set((ROOT / "results").glob(f"{name}.*.json"))
    if reads_records(path):
        files |= set(RECORDS.glob("*.json"))
        files |= set((ROOT / "benchmarks").rglob("*.json"))
    digest = hashlib.sha256(f"{platform.python_version()} {path.relative_to(ROOT)}\n".encode())
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":  # outputs go back to the cell that has the same id
            digest.update(f"{json.dumps([cell.id, cell.source])}\n".encode())
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def output_of(path: Path) -> Path:
    """Where the executed copy lies."""
    return EXECUTED / path.relative_to(ROOT)


def run_papermill(
    source: Path,
    output: Path,
    records: Path,
    threads: int = 1,
    parameters: Sequence[str] = (),
    root: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """One papermill run, in the notebook's folder, its records going to `records`; `resid` is taken from `root`."""
    root = ROOT if root is None else root
    arguments, environment = papermill(source, output, records, threads, parameters, root)
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=root)


def papermill(
    source: Path,
    output: Path,
    records: Path,
    threads: int = 1,
    parameters: Sequence[str] = (),
    root: Path | None = None,
    timeout: int | None = TIMEOUT,
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of `run_papermill`; timeout: seconds for a cell."""
    root = ROOT if root is None else root
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = source.parent.relative_to(root)
    command = ["papermill", str(source.relative_to(root)), "out.ipynb", *parameters, "--cwd", str(folder)]
    environment = {
        **os.environ,
        "RESID_RESULTS": str(records),
        "RESID_COMMAND": " ".join(command),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(root),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    arguments = [sys.executable, "-m", "papermill", str(source), str(output), *parameters, "-k", "python3"]
    arguments += ["--cwd", str(source.parent), "--no-progress-bar"]
    arguments += [] if timeout is None else ["--execution-timeout", str(timeout)]
    return arguments, environment


def failure(output: Path, done: subprocess.CompletedProcess[str]) -> str:
    """The failing cell and its traceback, without terminal colours."""
    if output.exists():
        for cell in nbformat.read(output, as_version=4).cells:
            for out in cell.get("outputs", []):
                if out.output_type == "error":
                    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(out.traceback[-12:]))
                    return f"cell {cell.get('id')}: {out.ename}: {out.evalue}\n{trace}"
    return done.stderr[-3000:]


def execute(path: Path, force: bool = False, threads: int = 1) -> str:
    """Run a notebook unless its outputs are current; returns a line for the log.

    Raises:
        RuntimeError: a cell failed, with the cell and its traceback.
    """
    name, output = path.relative_to(ROOT).as_posix(), output_of(path)
    key, stamp = fingerprint(path), output.with_suffix(".key")
    if not force and output.exists() and stamp.exists() and stamp.read_text() == key:
        return f"  current {name}"
    stamp.unlink(missing_ok=True)
    started = time.perf_counter()
    done = run_papermill(path, output, RECORDS, threads)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{name} failed after {seconds:.0f} s: {failure(output, done)}")
    stamp.write_text(key)
    slow = f" (more than {SLOW} s: too slow for a chapter)" if seconds > SLOW else ""
    return f"  ran     {name} in {seconds:.1f} s{slow}"


def execute_all(force: bool = False) -> None:
    """Every notebook that needs it, as many at once as there are cores for."""
    paths = notebooks()
    last = [p for p in paths if reads_records(p)]
    cores = os.cpu_count() or 1
    workers = min(2, cores)
    errors = []
    for group in ([p for p in paths if p not in last], last):
        with ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(execute, path, force, max(1, cores // workers)) for path in group]
            for job in jobs:
                try:
                    print(job.result(), flush=True)
                except RuntimeError as error:
                    errors.append(str(error))
                    print(f"  FAILED  {error}", flush=True)
        if errors:
            sys.exit(f"{len(errors)} notebook(s) failed")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="run every notebook, current or not")
    execute_all(parser.parse_args().force)


if __name__ == "__main__":
    main()
