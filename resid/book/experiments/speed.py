"""How many images a second the training loop passes through a network, beside a plain loop in PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from resid.ledger import Seeds
from resid.training.cost import Timing, count_flops, peak, step_seconds, time_steps
from resid.training.recipe import Recipe, build_network

__all__ = ["FAST", "Speed", "measure_speed", "plain_step_seconds", "speed_evidence"]

#: What ours has that the plain loop has not, on a GPU.
FAST = {"precision": "bf16", "channels_last": True, "compile": "default"}


@dataclass(frozen=True)
class Speed:
    """Seconds of a step: of the plain loop, and of ours."""

    plain: float
    ours: Timing

    @property
    def ratio(self) -> float:
        """Images a second, ours over plain."""
        return self.plain / self.ours.seconds


def plain_step_seconds(recipe: Recipe, device: str | torch.device, steps: int = 100, warmup: int = 20) -> float:
    """Mean seconds of a step of the loop that one writes first, on synthetic images that are on the device already.

    Nothing of PyTorch's settings is touched: on a GPU its convolutions may use TF32, its products may not.

    Args:
        recipe: of which network, batch and optimiser count. steps: that are timed, after `warmup` others.
    """
    network = build_network(recipe).to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.randn(recipe.batch, *recipe.image_shape, generator=generator).to(device)
    labels = torch.randint(recipe.class_count, (recipe.batch,), generator=generator).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )

    def step() -> None:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step_seconds(step, torch.device(device), steps, warmup)


def measure_speed(
    recipe: Recipe, seeds: Sequence[int], device: str | None = None, steps: int = 100, warmup: int = 20
) -> dict[int, Speed]:
    """The plain loop and ours, in turn, once for each seed, on a GPU if there is one; a CPU has no `FAST` way."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    fast = recipe.replace(**FAST) if torch.device(device).type == "cuda" else recipe
    found = {}
    for seed in seeds:
        plain = plain_step_seconds(recipe.replace(seed=seed), device, steps, warmup)
        found[seed] = Speed(plain, time_steps(fast.replace(seed=seed), recipe.batch, device, steps, warmup))
    return found


def speed_evidence(name: str, recipe: Recipe, found: dict[int, Speed]) -> Seeds:
    """Ratios, with the median images a second of ours and the share of the peak that it reaches."""
    ours = statistics.median(speed.ours.images_per_second for speed in found.values())
    first = next(iter(found.values())).ours
    told = f"{name} ({recipe.hash}), ratio of images a second; ours {ours:,.0f} on {first.device}"
    if (most := peak(first.device, first.precision)) is not None:
        told += f", {100 * ours * count_flops(recipe).training / most:.0f}% of its peak in {first.precision}"
    return Seeds([speed.ratio for speed in found.values()], list(found), told)
