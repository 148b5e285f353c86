"""Memory that a process keeps for its next large tensor, instead of handing it back to the system each time."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["reused_memory"]

#: Of mallopt, in glibc's malloc.h; and what glibc starts with.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_STARTS_WITH = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_NEVER = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Inside, large tensors on the CPU are laid where earlier ones were; a step of training can take half the time.

    glibc asks the system for each block of 32 MiB or more and hands it back when it is freed. At its next use every
    page is cleared anew, which takes longer than a convolution needs to fill it. Inside, freed blocks stay with the
    process, all of its threads; at the end they are handed back. Where the C library is another one, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    try:
        for option, value in _NEVER.items():
            library.mallopt(option, value)
        yield
    finally:
        for option, value in _STARTS_WITH.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
