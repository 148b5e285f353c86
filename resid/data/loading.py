"""Load a data set by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from resid.data.official import read_official
from resid.data.whitened import load_whitened, unit_digits
from resid.errors import OptionError

if TYPE_CHECKING:
    from resid.data.imagenet import ImageFiles

__all__ = ["SPLITS", "Dataset", "load_dataset"]

#: Data sets and their splits.
SPLITS = {
    **dict.fromkeys(("mnist", "cifar10", "cifar100", "imagenet"), ("train", "test")),
    **dict.fromkeys(("digits-whitened", "mnist-whitened"), ("train",)),
    "digits": ("train", "test", "all"),
}


@dataclass(frozen=True)
class Dataset:
    """Images (n, ...), their labels (n,), int64, and where they come from; `load_dataset` says which shape and type."""

    images: Tensor
    labels: Tensor
    source: str

    def to(self, device: torch.device | str) -> Dataset:
        """Copy the data set to another device."""
        return Dataset(self.images.to(device), self.labels.to(device), self.source)


@overload
def load_dataset(  # type: ignore[overload-overlap]
    name: Literal["imagenet"], split: str = "train", folder: str | Path | None = None
) -> ImageFiles: ...
@overload
def load_dataset(name: str, split: str = "train", folder: str | Path | None = None) -> Dataset: ...
def load_dataset(name: str, split: str = "train", folder: str | Path | None = None) -> Dataset | ImageFiles:
    """Load a split of a data set.

    - "digits": 1,797 handwritten digits with 17 grey levels, (n, 1, 8, 8), uint8, from the test part of "Optical
      Recognition of Handwritten Digits" (UCI repository, E. Alpaydin and C. Kaynak, 1998; CC BY 4.0), as shipped with
      scikit-learn. Every fifth image of each class, the first and the sixth and so on, is in "test"; "all" has both
      splits in the published order.
    - "mnist", "cifar10", "cifar100": the official files, (n, channels, height, width), uint8; downloaded if missing.
    - "digits-whitened", "mnist-whitened": ten whitened principal components, (n, 10), float64, of all digits and of
      MNIST's training images, as `resid.data.whitened.load_whitened` gives them; no file is needed.
    - "imagenet": images in class folders, opened as they are needed; see `resid.data.imagenet.open_images`.

    Args:
        name: one of the names above.
        split: "train" or "test"; for the digits also "all".
        folder: of the files; default: what RESID_DATA names, or ~/.cache/resid-book; for "imagenet" RESID_IMAGENET.

    Returns:
        a `Dataset`; for "imagenet" a `resid.data.imagenet.ImageFiles`.

    Raises:
        OptionError: unknown name, or a split that the data set does not have.
        resid.data.official.DataFileError: a file is missing and cannot be downloaded, or is not the official one.

    Example:
        >>> load_dataset("digits").images.shape, load_dataset("digits", "test").images.shape
        (torch.Size([1433, 1, 8, 8]), torch.Size([364, 1, 8, 8]))
    """
    if split not in SPLITS.get(name, ()):
        known = "; ".join(f"{known!r}: {', '.join(map(repr, splits))}" for known, splits in SPLITS.items())
        raise OptionError(f"name = {name!r}, split = {split!r}: the data sets and their splits are {known}")
    if name == "imagenet":
        from resid.data.imagenet import open_images  # which needs Pillow

        return open_images(split, folder)
    if name == "digits":
        return _digits(split)
    if name.endswith("-whitened"):
        X, Y = load_whitened(name.removesuffix("-whitened"))
        return Dataset(X, Y.argmax(1), name)
    images, labels = read_official(name, split, folder)
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels), f"{name} {split}, official")


def _digits(split: str) -> Dataset:
    images, labels = unit_digits()
    place_in_class = F.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]
    test = place_in_class % 5 == 1
    chosen = {"train": ~test, "test": test, "all": test | ~test}[split]
    source = f"UCI Optical Recognition of Handwritten Digits (test part), through scikit-learn, {split}"
    return Dataset((images[chosen, None] * 16).round().to(torch.uint8), labels[chosen], source)
