"""Near-identity factorisations R = (I + A_depth) ... (I + A_1) with every ||A_i|| small.

Hardt & Ma 2016, Theorem 2.1, in both printed versions, and what this project adds to it: the equal-norm polar
construction with its bound, and a lower bound that it meets for normal matrices without negative eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import EPS, ArrayLike, as_depth, as_layers, as_square, check_option, check_same_dimension
from resid.errors import DepthError, DeterminantError, ShapeError
from resid.theory.factor._rotation import PlaneRotations, plane_rotations

METHODS = ("polar", "svd")
VERSIONS = ("polar", "v3", "submission")

#: Below this an angle or a logarithm of a singular value is rounding and needs no layer of its own.
_NEGLIGIBLE = 1e-13
#: Numbers in a chunk of layers: its few temporaries stay in a core's cache, which at d = 256 is five times faster
#: than whole-array passes.
_CHUNK = 1 << 16


@isolated
def compose(A: Tensor) -> Tensor:
    """Compute the map of a linear residual network, (I + A_depth) ... (I + A_1).

    Args:
        A: layers (..., depth, d, d), ordered from the input.

    Returns:
        The product (..., d, d), in the dtype and on the device of `A`; differentiable.

    Raises:
        ShapeError: `A` is no stack of square layers.
        NotFiniteError: `A` holds NaN or infinity.

    Example:
        >>> compose(torch.tensor([[[1.0]], [[2.0]]]))  # (1 + 2)(1 + 1)
        tensor([[6.]])
    """
    A = as_layers("A", A)
    product = A[..., 0, :, :] + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    for i in range(1, A.shape[-3]):
        layer = A[..., i, :, :]
        product = torch.addmm(product, layer, product) if A.ndim == 3 else product + layer @ product
    return product


@isolated
def max_layer_norm(A: Tensor) -> Tensor:
    """Return the largest spectral norm of a layer, max_i ||A_i||_2, which Hardt & Ma write |||A|||.

    The largest singular value comes from the Gram matrix: its relative error is of the order of eps, and the small
    singular values, which the Gram matrix spoils, are not used.

    Args:
        A: layers (..., depth, d, d).

    Returns:
        The norm of each network, (...).

    Raises:
        ShapeError: `A` is no stack of square layers.
        NotFiniteError: `A` holds NaN or infinity.

    Example:
        >>> float(max_layer_norm(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])))
        4.0
    """
    A = as_layers("A", A)
    scale = A.abs().amax(dim=(-3, -2, -1), keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)
    unit = A / scale
    gram = unit.mT @ unit
    largest = torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0)
    return scale[..., 0, 0, 0] * largest.amax(dim=-1).sqrt()


@isolated(grad=False)
def factorization_error(A: Tensor, R: Tensor) -> float:
    """Measure how far layers are from a factorisation of R: ||(I + A_depth) ... (I + A_1) - R||_F / ||R||_F.

    The checker of both constructions, in the precision of `A`.

    Args:
        A: layers (depth, d, d).
        R: (d, d), not zero.

    Raises:
        ShapeError: `A` is no single stack of layers, or `R` does not fit it.
        NotFiniteError: an argument holds NaN or infinity.

    Example:
        >>> factorization_error(torch.zeros(3, 2, 2), torch.eye(2))
        0.0
    """
    A, R = as_layers("A", A), as_square("R", R)
    if A.ndim != 3:
        raise ShapeError(f"A has shape {tuple(A.shape)}: one network (depth, d, d) is needed")
    check_same_dimension("R", R, A.shape[-1], "A")
    R = R.to(A)
    scale = R.abs().max()  # squares of very large or small entries would overflow or vanish
    return float(torch.linalg.matrix_norm((compose(A) - R) / scale) / torch.linalg.matrix_norm(R / scale))


@isolated
def spectral_gamma(R: ArrayLike) -> float:
    """Return gamma, the larger of ``|log sigma_max(R)|`` and ``|log sigma_min(R)|``, natural logarithms.

    Args:
        R: square matrix (d, d).

    Raises:
        DeterminantError: `R` is singular to float64 precision.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Source: Hardt & Ma 2016, Section 2.

    Example:
        >>> round(spectral_gamma(torch.diag(torch.tensor([4.0, 0.25]))), 6) == round(math.log(4), 6)
        True
    """
    sigma = torch.linalg.svdvals(as_square("R", R).detach().to("cpu", torch.float64))
    _check_invertible(sigma)
    return max(abs(math.log(float(sigma[0]))), abs(math.log(float(sigma[-1]))))


@isolated
def rotation_angle(R: ArrayLike) -> float:
    """Return theta_max, the largest angle in [0, pi] by which the rotation Q of R = QP turns a plane, in radians.

    Args:
        R: square matrix (d, d), det R > 0.

    Raises:
        DeterminantError: det R <= 0, or `R` is singular to float64 precision.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> round(rotation_angle(torch.tensor([[0.0, -3.0], [2.0, 0.0]])), 6)  # a quarter turn and a stretch
        1.570796
    """
    U, _, Vh = _svd_positive(as_square("R", R))
    return plane_rotations(U @ Vh).largest_angle


@isolated
def factor_near_identity(R: ArrayLike, depth: int, method: str = "polar") -> Tensor:
    """Factor R into layers near the identity: (I + A_depth) ... (I + A_1) = R, exactly but for rounding.

    Rounding is that of storing layers next to -I as A: where R shrinks a direction by sigma_min^(1/depth) per layer,
    the relative error of the product is of the order of depth eps / sigma_min^(1/depth).

    method="polar" (recommended): R = QP with a rotation Q and P positive definite, and
    I + A_i = Q^(i/depth) P^(1/depth) Q^(-(i-1)/depth). The product telescopes to QP. All layers have the same norm,
    at most `near_identity_bound(R, depth, "polar")`. Any depth >= 1, any d.

    method="svd": the paper's construction R = U K V^T with depth split over rotation layers for V^T, layers K^(1/p)
    and rotation layers for U, the split chosen so that the largest layer norm is least. Needs as many layers as there
    are nontrivial factors (at most 3). Its norm depends on which singular vectors LAPACK returns when singular values
    coincide; that of "polar" does not.

    Args:
        R: (d, d), det R > 0. Work is done in float64 on the CPU.
        depth: number of layers, >= 1.
        method: "polar" or "svd".

    Returns:
        (depth, d, d), ordered from the input, dtype and device of `R`.

    Raises:
        DeterminantError: det R <= 0, or `R` is singular to float64 precision: then every factorisation has a layer of
            norm >= 1 (`resid.theory.landscape.augment_negative_determinant` helps).
        DepthError: depth < 1, or "svd" with fewer layers than nontrivial factors.
        OptionError: unknown method.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Source: Hardt & Ma 2016, Theorem 2.1 ("svd"); "polar" is this project's.

    Example:
        >>> R = torch.tensor([[-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)   # half a turn
        >>> A = factor_near_identity(R, depth=8)
        >>> bool(torch.allclose(compose(A), R)), round(float(max_layer_norm(A)), 6)  # 2 sin(pi/16)
        (True, 0.390181)
    """
    matrix, depth = as_square("R", R), as_depth("depth", depth)
    check_option("method", method, METHODS)
    U, sigma, Vh = _svd_positive(matrix)
    build = _polar_layers if method == "polar" else _svd_layers
    return build(U, sigma, Vh, depth).to(matrix)


@isolated
def near_identity_bound(R: ArrayLike, depth: int, version: str = "polar") -> float:
    """Bound from above the least possible max_i ||A_i||_2 over the factorisations of R into `depth` layers.

    version="polar": e^(gamma/depth) - 1 + 2 sin(theta_max/(2 depth)), theta_max the largest angle of the rotation in
    R = QP. Ours; holds for every depth >= 1.
    version="v3": (4 pi + 3 gamma)/depth, Hardt & Ma 2016, Theorem 2.1 of the later versions. Stated for
    depth >= max(1, 3 gamma).
    version="submission": 2 (sqrt(pi) + sqrt(3 gamma))^2/depth, Theorem 2.1 of the first version. It was printed without
    a condition on det R, and is returned for det R < 0 too: there it is false.

    Args:
        R: invertible matrix (d, d); det R > 0 unless version="submission".
        depth: number of layers, >= 1.
        version: "polar", "v3" or "submission".

    Raises:
        DepthError: depth < 1, or depth < max(1, 3 gamma) for a printed version.
        DeterminantError: det R <= 0, or `R` is singular for "submission".
        OptionError: unknown version.
        ShapeError: `R` is not square.
        NotFiniteError: `R` holds NaN or infinity.

    Example:
        >>> round(near_identity_bound(-torch.eye(2), depth=8, version="v3"), 6)   # 4 pi / 8
        1.570796
    """
    matrix, depth = as_square("R", R), as_depth("depth", depth)
    check_option("version", version, VERSIONS)
    if version == "polar":
        U, sigma, Vh = _svd_positive(matrix)
        stretch = _gamma(sigma) / depth
        grown = math.expm1(stretch) if stretch < 700 else math.inf
        return grown + plane_rotations(U @ Vh).distance_to_identity(1 / depth)
    if version == "v3":
        gamma = _gamma(_svd_positive(matrix)[1])
        constant = 4 * math.pi + 3 * gamma
    else:
        gamma = spectral_gamma(matrix)
        constant = 2 * (math.sqrt(math.pi) + math.sqrt(3 * gamma)) ** 2
    if depth < 3 * gamma:
        raise DepthError(
            f"depth = {depth} < 3 gamma = {3 * gamma:.4g}: version {version!r} is stated for depth >= max(1, 3 gamma); "
            "version 'polar' holds at every depth"
        )
    return constant / depth


def _svd_positive(R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma, V^T with U and V^T rotations (float64, CPU), or a `DeterminantError`."""
    U, sigma, Vh = torch.linalg.svd(R.detach().to("cpu", torch.float64))
    _check_invertible(sigma)
    # det R = det U det V det K, and det K > 0; det R itself overflows or underflows for large d
    sign_u, sign_v = float(torch.linalg.det(U)), float(torch.linalg.det(Vh))
    if sign_u * sign_v < 0:
        raise DeterminantError(
            "det R < 0: no factorisation with every ||A_i|| < 1 exists at any depth, because I + A_i then has "
            "det > 0; resid.theory.landscape.augment_negative_determinant(R) adds one dimension that repairs it"
        )
    if sign_u < 0:  # flip one column of U and the same row of V^T: the product is unchanged, K being diagonal
        U[:, -1] *= -1
        Vh[-1] *= -1
    return U, sigma, Vh


def _check_invertible(sigma: Tensor) -> None:
    largest, smallest = float(sigma[0]), float(sigma[-1])
    if smallest <= len(sigma) * EPS * largest:
        raise DeterminantError(
            f"det R = 0 to float64 precision: sigma_min = {smallest:.3g}, sigma_max = {largest:.3g}; a singular R has "
            "no factorisation with every ||A_i|| < 1"
        )


def _gamma(sigma: Tensor) -> float:
    return float(sigma.log().abs().max())


def _polar_layers(U: Tensor, sigma: Tensor, Vh: Tensor, depth: int) -> Tensor:
    d = len(sigma)
    rotation = plane_rotations(U @ Vh)
    root = Vh.mT @ ((sigma.log() / depth).expm1()[:, None] * Vh)  # P^(1/depth) - I
    turn = rotation.root_minus_identity(1 / depth)  # Q^(1/depth) - I
    first = turn + turn @ root + root  # Q^(1/depth) P^(1/depth) - I
    if rotation.largest_angle < _NEGLIGIBLE:
        return first.expand(depth, d, d).clone()
    # A_i = Q^t A_1 Q^(-t) with t = (i-1)/depth. In the basis S of the planes Q^t acts on pairs of rows and of columns,
    # at a cost of d^2; the way back takes two matrix products a layer.
    S = rotation.basis
    inner = S.mT @ first @ S
    layers = torch.empty(depth, d, d, dtype=torch.float64)
    step = max(1, _CHUNK // (d * d))
    for start in range(0, depth, step):
        t = torch.arange(start, min(start + step, depth), dtype=torch.float64) / depth
        half = (rotation.conjugate(inner, t).reshape(-1, d) @ S.mT).reshape(-1, d, d)
        torch.matmul(S, half, out=layers[start : start + len(t)])
    return layers


def _svd_layers(U: Tensor, sigma: Tensor, Vh: Tensor, depth: int) -> Tensor:
    factors: list[PlaneRotations | Tensor] = [plane_rotations(Vh), sigma, plane_rotations(U)]
    nontrivial = [f for f in factors if _size(f) > _NEGLIGIBLE]
    if depth < len(nontrivial):
        raise DepthError(
            f"depth = {depth} < {len(nontrivial)}: R = U K V^T has {len(nontrivial)} factors that are not the "
            'identity and each needs a layer; method="polar" works at every depth'
        )
    counts = _best_split([_root_norm(f) for f in nontrivial], depth)
    d = len(sigma)
    layers = [_root(f, n).expand(n, d, d) for f, n in zip(nontrivial, counts, strict=True)]
    return torch.cat(layers) if layers else torch.zeros(depth, d, d, dtype=torch.float64)


def _size(factor: PlaneRotations | Tensor) -> float:
    return factor.largest_angle if isinstance(factor, PlaneRotations) else _gamma(factor)


def _root(factor: PlaneRotations | Tensor, count: int) -> Tensor:
    """factor^(1/count) - I."""
    if isinstance(factor, PlaneRotations):
        return factor.root_minus_identity(1 / count)
    return torch.diag((factor.log() / count).expm1())


def _root_norm(factor: PlaneRotations | Tensor) -> Callable[[int], float]:
    """count -> ||factor^(1/count) - I||_2, in closed form."""
    if isinstance(factor, PlaneRotations):
        return lambda count: factor.distance_to_identity(1 / count)
    logs = float(factor[0].log()), float(factor[-1].log())
    return lambda count: max(abs(math.expm1(log / count)) for log in logs)


def _best_split(norms: Sequence[Callable[[int], float]], depth: int) -> list[int]:
    """Positive counts with sum `depth` whose largest norms[j](counts[j]) is least.

    Greedy and optimal: each norm falls with its count, so the next layer always goes to the factor of largest norm.
    """
    counts = [1] * len(norms)
    if not counts:
        return counts
    for _ in range(depth - len(counts)):
        worst = max(range(len(norms)), key=lambda j: norms[j](counts[j]))
        counts[worst] += 1
    return counts
