from . import book as book
from . import data as data
from . import errors as errors
from . import ledger as ledger
from . import nets as nets
from . import theory as theory
from . import training as training
from .data.loading import load_dataset as load_dataset
from .errors import ResidError as ResidError
from .nets.allconv import AllConvResNet as AllConvResNet
from .nets.auditing import audit as audit
from .nets.auditing import find_blocks as find_blocks
from .nets.norm_preservation import ProcrustesProjection as ProcrustesProjection
from .nets.norm_preservation import norm_preserving as norm_preserving
from .nets.preact import PlainNet as PlainNet
from .nets.preact import PreActResNet as PreActResNet
from .nets.preact import ProcResNet as ProcResNet
from .nets.shortcut_depth import ShortcutDepthResNet as ShortcutDepthResNet
from .theory.conv_spectrum import conv_matrix as conv_matrix
from .theory.conv_spectrum import conv_singular_values as conv_singular_values
from .theory.factor import (
    compose as compose,
)
from .theory.factor import (
    factor_near_identity as factor_near_identity,
)
from .theory.factor import (
    max_layer_norm as max_layer_norm,
)
from .theory.factor import (
    near_identity_bound as near_identity_bound,
)
from .theory.factor import (
    near_identity_lower_bound as near_identity_lower_bound,
)
from .theory.landscape import (
    augment_negative_determinant as augment_negative_determinant,
)
from .theory.landscape import (
    gradient_lower_bound as gradient_lower_bound,
)
from .theory.landscape import (
    population_risk as population_risk,
)
from .theory.landscape import (
    risk_gradient as risk_gradient,
)
from .theory.memorize import construct_memorizer as construct_memorizer
from .theory.norms import (
    block_bound as block_bound,
)
from .theory.norms import (
    gradient_norm_ratios as gradient_norm_ratios,
)
from .theory.norms import (
    linear_bound as linear_bound,
)
from .theory.norms import (
    near_identity_flow as near_identity_flow,
)
from .theory.procrustes import (
    norm_preserving_scale as norm_preserving_scale,
)
from .theory.procrustes import (
    polar_factor as polar_factor,
)
from .theory.procrustes import (
    project_norm_preserving as project_norm_preserving,
)
from .theory.shortcut import (
    ShortcutNetwork as ShortcutNetwork,
)
from .theory.shortcut import (
    condition_number as condition_number,
)
from .theory.shortcut import (
    hessian_at_zero as hessian_at_zero,
)
from .theory.shortcut import (
    hessian_index as hessian_index,
)
from .theory.small_weights import construct_small_weight_network as construct_small_weight_network
from .training.launcher import launch as launch
from .training.recipe import Recipe as Recipe
from .training.recipes import RECIPES as RECIPES
from .training.trainer import train as train
