"""ImageNet, or any folder of images by class: files are decoded by worker processes while the device computes.

Which samples are in a batch depends on (seed, epoch, batch), and how a sample is cropped on (seed, epoch, sample) and
its size. So a batch is the same bit for bit for any number of ranks and workers, and after a resume. Crops follow the
rules of torchvision's RandomResizedCrop(224) in training and of Resize(256), CenterCrop(224) in tests, bilinear with
antialiasing; EXIF orientation is ignored, as in the published networks, and transparency, too.

A file that cannot be decoded does not stop a run and does not move any other sample: its image is zeros, its label
-100, which `torch.nn.functional.cross_entropy` ignores, and `ImageBatches.broken` has its name and the reason.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from resid._arguments import as_size
from resid.data.batches import Batch, Share, seed_of
from resid.data.official import DataFileError
from resid.errors import InterruptedRunError, ResidError

__all__ = ["ImageBatches", "ImageFiles", "TooManyBrokenError", "WorkerDiedError", "open_images"]

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: Pillow reads more, some of it by calling other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FOLDERS = {"train": "train", "test": "val"}
#: Label of a broken file, which cross_entropy ignores unless it is told otherwise.
IGNORED = -100
#: Of ImageNet's training images in the reference pipelines, per channel, for pixels from 0 to 255.
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64) * 255
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64) * 255
#: So many files may be broken: this fraction, and a handful however few there are.
MOST_BROKEN, HANDFUL = 0.001, 5


class WorkerDiedError(InterruptedRunError):
    """A worker process was killed; the same again may well succeed."""


class TooManyBrokenError(ResidError):
    """More files cannot be decoded than was allowed; the message names the first ones."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a split, not opened yet, with their labels."""

    folder: Path  # of all splits
    names: np.ndarray  # (n,), bytes: paths below it, in one array, since every worker needs a copy
    labels: Tensor  # (n,), int64: places among the sorted class names
    classes: tuple[str, ...]  # these names

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """Return the path of a file below the folder."""
        return os.fsdecode(self.names[i])

    def subset(self, samples: Tensor) -> ImageFiles:
        """Return some of the files, by their numbers (m,), int64."""
        return replace(self, names=self.names[samples.numpy()], labels=self.labels[samples])


