"""Memorising a finite sample with weights of small norm: a theorem of our own beside Hardt & Ma 2016, Section 3."""

from resid.theory.small_weights._separation import minimum_distance, separation
from resid.theory.small_weights._sphere import SpherePath
from resid.theory.small_weights.bounds import (
    apply_units,
    least_parameter_norm,
    least_stretch,
    max_norm_bound,
    total_norm_bound,
)
from resid.theory.small_weights.network import SmallWeightNetwork, construct_small_weight_network, isolating_unit
from resid.theory.small_weights.paths import sphere_path, sphere_paths

__all__ = [
    "SmallWeightNetwork",
    "SpherePath",
    "apply_units",
    "construct_small_weight_network",
    "isolating_unit",
    "least_parameter_norm",
    "least_stretch",
    "max_norm_bound",
    "minimum_distance",
    "separation",
    "sphere_path",
    "sphere_paths",
    "total_norm_bound",
]
