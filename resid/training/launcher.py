"""Training in processes of its own, started by torchrun from a notebook or a shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from resid.errors import ResidError
from resid.training.checkpoint import RunFolder
from resid.training.options import RunOptions
from resid.training.ranks import LAUNCHER, usable_cpus
from resid.training.recipe import Recipe
from resid.training.signals import Stop
from resid.training.trainer import Result

__all__ = ["LaunchError", "launch", "worker_command"]

#: Seconds that children have to save and leave; torchrun itself ends ranks half a minute after the first one died.
PATIENCE = 60.0
#: Lines of the output: a rank that died, in torchrun's words; the error that ended a process, in Python's or ours.
DIED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
ERROR = re.compile(r"^(?:\[rank\d+\]: |resid-train: )?(\w[\w.]*(?:Error|Exception)\b.*)$")


class LaunchError(ResidError):
    """A run has failed: a rank died more often than it may, or for a reason that another try would not help."""


def worker_command(recipe: Recipe, run_dir: str | Path, options: RunOptions) -> list[str]:
    """Return the command that trains: torchrun with `resid-train` for each rank.

    Under Slurm, give torchrun its own options for several machines and the same words from `-m resid.training.cli` on.

    Example:
        >>> words = worker_command(Recipe(epochs=1), "runs/a", RunOptions(nproc=2, device="cpu"))
        >>> words[4], words[-4:]
        ('--nproc-per-node=2', ['--run-dir', 'runs/a', '--device', 'cpu'])
    """
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.nproc}"]
    start += [f"--max-restarts={options.retries}"]
    start += ["--local-addr=127.0.0.1"]  # else ranks meet at the name of the host, which need not resolve
    words = options.changed(nproc=1, retries=2, max_seconds=None).words()
    if options.max_seconds is not None:  # counted from now on, whenever ranks start again
        words += ["--until", str(time.time() + options.max_seconds)]
    return [sys.executable, *start, "-m", "resid.training.cli", recipe.to_json(), "--run-dir", str(run_dir), *words]


def launch(
    recipe: Recipe, run_dir: str | Path, options: RunOptions | None = None, stop: Stop | None = None, **changes: Any
) -> Result:
    """Train in `nproc` processes on this machine until the run is finished or told to stop.

    When a process dies, torchrun ends the others and starts all of them again from the last checkpoint, `retries` times
    at most. What another try would not help is not tried again: a recipe that does not fit, a loss that is not finite.
    The output of all processes is kept in log.txt. SIGTERM and Ctrl-C are passed on, and the processes save and end
    first; so they do when the launcher is killed.

    Args:
        recipe: what to train.
        run_dir: folder of this run alone.
        options: how and where; default `RunOptions(say=print)`.
        stop: watched in place of the signals, by a thread for instance.
        changes: fields of `RunOptions`, which change `options`.

    Raises:
        LaunchError: the run has failed; the message has the reason.
        RecipeMismatchError: the folder has a run of another recipe.
        OptionError: an option does not suit this machine, or nothing can be written to the folder.
    """
    options = (options or RunOptions(say=print)).changed(**changes)
    folder = RunFolder(run_dir, recipe)
    folder.make()
    before = _stamp(folder)
    with nullcontext(stop) if stop is not None else Stop() as watched:
        code, reason = _run(worker_command(recipe, run_dir, options), folder, options, watched)
        wish = watched.wish()
    status, changed = folder.status(), _stamp(folder) != before
    state = status.get("state", "")
    if state in ("finished", "stopped") and (changed or code == 0):
        return Result(folder.path, state, status["reason"], status["step"], folder.lines())
    if state == "failed" and changed:
        reason = status["reason"]
    elif wish:  # they died of the signal before they could catch it
        return Result(folder.path, "stopped", wish, status.get("step", 0), folder.lines())
    raise LaunchError(f"the run in {folder.path}, whose log.txt has the output, has failed: {reason}")


def _run(command: list[str], folder: RunFolder, options: RunOptions, stop: Stop) -> tuple[int, str]:
    """Run torchrun; returns its exit status, and why a process died. Lines about epochs are passed on as they come."""
    say = options.say or (lambda line: None)
    environment = {
        "OMP_NUM_THREADS": str(max(1, usable_cpus() // (options.nproc * options.at_once))),
        **os.environ,
        LAUNCHER: str(os.getpid()),  # without which a run goes on unseen, and nobody else can have its folder
        "PYTHONUNBUFFERED": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or a second start can find the addresses of the first
    }
    died = error = part = ""
    log = folder.path / "log.txt"
    with log.open("a") as written, log.open(errors="replace") as output:
        output.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt in the terminal is ours to pass on
        )  # fmt: skip
        try:
            ended, deadline = False, None
            while not ended:
                ended = child.poll() is not None
                if deadline is None and not ended and stop.wish():
                    child.terminate()  # once: torchrun would take a second one for an order to leave its ranks alone
                    deadline = time.monotonic() + PATIENCE
                elif deadline is not None and time.monotonic() > deadline:
                    child.kill()
                for line in output:
                    part += line
                    if not (part.endswith("\n") or ended):
                        continue  # the rest of the line is to come
                    if part.startswith(("epoch ", "in epoch ")):
                        say(part.rstrip())
                    if match := ERROR.match(part):
                        error = f": {match[1]}"
                    if match := DIED.search(part):
                        died, error = f"rank {match[2]} {_ended(int(match[1]))}{error}", ""
                        say(died)
                    part = ""
                if not ended:
                    time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(PATIENCE)
                child.kill()
                child.wait()
    return child.returncode, died or f"torchrun {_ended(child.returncode)}{error}"


def _stamp(folder: RunFolder) -> int:
    """When the status was written last."""
    file = folder.path / "status.json"
    return file.stat().st_mtime_ns if file.exists() else 0


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"
