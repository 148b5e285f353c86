"""Norm-preserving convolutions near a given one. Zaeemzadeh et al. 2018, Section 3, (7) and (8), Algorithm 1.

The gradient passes a convolution through the transpose of its matrix. If all nonzero singular values of that matrix are
s, the gradient's energy is multiplied by s^2 times the share of it that lies in the range. With that share at
min(c, d)/d, c input and d output channels, the energy is kept for s = sqrt(d/min(c, d)). The projection replaces
the matrix A(w) of every frequency by s times its polar factor and goes back to the taps that the kernel has. For 1 x 1
kernels that is the nearest norm-preserving one. For larger ones the crop to k x k taps leaves a kernel that is not
quite norm-preserving, and repeating it comes to rest near the nearest one, as a rule not at it.

All functions take kernels (c_out, c_in/groups, height, width) and n, the size of the input, an integer or (height,
width); padding is circular, as the projection has to assume. With stride s, "channels" below are those of the matrices
A(w): c_in times the number of interleaved grids that are read, which is s^2 for kernels of at least s x s taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, IntPair, as_kernel, as_pair, as_size, check_option
from resid.errors import SizeError
from resid.theory.conv_spectrum._geometry import (
    Taps,
    as_convolution,
    backward_transfer,
    half_grid,
    taps_of,
    transfer,
    waves,
)
from resid.theory.conv_spectrum.spectrum import conv_singular_values
from resid.theory.procrustes.polar import (
    METHODS,
    accuracy,
    inverse_square_root,
    polar_factor,
    prefers_gram,
    scaled_to_one,
)

#: Entries of the Gram matrices of one chunk.
_CHUNK = 2**21


def norm_preserving_scale(c_in: int, c_out: int, relu: bool = False) -> float:
    """Return s = sqrt(c_out/min(c_in, c_out)), times sqrt(2) if a ReLU follows the convolution.

    It keeps the gradient's mean squared norm exactly if the gradient's energy is spread evenly over the c_out
    dimensions of the output, and if a ReLU lets half of it pass; both are assumptions. For c_in >= c_out and without
    ReLU s = 1 keeps the norm of every gradient.

    Args:
        c_in: input channels.
        c_out: output channels.
        relu: whether a ReLU follows.

    Raises:
        SizeError: a number of channels that is no integer >= 1.

    Source: Zaeemzadeh et al. 2018, equation (7).

    Example:
        >>> norm_preserving_scale(16, 64), norm_preserving_scale(64, 16)
        (2.0, 1.0)
    """
    c, d = as_size("c_in", c_in), as_size("c_out", c_out)
    return math.sqrt((2 if relu else 1) * d / min(c, d))


@isolated
def project_norm_preserving(
    kernel: ArrayLike,
    n: IntPair,
    relu: bool = False,
    repeats: int = 1,
    method: str = "auto",
    stride: IntPair = 1,
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Project a kernel: replace its matrices A(w) by s times their polar factors, cropped to the kernel's own taps.

    Exact for 1 x 1 kernels and for kernels of stride x stride taps: every singular value is s. For 2 x 2 taps, stride 2
    and c_out <= 4 c_in that makes J^T an isometry, so that every gradient keeps its norm. For larger kernels the
    nearest norm-preserving map has a kernel of n x n taps, and cutting it to k x k undoes part of the work:
    `projection_report` says how much. Projecting the result again (`repeats`) heals this where c_out and c_in differ
    much, and not for square 3 x 3 kernels. A kernel that is norm-preserving already is returned unchanged.

    Where A(w) lacks full rank (kernels with a channel of zeros, say) a nearest isometry is not unique; "auto" and "svd"
    take one of them. Differentiable if `kernel` requires a gradient.

    Args:
        kernel: (c_out, c_in/groups, height, width), float32 or float64; may be non-contiguous.
        n: size of the input; for 1 x 1 kernels it does not matter. Rounded up to a multiple of the stride.
        relu: whether a ReLU follows, for the scale.
        repeats: how often to project and crop.
        method: of `resid.theory.procrustes.polar_factor`.
        stride: of the convolution, integer or pair.
        groups: of the convolution.
        dilation: of the convolution, integer or pair.

    Returns:
        Shaped like `kernel`, same dtype and device.

    Raises:
        ShapeError: `kernel` is no kernel, has half precision, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        OptionError: unknown method.
        SizeError: a size that is no integer >= 1, or n so small that two taps fall on one another.
        ConvergenceError: `method` cannot take this kernel.

    Source: Zaeemzadeh et al. 2018, Algorithm 1; strides, groups and dilations are this project's.

    Example:
        >>> kernel = torch.tensor([[[[3.0]]], [[[4.0]]]])  # one input channel, two output channels
        >>> project_norm_preserving(kernel, n=8).flatten()  # sqrt(2) (3, 4)/5
        tensor([0.8485, 1.1314])
    """
    check_option("method", method, METHODS)
    result = as_kernel("kernel", kernel, as_size("groups", groups))
    for _ in range(as_size("repeats", repeats)):
        taps = _taps(result, n, stride, groups, dilation)
        result = taps.kernel(_scale(taps, relu) * _nearest(taps, method))
    return result


