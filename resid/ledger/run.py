"""A run of a chapter: what ran where and when, and the evidence it gave, kept in one record file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resid.errors import OptionError
from resid.ledger.catalog import get_claim
from resid.ledger.errors import ClaimFailed, LedgerError
from resid.ledger.evidence import KINDS, Evidence, to_json
from resid.ledger.store import name_of, write_record

MODES = ("smoke", "reduced", "full")
_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("resid", "book", "benchmarks", "pyproject.toml", "constraints.txt", ":(exclude)benchmarks/results")
_RECIPE = re.compile(r"[A-Za-z0-9_-]+")
_current: Run | None = None


class Run:
    """An open run. Use `start_run`; `record` adds evidence, `finish` closes it.

    The chapter is that of the first claim recorded; claims of another chapter are refused. Until `finish` the record is
    a `.partial` file beside the finished one of an earlier run, which stays as it is.
    """

    def __init__(
        self,
        mode: str,
        seeds: Sequence[int],
        folder: Path,
        recipe: str | None,
        precision: str,
        device: str,
        some_seeds: bool,
    ) -> None:
        if mode not in MODES:
            raise OptionError(f"mode = {mode!r}: one of {', '.join(map(repr, MODES))} is needed")
        if recipe is not None and not _RECIPE.fullmatch(recipe):
            raise OptionError(
                f"recipe = {recipe!r}: letters, digits, - and _ are needed, it becomes part of a file name"
            )
        if some_seeds and not (len(set(seeds)) == len(seeds) > 0 and min(seeds) >= 0):
            raise OptionError(
                f"seeds = {list(seeds)!r}: distinct seeds from 0 on are needed for a record of some seeds"
            )
        commit, dirty = git_commit()
        self.folder = folder
        self._clock = time.perf_counter()
        self._content: dict[str, Any] = {
            "schema": 1,
            "chapter": "",
            "mode": mode,
            "seeds": [int(seed) for seed in seeds],
            "recipe": recipe,
            "started": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00"),
            "commit": commit,
            "dirty": dirty,
            "command": _command(),
            "device": device_name(device),
            "precision": precision,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "finished": False,
            "evidence": [],
        }
        if some_seeds:
            self._content["some_seeds"] = True

    @property
    def mode(self) -> str:
        """ "smoke", "reduced" or "full"."""
        return self._content["mode"]

    @property
    def path(self) -> Path:
        """The record file when the run is finished, before that the partial one, before the first claim the folder."""
        if not self._content["chapter"]:
            return self.folder
        name = name_of(self._content)
        return self.folder / (name if self._content["finished"] else name.replace(".json", ".partial"))

    def record(self, claim_id: str, measured: Evidence, strict: bool | None = None) -> bool:
        """Add evidence for a claim to the record, on disk, and judge it by the margin in the ledger.

        Args:
            claim_id: as in the ledger.
            measured: `Cases`, `Symbolic`, `Counterexample` or `Seeds`.
            strict: raise when it fails. Default: always, but for an experiment in full mode, whose verdict may well be
                "not reproduced".

        Returns:
            Whether it passed.

        Raises:
            ClaimFailed: it failed; the record has been written first.
            OptionError: `measured` is no evidence.
            UnknownClaimError, LedgerError: no such claim; a claim of another chapter; a closed run; evidence that
                cannot be about this claim, or that has been recorded before.
        """
        claim = get_claim(claim_id)
        if self.mode == "reduced":
            claim = claim.at_reduced_scale
        if not isinstance(measured, tuple(KINDS.values())):
            raise OptionError(f"measured = {measured!r}: Cases, Symbolic, Counterexample or Seeds is needed")
        if self._content["finished"]:
            raise LedgerError(f"{claim_id}: the run is finished; start another")
        if self._content["chapter"] not in ("", claim.chapter):
            raise LedgerError(
                f"{claim_id} belongs to chapter {claim.chapter!r}, and this run is of {self._content['chapter']!r}"
            )
        if malformed := measured.malformed(claim):
            raise LedgerError(f"{claim_id}: {'; '.join(malformed)}")
        problems = measured.unfavourable(claim, self.mode)
        entry = {
            "claim": claim_id,
            "terms": claim.terms,
            "words": claim.words,
            "passed": not problems,
            "problems": problems,
            "evidence": to_json(measured),
        }
        if entry in self._content["evidence"]:
            raise LedgerError(f"{claim_id}: the same evidence was recorded before; it counts once")
        self._content["chapter"] = claim.chapter
        self._content["evidence"].append(entry)
        self._write()
        if strict is None:
            strict = claim.kind != "experiment" or self.mode == "smoke"
        if problems and strict:
            raise ClaimFailed(f"{claim_id}: " + "; ".join(problems))
        return not problems

    def finish(self) -> dict[str, bool]:
        """Close the run and say for each claim whether all its evidence passed.

        Raises:
            LedgerError: nothing was recorded.
        """
        if not self._content["evidence"]:
            raise LedgerError("the run recorded no claim, so there is nothing to finish")
        partial = self.path
        self._content["finished"] = True
        self._write()
        partial.unlink(missing_ok=True)
        passed: dict[str, bool] = {}
        for entry in self._content["evidence"]:
            passed[entry["claim"]] = passed.get(entry["claim"], True) and entry["passed"]
        return passed

    def _write(self) -> None:
        self._content["wall_seconds"] = round(time.perf_counter() - self._clock, 3)
        write_record(self.path, self._content)


def start_run(
    mode: str = "smoke",
    seeds: Sequence[int] = (0,),
    folder: Path | str | None = None,
    recipe: str | None = None,
    precision: str = "float64",
    device: str = "cpu",
    some_seeds: bool = False,
) -> Run:
    """Open a run; `record` and `finish_run` then refer to it.

    Args:
        mode: "smoke", "reduced" or "full". Written into the record for good: records of one never count as another.
        seeds: of the random numbers used.
        folder: for the record; default `RESID_RESULTS`, else `resid-results` in the working directory.
        recipe: hash of the recipe, for experiments with several; becomes part of the file's name.
        precision: of the computation.
        device: what computes, "cpu" or "cuda".
        some_seeds: these are some of the seeds that the claims fix. The file's name then has their numbers, and records
            of other seeds, from another day or another machine, count together with it.

    Raises:
        OptionError: unknown mode, a recipe that cannot be part of a file name, or some seeds that are none, negative or
            not distinct.
    """
    global _current
    _current = Run(
        mode, seeds, records_folder() if folder is None else Path(folder), recipe, precision, device, some_seeds
    )
    return _current


def records_folder() -> Path:
    """Where the records of runs go: `RESID_RESULTS`, else `resid-results` in the working directory."""
    return Path(os.environ.get("RESID_RESULTS") or "resid-results")


def record(claim_id: str, measured: Evidence, strict: bool | None = None) -> bool:
    """`Run.record` of the open run.

    Raises:
        LedgerError: no run is open.
    """
    return _open_run().record(claim_id, measured, strict)


def open_mode() -> str:
    """The mode of the open run.

    Raises:
        LedgerError: no run is open.
    """
    return _open_run().mode


def finish_run() -> dict[str, bool]:
    """`Run.finish` of the open run, which is then no longer open."""
    global _current
    passed = _open_run().finish()
    _current = None
    return passed


def _open_run() -> Run:
    if _current is None:
        raise LedgerError("no run is open: call start_run (in a notebook, resid.book.setup) first")
    return _current


def versions() -> dict[str, str]:
    """Versions of Python and of what computes; "unknown" for what is not installed as a package."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "sympy", "resid"):
        try:
            found[name] = importlib.metadata.version("resid-book" if name == "resid" else name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the CPU's architecture and core count."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def _command() -> str:
    """How the run was started: `RESID_COMMAND` where a runner sets it."""
    if command := os.environ.get("RESID_COMMAND"):
        return command
    program, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if "ipykernel" in program:  # whoever started the kernel knows; papermill, as a program, is its parent
        parent = _arguments_of(os.getppid())
        at = 1 if Path(*parent[1:2]).name == "papermill" else 2
        if at == 2 and parent[1:3] != ["-m", "papermill"]:
            return "interactive notebook"
        program, arguments = "papermill", parent[at + 1 :]
    return " ".join([program, *arguments])


def _arguments_of(process: int) -> list[str]:
    """Its command line, where the system shows it."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


def git_commit() -> tuple[str | None, bool | None]:
    """The commit of the code, and whether the code differs from it; None for what is not known."""
    try:
        origin = json.loads(importlib.metadata.distribution("resid-book").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        origin = {}
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return commit, False
    if not (_ROOT / ".git").exists():
        return None, None
    status = _git("status", "--porcelain", "--", *_CODE)
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    """Output of a git command on the checkout, None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
