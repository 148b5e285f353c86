"""Parts of the constructions of `resid.theory.memorize`: half-spaces and their gaps, blocks that move points."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from resid._arguments import ArrayLike, as_real, as_whole
from resid.errors import MarginError, NotFiniteError, SampleConflictError, ShapeError

#: Rows of data converted and multiplied at a time: a few chunks of 3,072 float64 columns fit in 100 MB.
ROWS = 4096
#: Inner products held at a time (float64): 64 MiB, and no n x n array.
_PRODUCTS = 1 << 23


def as_points(name: str, value: ArrayLike) -> Tensor:
    """Finite real points (n, ...) with n, d >= 1, flattened to (n, d); integers stay as they are, to save memory."""
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        points = value
    else:
        points = as_real(name, value)
    if points.dtype == torch.bool or points.ndim < 2 or 0 in points.shape:
        raise ShapeError(f"{name} has shape {tuple(points.shape)} and dtype {points.dtype}: numbers (n, d) are needed")
    return points.detach().flatten(1)


def as_labels(name: str, value: ArrayLike, n: int, classes: int | None = None) -> tuple[Tensor, int]:
    """Class numbers (n,), int64, from 0 on, and how many classes there are (`classes`, or the largest plus one)."""
    labels = as_real(name, value).detach()
    if labels.shape != (n,):
        raise ShapeError(f"{name} has shape {tuple(labels.shape)}: one label for each of the {n} points is needed")
    numbers = labels.to(torch.int64)
    if bool((numbers != labels).any()) or bool((numbers < 0).any()):
        bad = int(((numbers != labels) | (numbers < 0)).nonzero()[0])
        raise ShapeError(f"{name}[{bad}] = {labels[bad].item()}: class numbers 0, 1, 2, ... are needed")
    least = int(numbers.max()) + 1
    count = least if classes is None else as_whole(classes)
    if count is None or count < least:
        raise ShapeError(f"classes = {classes!r}: an integer of at least {least} is needed, the labels go so far")
    return numbers, count


def chunks(X: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of X as float64, `ROWS` at a time."""
    for start in range(0, len(X), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, X[rows].to(torch.float64)


def first_of_equal(X: Tensor, y: Tensor) -> Tensor:
    """Indices of the points without later copies of the same point.

    Raises:
        SampleConflictError: two equal points have different labels.
    """
    seen: dict[bytes, int] = {}
    first_ones = []
    for rows, chunk in chunks(X):
        for i, row in enumerate((chunk + 0.0).cpu().numpy(), rows.start):  # + 0.0 turns -0.0 into 0.0
            first = seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), i)
            if first == i:
                first_ones.append(i)
            elif y[first] != y[i]:
                raise SampleConflictError(
                    f"X[{first}] and X[{i}] are the same point and y[{first}] = {int(y[first])}, y[{i}] = {int(y[i])}: "
                    "no function maps it to both labels"
                )
    return torch.tensor(first_ones, device=X.device)


