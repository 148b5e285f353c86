"""One training loop for every experiment: on a CPU, on a GPU, or on several under torchrun.

A run is a function of its recipe, its device, the number of its ranks and, on the CPU, of their threads, whether it was
interrupted or not: on the CPU with one or two ranks bit for bit, with more, where the order of sums is not ours, and on
GPUs up to rounding. Another number of threads is another order of sums: it changes rounding, and what a chaotic
training makes of it. Each line of metrics says how many there were, by which version of torch and by which code
(`resid._closure.code_hash`). What a run leaves in its folder is described in `resid.training.checkpoint`.

Batch norm takes its statistics from each rank's share of a batch, so that with it the number of ranks matters; without
it, it changes rounding only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resid._arguments import as_whole
from resid.errors import InterruptedRunError, OptionError, ResidError
from resid.training._memory import reused_memory
from resid.training.checkpoint import CheckpointError, RunFolder
from resid.training.engine import DivergedError, Engine, Stop, numerics
from resid.training.ranks import join_ranks
from resid.training.recipe import Recipe
from resid.training.trackers import Tracker

__all__ = ["FAILED", "INTERRUPTED", "STOPPED", "DivergedError", "Result", "describe", "loop", "train"]

#: Exit status of a process that was told to stop, or whose time was up, and that has saved what it has
STOPPED = 75
#: Exit status of a process that another try would not help, after a bad recipe, say, or a loss that is not finite
FAILED = 65
#: Exit status of a process that something outside it has stopped, a data worker that was killed, say
INTERRUPTED = 1
#: Ranks ask each other every so many steps whether to stop.
ASK_EVERY = 8
#: Seconds between checkpoints at the ends of epochs, and inside longer epochs, unless `save_every` says otherwise.
SAVE_SECONDS, SAVE_INSIDE = 60.0, 300.0
#: Seconds between two lines of progress inside an epoch, and between two updates of status.json.
TELL_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """Of `train`: state "finished" or "stopped", and why; steps done; a dictionary of metrics for each epoch."""

    folder: Path
    state: str
    reason: str
    step: int
    metrics: list[dict[str, Any]]

    def weights(self) -> dict[str, Tensor]:
        """The final weights of a finished run, for `load_state_dict`."""
        found: dict[str, Tensor] = torch.load(self.folder / "weights.pt", map_location="cpu", weights_only=True)
        return found


def train(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    device: str | torch.device | None = None,
    max_seconds: float | None = None,
    save_every: int | None = None,
    keep: int = 2,
    data_folder: str | Path | None = None,
    tracker: Tracker | None = None,
    say: Callable[[str], None] | None = None,
    workers: int | None = None,
    background_saves: bool = False,
) -> Result:
    """Train as the recipe says, going on from the last checkpoint in `run_dir` if there is one.

    metrics.jsonl gets a line for each epoch: step, loss and error on the augmented training batches as they came, loss
    and error on the test images after the epoch, learning rate, mean norm of the weights, seconds, images a second, the
    device, and where the recipe asks for it the gradient ratios of the blocks at the first step of the epoch, output
    over input, and of blocks x + F(x) the norm of F(x) over that of x, "branches". Errors are fractions, of the files
    that can be read; where there are more than five classes the test has its top-5 error, too. SIGTERM and
    `max_seconds` save and return a result whose state is "stopped". While it trains, status.json has step, steps,
    images a second and the seconds left without those of tests, as they were a minute ago at most.

    Args:
        recipe: what to train. run_dir: folder of this run alone. device: default a GPU if there is one.
        max_seconds: after which to save and stop. save_every: steps between checkpoints; default the first end of an
            epoch after a minute, and every five minutes of a longer epoch. keep: checkpoints to keep. data_folder: of
            the official files. tracker: gets every line, too, on rank 0. say: called with a line of text for each
            epoch, and for each minute of a longer one, on rank 0. workers: processes that read files for this rank.
            background_saves: checkpoints inside the run are written while it goes on, see `resid.training.checkpoint`.

    Raises:
        OptionError: the recipe does not suit the device or the number of ranks.
        resid.data.official.DataFileError: the data are not there.
        OptionError: max_seconds, save_every or keep of no use, or nothing can be written to the folder.
        RecipeMismatchError: the folder has a run of another recipe.
        BusyError: another process trains there.
        DivergedError: the loss is not finite.
        CheckpointError: a file cannot be written.
    """
    check_times(max_seconds, save_every)
    folder = RunFolder(run_dir, recipe, keep)
    with (
        join_ranks(device) as ranks,
        folder.opened(ranks.first),
        numerics(recipe.precision, ranks.device),
        reused_memory() if ranks.device.type == "cpu" else nullcontext(),
        Stop(max_seconds) as stop,
    ):
        try:
            engine = Engine(recipe, ranks, folder, data_folder, workers)
            try:
                with engine.stream():
                    return loop(engine, stop, save_every, tracker, say, background_saves)
            finally:
                engine.source.close()
        except InterruptedRunError:  # another try may well help
            raise
        except ResidError as error:
            if ranks.first:
                _report(folder, error)
            raise


def check_times(max_seconds: float | None, save_every: int | None) -> None:
    """Refuse times that a run could not stop by, or save by.

    Raises:
        OptionError: max_seconds is negative or no number; save_every is no integer of at least 1.
    """
    if max_seconds is not None and not (isinstance(max_seconds, (int, float)) and max_seconds >= 0):  # NaN, too
        raise OptionError(f"max_seconds = {max_seconds!r}: a number of seconds is needed")
    if save_every is not None and ((whole := as_whole(save_every)) is None or whole < 1):
        raise OptionError(f"save_every = {save_every!r}: an integer of at least 1 is needed")


def loop(
    engine: Engine,
    stop: Stop,
    save_every: int | None = None,
    tracker: Tracker | None = None,
    say: Callable[[str], None] | None = None,
    background_saves: bool = False,
) -> Result:
    """From the last checkpoint of an engine to the end of its recipe, or until it is time to stop; see `train`."""
    engine.resume()
    recipe, ranks, folder = engine.recipe, engine.ranks, engine.folder
    per_epoch = engine.training.steps
    last = recipe.total_steps(per_epoch)
    if engine.step == last and folder.weights.exists():
        return Result(folder.path, "finished", "", last, folder.lines())
    if ranks.first:
        folder.begin(engine.step)
    reason, pulse = "", Pulse(engine, last, say)

    while engine.step < last and not reason:
        epoch, first = divmod(engine.step, per_epoch)
        engine.start_clock()
        for batch in engine.training.epoch(epoch, first, last - epoch * per_epoch):
            rate = engine.set_rate()
            probing = engine.step == epoch * per_epoch and epoch in recipe.probe_epochs
            engine.differentiate(batch, probing)
            engine.update()
            engine.step += 1
            inside = engine.step % per_epoch != 0 and engine.step < last
            if inside and save_every and engine.step % save_every == 0:
                engine.save(background_saves)
            if inside and (ranks.count == 1 or engine.step % ASK_EVERY == 0):
                reason, due = stop.agreed(ranks, not save_every and engine.unsaved() > SAVE_INSIDE)
                if due and not reason:
                    engine.save(background_saves)
            if reason:
                break
            pulse.beat()
        else:
            line = engine.finish_epoch(epoch, rate)
            if ranks.first:
                folder.append(line)
                if tracker is not None:
                    tracker.log(engine.step, {k: v for k, v in line.items() if isinstance(v, (int, float))})
                if say is not None:
                    say(describe(line, -(-last // per_epoch)))
            pulse.begin_epoch()
            if engine.step < last:
                if engine.step % save_every == 0 if save_every else ranks.any(engine.unsaved() > SAVE_SECONDS):
                    engine.save(background_saves)
                reason, _ = stop.agreed(ranks)

    engine.save()
    if ranks.first:
        if not reason:
            folder.write_weights(engine.model.state_dict())
        folder.set_status("stopped" if reason else "finished", step=engine.step, reason=reason)
    ranks.any(False)  # nobody leaves before everything is written: torchrun ends the others when one leaves early
    return Result(folder.path, "stopped" if reason else "finished", reason, engine.step, folder.lines())


class Pulse:
    """What a long run says of itself between the lines of its epochs, on the rank that writes.

    Nothing waits for a GPU, whose work can be a moment behind the steps that are counted.

    Args:
        engine: which trains. last: step at which the run ends. say: gets a line for each minute without one.
    """

    def __init__(self, engine: Engine, last: int, say: Callable[[str], None] | None) -> None:
        self.engine, self.last, self.say = engine, last, say
        self._written = time.monotonic()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Count from here."""
        self._told = self._begun = time.monotonic()
        self._from = self.engine.step

    def beat(self) -> None:
        """A step is done: write and say what is due."""
        engine, now = self.engine, time.monotonic()
        if not engine.ranks.first or now - min(self._told, self._written) < TELL_SECONDS:
            return
        pace = (engine.step - self._from) / max(now - self._begun, 1e-9)
        images, left = pace * engine.recipe.batch, (self.last - engine.step) / pace
        if now - self._written >= TELL_SECONDS:
            self._written = now
            known = {"steps": self.last, "images_per_second": round(images, 1), "seconds_left": round(left)}
            with suppress(CheckpointError):  # what has to be written will say it
                engine.folder.set_status("running", step=engine.step, **known)
        epoch, inside = divmod(engine.step, engine.training.steps)
        if inside and engine.step < self.last and now - self._told >= TELL_SECONDS:
            self._told = now
            if self.say is not None:
                epochs = -(-self.last // engine.training.steps)
                where = f"in epoch {epoch + 1}/{epochs}: step {engine.step} of {self.last}"
                self.say(f"{where}, {images:,.0f} images/s, about {duration(left)} left")


def duration(seconds: float) -> str:
    """A time as one would say it.

    Example:
        >>> [duration(s) for s in (59.4, 61, 3600, 200_000)]
        ['59 s', '1 min', '1 h 0 min', '2 d 7 h']
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if not minutes:
        return f"{seconds:.0f} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def describe(line: dict[str, Any], epochs: int) -> str:
    """A line of metrics as text, "epoch 3/164 ..."."""
    first = ", ".join(line.get("broken_first", []))
    broken = f", {line['broken']} files cannot be read, see broken.json: {first}" if first else ""
    return (
        f"epoch {line['epoch']}/{epochs}, step {line['step']}: loss {line['loss']:.4f}, "
        f"error {100 * line['train_error']:.2f}% train, {100 * line['test_error']:.2f}% test, "
        f"rate {line['lr']:.3g}, {line['images_per_second']:,.0f} images/s"
    ) + broken


def _report(folder: RunFolder, error: ResidError) -> None:
    """Say in status.json why no further try would help; a full disk may keep us from it."""
    try:
        where = {"step": error.step, "epoch": error.epoch} if isinstance(error, DivergedError) else {}
        folder.set_status("failed", error=type(error).__name__, reason=str(error), **where)
    except CheckpointError:
        return
