"""Several recipes and seeds, one after the other or at once: what is finished is read, what was stopped goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from resid.data.loading import load_dataset
from resid.errors import OptionError, ResidError
from resid.training.checkpoint import RunFolder
from resid.training.launcher import LaunchError, launch
from resid.training.options import RunOptions
from resid.training.progress import once_a_minute
from resid.training.recipe import Recipe
from resid.training.recipes import RECIPES
from resid.training.signals import Stop
from resid.training.trainer import DivergedError, train

__all__ = ["Metrics", "Runs", "UnfinishedError", "finished_runs", "run_folder", "run_recipes", "runs_folder"]

#: A dictionary for each epoch; the last of a run whose loss became infinite or no number has "diverged".
Metrics = list[dict[str, Any]]
Runs = dict[tuple[str, int], Metrics]


class UnfinishedError(ResidError):
    """Time was up, or a signal came, before every run was finished; `runs` has those that are."""

    def __init__(self, message: str, runs: Runs) -> None:
        super().__init__(message)
        self.runs = runs


def runs_folder() -> Path:
    """Return where runs lie, whoever trains them: `RESID_RUNS`, else `resid-runs`.

    In a checkout that is book/experiments/resid-runs, where the chapters are run; elsewhere it lies in the working
    directory.
    """
    if wish := os.environ.get("RESID_RUNS"):
        return Path(wish)
    chapters = Path(__file__).resolve().parents[2] / "book" / "experiments"
    return chapters / "resid-runs" if chapters.is_dir() else Path("resid-runs")


def run_folder(name: str, recipe: Recipe, folder: str | Path | None = None) -> Path:
    """Return the folder of one run, whose name has the recipe's name, its hash and its seed.

    The hash is that of the recipe with seed 0, so that the seeds of one recipe stand beside each other.

    Example:
        >>> run_folder("digits-proc22", RECIPES["digits-proc22"].replace(seed=3), "runs").name[-6:]
        '-seed3'
    """
    return Path(folder or runs_folder()) / f"{name}-{recipe.replace(seed=0).hash}-seed{recipe.seed}"


def run_recipes(
    names: Iterable[str] | Mapping[str, Recipe],
    seeds: Iterable[int],
    folder: str | Path | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Runs:
    """Train recipes, each with every seed, and return the metrics of all runs.

    A finished run in the folder is read and not trained again; a stopped or a killed one goes on from its last
    checkpoint. A run whose loss is not finite any more is over, too: its metrics end with a line that has "diverged",
    the epoch of it (1 the first), infinite losses, and the errors of guessing. Runs of several processes, and several
    runs at a time, which share GPU and CPUs, are started by `launch`.

    Args:
        names: of `RECIPES`, or recipes by name.
        seeds: of weights, order, augmentation and projection.
        folder: of all runs, see `runs_folder`; each has its own below it.
        options: how and where; `max_seconds` is for all runs together. Default `RunOptions(say=print)`.
        changes: fields of `RunOptions`, which change `options`.

    Returns:
        (name, seed) -> a dictionary of metrics for each epoch, see `train`.

    Raises:
        UnfinishedError: not all are finished when the time is up, or after SIGTERM or Ctrl-C; the same call goes on.
        OptionError: unknown name, no seed, or an option out of its range.
        LaunchError: a run has failed, see `launch`; in this process, what `train` raises.
    """
    options = (options or RunOptions(say=print)).changed(**changes)
    wanted = _wanted(names, seeds)
    say = options.say or (lambda line: None)
    ends = math.inf if options.max_seconds is None else time.monotonic() + options.max_seconds
    runs: Runs = {}

    def one(key: tuple[str, int], stop: Stop) -> None:
        (name, seed), recipe = key, wanted[key]
        place = run_folder(name, recipe, folder)
        metrics = _finished(place, recipe)
        left = ends - time.monotonic()
        if metrics is None and not stop.wish() and left > 0:
            say(f"{name}, seed {seed}: {'goes on' if place.exists() else 'begins'} in {place.name}")
            own = options.changed(
                max_seconds=None if math.isinf(left) else left, say=once_a_minute(say, f"{name}, seed {seed}: ")
            )
            try:
                stop.request(_train(recipe, place, own, stop))
            except BaseException:
                stop.request("another run failed")  # those that wait do not begin
                raise
            metrics = _finished(place, recipe)
        if metrics is not None:
            runs[name, seed] = metrics
            last = metrics[-1]
            ended = "the loss is not finite" if "diverged" in last else f"test error {100 * last['test_error']:.2f}%"
            say(f"{name}, seed {seed}: {last['epoch']} epochs, {ended}")

    if options.at_once > 1:  # before several processes download into the same files
        for name in {recipe.dataset for recipe in wanted.values() if not recipe.streamed}:
            for split in ("train", "test"):
                load_dataset(name, split, options.data_folder)
    with Stop() as stop, ThreadPoolExecutor(options.at_once) as pool:
        if options.at_once == 1:
            for key in wanted:
                one(key, stop)
        for future in as_completed([pool.submit(one, key, stop) for key in wanted if options.at_once > 1]):
            future.result()
        reason = stop.wish() or "the time is up"
    runs = {key: runs[key] for key in wanted if key in runs}
    if missing := [f"{name} seed {seed}" for name, seed in wanted if (name, seed) not in runs]:
        raise UnfinishedError(
            f"{len(runs)} of {len(wanted)} runs are finished ({reason}); everything is saved in "
            f"{Path(folder or runs_folder())}, and the same command goes on with {', '.join(missing)}",
            runs,
        )
    return runs


def finished_runs(
    names: Iterable[str] | Mapping[str, Recipe], seeds: Iterable[int], folder: str | Path | None = None
) -> Runs:
    """Return those of the runs that are finished in the folder; nothing is trained, no data set is needed."""
    wanted = _wanted(names, seeds)
    runs = {key: _finished(run_folder(key[0], recipe, folder), recipe) for key, recipe in wanted.items()}
    return {key: metrics for key, metrics in runs.items() if metrics is not None}


def _wanted(names: Iterable[str] | Mapping[str, Recipe], seeds: Iterable[int]) -> dict[tuple[str, int], Recipe]:
    """Recipes with their seeds, seed by seed, so that pairs are complete as early as possible."""
    if isinstance(names, str):
        raise OptionError(f"names = {names!r}: a list of names is needed")
    recipes: Mapping[str, Recipe]
    if isinstance(names, Mapping):
        recipes = names
    else:
        names = list(dict.fromkeys(names))
        if unknown := [name for name in names if name not in RECIPES]:
            raise OptionError(f"no recipe {', '.join(map(repr, unknown))}: `resid-train --list` shows the names")
        recipes = {name: RECIPES[name] for name in names}
    numbers = list(seeds)
    if not recipes or not numbers:
        raise OptionError("names, seeds: at least one of each is needed")
    return {(name, seed): recipe.replace(seed=seed) for seed in numbers for name, recipe in recipes.items()}


def _finished(place: Path, recipe: Recipe) -> Metrics | None:
    """The metrics of a run that is over, None for one that is not."""
    run = RunFolder(place, recipe)
    status = run.status()
    if status.get("state") == "finished" and run.weights.exists():
        return run.lines()
    if status.get("state") != "failed" or status.get("error") != DivergedError.__name__:
        return None
    guessing, five = 1 - 1 / recipe.class_count, 1 - 5 / recipe.class_count
    end = {
        "epoch": status["epoch"] + 1, "step": status["step"], "diverged": True, "loss": math.inf,
        "train_error": guessing, "test_loss": math.inf, "test_error": guessing,
    }  # fmt: skip
    if five > 0:
        end["test_top5_error"] = five
    if recipe.check_training:
        end["plain_train_error"] = guessing
    return [*(line for line in run.lines() if line["step"] <= end["step"]), end]


def _train(recipe: Recipe, place: Path, options: RunOptions, stop: Stop) -> str:
    """Train one run as far as the time allows; returns why it stopped, "" if it is over."""
    try:
        if options.nproc > 1 or options.at_once > 1:
            return launch(recipe, place, options, stop).reason
        return train(recipe, place, options).reason
    except DivergedError:
        return ""
    except LaunchError:
        if _finished(place, recipe) is None:
            raise
        return ""
