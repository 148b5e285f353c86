"""Training in processes of their own that die, or are told to stop, at a step of our choice.

The processes are forked from one server that has the library loaded already. What a fault replaces is a function of
torch or of the operating system, never one of the library.
"""

import functools
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from resid.training import cli

TIMEOUT = 60.0


@dataclass(frozen=True)
class Fault:
    """ "signal" is sent to the process at "moment": "step" (the so-manieth of this process), "half" (a checkpoint, the
    so-manieth, is half written), "rename" (it is written and not yet renamed) or "leave" (it leaves the other ranks,
    the so-manieth time, with something alive that exchanged gradients). Or its clock jumps ahead by 400 seconds: "jump"
    (at the so-manieth step)."""

    moment: str
    number: int
    signal: int = signal.SIGKILL

    def install(self):
        """In the process that is to suffer it."""
        seen = iter(range(1, 10**6))

        def strike(first=lambda: None):
            if next(seen) == self.number:
                first()
                if self.moment == "jump":
                    clock = time.monotonic
                    time.monotonic = lambda: clock() + 400
                else:
                    os.kill(os.getpid(), self.signal)

        if self.moment in ("step", "jump"):
            step = torch.optim.SGD.step

            @functools.wraps(step)
            def stepping(*arguments, **more):
                strike()
                return step(*arguments, **more)

            torch.optim.SGD.step = stepping
            return
        if self.moment == "leave":
            destroy = dist.destroy_process_group

            def leaving(*arguments):
                if any(type(each) is DistributedDataParallel for each in gc.get_objects()):
                    strike()
                destroy(*arguments)

            dist.destroy_process_group = leaving
            return
        fsync = os.fsync

        def syncing(descriptor):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if "/.step-" in path and path.endswith(".tmp"):
                half = os.fstat(descriptor).st_size // 2
                strike((lambda: os.ftruncate(descriptor, half)) if self.moment == "half" else lambda: None)
            fsync(descriptor)

        os.fsync = syncing


def context():
    """Processes that start at once, with the library loaded."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["resid.training.cli", "torch._dynamo"])  # the latter is what optimisers import
    return found


def _main(arguments, environment, fault):
    os.environ.update(environment)
    torch.set_num_threads(1)
    if fault is not None:
        fault.install()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = cli.main(arguments)
    sys.exit(status)


def run(recipe, run_dir, ranks=1, fault=None, struck=0, save_every=2, more=()):
    """Exit status of each rank of one try; rank `struck` suffers the fault; more words for the command line.

    None is left running.
    """
    arguments = [recipe.to_json(), "--run-dir", str(run_dir), "--device", "cpu", *more]
    arguments += [] if save_every is None else ["--save-every", str(save_every)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(ranks):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        given = (arguments, own, fault if rank == struck else None)
        children.append(context().Process(target=_main, args=given, daemon=True))
    for child in children:
        child.start()
    ends = time.monotonic() + TIMEOUT
    for child in children:
        child.join(max(0.0, ends - time.monotonic()))
    late = [child for child in children if child.is_alive()]
    for child in late:
        child.kill()
        child.join()
    assert not late, f"{len(late)} of {ranks} ranks did not end in {TIMEOUT} s"
    return [child.exitcode for child in children]
