"""How much a residual block changes the norm of a gradient: measured ratios, and bounds on them.

Zaeemzadeh et al. 2018, Section 2, with what this project adds: the exact optimum for linear networks, and a formula
for blocks with batch normalisation, to which the paper's bounds do not apply.

One convention. A block maps its input x_l to its output x_{l+1}; g_l and g_{l+1} are the gradients of the loss at
either. The ratio has a direction, one of `DIRECTIONS`, and whoever asks for ratios must name it:

- "in/out": ||g_l|| / ||g_{l+1}||, the factor that a backward pass multiplies by. The theorems bound it.
- "out/in": ||g_{l+1}|| / ||g_l||, its inverse, which the paper plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_layers, as_real, as_square, check_option, check_positive
from resid.errors import DeterminantError, OptionError, ShapeError
from resid.theory.factor.constructions import near_identity_bound

DIRECTIONS = ("in/out", "out/in")
FORMS = ("plain", "preactivation")
VERSIONS = ("optimal", "polar", "printed")

# The largest absolute slope of common activations: for GELU Phi(x) + x phi(x) at sqrt(2), for SiLU at x tanh(x/2) = 2.
SLOPES = {
    "linear": 1.0,
    "relu": 1.0,
    "tanh": 1.0,
    "softplus": 1.0,
    "sigmoid": 0.25,
    "gelu": (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi),
    "silu": 1.0998393201289,
}

#: Variance of ReLU(z) over its mean square, z standard normal: 1 - 1/pi.
_RELU_SHARE = 1 - 1 / math.pi


@isolated
def norm_ratios(gradients: Iterable[Any], *, direction: str, per_sample: bool = False) -> Tensor:
    """Compute the ratios of gradient norms across blocks, from the gradients at their boundaries.

    Args:
        gradients: g_0 .. g_L, from the input; each of any shape, samples first if per_sample. Norms are taken over all
            entries, the batch included, unless per_sample.
        direction: "in/out" (||g_l|| / ||g_{l+1}||) or "out/in".
        per_sample: give one ratio for each sample.

    Returns:
        (L,), or (L, n) if per_sample.

    Raises:
        ShapeError: fewer than two gradients.
        OptionError: unknown direction; a gradient that is zero, or so small that its digits are lost; or a ratio too
            large or too small for its dtype.
        NotFiniteError: a gradient has overflowed.

    Example:
        >>> norm_ratios([[3.0, 4.0], [0.0, 10.0]], direction="in/out")
        tensor([0.5000], dtype=torch.float64)
    """
    check_option("direction", direction, DIRECTIONS)
    arrays = [as_real(f"gradients[{i}]", g) for i, g in enumerate(gradients)]
    if len(arrays) < 2:
        raise ShapeError(f"{len(arrays)} gradients: those at the input and at the output of one block are needed")
    flat = [g.reshape(len(g), -1) if per_sample else g.reshape(1, -1) for g in arrays]
    sizes, norms = zip(*(_scaled_norm(g, f"gradients[{i}]") for i, g in enumerate(flat)), strict=True)
    size, norm = (torch.stack([v.to(flat[0].device) for v in values]) for values in (sizes, norms))
    above, below = (slice(None, -1), slice(1, None))[:: 1 if direction == "in/out" else -1]
    ratios = (size[above] / size[below] * (norm[above] / norm[below])).to(flat[0].dtype)
    if not bool(((ratios > 0) & torch.isfinite(ratios)).all()):
        raise OptionError(f"a ratio of two gradients is outside of what {ratios.dtype} can hold")
    return ratios if per_sample else ratios[:, 0]


@isolated(grad=True, factories=False)
def gradient_norm_ratios(
    blocks: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    direction: str,
    per_sample: bool = False,
) -> Tensor:
    """Measure the ratio of gradient norms across each block, by one forward and one backward pass.

    Args:
        blocks: functions or modules, from the input.
        x: input, samples first.
        loss: function of the last output, a scalar.
        direction: "in/out" (||g_l|| / ||g_{l+1}||) or "out/in".
        per_sample: give one ratio for each sample; only where samples do not mix, hence not with batch normalisation.

    Returns:
        (len(blocks),), or (len(blocks), n).

    Raises:
        OptionError: unknown direction, or a gradient that has no ratio.
        ShapeError: the loss is no scalar, or there is no block.
        NotFiniteError: `x` or a gradient holds NaN or infinity.

    Example:
        >>> x = torch.ones(1, 2)
        >>> gradient_norm_ratios([lambda x: 3 * x, torch.tanh], x, torch.sum, direction="in/out")[0]
        tensor(3.)
    """
    states = [as_real("x", x).detach().clone().requires_grad_()]  # no tensor of an inference mode, either
    for block in blocks:
        states.append(block(states[-1]))
    value = loss(states[-1])
    if value.numel() != 1:
        raise ShapeError(f"the loss has shape {tuple(value.shape)}: one number is needed")
    return norm_ratios(torch.autograd.grad(value, states), direction=direction, per_sample=per_sample)


@isolated
def ratio_range(J: ArrayLike, *, direction: str) -> tuple[Tensor, Tensor]:
    """Compute the smallest and largest ratio that a block with Jacobian J gives to any gradient.

    Since g_l = J^T g_{l+1}, in/out ranges over [sigma_min(J), sigma_max(J)] and out/in over the inverses.

    Args:
        J: Jacobians (..., d, d).
        direction: "in/out" or "out/in".

    Returns:
        Two tensors (...).

    Raises:
        OptionError: unknown direction.
        ShapeError: matrices that are not square.
        NotFiniteError: `J` holds NaN or infinity.

    Example:
        >>> least, most = ratio_range(torch.diag(torch.tensor([2.0, 4.0])), direction="out/in")
        >>> float(least), float(most)
        (0.25, 0.5)
    """
    check_option("direction", direction, DIRECTIONS)
    sigma = torch.linalg.svdvals(_squares("J", J))
    least, most = sigma[..., -1], sigma[..., 0]
    return (least, most) if direction == "in/out" else (1 / most, 1 / least)


@isolated
def norm_deviation(J: ArrayLike) -> Tensor:
    """Compute the least delta with (1 - delta) ||g|| <= ||J^T g|| <= (1 + delta) ||g|| for every g.

    max(sigma_max(J) - 1, 1 - sigma_min(J)), at most ||J - I|| by Lemma 1 of the paper; zero for every isometry,
    however far from the identity.

    Args:
        J: Jacobians (..., d, d).

    Raises:
        ShapeError: matrices that are not square.
        NotFiniteError: `J` holds NaN or infinity.

    Example:
        >>> float(norm_deviation(torch.diag(torch.tensor([1.0, -1.5]))))
        0.5
    """
    least, most = ratio_range(J, direction="in/out")
    return torch.maximum(most - 1, 1 - least)


@isolated
def identity_plus_bounds(M: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return 1 - sigma_max(M) and 1 + sigma_max(M), between which all singular values of I + M lie.

    For every square matrix: ||v|| - ||Mv|| <= ||v + Mv|| <= ||v|| + ||Mv||.

    Args:
        M: matrices (..., d, d).

    Raises:
        ShapeError: matrices that are not square.
        NotFiniteError: `M` holds NaN or infinity.

    Source: Zaeemzadeh et al. 2018, Lemma 1.

    Example:
        >>> low, high = identity_plus_bounds([[0.5, 0.0], [0.0, -0.25]])
        >>> float(low), float(high)
        (0.5, 1.5)
    """
    largest = torch.linalg.svdvals(_squares("M", M))[..., 0]
    return 1 - largest, 1 + largest


