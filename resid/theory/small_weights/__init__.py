"""Finite samples memorised with weights of small norm (Li et al. 2016, Theorem 1), and bounds on such weights."""

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