@dataclass(frozen=True)
class ProjectionReport:
    """The singular values of a projected kernel, as `projection_report` measures them.

    They are those of the circular map, over s, of the matrices A(w) after the crop; before it all are 1. A layer that
    pads with zeros has other ones, which `conv_singular_values` gives with padding="zeros"; it is no isometry unless
    the middle tap of its kernel is the only one.

    Attributes:
        scale: s.
        sigma_min: least singular value over s.
        sigma_max: largest singular value over s.
        energy_lost: share of the energy of the uncropped kernel that the last crop cut off.
    """

    scale: float
    sigma_min: float
    sigma_max: float
    energy_lost: float


@isolated
def projection_report(
    kernel: ArrayLike, n: IntPair, relu: bool = False, stride: IntPair = 1, groups: int = 1, dilation: IntPair = 1
) -> ProjectionReport:
    """Measure the singular values of a projected kernel over s, with circular padding, and the energy it lost.

    The uncropped kernel has the energy s^2 min(c, d), in all its taps together, c and d the sides of A(w); so the
    energy lost can be read from the projected kernel alone.

    Args:
        kernel: a result of `project_norm_preserving`.
        n: size of the input, an integer or (height, width).
        relu: whether a ReLU follows, for the scale.
        stride: of the convolution, integer or pair.
        groups: of the convolution.
        dilation: of the convolution, integer or pair.

    Raises:
        ShapeError: `kernel` is no kernel, or `groups` does not divide its output channels.
        NotFiniteError: `kernel` holds NaN or infinity.
        SizeError: a size that is no integer >= 1, or n so small that two taps fall on one another.

    Example:
        >>> kernel = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> report = projection_report(project_norm_preserving(kernel, n=32), n=32)
        >>> 0.7 < report.sigma_min < 1 < report.sigma_max < 1.3, report.energy_lost < 0.02
        (True, True)
    """
    taps = _taps(kernel, n, stride, groups, dilation)
    scale = _scale(taps, relu)
    flat = taps.values.detach().to("cpu", torch.float64)
    rows, columns = flat.shape[1:3]
    reach = [max(shifts) + 1 for shifts in taps.shifts]  # taps on the coarse grid, with holes where there is none
    wide = flat.new_zeros(*flat.shape[:3], *reach)
    wide[..., torch.tensor(taps.shifts[0])[:, None], torch.tensor(taps.shifts[1])] = flat.unflatten(
        -1, (len(taps.shifts[0]), len(taps.shifts[1]))
    )
    values = conv_singular_values(wide.flatten(0, 1), taps.grid, groups=flat.shape[0])
    energy = float(flat.square().sum()) / (flat.shape[0] * scale**2 * min(rows, columns))
    return ProjectionReport(scale, float(values[-1]) / scale, float(values[0]) / scale, 1 - energy)


# ----------------------------------------------------------------------------------------------------------- private


