"""Digits turned, moved and mirrored; principal components of images, whitened, as Li et al. 2016 use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor

from resid._arguments import as_real, as_whole, check_option
from resid.errors import OptionError, ShapeError

__all__ = ["Whitening", "image_pairs", "load_whitened", "mirrored", "rotated", "shifted", "unit_digits", "whitening"]

WHITENED = ("digits", "mnist")


def unit_digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits of `resid.data.load_dataset` and their labels: (n, 8, 8) in [0, 1], float64, and (n,)."""
    bunch = load_digits()
    return torch.from_numpy(bunch.images / 16), torch.from_numpy(bunch.target).to(torch.int64)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Turn images (n, height, width) counter-clockwise about their centre, bilinear, zeros outside."""
    return _per_image(images, lambda x: ndimage.rotate(x, degrees, axes=(2, 1), reshape=False, order=1))


def shifted(images: Tensor, rows: float = 0.0, columns: float = 0.0) -> Tensor:
    """Move images (n, height, width) down and to the right by fractions of a pixel, bilinear, zeros outside."""
    return _per_image(images, lambda x: ndimage.shift(x, (0, rows, columns), order=1))


def mirrored(images: Tensor) -> Tensor:
    """Exchange left and right of images (n, height, width)."""
    return _per_image(images, lambda x: x[:, :, ::-1])


@dataclass(frozen=True)
class Whitening:
    """Principal components of a data set, scaled to unit variance: `encode` maps (n, p) or images to (n, k).

    mean: (p,). components: (k, p), orthonormal rows by falling variance; the entry of largest magnitude of each is
    positive, which fixes the sign that the decomposition leaves open. scale: (k,), standard deviations.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def encode(self, data: Tensor) -> Tensor:
        """Return the whitened coordinates (n, k) of data (n, ...)."""
        return (data.flatten(1) - self.mean) @ self.components.mT / self.scale


def whitening(data: Tensor, components: int) -> Whitening:
    """Compute the principal components of data (n, ...), scaled to unit variance (divisor n), signs fixed.

    Args:
        data: (n, ...), flattened to (n, p).
        components: how many, at most the rank of the centred data.

    Raises:
        ShapeError, NotFiniteError: more components than the data have directions; NaN or infinity in the data.

    Example:
        >>> X, _ = unit_digits()
        >>> Z = whitening(X, 3).encode(X)
        >>> bool(torch.allclose(Z.mT @ Z / len(Z), torch.eye(3, dtype=Z.dtype)))
        True
    """
    values = as_real("data", data)
    if values.ndim < 2 or 0 in values.shape:
        raise ShapeError(f"data has shape {tuple(values.shape)}: (n, ...) with n >= 1 and one more axis is needed")
    rows = values.flatten(1)
    mean = rows.mean(0)
    _, singular, Vh = torch.linalg.svd(rows - mean, full_matrices=False)
    rank = int((singular > singular[0] * max(rows.shape) * torch.finfo(rows.dtype).eps).sum())
    count = as_whole(components)
    if count is None or not 1 <= count <= rank:
        raise ShapeError(f"components = {components!r}: an integer from 1 to {rank}, the rank of the data, is needed")
    kept = Vh[:count]
    largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
    return Whitening(mean, kept * largest.sign(), singular[:count] / len(rows) ** 0.5)


def load_whitened(name: str = "mnist", signs: Any = None) -> tuple[Tensor, Tensor]:
    """Load the data of Li et al. 2016: ten whitened principal components of images, and one-hot labels.

    "mnist": the 60,000 training images, embedded in the package (resid/data/embedded/README.md says how it was made and
    under which licence), on a grid of 2^-16. "digits": the 1,797 digits.
    The signs of principal components are arbitrary and results at zero weights depend on them: here the entry of
    largest magnitude of each component is positive.

    Args:
        name: "mnist" or "digits".
        signs: (10,), each +1 or -1, to try another choice of signs.

    Returns:
        X, Y: (m, 10), float64; X has mean 0 and second moment I, Y is not centred.

    Raises:
        OptionError: unknown name, or signs that are not ten times +1 or -1.

    Example:
        >>> X, Y = load_whitened("digits")
        >>> X.shape, float(Y.sum())
        (torch.Size([1797, 10]), 1797.0)
    """
    check_option("name", name, WHITENED)
    X, Y = _whitened(name)
    if signs is None:
        return X.clone(), Y.clone()
    turn = as_real("signs", signs).to(X)
    if turn.shape != (X.shape[1],) or not bool((turn.abs() == 1).all()):
        raise OptionError(f"signs = {signs!r}: {X.shape[1]} numbers, each +1 or -1, are needed")
    return X * turn, Y.clone()


@cache
def _whitened(name: str) -> tuple[Tensor, Tensor]:
    if name == "digits":
        images, labels = unit_digits()
        X = whitening(images, 10).encode(images)
    else:
        with np.load(Path(__file__).with_name("embedded") / "mnist_whitened.npz", allow_pickle=False) as stored:
            X = torch.from_numpy(stored["components"].astype(np.float64))
            labels = torch.from_numpy(stored["labels"].astype(np.int64))
    return X, torch.nn.functional.one_hot(labels, 10).to(X)


def image_pairs(transform: Callable[[Tensor], Tensor], components: int = 8) -> tuple[Tensor, Tensor]:
    """Return whitened digits and the same digits after a transformation, in the coordinates of the untransformed ones.

    `resid.theory.landscape.regression_map` of the two is the linear map that the transformation amounts to.

    Args:
        transform: images (n, 8, 8) -> images (n, 8, 8).
        components: how many principal components.

    Returns:
        X, Y: (1797, components), float64; X has mean 0 and second moment I.

    Raises:
        ShapeError: too many components.

    Example:
        >>> X, Y = image_pairs(mirrored, components=8)
        >>> X.shape == Y.shape
        True
    """
    images, _ = unit_digits()
    coordinates = whitening(images, components)
    return coordinates.encode(images), coordinates.encode(transform(images))


def _per_image(images: Tensor, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    images = as_real("images", images).detach().cpu()
    if images.ndim != 3:
        raise ShapeError(f"images has shape {tuple(images.shape)}: (n, height, width) is needed")
    return torch.from_numpy(np.ascontiguousarray(change(images.numpy())))
