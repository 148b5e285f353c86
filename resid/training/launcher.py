"""Training in processes of its own, started from a notebook or a shell: torchrun, watched and tried again.

The launcher owns the retries: each try is a fresh torchrun with a rendezvous of its own, because torchrun's own
restarts can leave ranks with the addresses of the try before.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resid._arguments import as_whole
from resid.errors import OptionError, ResidError
from resid.training.checkpoint import RunFolder, read_status
from resid.training.engine import catch, release
from resid.training.ranks import LAUNCHER, as_device, usable_cpus
from resid.training.recipe import Recipe
from resid.training.trainer import Result, check_times

__all__ = ["LaunchError", "launch", "worker_command"]

#: Seconds that children have to save and leave; torchrun itself ends ranks half a minute after the first one died.
PATIENCE = 60.0
TOLD = "told to stop"
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)


class LaunchError(ResidError):
    """No try finished; `reasons` has one for each."""

    def __init__(self, message: str, reasons: list[str]) -> None:
        super().__init__(message)
        self.reasons = reasons


def worker_command(
    recipe: Recipe,
    run_dir: str | Path,
    nproc: int = 1,
    *,
    device: str | None = None,
    max_seconds: float | None = None,
    save_every: int | None = None,
    data_folder: str | Path | None = None,
    tracker: str | None = None,
    workers: int | None = None,
    background_saves: bool = False,
) -> list[str]:
    """The command of one try: torchrun on this machine, or plain Python for one process.

    Under Slurm, give torchrun its own options for several machines and the same words from `-m resid.training.cli` on.

    Example:
        >>> words = worker_command(Recipe(epochs=1), "runs/a", nproc=2)
        >>> words[1:5], words[-2:]
        (['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'], ['--run-dir', 'runs/a'])
    """
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", "--max-restarts=0"]
    start += ["--local-addr=127.0.0.1"]  # else ranks meet at the name of the host, which need not resolve
    options = {
        "--device": device, "--max-seconds": max_seconds, "--save-every": save_every, "--data": data_folder,
        "--tracker": tracker, "--workers": workers, "--run-dir": run_dir,
    }  # fmt: skip
    given = ["--background-saves"] if background_saves else []
    given += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [sys.executable, *(start if nproc > 1 else []), "-m", "resid.training.cli", recipe.to_json(), *given]


def launch(
    recipe: Recipe,
    run_dir: str | Path,
    nproc: int = 1,
    *,
    retries: int = 2,
    device: str | None = None,
    max_seconds: float | None = None,
    save_every: int | None = None,
    data_folder: str | Path | None = None,
    tracker: str | None = None,
    workers: int | None = None,
    background_saves: bool = False,
    say: Callable[[str], None] | None = print,
    beside: int = 1,
    told: threading.Event | None = None,
) -> Result:
    """Train in `nproc` processes on this machine until the run is finished or told to stop.

    When a process dies, all of them end and the run is tried again from its last checkpoint. What another try would
    not help is not tried again: a recipe that does not fit, a loss that is not finite, a full disk. The output of all
    processes is kept in log.txt. SIGTERM and Ctrl-C are passed on, and the processes save and end first; so does a
    run of one process when its launcher is killed.

    Args:
        recipe, run_dir, device, max_seconds, save_every, data_folder, workers, background_saves: of
            `resid.training.trainer.train`. nproc: processes, one for each GPU. retries: tries after the first.
        tracker: name, see `resid.training.trackers`. say: called with a line for each epoch, each minute of a longer
            one, and each failure.
        beside: so many runs share the CPUs. told: when it is set, the processes save and end, as after SIGTERM.

    Raises:
        LaunchError: no try finished; the message has the reason of each. RecipeMismatchError: of the folder.
        OptionError: nproc, retries or beside of no use.
    """
    for name, value, least in (("nproc", nproc, 1), ("retries", retries, 0), ("beside", beside, 1)):
        if (whole := as_whole(value)) is None or whole < least:
            raise OptionError(f"{name} = {value!r}: an integer of at least {least} is needed")
    check_times(max_seconds, save_every)
    as_device(device)
    folder = RunFolder(run_dir, recipe)
    folder.make()
    ends = None if max_seconds is None else time.monotonic() + max_seconds
    say = say or (lambda line: None)
    reasons: list[str] = []
    told = threading.Event() if told is None else told
    for number in range(retries + 1):
        if told.is_set():
            return Result(folder.path, "stopped", TOLD, read_status(folder.path).get("step", 0), folder.lines())
        left = None if ends is None else max(0.0, ends - time.monotonic())
        command = worker_command(
            recipe, run_dir, nproc, device=device, max_seconds=left, save_every=save_every, data_folder=data_folder,
            tracker=tracker, workers=workers, background_saves=background_saves,
        )  # fmt: skip
        before = _stamp(folder.path)
        code, tail = _run(command, folder.path / "log.txt", nproc * beside, say, told)
        status = read_status(folder.path) if _stamp(folder.path) != before else {}
        state = status.get("state")
        if state in ("finished", "stopped"):
            return Result(folder.path, state, status["reason"], status["step"], folder.lines())
        if code == 0:  # it was finished before
            return Result(folder.path, "finished", "", read_status(folder.path)["step"], folder.lines())
        if told.is_set():
            return Result(folder.path, "stopped", TOLD, read_status(folder.path).get("step", 0), folder.lines())
        reasons.append(status["reason"] if state == "failed" else _reason(code, tail))
        say(f"try {number + 1} of {retries + 1} failed: {reasons[-1]}")
        if state == "failed":
            break
    raise LaunchError(
        f"no try finished in {folder.path}, whose log.txt has the output: "
        + "; ".join(f"try {i}: {reason}" for i, reason in enumerate(reasons, 1)),
        reasons,
    )


def _run(
    command: list[str], log: Path, processes: int, say: Callable[[str], None], told: threading.Event
) -> tuple[int, str]:
    """Exit status and last lines of a try; lines about epochs are passed on as they come."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, usable_cpus() // processes)),
        **os.environ,
        LAUNCHER: str(os.getpid()),  # without which a run goes on unseen, and nobody else can have its folder
        "PYTHONUNBUFFERED": "1",
    }
    tail: deque[str] = deque(maxlen=200)
    with log.open("a") as written, log.open(errors="replace") as kept:
        kept.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt in the terminal is ours to pass on
        )  # fmt: skip
        with _passing_on(child, told):
            part, ended, patience = "", False, None
            while not ended:
                ended = child.poll() is not None
                if told.is_set() and not ended:
                    if patience is None:  # once: torchrun would take a second one for an order to leave its ranks alone
                        child.terminate()
                        patience = time.monotonic() + PATIENCE
                    elif time.monotonic() > patience:
                        child.kill()
                for line in kept:
                    part += line
                    if not (part.endswith("\n") or ended):
                        continue  # the rest of the line is to come
                    tail.append(part)
                    if part.startswith(("epoch ", "in epoch ")):
                        say(part.rstrip())
                    part = ""
                if not ended:
                    time.sleep(0.1)
    return child.returncode, "".join(tail)


@contextmanager
def _passing_on(child: subprocess.Popen[bytes], told: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `told`, which outlasts this try; the child does not outlive the context.

    A child that has not come as far as to catch signals dies of it, and that must not look like a try that failed. A
    second Ctrl-C does not wait.
    """

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and told.is_set():
            raise KeyboardInterrupt
        told.set()

    main = threading.current_thread() is threading.main_thread()
    before = catch(note) if main else {}
    try:
        yield
    finally:
        try:
            if child.poll() is None:
                child.terminate()
                child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            release(before)


def _stamp(path: Path) -> int:
    """When the status was written last."""
    file = path / "status.json"
    return file.stat().st_mtime_ns if file.exists() else 0


def _reason(code: int, tail: str) -> str:
    """Why a try failed: which rank died how, from torchrun's summary, or the last error in the output."""
    if found := ROOT_CAUSE.search(tail):
        return f"rank {found[1]} {_ended(int(found[2]))}"
    errors = re.findall(r"^(?:\[rank\d+\]: |resid-train: )?(\w[\w.]*(?:Error|Exception)\b.*)$", tail, re.MULTILINE)
    return f"the process {_ended(code)}" + (f": {errors[-1]}" if errors else "")


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"
