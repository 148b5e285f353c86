"""Labelled image files on the disk, read one at a time from any process: class folders, or parquet files of the Hub.

Class folders: `ROOT/train/CLASS/*.JPEG` and `ROOT/val/CLASS/*.JPEG`; val can also be flat, as it comes, with
LOC_val_solution.csv in ROOT or in ROOT/val. Parquet: `ROOT/data/train-00000-of-00294-*.parquet` or the same in ROOT,
split "validation", columns image {bytes, path} and label.

The label of a class is its place among the sorted names, which for ImageNet are the synsets. A parquet file brings its
own labels: where the stored paths name a synset, as those of ILSVRC/imagenet-1k do, the order is compared with theirs,
and `ImageFiles.verified` says whether it could be.

A parquet file is compressed in row groups, of which a whole one is read for each image. The last ones are kept, so that
reading in order reads each once; in the random order of training nearly every image costs a row group. `resid-images
shrink` unpacks them once and for all.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from resid._arguments import check_option
from resid.data.download import DataFileError

__all__ = ["ImageFiles", "is_image", "open_images", "splits_of"]

SPLITS = {"train": "train", "val": "val", "validation": "val"}
ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOLUTION = "LOC_val_solution.csv"
EXAMPLE = "train-00000-of-00294.parquet"
SHARD = re.compile(r"(train|validation|val)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
SYNSET = re.compile(r"(?<![0-9a-z])n\d{8}(?!\d)")
#: Bytes of row groups that a process keeps, besides the one in use.
KEPT = 128 << 20


class _Names:
    """Many short strings in one piece, which travels to other processes at once."""

    def __init__(self, names: Sequence[str]) -> None:
        parts = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, parts)])
        self._text = b"".join(parts)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self._text[self._ends[i] : self._ends[i + 1]])


class _Source(Protocol):
    def read(self, i: int) -> bytes: ...


class _Files:
    """Files below a folder."""

    def __init__(self, folder: Path, names: _Names) -> None:
        self._folder, self._names = str(folder), names

    def read(self, i: int) -> bytes:
        with open(os.path.join(self._folder, self._names[i]), "rb") as file:
            return file.read()


class _Shards:
    """Rows of parquet files; files and row groups are opened in the process that reads."""

    def __init__(self, paths: list[Path], rows: list[list[int]]) -> None:
        self._groups = [(i, group) for i, counts in enumerate(rows) for group in range(len(counts))]
        self._starts = np.cumsum([0, *(count for counts in rows for count in counts)])
        self._paths = paths
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def read(self, i: int) -> bytes:
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        content: bytes | None = self._group(number)[int(i - self._starts[number])].as_py()
        return content or b""

    def _group(self, number: int) -> Any:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        shard, group = self._groups[number]
        try:
            with _parquet().ParquetFile(self._paths[shard]) as file:
                table = file.read_row_group(group, columns=["image.bytes"], use_threads=False)
        except ValueError as error:  # of pyarrow, for content that is no parquet
            raise OSError(f"{self._paths[shard]} is damaged: {error}") from error
        found = table.flatten().column("image.bytes").combine_chunks()
        while self._kept and sum(part.nbytes for part in self._kept.values()) > KEPT:
            self._kept.popitem(last=False)
        self._kept[number] = found
        return found


class ImageFiles:
    """Image files of a split with their labels; picklable, and small enough for every worker to have a copy.

    classes: names by label. labels: (n,), int64. verified: whether the order of the classes is known to be that of the
    sorted names. source: where the files are, in words. ignored: files among them that are no images by their names.

    Use `open_images`.
    """

    def __init__(
        self,
        reader: _Source,
        names: _Names,
        labels: Tensor,
        classes: Sequence[str],
        source: str,
        verified: bool,
        ignored: Sequence[str] = (),
    ) -> None:
        self._reader, self._names = reader, names
        self.labels, self.classes, self.source = labels, tuple(classes), source
        self.verified, self.ignored = verified, tuple(ignored)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """Path of an image below the folder; for parquet SHARD#ROW/PATH, with the path that is stored there, if any."""
        return self._names[i]

    def read(self, i: int) -> bytes:
        """The content of a file, as it is.

        Raises:
            OSError: it is not there any more, or cannot be read.
        """
        return self._reader.read(i)

    def counts(self) -> Tensor:
        """Images of each class: (classes,), int64."""
        return torch.bincount(self.labels, minlength=len(self.classes))