def _taps(kernel: ArrayLike, n: IntPair, stride: IntPair, groups: int, dilation: IntPair) -> Taps:
    """The taps on the coarse grid, each of them by itself."""
    K = as_kernel("kernel", kernel, as_size("groups", groups))
    sizes, strides = as_pair("n", n), as_pair("stride", stride)
    whole = tuple(-(-size // step) * step for size, step in zip(sizes, strides, strict=True))
    conv = as_convolution(K, whole, strides, "circular", groups, dilation)
    axes = []
    for axis in (conv.rows, conv.columns):
        reach = axis.dilation * (axis.taps - 1)
        if len({axis.dilation * t % axis.n for t in range(axis.taps)}) < axis.taps:
            raise SizeError(
                f"n = {n!r}: two taps of a kernel that reaches over {reach + 1} fall on one another modulo {axis.n}, "
                "so that they cannot be read back; n must be at least as large"
            )
        # the origin on the first tap, which only shifts the output, lets a kernel of stride x stride taps be one shift
        axes.append(replace(axis, before=0, after=reach))
    return taps_of(replace(conv, rows=axes[0], columns=axes[1]))


def _scale(taps: Taps, relu: bool) -> float:
    return norm_preserving_scale(taps.values.shape[2], taps.values.shape[1], relu)


def _nearest(taps: Taps, method: str) -> Tensor:
    """Taps of the polar factors of all A(w), at the shifts that the kernel has."""
    taps = replace(taps, values=scaled_to_one(taps.values))
    values = taps.values
    if values.shape[-1] == 1:  # one shift: A(w) is the same matrix for all w, up to a phase
        return polar_factor(values[..., 0], method)[..., None]
    gram = prefers_gram(*values.shape[1:3]) or _near_isometry(values.sum(-1))  # of A(0)
    if method == "auto" and gram and not values.is_cuda and not values.requires_grad:
        return _by_autocorrelation(taps)
    if method == "auto" and not gram and not values.is_cuda:
        method = "svd"  # which "auto" would end at
    total = torch.zeros_like(values)
    for A, weight, cos, sin in transfer(taps):
        total = total + backward_transfer(taps, polar_factor(A, method), weight, cos, sin)
    return total


def _near_isometry(A: Tensor) -> bool:
    """Whether the Gram matrices on the short side are within reach of a binomial series around a multiple of I."""
    short = A if A.shape[-2] >= A.shape[-1] else A.mT
    gram = short.mT @ short
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    off = gram - mean * torch.eye(gram.shape[-1], dtype=A.dtype, device=A.device)
    return bool((torch.linalg.matrix_norm(off @ off).sqrt() <= 0.7 * mean.flatten()).all())


def _by_autocorrelation(taps: Taps) -> Tensor:
    """`_nearest` without the matrices A(w) of the long side.

    The Gram matrices A^H A are the transform of the kernel's autocorrelation, and A (A^H A)^(-1/2) is the transform of
    the kernel convolved with that of (A^H A)^(-1/2): taps at the differences of shifts are all that is needed of it.
    """
    values = taps.values
    groups, rows, columns, _ = values.shape
    tall = rows >= columns  # else all is transposed, and the polar factor of A^T is the transposed one
    K = (values if tall else values.transpose(1, 2)).to(torch.float64)  # (groups, long, short, S)
    shifts = [(a, b) for a in taps.shifts[0] for b in taps.shifts[1]]
    lags = sorted({(c - a, d - b) for a, b in shifts for c, d in shifts})
    place = {lag: i for i, lag in enumerate(lags)}
    table = torch.tensor([[place[t[0] - u[0], t[1] - u[1]] for u in shifts] for t in shifts])  # lag t - u
    products = torch.einsum("glit,glju->gijtu", K, K)  # K[t]^T K[u], which belongs to the lag u - t
    auto = K.new_zeros(groups, min(rows, columns), min(rows, columns), len(lags))
    auto.index_add_(-1, table.mT.flatten(), products.flatten(-2))
    flat = auto.flatten(0, 2)
    sums = K.new_zeros(len(lags), len(flat))
    result = torch.zeros_like(values)
    pairs, singles = half_grid(*taps.grid)
    total = math.prod(taps.grid)
    for where, weight in ((pairs, 2), (singles, 1)):
        step = max(1, _CHUNK // len(flat))
        for start in range(0, len(where), step):
            part = where[start : start + step]
            cos, sin = _lag_waves(taps.grid, tuple(lags), weight == 2, start, start + step)
            real = cos @ flat.mT
            gram = torch.complex(real, sin @ flat.mT) if weight == 2 else real
            root, good = inverse_square_root(
                gram.view(-1, *auto.shape[:3]), accuracy(values), prefers_gram(rows, columns)
            )
            Z = root.flatten(1)
            sums += (weight / total) * (cos.mT @ Z.real + sin.mT @ Z.imag if weight == 2 else cos.mT @ Z)
            if not bool(good.all()):
                result += _remaining(taps, part, weight, good)
    z = sums.mT.view(*auto.shape[:3], len(lags))[..., table]  # (groups, short, short, t, u), at the lag t - u
    side = torch.einsum("gliu,gijtu->gljt", K, z)
    return result + (side if tall else side.transpose(1, 2)).to(values.dtype)


@lru_cache(maxsize=16)
def _lag_waves(
    grid: tuple[int, int], lags: tuple[tuple[int, int], ...], pairs: bool, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """cos and sin of w lag, (frequencies, lags), for a slice of the frequencies of `half_grid`."""
    where = half_grid(*grid)[0 if pairs else 1][start:stop]
    rows, columns = sorted({a for a, _ in lags}), sorted({b for _, b in lags})
    cos, sin = waves(grid, (rows, columns), where, torch.empty(0, dtype=torch.float64))
    chosen = torch.tensor([rows.index(a) * len(columns) + columns.index(b) for a, b in lags])
    return cos[:, chosen], sin[:, chosen]


def _remaining(taps: Taps, where: Any, weight: int, good: Tensor) -> Tensor:
    """What the frequencies contribute whose Gram matrices are too ill-conditioned: by singular value decomposition."""
    values = taps.values
    flat = values.flatten(0, 2)
    cos, sin = waves(taps.grid, taps.shifts, where, flat)
    bad = ~good  # (frequencies, groups)
    any_bad = bad.any(1)
    cos, sin, bad = cos[any_bad], sin[any_bad], bad[any_bad]
    real = cos @ flat.mT
    A = (torch.complex(real, sin @ flat.mT) if weight == 2 else real).view(-1, *values.shape[:3])
    Q = torch.zeros_like(A)
    Q[bad] = polar_factor(A[bad], "svd")
    return backward_transfer(taps, Q, weight, cos, sin)
