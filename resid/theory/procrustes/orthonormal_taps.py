"""Norm-preserving kernels without a Fourier transform and without a crop, where there are many outputs.

Read a kernel (d, c, k, k) as a matrix W of d rows and c k^2 columns, one for each tap. Where its columns are
orthonormal up to a factor a, the convolution J is an isometry up to a factor: an output pixel p reads its patch E_p x,
so that J^T J = sum_p E_p^T W^T W E_p = a^2 sum_p E_p^T E_p = a^2 k^2 I, each pixel lying in k^2 patches. This needs
d >= c k^2, which is so for the first convolution of many networks, and holds for every size of the map.
"""

from __future__ import annotations

import math

from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike, as_kernel, as_size
from resid.errors import ShapeError
from resid.theory.procrustes.polar import polar_factor
from resid.theory.procrustes.projection import norm_preserving_scale


@isolated
def project_orthonormal_taps(kernel: ArrayLike, relu: bool = False, groups: int = 1) -> Tensor:
    """Project a kernel to the nearest one with orthonormal taps, times s/k: all singular values are s exactly.

    s is that of `resid.theory.procrustes.norm_preserving_scale`. Stride 1, any dilation; with circular padding the map
    may have any size. With zeros around, J^T J is diagonal: a pixel that only m of the k^2 windows hold has the entry
    s^2 m/k^2, so that the least singular value of a 3 x 3 convolution is 2s/3. Not every norm-preserving kernel has
    orthonormal taps (one with a single tap has not), so that `project_norm_preserving`, repeated, can come to one that
    is nearer.

    Differentiable if `kernel` requires a gradient.

    Args:
        kernel: (c_out, c_in/groups, height, width), float32 or float64.
        relu: whether a ReLU follows, for the scale.
        groups: of the convolution.

    Returns:
        Shaped like `kernel`, same dtype and device.

    Raises:
        ShapeError: fewer output channels of a group than taps into each, or not a kernel.
        NotFiniteError: `kernel` holds NaN or infinity.
        SizeError: `groups` is no integer >= 1.

    Source: this project's.

    Example:
        >>> import torch
        >>> kernel = torch.randn(12, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> from resid.theory.conv_spectrum.spectrum import conv_singular_values
        >>> values = conv_singular_values(project_orthonormal_taps(kernel), n=8)
        >>> bool(torch.allclose(values, torch.tensor(12.0, dtype=values.dtype).sqrt()))
        True
    """
    number = as_size("groups", groups)
    K = as_kernel("kernel", kernel, number)
    d, c, taps = K.shape[0] // number, K.shape[1], K.shape[2] * K.shape[3]
    if d < c * taps:
        raise ShapeError(
            f"kernel has {d} output channels of a group and {c} x {taps} taps into each: at least as many outputs as "
            "taps are needed; see project_norm_preserving"
        )
    W = polar_factor(K.reshape(number, d, c * taps))
    return (W * (norm_preserving_scale(c, d, relu) / math.sqrt(taps))).reshape(K.shape)
