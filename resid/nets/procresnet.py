"""ProcResNet (Zaeemzadeh et al. 2018, Section 4): preactivation bottleneck blocks, linear norm-preserving transitions.

Stem 3 x 3 from the image to 4m channels, three stages of n blocks with 4m, 8m and 16m channels, and between them 1 x 1
convolutions of stride 2. Stem and transitions are linear: nothing is applied around them, and all blocks have identity
skips. Convolutions have no bias. Depth 9n + 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resid.theory._check import as_size

__all__ = ["Bottleneck", "ProcResNet"]


class Bottleneck(nn.Module):
    """x + F(x), F: batch norm, ReLU, convolution three times: 1 x 1 to m channels, 3 x 3, 1 x 1 to 4m."""

    def __init__(self, m: int) -> None:
        super().__init__()
        widths = (4 * m, m, m, 4 * m)
        layers: list[nn.Module] = []
        for i, kernel in enumerate((1, 3, 1)):
            layers += [nn.BatchNorm2d(widths[i]), nn.ReLU()]
            layers.append(nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2, bias=False))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 4m, h, w) to images of the same shape."""
        return x + self.branch(x)


class ProcResNet(nn.Module):
    """The network of 9n + 4 layers.

    Args:
        blocks: n, per stage. width: m, 16 in the paper. channels: of the images. classes: of the output.

    Initial weights as in the released code: normal with variance 2/fan-in, and 1/fan-in for `linear_convolutions`.

    Example:
        >>> net = ProcResNet(blocks=18)
        >>> sum(p.numel() for p in net.parameters())
        1715018
    """

    def __init__(self, blocks: int, width: int = 16, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        blocks, width = as_size("blocks", blocks), as_size("width", width)
        self.depth = 9 * blocks + 4
        self.stem = nn.Conv2d(channels, 4 * width, 3, padding=1, bias=False)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Bottleneck(width * 2**stage) for _ in range(blocks))) for stage in range(3)
        )
        self.transitions = nn.ModuleList(
            nn.Conv2d(4 * width * 2**stage, 8 * width * 2**stage, 1, stride=2, bias=False) for stage in range(2)
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(16 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16 * width, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        with torch.no_grad():
            for conv in self.linear_convolutions():
                conv.weight.mul_(0.5**0.5)

    def linear_convolutions(self) -> list[nn.Conv2d]:
        """The stem and the two transitions, from the input on, which the paper projects."""
        return [self.stem, *self.transitions]

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, h, w), h and w divisible by 4, to logits (batch, classes)."""
        x = self.stages[0](self.stem(x))
        x = self.stages[1](self.transitions[0](x))
        x = self.stages[2](self.transitions[1](x))
        return self.head(x)
