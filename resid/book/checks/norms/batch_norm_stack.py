"""Stacks of preactivation bottlenecks with batch normalisation at initial weights, measured against the formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from resid._arguments import check_option
from resid.book.checks._worst import worst_of
from resid.ledger.evidence import Cases, Counterexample, Seeds
from resid.theory.norms import batch_norm_ratios, gradient_norm_ratios, layers_bound

__all__ = ["StackTrial", "bottleneck", "bottleneck_weights", "output_variance", "shrunk_weights", "stack_trial"]

#: As in the bottlenecks of the papers: the stream has four times the channels of the inner layers.
_EXPANSION = 4


@dataclass(frozen=True)
class StackTrial:
    """Ratios in/out (depth,) measured by backpropagation and predicted, and the variance of the stream (depth + 1,)."""

    measured: Tensor
    predicted: Tensor
    variance: Tensor

    @property
    def cases(self) -> Cases:
        """Relative error of the predicted ratio, worst block."""
        error = (self.predicted / self.measured - 1).abs()
        return Cases(len(error), worst_of(error), f"blocks of a stack of {len(error)}", statement="corrected")


def bottleneck_weights(width: int, generator: Generator, kernel: int = 1, fan: str = "in") -> list[Tensor]:
    """Three layers (out, in kernel^2) of a bottleneck for a stream of `width` channels, the middle one kernel x kernel.

    Normal with variance 2 over the number of inputs (fan="in") or of outputs ("out") of a unit, counting taps.
    """
    check_option("fan", fan, ("in", "out"))
    inner = width // _EXPANSION
    weights = []
    for c_in, c_out, taps in ((width, inner, 1), (inner, inner, kernel**2), (inner, width, 1)):
        units = taps * (c_in if fan == "in" else c_out)
        W = torch.randn(c_out, c_in * taps, generator=generator, dtype=torch.float64)
        weights.append(math.sqrt(2 / units) * W)
    return weights


def bottleneck(weights: list[Tensor], x: Tensor) -> Tensor:
    """x + W_3 r(BN(W_2 r(BN(W_1 r(BN(x)))))) for x (samples, n, n, channels); the middle layer pads circularly."""
    h = x
    for W in weights:
        flat = h.reshape(-1, h.shape[-1])
        h = functional.batch_norm(flat, None, None, training=True).relu().reshape(h.shape)
        reach = round(math.sqrt(W.shape[1] // h.shape[-1])) // 2
        taps = [h.roll((i, j), (1, 2)) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
        h = torch.cat(taps, -1) @ W.mT
    return x + h


def stack_trial(
    depth: int,
    generator: Generator,
    width: int = 64,
    shape: tuple[int, int] = (1024, 1),
    kernel: int = 1,
    fan: str = "in",
) -> StackTrial:
    """A stack of `depth` blocks on a standard normal stream, with standard normal gradients at its output.

    Args:
        depth: number of blocks.
        generator: of weights, inputs and gradients.
        width: channels of the stream, divisible by 4.
        shape: samples and side of the maps.
        kernel: of the middle layer.
        fan: see `bottleneck_weights`.
    """
    samples, side = shape
    blocks: list[Callable[[Tensor], Tensor]] = [
        partial(bottleneck, bottleneck_weights(width, generator, kernel, fan)) for _ in range(depth)
    ]
    x, g = (torch.randn(samples, side, side, width, generator=generator, dtype=torch.float64) for _ in range(2))
    measured = gradient_norm_ratios(blocks, x, lambda y: (y * g).sum(), direction="in/out")
    states = [x]
    for block in blocks:
        states.append(block(states[-1]))
    variance = torch.stack([s.reshape(-1, width).var(0, correction=0).mean() for s in states])
    added = (1 - 1 / math.pi) / (1 if fan == "in" else _EXPANSION)
    return StackTrial(measured, batch_norm_ratios(depth, added, direction="in/out"), variance)


def output_variance(seeds: Sequence[int], depth: int = 54, width: int = 64) -> Seeds:
    """Variance of the stream at the end of a stack over that at its start, at initial weights, with batch norm."""
    values = []
    for seed in seeds:
        trial = stack_trial(depth, torch.Generator().manual_seed(seed), width)
        values.append(float(trial.variance[-1] / trial.variance[0]))
    return Seeds(values, seeds, f"{depth} bottlenecks of {width} channels, variance at the end over that at the start")


def shrunk_weights(factor: float, generator: Generator, width: int = 64) -> tuple[Counterexample, float]:
    """A block of 1 x 1 layers whose first two are multiplied by `factor`: its deviation against Corollary 1's bound.

    Also returns the ratio after the change over that before.
    """
    weights = bottleneck_weights(width, generator)
    x, g = (torch.randn(1024, 1, 1, width, generator=generator, dtype=torch.float64) for _ in range(2))
    small = [factor * weights[0], factor * weights[1], weights[2]]
    before, after = (
        float(gradient_norm_ratios([partial(bottleneck, W)], x, lambda y: (y * g).sum(), direction="in/out"))
        for W in (weights, small)
    )
    what = f"a block with batch normalisation, two of three layers times {factor:g}: |ratio - 1| against the bound"
    bound = layers_bound(small, 1.0, "preactivation")
    return Counterexample(abs(after - 1), bound, "<=", what), after / before
