"""Bounds on how residual blocks change the norms of gradients (Zaeemzadeh et al. 2018, Theorems 1 and 2)."""

from resid.theory.norms.bounds import (
    DIRECTIONS,
    SLOPES,
    batch_norm_ratios,
    block_bound,
    gradient_norm_ratios,
    identity_plus_bounds,
    layers_bound,
    linear_bound,
    norm_deviation,
    norm_preserving_layers,
    norm_ratios,
    ratio_range,
)
from resid.theory.norms.flow import TIMES, NearIdentityFlow, flow_bound, flow_constant, flow_times, near_identity_flow
from resid.theory.norms.smooth_maps import (
    SMOOTH_FAMILIES,
    SmoothMap,
    mirror_augmented,
    residual_map,
    sample_smooth_map,
    shear,
    twist,
)

__all__ = [
    "DIRECTIONS",
    "SLOPES",
    "SMOOTH_FAMILIES",
    "TIMES",
    "NearIdentityFlow",
    "SmoothMap",
    "batch_norm_ratios",
    "block_bound",
    "flow_bound",
    "flow_constant",
    "flow_times",
    "gradient_norm_ratios",
    "identity_plus_bounds",
    "layers_bound",
    "linear_bound",
    "mirror_augmented",
    "near_identity_flow",
    "norm_deviation",
    "norm_preserving_layers",
    "norm_ratios",
    "ratio_range",
    "residual_map",
    "sample_smooth_map",
    "shear",
    "twist",
]
