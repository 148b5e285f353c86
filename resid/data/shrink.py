"""A copy of a data set in class folders, its images made smaller, or only taken out of parquet files.

Decoding is what limits training from files, and its time goes with the pixels stored. The copy is a data set of its
own: `resid.data.image_files.open_images` reads it with the same classes and labels. It is not the same data: JPEG is
lossy, and a small crop of a small image has to be enlarged, so that a run that uses it has to say so.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from resid._arguments import as_size
from resid.data.decode import (
    ORIENTATION,
    BrokenImageError,
    decode_test,
    open_image,
    orientation,
    reading,
    reduce_jpeg,
    to_rgb,
)
from resid.data.download import DataFileError
from resid.data.image_files import ImageFiles, is_image, open_images, splits_of
from resid.data.workers import Workers
from resid.errors import OptionError
from resid.training.checkpoint import hold, write_whole

__all__ = ["Shrunk", "shrink_image", "shrink_images"]

#: Images that a worker takes at a time.
CHUNK = 16
SETTINGS = "shrink.json"
#: Bytes of a name; file systems take 255, and a process adds its number while it writes.
LONGEST = 200


@dataclass(frozen=True)
class Shrunk:
    """What `shrink_images` did: files written now, there before, and those left out, name -> reason."""

    written: int
    before: int
    broken: dict[str, str]


def shrink_image(content: bytes, side: int | None, quality: int = 90) -> bytes:
    """An image file whose shorter side is `side`; the same bytes if it is no longer than that already.

    A smaller image is a JPEG, RGB or grey, antialiased (Lanczos); of its metadata the EXIF orientation is kept.

    Args:
        content: of the file. side: in pixels; None for the same bytes always. quality: of the JPEG, 1 to 95.

    Raises:
        BrokenImageError: the file cannot be decoded.
    """
    with reading():
        image = open_image(content)
        width, height = image.size
        short = min(width, height)
        if side is None or short <= side:
            decode_test(content, 1, 1)  # which raises where the file is broken
            return content
        turn = orientation(image)
        scale = reduce_jpeg(image, short // side)
        image = image if image.mode == "L" else to_rgb(image)
        size = (max(side, round(side * width / short)), max(side, round(side * height / short)))
        image = image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, width / scale, height / scale))
        exif = Image.Exif()
        if turn != 1:
            exif[ORIENTATION] = turn
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, exif=exif)
        return buffer.getvalue()


def shrink_images(
    folder: str | Path,
    out: str | Path,
    side: int | None = 400,
    quality: int = 90,
    workers: int = 0,
    say: Callable[[int, int], None] | None = None,
) -> Shrunk:
    """Write the images of all splits of `folder` below `out`, as train/CLASS/NAME and val/CLASS/NAME.

    Every file is there whole or not at all. What is there already is left as it is, so that the same call goes on after
    an interruption of any kind. Class folders have the names of the classes where these are in sorted order, else the
    label comes first, so that the labels of the copy are those of the original.

    Args:
        folder: of `open_images`. out: made if missing. side, quality: of `shrink_image`. workers: processes.
            say: called with the numbers of images done and of all.

    Raises:
        resid.data.download.DataFileError: of `open_images`; or a file cannot be written, the disk is full for instance.
        OptionError: `out` holds a copy made with other settings, or an option is of no use.
        resid.training.checkpoint.BusyError: another process writes there.
        resid.data.workers.WorkerDiedError: a process was killed.
    """
    target, side = Path(out), None if side is None else as_size("side", side)
    if as_size("quality", quality) > 95:
        raise OptionError(f"quality = {quality}: 1 to 95 is needed")
    if target.resolve().is_relative_to(Path(folder).resolve()):
        raise OptionError(f"out = {str(out)!r} is the folder of the images itself, or lies in it")
    splits = {split: open_images(folder, split) for split in splits_of(folder)}
    total, done = sum(map(len, splits.values())), Shrunk(0, 0, {})
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (target / "lock").open("a") as lock:
            hold(lock, target)
            _settle(target / SETTINGS, {"side": side, "quality": quality, **{k: len(v) for k, v in splits.items()}})
            for split, files in splits.items():
                for sums in _shrink_split(files, target / split, side, quality, workers, done):
                    done = sums
                    if say is not None:
                        say(done.written + done.before + len(done.broken), total)
    except OSError as error:
        there = done.written + done.before
        raise DataFileError(
            f"{error.filename} cannot be written: {_reason(error)}; {there} of {total} images are there, and the same "
            "command goes on with the others"
        ) from error
    return done


def _shrink_split(
    files: ImageFiles, target: Path, side: int | None, quality: int, workers: int, so_far: Shrunk
) -> Iterator[Shrunk]:
    """The sums, with those so far, after each part of the work.

    Raises:
        OSError: a file cannot be written.
    """
    folders, names = _folders(files.classes), _file_names(files)
    there: set[str] = set()
    for name in folders:
        place = target / name
        place.mkdir(parents=True, exist_ok=True)
        for partial in place.glob("*.tmp"):  # left by a process that was killed
            partial.unlink()
        there |= {f"{name}/{found}" for found in os.listdir(place)}
    paths = [f"{folders[label]}/{name}" for label, name in zip(files.labels.tolist(), names, strict=True)]
    _stay_below(target, paths)
    todo = [(i, path) for i, path in enumerate(paths) if path not in there]
    written, before, broken = so_far.written, so_far.before + len(files) - len(todo), dict(so_far.broken)
    yield Shrunk(written, before, broken)
    pool: Workers[list[_Done]] = Workers(_Task(files, str(target), side, quality), workers)
    for part in pool(todo[at : at + CHUNK] for at in range(0, len(todo), CHUNK)):
        for i, reason, failure in part:
            if failure:
                raise OSError(failure, os.strerror(failure), str(target / paths[i]))
            if reason:
                broken[files.name(i)] = reason
            else:
                written += 1
        yield Shrunk(written, before, broken)
    pool.close()


class _Done(NamedTuple):
    """reason: why a file could not be read, or "". failure: error number if it could not be written, or 0."""

    i: int
    reason: str
    failure: int


class _Task:
    """What a worker does: [(number, path)] -> what became of each."""

    def __init__(self, files: ImageFiles, target: str, side: int | None, quality: int) -> None:
        self.files, self.target, self.side, self.quality = files, target, side, quality

    def __getitem__(self, keys: list[tuple[int, str]]) -> list[_Done]:
        return [self._one(*key) for key in keys]

    def _one(self, i: int, path: str) -> _Done:
        try:
            content = shrink_image(self.files.read(i), self.side, self.quality)
        except (BrokenImageError, OSError) as error:
            return _Done(i, str(error), 0)
        try:
            write_whole(Path(self.target, path), content)
        except OSError as error:
            return _Done(i, "", error.errno or errno.EIO)
        return _Done(i, "", 0)


def _folders(classes: Sequence[str]) -> list[str]:
    """Names of folders whose sorted order is that of the labels."""
    names = [_shorter(re.sub(r"[/\\\0]", "_", name)) for name in classes]
    if names == sorted(set(names)) and not any(name.startswith(".") or not name.strip() for name in names):
        return names
    digits = len(str(len(names) - 1))
    return [f"{label:0{digits}d} {name}" for label, name in enumerate(names)]


def _file_names(files: ImageFiles) -> list[str]:
    """A name for each file: its own, or numbered where two of a class have the same, or one is not that of an image."""
    names = [_shorter(re.sub(r"[\\\0]", "_", files.name(i).rpartition("/")[2])) for i in range(len(files))]
    if len(set(zip(files.labels.tolist(), names, strict=True))) == len(names) and all(map(is_image, names)):
        return names
    digits = len(str(len(names) - 1))
    return [f"{i:0{digits}d}_{name}" + ("" if is_image(f"_{name}") else ".JPEG") for i, name in enumerate(names)]


def _shorter(name: str) -> str:
    """A name with room for what is added while its file is written; its end stays, which says the kind of file."""
    content = name.encode("utf-8", "replace")
    return name if len(content) <= LONGEST else "_" + content[-LONGEST + 1 :].decode("utf-8", "ignore")


def _stay_below(target: Path, paths: Sequence[str]) -> None:
    """Refuse a name out of a data set that would lead out of the folder of the copy.

    Raises:
        DataFileError: it would.
    """
    for path in paths:
        parts = path.split("/")
        if len(parts) != 2 or not all(part.strip() and part not in (".", "..") and "\0" not in part for part in parts):
            raise DataFileError(f"{path!r} would not lie in a class folder of {target}: the name is not written")


def _settle(path: Path, settings: dict[str, int | None]) -> None:
    """Settings are written once, and have to be the same ever after."""
    if not path.exists():
        write_whole(path, json.dumps(settings).encode() + b"\n")
    elif (stored := json.loads(path.read_text("utf-8"))) != settings:
        raise OptionError(f"{path.parent} was begun with {stored}, not with {settings}: choose another folder")


def _reason(error: OSError) -> str:
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
