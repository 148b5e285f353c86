"""What a training run costs: arithmetic from the network, time from measured steps, hours from stated assumptions.

`python -m resid.training.cost imagenet-modern --batches 64,128,256,512` times training steps on synthetic images, on
the GPU if there is one, for several batches; with torchrun before it, on all ranks. The loop is that of
`resid.training.trainer`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resid._arguments import as_whole
from resid.data.batches import Batch
from resid.errors import OptionError
from resid.training.checkpoint import RunFolder
from resid.training.engine import Engine, Stop, numerics
from resid.training.feeds import Source
from resid.training.ranks import Ranks, join_ranks
from resid.training.recipe import NETWORKS, Recipe
from resid.training.recipes import RECIPES
from resid.training.step_graph import WARM_UP
from resid.training.trainer import loop

__all__ = [
    "EFFICIENCY",
    "PEAKS",
    "Flops",
    "Hours",
    "StepClock",
    "Timing",
    "count_flops",
    "hours",
    "peak",
    "sweep",
    "time_steps",
]

#: Dense peak in TFLOP/s by a part of the device's name and by precision, the first part that fits; NVIDIA, data sheets
#: and architecture white papers of A100 and H100. The H200 has the processor of the H100 SXM.
PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"bf16": 756.0, "tf32": 378.0, "fp32": 51.2},
    "H100 80GB HBM3": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H200": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
}
#: Assumed, not measured: the share of the speed of so many single cards that they reach together.
EFFICIENCY: dict[int, float] = {1: 1.0, 8: 0.95, 64: 0.85}


class Flops(NamedTuple):
    """Floating-point operations for one image, additions and multiplications of convolutions and products."""

    forward: int
    training: int


@dataclass(frozen=True)
class Timing:
    """Measured training steps: median seconds of one of `batch` images over all ranks.

    memory: most bytes that torch had allocated on the GPU of rank 0, None on a CPU.
    """

    device: str
    precision: str
    ranks: int
    batch: int
    seconds: float
    memory: int | None

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return self.batch / self.seconds


class Hours(NamedTuple):
    """Hours of `cards` cards together, each alone, and the assumed efficiency."""

    cards: int
    wall: float
    card: float
    efficiency: float


def count_flops(recipe: Recipe) -> Flops:
    """Operations of forward pass, and of forward and backward pass, counted by torch without computing anything.

    Example:
        >>> count_flops(RECIPES["hardt-ma-cifar10"]).forward / 1e9 > 3.5
        True
    """
    return _count(recipe.network, recipe.options, recipe.image_shape, recipe.class_count)


@functools.cache
def _count(network: str, options: tuple[tuple[str, Any], ...], shape: tuple[int, int, int], classes: int) -> Flops:
    with torch.device("meta"):
        model = NETWORKS[network](classes=classes, channels=shape[0], **dict(options))
        image = torch.empty(1, *shape)
        label = torch.zeros(1, dtype=torch.long)
    for module in list(model.modules()):  # torch counts none of batch norm, and takes its time to do nothing for it
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(image), label)
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops())


def peak(device: str, precision: str) -> float | None:
    """Dense peak of a device by its name, in FLOP/s, or None where it is not known; see `PEAKS`.

    Example:
        >>> peak("NVIDIA H200", "bf16"), peak("CPU (x86_64, 2 cores)", "fp32")
        (989400000000000.0, None)
    """
    for name, of in PEAKS.items():
        if name in device:
            return of[precision] * 1e12
    return None


class StepClock:
    """Moments on the clock of a device, which nothing waits for, as in a training."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[Any] = []

    def note(self) -> None:
        """This moment: on a GPU, when it has done all that it was given before."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each moment to the next."""
        pairs = pairwise(self._moments)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


