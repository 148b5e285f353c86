"""Residual-network theory that runs: the library behind the book *Why residual networks work*.

`resid.theory` holds the mathematics of three papers as functions on tensors, `resid.lab` data and experiments,
`resid.ledger` the claims and the evidence for and against them, `resid.book` what the notebooks share. Import what you
need from there; this package imports nothing by itself, so a chapter depends only on what it uses.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`resid.audit` is `resid.lab.audit.audit`, imported when it is first asked for."""
    if name == "audit":
        return importlib.import_module("resid.lab.audit").audit
    raise AttributeError(f"module 'resid' has no attribute {name!r}")
