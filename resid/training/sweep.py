"""Several recipes and seeds, one after the other or at once: what is finished is read, what was stopped goes on."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resid._arguments import as_whole
from resid.data.loading import load_dataset
from resid.errors import OptionError, ResidError
from resid.training.checkpoint import RunFolder
from resid.training.launcher import LaunchError, launch
from resid.training.recipe import Recipe
from resid.training.recipes import RECIPES
from resid.training.trainer import DivergedError, train

__all__ = ["Metrics", "Runs", "UnfinishedError", "finished_runs", "run_folder", "run_recipes", "runs_folder"]

#: A dictionary for each epoch; the last of a run whose loss became infinite or no number has "diverged".
Metrics = list[dict[str, Any]]
Runs = dict[tuple[str, int], Metrics]

#: Seconds between two lines about the epochs of one run.
QUIET = 60.0


class UnfinishedError(ResidError):
    """Time was up, or SIGTERM came, before every run was finished; `runs` has those that are."""

    def __init__(self, message: str, runs: Runs) -> None:
        super().__init__(message)
        self.runs = runs


def runs_folder() -> Path:
    """Where runs lie, whoever trains them: `RESID_RUNS`, else `resid-runs`.

    In a checkout that is book/experiments/resid-runs, where the chapters are run; elsewhere it lies in the working
    directory.
    """
    if wish := os.environ.get("RESID_RUNS"):
        return Path(wish)
    chapters = Path(__file__).resolve().parents[2] / "book" / "experiments"
    return chapters / "resid-runs" if chapters.is_dir() else Path("resid-runs")


def run_folder(name: str, recipe: Recipe, folder: str | Path | None = None) -> Path:
    """The folder of one run, whose name has the recipe's name, its hash and its seed.

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
    *,
    max_seconds: float | None = None,
    nproc: int = 1,
    at_once: int = 1,
    device: str | None = None,
    say: Callable[[str], None] | None = print,
    **more: Any,
) -> Runs:
    """Train recipes, each with every seed, and return the metrics of all runs.

    A finished run in the folder is read and not trained again; a stopped or a killed one goes on from its last
    checkpoint. A run whose loss is not finite any more is over, too: its metrics end with a line that has "diverged",
    the epoch of it (1 the first), infinite losses, and the errors of guessing.

    Args:
        names: of `RECIPES`, or recipes by name. seeds: of weights, order, augmentation and projection.
        folder: of all runs, see `runs_folder`; each has its own below it. max_seconds: for all of them together.
        nproc: processes for each run, one for each GPU, by `launch`; with batch norm the number matters, see
            `resid.training.trainer`. at_once: so many runs at a time, in processes of their own by `launch`, which
            share GPU and CPUs: a small network alone leaves a GPU idle. device: see `train`. say: called with lines of
            text. more: data_folder, workers, background_saves, save_every, of `train` and `launch`.

    Returns:
        (name, seed) -> a dictionary of metrics for each epoch, see `train`.

    Raises:
        UnfinishedError: not all are finished when the time is up, or after SIGTERM; the same call goes on.
        OptionError: unknown name, no seed, or a number of no use. And what `train` and `launch` raise.
    """
    for what, value in (("nproc", nproc), ("at_once", at_once)):
        if (whole := as_whole(value)) is None or whole < 1:
            raise OptionError(f"{what} = {value!r}: an integer of at least 1 is needed")
    wanted = _wanted(names, seeds)
    say = say or (lambda line: None)
    ends = math.inf if max_seconds is None else time.monotonic() + max_seconds
    runs: Runs = {}
    reason = ""

    def one(key: tuple[str, int], told: threading.Event | None = None) -> None:
        nonlocal reason
        (name, seed), recipe = key, wanted[key]
        place = run_folder(name, recipe, folder)
        found = _finished(place, recipe)
        left = ends - time.monotonic()
        if found is None and not reason and left > 0 and not (told is not None and told.is_set()):
            say(f"{name}, seed {seed}: {'goes on' if place.exists() else 'begins'} in {place.name}")
            options = {"max_seconds": None if math.isinf(left) else left, "device": device, **more}
            try:
                why = _train(recipe, place, nproc, at_once, told, say=_Sparse(name, seed, say), **options)
                reason = reason or why
            except BaseException:
                reason = "another run failed"  # those that wait do not begin
                raise
            found = _finished(place, recipe)
        if found is not None:
            runs[name, seed] = found
            last = found[-1]
            ended = "the loss is not finite" if "diverged" in last else f"test error {100 * last['test_error']:.2f}%"
            say(f"{name}, seed {seed}: {last['epoch']} epochs, {ended}")

    if at_once == 1:
        for key in wanted:
            one(key)
    else:
        _fetch(wanted.values(), more.get("data_folder"))
        with _told() as told, ThreadPoolExecutor(at_once) as pool:
            try:
                for future in as_completed([pool.submit(one, key, told) for key in wanted]):
                    future.result()
            except BaseException:
                told.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    runs = {key: runs[key] for key in wanted if key in runs}
    if missing := [f"{name} seed {seed}" for name, seed in wanted if (name, seed) not in runs]:
        raise UnfinishedError(
            f"{len(runs)} of {len(wanted)} runs are finished ({reason or 'the time is up'}); everything is saved in "
            f"{Path(folder or runs_folder())}, and the same command goes on with {', '.join(missing)}",
            runs,
        )
    return runs


def finished_runs(
    names: Iterable[str] | Mapping[str, Recipe], seeds: Iterable[int], folder: str | Path | None = None
) -> Runs:
    """Those of the runs that are finished in the folder; nothing is trained, no data set is needed."""
    wanted = _wanted(names, seeds)
    found = {key: _finished(run_folder(key[0], recipe, folder), recipe) for key, recipe in wanted.items()}
    return {key: metrics for key, metrics in found.items() if metrics is not None}


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
    if status.get("state") == "failed" and status.get("error") == DivergedError.__name__:
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
    return None


def _fetch(recipes: Iterable[Recipe], folder: str | Path | None) -> None:
    """Download what is not there, before several processes do so into the same files."""
    for name in {recipe.dataset for recipe in recipes if not recipe.streamed}:
        for split in ("train", "test"):
            load_dataset(name, split, folder)


@contextmanager
def _told() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, where this is the main thread, which alone may ask for signals."""
    told = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set()) if main else None
    try:
        yield told
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _train(recipe: Recipe, place: Path, nproc: int, at_once: int, told: threading.Event | None, **options: Any) -> str:
    """Train one run as far as the time allows; returns why it stopped, "" if it is over."""
    try:
        if nproc > 1 or at_once > 1:
            result = launch(recipe, place, nproc, beside=at_once, told=told, **options)
        else:
            result = train(recipe, place, **options)
    except DivergedError:
        return ""
    except LaunchError:
        if _finished(place, recipe) is None:
            raise
        return ""
    return result.reason


class _Sparse:
    """Passes on one line a minute."""

    def __init__(self, name: str, seed: int, say: Callable[[str], None]) -> None:
        self.start, self.say, self.last = f"{name}, seed {seed}: ", say, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self.last >= QUIET:
            self.last = time.monotonic()
            self.say(self.start + line)
