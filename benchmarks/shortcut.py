"""Rows of the chapters on shortcuts: exact Hessians and batched descent, width 10."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, Side
from resid.data.whitened import load_whitened
from resid.theory.shortcut import ShortcutNetwork, choose_kernel, descend, initial_weights, second_moments

CHUNK = 100
RUNS, EPOCHS, ALONE = 39, 30, 4
RELU_RUNS, RELU_EPOCHS = 8, 2


def _network(depth: int, activation: str = "linear") -> tuple[ShortcutNetwork, Tensor]:
    network = ShortcutNetwork(2, depth // 2, 10, activation)
    return network, initial_weights(network, "xavier", torch.Generator().manual_seed(0), 0.3)


def _moments(depth: int) -> Any:
    return *_network(depth), *second_moments(*load_whitened("digits"))


def _data(depth: int, activation: str = "linear") -> Any:
    return *_network(depth, activation), *load_whitened("digits")


def _closed_moments(given: Any) -> None:
    network, W, xx, yx = given
    network.hessian_from_moments(W, xx, yx)


def _closed_data(given: Any) -> None:
    network, W, X, Y = given
    network.hessian(W, X, Y)


def _moment_loss(network: ShortcutNetwork, W: Tensor, xx: Tensor, yx: Tensor) -> Any:
    """The loss as a function of the flat weights, less a constant."""

    def loss(flat: Tensor) -> Tensor:
        whole = network.linear_map(flat.view(W.shape))
        return 0.5 * ((whole @ xx) * whole).sum() - (whole * yx).sum()

    return loss


def _autograd_moments(given: Any) -> None:
    torch.func.hessian(_moment_loss(*given))(given[1].flatten())


def _hessian_vector_products(given: Any) -> None:
    """All columns by forward over reverse differentiation, in chunks that fit the memory."""
    network, W, X, Y = given
    gradient = torch.func.grad(lambda flat: network.loss(flat.view(W.shape), X, Y))

    def product(direction: Tensor) -> Tensor:
        return torch.func.jvp(gradient, (W.flatten(),), (direction,))[1]

    basis = torch.eye(W.numel(), dtype=W.dtype)
    torch.cat([torch.func.vmap(product)(rows) for rows in basis.split(CHUNK)])


def _starts() -> Any:
    network, _ = _network(16)
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([initial_weights(network, "xavier", generator, 0.01) for _ in range(RUNS)])
    return network, starts, torch.logspace(-3, 0, RUNS, dtype=torch.float64), *load_whitened("digits")


def _batch(given: Any) -> None:
    network, starts, rates, X, Y = given
    descend(network, starts, rates, X, Y, EPOCHS)


def _descend_alone(given: Any) -> None:
    network, starts, rates, X, Y = given
    for W, rate in zip(starts, rates, strict=True):
        descend(network, W[None], rate, X, Y, EPOCHS)


def _autograd_alone(given: Any) -> None:
    """What one would write at first: the network on the data, one training after another, a few of them."""
    network, starts, rates, X, Y = given
    for W, rate in zip(starts[:ALONE], rates, strict=False):
        W = W.clone()
        for _ in range(EPOCHS):
            (gradient,) = torch.autograd.grad(network.loss(W.requires_grad_(), X, Y), W)
            W = (W - rate * gradient).detach()


def _relu_starts() -> Any:
    network, _ = _network(16, "relu")
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([initial_weights(network, "xavier", generator, 0.01) for _ in range(RELU_RUNS)])
    choose_kernel(network, starts.float(), "native")  # compiles it outside the clock
    return network, starts.float(), *(t.float() for t in load_whitened("mnist"))


def _relu_descend(given: Any, kernel: str) -> None:
    network, starts, X, Y = given
    descend(network, starts, 0.1, X, Y, RELU_EPOCHS - 1, kernel=kernel)


def _relu_autograd(given: Any) -> None:
    """All networks at once as batched products, their gradient by autograd."""
    _, W, X, Y = given
    for _ in range(RELU_EPOCHS):
        W = W.detach().requires_grad_()
        h = X.mT.expand(len(W), -1, -1)
        for unit in W.unbind(1):
            h = h + torch.bmm(unit[:, 1], torch.bmm(unit[:, 0], h).relu())
        loss = (h - Y.mT).square().sum() / (2 * len(X))
        (gradient,) = torch.autograd.grad(loss, W)
        W = W - 0.1 * gradient


_AUTOGRAD = "torch.func.hessian of the loss on the moments"
_PRODUCTS = f"vmapped Hessian-vector products on the data, {CHUNK} at a time"

#: Least accepted ratio at each depth; the rows are also the curve of cost against depth.
_LEAST = {4: 1, 8: 2, 16: 4, 32: 15, 64: 15}

_AGAINST_DEPTH = tuple(
    Row(
        name=f"hessian-{depth}",
        what=f"Hessian of a linear 2-shortcut network, depth {depth}, {100 * depth:,} parameters",
        ours=Side("hessian_from_moments", partial(_moments, depth), _closed_moments),
        peer=Side(_AUTOGRAD, partial(_moments, depth), _autograd_moments),
        threads=1,
        least_ratio=least,
    )
    for depth, least in _LEAST.items()
)

ROWS = (
    *_AGAINST_DEPTH,
    Row(
        name="hessian-96",
        what="Hessian of a linear 2-shortcut network, depth 96, 9,600 parameters, beside depth 32",
        ours=Side("hessian_from_moments", lambda: _moments(96), _closed_moments, units=9600**2 // 10**6),
        peer=Side(f"{_AUTOGRAD}, depth 32", lambda: _moments(32), _autograd_moments, units=3200**2 // 10**6),
        threads=1,
        least_ratio=4,
        most_seconds=3,
        most_gib=1.5,
        unit="million entries",
    ),
    Row(
        name="hessian-data-16",
        what="Hessian of a linear 2-shortcut network on 1,797 samples, depth 16",
        ours=Side("ShortcutNetwork.hessian", lambda: _data(16), _closed_data),
        peer=Side(_PRODUCTS, lambda: _data(16), _hessian_vector_products),
        threads=1,
        least_ratio=500,
    ),
    Row(
        name="hessian-relu-16",
        what="Hessian of a 2-shortcut network with ReLU on 1,797 samples, depth 16",
        ours=Side("ShortcutNetwork.hessian", lambda: _data(16, "relu"), _closed_data),
        peer=Side(_PRODUCTS, lambda: _data(16, "relu"), _hessian_vector_products),
        threads=1,
        least_ratio=4,
    ),
    Row(
        name="descent",
        what=f"{EPOCHS} epochs of {RUNS} linear networks of depth 16 on 1,797 samples",
        ours=Side("descend, all networks at once, on moments", _starts, _batch, RUNS * EPOCHS),
        peer=Side("autograd on the data, one network after another", _starts, _autograd_alone, ALONE * EPOCHS),
        threads=1,
        least_ratio=10,
        unit="network and epoch",
    ),
    Row(
        name="descent-batch",
        what=f"{EPOCHS} epochs of {RUNS} linear networks of depth 16: the batch alone",
        ours=Side("descend, all networks at once", _starts, _batch, RUNS * EPOCHS),
        peer=Side("descend, one network after another", _starts, _descend_alone, RUNS * EPOCHS),
        threads=1,
        least_ratio=7,
        unit="network and epoch",
    ),
    *(
        Row(
            name=name,
            what=f"{RELU_EPOCHS} epochs of {RELU_RUNS} networks of depth 16 with ReLU on 60,000 samples, float32",
            ours=Side("descend, compiled", _relu_starts, partial(_relu_descend, kernel="native"), units),
            peer=Side(label, _relu_starts, run, units),
            threads=1,
            least_ratio=least,
            unit="network and epoch",
        )
        for units in (RELU_RUNS * RELU_EPOCHS,)
        for name, label, run, least in (
            ("descent-relu", "batched products and autograd", _relu_autograd, 8),
            ("descent-relu-torch", "descend, kernel = 'torch'", partial(_relu_descend, kernel="torch"), 3),
        )
    ),
)
