"""Singular values of convolutions with circular padding (Zaeemzadeh et al. 2018, Theorem 3)."""

from resid.theory.conv_spectrum.spectrum import (
    ConvSVD,
    conv_matrix,
    conv_singular_values,
    conv_svd,
    largest_conv_singular_values,
    zero_padding_bound,
)

__all__ = [
    "ConvSVD",
    "conv_matrix",
    "conv_singular_values",
    "conv_svd",
    "largest_conv_singular_values",
    "zero_padding_bound",
]
