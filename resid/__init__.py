"""Residual-network theory that runs: the library behind the book *Why residual networks work*.

`resid.theory` holds the mathematics of three papers as functions on tensors, `resid.nets` networks and the instruments
for networks, `resid.data` the data sets, `resid.training` recipes and the trainer. `resid.ledger` holds the claims and
the evidence for and against them, `resid.book` what only the chapters need. The names most people want are offered here
and in each package, and are imported when they are first used.
"""

import lazy_loader

from resid._moved import install

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
install()
