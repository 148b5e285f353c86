"""Hardt & Ma 2016, Section 4.2: which layouts have 35.7 million parameters, and the paper's run in today's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from resid.book.experiments.counts import parameters
from resid.ledger import Seeds
from resid.nets.allconv import AllConvResNet
from resid.training.recipes import IMAGENET_IMAGES, IMAGENET_WIDTHS, RECIPES

__all__ = [
    "PRINTED",
    "Family",
    "Layout",
    "PaperRun",
    "count_layout",
    "families",
    "nearest_widths",
    "paper_run",
    "parameter_evidence",
]

#: What the paper prints, and by how much a count may differ from it and still be printed so.
PRINTED, ROUNDING = 35.7e6, 0.05e6
BLOCKS = (3, 4, 6, 3)
#: What the paper leaves open: kernel of the stem, whether the last layer is trained, and how a shortcut grows.
OPEN = tuple(product((7, 3), (False, True), (False, True)))


@dataclass(frozen=True)
class Layout:
    """Blocks and channels of a network of residual blocks of two 3 x 3 convolutions.

    Args:
        widths: of stem and stages.
        kernel: of the stem.
        trained_head: the last layer is.
        projections: shortcuts between unequal widths are 1 x 1 convolutions, not padded with zeros.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    kernel: int = 7
    trained_head: bool = False
    projections: bool = False

    def __str__(self) -> str:
        """In words."""
        head = "trained" if self.trained_head else "fixed"
        shortcut = "projections" if self.projections else "padding"
        return f"blocks {self.blocks}, widths {self.widths}, stem of {self.kernel}, {head} head, {shortcut}"


class Family(NamedTuple):
    """Layouts of one kind: how many were tried and fit, and the nearest of all with its parameters."""

    name: str
    tried: int
    fit: int
    nearest: Layout
    parameters: int


class PaperRun(NamedTuple):
    """700,000 updates as images, epochs, last learning rate, and images a second on each of 48 GPUs in a week."""

    images: int
    epochs: float
    last_rate: float
    images_per_second: float


def count_layout(
    blocks: Any,
    widths: Any,
    kernel: int = 7,
    trained_head: bool = False,
    projections: bool = False,
    classes: int = 1000,
    channels: int = 3,
) -> Any:
    """Trainable parameters of a `Layout`, by its formula; of many at once where blocks or widths hold arrays.

    Example:
        >>> count_layout((3, 4, 6, 3), (64, 64, 128, 256, 512))
        21095616
    """
    total = kernel**2 * channels * widths[0]
    for depth, inputs, outputs in zip(blocks, widths, widths[1:], strict=False):
        total = total + 9 * inputs * outputs + (2 * depth - 1) * 9 * outputs**2
        if projections:
            total = total + inputs * outputs * (inputs != outputs)
    return total + classes * widths[-1] if trained_head else total


def families(largest: int = 1024) -> tuple[Family, ...]:
    """Layouts that one might read into the paper, by kind, each with everything that it leaves open.

    Args:
        largest: width that is tried.
    """
    same = np.array([IMAGENET_WIDTHS])
    scaled = np.arange(64, 129, 2)[:, None] * np.array([[1, 1, 2, 4, 8]])
    depths = np.array(list(product(range(1, 9), repeat=4)))
    table = np.array([[16, 64, 128, 256, 512]])
    equal = np.arange(1, 13)[:, None] * np.ones((1, 4), dtype=int)
    rising = _rising_widths(largest)
    kinds = {
        "the 34-layer network's": (np.array([BLOCKS]), same),
        "all its widths times one factor, up to 2": (np.array([BLOCKS]), scaled),
        "other widths that never fall, in steps of 32": (np.array([BLOCKS]), rising),
        "its widths, other numbers of blocks, up to 8 a stage": (depths, same),
        "a stem of 16 and equal stages, as on CIFAR": (equal, table),
    }
    return tuple(_family(name, blocks, widths) for name, (blocks, widths) in kinds.items())


def _rising_widths(largest: int) -> np.ndarray:
    """(n, 5): a stem of 64 and widths that never fall, in steps of 32 from 64 on."""
    steps = np.arange(64, largest + 1, 32)
    found = np.array([w for w in product(steps, repeat=4) if w[0] <= w[1] <= w[2] <= w[3]])
    return np.concatenate([np.full((len(found), 1), 64), found], 1)


def _family(name: str, blocks: np.ndarray, widths: np.ndarray) -> Family:
    counts = np.array([count_layout(blocks.T, widths.T, *choice) for choice in OPEN])
    away = np.abs(counts - PRINTED)
    choice, i = np.unravel_index(int(away.argmin()), away.shape)
    depth, width = (tuple(map(int, rows[i % len(rows)])) for rows in (blocks, widths))
    nearest = Layout(depth, width, *OPEN[int(choice)])
    return Family(name, counts.size, int((away <= ROUNDING).sum()), nearest, int(counts[choice, i]))


def nearest_widths(largest: int = 1024) -> tuple[int, ...]:
    """Of the widths that never fall, in steps of 32, and make 35.7 million, those nearest to the 34-layer network's.

    Blocks, stem, head and shortcuts are those of the paper; the distance is the sum of the absolute
    logarithms of the ratios of widths.
    """
    widths = _rising_widths(largest)
    fit = widths[np.abs(count_layout(BLOCKS, widths.T) - PRINTED) <= ROUNDING]
    away = np.abs(np.log(fit / np.array(IMAGENET_WIDTHS))).sum(1)
    return tuple(map(int, fit[away.argmin()]))


def parameter_evidence(seeds: Sequence[int] = (0,)) -> Seeds:
    """Section 4.2: trainable parameters, in millions, of the network that "imagenet-paper" trains."""
    options = RECIPES["imagenet-paper"].network_options
    found = parameters(AllConvResNet, classes=1000, **options)
    return Seeds([found / 1e6] * len(seeds), seeds, f"{found:,} trainable parameters, widths {IMAGENET_WIDTHS}")


def paper_run(updates: int = 700_000, batch: int = 256, gpus: int = 48, seconds: float = 7 * 86_400) -> PaperRun:
    """The paper's run, if an update is a batch of one machine: 700,000 of 256 on 48 K40 in "about one week".

    Example:
        >>> paper_run(batch=6 * 256).epochs / paper_run().epochs
        6.0
    """
    images = updates * batch
    epochs = images / IMAGENET_IMAGES
    return PaperRun(images, epochs, 0.1 * 0.94 ** int(epochs / 2), images / seconds / gpus)
