"""The table of a network, as papers print it: which layers, how many times, on what shape, with how many parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from resid._arguments import as_whole
from resid.errors import OptionError
from resid.nets._modes import evaluating
from resid.nets.blocks import is_block

__all__ = ["ShapeRow", "ShapeTable", "shape_table"]


@dataclass(frozen=True)
class ShapeRow:
    """Consecutive parts of a network that are alike.

    Attributes:
        name: of the first, and of the last where there are several.
        layers: the convolutions and linear layers in each.
        count: how many parts.
        shape: of what comes out, without the batch.
        parameters: trained ones, of all parts together.
    """

    name: str
    layers: str
    count: int
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class ShapeTable:
    """The rows of `shape_table`; `str` gives a table of text.

    Attributes:
        image: shape of one input.
        rows: a `ShapeRow` for equal parts in a row.
        convolutions: how many there are.
    """

    image: tuple[int, ...]
    rows: tuple[ShapeRow, ...]
    convolutions: int

    @property
    def parameters(self) -> int:
        """All trained parameters."""
        return sum(row.parameters for row in self.rows)

    def cells(self) -> list[tuple[str, str, str, str]]:
        """Return part, layers, shape and parameters of each row, as text."""
        return [(row.name, _times(row), _product(row.shape), f"{row.parameters:,}") for row in self.rows]

    def __str__(self) -> str:
        head = ("part", "layers", "output", "parameters")
        last = ("all", f"{self.convolutions} convolutions", "", f"{self.parameters:,}")
        lines = [head, ("input", "", _product(self.image), ""), *self.cells(), last]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join(
            "  ".join(
                [*(text.ljust(w) for text, w in zip(line[:3], widths, strict=False)), line[3].rjust(widths[3])]
            ).rstrip()
            for line in lines
        )


def shape_table(
    model: nn.Module, image: tuple[int, ...] = (3, 32, 32), blocks: tuple[type[nn.Module], ...] | None = None
) -> ShapeTable:
    """Tabulate the parts of a network, from one forward pass on an image of zeros.

    The parts are the modules of the types in `blocks`, and whatever lies beside them and has none of them inside: a
    stem, a transition, a head. They stand in the order in which they are called; equal neighbors share a row. What
    the network does after its last part, and parameters of no part, are a row "rest". The network is left as it was.

    Args:
        model: any network.
        image: shape of one image, (channels, height, width).
        blocks: types that are shown as one part each; default those that `is_block` of `resid.nets.blocks` knows.

    Raises:
        OptionError: `image` is not made of positive integers.

    Example:
        >>> from resid.nets.allconv import AllConvResNet
        >>> print(shape_table(AllConvResNet(blocks=2, widths=(4, 8, 16))))
        part        layers                               output        parameters
        input                                            3 x 32 x 32
        stem        3x3, 3 to 4                          4 x 32 x 32          108
        stages.0.0  [3x3, 4 to 8; 3x3, 8 to 8]           8 x 32 x 32          864
        stages.0.1  [3x3, 8 to 8; 3x3, 8 to 8]           8 x 32 x 32        1,152
        stages.1.0  [3x3, 8 to 16, half; 3x3, 16 to 16]  16 x 16 x 16       3,456
        stages.1.1  [3x3, 16 to 16; 3x3, 16 to 16]       16 x 16 x 16       4,608
        rest                                             10                     0
        all         9 convolutions                                         10,188
    """
    sizes = tuple(as_whole(n) or 0 for n in image)
    if not sizes or min(sizes) < 1:
        raise OptionError(f"image = {image!r}: positive integers, (channels, height, width), are needed")
    chosen = is_block if blocks is None else lambda module: isinstance(module, blocks)
    outputs, last = _shapes(model, dict(_parts(model, chosen)), sizes)
    seen: set[int] = set()
    single = []
    for name, (part, shape) in outputs.items():
        new = {id(p): p.numel() for p in part.parameters() if p.requires_grad and id(p) not in seen}
        seen |= new.keys()
        single.append(ShapeRow(name, _layers(part), 1, shape, sum(new.values())))
    rows = []
    for _, equal in groupby(single, key=lambda row: (row.layers, row.shape, row.parameters)):
        same = list(equal)
        name = same[0].name if len(same) == 1 else f"{same[0].name} - {same[-1].name}"
        rows.append(ShapeRow(name, same[0].layers, len(same), same[0].shape, sum(row.parameters for row in same)))
    rest = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in seen)
    if rest or not rows or rows[-1].shape != last:
        rows.append(ShapeRow("rest", "", 1, last, rest))
    return ShapeTable(sizes, tuple(rows), sum(isinstance(m, nn.Conv2d) for m in model.modules()))


def _parts(model: nn.Module, chosen: Callable[[nn.Module], bool], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the parts, from the top down."""
    for own, child in model.named_children():
        whole = f"{name}.{own}" if name else own
        if isinstance(child, nn.Identity):
            continue
        called = not isinstance(child, (nn.ModuleList, nn.ModuleDict))  # which are never called themselves
        if chosen(child) or (called and not any(map(chosen, child.modules()))):
            yield whole, child
        else:
            yield from _parts(child, chosen, whole)


def _shapes(
    model: nn.Module, parts: dict[str, nn.Module], image: tuple[int, ...]
) -> tuple[dict[str, tuple[nn.Module, tuple[int, ...]]], tuple[int, ...]]:
    """Part and shape of its output by name, in the order of the calls, and the shape of the network's output."""
    outputs: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            outputs.setdefault(name, (module, tuple(output.shape[1:])))

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in parts.items()]
    first = next(model.parameters(), torch.zeros(()))
    try:
        with evaluating(model):
            output = model(first.new_zeros(1, *image))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, tuple(output.shape[1:])


def _layers(part: nn.Module) -> str:
    """The convolutions and linear layers of a part, in their order."""
    texts = []
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            kernel = "x".join(map(str, module.kernel_size))
            stride = {1: "", 2: ", half"}.get(max(module.stride), f", 1/{max(module.stride)}")
            texts.append(f"{kernel}, {module.in_channels} to {module.out_channels}{stride}")
        elif isinstance(module, nn.Linear):
            texts.append(f"linear, {module.in_features} to {module.out_features}")
    return "; ".join(texts)


def _times(row: ShapeRow) -> str:
    several = ";" in row.layers
    text = f"[{row.layers}]" if several else row.layers
    return f"{text} x {row.count}" if row.count > 1 else text


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
