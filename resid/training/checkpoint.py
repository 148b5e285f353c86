"""Folder of a training run: recipe, status, metrics, checkpoints and final weights, each written whole or not at all.

Weights and optimiser are the same on every rank, so rank 0 writes them alone, and the file is read by any number of
ranks; several machines need a folder that all of them see. Its name carries the step and a checksum; a file that does
not fit its checksum is passed over for the one before it. All files load with `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from resid._atomic import write_whole
from resid.errors import OptionError, ResidError
from resid.training.recipe import Recipe

__all__ = ["BusyError", "CheckpointError", "DamagedRunError", "RecipeMismatchError", "RunFolder", "hold"]

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


class CheckpointError(ResidError):
    """A checkpoint could not be written; the one before it is whole."""


class RecipeMismatchError(ResidError):
    """A folder holds a run of another recipe."""


class DamagedRunError(ResidError):
    """A file of a run folder is not what was written there, and no other file says the same."""


class BusyError(ResidError):
    """Another process is writing to the folder."""


class RunFolder:
    """recipe.json, status.json, metrics.jsonl, checkpoints and the final weights.pt of one run.

    Of image files also broken.json: those that could not be read, each with the reason.

    Args:
        path: of the folder; it need not be there yet.
        recipe: of the run.
        keep: number of checkpoints that stay.

    Raises:
        RecipeMismatchError: the folder has a run of another recipe; the fields that differ are named.
        DamagedRunError: its recipe.json is none.
    """

    def __init__(self, path: str | Path, recipe: Recipe, keep: int = 2) -> None:
        self.path, self.recipe, self.keep = Path(path), recipe, keep
        self.metrics = self.path / "metrics.jsonl"
        self.weights = self.path / "weights.pt"
        file = self.path / "recipe.json"
        if file.exists():
            try:
                stored = Recipe.from_json(file.read_text("utf-8"))
            except (OSError, UnicodeDecodeError, ResidError) as error:
                raise DamagedRunError(f"{file} is no recipe: {error}; choose another folder, or remove it") from error
            self._refuse(stored, file)

    @contextmanager
    def opened(self, writes: bool) -> Iterator[None]:
        """Hold the folder: one process writes to it at a time, and what a killed one left half done is removed.

        Args:
            writes: whether this is the rank that writes; the others do nothing.

        Raises:
            BusyError: another process holds it.
            OptionError: nothing can be written there.
        """
        if not writes:
            yield
            return
        self.make()
        with (self.path / "lock").open("a") as lock:
            hold(lock, self.path)
            for partial in self.path.glob("*.tmp"):
                partial.unlink()
            yield

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            OptionError: it cannot be made, or nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "lock").open("a").close()
        except OSError as error:
            raise OptionError(
                f"run_dir = {str(self.path)!r}: nothing can be written there: {_reason(error)}"
            ) from error

    def begin(self, step: int) -> None:
        """Note that training goes on after so many steps: metrics of later ones are forgotten, they will come again."""
        self._write("recipe.json", self.recipe.to_json().encode() + b"\n")
        earlier = [line for line in self.lines() if line["step"] <= step]
        self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in earlier).encode())
        self.set_status("running", step=step)

    def checkpoints(self) -> list[Path]:
        """List the checkpoints from the oldest to the newest."""
        return sorted(p for p in self.path.glob("step-*.pt") if NAME.fullmatch(p.name))

    def last_checkpoint(self) -> str:
        """Return which checkpoint is the newest, in words."""
        checkpoints = self.checkpoints()
        return f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and remove those too old to keep.

        Raises:
            CheckpointError: it cannot be written; the message says which one is whole.
        """
        content = _bytes({**state, "step": step, "recipe": self.recipe.to_json()})
        path = self.path / f"step-{step:09d}-{_checksum(content)}.pt"
        self._write(path.name, content)
        for same in self.path.glob(f"step-{step:09d}-*.pt"):  # of a stop right behind a save
            if same != path:
                same.unlink()
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole, or return None; a warning names each that is not.

        Raises:
            RecipeMismatchError: it is one of another recipe.
        """
        for path in reversed(self.checkpoints()):
            content = path.read_bytes()
            if _checksum(content) != path.stem.rpartition("-")[2]:
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
        """Write the final weights: `model.load_state_dict(torch.load(path, weights_only=True))`."""
        self._write("weights.pt", _bytes({name: tensor.cpu() for name, tensor in state.items()}))

    def lines(self) -> list[dict[str, Any]]:
        """Read the metrics, a dictionary for each finished epoch. A last line that was cut off is left out.

        Raises:
            DamagedRunError: another line is no JSON.
        """
        if not self.metrics.exists():
            return []
        metrics = []
        lines = self.metrics.read_text("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                metrics.append(_dictionary(line))
            except ValueError as error:
                if number < len(lines):
                    raise DamagedRunError(
                        f"{self.metrics}, line {number} is damaged: mend or remove the line, or choose another folder"
                    ) from error
        return metrics

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line of metrics."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._failed("metrics.jsonl", error) from error

    def note_broken(self, files: Mapping[str, str], writes: bool = True) -> dict[str, Any]:
        """Add files that cannot be read to broken.json, and return how many are known and the first ones.

        Args:
            files: names with the reasons.
            writes: whether this is the rank that writes.
        """
        known = {**_read_json(self.path / "broken.json"), **files}
        if writes:
            self._write("broken.json", json.dumps(known, indent=1, sort_keys=True).encode() + b"\n")
        return {"broken": len(known), "broken_first": sorted(known)[:3]}

    def set_status(self, state: str, **more: Any) -> None:
        """Write status.json: "running", "stopped", "finished" or "failed", and why."""
        self._write("status.json", json.dumps({"state": state, **more}).encode() + b"\n")

    def status(self) -> dict[str, Any]:
        """Read what `set_status` wrote last; empty before."""
        return _read_json(self.path / "status.json")

    def _refuse(self, stored: Recipe, path: Path) -> None:
        if lines := stored.differences(self.recipe):
            raise RecipeMismatchError(
                f"{path} belongs to another recipe, which differs in {'; '.join(lines)} (stored, asked for): "
                "choose another folder"
            )

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: OSError) -> CheckpointError:
        return CheckpointError(f"{name} cannot be written in {self.path}: {_reason(error)}; {self.last_checkpoint()}")


def _reason(error: OSError) -> str | None:
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _read_json(file: Path) -> dict[str, Any]:
    """Read a file that is written anew all the time; empty where there is none, or a damaged one, with a warning."""
    if not file.is_file():
        return {}
    try:
        return _dictionary(file.read_text("utf-8"))
    except (UnicodeDecodeError, ValueError):
        warnings.warn(f"{file} is damaged and passed over", stacklevel=3)
        return {}


def _dictionary(text: str) -> dict[str, Any]:
    """Return a JSON object; ValueError where the text is none."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"{text[:20]!r} is no JSON object")
    return content


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
