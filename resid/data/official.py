"""MNIST, CIFAR-10 and CIFAR-100 read from the official files, each file's MD5 compared before anything is unpacked.

The files are downloaded where they are not there, see `resid.data.download`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from resid._arguments import check_option
from resid.data.download import ARCHIVES, Archive, DataFileError, fetch, unpack
from resid.data.whitened import Dataset

__all__ = ["DataFileError", "data_folder", "has_official", "load_official"]

OFFICIAL = ("mnist", "cifar10", "cifar100")
SPLITS = ("train", "test")

#: Files of each split below the data folder, with their official MD5: images and labels apart for MNIST.
FILES: dict[tuple[str, str], dict[str, str]] = {
    ("mnist", "train"): {
        "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    },
    ("mnist", "test"): {
        "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    ("cifar10", "train"): {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    ("cifar10", "test"): {"cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e"},
    ("cifar100", "train"): {"cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d"},
    ("cifar100", "test"): {"cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
}


def data_folder() -> Path:
    """Where the official files lie: the environment variable RESID_DATA, else ~/.cache/resid-book."""
    return Path(os.environ.get("RESID_DATA") or Path.home() / ".cache" / "resid-book")


def load_official(
    name: str, split: str = "train", folder: str | Path | None = None, *, download: bool = True
) -> Dataset:
    """Images (n, channels, height, width), uint8, and labels (n,), int64, of a data set in its official layout.

    The layout is that of the unpacked archives: MNIST/raw/*-ubyte, cifar-10-batches-py/*, cifar-100-python/*
    (CIFAR-100 with its 100 fine labels).

    Args:
        name: "mnist", "cifar10" or "cifar100". split: "train" or "test". folder: default `data_folder()`.
        download: fetch and unpack the official archives where a file is missing.

    Raises:
        OptionError: unknown name or split. DataFileError: a file is missing, or its MD5 is not the official one, or no
            mirror could give it, or the folder cannot be written.
    """
    check_option("name", name, OFFICIAL)
    check_option("split", split, SPLITS)
    root = data_folder() if folder is None else Path(folder)
    if download and not has_official(name, split, root):
        _download(name, split, root)
    contents = [_read(root / file, md5) for file, md5 in FILES[name, split].items()]
    images, labels = _mnist(*contents) if name == "mnist" else _cifar(contents)
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), f"{name} {split}, official")


def has_official(name: str, split: str = "train", folder: str | Path | None = None) -> bool:
    """Whether the files of a data set are there; their content is looked at by `load_official`."""
    check_option("name", name, OFFICIAL)
    check_option("split", split, SPLITS)
    root = data_folder() if folder is None else Path(folder)
    return all((root / file).is_file() for file in FILES[name, split])


def _download(name: str, split: str, root: Path) -> None:
    files = FILES[name, split]
    for archive in ARCHIVES[name]:
        members = {file: md5 for file, md5 in files.items() if _holds(archive, file)}
        if missing := {file: md5 for file, md5 in members.items() if not (root / file).is_file()}:
            path = fetch(archive, root)
            unpack(path, missing, root)
            if name == "mnist" or all(has_official(name, other, root) for other in SPLITS):
                path.unlink(missing_ok=True)


def _holds(archive: Archive, file: str) -> bool:
    """Whether an archive has a file: everything in a .tar.gz, or the one file that a .gz is named after."""
    return archive.name.endswith(".tar.gz") or file.endswith("/" + archive.name.removesuffix(".gz"))


def _read(path: Path, md5: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(
            f"{path} cannot be read ({error.strerror}): download=True fetches the official archive, or unpack it in "
            "the folder that RESID_DATA names"
        ) from error
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataFileError(
            f"{path} has {len(content)} bytes and MD5 {actual}, the official file has {md5}: delete it and unpack anew"
        )
    return content


def _mnist(images: bytes, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return pixels.copy(), np.frombuffer(labels, np.uint8, offset=8)


def _cifar(batches: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    parts = [_RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load() for content in batches]
    key = b"labels" if b"labels" in parts[0] else b"fine_labels"
    return (
        np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32),
        np.concatenate([np.asarray(part[key]) for part in parts]),
    )


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows the three names that the CIFAR batches hold, and no other."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise DataFileError(f"the file asks for {module}.{name}, which no CIFAR batch holds: not loaded") from None
