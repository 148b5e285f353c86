"""Training images on the device that computes, batches standardised and moved there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resid._arguments import check_option
from resid.data.batches import crop_and_flip
from resid.data.official import load_official
from resid.data.whitened import load_dataset
from resid.errors import OptionError, ShapeError

__all__ = ["MOVES", "Images", "load_images"]

DATA = ("digits", "cifar10")
#: Pixels by which an image is moved at most.
_PAD = 4
#: How many values each number of a move can have (rows, columns, whether mirrored).
MOVES = (2 * _PAD + 1, 2 * _PAD + 1, 2)


class Images:
    """Images and labels of a training set, kept on the device as they are; batches are standardised there.

    Args:
        images: (n, channels, height, width), uint8 or floating-point. labels: (n,). device: "cpu" or "cuda".
        name: what they are.

    Raises:
        ShapeError: shapes of no use. OptionError: no such device.

    Example:
        >>> images = Images(torch.tensor([[[[0]], [[0]]], [[[2]], [[4]]]], dtype=torch.uint8), torch.tensor([0, 1]))
        >>> images.batch(torch.tensor([[0], [1]]))[0].flatten(1)  # mean 0, variance 1 in each channel
        tensor([[-0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """

    def __init__(self, images: Tensor, labels: Tensor, device: str = "cpu", name: str = "images") -> None:
        if images.ndim != 4 or labels.shape != images.shape[:1] or 0 in images.shape:
            raise ShapeError(
                f"images has shape {tuple(images.shape)}, labels {tuple(labels.shape)}: (n, channels, height, width) "
                "and (n,) are needed"
            )
        self.device, self.name = _as_device(device), name
        parts = [images[:, i].to(torch.float64) for i in range(images.shape[1])]
        shape = (1, len(parts), 1, 1)
        self._mean = torch.stack([part.mean() for part in parts]).view(shape).to(self.device, torch.float32)
        self._std = torch.stack([part.std() for part in parts]).view(shape).to(self.device, torch.float32)
        self.pixels = images.to(self.device)
        self.labels = labels.to(self.device)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        """Width of an image."""
        return self.pixels.shape[-1]

    def batch(self, index: Tensor, moves: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Batches for several networks: (batch, nets * channels, height, width), float32, and labels (batch, nets).

        Args:
            index: (batch, nets), on the device. moves: (batch, nets, 3): rows and columns, 0 to 8 where 4 leaves an
                image in its place, and whether it is mirrored; what lies outside is the mean.
        """
        x = (self.pixels[index.flatten()].to(torch.float32) - self._mean) / self._std
        if moves is not None:
            x = crop_and_flip(x, moves.flatten(0, 1), _PAD)
        return x.view(len(index), -1, *x.shape[-2:]), self.labels[index]


def _as_device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f'device = {device!r}: "cpu" or "cuda" is needed') from error
    if found.type not in ("cpu", "cuda"):
        raise OptionError(f'device = {device!r}: "cpu" or "cuda" is needed')
    if found.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device = {device!r}: torch finds no CUDA device here")
    return found


def load_images(data: str = "digits", device: str = "cpu") -> Images:
    """The training images of a data set.

    Args:
        data: "digits", which are always there, or "cifar10", the official files (see `resid.data.official`).
        device: "cpu" or "cuda".

    Raises:
        OptionError: unknown data or device. DataFileError: the files of CIFAR-10 cannot be had.
    """
    check_option("data", data, DATA)
    _as_device(device)  # before anything is downloaded
    if data == "digits":
        found = load_dataset("digits")
        return Images(found.images.to(torch.float32)[:, None], found.labels, device, data)
    found = load_official(data)
    return Images(found.images, found.labels, device, data)
