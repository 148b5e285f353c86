"""Gradient norms across projected convolutions while a network learns: Zaeemzadeh et al. 2018, Section 3 and Figure 2.

Ratios are out/in as in the paper's figures: the norm of the gradient at a layer's output over that at its input, of the
whole batch. The two assumptions behind the scale s are measured with them: the share of the gradient's energy that
passes the ReLU (assumed 1/2), and the share that lies in the range of the convolution (assumed min(c, d)/d).

Data are the digits or CIFAR-10. Pieces of work go through a `Journal`, so that an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resid.errors import NotFiniteError, ShapeError
from resid.lab.images import MOVES, Images
from resid.lab.journal import Journal
from resid.nets.preact import ProcResNet
from resid.nets.procrustes import ProcrustesProjection
from resid.theory.polar import polar_factor

__all__ = [
    "DIGITS",
    "DIGITS_TRANSITIONS",
    "PAPER",
    "SOURCES",
    "NormStudy",
    "Passage",
    "Recipe",
    "ThreeLayers",
    "follow_three_layers",
    "follow_transitions",
]

#: The code that decides what a training comes out as, for the `Journal` of a study.
SOURCES = tuple(
    Path(__file__).parents[1] / name
    for name in (
        "lab/norm_study.py",
        "lab/images.py",
        "lab/batches.py",
        "lab/data.py",
        "lab/official.py",
        "nets/_evaluating.py",
        "nets/preact.py",
        "nets/procrustes.py",
        "theory/procrustes.py",
        "theory/polar.py",
        "theory/_conv_geometry.py",
        "theory/_check.py",
    )
)

#: A network whose gradient vanishes is drawn again with its seed increased by this, so many times at most.
_NEXT_SEED, _DRAWS = 1000, 5


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum 0.9 and a constant rate.

    rate: learning rate. batch: images of a step. decay: weight decay. moves: whether images are mirrored by a coin and
    moved by up to four pixels. share_every: steps from one measurement of the share in the range to the next.
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

    ratio: (steps, layers), out/in; NaN where a gradient vanished. share: (steps, layers), energy of the gradient in the
    range of the convolution; NaN where it was not measured. passed: (steps, layers), energy behind the ReLU over that
    before it, backwards; 1 without one. loss: (steps,). per_epoch: steps of an epoch. seed: with which it was drawn.
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


class ThreeLayers(nn.Module):
    """The network of Figure 2: three convolutions, the middle one from c to d channels with a ReLU behind it.

    Our reading where the text leaves it open: the outer layers are 3 x 3, a ReLU stands behind the first, the third
    gives one channel for each class and its mean over the map is the logit. The middle one wraps around, so that the
    projection is exact up to its crop and no gradient is lost at the border.

    Args:
        c, d: channels of the middle layer. kernel: its size. classes: of the output. channels: of an image.
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
        """Networks side by side, each with the weights that it would have alone. shape: arguments but for `nets`."""
        alone = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                alone.append(cls(**shape).state_dict())
            net = cls(**shape, nets=len(seeds))
        net.load_state_dict({name: torch.cat([state[name] for state in alone]) for name in alone[0]})
        return net

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits (batch, nets, classes), and the middle layer's input, output, and output behind the ReLU."""
        before = F.relu(self.first(x))
        linear = self.middle(before)
        after = F.relu(linear)
        return self.last(after).mean((2, 3)).unflatten(1, (self.nets, -1)), (before, linear, after)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, neither in the convolutions nor in the matrix products of the projection."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    try:
        matmul.allow_tf32 = conv.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def _range_share(weight: Tensor, gradient: Tensor) -> Tensor:
    """Share (nets,) of the energy of output gradients (batch, nets, d, h, w) in the range of circular convolutions."""
    if weight.shape[1] <= weight.shape[2]:  # (nets, d, c, k, k)
        return gradient.new_ones(len(weight))
    size = gradient.shape[-2:]
    A = torch.fft.fft2(weight, size).permute(0, 3, 4, 1, 2).conj()  # a cross-correlation
    g = torch.fft.fft2(gradient).permute(1, 3, 4, 2, 0)
    return _energy(polar_factor(A).mH @ g) / _energy(g)


def _energy(x: Tensor) -> Tensor:
    """Sum of squares for each first index."""
    return x.abs().square().flatten(1).sum(1)


