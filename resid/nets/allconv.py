"""The all-convolutional residual network of Hardt & Ma 2016, Section 4: no normalisation, one ReLU a block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid._arguments import as_depth, check_option
from resid.errors import OptionError

__all__ = ["AllConvBlock", "AllConvResNet"]

INITS = ("paper", "standard", "zero")


class AllConvBlock(nn.Module):
    """x + C_2 ReLU(C_1 x) with 3 x 3 convolutions; the stride is that of C_1.

    Where the shape changes x is averaged over stride x stride squares and padded with zero channels, half on each side.

    Args:
        inputs: channels of the input.
        outputs: channels of the output; outputs - inputs even and not negative.
        stride: 1 or more.
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
        """Map (batch, inputs, h, w) to (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        branch = self.conv2(self.norm2(F.relu(self.conv1(self.norm1(x)))))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return x + branch


class AllConvResNet(nn.Module):
    """Stem, stages of blocks (`AllConvBlock`), global average, and a random projection to the classes, not trained.

    The defaults are the rows of the paper's Table 1: 55 convolutions, 13,538,736 trainable parameters. The first block
    of every stage but the first halves the image. Of the variant for ImageNet the paper says only that it derives from
    the 34-layer residual network: `blocks=(3, 4, 6, 3), widths=(64, 64, 128, 256, 512), stem=(7, 2),
    strides=(2, 2, 2, 2)` is that network's layout, with a first block that halves the image in place of the pooling.

    Args:
        classes: of the output.
        channels: of the images.
        blocks: per stage, one number for all or one each.
        widths: of the stem and of the stages.
        stem: its kernel size, odd, and its stride.
        strides: of the first block of each stage, default 1 and then 2.
        init: of the residual convolutions, k their kernel size and c their output channels: normal with standard
            deviation 1/(k^2 c) ("paper"), the 1/(k sqrt(c)) that the paper compares with ("standard"), or "zero".
        fixed_head: the last layer is random and not trained, as in the paper.
        batch_norm: see `AllConvBlock`.

    The paper does not say how stem and head are drawn: the stem is normal with variance 2/(k^2 c) and the head uniform
    with variance 1/inputs, as in the public code that its experiments start from.

    Raises:
        DepthError: `blocks` or `strides` holds something that is no integer >= 1.
        OptionError: unknown `init`, an even stem, or not one number for each stage.

    Example:
        >>> net = AllConvResNet()
        >>> sum(p.numel() for p in net.parameters()), sum(isinstance(m, nn.Conv2d) for m in net.modules())
        (13538736, 55)
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        blocks: int | Sequence[int] = 9,
        widths: Sequence[int] = (16, 64, 128, 256),
        stem: Sequence[int] = (3, 1),
        strides: Sequence[int] | None = None,
        init: str = "paper",
        fixed_head: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_option("init", init, INITS)
        stages = len(widths) - 1
        depths = [as_depth("blocks", b) for b in (blocks if isinstance(blocks, Sequence) else [blocks] * stages)]
        halves = [1] + [2] * (stages - 1) if strides is None else [as_depth("strides", s) for s in strides]
        kernel, stride = stem if len(stem) == 2 else (0, 0)
        if kernel < 1 or kernel % 2 == 0 or stride < 1:
            raise OptionError(f"stem = {tuple(stem)}: an odd kernel size and a stride of at least 1 are needed")
        for name, numbers in (("blocks", depths), ("strides", halves)):
            if len(numbers) != stages:
                raise OptionError(
                    f"{name} = {tuple(numbers)}: one number for each of the {stages} stages in widths is needed"
                )
        self.stem = nn.Conv2d(channels, widths[0], kernel, stride=stride, padding=kernel // 2, bias=False)
        self.stages = nn.ModuleList()
        for inputs, outputs, depth, halved in zip(widths, widths[1:], depths, halves, strict=False):
            first = AllConvBlock(inputs, outputs, halved, batch_norm)
            rest = (AllConvBlock(outputs, outputs, 1, batch_norm) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
        nn.init.normal_(self.stem.weight, std=math.sqrt(2 / (kernel**2 * widths[0])))
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
        """List all blocks, from the input on."""
        return [module for module in self.modules() if isinstance(module, AllConvBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, h, w) to logits (batch, classes)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return F.linear(x.mean((2, 3)), self.head)
