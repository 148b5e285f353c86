"""Rows of the chapters on finite samples: networks through tens of thousands of images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Row, Side
from resid.data.loading import load_dataset
from resid.data.whitened import load_whitened
from resid.theory.memorize import construct_memorizer

#: The peer's size: its Gram matrix takes 1.1 GiB.
WHOLE = 12_000


def _components(n: int) -> Any:
    X, Y = load_whitened("mnist")
    return X[:n], Y[:n].argmax(1)


def _pixels(name: str) -> Any:
    """Random labels, which cost the same as the true ones."""
    images = load_dataset(name).images
    return images, torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(0))


def _memorize(width: int, given: Any) -> None:
    X, y = given
    error = construct_memorizer(X, y, width, verify=False).error(X, y)
    if not error < 1e-9:
        raise ArithmeticError(f"width {width}: the outputs miss the labels by {error:.1e}")


def _whole_gram(width: int, given: Any) -> None:
    """The construction written down plainly: all inner products at once, block after block, all points at once."""
    X, y = given
    z = X @ torch.randn(X.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    order = (z - z.mean(0)).norm(dim=1).argsort(descending=True)
    z, y = (z - z.mean(0))[order], y[order]
    turn = y * (2 * torch.pi / 10)
    q = torch.zeros_like(z)
    q[:, 0], q[:, 1] = 0.5 * z[-1].norm() * turn.cos(), 0.5 * z[-1].norm() * turn.sin()
    products = z @ z.mT
    squares = products.diagonal().clone()
    products.masked_fill_(torch.ones(len(z), len(z), dtype=torch.bool).tril(), -torch.inf)
    rivals = torch.maximum(products.amax(1), (z @ q[:50].mT).amax(1))
    bias, h = -(squares + rivals) / 2, z
    for rows in torch.arange(len(z)).split(width):
        U, s = z[rows], bias[rows]
        G = torch.relu(U @ U.mT + s[:, None]).tril()
        V = torch.linalg.solve_triangular(G, (q[rows] - U).mT, upper=False, left=False)
        h = h + torch.relu(h @ U.mT + s) @ V.mT
    if not float((h - q).abs().max()) < 1e-6:
        raise ArithmeticError("the plain construction misses a label")


def _row(name: str, what: str, prepare: Any, n: int, width: int, seconds: float, gib: float) -> Row:
    return Row(
        name=name,
        what=f"{what}, width {width}: construction, and evaluation on all of them",
        ours=Side("construct_memorizer, blockwise", prepare, partial(_memorize, width), n**2 // 10**6),
        peer=Side(
            f"with the whole Gram matrix, n = {WHOLE:,}",
            partial(_components, WHOLE),
            partial(_whole_gram, width),
            WHOLE**2 // 10**6,
        ),
        threads=2,
        least_ratio=0.5,
        most_seconds=seconds,
        most_gib=gib,
        unit="million pairs of points",
    )


ROWS = (
    *(
        _row(f"memorize-{n}", f"{n:,} images of MNIST, ten components", partial(_components, n), n, 8, 60, 1)
        for n in (15_000, 30_000, 60_000)
    ),
    *(
        _row(f"memorize-width-{k}", "60,000 images of MNIST, ten components", partial(_components, n), n, k, 180, 2)
        for n, k in ((60_000, 2), (60_000, 4), (60_000, 16))
    ),
    *(
        replace(
            _row(f"memorize-{name}", f"{n:,} images, pixels, random labels", partial(_pixels, name), n, 8, 180, 3),
            official=name,
        )
        for name, n in (("mnist", 60_000), ("cifar10", 50_000))
    ),
)  # fmt: skip
