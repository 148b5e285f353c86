"""How and where a recipe is trained: everything that does not change what comes out, in one checked record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resid._arguments import as_whole
from resid.errors import OptionError
from resid.training.ranks import as_device

__all__ = ["FLAGS", "RunOptions"]


#: Fields that are options of `resid-train`: the option, its type and its help.
FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "device": ("--device", str, "cpu or cuda; default a GPU if there is one"),
    "max_seconds": ("--max-seconds", float, "save and stop after so many seconds"),
    "save_every": ("--save-every", int, "steps between checkpoints; default about a minute"),
    "keep": ("--keep", int, "checkpoints that stay"),
    "data_folder": ("--data", Path, "folder of the data; default RESID_DATA, for ImageNet RESID_IMAGENET"),
    "workers": ("--workers", int, "processes that read image files, for each process that trains"),
    "nproc": ("--nproc", int, "start so many processes by torchrun, and all of them again when one dies"),
    "retries": ("--retries", int, "starts after the first, with --nproc"),
}


@dataclass(frozen=True)
class RunOptions:
    """Options of `train`, `launch` and `run_recipes`, and of the command `resid-train`.

    Args:
        device: "cpu", "cuda" or "cuda:0", say; None for a GPU if there is one, else the CPU.
        max_seconds: save and stop after so many seconds; None for no limit.
        save_every: steps between checkpoints; None for the first end of an epoch after a minute, and every five minutes
            inside a longer epoch.
        keep: number of checkpoints that stay in the folder.
        data_folder: folder of the data set; None for `RESID_DATA`, of ImageNet `RESID_IMAGENET`.
        workers: processes that read image files for each rank; None for one each CPU that a rank has to itself.
        nproc: ranks of a run, one for each GPU, started by torchrun; used by `launch` and `run_recipes`.
        retries: how often torchrun starts the ranks again when one dies; used by `launch`.
        at_once: runs at a time, each in processes of its own; used by `run_recipes`.
        say: called on rank 0 with a line of text for each epoch, and each minute of a longer one; None for silence.

    Raises:
        OptionError: a number is out of its range, or this machine has no such device.

    Example:
        >>> RunOptions(device="cpu", nproc=2).changed(keep=3).keep
        3
    """

    device: str | torch.device | None = None
    max_seconds: float | None = None
    save_every: int | None = None
    keep: int = 2
    data_folder: str | Path | None = None
    workers: int | None = None
    nproc: int = 1
    retries: int = 2
    at_once: int = 1
    say: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("keep", 1),
            ("nproc", 1),
            ("at_once", 1),
            ("retries", 0),
            ("save_every", 1),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if value is None and name in ("save_every", "workers"):
                continue
            if (whole := as_whole(value)) is None or whole < least:
                raise OptionError(f"{name} = {value!r}: an integer of at least {least} is needed")
        seconds = self.max_seconds
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):  # NaN, too
            raise OptionError(f"max_seconds = {seconds!r}: a number of seconds is needed")
        as_device(self.device)

    def changed(self, **changes: Any) -> RunOptions:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def words(self) -> list[str]:
        """Return the fields that are not at their defaults as words for `resid-train`."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return [word for name, value in changed.items() if name in FLAGS for word in (FLAGS[name][0], str(value))]
