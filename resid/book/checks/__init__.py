"""Trials of the papers' statements: random or exact instances, one function per statement, as evidence for the ledger.

A chapter calls a trial, shows what it returns and records it; the tests call the same functions at other sizes. The
mathematics is in `resid.theory`, nothing here is needed to use it.
"""

from __future__ import annotations

import contextlib
import warnings

with warnings.catch_warnings(), contextlib.suppress(ImportError):
    # torch.func.hessian imports this at its first call, and some versions of torch warn of it, in red, in a notebook
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp  # noqa: F401