def open_images(folder: str | Path, split: str, classes: Sequence[str] | None = None) -> ImageFiles:
    """The image files of a split, none of which is opened.

    Args:
        folder: ROOT of the layouts above. split: "train" or "val", also called "validation". classes: what the classes
            have to be, those of the training split for instance; class folders of train and val are compared anyway.

    Raises:
        resid.data.download.DataFileError: a split, a shard or a class folder is missing or empty; a class is unknown;
            train and val have different classes; a label is out of range or contradicts the name of its file.
        OptionError: unknown split.
    """
    check_option("split", split, SPLITS)
    root, split = Path(folder), SPLITS[split]
    if not root.is_dir():
        raise DataFileError(f"{root} is not a folder")
    shards = _find_shards(root)
    found = _open_shards(root, shards, split) if shards else _open_folders(root, split)
    if classes is not None:
        _compare(tuple(classes), found.classes, "the classes asked for", found.source)
    return found


def splits_of(folder: str | Path) -> list[str]:
    """Which of "train" and "val" are there.

    Raises:
        resid.data.download.DataFileError: neither is.
    """
    root = Path(folder)
    shards = _find_shards(root)
    found = [split for split in ("train", "val") if split in shards or (not shards and _place(root, split).is_dir())]
    if not found:
        raise DataFileError(f"{root} has neither folders train or val nor parquet files named like {EXAMPLE}")
    return found


# --- class folders ---


def _place(root: Path, split: str) -> Path:
    """The folder of a split; val can be called validation."""
    long = root / "validation"
    return long if split == "val" and not (root / "val").is_dir() and long.is_dir() else root / split


def _class_folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _open_folders(root: Path, split: str) -> ImageFiles:
    place = _place(root, split)
    if not place.is_dir():
        raise DataFileError(f"{root} has neither a folder {split!r} nor parquet files named like {EXAMPLE}")
    classes = _class_folders(place)
    if not classes:
        return _open_flat(root, place)
    other = _place(root, "val" if split == "train" else "train")
    if other.is_dir() and (theirs := _class_folders(other)):
        _compare(tuple(theirs), tuple(classes), str(other), str(place))
    names, labels, ignored = [], [], []
    for label, name in enumerate(classes):
        files = _regular(place / name)
        images = [f"{place.name}/{name}/{file}" for file in files if is_image(file)]
        ignored += [f"{place.name}/{name}/{file}" for file in files if not is_image(file)]
        if not images:
            raise DataFileError(f"{place / name}: the folder of class {name!r} has no image")
        names += images
        labels += [label] * len(images)
    return _of_files(root, names, labels, classes, str(place), ignored)


