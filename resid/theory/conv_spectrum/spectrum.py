"""Singular values of convolutions. Sedghi, Gupta & Long 2019; Zaeemzadeh et al. 2018, Theorem 3.

A convolution is the linear map from images (c_in, n, n) to images (c_out, m, m) that `torch.nn.functional.conv2d`
computes: a cross-correlation. Its matrix has rows (channel, row, column) of the output and columns (channel, row,
column) of the input.

Padding "circular" lets the input wrap around, with ceil(n/stride) output positions; "zeros" puts as many zeros around
as keep the size at stride 1, the larger half behind; a number puts so many zeros on each side, as `torch.nn.Conv2d`
does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resid._ambient import isolated
from resid._arguments import ArrayLike, IntPair, as_kernel, as_size
from resid.errors import SizeError
from resid.theory.conv_spectrum._geometry import Axis, Convolution, as_convolution, half_grid, taps_of, transfer

#: Entries of the largest dense matrix that is built.
_DENSE = 2**26


@isolated
def conv_singular_values(
    kernel: ArrayLike,
    n: IntPair,
    stride: IntPair = 1,
    padding: str | IntPair = "circular",
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Compute all singular values of a convolution, with multiplicity, min(c_in n^2, c_out m^2) of them; exact.

    With circular padding, stride 1: those of the n^2 matrices A(w) = sum_t K[t] e^(i w t) (c_out, c_in). A real kernel
    has conjugate matrices at opposite frequencies, so about half of them are decomposed. Stride s that divides n: the
    (n/s)^2 matrices of the s^2 interleaved grids, (c_out, c_in s^2). With zero padding, or a stride that does not
    divide n, frequencies mix and the dense matrix is decomposed; `largest_conv_singular_values` and
    `zero_padding_bound` do with less. Work is done in float64 on the CPU.

    Args:
        kernel: (c_out, c_in/groups, height, width), as in `torch.nn.Conv2d`.
        n: size of the input, an integer or (height, width).
        stride: integer or pair.
        padding: "circular", "zeros" or the number of zeros on each side.
        groups: of the convolution.
        dilation: integer or pair.

    Returns:
        Descending, dtype and device of `kernel`.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        OptionError: unknown padding.
        SizeError: a size that is no integer >= 1, no output position, or a dense matrix of more than 2^26 entries.

    Source: Sedghi et al. 2019, Theorem 6; Zaeemzadeh et al. 2018, Theorem 3. Strides: this project.

    Example:
        >>> mean = torch.full((1, 1, 3, 3), 1 / 9)
        >>> values = conv_singular_values(mean, n=4)
        >>> len(values), round(float(values[0]), 4)  # a constant image is kept
        (16, 1.0)
    """
    conv = _as_float64(kernel, n, stride, padding, groups, dilation)
    if not conv.is_periodic:
        values = torch.cat([torch.linalg.svdvals(_matrix(group)) for group in _each_group(conv)])
    else:
        taps = taps_of(conv)
        if taps.values.shape[-1] == 1:  # one shift: all A(w) are the same up to a phase
            values = torch.linalg.svdvals(taps.values[..., 0]).flatten().repeat(math.prod(taps.grid))
        else:
            # both of a conjugate pair have the same singular values
            pieces = [torch.linalg.svdvals(A).flatten().repeat(weight) for A, weight, _, _ in transfer(taps)]
            values = torch.cat(pieces)
    full = min(math.prod(conv.inputs), math.prod(conv.outputs))
    values = torch.cat([values, values.new_zeros(max(0, full - len(values)))])  # input positions that are never read
    return values.sort(descending=True).values[:full].to(_like(kernel))


