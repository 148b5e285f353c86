"""The all-convolutional residual network of Hardt & Ma 2016, Section 4: no normalisation, one ReLU a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid.errors import OptionError
from resid.theory._check import as_depth, check_option

__all__ = ["AllConvBlock", "AllConvResNet"]

INITS = ("paper", "standard", "zero")


class AllConvBlock(nn.Module):
    """x + C_2 ReLU(C_1 x) with 3 x 3 convolutions; the stride is that of C_1.

    Where the shape changes x is averaged over stride x stride squares and padded with zero channels, half on each side.

    Args:
        inputs, outputs: channels, outputs - inputs even and not negative. stride: 1 or more.
        batch_norm: normalise before each convolution, which the paper does not do.

    Raises:
        OptionError: channels that cannot be padded evenly.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, batch_norm: bool = False) -> None:
        super().__init__()
        if outputs < inputs or (outputs - inputs) % 2:
            raise OptionError(f"inputs = {inputs}, outputs = {outputs}: outputs - inputs must be even and not negative")
        self.stride, self.padding = stride, (outputs - inputs) // 2
        self.norm1 = nn.BatchNorm2d(inputs) if batch_norm else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        branch: Tensor = self.conv2(self.norm2(F.relu(self.conv1(self.norm1(x)))))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return x + branch


class AllConvResNet(nn.Module):
    """Stem, stages of blocks (`AllConvBlock`), global average, and a random projection to the classes, not trained.

    The defaults are the rows of the paper's Table 1: 55 convolutions, 13,538,736 trainable parameters. The first block
    of every stage but the first halves the image.

    Args:
        classes: of the output. channels: of the images. blocks: per stage. widths: of the stem and of the stages.
        init: of the residual convolutions, k their kernel size and c their output channels: normal with standard
            deviation 1/(k^2 c) ("paper"), the 1/(k sqrt(c)) that the paper compares with ("standard"), or "zero".
        fixed_head: the last layer is random and not trained, as in the paper. batch_norm: see `AllConvBlock`.

    The paper does not say how stem and head are drawn: the stem is normal with variance 2/(k^2 c) and the head uniform
    with variance 1/inputs, as in the public code that its experiments start from.

    Raises:
        DepthError, OptionError: numbers or names of no use.

    Example:
        >>> net = AllConvResNet()
        >>> sum(p.numel() for p in net.parameters()), sum(isinstance(m, nn.Conv2d) for m in net.modules())
        (13538736, 55)
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        blocks: int = 9,
        widths: Sequence[int] = (16, 64, 128, 256),
        init: str = "paper",
        fixed_head: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_option("init", init, INITS)
        blocks = as_depth("blocks", blocks)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            first = AllConvBlock(inputs, outputs, 1 + (stage > 0), batch_norm)
            rest = (AllConvBlock(outputs, outputs, 1, batch_norm) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
        nn.init.normal_(self.stem.weight, std=math.sqrt(2 / (9 * widths[0])))
        for block in self.blocks():
            for convolution in (block.conv1, block.conv2):
                c = convolution.out_channels
                std = {"paper": 1 / (9 * c), "standard": 1 / (3 * math.sqrt(c)), "zero": 0.0}[init]
                nn.init.normal_(convolution.weight, std=std)
        head = torch.empty(classes, widths[-1]).uniform_(-1, 1) * math.sqrt(3 / widths[-1])
        self.head: Tensor
        if fixed_head:
            self.register_buffer("head", head)
        else:
            self.head = nn.Parameter(head)

    def blocks(self) -> list[AllConvBlock]:
        """All blocks, from the input on."""
        return [module for module in self.modules() if isinstance(module, AllConvBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, h, w) to logits (batch, classes)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return F.linear(x.mean((2, 3)), self.head)
