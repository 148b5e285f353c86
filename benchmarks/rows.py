"""Every row of `make bench`."""

from benchmarks import conv, linear, shortcut

ROWS = (*linear.ROWS, *shortcut.ROWS, *conv.ROWS)