@isolated(grad=False)
def block_bound(W1: ArrayLike, W2: ArrayLike, c_rho: float, form: str = "plain") -> float:
    """Compute delta with (1 - delta) ||g_{l+1}|| <= ||g_l|| <= (1 + delta) ||g_{l+1}|| for a block of two layers.

    form="plain": x + W2 rho(W1 x), delta = c_rho ||W1|| ||W2||. form="preactivation": x + W2 rho(W1 rho(x)),
    delta = c_rho^2 ||W1|| ||W2||. Operator norms. Void for blocks with normalisation, see `batch_norm_ratios`.

    Args:
        W1: (m, d).
        W2: (d, m).
        c_rho: a bound on the absolute slope of rho, > 0; `SLOPES` has those of common ones.
        form: "plain" or "preactivation".

    Raises:
        ShapeError: matrices that do not fit.
        NotFiniteError: a matrix holds NaN or infinity.
        OptionError: unknown form, or `c_rho` is not positive.

    Source: Zaeemzadeh et al. 2018, Corollary 1 (plain).

    Example:
        >>> block_bound([[0.5]], [[-0.1]], c_rho=1.0)
        0.05
    """
    return layers_bound([W1, W2], c_rho, form)


@isolated(grad=False)
def layers_bound(weights: Sequence[Any], c_rho: float, form: str = "plain") -> float:
    """Compute `block_bound` for a block of any number of layers: the product of all norms and slopes.

    form="plain": x + W_m rho(.. rho(W_1 x)), m - 1 nonlinearities. "preactivation": x + W_m rho(.. W_1 rho(x)), m.

    Args:
        weights: W_1 .. W_m, each (out, in), from the input; the first takes in what the last puts out.
        c_rho: a bound on the absolute slope of rho, > 0; one factor for each nonlinearity.
        form: "plain" or "preactivation".

    Raises:
        ShapeError: matrices that do not fit.
        NotFiniteError: a matrix holds NaN or infinity.
        OptionError: unknown form, or `c_rho` is not positive.

    Example:
        >>> layers_bound([[[2.0]], [[0.5]], [[0.1]]], c_rho=2.0)
        0.4
    """
    check_option("form", form, FORMS)
    slope = check_positive("c_rho", c_rho)
    matrices = [as_real(f"weights[{i}]", W) for i, W in enumerate(weights)]
    shapes = [tuple(W.shape) for W in matrices]
    if not matrices or any(len(s) != 2 or 0 in s for s in shapes):
        raise ShapeError(f"weights have shapes {shapes}: at least one matrix, and no other arrays, are needed")
    if any(a[0] != b[1] for a, b in zip(shapes, [*shapes[1:], shapes[0]], strict=True)):
        raise ShapeError(f"weights have shapes {shapes}: each must take in what the one before it puts out, in a cycle")
    count = len(matrices) - (form == "plain")
    return math.prod((float(torch.linalg.matrix_norm(W, ord=2)) for W in matrices), start=slope**count)


