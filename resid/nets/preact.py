"""The networks of Zaeemzadeh et al. 2018, Section 4: preactivation ResNets, ProcResNets and plain networks.

All are made of bottleneck branches, batch norm, ReLU, convolution three times over: 1 x 1 to m channels, 3 x 3, 1 x 1
to 4m channels; three stages of n blocks with m = width, 2 width, 4 width; convolutions have no bias. At the end batch
norm, ReLU, average pooling and one linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resid._arguments import as_whole, check_option
from resid.errors import DepthError, ShapeError

__all__ = ["Bottleneck", "PlainNet", "PreActResNet", "ProcResNet"]

SHORTCUTS = ("identity", "projection", "none")


class Bottleneck(nn.Module):
    """A branch F of three convolutions and what is added to it.

    x + F(x) with the shortcut "identity"; F(x) alone with "none"; and with "projection" the first batch norm and ReLU,
    z, are shared: the block is branch(z) + W z with a 1 x 1 convolution W.

    Args:
        inputs: channels of the input.
        m: channels inside; the output has 4m.
        stride: of the first 1 x 1 convolution (and of W).
        shortcut: "identity", which needs inputs = 4m and stride 1, "projection" or "none".
        erase_relu: leave out the last ReLU, the one before the last 1 x 1 convolution. The paper does not say which one
            it erases; this is our reading.

    Raises:
        OptionError: unknown shortcut.
        ShapeError: an identity that does not fit.
    """

    def __init__(
        self, inputs: int, m: int, stride: int = 1, shortcut: str = "identity", erase_relu: bool = False
    ) -> None:
        super().__init__()
        check_option("shortcut", shortcut, SHORTCUTS)
        if shortcut == "identity" and (inputs != 4 * m or stride != 1):
            raise ShapeError(f"inputs = {inputs}, m = {m}, stride = {stride}: an identity needs inputs = 4m, stride 1")
        self.shortcut = shortcut
        self.pre = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, m, 1, stride=stride, bias=False),
            nn.BatchNorm2d(m),
            nn.ReLU(),
            nn.Conv2d(m, m, 3, padding=1, bias=False),
            nn.BatchNorm2d(m),
            *([] if erase_relu else [nn.ReLU()]),
            nn.Conv2d(m, 4 * m, 1, bias=False),
        )
        if shortcut == "projection":
            self.project = nn.Conv2d(inputs, 4 * m, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, 4m, h / stride, w / stride)."""
        z = self.pre(x)
        out = self.branch(z)
        if self.shortcut == "identity":
            return x + out
        return out + self.project(z) if self.shortcut == "projection" else out


class _Network(nn.Module):
    """stem, then stages and transitions in turn, then head."""

    depth: int
    stem: nn.Module
    stages: nn.ModuleList
    transitions: nn.ModuleList
    head: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, h, w) to logits (batch, classes)."""
        x = self.stem(x)
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            x = stage(transition(x))
        return self.head(x)

    def blocks(self) -> list[Bottleneck]:
        """All blocks, from the input on."""
        parts = (part for pair in zip(self.transitions, self.stages, strict=True) for part in pair)
        return [module for part in parts for module in part.modules() if isinstance(module, Bottleneck)]

    def _finish(self, width: int, classes: int) -> None:
        """The head, and He's normal initial weights, variance 2/fan-in."""
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


def _blocks_per_stage(depth: int, extra: int) -> int:
    """n of depth = 9n + extra."""
    whole = as_whole(depth)
    if whole is None or whole < 9 + extra or (whole - extra) % 9:
        raise DepthError(f"depth = {depth!r}: 9n + {extra} with n >= 1 is needed, such as {9 + extra} or {18 + extra}")
    return (whole - extra) // 9


