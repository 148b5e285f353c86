"""Every row of `make bench`."""

from benchmarks import linear

ROWS = linear.ROWS
