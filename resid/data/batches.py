"""Images kept as bytes on the device, and batches of them as a pure function of (seed, epoch, sample).

Order, crops and flips of an epoch are drawn at once, from a generator on the CPU that is seeded by (seed, epoch) alone,
and each sample looks up its own. So they are the same for any number of ranks, on any device, and after a resume.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from resid._arguments import as_whole, check_option
from resid.data.loading import Dataset
from resid.errors import OptionError, ShapeError

__all__ = [
    "Batch", "Batches", "Share", "crop_and_flip", "draw_crops", "draw_order", "pixel_statistics", "seed_of",
    "standardize_images",
]  # fmt: skip

CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}
#: (channels, height, width)
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
NORMALIZE = ("dataset", "image")
FILL = ("zeros", "reflect")


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (divisor n) of each channel of uint8 images, from exact integer sums.

    Args:
        images: (n, channels, height, width), uint8.

    Returns:
        mean, std: (channels,), float64, on the CPU; std is 1 for a channel of one value.

    Raises:
        ShapeError: not such images, or none.

    Example:
        >>> pixel_statistics(torch.tensor([[[[0, 2]]], [[[4, 6]]]], dtype=torch.uint8))
        (tensor([3.], dtype=torch.float64), tensor([2.2361], dtype=torch.float64))
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise ShapeError(f"images are {images.dtype} of shape {tuple(images.shape)}: uint8, (n, c, h, w) is needed")
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = list(enumerate(torch.bincount(images[:, channel].flatten(), minlength=256).tolist()))
        number, first, second = (sum(count * value**power for value, count in counts) for power in (0, 1, 2))
        mean.append(first / number)
        std.append(math.sqrt((number * second - first * first) / number**2) or 1.0)  # integers: no cancellation
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def standardize_images(images: Tensor) -> Tensor:
    """Subtract from each image its mean, and divide by its standard deviation or 1/sqrt(pixels), if that is larger.

    Images (n, channels, height, width) of any real type become float32; one of a single value becomes zero.
    """
    x = images.float()
    centred = x - x.mean((1, 2, 3), keepdim=True)
    std = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return centred / std.clamp_min(x[0].numel() ** -0.5)


def seed_of(*parts: int | str) -> int:
    """Hash numbers and words into a seed in [0, 2^63); neighbours share nothing.

    Example:
        >>> seed_of("order", 0, 1) == seed_of("order", 0, 1), seed_of("order", 0, 1) == seed_of("order", 1, 0)
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def draw_order(n: int, seed: int, epoch: int) -> Tensor:
    """Draw the order of n samples in an epoch: a permutation (n,), int64, on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of("order", seed, epoch)))


def draw_crops(n: int, seed: int, epoch: int, pad: int, flip: bool) -> Tensor:
    """Draw the crop of each of n samples in an epoch: (n, 3), int64, on the CPU, with columns row, column, flipped.

    Row and column, where the crop begins in the padded image, are uniform on 0 ... 2 pad; flipped is a fair coin, or 0.
    """
    generator = torch.Generator().manual_seed(seed_of("crop", seed, epoch))
    corner = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    coin = torch.randint(0, 2, (n, 1), generator=generator)
    return torch.cat([corner, coin if flip else torch.zeros_like(coin)], 1)


def crop_and_flip(images: Tensor, crops: Tensor, pad: int, fill: str = "zeros") -> Tensor:
    """Pad each image, cut a window of its own size out of it, and exchange left and right where the crop says so.

    Args:
        images: (b, channels, h, w).
        crops: (b, 3) as of `draw_crops`, on the device of the images.
        pad: pixels on each side.
        fill: "zeros", or "reflect" (without repeating the edge; needs pad < h, w).

    Returns:
        the shape and type of the images.
    """
    b, c, h, w = images.shape
    rows = crops[:, :1] + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device).expand(b, w)
    columns = crops[:, 1:2] + torch.where(crops[:, 2:] > 0, w - 1 - columns, columns)
    if pad:
        images = F.pad(images, (pad, pad, pad, pad), mode="constant" if fill == "zeros" else "reflect")
    flat = (rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]).view(b, 1, h * w)
    return images.flatten(2).gather(2, flat.expand(b, c, h * w)).view(b, c, h, w)


class Batch(NamedTuple):
    """This rank's share of a batch: images (b, c, h, w), float32; labels (b,); size: of the batch over all ranks."""

    images: Tensor
    labels: Tensor
    size: int


