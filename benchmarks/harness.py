"""Measure rows: each side in a process of its own, so that its peak memory is its own; repeated, the median kept.

The two sides take turns, so that a machine that slows down does so for both.

A row is a function that returns two sides, ours and the peer's. A side prepares its input outside the clock and does
`units` units of work (layers, say) under it; the ratio compares times per unit, so that a slow peer may do fewer.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resid._atomic import write_whole
from resid.ledger.run import device_name, git_commit, versions

RESULTS = Path(__file__).parent / "results"
REPEATS = 3


@dataclass(frozen=True)
class Side:
    """prepare() -> input, outside the clock; work(input), under it; units of work done; what it is, in words.

    quality: of what comes out of an input, in words, for sides that do not reach the same.
    """

    what: str
    prepare: Callable[[], Any]
    work: Callable[[Any], Any]
    units: int = 1
    quality: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Row:
    """A comparison: name, what it shows, the two sides, the limits it must keep, threads used.

    Args:
        official: the data set of `resid.data.official` that it needs, if any.
        needs: a module that only the extra `bench` brings.
        repeats: of each side.
        least: compare the least times, not the medians, for a ratio near 1 on a machine that is not quiet.
    """

    name: str
    what: str
    ours: Side
    peer: Side
    threads: int
    least_ratio: float = 1.0
    most_seconds: float | None = None
    most_gib: float | None = None
    unit: str = "call"
    official: str = ""
    needs: str = ""
    repeats: int = REPEATS
    least: bool = False


def _measure(rows: str, name: str, which: str, pipe: Any) -> None:
    """In the child: find the row again by the module that holds it, since functions do not travel."""
    (row,) = (row for row in importlib.import_module(rows).ROWS if row.name == name)
    torch.set_num_threads(row.threads)
    side: Side = getattr(row, which)
    seconds: list[float] = []
    while pipe.recv():  # our turn
        given = side.prepare()
        started = time.perf_counter()
        side.work(given)
        seconds.append(time.perf_counter() - started)
        del given
        pipe.send(None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"what": side.what, "units": side.units, "seconds": seconds, "peak_gib": peak / 2**30}
    if side.quality is not None:
        found["quality"] = side.quality(side.prepare())
    pipe.send(found)


def measure(row: Row, rows: str = "benchmarks.rows") -> dict[str, Any]:
    """Run both sides and judge the limits.

    Args:
        row: the row.
        rows: the module whose `ROWS` has it.

    Raises:
        RuntimeError: a side's process failed.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes, sides = {}, {}, {}
    for which in ("ours", "peer"):
        pipes[which], theirs = context.Pipe()
        processes[which] = context.Process(target=_measure, args=(rows, row.name, which, theirs))
        processes[which].start()
        theirs.close()
    try:
        for more in [True] * row.repeats + [False]:
            for which, pipe in pipes.items():
                pipe.send(more)
                sides[which] = pipe.recv()
    except (EOFError, OSError):
        raise RuntimeError(f"{row.name}: the process measuring {which!r} failed") from None
    finally:
        for which, pipe in pipes.items():
            pipe.close()
            processes[which].join()
    typical = min if row.least else statistics.median
    each = {which: typical(side["seconds"]) / side["units"] for which, side in sides.items()}
    ratio = each["peer"] / each["ours"]
    ours = sides["ours"]
    problems = []
    if ratio < row.least_ratio:
        problems.append(f"ratio {ratio:.2f} < {row.least_ratio}")
    if row.most_seconds is not None and statistics.median(ours["seconds"]) > row.most_seconds:
        problems.append(f"{statistics.median(ours['seconds']):.2f} s > {row.most_seconds} s")
    if row.most_gib is not None and ours["peak_gib"] > row.most_gib:
        problems.append(f"{ours['peak_gib']:.2f} GiB > {row.most_gib} GiB")
    commit, dirty = git_commit()
    return {
        "row": row.name, "what": row.what, "unit": row.unit, "threads": row.threads, "ratio": ratio, "sides": sides,
        "limits": {"least_ratio": row.least_ratio, "most_seconds": row.most_seconds, "most_gib": row.most_gib},
        "problems": problems, "device": device_name(), "cores": os.cpu_count(), "versions": versions(),
        "commit": commit, "dirty": dirty,
    }  # fmt: skip


def save(result: dict[str, Any]) -> Path:
    """Write one row's result beside the others."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['row']}.json"
    write_whole(path, json.dumps(result, indent=1).encode() + b"\n")
    return path
