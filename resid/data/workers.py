"""Processes that do one thing over and over: those of torch's DataLoader, with an order and errors of our own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from resid._arguments import as_whole
from resid.errors import InterruptedRunError, OptionError

__all__ = ["WorkerDiedError", "Workers"]

T = TypeVar("T")
PRELOADED = ["resid.data.stream"]
#: What torch says of a worker that is gone; an error raised by a worker reads "Caught ..."
GONE = ("exited unexpectedly", "killed by signal")


class WorkerDiedError(InterruptedRunError):
    """A worker process was killed; the same again may well succeed."""


class _Keys:
    """What is to be done next; the loader asks for it as it goes."""

    def __init__(self) -> None:
        self.keys: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


class Workers(Generic[T]):
    """Processes that compute `task[key]` for many keys; results come in the order of the keys.

    They are started when first needed and stay until `close`. They are forked from a process of their own, without
    threads, since forking one that has threads, or has used CUDA, can hang; so a script that uses them has to keep what
    it does under `if __name__ == "__main__":`.

    Args:
        task: picklable. workers: how many, 0 for none but this process. prefetch: keys that each works on in advance.
            pin: put results into pinned memory.

    Raises:
        OptionError: numbers of no use.

    Example:
        >>> list(Workers(range(10, 20))([3, 5]))
        [13, 15]
    """

    def __init__(self, task: Any, workers: int = 0, prefetch: int = 2, pin: bool = False) -> None:
        for name, value, least in (("workers", workers, 0), ("prefetch", prefetch, 1)):
            if (whole := as_whole(value)) is None or whole < least:
                raise OptionError(f"{name} = {value!r}: an integer of at least {least} is needed")
        self._task: Dataset[T] = task
        self._workers, self._prefetch, self._pin = workers, prefetch, pin
        self._keys = _Keys()
        self._loader: DataLoader[T] | None = None
        self._turn = 0

    def __call__(self, keys: Iterable[Any]) -> Iterator[T]:
        """The results, one iteration at a time; one left before its end costs what was prepared in advance.

        Raises:
            WorkerDiedError: a worker was killed; noticed within five seconds or so.
            OptionError: another iteration was begun before this one was over.
        """
        self._turn += 1
        turn, self._keys.keys = self._turn, keys
        if self._loader is None:
            self._loader = self._start()
        results = self._guarded(self._loader)
        for result in results:
            yield result
            if self._turn != turn:
                raise OptionError("another iteration over these workers was begun before this one was over")

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that have been started."""
        iterator = getattr(self._loader, "_iterator", None)
        return [worker.pid for worker in getattr(iterator, "_workers", [])]

    def close(self) -> None:
        """End the workers; the next call starts others."""
        self._loader = None

    def _guarded(self, loader: DataLoader[T]) -> Iterator[T]:
        try:
            yield from loader
        except (RuntimeError, EOFError, OSError) as error:
            text = str(error)
            lost = isinstance(error, (EOFError, OSError)) and not text.startswith("Caught ")
            if not self._workers or not (lost or any(words in text for words in GONE)):
                raise
            self.close()
            raise WorkerDiedError(
                f"a worker process has ended before its time: {text or type(error).__name__}. If the system killed it, "
                "then for want of memory, in /dev/shm, too: fewer workers, or less prefetched, need less"
            ) from error

    def _start(self) -> DataLoader[T]:
        more: dict[str, Any] = {}
        if self._workers:
            more = {
                "persistent_workers": True, "prefetch_factor": self._prefetch, "multiprocessing_context": _context(),
            }  # fmt: skip
        return DataLoader(
            self._task,
            batch_size=None,
            sampler=self._keys,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin,
            generator=torch.Generator(),  # the loader draws a seed, which is not to move the generator of all
            **more,
        )


def _as_it_is(result: Any) -> Any:
    return result


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # torch is imported once, not by each; without effect if one runs already
    return context