class _Synthetic:
    """One batch of random images, over and over; the moment before each step is kept, on the clock of the device."""

    def __init__(self, recipe: Recipe, ranks: Ranks, steps: int) -> None:
        self.steps, self.clock = steps, StepClock(ranks.device)
        share = len(range(ranks.rank, recipe.batch, ranks.count))
        generator = torch.Generator().manual_seed(ranks.rank)
        images = torch.randn(share, *recipe.image_shape, generator=generator)
        labels = torch.randint(recipe.class_count, (share,), generator=generator)
        moved = images.to(ranks.device).contiguous(memory_format=recipe.layout)
        self._batch = Batch(moved, labels.to(ranks.device), recipe.batch)

    def epoch(self, epoch: int, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        for _ in range(self.steps):
            self.clock.note()
            yield self._batch
        self.clock.note()

    def plain(self) -> Iterator[Batch]:
        return iter(())


def time_steps(
    recipe: Recipe, batch: int, device: str | torch.device | None = None, steps: int = 20, warmup: int = 5
) -> Timing:
    """Time training steps of a recipe on synthetic images that are on the device already; the rate is zero.

    Args:
        batch: over all ranks. device: default a GPU if there is one. steps: that count. warmup: before them, at least
            one, in which kernels are chosen, compiled and recorded.

    Raises:
        OptionError: numbers of no use. torch.OutOfMemoryError: the batch is too large.
    """
    for name, value in (("batch", batch), ("steps", steps), ("warmup", warmup)):
        if (whole := as_whole(value)) is None or whole < 1:
            raise OptionError(f"{name} = {value!r}: an integer of at least 1 is needed")
    if recipe.graph and warmup <= WARM_UP:
        raise OptionError(f"warmup = {warmup}: more than {WARM_UP} are needed where a step is recorded")
    timed = recipe.replace(
        batch=batch, epochs=1, steps=None, lr=0.0, schedule="constant", milestones=(), decay_every=0, warmup=0,
        check_training=0, probe_epochs=(),
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as place,
        join_ranks(device) as ranks,
        numerics(timed.precision, ranks.device),
        Stop() as stop,
    ):
        folder = RunFolder(place, timed)
        if ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ranks.device)
        feed = _Synthetic(timed, ranks, warmup + steps)
        engine = Engine(timed, ranks, folder, source=Source(feed, feed))
        with folder.opened(ranks.first), engine.stream():
            loop(engine, stop)
        taken = feed.clock.seconds()[warmup:]
        cuda = ranks.device.type == "cuda"
        name = torch.cuda.get_device_name(ranks.device) if cuda else "CPU"
        memory = torch.cuda.max_memory_allocated(ranks.device) if cuda else None
        return Timing(name, recipe.precision, ranks.count, batch, statistics.median(taken), memory)


def sweep(
    recipe: Recipe, batches: Sequence[int], device: str | torch.device | None = None, **options: int
) -> list[Timing]:
    """`time_steps` for several batches, the smallest first, until one does not fit into memory.

    Args:
        options: of `time_steps`.
    """
    found: list[Timing] = []
    for batch in sorted(batches):
        try:
            found.append(time_steps(recipe, batch, device, **options))
        except torch.OutOfMemoryError:
            break
    return found


def hours(images: float, images_per_second: float, efficiency: Mapping[int, float] = EFFICIENCY) -> tuple[Hours, ...]:
    """Hours to train on so many images, from the speed of one card.

    Args:
        efficiency: cards -> share of the speed of so many single cards, an assumption.

    Example:
        >>> hours(3.6e6, 1000, {1: 1.0, 8: 0.5})
        (Hours(cards=1, wall=1.0, card=1.0, efficiency=1.0), Hours(cards=8, wall=0.25, card=2.0, efficiency=0.5))
    """
    alone = images / images_per_second / 3600
    return tuple(Hours(cards, alone / (cards * share), alone / share, share) for cards, share in efficiency.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m resid.training.cost", description="Time training steps of a recipe."
    )
    parser.add_argument("recipe", choices=sorted(RECIPES), metavar="recipe", help="its name; resid-train --list")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    parser.add_argument("--batches", default="32", help="images a step over all ranks, separated by commas")
    parser.add_argument("--device", help="cpu or cuda; default a GPU if there is one")
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    given = parser.parse_args(arguments)
    recipe = RECIPES[given.recipe].with_settings(given.set)
    flops = count_flops(recipe).training
    batches = [int(part) for part in given.batches.split(",")]
    for timing in sweep(recipe, batches, given.device, steps=given.steps, warmup=given.warmup):
        rate = timing.images_per_second
        best = peak(timing.device, timing.precision)
        line = {**dataclasses.asdict(timing), "images_per_second": rate, "flops_per_image": flops}
        if best is not None:
            line["fraction_of_peak"] = rate * flops / (best * timing.ranks)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
