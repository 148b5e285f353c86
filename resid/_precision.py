"""How exactly products of float32 numbers are computed on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["float32_products"]


@contextmanager
def float32_products(precision: str = "ieee") -> Iterator[None]:
    """Compute matrix products and convolutions in one precision; what was set before comes back.

    torch refuses to read its older switches, `allow_tf32`, while the newer ones say something else; so only the newer
    ones, `fp32_precision`, are read and set here, which works whichever the caller has used.

    Args:
        precision: "ieee" float32, or "tf32".
    """
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