def _backward(loss: Tensor, net: nn.Module, watched: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One backward pass: gradients at the tensors watched, and those of the weights in their `grad`."""
    parameters = list(net.parameters())
    found = torch.autograd.grad(loss, [*watched, *parameters])
    for parameter, gradient in zip(parameters, found[len(watched) :], strict=True):
        parameter.grad = gradient
    return found[: len(watched)]


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.decay)


@_full_precision()
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
        data: to learn. c, d: channels of the middle layer. projected: whether Algorithm 1 runs, with the factor for the
            ReLU. seeds: of the weights and of the order of the data. epochs, recipe: of the training. kernel: of the
            middle layer. relu: whether the scale has the factor sqrt(2).

    Returns:
        One `Passage` of one layer for each seed; up to rounding the same as when it is trained alone. All is NaN from
        the step on at which a network diverges.
    """
    nets = len(seeds)
    net = ThreeLayers.of_seeds(seeds, c=c, d=d, kernel=kernel, channels=data.channels).to(data.device)
    optimizer = _optimizer(net, recipe)
    if projected:
        projection = ProcrustesProjection([(net.middle, data.size, relu)], every=2)
        projection.project()
        projection.attach(optimizer)
    kept = _rows(data, recipe, epochs, nets, 4)
    try:
        for step, (index, moves) in enumerate(_steps(data, recipe, seeds, epochs)):
            x, labels = data.batch(index, moves)
            logits, watched = net(x)
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


@_full_precision()
def follow_transitions(
    data: Images, seed: int, epochs: int, recipe: Recipe = DIGITS_TRANSITIONS, blocks: int = 2, width: int = 4
) -> Passage:
    """Train a ProcResNet and watch its two transitions; projection by a coin after each step.

    Args:
        data: to learn. seed: of the weights, the order of the data, and the coin. epochs, recipe: of the training.
        blocks: n, depth 9n + 4. width: m.

    Raises:
        ShapeError: images whose size is no multiple of 4.
    """
    if data.size % 4:
        raise ShapeError(f"images of size {data.size}: a multiple of 4 is needed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ProcResNet(9 * blocks + 4, width, channels=data.channels).to(data.device)
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
        loss = F.cross_entropy(net(x), labels[:, 0])
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

    data: the images. recipe: of the trainings. journal: keeps them; default in memory. together: networks trained at
    once, which are then one piece; more than one pays on a GPU only.
    """

    data: Images
    recipe: Recipe
    journal: Journal = field(default_factory=lambda: Journal("norms-procrustes", SOURCES, None))
    together: int = 1

    def three_layers(
        self, pair: tuple[int, int], projected: bool, seeds: Sequence[int], epochs: int, kernel: int = 3
    ) -> list[Passage]:
        """`follow_three_layers` for each seed; a network that dies is drawn again with its seed increased by 1000."""
        found: dict[int, Passage] = {}
        for draw in range(_DRAWS):
            left = [seed for seed in seeds if seed not in found or found[seed].dead]
            for start in range(0, len(left), self.together):
                part = left[start : start + self.together]
                drawn = [seed + _NEXT_SEED * draw for seed in part]

                def compute(drawn: list[int] = drawn) -> list[Passage]:
                    return follow_three_layers(self.data, *pair, projected, drawn, epochs, self.recipe, kernel)

                key = {"what": "three layers", "pair": list(pair), "projected": projected, "kernel": kernel}
                found.update(zip(part, self._kept(key, drawn, epochs, compute), strict=True))
        return [found[seed] for seed in seeds]

    def transitions(self, seed: int, epochs: int, blocks: int = 2, width: int = 4) -> Passage:
        """`follow_transitions`."""

        def compute() -> list[Passage]:
            return [follow_transitions(self.data, seed, epochs, self.recipe, blocks, width)]

        return self._kept({"what": "transitions", "blocks": blocks, "width": width}, [seed], epochs, compute)[0]

    def _kept(
        self, key: dict[str, Any], seeds: list[int], epochs: int, compute: Callable[[], list[Passage]]
    ) -> list[Passage]:
        whole = key | asdict(self.recipe) | {"seeds": seeds, "epochs": epochs, "device": self.data.device.type}
        whole |= {"data": self.data.name, "images": len(self.data)}
        names = [item.name for item in fields(Passage)]

        def arrays() -> dict[str, np.ndarray]:
            passages = compute()
            return {name: np.stack([getattr(passage, name) for passage in passages]) for name in names}

        kept = self.journal(whole, arrays)
        return [
            Passage(
                kept["ratio"][i],
                kept["share"][i],
                kept["passed"][i],
                kept["loss"][i],
                int(kept["per_epoch"][i]),
                int(kept["seed"][i]),
            )
            for i in range(len(seeds))
        ]
