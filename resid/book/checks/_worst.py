"""The worst of many numbers, with no way for a NaN to get lost: `max(0.0, nan)` is 0.0 in Python."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def worst_of(values: Iterable[float]) -> float:
    """The largest of some numbers.

    Raises:
        ArithmeticError: there are none, or one of them is NaN.

    Example:
        >>> worst_of([0.5, 0.25])
        0.5
    """
    numbers = np.fromiter((float(v) for v in values), float)
    if not numbers.size:
        raise ArithmeticError("nothing was measured, so there is no worst case")
    if np.isnan(numbers).any():
        raise ArithmeticError(f"{int(np.isnan(numbers).sum())} of {numbers.size} measured numbers are NaN")
    return float(numbers.max())
