"""Where the images of a recipe come from: memory for the small data sets, files that are read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from resid.data.batches import Batch, Batches, pixel_statistics
from resid.data.loading import Dataset, load_dataset
from resid.data.official import DataFileError
from resid.training.ranks import Ranks, usable_cpus
from resid.training.recipe import Recipe

__all__ = ["Feed", "Source", "default_workers", "open_source", "spread"]

TEST_BATCH, TEST_FILES = 1000, 64
MOST_WORKERS = 8


class Feed(Protocol):
    """Batches for one rank, see `resid.data.batches.Batches`."""

    steps: int

    def epoch(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """The augmented batches `first` to `last` of an epoch."""

    def plain(self) -> Iterator[Batch]:
        """All samples in their own order, each once over all ranks, without augmentation."""


@dataclass(frozen=True)
class Source:
    """Batches to train on, to test on, and of training images to test on, if any."""

    training: Feed
    testing: Feed
    checking: Feed | None = None

    def broken(self) -> dict[str, str]:
        """Return the files that this rank could not decode so far, each with the reason."""
        feeds = (self.training, self.testing, self.checking)
        return {name: reason for feed in feeds for name, reason in getattr(feed, "broken", {}).items()}

    def close(self) -> None:
        """Do nothing: processes that read files end with their iteration. To go with its call in the trainer."""


def open_source(recipe: Recipe, ranks: Ranks, data: str | Path | None = None, workers: int | None = None) -> Source:
    """Open the batches of a recipe for a rank, on its device.

    Args:
        recipe: what to train.
        ranks: this rank, and how many there are.
        data: folder of the data set; default: that of `resid.data.load_dataset`.
        workers: processes that read image files for this rank, default `default_workers(ranks)`.

    Raises:
        resid.data.official.DataFileError: the files are not there, or are not of so many classes.
        OptionError: see `resid.data.batches.Share`.
    """
    return _from_files(recipe, ranks, data, workers) if recipe.streamed else _from_memory(recipe, ranks, data)


def _from_memory(recipe: Recipe, ranks: Ranks, data: str | Path | None) -> Source:
    with ranks.first_here():  # which downloads what is not there
        train, test = (
            reduced(load_dataset(recipe.dataset, name, data), count, recipe.pool).to(ranks.device)
            for name, count in (("train", recipe.train_images), ("test", recipe.test_images))
        )
    look = (recipe.normalize, *pixel_statistics(train.images))
    share: dict[str, Any] = {"rank": ranks.rank, "ranks": ranks.count, "channels_last": recipe.channels_last}
    checking = None
    if recipe.check_training:
        some = spread(len(train.labels), recipe.check_training).to(ranks.device)
        checked = Dataset(train.images[some], train.labels[some], train.source)
        checking = Batches(checked, _at_once(len(some), TEST_BATCH, ranks), recipe.seed, *look, **share)
    return Source(
        Batches(train, recipe.batch, recipe.seed, *look, recipe.pad, recipe.fill, recipe.flip, **share),
        Batches(test, TEST_BATCH, recipe.seed, *look, **share),
        checking,
    )


def _from_files(recipe: Recipe, ranks: Ranks, data: str | Path | None, workers: int | None) -> Source:
    from resid.data.imagenet import ImageBatches  # which needs Pillow

    assert recipe.size is not None  # checked when the recipe was made
    train, test = (load_dataset("imagenet", split, data) for split in ("train", "test"))
    if len(train.classes) != recipe.class_count:
        raise DataFileError(
            f"{train.folder} has {len(train.classes)} classes, and the recipe is for {recipe.class_count}"
        )
    common: dict[str, Any] = {
        "rank": ranks.rank, "ranks": ranks.count, "channels_last": recipe.channels_last, "device": ranks.device,
        "normalize": recipe.normalize, "size": recipe.size, "side": round(recipe.size * 256 / 224), "flip": recipe.flip,
        "workers": default_workers(ranks) if workers is None else workers,
    }  # fmt: skip
    checking = None
    if recipe.check_training:
        some = train.subset(spread(len(train), recipe.check_training))
        checking = ImageBatches(some, _at_once(len(some), TEST_FILES, ranks), recipe.seed, **common)
    return Source(
        ImageBatches(train, recipe.batch, recipe.seed, **common),
        ImageBatches(test, _at_once(len(test), TEST_FILES, ranks), recipe.seed, **common),
        checking,
    )


def reduced(data: Dataset, count: int = 0, pool: int = 1) -> Dataset:
    """Take some images of a data set, with fewer pixels.

    Args:
        data: (n, channels, height, width), uint8.
        count: how many images, evenly spread; 0: all.
        pool: squares of pool x pool pixels are averaged to one, rounded.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        >>> reduced(Dataset(images, torch.tensor([3]), "made up"), pool=2).images
        tensor([[[[ 2,  4],
                  [10, 12]]]], dtype=torch.uint8)
    """
    images, labels, words = data.images, data.labels, data.source
    if count:
        some = spread(len(labels), count)
        images, labels, words = images[some], labels[some], f"{words}, {len(some)} images"
    if pool > 1:
        images = F.avg_pool2d(images.float(), pool).round().to(torch.uint8)
        words += f", {pool} x {pool} pixels averaged"
    return Dataset(images, labels, words)


def _at_once(n: int, wanted: int, ranks: Ranks) -> int:
    """Return how many of n samples are tested at once: about `wanted`, with a sample of the last ones for each rank."""
    fits = (size for size in range(max(wanted, ranks.count), n) if (n % size or size) >= ranks.count)
    return next(fits, max(n, wanted))


def default_workers(ranks: Ranks) -> int:
    """Count the processes that read files for a rank: its CPUs, less one for itself; at least 1, at most 8."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.count > 1 else 1
    return min(MOST_WORKERS, max(1, usable_cpus() // here - 1))


def spread(n: int, count: int) -> Tensor:
    """Choose `count` of the numbers 0, ..., n - 1, or all of them, evenly spread: (count,), int64, rising.

    Example:
        >>> spread(10, 3).tolist(), spread(2, 3).tolist()
        ([0, 3, 6], [0, 1])
    """
    count = min(n, count)
    return torch.arange(count) * n // max(1, count)
