"""Gradient norms across projected convolutions while a small network learns digits: Zaeemzadeh et al. 2018, Section 3.

Ratios are out/in as in the paper's figures: the norm of the gradient at a layer's output over that at its input, of the
whole batch. The two assumptions behind the scale s are measured with them: the share of the gradient's energy that
passes the ReLU (assumed 1/2), and the share that lies in the range of the convolution (assumed min(c, d)/d).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid.errors import OptionError
from resid.lab.data import load_dataset
from resid.nets.preact import ProcResNet
from resid.nets.procrustes import ProcrustesProjection
from resid.theory.polar import polar_factor

__all__ = ["Passage", "ThreeLayers", "follow_three_layers", "follow_transitions"]

BATCH = 64


@dataclass(frozen=True)
class Passage:
    """What was measured at each step of a training.

    ratio: (steps, layers), out/in. share: (steps, layers), energy of the gradient in the range of the convolution.
    passed: (steps, layers), energy behind the ReLU over that before it, backwards; 1 without one. loss: (steps,).
    per_epoch: steps of an epoch.
    """

    ratio: np.ndarray
    share: np.ndarray
    passed: np.ndarray
    loss: np.ndarray
    per_epoch: int

    @property
    def deviation(self) -> np.ndarray:
        """Absolute natural logarithm of the ratios."""
        return np.abs(np.log(self.ratio))

    def last_epoch(self, name: str) -> np.ndarray:
        """Mean of a field over the last epoch, (layers,); steps at which the gradient vanished do not count.

        Raises:
            ArithmeticError: it vanished at half of the steps or more: all units of a layer are off.
        """
        values: np.ndarray = getattr(self, name)[-self.per_epoch :]
        if np.isnan(values).mean() >= 0.5:
            raise ArithmeticError("the gradient vanished at most steps of the last epoch: the network has died")
        return np.nanmean(values, 0)


class ThreeLayers(nn.Module):
    """The network of Figure 2: three convolutions, the middle one from c to d channels with a ReLU behind it.

    Our reading where the text leaves it open: the outer layers are 3 x 3, a ReLU stands behind the first, the third
    gives one channel for each class and its mean over the map is the logit. The middle one wraps around, so that the
    projection is exact up to its crop and no gradient is lost at the border.
    """

    def __init__(self, c: int, d: int, kernel: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, c, 3, padding=1)
        self.middle = nn.Conv2d(c, d, kernel, padding=kernel // 2, padding_mode="circular", bias=False)
        self.last = nn.Conv2d(d, classes, 3, padding=1)
        for conv in (self.first, self.middle, self.last):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits, and the middle layer's input, output, and output behind the ReLU."""
        before = F.relu(self.first(x))
        linear = self.middle(before)
        after = F.relu(linear)
        return self.last(after).mean((2, 3)), (before, linear, after)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits")
    images = data.images.to(torch.float32)[:, None]
    return (images - images.mean()) / images.std(), data.labels