def _open_flat(root: Path, place: Path) -> ImageFiles:
    """Images of val in one folder; the file of solutions names the synset of each."""
    found = [path for path in (root / SOLUTION, place / SOLUTION) if path.is_file()]
    if not found:
        raise DataFileError(
            f"{place} has no class folders, and {SOLUTION} is in neither {root} nor {place}. (The numbers in "
            "ILSVRC2012_validation_ground_truth.txt are in another order than the sorted synsets: they are of no use)"
        )
    try:
        with found[0].open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataFileError(f"{found[0]} cannot be read: {error}") from error
    if cut := next((number for number, line in enumerate(lines, 2) if None in line.values()), None):
        raise DataFileError(f"{found[0]}, line {cut}: a column is missing")
    if not lines or not {"ImageId", "PredictionString"} <= lines[0].keys():
        raise DataFileError(f"{found[0]}: columns ImageId and PredictionString are needed")
    synsets = {line["ImageId"]: (line["PredictionString"].split() or [""])[0] for line in lines}
    files = [name for name in _regular(place) if name != SOLUTION]
    images = [name for name in files if is_image(name)]
    if unknown := [name for name in images if not synsets.get(Path(name).stem)]:
        raise DataFileError(f"{found[0]} has no class of {unknown[0]}, one of {len(unknown)} in {place}")
    if absent := synsets.keys() - {Path(name).stem for name in images}:
        raise DataFileError(f"{place} lacks {min(absent)}, one of {len(absent)} that {found[0].name} names")
    of_file = [synsets[Path(name).stem] for name in images]
    classes = sorted(set(of_file))
    train = root / "train"
    if train.is_dir():
        theirs = _class_folders(train)
        _compare(tuple(theirs), tuple(classes), str(train), str(found[0]))
    number = {name: label for label, name in enumerate(classes)}
    names = [f"{place.name}/{name}" for name in images]
    ignored = [f"{place.name}/{name}" for name in files if not is_image(name)]
    return _of_files(root, names, [number[name] for name in of_file], classes, str(place), ignored)


def _of_files(
    root: Path, names: list[str], labels: list[int], classes: list[str], source: str, ignored: list[str]
) -> ImageFiles:
    packed = _Names(names)
    return ImageFiles(_Files(root, packed), packed, torch.tensor(labels), classes, source, True, ignored)


def _regular(place: Path) -> list[str]:
    """Names in a folder, in order, but for pipes and the like, which nobody may ever write to."""
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_file() or entry.is_dir() or entry.is_symlink())


def is_image(name: str) -> bool:
    """Whether a file is one of the images, by its name."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _compare(expected: tuple[str, ...], found: tuple[str, ...], theirs: str, ours: str) -> None:
    """Two lists of classes have to be the same, in the same order; the first difference is named.

    Raises:
        DataFileError: they are not.
    """
    if expected == found:
        return
    if missing := [name for name in expected if name not in set(found)]:
        raise DataFileError(f"class {missing[0]!r} of {theirs} is missing in {ours}, one of {len(missing)}")
    if unknown := [name for name in found if name not in set(expected)]:
        raise DataFileError(f"class {unknown[0]!r} of {ours} is unknown to {theirs}, one of {len(unknown)}")
    i = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), len(found))
    pair = [part[i] if i < len(part) else "none" for part in (expected, found)]
    raise DataFileError(f"class {i} is {pair[0]!r} in {theirs} and {pair[1]!r} in {ours}: the order differs")


# --- parquet ---


def _find_shards(root: Path) -> dict[str, list[Path]]:
    """Parquet files by split, in their order; empty where there are none.

    Raises:
        DataFileError: one of them is missing.
    """
    found = [(m, path) for place in (root / "data", root) for path in sorted(place.glob("*.parquet"))
             if (m := SHARD.fullmatch(path.name))]  # fmt: skip
    shards: dict[str, list[Path]] = {}
    for split, group in groupby(
        sorted(found, key=lambda f: (SPLITS[f[0][1]], int(f[0][2]))), lambda f: SPLITS[f[0][1]]
    ):
        files = list(group)
        total, numbers = int(files[0][0][3]), [int(match[2]) for match, _ in files]
        if numbers != list(range(total)):
            wrong = next((i for i in range(total) if numbers.count(i) != 1), total)
            raise DataFileError(
                f"{root}: {numbers.count(wrong)} parquet files of {split} have the number {wrong} of {total}"
            )
        shards[split] = [path for _, path in files]
    return shards


def _open_shards(root: Path, shards: dict[str, list[Path]], split: str) -> ImageFiles:
    if split not in shards:
        raise DataFileError(f"{root} has parquet files of {', '.join(shards)}, not of {split}")
    labels: list[int | None] = []
    names: list[str] = []
    paths: list[str] = []
    rows: list[list[int]] = []
    declared: list[str] | None = None
    for shard in shards[split]:
        try:
            with _parquet().ParquetFile(shard) as file:
                declared = _declared_classes(file.schema_arrow) if declared is None else declared
                rows.append([file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)])
                table = file.read(columns=["image.path", "label"], use_threads=False)
                of_rows = [row["path"] or "" for row in table.column("image").to_pylist()]
                labels += table.column("label").to_pylist()
        except (OSError, ValueError, KeyError, TypeError) as error:  # those of pyarrow are subclasses
            raise DataFileError(
                f"{shard} cannot be read: {error}; columns image {{bytes, path}} and label needed"
            ) from error
        names += [f"{shard.name}#{i}/{path}" for i, path in enumerate(of_rows)]
        paths += of_rows
    if not labels:
        raise DataFileError(f"{shards[split][0]} and the others of {split} have no rows")
    classes = _check_labels(labels, names, declared)
    synsets = _synsets_by_label(labels, paths, names, len(classes))
    return ImageFiles(
        _Shards(shards[split], rows), _Names(names), torch.tensor(labels), synsets or classes,
        f"{shards[split][0].parent}, {len(shards[split])} parquet files of {split}", synsets is not None,
    )  # fmt: skip


def _declared_classes(schema: Any) -> list[str] | None:
    """Names of the classes that the library `datasets` has left in the file, or None."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        found = json.loads(text)
        for key in ("info", "features", "label", "names"):
            found = found.get(key, {})
    except (AttributeError, ValueError, RecursionError):
        raise DataFileError("the metadata 'huggingface' of a parquet file are not those of a data set") from None
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataFileError(f"the metadata of a parquet file name the classes {str(found)[:60]}: texts are needed")
    return found