class Share:
    """One rank's part of every batch of a split, the base of `Batches` and `resid.data.imagenet.ImageBatches`.

    An epoch covers each sample exactly once: the last batch is as small as it comes out, and the loss of a batch is to
    be divided by `Batch.size`. Rank r of R takes samples r, r + R, ... of every batch.

    Args:
        split: anything with `labels`.
        batch: samples, over all ranks.
        seed: of order, crops and flips.
        normalize: "dataset", by `mean` and `std`, or "image", each image by its own.
        mean: (channels,), of the training images.
        std: (channels,), likewise.
        rank: whose share.
        ranks: how many there are.
        channels_last: memory layout of the images.
        device: where batches are to be.

    Raises:
        OptionError: an unknown option, or a batch (also the last one) with fewer samples than ranks.
    """

    def __init__(
        self, split: Any, batch: int, seed: int, normalize: str, mean: Tensor, std: Tensor, *, rank: int = 0,
        ranks: int = 1, channels_last: bool = False, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        check_option("normalize", normalize, NORMALIZE)
        self.split, self.seed, self.normalize, self.rank, self.ranks = split, seed, normalize, rank, ranks
        size, n = as_whole(batch), self.n
        if size is None or size < 1:
            raise OptionError(f"batch = {batch!r}: an integer of at least 1 is needed")
        least = min(size, n % size or size)
        if least < ranks:
            raise OptionError(f"batch = {size}, {n} samples: a batch of {least} cannot be shared by {ranks} ranks")
        self.size, self.steps, self.device = size, -(-n // size), torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self._mean, self._scale = (t.float().to(device).view(1, -1, 1, 1) for t in (mean, 1 / std))

    @property
    def n(self) -> int:
        """Samples of the split."""
        return len(self.split.labels)

    def shares(
        self, epoch: int, first: int, last: int | None, device: torch.device | str
    ) -> Iterator[tuple[Tensor, int]]:
        """Yield this rank's samples of the batches `first` to `last` of an epoch, and the size of the whole batch."""
        order = draw_order(self.n, self.seed, epoch).to(device)
        for i in range(first, self.steps if last is None else min(last, self.steps)):
            whole = order[i * self.size : (i + 1) * self.size]
            yield whole[self.rank :: self.ranks], len(whole)

    def plain_shares(self, device: torch.device | str) -> Iterator[tuple[Tensor, int]]:
        """Yield this rank's samples in their own order, in parts, and the size of each part."""
        for part in torch.arange(self.rank, self.n, self.ranks, device=device).split(self.size):
            yield part, len(part)

    def finished(self, images: Tensor, crops: Tensor | None = None, pad: int = 0, fill: str = "zeros") -> Tensor:
        """Normalise uint8 images on the device, crop and flip them as `crops` says, and lay them out as asked for."""
        if self.normalize == "dataset":
            images = images.float().sub_(self._mean).mul_(self._scale)
        if crops is not None:
            images = crop_and_flip(images, crops, pad, fill)
        if self.normalize == "image":
            images = standardize_images(images)
        return images.contiguous(memory_format=self.layout)


class Batches(Share):
    """Batches of a split in memory for one rank.

    Pixels are normalised by `mean` and `std` before cropping, so that padding has the mean colour, or each image by its
    own after cropping, so that padding is black. The arguments from `batch` to `std` are those of `Share`.

    Args:
        split: of `resid.data.load_dataset`, on the device where batches are to be.
        pad: pixels on each side, see `crop_and_flip`.
        fill: "zeros" or "reflect", see there.
        flip: whether left and right are exchanged by a coin.
        **share: rank, ranks and channels_last of `Share`.

    Raises:
        OptionError: an unknown option, or a batch (also the last one) with fewer samples than ranks.
    """

    def __init__(
        self, split: Dataset, batch: int, seed: int, normalize: str, mean: Tensor, std: Tensor, pad: int = 0,
        fill: str = "zeros", flip: bool = False, **share: Any,
    ) -> None:  # fmt: skip
        check_option("fill", fill, FILL)
        if fill == "reflect" and pad >= min(split.images.shape[2:]):
            raise OptionError(f"pad = {pad}: less than the size of the images is needed to reflect them")
        super().__init__(split, batch, seed, normalize, mean, std, device=split.images.device, **share)
        self.pad, self.fill, self.flip = pad, fill, flip

    def epoch(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """Yield the augmented batches `first` to `last` (not included; default: all) of an epoch, in its order."""
        augmented = bool(self.pad or self.flip)
        crops = draw_crops(self.n, self.seed, epoch, self.pad, self.flip).to(self.device) if augmented else None
        for samples, size in self.shares(epoch, first, last, self.device):
            yield self._make(samples, None if crops is None else crops[samples], size)

    def plain(self) -> Iterator[Batch]:
        """Yield all samples in their own order, without augmentation; `size` is that of this rank's part."""
        for samples, size in self.plain_shares(self.device):
            yield self._make(samples, None, size)

    def _make(self, samples: Tensor, crops: Tensor | None, size: int) -> Batch:
        images = self.finished(self.split.images[samples], crops, self.pad, self.fill)
        return Batch(images, self.split.labels[samples], size)
