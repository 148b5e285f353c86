"""Residual networks of width-d blocks through finite samples (Hardt & Ma 2016, Theorem 3.2), in floats and exactly."""

from resid.theory.memorize.construct import construct_memorizer
from resid.theory.memorize.exact import ExactMemorizer, construct_exact_memorizer, rational_sphere_point
from resid.theory.memorize.margins import Margins, isolating_block, measure_margins, smallest_width
from resid.theory.memorize.network import Memorizer
from resid.theory.memorize.random_projection import projection_width, separation

__all__ = [
    "ExactMemorizer",
    "Margins",
    "Memorizer",
    "construct_exact_memorizer",
    "construct_memorizer",
    "isolating_block",
    "measure_margins",
    "projection_width",
    "rational_sphere_point",
    "separation",
    "smallest_width",
]