def open_images(split: str = "train", folder: str | Path | None = None) -> ImageFiles:
    """List the image files of a split, as torchvision's ImageFolder would: sorted classes, sorted names in each.

    Files are FOLDER/train/CLASS/* for training and FOLDER/val/CLASS/* for tests; names of no image format are left out.

    Args:
        split: "train" or "test".
        folder: default: what the environment variable RESID_IMAGENET names.

    Raises:
        DataFileError: the folder or a class folder is missing or empty, or train and val have different classes.
    """
    given = folder or os.environ.get("RESID_IMAGENET")
    if not given or not Path(given).is_dir():
        named = f"{given} is not a folder" if given else "no folder of images is given"
        raise DataFileError(f"{named}: RESID_IMAGENET has to name one with train and val")
    root, part = Path(given), FOLDERS[split]
    classes = _subfolders(root / part)
    if not classes:
        raise DataFileError(f"{root / part} has no class folders: one for each class is needed, with its images")
    for other in FOLDERS.values():
        if differing := set(classes) ^ set(_subfolders(root / other) or classes):
            raise DataFileError(f"{root}: class {min(differing)!r} is not in both, train and val")
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(root / part / name) as entries:
            files = sorted(e.name for e in entries if e.is_file() and e.name.lower().endswith(ENDINGS))
        if not files:
            raise DataFileError(f"{root / part / name} has no image")
        names += [os.fsencode(f"{part}/{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFiles(root, np.array(names), torch.tensor(labels), tuple(classes))


def _subfolders(place: Path) -> list[str]:
    """Sorted names of the folders in a folder; none if it is not there."""
    return sorted(path.name for path in place.glob("[!.]*") if path.is_dir())


# --- decoding ---


def draw_window(width: int, height: int, seed: int, flip: bool = True) -> tuple[int, int, int, int, bool]:
    """Draw a random-resized crop by the rules of torchvision's RandomResizedCrop, with random numbers of our own.

    Area is uniform on 8% to 100% of the image, width/height log-uniform on 3/4 to 4/3. What does not fit is drawn
    again, ten times at most, then the largest centred window of an allowed ratio is taken.

    Args:
        width: of the image, in pixels.
        height: likewise.
        seed: of this image in this epoch.
        flip: toss a coin for it.

    Returns:
        left, top, width, height, flipped.
    """
    chance = random.Random(seed)  # its random() is the same in every version of Python
    flipped = chance.random() < 0.5 and flip  # drawn first: it does not depend on the tries
    for _ in range(10):
        area = width * height * (0.08 + 0.92 * chance.random())
        ratio = math.exp((2 * chance.random() - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        across, down = chance.random(), chance.random()
        if 0 < w <= width and 0 < h <= height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h, flipped
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h, flipped


def decode_train(path: Path, size: int, seed: int, flip: bool = True) -> Tensor:
    """Read a random-resized crop of an image file: (3, size, size), uint8; `seed` and `flip` as for `draw_window`."""
    with _reading(path) as image:
        left, top, width, height, flipped = draw_window(*image.size, seed, flip)
        scale = _reduce(image, min(width, height) // size)
        x0, y0, x1, y1 = (v / scale for v in (left, top, left + width, top + height))
        x, y = math.floor(x0), math.floor(y0)  # cut whole pixels first: the filter is to see nothing beyond
        image = image.crop((x, y, math.ceil(x1), math.ceil(y1)))
        pixels = _resized(image, size, (x0 - x, y0 - y, x1 - x, y1 - y))
        return pixels.flip(2) if flipped else pixels


def decode_test(path: Path, size: int, side: int) -> Tensor:
    """Read the middle of an image file whose shorter side becomes `side`: (3, size, size), uint8."""
    with _reading(path) as image:
        width, height = image.size
        short = min(width, height)
        w, h = side * width // short, side * height // short
        scale = _reduce(image, short // side)
        across, down = width / scale / w, height / scale / h  # stored pixels for one of the result
        left, top = round((w - size) / 2) * across, round((h - size) / 2) * down
        right, bottom = min(left + size * across, image.width), min(top + size * down, image.height)
        return _resized(image, size, (left, top, right, bottom))


def _resized(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def _reading(path: Path) -> Iterator[Image.Image]:
    """Open an image; what Pillow says of its metadata is dropped, and one that would fill the memory refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"pixels of mode {image.mode}: 8 bits are needed")
            yield image


def _reduce(image: Image.Image, most: int) -> int:
    """Have a JPEG decoded at 1/8, 1/4 or 1/2, at most 1/`most`; return the denominator, 1 for all else."""
    scale = max(s for s in (1, 2, 4, 8) if s <= max(1, most))
    return scale if image.draft(None, (image.width // scale, image.height // scale)) else 1


# --- batches ---


#: Images (b, 3, size, size), uint8; labels (b,); sample -> reason of broken files; size of the batch of all ranks.
_Decoded = tuple[Tensor, Tensor, dict[int, str], int]


class _Decoder(TorchDataset[_Decoded]):
    """What a worker does: (epoch, or None without augmentation; samples; size of the batch of all ranks) -> pixels."""

    def __init__(self, files: ImageFiles, seed: int, size: int, side: int, flip: bool) -> None:
        self.files, self.seed, self.size, self.side, self.flip = files, seed, size, side, flip

    def __getitem__(self, key: tuple[int | None, Tensor, int]) -> _Decoded:
        epoch, samples, whole = key
        images = torch.zeros(len(samples), 3, self.size, self.size, dtype=torch.uint8)
        labels, broken = self.files.labels[samples], {}
        for row, i in enumerate(samples.tolist()):
            path = self.files.folder / self.files.name(i)
            try:
                if epoch is None:
                    images[row] = decode_test(path, self.size, self.side)
                else:
                    images[row] = decode_train(path, self.size, seed_of("window", self.seed, epoch, i), self.flip)
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises anything: OSError, SyntaxError, struct.error, IndexError ...
                labels[row] = IGNORED
                broken[i] = f"{type(error).__name__}: {error}"
        return images, labels, broken, whole


class ImageBatches(Share):
    """Batches of image files for one rank, with the same methods as `resid.data.batches.Batches`.

    The arguments from `batch` to `std` are those of `Share`, for pixels from 0 to 255. Workers are started with each
    iteration, by a server process without threads: a script that uses them has to keep what it does under
    `if __name__ == "__main__":`.

    Args:
        split: of `open_images`.
        size: of the images, in pixels.
        side: shorter side of a whole image in `plain`, of which the middle is cut.
        flip: whether left and right are exchanged by a coin in `epoch`.
        workers: processes that decode, 0 for none but this.
        **share: rank, ranks, channels_last and device of `Share`.

    Raises:
        OptionError: an unknown option, or a batch (also the last one) with fewer samples than ranks.
        SizeError: a number of pixels or workers that is none; a side less than the size.
    """

    def __init__(
        self, split: ImageFiles, batch: int, seed: int, normalize: str = "dataset", mean: Tensor = IMAGENET_MEAN,
        std: Tensor = IMAGENET_STD, *, size: int = 224, side: int = 256, flip: bool = True, workers: int = 0,
        **share: Any,
    ) -> None:  # fmt: skip
        super().__init__(split, batch, seed, normalize, mean, std, **share)
        size = as_size("size", size)
        self._decoder = _Decoder(split, seed, size, as_size("side", side, size), flip)
        self._workers = as_size("workers", workers, 0)
        self._broken: dict[int, str] = {}

    @property
    def broken(self) -> dict[str, str]:
        """Files that this rank could not decode so far, each with its reason, in the order of the split."""
        return {self.split.name(i): self._broken[i] for i in sorted(self._broken)}

    def epoch(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """Yield the augmented batches `first` to `last` (not included; default: all) of an epoch, in its order.

        Raises:
            WorkerDiedError: a worker was killed.
            TooManyBrokenError: more than five files, and more than one in a thousand, cannot be decoded.
        """
        return self._batches((epoch, samples, size) for samples, size in self.shares(epoch, first, last, "cpu"))

    def plain(self) -> Iterator[Batch]:
        """Yield all samples in their own order, the middle of each; `size` is that of this rank's part."""
        return self._batches((None, samples, size) for samples, size in self.plain_shares("cpu"))

    def _batches(self, keys: Iterable[Any]) -> Iterator[Batch]:
        most = max(HANDFUL, math.floor(MOST_BROKEN * self.n))
        for pixels, labels, broken, size in self._decoded(keys):
            self._broken |= broken
            if len(self._broken) > most:
                listed = "; ".join(f"{name}: {reason}" for name, reason in list(self.broken.items())[: HANDFUL + 1])
                number = len(self._broken)
                raise TooManyBrokenError(f"{number} of {self.n} files cannot be decoded, {most} may be: {listed}")
            images = pixels.to(self.device, non_blocking=True)  # as bytes, a quarter of what comes after
            images = self.finished(images.contiguous(memory_format=self.layout))
            if broken:
                images[(labels == IGNORED).to(self.device)] = 0
            yield Batch(images, labels.to(self.device, non_blocking=True), size)

    def _decoded(self, keys: Iterable[Any]) -> Iterator[_Decoded]:
        """What workers make of the keys, in their order."""
        loader: DataLoader[_Decoded] = DataLoader(
            self._decoder, batch_size=None, sampler=keys, num_workers=self._workers,
            multiprocessing_context=_context() if self._workers else None, pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader draws a seed, which is not to move the generator of all
        )  # fmt: skip
        try:
            yield from loader
        except (RuntimeError, EOFError, OSError) as error:
            # torch says so of a worker that is gone; what a worker raised itself begins with "Caught"
            gone = any(words in str(error) for words in ("exited unexpectedly", "killed by signal"))
            gone |= isinstance(error, (EOFError, OSError)) and not str(error).startswith("Caught ")
            if not (gone and self._workers):
                raise
            raise WorkerDiedError(
                f"a worker process has ended before its time: {str(error) or type(error).__name__}. If the system "
                "killed it for want of memory, in /dev/shm, too, then fewer workers need less"
            ) from error


def _context() -> Any:
    """How workers are started: forking a process that has threads, or has used CUDA, can hang."""
    context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload(["resid.data.imagenet"])  # torch is imported once, not by each
    return context
