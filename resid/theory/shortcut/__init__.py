"""Shortcut networks of depth two and others, their Hessians at zero and their training (Li et al. 2016)."""

from resid.theory.shortcut.at_zero import (
    hessian_at_zero,
    hessian_spectrum_at_zero,
    length_one_growth_bound,
    moment_difference,
    neuron_matrices,
    whitened_condition_bound,
)
from resid.theory.shortcut.descent import INITS, KERNELS, Descent, choose_kernel, descend, initial_weights
from resid.theory.shortcut.network import (
    ShortcutNetwork,
    balanced_hessian_spectrum,
    best_map,
    least_linear_loss,
    orthogonal_as_shortcut,
    second_moments,
)
from resid.theory.shortcut.spectrum import condition_number, condition_number_limit, hessian_eigenvalues, hessian_index

__all__ = [
    "INITS",
    "KERNELS",
    "Descent",
    "ShortcutNetwork",
    "balanced_hessian_spectrum",
    "best_map",
    "choose_kernel",
    "condition_number",
    "condition_number_limit",
    "descend",
    "hessian_at_zero",
    "hessian_eigenvalues",
    "hessian_index",
    "hessian_spectrum_at_zero",
    "initial_weights",
    "least_linear_loss",
    "length_one_growth_bound",
    "moment_difference",
    "neuron_matrices",
    "orthogonal_as_shortcut",
    "second_moments",
    "whitened_condition_bound",
]
