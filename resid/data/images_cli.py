"""`resid-images check FOLDER` and `resid-images shrink FOLDER OUT`: image files before a training.

Exit status: 0 all is well; 1 `check` found a mismatch, or files that cannot be decoded; 65 it could not be done; 2
wrong usage; 75 a process was killed. A `shrink` that was interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resid.data.image_check import check_images
from resid.data.shrink import shrink_images
from resid.errors import InterruptedRunError, ResidError
from resid.training.ranks import usable_cpus

__all__ = ["main"]

#: Exit status where another try would not help, as of resid-train
FAILED = 65
#: Exit status where it may
INTERRUPTED = 75
#: Seconds between lines of progress where there is no bar.
PAUSE = 30.0


class _Progress:
    """A bar where the output is a terminal and tqdm is there, else a line now and then; on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self._bar = tqdm(total=total, unit="image", file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._told > PAUSE:
            self._told = time.monotonic()
            print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="resid-images", description="Check or shrink the image files of ImageNet.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="count, compare with ImageNet, decode every file")
    check.add_argument("folder", type=Path, help="with train/ and val/, or with parquet files")
    check.add_argument("--quick", action="store_true", help="names and numbers only, no file is opened")
    shrink = commands.add_parser("shrink", help="write a smaller copy in class folders, or go on with it")
    shrink.add_argument("folder", type=Path, help="with train/ and val/, or with parquet files")
    shrink.add_argument("out", type=Path, help="folder of the copy")
    shrink.add_argument("--side", type=int, default=400, help="shorter side, 400 by default; 0: every file as it is")
    shrink.add_argument("--quality", type=int, default=90, help="of the JPEG files, 1 to 95; default 90")
    for command in (check, shrink):
        command.add_argument("--workers", type=int, default=usable_cpus(), help="processes; default all cores")
    given = parser.parse_args(arguments)
    progress = _Progress()
    try:
        if given.command == "check":
            report = check_images(given.folder, pixels=not given.quick, workers=given.workers, say=progress)
            lines, good = report.lines(), report.good
        else:
            done = shrink_images(
                given.folder, given.out, given.side or None, given.quality, given.workers, say=progress
            )
            lines = [f"{done.written:,} images written, {done.before:,} were there, {len(done.broken):,} left out"]
            lines += [f"  {name}: {reason}" for name, reason in done.broken.items()]
            good = True
    except ResidError as error:
        progress.close()
        print(f"resid-images: {type(error).__name__}: {error}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, InterruptedRunError) else FAILED
    progress.close()
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