@isolated
def conv_matrix(
    kernel: ArrayLike,
    n: IntPair,
    stride: IntPair = 1,
    padding: str | IntPair = "circular",
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Build the matrix (c_out m_h m_w, c_in n_h n_w) of a convolution, by pushing the identity through `conv2d`.

    Args:
        kernel: (c_out, c_in/groups, height, width), as in `torch.nn.Conv2d`.
        n: size of the input, an integer or (height, width).
        stride: integer or pair.
        padding: "circular", "zeros" or the number of zeros on each side.
        groups: of the convolution.
        dilation: integer or pair.

    Returns:
        Dense, dtype and device of `kernel`.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        OptionError: unknown padding.
        SizeError: a size that is no integer >= 1, no output position, or more than 2^26 entries.

    Example:
        >>> difference = torch.tensor([[[[-1.0, 1.0]]]])
        >>> conv_matrix(difference, n=(1, 3))
        tensor([[-1.,  1.,  0.],
                [ 0., -1.,  1.],
                [ 1.,  0., -1.]])
    """
    return _matrix(as_convolution(kernel, n, stride, padding, groups, dilation))


@isolated(grad=True)
def largest_conv_singular_values(
    kernel: ArrayLike,
    n: IntPair,
    count: int = 1,
    stride: IntPair = 1,
    padding: str | IntPair = "zeros",
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Compute the `count` largest singular values without the dense matrix, by Lanczos iteration on conv2d (ARPACK).

    Exact to about 1e-8 of the largest; for zero padding, where the dense matrix of `conv_singular_values` is too
    large. Small singular values are out of reach for it.

    Args:
        kernel: (c_out, c_in/groups, height, width), as in `torch.nn.Conv2d`.
        n: size of the input, an integer or (height, width).
        count: how many, below min(c_in n^2, c_out m^2).
        stride: integer or pair.
        padding: "circular", "zeros" or the number of zeros on each side.
        groups: of the convolution.
        dilation: integer or pair.

    Returns:
        (count,), descending, dtype and device of `kernel`.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        OptionError: unknown padding.
        SizeError: a size that is no integer >= 1, no output position, or too large a count.

    Example:
        >>> round(float(largest_conv_singular_values(torch.ones(1, 1, 3, 3), n=20)[0]), 4)  # (1 + 2 cos(pi/21))^2
        8.8665
    """
    from scipy.sparse.linalg import LinearOperator, svds  # which takes half a second to import

    conv = _as_float64(kernel, n, stride, padding, groups, dilation)
    rows, columns = math.prod(conv.outputs), math.prod(conv.inputs)
    count = as_size("count", count)
    if count >= min(rows, columns):
        raise SizeError(f"count = {count}: below {min(rows, columns)} is needed; conv_singular_values gives all")
    conv = replace(conv, kernel=conv.kernel.clone())  # a tensor of an inference mode cannot be saved
    probe = torch.zeros(1, *conv.inputs, dtype=torch.float64, requires_grad=True)
    image = _apply(conv, probe)

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _apply(conv, torch.from_numpy(x.reshape(1, *conv.inputs))).flatten().numpy()

    def backward(y: np.ndarray) -> np.ndarray:
        weights = torch.from_numpy(np.ascontiguousarray(y).reshape(image.shape))
        return torch.autograd.grad(image, probe, weights, retain_graph=True)[0].flatten().numpy()

    draw = np.random.default_rng(0)
    if not forward(draw.standard_normal(columns)).any():  # the map is zero, for which ARPACK has no start
        return _like(kernel).new_zeros(count)
    operator = LinearOperator((rows, columns), matvec=forward, rmatvec=backward, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    values = svds(operator, k=count, v0=start, return_singular_vectors=False, tol=1e-10)
    return torch.from_numpy(np.sort(values)[::-1].copy()).to(_like(kernel))


@isolated
def zero_padding_bound(
    kernel: ArrayLike, n: IntPair, torus: IntPair | None = None, groups: int = 1, dilation: IntPair = 1
) -> float:
    """Bound the largest singular value with zero padding at stride 1 from above: by the circular map on a torus.

    An image with zeros around it is an image on a larger torus, and cutting out the output does not lengthen it: the
    zero-padded map is P A E with an embedding E and a restriction P. This holds for every torus on which nothing wraps
    from one side of the image to the other.

    Args:
        kernel: (c_out, c_in/groups, height, width), as in `torch.nn.Conv2d`.
        n: size of the input, an integer or (height, width).
        torus: its size, an integer or a pair; default n + dilation (k - 1).
        groups: of the convolution.
        dilation: integer or pair.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        SizeError: a size that is no integer >= 1, or a torus smaller than n plus the zeros on one side.

    Example:
        >>> kernel = torch.tensor([[[[1.0, -1.0]]]])
        >>> bound, exact = zero_padding_bound(kernel, (1, 6)), conv_singular_values(kernel, (1, 6), padding="zeros")
        >>> float(exact[0]) <= bound <= 2
        True
    """
    conv = as_convolution(kernel, n, 1, "zeros", groups, dilation)
    axes = (conv.rows, conv.columns)
    sizes = torus if torus is not None else tuple(a.n + a.before + a.after for a in axes)
    larger = as_convolution(kernel, sizes, 1, "circular", groups, dilation)
    for a, b in zip(axes, (larger.rows, larger.columns), strict=True):
        if b.n < a.n + max(a.before, a.after):
            raise SizeError(f"torus = {torus!r}: at least {a.n + max(a.before, a.after)} is needed, or ends meet")
    return float(conv_singular_values(kernel, sizes, 1, "circular", groups, dilation)[0])


@dataclass(frozen=True)
class ConvSVD:
    """The leading singular triples of a convolution; real.

    Attributes:
        left: images (r, c_out, m_h, m_w).
        sigma: (r,), descending.
        right: images (r, c_in, n_h, n_w).
    """

    left: Tensor
    sigma: Tensor
    right: Tensor


@isolated
def conv_svd(
    kernel: ArrayLike,
    n: IntPair,
    count: int | None = None,
    stride: IntPair = 1,
    padding: str | IntPair = "circular",
    groups: int = 1,
    dilation: IntPair = 1,
) -> ConvSVD:
    """Compute the `count` largest singular values of a convolution with real, orthonormal singular vectors.

    Circular padding: A(w) = sum sigma u v^H gives waves v e^(i w x)/n and u e^(i w x)/n; where the frequency is not its
    own negative, the real and imaginary part of each, times sqrt(2), are a pair with the same sigma. Otherwise from
    the dense matrix. Work is done in float64 on the CPU.

    Args:
        kernel: (c_out, c_in/groups, height, width), as in `torch.nn.Conv2d`.
        n: size of the input, an integer or (height, width).
        count: how many; default all, min(c_in n^2, c_out m^2).
        stride: integer or pair.
        padding: "circular", "zeros" or the number of zeros on each side.
        groups: of the convolution.
        dilation: integer or pair.

    Returns:
        Images, so that conv2d takes right[i] to sigma[i] left[i]; dtype and device of `kernel`.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        OptionError: unknown padding.
        SizeError: a size that is no integer >= 1; more vectors than 2^26 numbers; or a count that reaches into the
            singular values zero of input positions that are never read.

    Example:
        >>> kernel = torch.tensor([[[[1.0, 2.0, 1.0]]]], dtype=torch.float64)
        >>> top = conv_svd(kernel, n=(1, 5), count=1)
        >>> float(top.sigma[0].round(decimals=9)), top.right[0].abs().round(decimals=4)  # a constant
        (4.0, tensor([[[0.4472, 0.4472, 0.4472, 0.4472, 0.4472]]], dtype=torch.float64))
    """
    conv = _as_float64(kernel, n, stride, padding, groups, dilation)
    rows, columns = math.prod(conv.outputs), math.prod(conv.inputs)
    wanted = min(rows, columns) if count is None else as_size("count", count)
    if wanted > min(rows, columns):
        raise SizeError(f"count = {wanted}: at most {min(rows, columns)} singular values exist")
    if wanted * (rows + columns) > _DENSE:
        raise SizeError(f"count = {wanted}: the singular vectors have {wanted * (rows + columns)} entries, over 2^26")
    if conv.is_periodic:
        left, sigma, right = _wave_svd(conv, wanted)
    else:
        U, values, Vh = torch.linalg.svd(_matrix(conv), full_matrices=False)
        left, sigma, right = U.mT[:wanted], values[:wanted], Vh[:wanted]
    like = _like(kernel)
    return ConvSVD(
        left.reshape(wanted, *conv.outputs).to(like), sigma.to(like), right.reshape(wanted, *conv.inputs).to(like)
    )


# ----------------------------------------------------------------------------------------------------------- private


def _like(kernel: ArrayLike) -> Tensor:
    """An empty tensor with the dtype and device that results have."""
    return as_kernel("kernel", kernel).detach().new_empty(0)


def _as_float64(*arguments: Any) -> Convolution:
    conv = as_convolution(*arguments)
    return Convolution(conv.kernel.detach().to("cpu", torch.float64), conv.rows, conv.columns, conv.groups)


def _each_group(conv: Convolution) -> list[Convolution]:
    return [Convolution(K, conv.rows, conv.columns, 1) for K in conv.kernel.chunk(conv.groups)]


def _reads(axis: Axis) -> Tensor:
    """Input positions from the first padded one to the last; the size n where a zero stands."""
    at = torch.arange(-axis.before, axis.n + axis.after)
    return at % axis.n if axis.circular else torch.where((at >= 0) & (at < axis.n), at, axis.n)


def _apply(conv: Convolution, x: Tensor) -> Tensor:
    """conv2d on images (batch, c_in, n_h, n_w), padded by hand: kernels may be larger than the image."""
    rows, columns = (_reads(axis).to(x.device) for axis in (conv.rows, conv.columns))
    padded = F.pad(x, (0, 1, 0, 1))[:, :, rows][:, :, :, columns]
    strides, dilations = (conv.rows.stride, conv.columns.stride), (conv.rows.dilation, conv.columns.dilation)
    return F.conv2d(padded, conv.kernel, stride=strides, dilation=dilations, groups=conv.groups)


def _matrix(conv: Convolution) -> Tensor:
    rows, columns = math.prod(conv.outputs), math.prod(conv.inputs)
    if rows * columns > _DENSE:
        raise SizeError(
            f"the dense matrix has {rows} x {columns} entries, over 2^26; largest_conv_singular_values and "
            "zero_padding_bound do without it"
        )
    like = conv.kernel.detach()
    matrix = like.new_empty(rows, columns)
    detached = Convolution(like, conv.rows, conv.columns, conv.groups)
    for start in range(0, columns, 256):
        stop = min(start + 256, columns)
        units = like.new_zeros(stop - start, columns)
        units[torch.arange(stop - start), torch.arange(start, stop)] = 1
        matrix[:, start:stop] = _apply(detached, units.view(-1, *conv.inputs)).flatten(1).mT
    return matrix


def _wave_svd(conv: Convolution, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading real singular triples, flat: (count, rows), (count,), (count, columns)."""
    taps = taps_of(conv)
    where = [f for part in half_grid(*taps.grid) for f in part]
    U, S, Vh, weights = [], [], [], []
    for A, weight, _, _ in transfer(taps):
        u, s, vh = torch.linalg.svd(A, full_matrices=False)
        U.append(u.to(torch.complex128))
        S.append(s)
        Vh.append(vh.to(torch.complex128))
        weights += [weight] * len(s)
    sigma, u, vh = torch.cat(S), torch.cat(U), torch.cat(Vh)
    order = sigma.flatten().argsort(descending=True, stable=True)
    height, width = taps.grid
    P, Q = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    left, values, right = [], [], []
    phases = _phases(conv)
    for index in order.tolist():
        f, g, j = np.unravel_index(index, sigma.shape)
        angle = 2 * math.pi * (where[f][0] * P[:, None] / height + where[f][1] * Q / width)
        wave = torch.polar(torch.ones_like(angle), angle) / math.sqrt(height * width)
        out = torch.zeros(conv.groups, taps.values.shape[1], height, width, dtype=torch.complex128)
        out[g] = u[f, g, :, j, None, None] * wave
        fine = torch.zeros(conv.groups, conv.kernel.shape[1], conv.rows.n, conv.columns.n, dtype=torch.complex128)
        coarse = vh[f, g, j].conj().view(conv.kernel.shape[1], len(phases[0]), len(phases[1]))
        for a, r in enumerate(phases[0]):
            for b, t in enumerate(phases[1]):
                fine[g, :, r :: conv.rows.stride, t :: conv.columns.stride] = coarse[:, a, b, None, None] * wave
        parts = (torch.real, torch.imag) if weights[f] == 2 else (torch.real,)
        for part in parts:
            size = math.sqrt(weights[f])
            left.append(size * part(out).flatten())
            right.append(size * part(fine).flatten())
            values.append(sigma[f, g, j])
        if len(values) >= count:
            return torch.stack(left[:count]), torch.stack(values[:count]), torch.stack(right[:count])
    raise SizeError(f"count = {count}: only {len(values)} singular values belong to input positions that are read")


def _phases(conv: Convolution) -> tuple[list[int], list[int]]:
    rows, columns = (sorted({r for r, _ in axis.places()}) for axis in (conv.rows, conv.columns))
    return rows, columns
