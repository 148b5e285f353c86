"""Recipes, and the trainer that follows them: on a CPU, on a GPU, or on several under torchrun."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
