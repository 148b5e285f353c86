"""Rows of the training loop: images a second beside a plain loop, and what probes and logging cost."""

from __future__ import annotations

import copy
import random
import tempfile
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Row, Side
from resid.data import loading as data
from resid.data.batches import Batches, pixel_statistics
from resid.data.loading import load_dataset
from resid.training.checkpoint import RunFolder
from resid.training.engine import Engine
from resid.training.options import RunOptions
from resid.training.ranks import Ranks
from resid.training.recipe import Recipe, build_network
from resid.training.signals import Stop
from resid.training.trainer import loop

SMALL = Recipe(
    dataset="digits", network="shortcut_depth", options={"depth": 5, "length": 1, "width": 2, "batch_norm": False},
    epochs=40, batch=512, lr=0.01, pad=1, channels_last=True,
)  # fmt: skip
LARGE = Recipe(
    dataset="cifar10", network="shortcut_depth", options={"depth": 20, "length": 2}, steps=10, channels_last=True
)
BARE = LARGE.replace(steps=24)
PROBED = BARE.replace(probe_epochs=(0,))  # once in 24 steps; in the papers' recipes at most once in 390


class _Samples(Dataset[tuple[Tensor, int]]):
    """One sample at a time, as torchvision's data sets and transforms do: an image of Pillow's, padded, cropped and
    flipped, then a tensor in [0, 1], normalised."""

    def __init__(self, split: data.Dataset, recipe: Recipe, augment: bool = True) -> None:
        mean, std = pixel_statistics(load_dataset(recipe.dataset).images)
        pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        self.labels = split.labels.tolist()
        self.mean, self.std = ((t / 255).float().view(-1, 1, 1) for t in (mean, std))
        self.pad, self.augment = recipe.pad, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[i])
        if self.augment:
            width, height = image.size
            image = ImageOps.expand(image, border=self.pad, fill=0)
            left, top = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
            image = image.crop((left, top, left + width, top + height))
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image))
        tensor = (tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()).float().div(255)
        return (tensor - self.mean) / self.std, self.labels[i]


def _plain(recipe: Recipe, epochs: int, steps: int | None = None, test: bool = True) -> Any:
    """A training script without a library: loader, loop, test after each epoch."""
    splits = [load_dataset(recipe.dataset, name) for name in ("train", "test")]
    training = DataLoader(_Samples(splits[0], recipe), recipe.batch, shuffle=True)
    testing = DataLoader(_Samples(splits[1], recipe, augment=False), 1000)
    model = build_network(recipe)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    return model, optimizer, training, testing if test else None, epochs, steps


def _plain_loop(given: Any) -> None:
    model, optimizer, training, testing, epochs, steps = given
    for _ in range(epochs):
        model.train()
        total = 0.0
        for number, (images, labels) in enumerate(training, 1):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if number == steps:
                break
        if testing is not None:
            model.eval()
            with torch.no_grad():
                sum((model(images).argmax(1) != labels).sum().item() for images, labels in testing)


def _engine(recipe: Recipe) -> Engine:
    """Ready to train, with one step done outside the clock: torch loads parts of itself late."""
    alone = Ranks(0, 1, torch.device("cpu"))
    one = Engine(recipe.replace(epochs=None, steps=1, probe_epochs=()), alone)
    _train(one)
    engine = Engine(recipe, alone, source=one.source)
    if recipe.dataset != "digits":
        assert isinstance(engine.testing, Batches)
        engine.testing = _few(engine.testing)
    return engine


def _few(batches: Batches) -> Batches:
    """The same with ten images: this row is about training."""
    few = copy.copy(batches)
    few.split = data.Dataset(batches.split.images[:10], batches.split.labels[:10], "ten")
    return few


def _train(engine: Engine) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        loop(engine, RunFolder(place, engine.recipe), Stop(), RunOptions())


def _steps_alone(engine: Engine) -> None:
    """The same steps and test with no sums, metrics or files."""
    for images, labels, size in engine.training.epoch(0, 0, BARE.steps):
        engine.set_rate()
        loss = F.cross_entropy(engine.model(images), labels, reduction="sum")
        (loss / size).backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    engine.test(engine.testing, "test")


ROWS = (
    Row(
        name="train-8x8",
        what="training a network so small that the loop is what takes the time: digits, batches of 512, all included",
        ours=Side("loop of resid.training.trainer", lambda: _engine(SMALL), _train, 40 * 1433),
        peer=Side(
            "a plain loop over a DataLoader with Pillow transforms per sample",
            lambda: _plain(SMALL, 40),
            _plain_loop,
            40 * 1433,
        ),
        threads=1,
        least_ratio=3,
        unit="image",
        repeats=9,
        least=True,
    ),
    Row(
        name="train-32x32",
        what="training a ResNet-20 on CIFAR-10 in batches of 128",
        ours=Side("loop of resid.training.trainer", lambda: _engine(LARGE), _train, 1280),
        peer=Side(
            "a plain loop over a DataLoader with Pillow transforms per sample",
            lambda: _plain(LARGE, 1, 10, test=False),
            _plain_loop,
            1280,
        ),
        threads=1,
        least_ratio=1,
        unit="image",
        official="cifar10",
    ),
    Row(
        name="train-records",
        what="what metrics, files and a gradient probe cost: ResNet-20 on CIFAR-10 in batches of 128, 24 steps",
        ours=Side("loop of resid.training.trainer with a probe", lambda: _engine(PROBED), _train, 24 * 128),
        peer=Side("its steps and test alone", lambda: _engine(BARE), _steps_alone, 24 * 128),
        threads=1,
        least_ratio=0.98,
        unit="image",
        official="cifar10",
        repeats=9,
        least=True,
    ),
)
