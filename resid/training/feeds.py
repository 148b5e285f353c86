"""Where the images of a recipe come from: memory for the small data sets, files that are read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from resid.data.batches import Batch, Batches, load_split, pixel_statistics
from resid.data.download import DataFileError
from resid.data.whitened import Dataset
from resid.training.ranks import Ranks, usable_cpus
from resid.training.recipe import Recipe

__all__ = ["Feed", "Source", "default_workers", "images_folder", "open_source", "spread"]

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
        """Files that this rank could not decode so far, each with the reason."""
        found: dict[str, str] = {}
        for feed in (self.training, self.testing, self.checking):
            found |= getattr(feed, "broken", {})
        return found

    def close(self) -> None:
        """End the processes that read files."""
        for feed in (self.training, self.testing, self.checking):
            getattr(feed, "close", lambda: None)()


def open_source(recipe: Recipe, ranks: Ranks, data: str | Path | None = None, workers: int | None = None) -> Source:
    """The batches of a recipe for a rank, on its device.

    Args:
        data: folder of the data set; for image files default `RESID_IMAGENET`. workers: processes that read files for
            this rank, default one for each CPU that it can have to itself, 8 at most.

    Raises:
        resid.data.download.DataFileError: the files are not there, or are not of so many classes. OptionError: see
            `resid.data.batches.Batches`.
    """
    return (_from_files if recipe.streamed else _from_memory)(recipe, ranks, data, workers)


def _from_memory(recipe: Recipe, ranks: Ranks, data: str | Path | None, workers: int | None) -> Source:
    with ranks.first_here():  # which downloads what is not there
        train, test = (load_split(recipe.dataset, name, data).to(ranks.device) for name in ("train", "test"))
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
    from resid.data.image_files import ImageFiles, open_images  # which need Pillow
    from resid.data.stream import StreamBatches

    assert recipe.size is not None  # checked when the recipe was made
    folder = images_folder(data)
    train, test = (open_images(folder, split) for split in ("train", "val"))
    for split in (train, test):
        if len(split.classes) != recipe.class_count:
            raise DataFileError(
                f"{split.source} has {len(split.classes)} classes, and the recipe is for {recipe.class_count}"
            )
    common: dict[str, Any] = {
        "rank": ranks.rank, "ranks": ranks.count, "channels_last": recipe.channels_last, "device": ranks.device,
        "normalize": recipe.normalize, "size": recipe.size, "side": round(recipe.size * 256 / 224), "flip": recipe.flip,
        "workers": default_workers(ranks) if workers is None else workers,
    }  # fmt: skip
    checking = None
    if recipe.check_training:
        some = spread(len(train), recipe.check_training)
        chosen: Any = _Chosen(train, some.tolist())
        few = ImageFiles(chosen, chosen, train.labels[some], train.classes, train.source, train.verified)
        checking = StreamBatches(few, _at_once(len(some), TEST_FILES, ranks), recipe.seed, **common)
    return Source(
        StreamBatches(train, recipe.batch, recipe.seed, **common),
        StreamBatches(test, _at_once(len(test), TEST_FILES, ranks), recipe.seed, **common),
        checking,
    )


class _Chosen:
    """Some files of a split: contents, and names."""

    def __init__(self, files: Any, which: list[int]) -> None:
        self._files, self._which = files, which

    def read(self, i: int) -> bytes:
        content: bytes = self._files.read(self._which[i])
        return content

    def __getitem__(self, i: int) -> str:
        name: str = self._files.name(self._which[i])
        return name


def images_folder(data: str | Path | None = None) -> Path:
    """The folder of image files: `data`, else `RESID_IMAGENET`.

    Raises:
        resid.data.download.DataFileError: neither is given, or there is no such folder.
    """
    given = data or os.environ.get("RESID_IMAGENET")
    if not given:
        raise DataFileError("the recipe reads image files: RESID_IMAGENET has to name their folder, with train and val")
    if not Path(given).is_dir():
        raise DataFileError(f"{given} is not a folder: one with train and val is needed, by RESID_IMAGENET")
    return Path(given)


def _at_once(n: int, wanted: int, ranks: Ranks) -> int:
    """How many samples of n a rank tests at once: about so many, and such that every rank has one of the last ones."""
    fits = (size for size in range(max(wanted, ranks.count), n) if (n % size or size) >= ranks.count)
    return next(fits, max(n, wanted))


def default_workers(ranks: Ranks) -> int:
    """Processes that read files for a rank: the CPUs of this machine, shared by its ranks, less one for the rank."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.count > 1 else 1
    return min(MOST_WORKERS, max(1, usable_cpus() // here - 1))


def spread(n: int, count: int) -> Tensor:
    """`count` of n numbers from 0 on, or all of them, evenly spread: (count,), int64, rising.

    Example:
        >>> spread(10, 3).tolist(), spread(2, 3).tolist()
        ([0, 3, 6], [0, 1])
    """
    count = min(n, count)
    return torch.arange(count) * n // max(1, count)
