"""Full-batch gradient descent of many small shortcut networks at once: one batched pass for all rates and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Generator, Tensor

from resid._arguments import ArrayLike, as_real, as_samples, as_whole, check_option
from resid.errors import OptionError, ShapeError
from resid.theory.shortcut import _native
from resid.theory.shortcut._activation import activate, derivatives
from resid.theory.shortcut._closed_form import places
from resid.theory.shortcut._moments import excess_and_gradient
from resid.theory.shortcut.network import ShortcutNetwork, best_map, second_moments
from resid.theory.targets import random_rotation

INITS = ("xavier", "orthogonal")
KERNELS = ("auto", "native", "torch")

#: A run whose loss exceeds its first by this factor, or is not finite, has diverged: it is taken out of the batch.
_DIVERGED = 1e6
#: On a CPU, runs in a group times width, and numbers behind one matrix for a group and a chunk of samples: enough that
#: a call takes little beside its product, few enough for the cache.
_ROWS, _VALUES = 80, 38_400
#: On a GPU, numbers in all stored values of a chunk: enough to hide the time of starting kernels.
_STORED_GPU = 1 << 29


@dataclass(frozen=True)
class Descent:
    """The result of `descend` for `runs` networks.

    Attributes:
        loss: (epochs + 1, runs), before the first step to after the last; for linear networks above that of the best
            matrix; infinite from the epoch in which a run has diverged.
        gradient_norm: (epochs + 1, runs), NaN where a run has diverged.
        weights: epoch -> weights (runs, units, length, d, d), for the epochs asked for and the last; NaN after
            divergence.
    """

    loss: Tensor
    gradient_norm: Tensor
    weights: dict[int, Tensor]

    @property
    def diverged(self) -> Tensor:
        """(runs,), whether a run has diverged."""
        return self.loss[-1].isinf()


def initial_weights(network: ShortcutNetwork, init: str, generator: Generator, scale: float = 1.0) -> Tensor:
    """Sample initial weights (units, length, d, d) of a network, float64.

    Args:
        network: whose weights.
        init: "xavier", Gaussian of variance 2/(fan_in + fan_out) = 1/d, or "orthogonal", Haar-distributed on O(d).
        generator: source of randomness.
        scale: factor; Li et al. start shortcut networks at 0.01 times Xavier.

    Raises:
        OptionError: unknown init.
    """
    check_option("init", init, INITS)
    d = network.width
    shape = (network.units, network.length, d, d)
    if init == "xavier":
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(d)
    count = network.units * network.length
    turns = torch.stack([random_rotation(d, generator) for _ in range(count)])
    reflect = torch.rand(count, generator=generator) < 0.5  # half of O(d) has determinant -1
    turns[reflect, 0] *= -1
    return scale * turns.view(shape)


def choose_kernel(network: ShortcutNetwork, weights: Tensor, kernel: str = "auto") -> str:
    """Choose what `descend` computes with: "moments", "native" or "torch".

    Args:
        network: the network to train.
        weights: any tensor of the weights' dtype and device.
        kernel: "auto", "native" or "torch".

    Raises:
        OptionError: unknown kernel, or one that cannot serve here.
    """
    check_option("kernel", kernel, KERNELS)
    if network.activation == "linear":
        return "moments"
    if kernel == "torch":
        return "torch"
    reason = _native.unsuited(network, weights)
    if reason and kernel == "native":
        raise OptionError(f"kernel = 'native': {reason}")
    return "torch" if reason else "native"


def descend(
    network: ShortcutNetwork,
    weights: ArrayLike,
    learning_rates: float | ArrayLike,
    X: ArrayLike,
    Y: ArrayLike,
    epochs: int,
    keep: Iterable[int] = (),
    progress: Callable[[int], None] | None = None,
    kernel: str = "auto",
) -> Descent:
    """Run gradient descent on the loss over all samples, for many networks of one shape at once.

    A linear network is trained on the second moments of the data, at a cost that does not depend on their number; any
    other on the data, in chunks, in the precision of `weights`. Runs do not influence each other: one that diverges is
    taken out and its loss is infinite from then on.

    Args:
        network: shape and activation of all of them.
        weights: initial weights (runs, units, length, d, d).
        learning_rates: (runs,) or a number, > 0.
        X: inputs (m, d).
        Y: labels (m, d).
        epochs: number of steps, >= 0.
        keep: epochs whose weights are kept.
        progress: called with each epoch, from 0.
        kernel: "native" is C++, compiled at the first call, for ReLU between the matrices on a CPU, and several times
            as fast as "torch"; "auto" takes it where it can. They differ by rounding.

    Returns:
        A `Descent`; deterministic for a given machine, kernel and number of threads.

    Raises:
        ShapeError: shapes that do not fit, or a learning rate that is not positive.
        NotFiniteError: an argument holds NaN or infinity.
        OptionError: `epochs`, `keep` or `kernel` cannot be used.

    Example:
        >>> network, eye = ShortcutNetwork(1, 1, 1), torch.eye(1, dtype=torch.float64)
        >>> descend(network, torch.zeros(2, 1, 1, 1, 1), [0.5, 3.0], eye, 3 * eye, epochs=60).diverged.tolist()
        [False, True]
    """
    W = as_real("weights", weights).detach().clone()
    expected = (network.units, network.length, network.width, network.width)
    if W.ndim != 5 or W.shape[1:] != expected:
        raise ShapeError(f"weights has shape {tuple(W.shape)}: (runs, {', '.join(map(str, expected))}) is needed")
    rates = as_real("learning_rates", learning_rates).to(W)
    if rates.ndim > 1 or (rates.ndim == 1 and len(rates) != len(W)) or not bool((rates > 0).all()):
        raise ShapeError(f"learning_rates has shape {tuple(rates.shape)}: a positive number, or {len(W)} of them")
    count = as_whole(epochs)
    if count is None or count < 0:
        raise OptionError(f"epochs = {epochs!r}: an integer of at least 0 is needed")
    wanted = {count, *keep}
    if not all(as_whole(e) is not None and 0 <= e <= count for e in wanted):
        raise OptionError(f"keep = {sorted(wanted)}: epochs from 0 to {count} are needed")
    evaluate = _evaluator(network, X, Y, W, choose_kernel(network, W, kernel))
    runs = len(W)
    rates = rates.expand(runs)
    loss, norm = W.new_full((count + 1, runs), math.inf), W.new_full((count + 1, runs), math.nan)
    saved: dict[int, Tensor] = {}
    active = torch.arange(runs, device=W.device)
    first = None
    for epoch in range(count + 1):
        value, gradient = evaluate(W)
        first = value if first is None else first
        well = value.isfinite() & (value <= _DIVERGED * first.clamp_min(1e-300))
        if not bool(well.all()):
            active, W, value, gradient, first = (t[well] for t in (active, W, value, gradient, first))
        loss[epoch, active] = value.clamp_min(0)
        norm[epoch, active] = gradient.flatten(1).norm(dim=1)
        if epoch in wanted:
            saved[epoch] = W.new_full((runs, *expected), math.nan).index_copy_(0, active, W)
        if progress is not None:
            progress(epoch)
        if not len(active):
            break
        if epoch < count:
            W = W - rates[active][:, None, None, None, None] * gradient
    for epoch in wanted - saved.keys():
        saved[epoch] = W.new_full((runs, *expected), math.nan)
    return Descent(loss, norm, saved)


def _evaluator(
    network: ShortcutNetwork, X: ArrayLike, Y: ArrayLike, like: Tensor, kernel: str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """weights -> (loss, gradient) for a batch of networks."""
    X, Y = as_samples(X, Y, f"(m, {network.width})")
    if X.shape[1] != network.width:
        raise ShapeError(f"X has shape {tuple(X.shape)}, Y {tuple(Y.shape)}: both must be (m, {network.width})")
    if kernel == "moments":
        xx, yx = second_moments(X.double(), Y.double())
        best = best_map(xx, yx).to(like)
        xx = xx.to(like)
        return lambda W: excess_and_gradient(W, xx, best, network.shortcut)
    columns, targets = X.mT.contiguous().to(like), Y.mT.contiguous().to(like)
    if kernel == "native":
        return _native.evaluator(network, columns, targets, like)
    return lambda W: _loss_and_gradient(network, W, columns, targets)


def _loss_and_gradient(network: ShortcutNetwork, W: Tensor, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss (runs,) and gradient by hand, samples in columns: X, Y (d, m). In groups of runs and chunks of samples."""
    runs, width = len(W), network.width
    if W.device.type == "cpu":
        group = max(1, min(runs, _ROWS // width))
        step = max(1, _VALUES // (group * width))
    else:
        group, step = runs, max(1, _STORED_GPU // (runs * width * network.depth))
    with torch.inference_mode():
        parts = [_in_chunks(network, part, X, Y, step) for part in W.split(group)]
    return torch.cat([loss for loss, _ in parts]), torch.cat([gradient for _, gradient in parts])


def _in_chunks(network: ShortcutNetwork, W: Tensor, X: Tensor, Y: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """One group of runs. Every chunk is computed in the memory of the one before."""
    (runs, units, length, d, _), m = W.shape, X.shape[1]
    where = places(length, network.activation, network.position)
    moved = W.permute(1, 2, 0, 3, 4).contiguous()  # (units, length, runs, d, d): a batch of products lies together
    gradient = torch.zeros_like(moved)
    weights, turned, gradients = ([list(unit) for unit in t] for t in (moved, moved.mT, gradient))
    loss = W.new_zeros(runs)
    size = 0
    for start in range(0, m, step):
        chunk = slice(start, min(start + step, m))
        if chunk.stop - start != size:
            size = chunk.stop - start
            memory = cache(lambda *_, size=size: W.new_empty(runs, d, size))
        inputs, pulls = [], {}
        h = memory("h", 0).copy_(X[:, chunk].expand(runs, d, size))
        for r in range(units):
            v = h
            for place in range(length + 1):
                if place in where:
                    v, pulls[r, place] = _activate(network.activation, v, v if place else memory("v", r, -1))
                if place < length:
                    inputs.append(v)
                    passing = network.shortcut and place == length - 1 and length not in where  # only added on
                    v = torch.bmm(weights[r][place], v, out=memory("v", "passing" if passing else r, place))
            h = torch.add(h, v, out=memory("h", r + 1)) if network.shortcut else v
        back = torch.sub(h, Y[:, chunk], out=memory("back"))
        loss += torch.mul(back, back, out=memory("g", 0)).sum((1, 2))
        for r in reversed(range(units)):
            g = memory("g", length % 2).copy_(back)
            for place in reversed(range(length + 1)):
                if place in where:
                    pulls[r, place](g)
                if place:
                    gradients[r][place - 1].baddbmm_(g, inputs.pop().mT)
                    g = torch.bmm(turned[r][place - 1], g, out=memory("g", (place - 1) % 2))
            back = back.add_(g) if network.shortcut else back.copy_(g)
    return loss / (2 * m), gradient.permute(2, 0, 1, 3, 4) / m


def _activate(activation: str, v: Tensor, out: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """sigma(v), in `out`, and what turns the gradient by it into that by v, in place."""
    if activation == "relu":  # its slope shows in its value: nothing more is kept
        value = torch.clamp_min(v, 0, out=out)
        return value, lambda g: torch.ops.aten.threshold_backward.grad_input(g, value, 0, grad_input=g)
    slope = derivatives(activation, v)[0]
    return out.copy_(activate(activation, v)), lambda g: g.mul_(slope)
