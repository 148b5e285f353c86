"""Data sets as tensors: digits, MNIST, CIFAR-10, CIFAR-100, image folders; batches of them; whitened pairs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
