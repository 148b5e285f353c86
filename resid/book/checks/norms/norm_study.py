"""Gradient norms across projected convolutions while a network learns: Zaeemzadeh et al. 2018, Section 3 and Figure 2.

Ratios are out/in as in the paper's figures: the norm of the gradient at a layer's output over that at its input, of the
whole batch. The two assumptions behind the scale s are measured with them: the share of the gradient's energy that
passes the ReLU (assumed 1/2), and the share that lies in the range of the convolution (assumed min(c, d)/d).

Data are the digits or CIFAR-10. Pieces of work go through a `Journal`, so that an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid._precision import float32_products
from resid.book.checks.norms.norm_images import MOVES, Images
from resid.book.journal import Journal
from resid.errors import NotFiniteError, ShapeError
from resid.nets.norm_preservation import ProcrustesProjection
from resid.nets.preact import ProcResNet
from resid.nets.three_layers import ThreeLayers
from resid.theory.procrustes.polar import polar_factor
from resid.training._memory import reused_memory

__all__ = [
    "DIGITS",
    "DIGITS_TRANSITIONS",
    "PAPER",
    "SOURCES",
    "NormStudy",
    "Passage",
    "Recipe",
    "follow_three_layers",
    "follow_transitions",
]

#: The code that decides what a training comes out as, for the `Journal` of a study, which follows its imports.
SOURCES = (Path(__file__),)

#: A network whose gradient vanishes is drawn again with its seed increased by this, so many times at most.
_NEXT_SEED, _DRAWS = 1000, 5


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum 0.9 and a constant rate.

    Args:
        rate: learning rate.
        batch: images of a step.
        decay: weight decay.
        moves: whether images are mirrored by a coin and moved by up to four pixels.
        share_every: steps from one measurement of the share in the range to the next.
    """

    rate: float
    batch: int
    decay: float = 0.0
    moves: bool = False
    share_every: int = 1


#: For the three-layer network and for ProcResNet on the digits.
DIGITS, DIGITS_TRANSITIONS = Recipe(0.03, 64), Recipe(0.1, 64)
#: As Zaeemzadeh et al. train on CIFAR-10, before their rate decays.
PAPER = Recipe(0.1, 128, 1e-4, moves=True, share_every=10)


@dataclass(frozen=True)
class Passage:
    """What was measured at each step of a training.

    Args:
        ratio: (steps, layers), out/in; NaN where a gradient vanished.
        share: (steps, layers), energy of the gradient in the range of the convolution; NaN where it was not measured.
        passed: (steps, layers), energy behind the ReLU over that before it, backwards; 1 without one.
        loss: (steps,).
        per_epoch: steps of an epoch.
        seed: with which it was drawn.
    """

    ratio: np.ndarray
    share: np.ndarray
    passed: np.ndarray
    loss: np.ndarray
    per_epoch: int
    seed: int

    @property
    def deviation(self) -> np.ndarray:
        """Absolute natural logarithm of the ratios."""
        return np.abs(np.log(self.ratio))

    @property
    def dead(self) -> bool:
        """Whether it diverged, or the gradient vanished at half of the last epoch's steps, all units of a layer off."""
        return bool(np.isfinite(self.ratio[-self.per_epoch :]).mean() <= 0.5)

    def last_epoch(self, name: str) -> np.ndarray:
        """Mean of a field over the last epoch, (layers,); steps at which the gradient vanished do not count.

        Raises:
            ArithmeticError: the network is dead.
        """
        if self.dead:
            raise ArithmeticError("the gradient vanished at most steps of the last epoch: the network has died")
        values: np.ndarray = getattr(self, name)[-self.per_epoch :]
        return np.nanmean(values, 0)


