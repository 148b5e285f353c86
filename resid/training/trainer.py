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
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resid.errors import InterruptedRunError, ResidError
from resid.training._memory import reused_memory
from resid.training.checkpoint import CheckpointError, RunFolder
from resid.training.engine import DivergedError, Engine, numerics
from resid.training.options import RunOptions
from resid.training.progress import Bar, describe
from resid.training.ranks import join_ranks
from resid.training.recipe import Recipe
from resid.training.signals import Stop

__all__ = ["FAILED", "INTERRUPTED", "STOPPED", "DivergedError", "Result", "train"]

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


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Args:
        folder: of the run.
        state: "finished" or "stopped".
        reason: why it was stopped, else "".
        step: number of steps done.
        metrics: a dictionary for each epoch.
    """

    folder: Path
    state: str
    reason: str
    step: int
    metrics: list[dict[str, Any]]

    def weights(self) -> dict[str, Tensor]:
        """Read the final weights of a finished run, for `load_state_dict`."""
        state: dict[str, Tensor] = torch.load(self.folder / "weights.pt", map_location="cpu", weights_only=True)
        return state


def train(recipe: Recipe, run_dir: str | Path, options: RunOptions | None = None, **changes: Any) -> Result:
    """Train as the recipe says, going on from the last checkpoint in `run_dir` if there is one.

    metrics.jsonl gets a line for each epoch: step, loss and error on the augmented training batches as they came, loss
    and error on the test images after the epoch, learning rate, mean norm of the weights, seconds, images a second, the
    device, and where the recipe asks for it the gradient ratios of the blocks at the first step of the epoch, output
    over input, and of blocks x + F(x) the norm of F(x) over that of x, "branches". Errors are fractions, of the files
    that can be read; where there are more than five classes the test has its top-5 error, too. SIGTERM, Ctrl-C and
    `max_seconds` save and return a result whose state is "stopped". While it trains, status.json has step, steps,
    images a second and the seconds left, as they were a minute ago at most.

    Args:
        recipe: what to train.
        run_dir: folder of this run alone.
        options: how and where.
        changes: fields of `RunOptions`, which change `options`.

    Raises:
        OptionError: an option, or the recipe, does not suit this machine, or nothing can be written to the folder.
        resid.data.official.DataFileError: the data are not there.
        RecipeMismatchError: the folder has a run of another recipe.
        BusyError: another process trains there.
        DivergedError: the loss is not finite.
        CheckpointError: a file cannot be written.
    """
    options = (options or RunOptions()).changed(**changes)
    folder = RunFolder(run_dir, recipe, options.keep)
    with (
        join_ranks(options.device) as ranks,
        folder.opened(ranks.first),
        numerics(recipe.precision, ranks.device),
        reused_memory() if ranks.device.type == "cpu" else nullcontext(),
        Stop(options.max_seconds) as stop,
    ):
        try:
            engine = Engine(recipe, ranks, options.data_folder, options.workers)
            try:
                with engine.running():
                    return loop(engine, folder, stop, options)
            finally:
                engine.source.close()
        except InterruptedRunError:  # another try may well help
            raise
        except DivergedError as error:
            text = f"{error}: {folder.last_checkpoint()}"
            if ranks.first:
                _report(folder, error, text, step=error.step, epoch=error.epoch)
            raise DivergedError(text, error.step, error.epoch, error.rate) from None
        except ResidError as error:
            if ranks.first:
                _report(folder, error, str(error))
            raise


def loop(engine: Engine, folder: RunFolder, stop: Stop, options: RunOptions) -> Result:
    """Train from the last checkpoint of a folder to the end of the recipe, or until it is time to stop; see `train`."""
    recipe, ranks, save_every = engine.recipe, engine.ranks, options.save_every
    if (state := folder.load(ranks.device)) is not None:
        engine.load(state)
    per_epoch = engine.training.steps
    last = recipe.total_steps(per_epoch)
    epochs = -(-last // per_epoch)
    if engine.step == last and folder.weights.exists():
        return Result(folder.path, "finished", "", last, folder.lines())
    if ranks.first:
        folder.begin(engine.step)
    reason, saved = "", time.monotonic()

    def save() -> None:
        nonlocal saved
        state = engine.state()
        saved = time.monotonic()
        if ranks.first:
            folder.save(engine.step, state)

    def agreed(due: bool = False) -> tuple[str, bool]:
        """Why to stop, or "", and whether something is due on some rank; all ranks have to ask."""
        own = stop.wish()
        stops, due = ranks.agree(bool(own), due)
        return (own or "another rank has to stop") if stops else "", due

    say = options.say if ranks.first else None
    with Bar(say, recipe.batch, total=last, initial=engine.step) as bar:
        while engine.step < last and not reason:
            epoch, first = divmod(engine.step, per_epoch)
            bar.set_description_str(f"epoch {epoch + 1}/{epochs}", refresh=False)
            engine.start_clock()
            for batch in engine.training.epoch(epoch, first, last - epoch * per_epoch):
                rate = engine.set_rate()
                engine.differentiate(batch, engine.step == epoch * per_epoch and epoch in recipe.probe_epochs)
                engine.update()
                engine.step += 1
                if engine.step % per_epoch != 0 and engine.step < last:
                    bar.update(engine.step - bar.n)
                    due = bool(save_every and engine.step % save_every == 0)
                    if ranks.count == 1 or engine.step % ASK_EVERY == 0:
                        reason, late = agreed(not save_every and time.monotonic() - saved > SAVE_INSIDE)
                        due = due or late
                    if reason:
                        break
                    if due:
                        save()
                if ranks.first and (pace := bar.due(engine.step)) is not None:
                    with suppress(CheckpointError):  # what has to be written will say it
                        folder.set_status("running", step=engine.step, **pace)
            else:
                line = engine.finish_epoch(epoch, rate)
                if broken := ranks.gather(engine.source.broken()):
                    line |= folder.note_broken(broken, ranks.first)
                if ranks.first:
                    folder.append(line)
                if say is not None:
                    bar.clear()
                    say(describe(line, epochs))
                bar.begin_epoch(engine.step)
                if engine.step < last:
                    late = time.monotonic() - saved > SAVE_SECONDS
                    reason, late = agreed(engine.step % save_every == 0 if save_every else late)
                    if late and not reason:
                        save()

    save()
    if ranks.first:
        if not reason:
            folder.write_weights(engine.model.state_dict())
        folder.set_status("stopped" if reason else "finished", step=engine.step, reason=reason)
    ranks.agree(False)  # nobody leaves before everything is written: torchrun ends the others when one leaves early
    return Result(folder.path, "stopped" if reason else "finished", reason, engine.step, folder.lines())


def _report(folder: RunFolder, error: ResidError, reason: str, **where: int) -> None:
    """Say in status.json why no further try would help; a full disk may keep us from it."""
    with suppress(CheckpointError):
        folder.set_status("failed", error=type(error).__name__, reason=reason, **where)
