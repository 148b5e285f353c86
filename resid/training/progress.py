"""Display of a run: a bar on a terminal, lines elsewhere, and status.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

__all__ = ["SECONDS", "Bar", "describe", "echo", "once_a_minute"]

#: Seconds between two lines of progress inside an epoch, and between two updates of status.json.
SECONDS = 60.0


class _Lines:
    """File whose lines go to a function, for tqdm."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self._say = say

    def write(self, text: str) -> None:
        if self._say is not None and (line := text.strip()):
            self._say(line)

    def flush(self) -> None:
        pass


class _Unlocked:
    """Lock that never waits: a bar writes to a stream of its own, and a Ctrl-C inside a lock would leave it held."""

    def acquire(self, *_: object, **__: object) -> bool:
        """Return at once."""
        return True

    def release(self) -> None:
        """Return at once."""

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(self, *_: object) -> None:
        """Leave."""


class Bar(tqdm):
    """Bar of steps: drawn where lines are printed on a terminal, else a line a minute, none in the first one.

    Args:
        say: takes the lines; None for silence.
        batch: images a step.
        options: of tqdm.
    """

    monitor_interval = 0  # no thread of its own

    def __init__(self, say: Callable[[str], None] | None, batch: int, **options: Any) -> None:
        self._batch, self._noted = batch, time.monotonic()
        if say in (print, echo) and sys.stdout.isatty():
            layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {images}]"
            super().__init__(file=sys.stdout, dynamic_ncols=True, leave=False, bar_format=layout, **options)
        else:
            layout = "in {desc}: step {n_fmt} of {total_fmt}, {images}, {remaining} left"
            quiet: dict[str, Any] = {"mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "leave": False}
            super().__init__(file=_Lines(say), bar_format=layout, **quiet, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm knows, and images a second."""
        shown = super().format_dict
        shown["rate"] = shown["rate"] or (self.n - self.initial) / max(shown["elapsed"], 1e-9)
        return {**shown, "images": f"{shown['rate'] * self._batch:,.0f} images/s"}

    def begin_epoch(self, step: int) -> None:
        """Count the next minute, and the pace, from here."""
        self.n = self.last_print_n = step
        self.last_print_t = self._time()

    def due(self, step: int) -> dict[str, float] | None:
        """Return what status.json says of the pace after so many steps, once a minute, else None."""
        if (now := time.monotonic()) - self._noted < SECONDS:
            return None
        self._noted, self.n = now, step
        rate = self.format_dict["rate"]
        left = round((self.total - step) / rate)
        return {"steps": self.total, "images_per_second": round(rate * self._batch, 1), "seconds_left": left}


Bar.set_lock(_Unlocked())


def echo(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


def once_a_minute(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    """Return a function that hands on at most a line a minute, each with a prefix."""
    last = time.monotonic()

    def sparse(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            say(prefix + line)

    return sparse


def describe(line: dict[str, Any], epochs: int) -> str:
    """Return a line of metrics as text, "epoch 3/164 ..."."""
    first = ", ".join(line.get("broken_first", []))
    broken = f", {line['broken']} files cannot be read, see broken.json: {first}" if first else ""
    return (
        f"epoch {line['epoch']}/{epochs}, step {line['step']}: loss {line['loss']:.4f}, "
        f"error {100 * line['train_error']:.2f}% train, {100 * line['test_error']:.2f}% test, "
        f"rate {line['lr']:.3g}, {line['images_per_second']:,.0f} images/s"
    ) + broken