def _steps(data: Images, recipe: Recipe, seeds: Sequence[int], epochs: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Indices (batch, nets) and moves of every step; each seed has its own order, and what is left over is left out."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    count = len(data) // recipe.batch
    if not count:
        raise ShapeError(f"{len(data)} images: at least a batch of {recipe.batch} is needed")
    most = torch.tensor(MOVES)
    for _ in range(epochs):
        order = [torch.randperm(len(data), generator=g)[: count * recipe.batch] for g in generators]
        index = torch.stack(order, 1).to(data.device).view(count, recipe.batch, -1)
        if not recipe.moves:
            yield from ((part, None) for part in index)
            continue
        draws = [torch.rand(count * recipe.batch, 3, generator=g) for g in generators]
        moves = (torch.stack(draws, 1) * most).long().to(data.device).view(count, recipe.batch, -1, 3)
        yield from zip(index, moves, strict=True)


# ----------------------------------------------------------------------------------------------------------- trainings


def _range_share(weight: Tensor, gradient: Tensor) -> Tensor:
    """Share (nets,) of the energy of output gradients (batch, nets, d, h, w) in the range of circular convolutions."""
    if weight.shape[1] <= weight.shape[2]:  # (nets, d, c, k, k)
        return gradient.new_ones(len(weight))
    size = gradient.shape[-2:]
    A = torch.fft.rfft2(weight, size).permute(0, 3, 4, 1, 2).conj()  # a cross-correlation
    g = torch.fft.rfft2(gradient).permute(1, 3, 4, 2, 0)
    # of two conjugate frequencies one is there
    column = torch.arange(g.shape[2], device=g.device)
    once = (column == 0) | (2 * column == size[1])
    g = g * torch.where(once, 1.0, 2**0.5)[:, None, None]
    return _energy(polar_factor(A).mH @ g) / _energy(g)


def _energy(x: Tensor) -> Tensor:
    """Sum of squares for each first index."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))).square()


def _layout(device: torch.device) -> torch.memory_format:
    """How maps lie in memory: on a CPU the channels of a pixel side by side, with which convolutions are faster."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _backward(loss: Tensor, net: nn.Module, watched: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One backward pass: gradients at the tensors watched, and those of the weights in their `grad`."""
    parameters = list(net.parameters())
    found = torch.autograd.grad(loss, [*watched, *parameters])
    for parameter, gradient in zip(parameters, found[len(watched) :], strict=True):
        parameter.grad = gradient
    return found[: len(watched)]


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.decay)