@isolated
def linear_bound(R: ArrayLike, depth: int, version: str = "optimal") -> float:
    """Compute delta such that some linear residual network with the map R changes no gradient norm by more.

    version="optimal": max(sigma_max(R)^(1/L) - 1, 1 - sigma_min(R)^(1/L)), the least delta there is, for every
    invertible R; attained by `norm_preserving_layers`. This project's.
    version="polar": with layers near the identity besides, det R > 0; see `near_identity_bound`. This project's.
    version="printed": 2 (sqrt(pi) + sqrt(3 gamma))^2 / L, stated for L >= max(1, 3 gamma): Zaeemzadeh et al. 2018,
    Theorem 2, with the constant of Hardt & Ma's first version.

    Args:
        R: invertible matrix (d, d).
        depth: number of layers L, >= 1.
        version: "optimal", "polar" or "printed".

    Raises:
        DeterminantError: `R` is singular, or det R < 0 for "polar".
        DepthError: depth < 1, or too small for "printed".
        OptionError: unknown version.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> linear_bound([[4.0, 0.0], [0.0, -1.0]], depth=2)
        1.0
    """
    check_option("version", version, VERSIONS)
    if version != "optimal":
        return near_identity_bound(R, depth, "polar" if version == "polar" else "submission")
    depth = as_depth("depth", depth)
    _, sigma, _ = _svd_invertible(R)
    return max(math.expm1(math.log(sigma[0]) / depth), -math.expm1(math.log(sigma[-1]) / depth))


