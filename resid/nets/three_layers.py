"""The network of Zaeemzadeh et al. 2018, Figure 2: three convolutions, the middle one to be watched.

Two of its parts are computed in another way than they are defined, for speed, and give the same up to rounding: the
wrapping around at the border is one copy, and of the last convolution only the mean over the map is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ThreeLayers", "mean_of_convolution", "wrap"]


class ThreeLayers(nn.Module):
    """The network of Figure 2: three convolutions, the middle one from c to d channels with a ReLU behind it.

    Our reading where the text leaves it open: the outer layers are 3 x 3, a ReLU stands behind the first, the third
    gives one channel for each class and its mean over the map is the logit. The middle one wraps around, so that the
    projection is exact up to its crop and no gradient is lost at the border.

    Args:
        c: channels into the middle layer.
        d: channels out of the middle layer.
        kernel: its size.
        classes: of the output.
        channels: of an image.
        nets: networks side by side, as groups of channels; none has to do with another.
    """

    def __init__(self, c: int, d: int, kernel: int = 3, classes: int = 10, channels: int = 1, nets: int = 1) -> None:
        super().__init__()
        self.nets = nets
        wraps: dict[str, Any] = {"padding": kernel // 2, "padding_mode": "circular", "bias": False}
        self.first = nn.Conv2d(nets * channels, nets * c, 3, padding=1, groups=nets)
        self.middle = nn.Conv2d(nets * c, nets * d, kernel, groups=nets, **wraps)
        self.last = nn.Conv2d(nets * d, nets * classes, 3, padding=1, groups=nets)
        for conv in (self.first, self.middle, self.last):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    @classmethod
    def of_seeds(cls, seeds: Sequence[int], **shape: int) -> ThreeLayers:
        """Build networks side by side, each with the weights that it would have alone.

        Args:
            seeds: one for each network.
            **shape: arguments of the class but for `nets`.
        """
        alone = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                alone.append(cls(**shape).state_dict())
            net = cls(**shape, nets=len(seeds))
        net.load_state_dict({name: torch.cat([state[name] for state in alone]) for name in alone[0]})
        return net

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Compute logits (batch, nets, classes), and the middle layer's input, output, and output behind the ReLU."""
        before = F.relu(self.first(x))
        linear = F.conv2d(wrap(before, self.middle.kernel_size[0] // 2), self.middle.weight, groups=self.nets)
        after = F.relu(linear)
        return mean_of_convolution(after, self.last).unflatten(1, (self.nets, -1)), (before, linear, after)


def wrap(x: Tensor, by: int) -> Tensor:
    """Pad maps on each side with rows and columns from the other side.

    The values of `torch.nn.functional.pad` in the mode "circular", which forgets how the map lies in memory.

    Args:
        x: maps (batch, channels, h, w).
        by: rows and columns on each side, at most h and w.
    """
    return _Wrap.apply(x, by) if by else x


class _Wrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: int) -> Tensor:
        ctx.by, (b, c, h, w) = by, x.shape
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        out = torch.empty((b, c, h + 2 * by, w + 2 * by), dtype=x.dtype, device=x.device, memory_format=layout)
        inside = out[..., by:-by]
        inside[:, :, by:-by] = x
        inside[:, :, :by] = x[:, :, -by:]
        inside[:, :, -by:] = x[:, :, :by]
        out[..., :by] = out[..., -2 * by : -by]
        out[..., -by:] = out[..., by : 2 * by]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # each copy adds to what it is a copy of
        by = ctx.by
        g = gradients[0].clone(memory_format=torch.preserve_format)
        g[..., by : 2 * by] += g[..., -by:]
        g[..., -2 * by : -by] += g[..., :by]
        g[:, :, by : 2 * by] += g[:, :, -by:]
        g[:, :, -2 * by : -by] += g[:, :, :by]
        return g[:, :, by:-by, by:-by], None


def mean_of_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute the mean over the map of conv(x), (batch, channels out), as one product.

    The mean of a sum of shifted maps is the sum of the means of what each shift leaves inside, which one product with
    the indicators of these windows gives: as much work as the convolution has for a single channel out.

    Args:
        x: maps (batch, channels, h, w).
        conv: odd kernel, stride 1, and zeros around that keep the size.
    """
    (k, _), (h, w) = conv.kernel_size, x.shape[2:]
    windows = [
        F.pad(x.new_ones(h - abs(i), w - abs(j)), (max(j, 0), max(-j, 0), max(i, 0), max(-i, 0)))
        for i in range(-(k // 2), k // 2 + 1)
        for j in range(-(k // 2), k // 2 + 1)
    ]
    inside = torch.stack(windows).flatten(1) / (h * w)  # (taps, pixels)
    sums = torch.bmm(inside.expand(len(x), -1, -1), x.permute(0, 2, 3, 1).flatten(1, 2))  # (batch, taps, channels in)
    weight = conv.weight.flatten(2).unflatten(0, (conv.groups, -1))  # (groups, out, in, taps)
    mean = torch.einsum("btgi,goit->bgo", sums.unflatten(2, (conv.groups, -1)), weight).flatten(1)
    return mean if conv.bias is None else mean + conv.bias