def _check_labels(labels: list[int | None], names: list[str], declared: list[str] | None) -> list[str]:
    """Names of the classes, each of which has an image.

    Raises:
        DataFileError: a label out of range, or a class without an image.
    """
    for label, name in zip(labels, names, strict=True):
        if label is not None and type(label) is not int:
            raise DataFileError(f"{name}: label {label!r} is no integer")
    count = len(declared) if declared is not None else max((v for v in labels if v is not None), default=0) + 1
    if count > len(labels):  # before a list of so many is made
        first = min(set(range(len(labels) + 1)) - set(labels))
        raise DataFileError(f"class {first} of {count} has no image: there are {len(labels)} images")
    for label, name in zip(labels, names, strict=True):
        if label is None or not 0 <= label < count:
            raise DataFileError(f"{name}: label {label} is not in 0 ... {count - 1}")
    classes = declared if declared is not None else [f"class {label}" for label in range(count)]
    if absent := sorted(set(range(count)) - set(labels)):
        raise DataFileError(f"class {absent[0]}, {classes[absent[0]]!r}, has no image, one of {len(absent)} of {count}")
    return classes


def _synsets_by_label(labels: list[int | None], paths: list[str], names: list[str], count: int) -> list[str] | None:
    """The synset of each label by the stored paths, in sorted order; None where a path does not name one.

    Raises:
        DataFileError: one label with two synsets, or labels that are not in the order of the synsets.
    """
    found: dict[int | None, str] = {}
    for label, path, name in zip(labels, paths, names, strict=True):
        synsets = SYNSET.findall(path)
        if not synsets:
            return None
        if found.setdefault(label, synsets[-1]) != synsets[-1]:
            raise DataFileError(f"{name}: label {label} is that of {found[label]}, not of {synsets[-1]}")
    ordered = [found[label] for label in range(count)]
    for label in range(1, count):
        if ordered[label - 1] >= ordered[label]:
            raise DataFileError(
                f"label {label} is {ordered[label]} and label {label - 1} is {ordered[label - 1]}: labels have to be "
                "in the order of the sorted synsets"
            )
    return ordered


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataFileError('pyarrow is needed to read parquet files: pip install "resid-book[imagenet]"') from error
    return parquet
