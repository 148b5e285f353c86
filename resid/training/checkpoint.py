"""Files of a training run that are written whole or not at all, and the folder that holds them.

Weights and optimiser are the same on every rank, so rank 0 writes them alone, and the file is read by any number of
ranks; several machines need a folder that all of them see. Its name carries the step and a checksum; a file that does
not fit its checksum is passed over for the one before it. All files load with `torch.load(weights_only=True)`.

A checkpoint can be written in the background: what it holds is copied at once, a thread writes the copy, and training
goes on. One is under way at a time, and an error of it is raised by the next call that writes a checkpoint or waits.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from resid._arguments import as_whole
from resid.errors import OptionError, ResidError
from resid.training.recipe import Recipe

__all__ = ["BusyError", "CheckpointError", "DamagedRunError", "RecipeMismatchError", "RunFolder", "hold", "write_whole"]

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


class CheckpointError(ResidError):
    """A checkpoint could not be written; the one before it is whole."""


class RecipeMismatchError(ResidError):
    """A folder holds a run of another recipe."""


class DamagedRunError(ResidError):
    """A file of a run folder is not what was written there, and no other file says the same."""


class BusyError(ResidError):
    """Another process is writing to the folder."""


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file: write beside it, flush to the disk, rename. A reader sees the old content or the new one.

    Raises:
        OSError: the disk is full, for instance; the old content is still there, and nothing beside it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunFolder:
    """recipe.json, status.json, metrics.jsonl, checkpoints and the final weights.pt of one run.

    Of image files also broken.json: those that could not be read, each with the reason.

    Args:
        path: made if it is not there. recipe: of the run. keep: how many checkpoints stay.

    Raises:
        RecipeMismatchError: the folder has a run of another recipe; the fields that differ are named.
        OptionError: keep is no integer of at least 1.
    """

    def __init__(self, path: str | Path, recipe: Recipe, keep: int = 2) -> None:
        if (whole := as_whole(keep)) is None or whole < 1:
            raise OptionError(f"keep = {keep!r}: an integer of at least 1 is needed")
        self.path, self.recipe, self.keep = Path(path), recipe, keep
        self.metrics = self.path / "metrics.jsonl"
        self.weights = self.path / "weights.pt"
        self._writer = ThreadPoolExecutor(1, "checkpoint")  # starts its thread when it is first needed
        self._under_way: Future[Path] | None = None
        self._check(self.path / "recipe.json")

    @contextmanager
    def opened(self, writes: bool) -> Iterator[None]:
        """Hold the folder: one process writes to it at a time, and what a killed one left half done is removed.

        Raises:
            BusyError: another process holds it.
        """
        if not writes:
            yield
            return
        self.make()
        with (self.path / "lock").open("a") as lock:
            hold(lock, self.path)
            for partial in self.path.glob("*.tmp"):
                partial.unlink()
            try:
                yield
            finally:
                with suppress(CheckpointError):  # where all went well, `loop` has waited and raised it
                    self.settle()

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            OptionError: it cannot be made, or nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "lock").open("a").close()
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise OptionError(f"run_dir = {str(self.path)!r}: nothing can be written there: {reason}") from error

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after so many steps: forget the metrics of later ones, which will come again."""
        self._write(self.path / "recipe.json", self.recipe.to_json().encode() + b"\n", "recipe.json")
        kept = [line for line in self.lines() if line["step"] <= step]
        self._write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode(), "metrics.jsonl")
        self.set_status("running", step=step)

    def checkpoints(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(p for p in self.path.glob("step-*.pt") if NAME.fullmatch(p.name))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and remove those too old to keep.

        Raises:
            CheckpointError: it cannot be written, or the one under way could not; the message says which one is whole.
        """
        self.settle()
        return self._save(step, state)

    def save_behind(self, step: int, state: Mapping[str, Any]) -> None:
        """`save`, in the background: the state is copied to the CPU's memory now and written while training goes on.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.settle()
        self._under_way = self._writer.submit(self._save, step, _copied(state))

    def settle(self) -> None:
        """Wait until nothing is written in the background.

        Raises:
            CheckpointError: what was written could not be; said once.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _save(self, step: int, state: Mapping[str, Any]) -> Path:
        content = _bytes({**state, "step": step, "recipe": self.recipe.to_json()})
        path = self.path / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        self._write(path, content, f"the checkpoint of step {step}")
        for same in self.path.glob(f"step-{step:09d}-*.pt"):  # of a stop right behind a save
            if same != path:
                same.unlink()
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None; a warning names each that is not.

        Raises:
            RecipeMismatchError: it is one of another recipe.
        """
        for path in reversed(self.checkpoints()):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.rpartition("-")[2]:
                warnings.warn(f"{path} is damaged and passed over", stacklevel=2)
                continue
            try:
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
                recipe = Recipe.from_json(state["recipe"])
            except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ResidError) as error:
                warnings.warn(f"{path} is no checkpoint and passed over: {type(error).__name__}", stacklevel=2)
                continue
            self._refuse(recipe, path)
            return state
        return None

    def write_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """The final weights: `model.load_state_dict(torch.load(path, weights_only=True))`."""
        self._write(self.weights, _bytes({name: tensor.cpu() for name, tensor in state.items()}), "weights.pt")

    def lines(self) -> list[dict[str, Any]]:
        """The metrics, a dictionary for each finished epoch. A last line that was cut off is left out.

        Raises:
            DamagedRunError: another line is no JSON.
        """
        if not self.metrics.exists():
            return []
        found = []
        lines = self.metrics.read_text("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                found.append(_dictionary(line))
            except ValueError as error:
                if number < len(lines):
                    raise DamagedRunError(
                        f"{self.metrics}, line {number} is damaged: mend or remove the line, or choose another folder"
                    ) from error
        return found

    def append(self, line: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._failed("metrics.jsonl", error) from error

    def note_broken(self, files: Mapping[str, str], writes: bool = True) -> dict[str, Any]:
        """Add files that cannot be read, with the reasons, to broken.json; returns how many are known, and the first.

        writes: whether this is the rank that writes.
        """
        path = self.path / "broken.json"
        known = {**_read_json(path), **files}
        if writes:
            self._write(path, json.dumps(known, indent=1, sort_keys=True).encode() + b"\n", "broken.json")
        return {"broken": len(known), "broken_first": sorted(known)[:3]}

    def set_status(self, state: str, **more: Any) -> None:
        """status.json: "running", "stopped", "finished" or "failed", and why."""
        self._write(self.path / "status.json", json.dumps({"state": state, **more}).encode() + b"\n", "status.json")

    def status(self) -> dict[str, Any]:
        """What `set_status` wrote last; empty before."""
        return read_status(self.path)

    def _check(self, path: Path) -> None:
        if path.exists():
            try:
                stored = Recipe.from_json(path.read_text("utf-8"))
            except (OSError, UnicodeDecodeError, ResidError) as error:
                raise DamagedRunError(f"{path} is no recipe: {error}; choose another folder, or remove it") from error
            self._refuse(stored, path)

    def _refuse(self, stored: Recipe, path: Path) -> None:
        if lines := stored.differences(self.recipe):
            raise RecipeMismatchError(
                f"{path} belongs to another recipe, which differs in {'; '.join(lines)} (stored, asked for): "
                "choose another folder"
            )

    def _write(self, path: Path, content: bytes, what: str) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: OSError) -> CheckpointError:
        found = self.checkpoints()
        whole = f"the last whole checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        return CheckpointError(f"{what} cannot be written in {self.path}: {reason}; {whole}")


def read_status(path: str | Path) -> dict[str, Any]:
    """status.json of a folder; empty if there is none."""
    return _read_json(Path(path) / "status.json")


def _read_json(file: Path) -> dict[str, Any]:
    """A file that is written anew all the time; empty where there is none, or where it is damaged, with a warning."""
    if not file.is_file():
        return {}
    try:
        return _dictionary(file.read_text("utf-8"))
    except (UnicodeDecodeError, ValueError):
        warnings.warn(f"{file} is damaged and passed over", stacklevel=3)
        return {}


def _dictionary(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the text is none.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text[:20]!r} is no JSON object")
    return found


def _copied(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples whose tensors are on the CPU and share no memory with any."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_copied, state))
    return state


def _bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def hold(lock: Any, path: Path) -> None:
    """Lock an open file until it is closed or its process ends, where the system can.

    Raises:
        BusyError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"{path}: another process is writing there") from None
