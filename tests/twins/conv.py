"""Twins of `resid.theory.conv_spectrum` and `resid.theory.procrustes`: the definitions, one entry after another."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor


def conv_matrix_twin(
    kernel: Tensor, n: Any, stride: Any = 1, padding: Any = "circular", groups: int = 1, dilation: Any = 1
) -> Tensor:
    """y[o, P] = sum over i, t of K[o, i, t] x[i, stride P + dilation t - before], as a dense float64 matrix."""
    d, per_group, *taps = kernel.shape
    c = per_group * groups
    size, step, dil = (v if isinstance(v, tuple) else (v, v) for v in (n, stride, dilation))
    reach = [dil[a] * (taps[a] - 1) for a in range(2)]
    if isinstance(padding, str):
        before, total = tuple(r // 2 for r in reach), reach
    else:
        zeros = padding if isinstance(padding, tuple) else (padding, padding)
        before, total = zeros, [2 * z for z in zeros]
    out = [(size[a] + total[a] - reach[a] - 1) // step[a] + 1 for a in range(2)]
    matrix = torch.zeros(d, *out, c, *size, dtype=torch.float64)
    for o, P, Q in itertools.product(range(d), range(out[0]), range(out[1])):
        group = o // (d // groups)
        for i, s, t in itertools.product(range(per_group), range(taps[0]), range(taps[1])):
            at = [step[0] * P + dil[0] * s - before[0], step[1] * Q + dil[1] * t - before[1]]
            if padding == "circular":
                at = [at[0] % size[0], at[1] % size[1]]
            elif not (0 <= at[0] < size[0] and 0 <= at[1] < size[1]):
                continue
            matrix[o, P, Q, group * per_group + i, at[0], at[1]] += float(kernel[o, i, s, t])
    return matrix.reshape(d * out[0] * out[1], c * size[0] * size[1])


def projection_twin(kernel: Tensor, n: int, relu: bool = False) -> Tensor:
    """Algorithm 1 with the whole grid of frequencies and a singular value decomposition for each, in float64."""
    d, c, height, width = kernel.shape
    scale = math.sqrt((2 if relu else 1) * d / min(c, d))
    A = torch.fft.fft2(kernel.to(torch.float64), (n, n)).permute(2, 3, 0, 1)
    for p, q in itertools.product(range(n), range(n)):
        U, _, Vh = torch.linalg.svd(A[p, q], full_matrices=False)
        A[p, q] = scale * U @ Vh
    return torch.fft.ifft2(A.permute(2, 3, 0, 1)).real[:, :, :height, :width]


def published_projection(kernel: Tensor, n: int, steps: int = 10) -> Tensor:
    """The route of the released code with its sign corrected: the whole grid, 2c x 2c real blocks, iteration (9).

    A + iB becomes [[A, -B], [B, A]]; the Gram matrix is divided by its Frobenius norm where that is above 1.
    """
    d, c, height, width = kernel.shape
    spectrum = torch.fft.fft2(kernel, (n, n)).permute(2, 3, 0, 1).reshape(n * n, d, c)
    real, imag = spectrum.real, spectrum.imag
    block = torch.cat([torch.cat([real, -imag], 2), torch.cat([imag, real], 2)], 1)
    gram = block.mT @ block
    norm = torch.linalg.matrix_norm(gram)[:, None, None].clamp_min(1.0)
    eye = torch.eye(2 * c, dtype=kernel.dtype).expand_as(gram)
    Y, Z = gram / norm, eye
    for _ in range(steps):
        T = 0.5 * (3 * eye - Z @ Y)
        Y, Z = Y @ T, T @ Z
    found = math.sqrt(d / c) * (block @ Z) / norm.sqrt()
    whole = torch.complex(found[:, :d, :c], found[:, d:, :c]).reshape(n, n, d, c).permute(2, 3, 0, 1)
    return torch.fft.ifft2(whole).real[:, :, :height, :width]
