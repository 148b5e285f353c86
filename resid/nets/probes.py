"""Norms of gradients and of signals at the borders of blocks, taken from a training step as it happens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resid.nets.blocks import is_block, quotient

__all__ = ["GradientProbe", "blocks_of", "mean_weight_norm", "watch_gradients"]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """List the blocks of a network by name; of ProcResNet also the linear convolutions around them.

    Args:
        model: any network.
    """
    linear: list[nn.Module] = getattr(model, "linear_convolutions", list)()
    return {
        name: module
        for name, module in model.named_modules()
        if is_block(module) or any(module is convolution for convolution in linear)
    }


def _adds_to_stream(block: nn.Module) -> bool:
    """Whether a block of `blocks_of` is x + F(x), where the shape of x is kept."""
    return not isinstance(block, nn.Conv2d) and getattr(block, "shortcut", "identity") == "identity"


def _squared(x: Tensor) -> Tensor:
    """Squared norm in float64."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


class GradientProbe:
    """Squared norms of gradients at output and input of each block, over the whole batch; filled by `watch_gradients`.

    Of blocks that add a branch to their input, x + F(x) of the shape of x, those of F(x) and x, too. F(x) is what was
    added as computed: with a stream in bfloat16 what lies below its rounding is lost.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._squares: dict[tuple[int, str], Tensor] = {}
        self._signals: dict[str, tuple[Tensor, Tensor]] = {}

    def squares(self) -> Tensor:
        """Return (blocks, 2), float64: squared norms at the output and at the input, in the order of the calls.

        Of several ranks, each has its share of the batch: add before taking ratios.
        """
        rows = [[self._squares[i, side] for side in ("output", "input")] for i in range(len(self.names))]
        return torch.stack([torch.stack(row) for row in rows])

    def ratios(self, squares: Tensor | None = None) -> dict[str, float]:
        """Compute the norm of the gradient at the output over that at the input, by block, from the input on.

        Args:
            squares: sums of `squares` over ranks; default this probe's.
        """
        pairs = (self.squares() if squares is None else squares).tolist()
        return {name: math.sqrt(quotient(*pair)) for name, pair in zip(self.names, pairs, strict=True)}

    def signals(self) -> Tensor:
        """Return (blocks that add a branch, 2): squared norms of branch and input; of several ranks, add first."""
        rows = [torch.stack(pair) for pair in self._signals.values()]
        return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.float64)

    def branches(self, signals: Tensor | None = None) -> dict[str, float]:
        """Compute the norm of the branch over that of the input, by block, from the network's input on.

        Args:
            signals: sums of `signals` over ranks; default this probe's.
        """
        pairs = (self.signals() if signals is None else signals).tolist()
        values = [math.sqrt(branch / stream) if stream > 0 else math.nan for branch, stream in pairs]
        return dict(zip(self._signals, values, strict=True))

    def _watch(self, i: int, side: str, tensor: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            self._squares[i, side] = _squared(gradient)

        tensor.register_hook(keep)


@contextmanager
def watch_gradients(blocks: dict[str, nn.Module]) -> Iterator[GradientProbe]:
    """Record the gradient norms of blocks in a probe during a forward and backward pass within the context.

    The pass itself computes what it would have computed anyway; gradients of the network's own input, which it has not
    otherwise, are taken for a block that has this input.

    Args:
        blocks: modules by name.

    Yields:
        The probe.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(layer.weight)
        >>> with watch_gradients({"layer": layer}) as probe:
        ...     layer(torch.ones(3, 2)).sum().backward()
        >>> probe.ratios()
        {'layer': 1.0}
    """
    probe = GradientProbe()
    handles = []
    for name, block in blocks.items():

        def before(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> tuple[Tensor, ...]:
            x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            probe.names.append(name)
            probe._watch(len(probe.names) - 1, "input", x)
            return (x, *args[1:])

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            probe._watch(len(probe.names) - 1 - probe.names[::-1].index(name), "output", output)
            if _adds_to_stream(module) and args[0].shape == output.shape:
                x = args[0].detach()
                pair = (output.detach() - x, x)
                probe._signals[name] = _squared(pair[0]), _squared(pair[1])

        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def mean_weight_norm(model: nn.Module) -> Tensor:
    """Compute the mean Frobenius norm of the weights of all convolutions and linear layers, a scalar.

    Args:
        model: any network.
    """
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return torch.stack([torch.linalg.vector_norm(weight, dtype=torch.float64) for weight in weights]).mean()
