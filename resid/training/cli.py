"""`resid-train RECIPE`, also `python -m resid.training.cli RECIPE`: train from a shell, under torchrun, or under Slurm.

Exit status: 0 finished; 75 stopped by SIGTERM or because the time was up, everything saved, call it again to go on (0
under a torchrun with --max-restarts, which would start it again at once); 65 another try would not help; 1 something
went wrong, and the same command may well go on; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from resid.errors import InterruptedRunError, ResidError
from resid.training.launcher import LaunchError, launch
from resid.training.ranks import under_torchrun
from resid.training.recipe import Recipe, RecipeError
from resid.training.recipes import RECIPES
from resid.training.sweep import run_folder
from resid.training.trackers import TRACKERS, open_tracker
from resid.training.trainer import FAILED, INTERRUPTED, STOPPED, Result, train

__all__ = ["main", "read_recipe"]


def read_recipe(text: str) -> tuple[str, Recipe]:
    """Name and recipe from the command line: a name, a file of JSON, or JSON itself.

    Raises:
        RecipeError: none of these.

    Example:
        >>> read_recipe("digits-proc22")[1].network
        'proc'
    """
    if text in RECIPES:
        return text, RECIPES[text]
    if text.lstrip().startswith("{"):
        return "recipe", Recipe.from_json(text)
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        try:
            return path.stem, Recipe.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{text} cannot be read: {error}") from error
    raise RecipeError(f"no recipe {text!r}: --list shows the names; a file has to end in .json")


class Progress:
    """Lines of text, or a bar where the output is a terminal and tqdm is there."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, line: str) -> None:
        """Show a line of `resid.training.trainer.describe`, or any other."""
        found = re.match(r"(in )?epoch (\d+)/(\d+)[,:] (.*)", line)
        if found and sys.stdout.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                print(line, flush=True)
                return
            self._bar = self._bar or tqdm(total=int(found[3]), unit="epoch", file=sys.stdout)
            self._bar.set_postfix_str(found[4], refresh=False)
            self._bar.update(int(found[2]) - bool(found[1]) - self._bar.n)
            self._bar.refresh()
        else:
            print(line, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The words of the command."""
    parser = argparse.ArgumentParser(prog="resid-train", description="Train a network by a recipe of the book.")
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or a .json file, or JSON")
    parser.add_argument("--list", action="store_true", help="show the names of the recipes, and end")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    parser.add_argument("--run-dir", type=Path, help="folder of the run; default where the chapters look for it")
    parser.add_argument("--where", action="store_true", help="print the folder of the run, and end")
    parser.add_argument("--nproc", type=int, help="start so many processes, by torchrun, and try again when one dies")
    parser.add_argument("--retries", type=int, default=2, help="tries after the first, with --nproc")
    parser.add_argument("--device", help="cpu or cuda; default a GPU if there is one")
    parser.add_argument("--max-seconds", type=float, help="save and stop after so long")
    parser.add_argument("--until", type=float, help="save and stop at this time, in seconds since 1970")
    parser.add_argument("--save-every", type=int, help="steps between checkpoints; default about a minute")
    parser.add_argument("--data", type=Path, help="folder of the data; default RESID_DATA, for ImageNet RESID_IMAGENET")
    parser.add_argument("--workers", type=int, help="processes that read image files, for each process that trains")
    parser.add_argument("--background-saves", action="store_true", help="write checkpoints while training goes on")
    parser.add_argument("--tracker", choices=sorted(TRACKERS), help="send metrics there, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.list:
        try:
            print("\n".join(RECIPES), flush=True)
        except BrokenPipeError:  # whoever reads has seen enough; nothing is to be written at the end either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if given.recipe is None:
        parser.error("a recipe is needed; --list shows the names")
    try:
        name, recipe = read_recipe(given.recipe)
        recipe = recipe.with_settings(given.set)
        if given.data is not None and not given.data.is_dir():
            raise RecipeError(f"--data {given.data}: there is no such folder")
        place = given.run_dir or run_folder(name, recipe)
        if given.where:
            print(place)
            return 0
        result = _train(given, place, recipe)
    except KeyboardInterrupt:  # a second one, or one before training has begun: what is saved is saved
        print("resid-train: interrupted: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except LaunchError as error:
        print(f"resid-train: {error}", file=sys.stderr)
        return FAILED
    except InterruptedRunError as error:
        print(f"resid-train: {type(error).__name__}: {error}", file=sys.stderr)
        return INTERRUPTED
    except ResidError as error:
        print(f"resid-train: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    if result.state == "stopped":
        print(f"stopped at step {result.step} ({result.reason}): the same command goes on")
        return 0 if _restarted() else STOPPED
    return 0


def _restarted() -> bool:
    """Whether torchrun starts anew, and so against the intent, a process that leaves with another status than 0."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _seconds(given: argparse.Namespace) -> float | None:
    """Time that is left, None for no end."""
    ends = [given.max_seconds, None if given.until is None else max(0.0, given.until - time.time())]
    return min((seconds for seconds in ends if seconds is not None), default=None)


def _train(given: argparse.Namespace, run_dir: Path, recipe: Recipe) -> Result:
    say = Progress()
    common: dict[str, Any] = {
        "device": given.device, "max_seconds": _seconds(given), "save_every": given.save_every,
        "data_folder": given.data, "say": say, "workers": given.workers, "background_saves": given.background_saves,
    }  # fmt: skip
    if given.nproc is not None and not under_torchrun():
        return launch(recipe, run_dir, given.nproc, retries=given.retries, tracker=given.tracker, **common)
    with ExitStack() as stack:
        tracker = None
        if given.tracker is not None and int(os.environ.get("RANK", "0")) == 0:
            tracker = open_tracker(given.tracker, recipe, run_dir)
            stack.callback(tracker.close)
        return train(recipe, run_dir, tracker=tracker, **common)


if __name__ == "__main__":
    sys.exit(main())
