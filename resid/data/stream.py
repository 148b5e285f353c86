"""Batches of image files, decoded by other processes while the device computes.

Which samples are in a batch is a function of (seed, epoch, batch), how a sample is cropped one of (seed, epoch, sample)
and of the image's size. So a batch is the same bit for bit for any number of ranks and workers, and after a resume.
Pixels travel as bytes and are normalised on the device.

A file that cannot be decoded does not stop a run, and does not move any other sample: its image is zeros, its label
-100, which `torch.nn.functional.cross_entropy` ignores, and its name and reason are kept in `StreamBatches.broken`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from resid._arguments import as_size
from resid.data.batches import Batch, Share, seed_of
from resid.data.decode import BrokenImageError, decode_test, decode_train
from resid.data.image_files import ImageFiles
from resid.data.workers import Workers
from resid.errors import OptionError, ResidError

__all__ = ["IGNORED", "IMAGENET_MEAN", "IMAGENET_STD", "StreamBatches", "TooManyBrokenError"]

#: Label of an image that could not be decoded, which cross_entropy ignores unless it is told otherwise
IGNORED = -100
#: Of ImageNet's training images in the reference pipelines, per channel, for pixels from 0 to 255
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64) * 255
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64) * 255
#: So many files may be broken however few there are.
HANDFUL = 5


class TooManyBrokenError(ResidError):
    """More files cannot be decoded than was allowed; the message names the first ones."""


class _Decoded(NamedTuple):
    """images: (b, size, size, 3), uint8. labels: (b,). broken: number of the sample, reason. size: of the batch."""

    images: Tensor
    labels: Tensor
    broken: list[tuple[int, str]]
    size: int


class _Decoder(Dataset[_Decoded]):
    """What a worker does: (epoch or None, samples, size of the whole batch) -> pixels."""

    def __init__(self, files: ImageFiles, seed: int, size: int, side: int, options: dict[str, Any]) -> None:
        self.files, self.seed, self.size, self.side, self.options = files, seed, size, side, options

    def __getitem__(self, key: tuple[int | None, Tensor, int]) -> _Decoded:
        epoch, which, size = key
        images = torch.zeros(len(which), self.size, self.size, 3, dtype=torch.uint8)
        labels = self.files.labels[which]
        broken = []
        for row, i in enumerate(which.tolist()):
            try:
                images[row] = self._pixels(i, epoch).permute(1, 2, 0)
            except (BrokenImageError, OSError) as error:
                labels[row] = IGNORED
                broken.append((i, str(error)))
        return _Decoded(images, labels, broken, size)

    def _pixels(self, i: int, epoch: int | None) -> Tensor:
        content = self.files.read(i)
        if epoch is None:
            return decode_test(content, self.size, self.side)
        return decode_train(content, self.size, seed_of("window", self.seed, epoch, i), **self.options)


class StreamBatches(Share):
    """Batches of image files for one rank: the same methods as `resid.data.batches.Batches`.

    Workers are started with the first batch and stay until `close`. One iteration runs at a time.

    Args:
        split: of `resid.data.image_files.open_images`. batch: samples, over all ranks. seed: of order, crops and flips.
        size: of the images, in pixels. side: shorter side of a whole image in `plain`, of which the middle is cut.
        area, ratio, flip: of `resid.data.decode.draw_window`, in `epoch`.
        normalize: "dataset", by `mean` and `std`, (3,), of pixels from 0 to 255, or "image", each by its own.
        rank, ranks: whose share. channels_last: memory layout. device: where batches are to be.
        workers: processes that decode, 0 for none but this. prefetch: batches that each prepares in advance.
        most_broken: fraction of all files that may be broken; five always may.

    Raises:
        OptionError: an option of no use, or a batch (also the last one) with fewer samples than ranks.
        SizeError: size or side of no use.
    """

    split: ImageFiles

    def __init__(
        self,
        split: ImageFiles,
        batch: int,
        seed: int,
        normalize: str = "dataset",
        mean: Tensor = IMAGENET_MEAN,
        std: Tensor = IMAGENET_STD,
        *,
        size: int = 224,
        side: int = 256,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        rank: int = 0,
        ranks: int = 1,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
        workers: int = 0,
        prefetch: int = 2,
        most_broken: float = 0.001,
    ) -> None:
        super().__init__(split, batch, seed, normalize, mean, std, rank, ranks, channels_last, torch.device(device))
        if not 0 <= most_broken <= 1:
            raise OptionError(f"most_broken = {most_broken!r}: a fraction from 0 to 1 is needed")
        for name, pair, most in (("area", area, 1.0), ("ratio", ratio, math.inf)):
            if not 0 < pair[0] <= pair[1] <= most:
                raise OptionError(f"{name} = {pair!r}: two numbers are needed, 0 < first <= second <= {most}")
        size = as_size("size", size)
        options = {"area": area, "ratio": ratio, "flip": flip}
        decoder = _Decoder(split, seed, size, as_size("side", side, size), options)
        self.most_broken = most_broken
        self._workers: Workers[_Decoded] = Workers(decoder, workers, prefetch, self.device.type == "cuda")
        self._broken: dict[int, str] = {}

    @property
    def broken(self) -> dict[str, str]:
        """Files that could not be decoded so far by this rank, each with its reason, in the order of the split."""
        return {self.split.name(i): self._broken[i] for i in sorted(self._broken)}

    def epoch(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """The augmented batches `first` to `last` (not included; default: all) of an epoch, in its order.

        Raises:
            resid.data.workers.WorkerDiedError: a worker was killed. TooManyBrokenError: see `most_broken`.
            OptionError: another iteration was begun before this one was over.
        """
        return self._stream((epoch, mine, size) for mine, size in self.shares(epoch, first, last, "cpu"))

    def plain(self) -> Iterator[Batch]:
        """All samples in their own order, the middle of each; `size` is that of this rank's part.

        Raises:
            WorkerDiedError, TooManyBrokenError, OptionError: as of `epoch`.
        """
        return self._stream((None, mine, size) for mine, size in self.plain_shares("cpu"))

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that have been started."""
        return self._workers.pids

    def close(self) -> None:
        """End the workers; the next iteration starts others."""
        self._workers.close()

    def _stream(self, keys: Iterable[Any]) -> Iterator[Batch]:
        for decoded in self._workers(keys):
            self._note(decoded.broken)
            images = decoded.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            images = images.contiguous(memory_format=self.layout)  # as bytes, a quarter of what comes after
            labels = decoded.labels.to(self.device, non_blocking=True)
            yield Batch(self._blank(self.finished(images), decoded), labels, decoded.size)

    def _note(self, broken: list[tuple[int, str]]) -> None:
        self._broken.update(broken)
        most = max(HANDFUL, math.floor(self.most_broken * self.n))
        if len(self._broken) > most:
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.broken.items())[: HANDFUL + 1])
            raise TooManyBrokenError(
                f"{len(self._broken)} of {self.n} files cannot be decoded, more than the {most} allowed: {listed}"
            )

    def _blank(self, images: Tensor, decoded: _Decoded) -> Tensor:
        """Images of broken files are zeros after normalisation."""
        if decoded.broken:
            images[(decoded.labels == IGNORED).to(self.device)] = 0
        return images
