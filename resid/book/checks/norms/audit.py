"""The audit at work: plain, residual and norm-preserving networks of several depths, before and after training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid._arguments import check_option
from resid.data.loading import load_dataset
from resid.nets.auditing import Audit, audit
from resid.nets.norm_preservation import ProcrustesProjection
from resid.nets.preact import Bottleneck, PlainNet, PreActResNet, ProcResNet

__all__ = ["Trained", "batch_of_digits", "make_network", "train_and_audit"]

NETWORKS = {"plain": PlainNet, "residual": PreActResNet, "norm-preserving": ProcResNet}


@dataclass(frozen=True)
class Trained:
    """What became of one network.

    Args:
        kind: which.
        depth: which.
        seed: which.
        before: audits of one batch, before and after the training; after is None where the loss became infinite or no
            number, at step `died`.
        after: audits of one batch, before and after the training; after is None where the loss became infinite or no
            number, at step `died`.
        died: that step, or None.
        accuracy: on the digits held back, NaN for a network that died.
    """

    kind: str
    depth: int
    seed: int
    before: Audit
    after: Audit | None
    died: int | None
    accuracy: float

    def within(self, when: str = "before") -> np.ndarray:
        """Ratios of the blocks that keep the shape, out/in."""
        found = self.before if when == "before" else self.after
        assert found is not None
        return np.array([b.ratio("out/in") for b in found.blocks if not math.isnan(b.branch)])


def batch_of_digits(count: int = 64) -> tuple[Tensor, Tensor]:
    """The first images (count, 1, 8, 8) of the digits, float32, and their labels."""
    data = load_dataset("digits", "all")
    return data.images[:count].to(torch.float32) / 16, data.labels[:count]


def make_network(kind: str, depth: int, width: int = 4, seed: int = 0) -> nn.Module:
    """A "plain" or "residual" network of depth 9n + 2, or a "norm-preserving" one of depth 9n + 4; for digits.

    The linear convolutions of the last are projected, as they are after every step of its training.

    Raises:
        OptionError: unknown kind. DepthError: a depth of another form.
    """
    check_option("kind", kind, NETWORKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[kind](depth, width, channels=1)
    if isinstance(network, ProcResNet):
        _projection(network).project()
    return network


def _projection(network: ProcResNet) -> ProcrustesProjection:
    return ProcrustesProjection(zip(network.linear_convolutions(), (8, 8, 4), strict=True))


def train_and_audit(kind: str, depth: int, steps: int = 60, seed: int = 0, width: int = 4) -> Trained:
    """Audit a network on 64 digits, train it by SGD (rate 0.1, momentum 0.9, batch 64), audit it again.

    A quarter of the digits is held back.
    """
    network = make_network(kind, depth, width, seed)
    X, y = batch_of_digits()

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, y)

    before = audit(network, X, loss, Bottleneck, sigma=False)
    images, labels = batch_of_digits(1797)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held, used = order[: len(order) // 4], order[len(order) // 4 :]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    if isinstance(network, ProcResNet):
        _projection(network).attach(optimizer)
    for step in range(steps):
        batch = used[torch.arange(64 * step, 64 * step + 64) % len(used)]
        value = F.cross_entropy(network(images[batch]), labels[batch])
        if not bool(torch.isfinite(value)):
            return Trained(kind, depth, seed, before, None, step, math.nan)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        right = float((network(images[held]).argmax(1) == labels[held]).double().mean())
    network.train()
    return Trained(kind, depth, seed, before, audit(network, X, loss, Bottleneck, sigma=False), None, right)
