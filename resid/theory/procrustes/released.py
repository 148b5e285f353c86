"""The projection as the released code of Zaeemzadeh et al. 2018 carries it out: to compare with, not to use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_kernel, as_size
from resid.errors import SizeError


@isolated
def coupled_newton_schulz(gram: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Run iteration (9): T = (3I - Z Y)/2, Y <- Y T, Z <- T Z from Y = G, Z = I.

    For eigenvalues of G in (0, 3) Z tends to G^(-1/2), quadratically in the end; far from there a small eigenvalue of
    Z Y grows by a factor of about 9/4 in a step. For other G it tends to something else or diverges.

    Args:
        gram: G, (..., n, n), real or complex.
        steps: how many.

    Returns:
        Y and Z after `steps` steps.

    Source: Zaeemzadeh et al. 2018, equation (9); Higham 1997.

    Example:
        >>> coupled_newton_schulz(torch.tensor([[0.25]], dtype=torch.float64), 8)[1].round(decimals=6)
        tensor([[2.]], dtype=torch.float64)
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    Y, Z = gram, eye
    for _ in range(steps):
        T = 0.5 * (3 * eye - Z @ Y)
        Y, Z = Y @ T, T @ Z
    return Y, Z


@isolated
def released_projection(kernel: ArrayLike, n: int, slip: bool = True, steps: int = 10) -> Tensor:
    """Run Algorithm 1 as released: all n^2 frequencies as real matrices of twice the size, ten steps, the crop.

    A + iB is put into the real matrix [[A, B], [-B, A]], which stands for A - iB, and the result is read back as what
    stands in the upper and the lower left. So what is transformed back is the conjugate of the projected spectrum,
    whose taps are those of the projected kernel at -t modulo n. The crop to k x k keeps the tap (0, 0) of these, and
    what the uncropped kernel has at the negative of the others.

    Args:
        kernel: (d, c, k, k).
        n: size of the map.
        slip: False for the right sign.
        steps: of iteration (9).

    Raises:
        ShapeError: `kernel` is no kernel.
        NotFiniteError: `kernel` holds NaN or infinity.
        SizeError: `n` is no integer >= 1, or smaller than the kernel.

    Example:
        >>> shift = torch.zeros(1, 1, 3, 3)
        >>> shift[..., 0, 1] = 1
        >>> released_projection(shift, 8, slip=False).argmax().item(), released_projection(shift, 8).abs().max().item()
        (1, 0.0)
    """
    K, n = as_kernel("kernel", kernel).detach(), as_size("n", n)
    d, c, height, width = K.shape
    if n < max(height, width):
        raise SizeError(f"n = {n}: at least {max(height, width)}, the size of the kernel, is needed")
    A = torch.fft.fft2(K, (n, n)).permute(2, 3, 0, 1)
    imaginary = A.imag if slip else -A.imag
    block = torch.cat([torch.cat([A.real, imaginary], -1), torch.cat([-imaginary, A.real], -1)], -2)
    gram = block.mT @ block
    norm = torch.linalg.matrix_norm(gram)[..., None, None].clamp_min(1)
    root = coupled_newton_schulz(gram / norm, steps)[1] / norm.sqrt()
    projected = math.sqrt(d / c) * (block @ root)
    spectrum = torch.complex(projected[..., :d, :c], projected[..., d:, :c])
    whole = torch.fft.ifft2(spectrum.permute(2, 3, 0, 1)).real
    return whole[..., :height, :width].contiguous()
