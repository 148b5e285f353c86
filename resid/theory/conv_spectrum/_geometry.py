"""A convolution as a family of small matrices, one for each frequency: what spectrum and projection share.

A strided convolution reads its input on `stride` x `stride` interleaved grids. Counting those as channels of their own,
which only renames the entries of the input, leaves a convolution of stride 1 on the coarse grid. Output position P is

    y[P] = sum over taps (q, r) of K[q, r] x_r[P + q],   x_r[P] = x[stride P + r],

and on waves x_r[P] = v_r e^(i w P) it acts as the matrix A(w) = sum_q K[q] e^(i w q), one block of columns for each r.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from resid._arguments import ArrayLike, IntPair, as_kernel, as_pair, as_size
from resid.errors import OptionError, SizeError

#: Entries of the matrices of one chunk; a few of this size are alive at a time.
_CHUNK = 2**21


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: input size, taps, stride, dilation, padding before and after, and whether it wraps."""

    n: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int
    circular: bool

    @property
    def outputs(self) -> int:
        """Output positions."""
        return (self.n + self.before + self.after - self.dilation * (self.taps - 1) - 1) // self.stride + 1

    @property
    def is_pointwise(self) -> bool:
        """One tap and no padding: no neighbour is read."""
        return self.taps == 1 and self.before == self.after == 0

    @property
    def is_periodic(self) -> bool:
        """The map commutes with shifts of the coarse grid, so that frequencies do not mix."""
        return self.is_pointwise or (self.circular and self.n % self.stride == 0)

    def places(self) -> list[tuple[int, int]]:
        """(phase r, coarse shift q) of each tap: it reads input position stride (P + q) + r."""
        offsets = [self.dilation * t - self.before for t in range(self.taps)]
        return [(o % self.stride, (o // self.stride) % self.outputs) for o in offsets]


@dataclass(frozen=True)
class Convolution:
    """A checked kernel (c_out, c_in/groups, height, width) with its two axes and groups."""

    kernel: Tensor
    rows: Axis
    columns: Axis
    groups: int

    @property
    def inputs(self) -> tuple[int, int, int]:
        """Shape of the input: channels, height, width."""
        return self.kernel.shape[1] * self.groups, self.rows.n, self.columns.n

    @property
    def outputs(self) -> tuple[int, int, int]:
        """Shape of the output: channels, height, width."""
        return self.kernel.shape[0], self.rows.outputs, self.columns.outputs

    @property
    def is_periodic(self) -> bool:
        """Frequencies do not mix."""
        return self.rows.is_periodic and self.columns.is_periodic


def as_convolution(
    kernel: ArrayLike,
    n: IntPair,
    stride: IntPair = 1,
    padding: str | IntPair = "circular",
    groups: int = 1,
    dilation: IntPair = 1,
) -> Convolution:
    """Check the arguments that all functions on convolutions share.

    Args:
        kernel: (c_out, c_in/groups, height, width).
        n: size of the input.
        stride: of the convolution.
        padding: "circular", "zeros", or the number of zeros on each side.
        groups: of the convolution.
        dilation: of the convolution.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        SizeError: a size is no integer >= 1, or the output has no position.
        OptionError: unknown padding.
    """
    groups = as_size("groups", groups)
    K = as_kernel("kernel", kernel, groups)
    sizes, strides, dilations = as_pair("n", n), as_pair("stride", stride), as_pair("dilation", dilation)
    if isinstance(padding, str) and padding not in ("circular", "zeros"):
        raise OptionError(f"padding = {padding!r}: 'circular', 'zeros', or the number of zeros on each side is needed")
    zeros = None if isinstance(padding, str) else as_pair("padding", padding, 0)
    axes = []
    for i in range(2):
        reach = dilations[i] * (K.shape[2 + i] - 1)
        around = (reach // 2, reach - reach // 2) if zeros is None else (zeros[i], zeros[i])
        axis = Axis(sizes[i], K.shape[2 + i], strides[i], dilations[i], *around, circular=padding == "circular")
        if axis.outputs < 1:
            raise SizeError(
                f"n = {n!r}: with a kernel of {axis.taps} taps, dilation {axis.dilation} and padding = {padding!r} the "
                "output has no position"
            )
        axes.append(axis)
    return Convolution(K, axes[0], axes[1], groups)


@dataclass(frozen=True)
class Taps:
    """A periodic convolution on the coarse grid: matrices (groups, d, C, S) at S shifts, and where they came from.

    C counts the input channels of a group times the interleaved grids that are read at all.
    """

    values: Tensor
    grid: tuple[int, int]
    shifts: tuple[tuple[int, ...], tuple[int, ...]]
    scatter: tuple[Tensor, Tensor]

    def kernel(self, values: Tensor) -> Tensor:
        """Return the kernel (c_out, c_in/groups, height, width) with these values (groups, d, C, S), after the crop."""
        rows, columns = self.scatter
        groups, d = values.shape[:2]
        wide = values.view(
            groups, d, -1, rows.shape[1], columns.shape[1], rows.shape[2], columns.shape[2]
        )  # c, phases, shifts
        return torch.einsum("gdcPQST,aPS,bQT->gdcab", wide, rows, columns).flatten(0, 1)


def taps_of(conv: Convolution) -> Taps:
    """The coarse-grid matrices of a periodic convolution; taps that fall on one another modulo n are added."""
    K = conv.kernel
    scatter, shifts = [], []
    for axis in (conv.rows, conv.columns):
        places = axis.places()
        phases, reached = sorted({r for r, _ in places}), sorted({q for _, q in places})
        hit = torch.zeros(axis.taps, len(phases), len(reached), dtype=K.dtype, device=K.device)
        for t, (r, q) in enumerate(places):
            hit[t, phases.index(r), reached.index(q)] = 1
        scatter.append(hit)
        shifts.append(tuple(reached))
    grouped = K.reshape(conv.groups, -1, *K.shape[1:])
    wide = torch.einsum("gdcab,aPS,bQT->gdcPQST", grouped, *scatter)
    values = wide.flatten(2, 4).flatten(-2)
    return Taps(values, (conv.rows.outputs, conv.columns.outputs), (shifts[0], shifts[1]), (scatter[0], scatter[1]))


@lru_cache(maxsize=64)
def half_grid(height: int, width: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Frequencies (p, q): one of each pair (p, q), (-p, -q) modulo the grid, then those equal to their own negative.

    A real kernel has conjugate matrices at (p, q) and (-p, -q), and real ones where the two coincide.

    Example:
        >>> pairs, singles = half_grid(3, 4)
        >>> 2 * len(pairs) + len(singles)
        12
    """
    pairs, singles = [], []
    for p in range(height):
        for q in range(width // 2 + 1):
            mirror = (-p % height, -q % width)
            if mirror == (p, q):
                singles.append((p, q))
            elif mirror[1] != q or mirror[0] > p:  # column 0 and the middle one hold both of a pair
                pairs.append((p, q))
    return tuple(pairs), tuple(singles)


def waves(grid: tuple[int, int], shifts: tuple[Any, Any], where: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the phases w q, both (frequencies, shifts), in the dtype of `like`; arguments reduced exactly."""
    at = torch.tensor(where, dtype=torch.int64, device=like.device).view(-1, 2)
    turns = []
    for axis in range(2):
        q = torch.tensor(shifts[axis], dtype=torch.int64, device=like.device)
        turns.append((at[:, axis, None] * q % grid[axis]).to(torch.float64) / grid[axis])
    angle = (2 * math.pi * (turns[0][:, :, None] + turns[1][:, None, :])).flatten(1)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def transfer(taps: Taps, chunk: int = _CHUNK) -> Iterator[tuple[Tensor, int, Tensor, Tensor]]:
    """Matrices A(w) (frequencies, groups, d, C) in pieces, with weight 2 or 1, cos and sin of their phases.

    Pieces of weight 2 are complex, one of each conjugate pair; those of weight 1 are real.
    """
    flat = taps.values.flatten(0, 2)
    pairs, singles = half_grid(*taps.grid)
    for where, weight in ((pairs, 2), (singles, 1)):
        step = max(1, chunk // len(flat))
        for start in range(0, len(where), step):
            cos, sin = waves(taps.grid, taps.shifts, where[start : start + step], flat)
            real = cos @ flat.mT
            A = torch.complex(real, sin @ flat.mT) if weight == 2 else real
            yield A.view(-1, *taps.values.shape[:3]), weight, cos, sin


def backward_transfer(taps: Taps, A: Tensor, weight: int, cos: Tensor, sin: Tensor) -> Tensor:
    """The share of the taps (groups, d, C, S) that these matrices contribute: (weight/N) sum Re(A e^(-i w q))."""
    flat = A.flatten(1)
    total = cos.mT @ flat.real + sin.mT @ flat.imag if A.is_complex() else cos.mT @ flat
    return (weight / math.prod(taps.grid)) * total.mT.view(taps.values.shape)
