"""Rows for the tests of `benchmarks.harness`, which finds them again in its own processes."""

import time

from benchmarks.harness import Row, Side


def prepare():
    return [0.02]


def wait(given):
    time.sleep(given[0])


def wait_twice(given):
    time.sleep(2 * given[0])


def fail(given):
    raise SystemExit(3)


FAST = Side("one wait", prepare, wait, quality=lambda given: f"waited {given[0]}")
ROWS = (
    Row("waits", "one wait beside two", FAST, Side("two waits", prepare, wait_twice), 1, least_ratio=1.2),
    Row("units", "the same, a unit each", FAST, Side("two waits", prepare, wait_twice, 2), 1, 0.6, least=True),
    Row("slow", "beyond all limits", FAST, Side("a wait", prepare, wait), 1, 50, most_seconds=0.001, most_gib=0.001),
    Row("fails", "a side that dies", FAST, Side("no wait", prepare, fail), 1),
    Row("missing", "beside what is not there", FAST, FAST, 1, needs="no_such_module"),
    Row("no-data", "on data that are not there", FAST, FAST, 1, official="mnist"),
)
