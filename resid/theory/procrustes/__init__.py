"""The norm-preserving kernel nearest to a given one (Zaeemzadeh et al. 2018, equations 7 to 9)."""

from resid.theory.procrustes.orthonormal_taps import project_orthonormal_taps
from resid.theory.procrustes.polar import METHODS, inverse_square_root, polar_factor
from resid.theory.procrustes.projection import (
    ProjectionReport,
    norm_preserving_scale,
    project_norm_preserving,
    projection_report,
)
from resid.theory.procrustes.released import coupled_newton_schulz, released_projection

__all__ = [
    "METHODS",
    "ProjectionReport",
    "coupled_newton_schulz",
    "inverse_square_root",
    "norm_preserving_scale",
    "polar_factor",
    "project_norm_preserving",
    "project_orthonormal_taps",
    "projection_report",
    "released_projection",
]