class PreActResNet(_Network):
    """Preactivation ResNet of depth 9n + 2 with bottleneck blocks (He et al. 2016), the paper's baseline.

    A 3 x 3 convolution to `width` channels with batch norm and ReLU; the first block of each stage has a 1 x 1
    convolution for a shortcut, with stride 1, 2 and 2, all others the identity.

    Args:
        depth: 9n + 2.
        width: m of the first stage, 16 in the paper.
        channels: of the images.
        classes: of the output.
        erase_relu: leave out the last ReLU of every branch.

    Raises:
        DepthError: a depth that is not 9n + 2.

    Example:
        >>> sum(p.numel() for p in PreActResNet(164).parameters())
        1703290
    """

    def __init__(
        self, depth: int = 164, width: int = 16, channels: int = 3, classes: int = 10, erase_relu: bool = False
    ) -> None:
        super().__init__()
        self._build(depth, width, channels, classes, erase_relu, ("projection", "identity"))

    def _build(
        self, depth: int, width: int, channels: int, classes: int, erase_relu: bool, shortcuts: tuple[str, str]
    ) -> None:
        n = _blocks_per_stage(depth, 2)
        self.depth = depth
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.transitions, self.stages = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for stage in range(3):
            m = width * 2**stage
            self.transitions.append(Bottleneck(inputs, m, 1 + (stage > 0), shortcuts[0], erase_relu))
            rest = (Bottleneck(4 * m, m, 1, shortcuts[1], erase_relu) for _ in range(n - 1))
            self.stages.append(nn.Sequential(*rest))
            inputs = 4 * m
        self._finish(width, classes)


class PlainNet(PreActResNet):
    """`PreActResNet` without any shortcut; depth 9n + 2.

    Args:
        depth: 9n + 2.
        width: m of the first stage, 16 in the paper.
        channels: of the images.
        classes: of the output.
        erase_relu: leave out the last ReLU of every branch.

    Raises:
        DepthError: a depth that is not 9n + 2.

    Example:
        >>> sum(p.numel() for p in PlainNet(164).parameters())
        1661306
    """

    def __init__(
        self, depth: int = 164, width: int = 16, channels: int = 3, classes: int = 10, erase_relu: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self._build(depth, width, channels, classes, erase_relu, ("none", "none"))


class ProcResNet(_Network):
    """ProcResNet of depth 9n + 4: identity shortcuts everywhere, linear norm-preserving convolutions between stages.

    A 3 x 3 convolution to 4 width channels, and 1 x 1 convolutions of stride 2 between the stages, with nothing around
    them; `linear_convolutions` names the three, whose initial weights have variance 1/fan-in, and which training is to
    project (`resid.nets.norm_preservation`).

    Args:
        depth: 9n + 4.
        width: m of the first stage, 16 in the paper.
        channels: of the images.
        classes: of the output.
        erase_relu: leave out the last ReLU of every branch.

    Raises:
        DepthError: a depth that is not 9n + 4.

    Example:
        >>> sum(p.numel() for p in ProcResNet(166).parameters())
        1715018
    """

    def __init__(
        self, depth: int = 166, width: int = 16, channels: int = 3, classes: int = 10, erase_relu: bool = False
    ) -> None:
        super().__init__()
        n = _blocks_per_stage(depth, 4)
        self.depth = depth
        self.stem = nn.Conv2d(channels, 4 * width, 3, padding=1, bias=False)
        self.transitions, self.stages = nn.ModuleList([nn.Identity()]), nn.ModuleList()
        for stage in range(3):
            m = width * 2**stage
            if stage:
                self.transitions.append(nn.Conv2d(2 * m, 4 * m, 1, stride=2, bias=False))
            self.stages.append(nn.Sequential(*(Bottleneck(4 * m, m, erase_relu=erase_relu) for _ in range(n))))
        self._finish(width, classes)
        with torch.no_grad():
            for convolution in self.linear_convolutions():
                convolution.weight.mul_(0.5**0.5)

    def linear_convolutions(self) -> list[nn.Conv2d]:
        """List the stem and the two transitions, from the input on."""
        return [module for module in (self.stem, *self.transitions) if isinstance(module, nn.Conv2d)]
