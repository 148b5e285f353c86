"""What a training run costs: arithmetic from the network, time from measured steps, hours from stated assumptions.

`python -m resid.training.cost imagenet-modern --batches 64,128,256,512` times training steps on synthetic images, on
the GPU if there is one, for several batches; with torchrun before it, on all ranks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resid._arguments import as_whole
from resid.data.batches import Batch
from resid.errors import OptionError
from resid.training.engine import Engine, numerics
from resid.training.feeds import Source
from resid.training.ranks import join_ranks
from resid.training.recipe import NETWORKS, Recipe
from resid.training.recipes import RECIPES

__all__ = [
    "EFFICIENCY",
    "PEAKS",
    "Flops",
    "Hours",
    "Timing",
    "count_flops",
    "hours",
    "peak",
    "step_seconds",
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


class Hours(NamedTuple):
    """Hours of `cards` cards together, each alone, and the assumed efficiency."""

    cards: int
    wall: float
    card: float
    efficiency: float


@dataclass(frozen=True)
class Timing:
    """Measured training steps: mean seconds of one of `batch` images over all `ranks`, on a device, in a precision."""

    device: str
    precision: str
    ranks: int
    batch: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images a second over all ranks."""
        return self.batch / self.seconds


def count_flops(recipe: Recipe) -> Flops:
    """Count operations of the forward pass, and of forward and backward pass, by torch without computing anything.

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
    """Look up the dense peak of a device by its name, in FLOP/s; None where it is not known, see `PEAKS`.

    Example:
        >>> peak("NVIDIA H200", "bf16"), peak("CPU (x86_64, 2 cores)", "fp32")
        (989400000000000.0, None)
    """
    return next((of[precision] * 1e12 for name, of in PEAKS.items() if name in device), None)


def step_seconds(step: Callable[[], None], device: torch.device, steps: int, warmup: int) -> float:
    """Measure the mean seconds of a step.

    Args:
        step: what is timed.
        device: whose work has to be done at both ends of the time.
        steps: number of steps that count.
        warmup: steps before them, in which kernels are chosen and compiled.
    """
    started = 0.0
    for number in range(warmup + steps + 1):
        if number in (warmup, warmup + steps):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter() - started
        if number < warmup + steps:
            step()
    return started / steps


def time_steps(
    recipe: Recipe, batch: int, device: str | torch.device | None = None, steps: int = 20, warmup: int = 5
) -> Timing:
    """Time training steps of a recipe on synthetic images that are on the device already; the rate is zero.

    Args:
        recipe: whose network, optimiser and precision count.
        batch: images a step over all ranks.
        device: default a GPU if there is one.
        steps: number of steps that count.
        warmup: steps before them, at least one.

    Raises:
        OptionError: batch, steps or warmup is no integer of at least 1.
        RuntimeError: the batch is too large for the memory.
    """
    for name, value in (("batch", batch), ("steps", steps), ("warmup", warmup)):
        if (whole := as_whole(value)) is None or whole < 1:
            raise OptionError(f"{name} = {value!r}: an integer of at least 1 is needed")
    timed = recipe.replace(
        batch=batch, epochs=None, steps=1, lr=0.0, schedule="constant", milestones=(), decay_every=0, warmup=0,
        probe_epochs=(),
    )  # fmt: skip
    with join_ranks(device) as ranks, numerics(timed.precision, ranks.device):
        share = len(range(ranks.rank, batch, ranks.count))
        generator = torch.Generator().manual_seed(ranks.rank)
        images = torch.randn(share, *timed.image_shape, generator=generator)
        labels = torch.randint(timed.class_count, (share,), generator=generator).to(ranks.device)
        data = Batch(images.to(ranks.device).contiguous(memory_format=timed.layout), labels, batch)
        feed: Any = SimpleNamespace(steps=1)
        engine = Engine(timed, ranks, source=Source(feed, feed))

        def step() -> None:
            engine.set_rate()
            engine.differentiate(data, probing=False)
            engine.update()

        with engine.running():
            seconds = step_seconds(step, ranks.device, steps, warmup)
        return Timing(str(engine.made_by["device"]), recipe.precision, ranks.count, batch, seconds)


def sweep(
    recipe: Recipe, batches: Sequence[int], device: str | torch.device | None = None, **options: int
) -> list[Timing]:
    """Call `time_steps` for several batches, the smallest first, until one does not fit into memory.

    Args:
        recipe: as there.
        batches: numbers of images.
        device: as there.
        options: `steps` and `warmup`.
    """
    timings: list[Timing] = []
    for batch in sorted(batches):
        try:
            timings.append(time_steps(recipe, batch, device, **options))
        except torch.OutOfMemoryError:
            break
    return timings


def hours(images: float, images_per_second: float, efficiency: Mapping[int, float] = EFFICIENCY) -> tuple[Hours, ...]:
    """Compute the hours that training on so many images takes, from the speed of one card.

    Args:
        images: number of images in all.
        images_per_second: of one card.
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
        rate, best = timing.images_per_second, peak(timing.device, timing.precision)
        line = {**dataclasses.asdict(timing), "images_per_second": rate, "flops_per_image": flops}
        if best is not None:
            line["fraction_of_peak"] = rate * flops / (best * timing.ranks)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
