"""Images for the study of norms: several networks at once, each with its own batch of standardised images."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from resid._arguments import check_option
from resid.data.batches import crop_and_flip
from resid.data.loading import load_dataset
from resid.errors import OptionError, ShapeError

__all__ = ["MOVES", "Images", "load_images"]

#: Pixels by which an image is moved at most.
_PAD = 4
#: How many values each number of a move can have (rows, columns, whether mirrored).
MOVES = (2 * _PAD + 1, 2 * _PAD + 1, 2)


class Images:
    """Training images for several networks at once, kept on the device as they are and standardised in batches.

    Args:
        images: (n, channels, height, width), uint8 or floating-point.
        labels: (n,).
        device: "cpu" or "cuda".
        name: of the data set.

    Raises:
        ShapeError: other shapes, or no images.
        OptionError: no such device.

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
        channels = [images[:, i].to(torch.float64) for i in range(images.shape[1])]
        shape = (1, len(channels), 1, 1)
        self._mean = torch.stack([c.mean() for c in channels]).view(shape).to(self.device, torch.float32)
        self._std = torch.stack([c.std() for c in channels]).view(shape).to(self.device, torch.float32)
        self.pixels, self.labels = images.to(self.device), labels.to(self.device)
        self.channels, self.size = len(channels), images.shape[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Tensor, moves: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return batches for several networks: (batch, nets * channels, height, width), and labels (batch, nets).

        Args:
            index: (batch, nets), on the device.
            moves: (batch, nets, 3): rows and columns, 0 to 8 where 4 leaves an image in its place, and whether it is
                mirrored; what lies outside is the mean.
        """
        x = (self.pixels[index.flatten()].to(torch.float32) - self._mean) / self._std
        if moves is not None:
            x = crop_and_flip(x, moves.flatten(0, 1), _PAD)
        return x.view(len(index), -1, *x.shape[-2:]), self.labels[index]


def _as_device(device: Any) -> torch.device:
    with contextlib.suppress(RuntimeError, TypeError):
        parsed = torch.device(device)
        if parsed.type == "cpu" or (parsed.type == "cuda" and torch.cuda.is_available()):
            return parsed
        if parsed.type == "cuda":
            raise OptionError(f"device = {device!r}: torch finds no CUDA device here")
    raise OptionError(f'device = {device!r}: "cpu" or "cuda" is needed')


def load_images(data: str = "digits", device: str = "cpu") -> Images:
    """Load all digits, or the training images of CIFAR-10, as `Images`.

    Args:
        data: "digits" or "cifar10".
        device: "cpu" or "cuda".

    Raises:
        OptionError: unknown data or device.
        resid.data.official.DataFileError: the files of CIFAR-10 cannot be had.
    """
    check_option("data", data, ("digits", "cifar10"))
    _as_device(device)  # before anything is downloaded
    split = load_dataset(data, "all" if data == "digits" else "train")
    return Images(split.images, split.labels, device, data)