def affine(X: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """matrix x + bias for every row x of X, (n, k) in the precision of `matrix`."""
    images = matrix.new_empty(len(X), len(matrix))
    for start in range(0, len(X), ROWS):
        rows = slice(start, start + ROWS)
        torch.addmm(bias, X[rows].to(matrix), matrix.mT, out=images[rows])
    return images


def competitors(z: Tensor, q: Tensor, later: bool = False) -> Tensor:
    """For each point the largest inner product with another point, or with a surrogate label: (n,).

    later: count only points that come later in the order of z.
    """
    n = len(z)
    largest = z.new_full((n,), -math.inf)
    size = max(1, _PRODUCTS // max(n, len(q), 1))
    for start in range(0, n, size):
        rows = slice(start, min(n, start + size))
        first = start if later else 0
        products = z[rows] @ z[first:].mT
        own = torch.arange(rows.start, rows.stop, device=z.device) - first
        if later:  # of the square on the diagonal what is not above it
            square = products[:, : len(own)]
            square.masked_fill_(torch.ones_like(square, dtype=torch.bool).tril(), -math.inf)
        else:
            products[own - own[0], own] = -math.inf
        largest[rows] = products.amax(1)
        if len(q):
            largest[rows] = torch.maximum(largest[rows], (z[rows] @ q.mT).amax(1))
    return largest


def moving_blocks(z: Tensor, targets: Tensor, bias: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks that move point i from z_i to targets_i, `width` points a block, in the order of z.

    Neuron i is ReLU(<z_i, .> + bias_i). It must be positive on z_i and zero on every later point and on what earlier
    points have become; then the activations inside a block form a triangular matrix G, and V = (targets - z) G^-1.

    Returns:
        U (blocks, width, k), s (blocks, width), V (blocks, k, width); unused neurons of the last block have U = 0,
        s = -1.
    """
    n, k = z.shape
    blocks = -(-n // width)
    U, s = z.new_zeros(blocks * width, k), z.new_full((blocks * width,), -1.0)
    move = z.new_zeros(blocks * width, k)
    U[:n], s[:n], move[:n] = z, bias, targets - z
    U, s, move = U.view(blocks, width, k), s.view(blocks, width), move.view(blocks, width, k)
    G = torch.relu(U @ U.mT + s[:, :, None])  # neuron by point
    unused = torch.arange(blocks * width, device=z.device).view(blocks, width) >= n
    G = G.tril() + torch.diag_embed(unused.to(z))
    V = torch.linalg.solve_triangular(G, move.mT, upper=False, left=False)
    return U, s, V


def surrogates(r: int, k: int, generator: Generator) -> Tensor:
    """r unit vectors (r, k), pairwise apart: plus and minus the axes, else points of a circle or the best of 20 draws.

    For k = 1 they are different points of the interval [1/2, 1], since there are no more than two unit vectors.
    """
    if k == 1:
        return 1 - torch.arange(r, dtype=torch.float64)[:, None] / (2 * r)
    if r <= 2 * k:
        axes = torch.eye(k, dtype=torch.float64)
        return torch.cat([axes, -axes])[:r]
    turn = torch.arange(r, dtype=torch.float64) * (2 * math.pi / r)
    best = torch.zeros(r, k, dtype=torch.float64)
    best[:, 0], best[:, 1] = turn.cos(), turn.sin()
    for _ in range(20 if k > 2 else 0):
        draw = random_units(r, k, generator)
        if competitors(draw, draw[:0]).max() < competitors(best, best[:0]).max():
            best = draw
    return best


def random_units(r: int, k: int, generator: Generator) -> Tensor:
    """r random unit vectors (r, k)."""
    return torch.nn.functional.normalize(torch.randn(r, k, generator=generator, dtype=torch.float64), dim=1)


def clear_origin(w: Tensor, generator: Generator) -> Tensor:
    """A point (k,) near the mean of the points w that keeps away from all of them: the best of 16 draws."""
    mean = w.mean(0)
    spread = float((w - mean).square().sum(1).mean().sqrt()) or 1.0
    draws = torch.randn(16, w.shape[1], generator=generator, dtype=torch.float64).to(w)
    candidates = mean + 0.1 * spread * draws / w.shape[1] ** 0.5
    nearest = torch.stack([(w - c).square().sum(1).min() for c in candidates])
    return candidates[int(nearest.argmax())]


def check_no_overflow(name: str, X: Tensor) -> None:
    """A projection has to be finite; entries near the largest float64 are too large for inner products."""
    if not bool(torch.isfinite(X).all()):
        raise NotFiniteError(f"{name} overflows: its entries are too large for inner products in float64")


def too_close(z: Tensor, order: Tensor, gap: Tensor, mode: str, advice: str) -> MarginError:
    """The error for a point whose half-space is not its own, naming the two points."""
    i = int(gap.argmin())
    products = z @ z[i]
    products[i] = -math.inf
    j = int(products[i + 1 :].argmax()) + i + 1 if mode == "triangular" and i + 1 < len(z) else int(products.argmax())
    distance = float((z[i] - z[j]).norm())
    return MarginError(
        f"mode = {mode!r}: no neuron can tell X[{int(order[i])}] from X[{int(order[j])}] or from a surrogate label, "
        f"their gap is {float(gap[i]):.3g} and their projections are {distance:.3g} apart; {advice}"
    )


def projection_matrix(X: Tensor, k: int, kind: str, generator: Generator, unit: bool = True) -> Tensor:
    """A_0 (k, d). unit: scaled so that the projected points are of the order of 1, whatever the data's units are."""
    d = X.shape[1]
    if kind == "orthogonal":
        long, short = max(k, d), min(k, d)
        Q = torch.linalg.qr(torch.randn(long, short, generator=generator, dtype=torch.float64))[0]
        matrix = Q if k >= d else Q.mT * (d / k) ** 0.5
    else:
        matrix = torch.randn(k, d, generator=generator, dtype=torch.float64) / k**0.5
    matrix = matrix.to(X.device)
    if unit:
        largest = max(float(chunk.abs().max()) for _, chunk in chunks(X))
        matrix = matrix / max(largest, 1e-290) if largest else matrix
        w = affine(X, matrix, matrix.new_zeros(k))
        spread = float((w - w.mean(0)).square().sum(1).mean().sqrt())
        matrix = matrix / spread if spread > 1e-12 else matrix
    return matrix
