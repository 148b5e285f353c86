"""Is this ImageNet? Classes and counts of a folder of images against what they should be, and every file decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from resid.data.decode import BrokenImageError, decode_test, open_image, orientation
from resid.data.download import DataFileError
from resid.data.image_files import ImageFiles, open_images, splits_of
from resid.data.workers import Workers

__all__ = ["IMAGENET", "Expected", "ImageReport", "SplitReport", "check_images"]

CHUNK = 64


@dataclass(frozen=True)
class Expected:
    """What a data set has: classes; of each split the images, and the fewest and the most of one class."""

    name: str
    classes: int
    images: Mapping[str, int]
    per_class: Mapping[str, tuple[int, int]]


#: ILSVRC 2012, classification
IMAGENET = Expected(
    "ImageNet",
    1000,
    MappingProxyType({"train": 1_281_167, "val": 50_000}),
    MappingProxyType({"train": (732, 1300), "val": (50, 50)}),
)


@dataclass(frozen=True)
class SplitReport:
    """Of a split: where it is; classes in the order of their labels, and how many images each has; files that are no
    images by their names; name -> reason of those that cannot be decoded; how many EXIF would turn; whether the order
    of the classes is known to be that of the sorted names. The last ones are None where pixels were not looked at."""

    source: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    ignored: tuple[str, ...]
    verified: bool
    broken: Mapping[str, str] | None
    turned: int | None


@dataclass(frozen=True)
class ImageReport:
    """Of `check_images`: a report for each split that could be opened; the first mismatch, "" where there is none."""

    splits: Mapping[str, SplitReport]
    mismatch: str

    @property
    def good(self) -> bool:
        """Whether there is no mismatch and no broken file."""
        return not self.mismatch and not any(split.broken for split in self.splits.values())

    def lines(self) -> list[str]:
        """The report as text."""
        text = []
        for name, split in self.splits.items():
            fewest, most = min(split.counts), max(split.counts)
            text.append(f"{name}: {len(split.classes)} classes, {sum(split.counts):,} images, {fewest} to {most} of a "
                        f"class; {split.source}")  # fmt: skip
            text.append(f"  first class {split.classes[0]!r}, last {split.classes[-1]!r}; " + (
                "in sorted order" if split.verified
                else "no names to compare the order of the labels with: it cannot be verified"
            ))  # fmt: skip
            if split.ignored:
                text.append(f"  {len(split.ignored)} files ignored, since their names are not those of images: "
                            f"{split.ignored[0]} ...")  # fmt: skip
            if split.broken is not None:
                text.append(f"  {len(split.broken)} files cannot be decoded, {split.turned} are stored in another "
                            "orientation than EXIF asks for")  # fmt: skip
                text += [f"    {file}: {reason}" for file, reason in split.broken.items()]
        return [*text, f"first mismatch: {self.mismatch}" if self.mismatch else "no mismatch"]


def check_images(
    folder: str | Path,
    expected: Expected = IMAGENET,
    pixels: bool = True,
    workers: int = 0,
    say: Callable[[int, int], None] | None = None,
) -> ImageReport:
    """Count the images of a folder, compare with what is expected, and decode every one.

    Args:
        folder: of `resid.data.image_files.open_images`. expected: what should be there. pixels: decode, which takes a
            while. workers: processes that decode. say: called with the numbers of images done and of all.

    Raises:
        resid.data.workers.WorkerDiedError: a process was killed.
    """
    files: dict[str, ImageFiles] = {}
    problems = []
    try:
        for split in splits_of(folder):
            files[split] = open_images(folder, split, files["train"].classes if "train" in files else None)
    except DataFileError as error:
        problems.append(str(error))
    total, done, reports = sum(map(len, files.values())), 0, {}
    for split, found in files.items():
        broken: dict[str, str] = {}
        turned = 0
        pool: Workers[_Looked] = Workers(_Look(found), workers)
        for part in pool(range(at, min(at + CHUNK, len(found))) for at in range(0, len(found) * pixels, CHUNK)):
            broken.update({found.name(i): reason for i, reason in part.broken})
            turned, done = turned + part.turned, done + part.seen
            if say is not None:
                say(done, total)
        pool.close()
        counts = tuple(found.counts().tolist())
        reports[split] = SplitReport(
            found.source, found.classes, counts, found.ignored, found.verified,
            broken if pixels else None, turned if pixels else None,
        )  # fmt: skip
    for split in expected.images:
        if split not in reports:
            problems.append(f"{split} is missing")
        else:
            problems += _mismatches(split, reports[split], expected)
    return ImageReport(reports, problems[0] if problems else "")


def _mismatches(split: str, found: SplitReport, expected: Expected) -> list[str]:
    """What differs from the expected, the most telling first."""
    problems = []
    if len(found.classes) != expected.classes:
        problems.append(f"{split} has {len(found.classes)} classes, {expected.name} {expected.classes}")
    fewest, most = expected.per_class[split]
    for name, count in zip(found.classes, found.counts, strict=True):
        if not fewest <= count <= most:
            problems.append(
                f"class {name!r} of {split} has {count} images, those of {expected.name} {fewest} to {most}"
            )
    if (total := sum(found.counts)) != expected.images[split]:
        problems.append(f"{split} has {total:,} images, {expected.name} {expected.images[split]:,}")
    return problems


class _Looked(NamedTuple):
    broken: list[tuple[int, str]]
    turned: int
    seen: int


class _Look:
    """What a worker does: decode images, in the smallest size that a JPEG allows."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __getitem__(self, which: range) -> _Looked:
        broken, turned = [], 0
        for i in which:
            try:
                content = self.files.read(i)
                decode_test(content, 1, 1)
                turned += orientation(open_image(content)) != 1
            except (BrokenImageError, OSError) as error:
                broken.append((i, str(error)))
        return _Looked(broken, turned, len(which))
