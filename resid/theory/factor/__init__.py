"""Near-identity factorisations of linear maps (Hardt & Ma 2016, Theorem 2.1), and how near the identity they can be."""

from resid.theory.factor.constructions import (
    compose,
    factor_near_identity,
    factorization_error,
    max_layer_norm,
    near_identity_bound,
    rotation_angle,
    spectral_gamma,
)
from resid.theory.factor.lower_bound import near_identity_lower_bound

__all__ = [
    "compose",
    "factor_near_identity",
    "factorization_error",
    "max_layer_norm",
    "near_identity_bound",
    "near_identity_lower_bound",
    "rotation_angle",
    "spectral_gamma",
]