def _batches(epochs: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of every batch; the last, smaller one of an epoch is left out."""
    count = len(_digits()[0])
    return [
        part
        for _ in range(epochs)
        for part in torch.randperm(count, generator=generator).split(BATCH)[: count // BATCH]
    ]


def _range_share(weight: Tensor, gradient: Tensor) -> float:
    """Share of the energy of an output gradient (batch, d, h, w) in the range of a circular convolution."""
    h, w = gradient.shape[-2:]
    if weight.shape[0] <= weight.shape[1]:
        return 1.0
    A = torch.fft.fft2(weight.detach(), (h, w)).permute(2, 3, 0, 1).conj()  # a cross-correlation
    g = torch.fft.fft2(gradient).permute(2, 3, 1, 0)
    inside = polar_factor(A).mH @ g
    return float(inside.abs().square().sum() / g.abs().square().sum())


def _backward(loss: Tensor, net: nn.Module, watched: list[Tensor]) -> tuple[Tensor, ...]:
    """One backward pass: gradients at the tensors watched, and those of the weights in their `grad`."""
    parameters = list(net.parameters())
    found = torch.autograd.grad(loss, [*watched, *parameters])
    for parameter, gradient in zip(parameters, found[len(watched) :], strict=True):
        parameter.grad = gradient
    return found[: len(watched)]


def follow_three_layers(
    c: int, d: int, projected: bool, seed: int, epochs: int = 4, kernel: int = 3, rate: float = 0.03, relu: bool = True
) -> Passage:
    """Train `ThreeLayers` on the digits; the middle layer is projected after every other step, or not.

    SGD with momentum 0.9, as for the paper's networks.

    Args:
        c, d: channels of the middle layer. projected: whether Algorithm 1 runs, with the factor for the ReLU. seed: of
            the weights and of the order of the data. epochs, kernel, rate: of the training and the middle layer.
        relu: whether the scale has the factor sqrt(2).
    """
    torch.manual_seed(seed)
    net = ThreeLayers(c, d, kernel)
    images, labels = _digits()
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    if projected:
        projection = ProcrustesProjection([(net.middle, images.shape[-1], relu)], every=2)
        projection.project()
        projection.attach(optimizer)
    found = []
    for batch in _batches(epochs, torch.Generator().manual_seed(seed)):
        logits, (before, linear, after) = net(images[batch])
        loss = F.cross_entropy(logits, labels[batch])
        g_in, g_linear, g_out = _backward(loss, net, [before, linear, after])
        energies = np.array([float(g.square().sum()) for g in (g_in, g_linear, g_out)])
        energies[energies == 0] = np.nan
        share = _range_share(net.middle.weight, g_linear)
        found.append(((energies[2] / energies[0]) ** 0.5, share, energies[1] / energies[2], float(loss.detach())))
        optimizer.step()
    values = np.array(found)
    return Passage(values[:, :1], values[:, 1:2], values[:, 2:3], values[:, 3], len(images) // BATCH)


def follow_transitions(seed: int, epochs: int, blocks: int = 2, width: int = 4, rate: float = 0.1) -> Passage:
    """Train a ProcResNet on the digits and watch its two transitions; SGD with momentum 0.9, projection by a coin.

    Args:
        seed: of the weights, the order of the data, and the coin. epochs: of the training. blocks: n, depth 9n + 4.
        width: m. rate: learning rate.
    """
    torch.manual_seed(seed)
    net = ProcResNet(9 * blocks + 4, width, channels=1)
    images, labels = _digits()
    if images.shape[-1] % 4:
        raise OptionError(f"images of size {images.shape[-1]}: a multiple of 4 is needed")
    sizes = [images.shape[-1] // step for step in (1, 1, 2)]
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    projection = ProcrustesProjection(zip(net.linear_convolutions(), sizes, strict=True), probability=0.5, seed=seed)
    projection.project()
    projection.attach(optimizer)
    ends: list[tuple[Tensor, Tensor]] = []
    weights = [conv.weight for conv in net.linear_convolutions()[1:]]
    for transition in net.linear_convolutions()[1:]:
        transition.register_forward_hook(lambda _module, given, out: ends.append((given[0], out)))
    found, losses = [], []
    for batch in _batches(epochs, torch.Generator().manual_seed(seed)):
        ends.clear()
        logits: Tensor = net(images[batch])
        loss = F.cross_entropy(logits, labels[batch])
        gradients = _backward(loss, net, [end for pair in ends for end in pair])
        row = []
        for i in range(len(weights)):
            g_in, g_out = gradients[2 * i : 2 * i + 2]
            W = polar_factor(weights[i].detach()[:, :, 0, 0])
            inside = torch.einsum("dc,bdhw->bchw", W, g_out)
            energy = g_out.square().sum()
            row.append((float((energy / g_in.square().sum()).sqrt()), float(inside.square().sum() / energy)))
        found.append(row)
        losses.append(float(loss.detach()))
        optimizer.step()
    values = np.array(found)
    passed = np.ones(values.shape[:2])
    return Passage(values[..., 0], values[..., 1], passed, np.array(losses), len(images) // BATCH)
