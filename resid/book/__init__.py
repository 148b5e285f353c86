"""What only the book needs: the notebooks' kit, the checks that chapters run, the experiments.

`from resid import book` gives a notebook `book.setup`, `book.record` and the rest of `resid.book.kit`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
