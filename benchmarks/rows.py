"""Every row of `make bench`."""

from benchmarks import linear, shortcut

ROWS = (*linear.ROWS, *shortcut.ROWS)
