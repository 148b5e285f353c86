"""Processes of one training run: a lone one, or the ranks that torchrun started."""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from resid.errors import OptionError

__all__ = ["LAUNCHER", "Ranks", "as_device", "join_ranks", "under_torchrun", "usable_cpus"]

#: Environment variable with the number of the process that launched a run.
LAUNCHER = "RESID_LAUNCHER"


def usable_cpus() -> int:
    """Count the CPUs that this process may use, which under Slurm or in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def under_torchrun() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@dataclass(frozen=True)
class Ranks:
    """This process among `count`: its number, its device, and what all of them agree on."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def least(self, values: Tensor) -> Tensor:
        """Minimum over ranks, on every rank."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return which flags are set on any rank. The question travels by the CPU and does not wait for the device."""
        return tuple(map(bool, self._reduced(torch.tensor(flags, dtype=torch.int64), dist.ReduceOp.MAX).tolist()))

    def _reduced(self, values: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values

    def gather(self, own: dict[str, str]) -> dict[str, str]:
        """Join the dictionaries of all ranks in one, on every rank."""
        several = [own] * self.count
        if self.count > 1:
            dist.all_gather_object(several, own)
        return {key: value for each in several for key, value in each.items()}

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """Let the first rank of each machine go through the context alone, then the others."""
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        if self.count > 1 and not first:
            dist.barrier()
        yield
        if self.count > 1 and first:
            dist.barrier()

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give all ranks the buffers of rank 0, the running statistics of batch norm."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def as_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device of that name; default a GPU if there is one, else the CPU.

    Raises:
        OptionError: torch knows no such name, or this machine has no such device.

    Example:
        >>> as_device("cpu")
        device(type='cpu')
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise OptionError(f'device = {device!r}: "cpu", "cuda" or "cuda:0", say, is needed') from error
    if place.type not in ("cpu", "cuda"):
        raise OptionError(f"device = {str(device)!r}: training is for CPUs and for GPUs with CUDA")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        cuda = torch.backends.cuda.is_built()
        seen = f"torch sees {torch.cuda.device_count()} GPUs" if cuda else "this build of torch has no CUDA"
        raise OptionError(f"device = {str(device)!r}: {seen}")
    return place


@contextmanager
def join_ranks(device: str | torch.device | None = None, timeout: float = 600.0) -> Iterator[Ranks]:
    """Join the ranks of this run for the time of the context: by gloo on CPUs, by NCCL on GPUs.

    Args:
        device: default a GPU if there is one (that of the local rank), else the CPU.
        timeout: seconds that ranks wait for each other.

    Raises:
        OptionError: no such device, or none here.
    """
    place = as_device(device)
    if not under_torchrun():
        yield Ranks(0, 1, place)
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), place)
    except BaseException as error:
        chained: BaseException | None = error
        while chained is not None:
            traceback.clear_frames(chained.__traceback__)
            chained = chained.__context__
        raise
    finally:
        # What holds the group has to be gone before it: a DistributedDataParallel that is freed later, with Python's
        # lock held, waits for threads of the group that wait for this lock. Hence the frames above, cycles, and
        # `Engine.running`, which lets go of it where all went well.
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dist.destroy_process_group()
