"""Residual networks for images whose shortcuts span k convolutions, k = 1, 2, 3, ..., at equal numbers of parameters.

Li et al. 2016, Section 5.3.2 and Figure 9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid._arguments import as_depth, as_whole, check_option
from resid.errors import DepthError, OptionError

__all__ = ["ShortcutBlock", "ShortcutDepthResNet"]

SHORTCUTS = ("A", "B")


class ShortcutBlock(nn.Module):
    """x + F(x), F: batch norm, ReLU and a 3 x 3 convolution, k times.

    Where the shape changes, the shortcut keeps every second pixel and pads with zero channels ("A") or is a 1 x 1
    convolution of stride 2 with batch norm ("B").

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        length: k.
        stride: of the first convolution.
        shortcut: "A" or "B".
        leading: whether F begins with batch norm and ReLU; the stem in front of the first block has its own.
        batch_norm: without it F is ReLU and convolution, k times, and the last convolution starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int,
        stride: int = 1,
        shortcut: str = "A",
        leading: bool = True,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        layers: list[nn.Module] = []
        for i in range(length):
            width = inputs if i == 0 else outputs
            if i or leading:
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
            layers.append(nn.Conv2d(width, outputs, 3, stride=stride if i == 0 else 1, padding=1, bias=False))
        self.branch = nn.Sequential(*layers)
        self.project = None
        if shortcut == "B" and (stride > 1 or inputs != outputs):
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            norm = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
            self.project = nn.Sequential(convolution, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        out = self.branch(x)
        if self.project is not None:
            return self.project(x) + out
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return (F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x) + out


class ShortcutDepthResNet(nn.Module):
    """Depth 3 L + 2: three stages of L convolutions, grouped k to a block, so that k does not change the parameters.

    Stem 3 x 3 to `width` channels, batch norm, ReLU; stages of width, 2 width and 4 width channels; batch norm, ReLU,
    average, linear layer. The convolution that changes the shape is the first of a stage, for every k.

    Args:
        depth: 3 L + 2 with L divisible by `length`.
        length: k, convolutions of a block.
        width: channels of the first stage, 16 in the paper.
        channels: of the images.
        classes: of the output.
        shortcut: "A" or "B", that of `ShortcutBlock`; the paper does not say which.
        batch_norm: if not, there is no normalisation anywhere and the last convolution of every branch starts at zero,
            so that the network starts as the identity between stem and head.
        branch_scale: without batch norm, instead: all weights of the branches are those of the usual start times this
            factor. Small factors are what Theorem 2 is about, the neighbourhood of zero weights; where one factor of a
            branch is exactly zero and the others are not, there is no saddle.

    Raises:
        DepthError: a depth that cannot be grouped.
        OptionError: an unknown shortcut, or a scale that is no positive number or comes with batch norm.

    Example:
        >>> [sum(p.numel() for p in ShortcutDepthResNet(38, k).parameters()) for k in (1, 2, 3, 4)]
        [561370, 561370, 561370, 561370]
    """

    def __init__(
        self,
        depth: int = 110,
        length: int = 2,
        width: int = 16,
        channels: int = 3,
        classes: int = 10,
        shortcut: str = "A",
        batch_norm: bool = True,
        branch_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_option("shortcut", shortcut, SHORTCUTS)
        if branch_scale is not None and (batch_norm or not 0 < branch_scale < math.inf):
            raise OptionError(f"branch_scale = {branch_scale!r}: a positive number and batch_norm = False are needed")
        length, whole = as_depth("length", length), as_whole(depth)
        if whole is None or whole < 5 or (whole - 2) % 3 or (whole - 2) // 3 % length:
            raise DepthError(
                f"depth = {depth!r}, length = {length}: 3 L + 2 with L divisible by the length is needed, such as "
                f"{3 * length + 2} or {36 * length + 2}"
            )
        self.depth, self.length = whole, length
        stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        self.stem = nn.Sequential(*stem, *([nn.BatchNorm2d(width)] if batch_norm else []), nn.ReLU())
        blocks, inputs = [], width
        for stage in range(3):
            outputs = width * 2**stage
            for i in range((whole - 2) // 3 // length):
                stride = 2 if stage and i == 0 else 1
                blocks.append(ShortcutBlock(inputs, outputs, length, stride, shortcut, bool(stage or i), batch_norm))
                inputs = outputs
        self.stages = nn.Sequential(*blocks)
        last = [nn.BatchNorm2d(inputs)] if batch_norm else []
        self.head = nn.Sequential(*last, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head[-1].bias)  # type: ignore[arg-type]
        if not batch_norm:
            with torch.no_grad():
                for block in self.blocks():
                    for layer in block.branch if branch_scale is not None else [block.branch[-1]]:
                        if isinstance(layer, nn.Conv2d):
                            layer.weight.mul_(branch_scale or 0.0)

    def blocks(self) -> list[ShortcutBlock]:
        """List all blocks, from the input on."""
        return [module for module in self.modules() if isinstance(module, ShortcutBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, h, w) to logits (batch, classes)."""
        return self.head(self.stages(self.stem(x)))