@reused_memory()
@float32_products()
def follow_three_layers(
    data: Images,
    c: int,
    d: int,
    projected: bool,
    seeds: Sequence[int],
    epochs: int,
    recipe: Recipe = DIGITS,
    kernel: int = 3,
    relu: bool = True,
) -> list[Passage]:
    """Train `ThreeLayers` for each seed, all at once; the middle layer is projected after every other step, or not.

    Args:
        data: to learn.
        c: channels of the middle layer.
        d: channels of the middle layer.
        projected: whether Algorithm 1 runs, with the factor for the ReLU.
        seeds: of the weights and of the order of the data.
        epochs: of the training.
        recipe: of the training.
        kernel: of the middle layer.
        relu: whether the scale has the factor sqrt(2).

    Returns:
        One `Passage` of one layer for each seed; up to rounding the same as when it is trained alone. All is NaN from
        the step on at which a network diverges.
    """
    nets = len(seeds)
    layout = _layout(data.device)
    net = ThreeLayers.of_seeds(seeds, c=c, d=d, kernel=kernel, channels=data.channels)
    net = net.to(data.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(net, recipe)
    if projected:
        projection = ProcrustesProjection([(net.middle, data.size, relu)], every=2)
        projection.project()
        projection.attach(optimizer)
    kept = _rows(data, recipe, epochs, nets, 4)
    try:
        for step, (index, moves) in enumerate(_steps(data, recipe, seeds, epochs)):
            x, labels = data.batch(index, moves)
            logits, watched = net(x.contiguous(memory_format=layout))
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(-1, nets).mean(0)
            gradients = [g.unflatten(1, (nets, -1)) for g in _backward(losses.sum(), net, watched)]
            energies = torch.stack([_energy(g.transpose(0, 1)) for g in gradients])
            g_in, g_linear, g_out = energies.where(energies > 0, torch.nan)
            share = torch.full_like(g_in, torch.nan)
            if step % recipe.share_every == 0:
                share = _range_share(net.middle.weight.detach().unflatten(0, (nets, -1)), gradients[1])
            kept[step] = torch.stack([(g_out / g_in).sqrt(), share, g_linear / g_out, losses.detach()], 1)
            optimizer.step()
    except NotFiniteError:  # a network diverged, and a kernel that is not finite cannot be projected
        if nets > 1:
            alone = ([seed] for seed in seeds)
            return [
                p
                for one in alone
                for p in follow_three_layers(data, c, d, projected, one, epochs, recipe, kernel, relu)
            ]
    values = kept.transpose(0, 1).to("cpu", torch.float64).numpy()  # (nets, steps, 4)
    return [_passage(v, len(data) // recipe.batch, seed) for v, seed in zip(values, seeds, strict=True)]


def _rows(data: Images, recipe: Recipe, epochs: int, *shape: int) -> Tensor:
    """Room for what each step measures, NaN before it has. One tensor from the start: a small one kept at every step
    would lie between the large ones that come and go, and the memory of a process on a CPU would grow by gigabytes."""
    return torch.full((epochs * (len(data) // recipe.batch), *shape), torch.nan, device=data.device)


def _passage(values: np.ndarray, per_epoch: int, seed: int) -> Passage:
    """From (steps, 3 layers + 1): ratio, share and passed of each layer, and the loss."""
    ratio, share, passed = np.moveaxis(values[:, :-1].reshape(len(values), -1, 3), -1, 0)
    return Passage(ratio, share, passed, values[:, -1], per_epoch, seed)


@reused_memory()
@float32_products()
def follow_transitions(
    data: Images, seed: int, epochs: int, recipe: Recipe = DIGITS_TRANSITIONS, blocks: int = 2, width: int = 4
) -> Passage:
    """Train a ProcResNet and watch its two transitions; projection by a coin after each step.

    Args:
        data: to learn.
        seed: of the weights, the order of the data, and the coin.
        epochs: of the training.
        recipe: of the training.
        blocks: n, depth 9n + 4.
        width: m.

    Raises:
        ShapeError: images whose size is no multiple of 4.
    """
    if data.size % 4:
        raise ShapeError(f"images of size {data.size}: a multiple of 4 is needed")
    layout = _layout(data.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ProcResNet(9 * blocks + 4, width, channels=data.channels)
    net = net.to(data.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(net, recipe)
    sizes = [data.size // step for step in (1, 1, 2)]
    projection = ProcrustesProjection(zip(net.linear_convolutions(), sizes, strict=True), probability=0.5, seed=seed)
    projection.project()
    projection.attach(optimizer)
    ends: list[Tensor] = []
    transitions = net.linear_convolutions()[1:]
    for transition in transitions:
        transition.register_forward_hook(lambda _module, given, out: ends.extend((given[0], out)))
    kept = _rows(data, recipe, epochs, 3 * len(transitions) + 1)
    for step, (index, moves) in enumerate(_steps(data, recipe, (seed,), epochs)):
        ends.clear()
        x, labels = data.batch(index, moves)
        loss = F.cross_entropy(net(x.contiguous(memory_format=layout)), labels[:, 0])
        gradients = _backward(loss, net, ends)
        row = []
        for i, transition in enumerate(transitions):
            g_in, g_out = gradients[2 * i : 2 * i + 2]
            energies = torch.stack([g_in.square().sum(), g_out.square().sum()])
            before, after = energies.where(energies > 0, torch.nan)
            share = torch.full_like(after, torch.nan)
            if step % recipe.share_every == 0:
                W = polar_factor(transition.weight.detach()[:, :, 0, 0])
                share = torch.einsum("dc,bdhw->bchw", W, g_out).square().sum() / after
            row += [(after / before).sqrt(), share, torch.ones_like(after)]
        kept[step] = torch.stack([*row, loss.detach()])
        optimizer.step()
    values = kept.to("cpu", torch.float64).numpy()
    return _passage(values, len(data) // recipe.batch, seed)


# --------------------------------------------------------------------------------------------------------------- study


@dataclass
class NormStudy:
    """Trainings on one data set by one recipe, each kept in a journal.

    Args:
        data: the images.
        recipe: of the trainings.
        journal: keeps them; default in memory.
        together: networks trained at once, which are then one piece; more than one pays on a GPU only.
        processes: that compute pieces beside each other, on a CPU, with one thread each.
    """

    data: Images
    recipe: Recipe
    journal: Journal = field(default_factory=lambda: Journal("norms-procrustes", SOURCES, None))
    together: int = 1
    processes: int = 1

    def three_layers(
        self, cases: Sequence[tuple[tuple[int, int], bool]], seeds: Sequence[int], epochs: int, kernel: int = 3
    ) -> list[list[Passage]]:
        """`follow_three_layers` for each case, a pair (c, d) and whether it is projected, and each seed.

        A network that dies is drawn again with its seed increased by 1000.
        """
        found: dict[tuple[tuple[tuple[int, int], bool], int], Passage] = {}
        for draw in range(_DRAWS):
            parts = []
            for case in cases:
                left = [(case, s) for s in seeds if (case, s) not in found or found[case, s].dead]
                parts += [left[start : start + self.together] for start in range(0, len(left), self.together)]
            pieces = [
                {
                    "what": "three layers",
                    "pair": list(part[0][0][0]),
                    "projected": part[0][0][1],
                    "kernel": kernel,
                    "seeds": [seed + _NEXT_SEED * draw for _, seed in part],
                    "epochs": epochs,
                }
                for part in parts
            ]
            for part, passages in zip(parts, self._passages(pieces), strict=True):
                found.update(zip(part, passages, strict=True))
        return [[found[case, seed] for seed in seeds] for case in cases]

    def transitions(self, seeds: Sequence[int], epochs: int, blocks: int = 2, width: int = 4) -> list[Passage]:
        """`follow_transitions` for each seed."""
        what = {"what": "transitions", "blocks": blocks, "width": width, "epochs": epochs}
        return [passages[0] for passages in self._passages([what | {"seeds": [seed]} for seed in seeds])]

    def _passages(self, pieces: list[dict[str, Any]]) -> list[list[Passage]]:
        """Those of each piece, computed where the journal does not have them."""
        about = {"device": self.data.device.type, "data": self.data.name, "images": len(self.data)}
        keys = [piece | asdict(self.recipe) | about for piece in pieces]
        trainings = _Trainings(self.data, self.recipe)
        missing = [i for i, key in enumerate(keys) if key not in self.journal]
        if self.processes > 1 and len(missing) > 1:
            count = min(self.processes, len(missing))
            with ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
                for i, arrays in zip(missing, pool.map(trainings, [pieces[i] for i in missing]), strict=True):
                    self.journal(keys[i], partial(dict, arrays))
        kept = [self.journal(key, partial(trainings, piece)) for key, piece in zip(keys, pieces, strict=True)]
        return [
            [
                Passage(
                    arrays["ratio"][i],
                    arrays["share"][i],
                    arrays["passed"][i],
                    arrays["loss"][i],
                    int(arrays["per_epoch"][i]),
                    int(arrays["seed"][i]),
                )
                for i in range(len(arrays["seed"]))
            ]
            for arrays in kept
        ]


@dataclass
class _Trainings:
    """What a process does: the arrays of a piece."""

    data: Images
    recipe: Recipe

    def __call__(self, piece: dict[str, Any]) -> dict[str, np.ndarray]:
        seeds, epochs = piece["seeds"], piece["epochs"]
        if piece["what"] == "three layers":
            (c, d), projected, kernel = piece["pair"], piece["projected"], piece["kernel"]
            passages = follow_three_layers(self.data, c, d, projected, seeds, epochs, self.recipe, kernel)
        else:
            passages = [
                follow_transitions(self.data, seed, epochs, self.recipe, piece["blocks"], piece["width"])
                for seed in seeds
            ]
        return {item.name: np.stack([getattr(one, item.name) for one in passages]) for item in fields(Passage)}
