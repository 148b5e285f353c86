"""Which modules of a network are its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn

from resid.errors import OptionError

__all__ = ["find_blocks", "is_block"]

#: How a caller says which submodules are blocks.
Chooser = type | tuple[type, ...] | str | Callable[[str, nn.Module], bool]


def is_block(module: nn.Module) -> bool:
    """Say whether a module is a block: whether its class name contains "Block" or "Bottleneck"."""
    return any(word in type(module).__name__.lower() for word in ("block", "bottleneck"))


def find_blocks(model: nn.Module, blocks: Chooser | None = None) -> list[tuple[str, nn.Module]]:
    """List names and modules of the blocks of a model; blocks inside of blocks are left out.

    Args:
        model: any module.
        blocks: a type or types, a pattern of `fnmatch` for qualified names, or a function of name and module; default
            `is_block`.

    Raises:
        OptionError: nothing matches; the message lists the classes there are.

    Example:
        >>> [name for name, _ in find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "0")]
        ['0']
    """
    outermost: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in outermost)
        if name and not inside and _matches(blocks, name, module):
            outermost.append((name, module))
    if not outermost:
        classes = sorted({type(module).__name__ for module in model.modules()})
        raise OptionError(f"blocks = {blocks!r} matches no submodule; the model has {', '.join(classes)}")
    return outermost


def _matches(blocks: Chooser | None, name: str, module: nn.Module) -> bool:
    if blocks is None:
        return is_block(module)
    if isinstance(blocks, str):
        return fnmatchcase(name, blocks)
    if isinstance(blocks, (type, tuple)):
        return isinstance(module, blocks)
    if callable(blocks):
        return blocks(name, module)
    raise OptionError(f"blocks = {blocks!r}: a type, a pattern of names or a function is needed")


def quotient(top: float, bottom: float) -> float:
    """Divide two numbers >= 0: infinity where only the lower one is zero, NaN where both are."""
    return top / bottom if bottom else (math.inf if top else math.nan)
