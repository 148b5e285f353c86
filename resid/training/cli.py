"""`resid-train RECIPE`, also `python -m resid.training.cli RECIPE`: train from a shell, under torchrun, or under Slurm.

Exit status: 0 finished; 75 stopped by SIGTERM or because the time was up, everything saved, call it again to go on (0
under a torchrun with --max-restarts, which would start it again at once); 65 another try would not help; 1 something
went wrong, and the same command may well go on; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from resid.errors import InterruptedRunError, OptionError, ResidError
from resid.training.launcher import launch
from resid.training.options import FLAGS, RunOptions
from resid.training.progress import echo
from resid.training.ranks import LAUNCHER, under_torchrun
from resid.training.recipe import Recipe, RecipeError
from resid.training.recipes import RECIPES
from resid.training.sweep import run_folder
from resid.training.trainer import FAILED, INTERRUPTED, STOPPED, Result, train

__all__ = ["main", "make_parser", "read_recipe"]


def read_recipe(text: str) -> tuple[str, Recipe]:
    """Read name and recipe from the command line: a name, a file of JSON, or JSON itself.

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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command; the options of a run are the fields of `RunOptions`."""
    parser = argparse.ArgumentParser(prog="resid-train", description="Train a network by a recipe of the book.")
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or a .json file, or JSON")
    parser.add_argument("--list", action="store_true", help="show the names of the recipes, and end")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    parser.add_argument("--run-dir", type=Path, help="folder of the run; default where the chapters look for it")
    parser.add_argument("--where", action="store_true", help="print the folder of the run, and end")
    parser.add_argument("--until", type=float, help="save and stop at this time, in seconds since 1970")
    for name, (flag, kind, about) in FLAGS.items():
        parser.add_argument(flag, dest=name, type=kind, help=about, default=argparse.SUPPRESS)
    return parser


def options_of(given: argparse.Namespace) -> RunOptions:
    """Return the options of a run from the command line; of two times to stop the earlier one.

    Raises:
        OptionError: a number is out of its range, or there is no such device or folder.
    """
    options = RunOptions(say=echo, **{name: value for name, value in vars(given).items() if name in FLAGS})
    if options.data_folder is not None and not Path(options.data_folder).is_dir():
        raise OptionError(f"--data {options.data_folder}: there is no such folder")
    if given.until is not None:
        left = max(0.0, given.until - time.time())
        options = options.changed(max_seconds=left if options.max_seconds is None else min(left, options.max_seconds))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
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
    restarted = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0  # what leaves with another status than 0
    try:
        name, recipe = read_recipe(given.recipe)
        recipe = recipe.with_settings(given.set)
        place = given.run_dir or run_folder(name, recipe)
        if given.where:
            print(place)
            return 0
        result = _train(given, place, recipe)
    except KeyboardInterrupt:  # a second one, or one before training has begun: what is saved is saved
        print("resid-train: interrupted: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except ResidError as error:
        print(f"resid-train: {type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, InterruptedRunError):
            return INTERRUPTED
        return 0 if restarted and LAUNCHER in os.environ else FAILED  # the launcher reads status.json
    if result.state == "stopped":
        print(f"stopped at step {result.step} ({result.reason}): the same command goes on")
        return 0 if restarted else STOPPED
    return 0


def _train(given: argparse.Namespace, place: Path, recipe: Recipe) -> Result:
    launched = "nproc" in given and not under_torchrun()
    return (launch if launched else train)(recipe, place, options_of(given))


if __name__ == "__main__":
    sys.exit(main())
