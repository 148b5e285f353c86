"""When a run stops before its end: signals, the clock, and the process that started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from resid.training.ranks import LAUNCHER, under_torchrun

__all__ = ["Stop"]


class Stop:
    """Reason to stop: SIGTERM or Ctrl-C, `max_seconds`, the end of torchrun or of the launcher, or a request.

    Within the context both signals are caught, but for one that is ignored (as Ctrl-C is in the background of a shell),
    and only in the main thread, where Python allows it. A second Ctrl-C raises KeyboardInterrupt at once.

    Args:
        max_seconds: after which to stop, from now on; None for no limit.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._torchrun = os.getppid() if under_torchrun() or "TORCHELASTIC_RUN_ID" in os.environ else None
        self._launcher = int(os.environ.get(LAUNCHER, "0"))
        self._reason = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            caught = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
            before = {number: signal.signal(number, self._note) for number in caught}
            self._before = {number: old for number, old in before.items() if old is not None}  # None: not Python's
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self, reason: str) -> None:
        """Ask for a stop, from any thread; the first reason stays."""
        self._reason = self._reason or reason

    def wish(self) -> str:
        """Return why to stop, or ""."""
        if self._reason:
            return self._reason
        if self._end is not None and time.monotonic() >= self._end:
            return "max_seconds is over"
        if self._torchrun is not None and os.getppid() != self._torchrun:
            return "torchrun is gone"
        return "the launcher is gone" if self._launcher and not _alive(self._launcher) else ""

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self._reason == signal.Signals.SIGINT.name:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)


def _alive(process: int) -> bool:
    """Return whether a process of this number exists; one of another user counts."""
    if os.name != "posix":  # where this call would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
