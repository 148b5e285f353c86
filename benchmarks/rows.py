"""Every row of `make bench`."""

from benchmarks import conv, images, linear, samples, shortcut, training

ROWS = (*linear.ROWS, *shortcut.ROWS, *samples.ROWS, *conv.ROWS, *training.ROWS, *images.ROWS)