@isolated
def norm_preserving_layers(R: ArrayLike, depth: int) -> Tensor:
    """Factor R into layers W_l, (I + W_L) .. (I + W_1) = R, that change gradient norms least.

    R = U K V^T; I + W_1 = U K^(1/L) V^T and all others U K^(1/L) U^T, so that each has the singular values
    sigma_i(R)^(1/L). No determinant condition: a layer far from the identity can keep norms. All layers but the first
    are near the identity. No choice does better, since sigma_max(R) <= prod sigma_max(I + W_l), and likewise for the
    least.

    Args:
        R: invertible matrix (d, d).
        depth: number of layers L, >= 1.

    Returns:
        (depth, d, d), ordered from the input, dtype and device of `R`.

    Raises:
        DeterminantError: `R` is singular to float64 precision.
        DepthError: `depth` is no integer >= 1.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> from resid.theory.factor.constructions import compose
        >>> R = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        >>> W = norm_preserving_layers(R, depth=3)
        >>> bool(torch.allclose(compose(W), R)), float(norm_deviation(W + torch.eye(2)).max()) < 1e-6
        (True, True)
    """
    matrix, depth = as_square("R", R), as_depth("depth", depth)
    U, sigma, Vh = _svd_invertible(matrix)
    root = sigma ** (1 / depth)
    eye = torch.eye(len(U), dtype=torch.float64)
    later = U @ ((root - 1)[:, None] * U.mT)
    first = U @ (root[:, None] * Vh) - eye
    return torch.cat([first[None], later.expand(depth - 1, -1, -1)]).to(matrix)


@isolated
def batch_norm_ratios(
    depth: int, added_variance: float, initial_variance: float = 1.0, layers: int = 3, *, direction: str
) -> Tensor:
    """Estimate ratios of gradient norms across the blocks of a preactivation stack with batch normalisation.

    A block adds W_k rho(BN(W_{k-1} .. rho(BN(x)))) with ReLU to the stream, whose variance is v_l = v_0 + l s. With
    q = 1 - 1/pi, in/out = sqrt(1 + s / (q^k v_l)). An estimate: exact in the limit of many channels and samples, for
    independent weights of mean zero. The scale of all weights but W_k's drops out; W_k's enters through s, which is q
    for variance 2/fan_in.

    Args:
        depth: number of blocks.
        added_variance: s, of each channel, added by a block.
        initial_variance: v_0, of each channel at the input.
        layers: k, in a block.
        direction: "in/out" or "out/in".

    Returns:
        (depth,), float64, from the input.

    Raises:
        OptionError: unknown direction, or a variance that is not positive.
        DepthError: `depth` or `layers` is no integer >= 1.

    Example:
        >>> ratios = batch_norm_ratios(1000, 1 - 1 / math.pi, direction="in/out")
        >>> [round(float(r), 3) for r in ratios[[0, -1]]]   # the first block keeps its ratio however deep the stack
        [1.775, 1.002]
    """
    check_option("direction", direction, DIRECTIONS)
    depth, layers = as_depth("depth", depth), as_depth("layers", layers)
    added = check_positive("added_variance", added_variance)
    variance = check_positive("initial_variance", initial_variance) + added * torch.arange(depth, dtype=torch.float64)
    ratios = (1 + added / (_RELU_SHARE**layers * variance)).sqrt()
    return ratios if direction == "in/out" else 1 / ratios


def _scaled_norm(g: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Largest entry of each row, and the norm of the row divided by it, in float64: no square over- or underflows."""
    size = g.detach().abs().amax(1) if g.shape[1] else g.new_zeros(len(g))
    if not bool((size > 0).all()):
        raise OptionError(f"{name}: a gradient is exactly zero: it has no ratio")
    if bool((size < torch.finfo(g.dtype).tiny).any()):
        raise OptionError(
            f"{name}: the largest entry of a gradient, {float(size.min()):.3g}, is below the least normal number of "
            f"{g.dtype}: its digits are lost, and it has no ratio"
        )
    size = size.double()
    return size, torch.linalg.vector_norm(g.double() / size[:, None], dim=1)


def _squares(name: str, value: ArrayLike) -> Tensor:
    """Finite square matrices (..., d, d)."""
    array = as_real(name, value)
    return as_square(name, array) if array.ndim < 3 else as_layers(name, array)


def _svd_invertible(R: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, Vh = torch.linalg.svd(as_square("R", R).detach().to("cpu", torch.float64))
    if float(sigma[-1]) <= len(sigma) * EPS * float(sigma[0]):
        raise DeterminantError(f"R is singular to float64 precision: sigma_min = {float(sigma[-1]):.3g}")
    return U, sigma, Vh
