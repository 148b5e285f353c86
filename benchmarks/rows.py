"""Every row of `make bench`."""

from benchmarks import linear, samples, shortcut

ROWS = (*linear.ROWS, *shortcut.ROWS, *samples.ROWS)
