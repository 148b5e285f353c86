"""Theorem 2.1 of Hardt & Ma: constructions, both printed bounds, ours, and the lower bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resid.errors import DepthError, DeterminantError, NotFiniteError, OptionError, ShapeError
from resid.theory.factor import (
    compose,
    factor_near_identity,
    factorization_error,
    max_layer_norm,
    near_identity_bound,
    near_identity_lower_bound,
    rotation_angle,
    spectral_gamma,
)
from resid.theory.targets import FAMILIES, random_rotation, sample_target
from tests.twins.linear import compose_twin, lower_bound_twin, polar_layers_twin

F64 = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def matrix(rows):
    return torch.tensor(rows, dtype=F64)


def rotation(angle):
    return matrix([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def printed_depth(R):
    """The smallest depth at which the printed versions are stated."""
    return max(1, math.ceil(3 * spectral_gamma(R)))


# R, norm of the SVD and the polar construction, lower bound, (4 pi + 3 gamma)/8, all at depth 8 (table in the notes)
REFERENCE = {
    "shear 2": (matrix([[1, 2], [0, 1]]), 0.390, 0.20901, 0.19765, 1.901),
    "shear 10": (matrix([[1, 10], [0, 1]]), 0.720, 0.47312, 0.41300, 2.438),
    "rotation 2.5": (rotation(2.5), 0.311, 0.31123, 0.31123, 1.571),
    "-I": (-torch.eye(2, dtype=F64), 0.390, 0.39018, 0.39018, 1.571),
    "diag(4, 1/4)": (matrix([[4, 0], [0, 0.25]]), 0.189, 0.18921, 0.18921, 2.091),
    "diag(-3, -1/3)": (matrix([[-3, 0], [0, -1 / 3]]), 0.618, 0.52989, 0.44308, 1.983),
    "diag(-1, -2)": (matrix([[-1, 0], [0, -2]]), 0.518, 0.44672, 0.41739, 1.831),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_values(name):
    R, svd, polar, lower, printed = REFERENCE[name]
    # to half a unit in the last digit the notes give
    assert float(max_layer_norm(factor_near_identity(R, 8, "svd"))) == pytest.approx(svd, abs=5.1e-4)
    assert float(max_layer_norm(factor_near_identity(R, 8, "polar"))) == pytest.approx(polar, abs=5.1e-6)
    assert near_identity_lower_bound(R, 8) == pytest.approx(lower, abs=5.1e-6)
    assert near_identity_bound(R, 8, "v3") == pytest.approx(printed, abs=5.1e-4)


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_targets_of_each_family(family, count):
    """Reconstruction and every bound, on matrices with d = 1..20: no violation."""
    g = generator(FAMILIES.index(family))
    shallow = 0
    for case in range(count):
        R = sample_target(family, 1 + case % 20, g)
        depth = printed_depth(R) + (0, 2, 17)[case % 3]
        v3 = near_identity_bound(R, depth, "v3")
        polar = factor_near_identity(R, depth)
        assert polar.shape == (depth, *R.shape)
        assert factorization_error(polar, R) < 1e-12
        norms = torch.linalg.matrix_norm(polar, ord=2)
        assert float(norms.max() - norms.min()) < 1e-12 + 1e-9 * float(norms.max())  # equal norms
        assert float(norms.max()) <= near_identity_bound(R, depth) * (1 + 1e-12) + 1e-14
        assert near_identity_bound(R, depth) <= v3 * (1 + 1e-12)
        try:
            svd = factor_near_identity(R, depth, "svd")
        except DepthError:
            shallow += 1
            assert depth < 3
            continue
        assert factorization_error(svd, R) < 1e-12
        assert float(max_layer_norm(svd)) <= v3 * (1 + 1e-12)
    assert shallow <= count // 3


@pytest.mark.parametrize("family", FAMILIES)
def test_lower_bound_is_below_every_construction(family):
    g = generator(100 + FAMILIES.index(family))
    for case in range(24):
        R = sample_target(family, 1 + case % 8, g)
        for depth in (1, 2, 5, 30):
            lower = near_identity_lower_bound(R, depth)
            assert lower <= float(max_layer_norm(factor_near_identity(R, depth))) + 1e-12
            assert 0 <= lower <= 1


@pytest.mark.parametrize("case", range(40))
def test_polar_is_optimal_for_normal_targets(case):
    """Normal, no negative eigenvalue: both equal max |lambda^(1/depth) - 1| with the principal root."""
    g = generator(case)
    d = 1 + case % 7
    S = random_rotation(d, g)
    block = torch.zeros(d, d, dtype=F64)
    roots = []
    depth = 3 + case % 5
    for i in range(0, d - 1, 2):
        angle = float(torch.rand((), generator=g, dtype=F64)) * 3.1
        size = float(torch.randn((), generator=g, dtype=F64).mul(0.5).exp())
        block[i : i + 2, i : i + 2] = size * rotation(angle)
        roots.append(abs(size ** (1 / depth) * complex(math.cos(angle / depth), math.sin(angle / depth)) - 1))
    if d % 2:
        block[-1, -1] = size = float(torch.randn((), generator=g, dtype=F64).exp())
        roots.append(abs(size ** (1 / depth) - 1))
    R = S @ block @ S.mT
    norm = float(max_layer_norm(factor_near_identity(R, depth)))
    assert norm == pytest.approx(max(roots), rel=1e-10, abs=1e-13)
    assert near_identity_lower_bound(R, depth) == pytest.approx(min(1, max(roots)), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("family", ["gaussian", "rotation", "positive definite", "two reflections", "signs", "jordan"])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 6])
def test_polar_layers_equal_their_twin(family, d):
    """Layer by layer; where an eigenvalue -1 leaves the pairing of planes free, the products and norms.

    The twin's complex eigenvectors are good for well-conditioned targets away from half turns; the other families are
    covered by reconstruction and bounds.
    """
    R, depth = sample_target(family, d, generator(7 * d)), 6
    ours, twin = factor_near_identity(R, depth), polar_layers_twin(R, depth)
    torch.testing.assert_close(compose(ours), compose_twin(ours), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compose_twin(twin), R, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(max_layer_norm(ours), max_layer_norm(twin), rtol=1e-6, atol=1e-7)
    if family != "signs":
        torch.testing.assert_close(ours, twin, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("case", range(30))
def test_lower_bound_equals_brute_force(case):
    """The global search finds at least what random search and polishing find, in small dimension."""
    g = generator(case)
    R = sample_target(FAMILIES[case % len(FAMILIES)], 2 + case % 3, g)
    depth = (2, 6, 25)[case % 3]
    brute = min(1.0, lower_bound_twin(R, depth))
    assert near_identity_lower_bound(R, depth) >= brute - 2e-7


def test_lower_bound_sweeps_slopes_of_both_signs():
    """The maximum lies where the slope of the supporting line is negative for one map and positive for the other."""
    R = matrix([[1.7503, -0.7524], [1.5793, -0.6391]])
    assert near_identity_lower_bound(R, 3) == pytest.approx(0.7568832, rel=1e-5)
    R = matrix(
        [
            [2.2030, -0.1415, -1.0676, 1.0444],
            [-0.5860, 1.4204, -0.4187, -1.3871],
            [0.3722, -0.3989, 0.4149, 1.0507],
            [0.5716, -0.4471, 0.0605, 2.1170],
        ]
    )
    assert near_identity_lower_bound(R, 25) == pytest.approx(0.0610631, rel=1e-5)


def test_lower_bound_at_depth_one_is_the_distance_to_the_identity():
    R = torch.eye(4, dtype=F64) + 0.1 * torch.randn(4, 4, generator=generator(0), dtype=F64)
    distance = float(torch.linalg.matrix_norm(R - torch.eye(4, dtype=F64), ord=2))
    assert near_identity_lower_bound(R, 1) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("scale", [1e150, 1e-150, 1e60, 1e-60])
def test_very_large_and_very_small_targets(scale):
    """Nothing overflows or vanishes: bounds, norms and the checker, and the exact value where there is one."""
    R = scale * sample_target("gaussian", 4, generator(2))
    depth = 2000
    A = factor_near_identity(R, depth)
    norm = float(max_layer_norm(A))
    assert factorization_error(A, R) < 1e-9
    assert 0 < near_identity_lower_bound(R, depth) <= norm
    assert norm <= near_identity_bound(R, depth)
    assert near_identity_lower_bound(scale * torch.eye(2, dtype=F64), depth) == pytest.approx(
        abs(math.expm1(math.log(scale) / depth)), rel=1e-9
    )


def test_the_checker_notices_errors_at_every_scale():
    for scale, dtype in ((1e155, F64), (1e-161, F64), (2e19, torch.float32), (1e-22, torch.float32)):
        R = (scale * torch.eye(2, dtype=F64)).to(dtype)
        A = factor_near_identity(R, 400)
        A[-1] = (1 + A[-1].diagonal().diag()) * 1.05 - 1  # the last layer 5% too long
        assert 0.01 < factorization_error(A, R) < 1, (scale, factorization_error(A, R))


@pytest.mark.parametrize("exponent", [8, 10, 12, 14])
def test_lower_bound_stays_below_the_truth_for_ill_conditioned_targets(exponent):
    """Positive definite: the exact least norm is max |lambda^(1/depth) - 1|; eigenvalues in exact arithmetic."""
    for seed in range(5):
        g = generator(seed)
        # integer eigenvectors: S = [[1, 1], [1, -1]] gives R = S diag(a, b) S / 2 with eigenvalues a, b exactly
        a, b = 1.0, float(2 ** -round(exponent * math.log2(10)))
        R = torch.tensor([[(a + b) / 2, (a - b) / 2], [(a - b) / 2, (a + b) / 2]], dtype=F64)
        for depth in (3, 30, 400):
            exact = 1 - b ** (1 / depth)
            lower = near_identity_lower_bound(R, depth)
            assert lower <= min(1, exact)
            assert lower >= exact * (1 - 10 ** (exponent - 16.0) - 1e-12)
        U = random_rotation(6, g)
        wide = torch.logspace(0, -exponent, 6, dtype=F64)
        R = U.mT @ (wide[:, None] * U)  # rounding moves the smallest eigenvalue by eps: allow for that much
        moved = torch.finfo(F64).eps * 10.0**exponent
        assert near_identity_lower_bound(R, 30) <= 1 - float(wide[-1]) ** (1 / 30) * (1 - 20 * moved) + 1e-12


def test_lower_bound_finds_the_edge_of_an_ill_conditioned_target():
    """A finer sweep and random search find nothing higher, to a part in 1e6."""
    from resid.theory.factor.lower_bound import _edge_vectors, _step

    for seed in range(12):
        R = sample_target("ill-conditioned", 3 + seed % 4, generator(seed))
        scale = float(torch.linalg.svdvals(R)[0])
        unit = R / scale
        for depth in (20, 400):
            slopes = torch.logspace(-3, 11, 1500, dtype=F64)
            slopes = torch.cat([-slopes, slopes]).sort().values
            vectors = _edge_vectors(unit, slopes).flatten(0, 1)
            brute = float(_step(unit, math.log(scale), vectors, depth).max())
            assert near_identity_lower_bound(R, depth) >= min(1, brute) * (1 - 1e-5)


def test_minus_scaled_identity_shows_the_constant_cannot_be_below_pi():
    """R = -e^gamma I_2: no construction beats about sqrt(pi^2 + gamma^2)/depth, polar has about (pi + gamma)/depth."""
    gamma, depth = 1.0, 1000
    R = -math.exp(gamma) * torch.eye(2, dtype=F64)
    floor = math.hypot(math.pi, gamma) / depth
    assert near_identity_lower_bound(R, depth) == pytest.approx(floor, rel=1e-3)
    assert float(max_layer_norm(factor_near_identity(R, depth))) == pytest.approx(floor, rel=1e-3)


@pytest.mark.parametrize("d", [1, 2, 3, 7])
def test_minus_identity_in_every_dimension(d):
    R = -torch.eye(d, dtype=F64)
    if d % 2:
        with pytest.raises(DeterminantError, match="augment_negative_determinant"):
            factor_near_identity(R, 4)
        assert near_identity_lower_bound(R, 4) == 1.0
    else:
        assert float(max_layer_norm(factor_near_identity(R, 4))) == pytest.approx(2 * math.sin(math.pi / 8), rel=1e-12)


@pytest.mark.parametrize("exponent", range(2, 11, 2))
def test_ill_conditioned_targets_reconstruct(exponent):
    g = generator(exponent)
    U, V = random_rotation(6, g), random_rotation(6, g)
    R = U @ (torch.logspace(0, -exponent, 6, dtype=F64)[:, None] * V)
    for method in ("polar", "svd"):
        assert factorization_error(factor_near_identity(R, 80, method), R) < 1e-13


def test_identity_needs_no_layers():
    for method in ("polar", "svd"):
        assert float(factor_near_identity(torch.eye(3, dtype=F64), 5, method).abs().max()) < 1e-15


def test_svd_method_needs_a_layer_for_each_nontrivial_factor():
    R = sample_target("gaussian", 4, generator(3))
    with pytest.raises(DepthError, match="depth = 2 < 3"):
        factor_near_identity(R, 2, "svd")
    assert factorization_error(factor_near_identity(R, 3, "svd"), R) < 1e-14
    assert factorization_error(factor_near_identity(R, 1, "polar"), R) < 1e-14


def test_best_split_is_the_best_of_all_splits():
    from resid.theory.factor.constructions import _best_split

    norms = [lambda n: 2 * math.sin(1.3 / n), lambda n: math.expm1(2 / n), lambda n: 2 * math.sin(0.4 / n)]
    depth = 17
    best = min(
        max(norms[0](a), norms[1](b), norms[2](depth - a - b)) for a in range(1, depth - 1) for b in range(1, depth - a)
    )
    counts = _best_split(norms, depth)
    assert sum(counts) == depth
    assert max(f(n) for f, n in zip(norms, counts, strict=True)) == best


def test_large_dimension_does_not_overflow_the_determinant():
    R = 1e3 * sample_target("gaussian", 150, generator(0))  # det about 1e580
    assert torch.isinf(torch.linalg.det(R))
    depth = printed_depth(R)
    assert factorization_error(factor_near_identity(R, depth), R) < 1e-12
    tiny = 1e-6 * sample_target("gaussian", 120, generator(1))
    assert float(torch.linalg.det(tiny)) == 0.0
    assert factorization_error(factor_near_identity(tiny, 40), tiny) < 1e-12


def test_dtype_and_layout_follow_the_input():
    R = sample_target("gaussian", 3, generator(5))
    single = factor_near_identity(R.to(torch.float32), 4)
    assert single.dtype == torch.float32
    assert factorization_error(single, R.to(torch.float32)) < 1e-5
    strided = torch.stack([R, R], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(factor_near_identity(strided, 4), factor_near_identity(R, 4), rtol=0, atol=0)
    assert factor_near_identity([[2, 0], [0, 3]], 2).dtype == F64  # integers
    trained = R.clone().requires_grad_()
    assert not factor_near_identity(trained, 3).requires_grad


def test_numpy_arrays_of_every_kind_are_read():
    R = np.array([[2.0, 1.0], [0.0, 3.0]])
    expected = factor_near_identity(torch.from_numpy(R), np.int64(3))
    frozen = R.copy()
    frozen.flags.writeable = False
    for other in (R, frozen, R[::-1][::-1], R.astype(">f8"), R.astype(np.longdouble), R.astype(int), R.tolist()):
        torch.testing.assert_close(factor_near_identity(other, 3), expected)
    assert factor_near_identity(R.astype(np.float32), 3).dtype == torch.float32


def test_the_input_is_not_changed():
    R = sample_target("two reflections", 4, generator(5))
    before = R.clone()
    for method in ("polar", "svd"):
        factor_near_identity(R, 6, method)
    near_identity_lower_bound(R, 6)
    assert torch.equal(R, before)


def test_compose_takes_batches_and_gradients():
    A = torch.randn(2, 3, 4, 4, generator=generator(0), dtype=F64)
    batched = compose(A)
    for k in range(2):
        torch.testing.assert_close(batched[k], compose_twin(A[k]))
    assert torch.autograd.gradcheck(compose, A[0, :, :2, :2].clone().requires_grad_())


def test_max_layer_norm_is_the_largest_singular_value_at_every_scale():
    A = torch.randn(5, 6, 6, generator=generator(1), dtype=F64)
    for scale in (1.0, 1e-200, 1e150):
        expected = float(torch.linalg.svdvals(A)[:, 0].max()) * scale
        assert float(max_layer_norm(A * scale)) == pytest.approx(expected, rel=1e-13)
    assert float(max_layer_norm(torch.zeros(2, 3, 3))) == 0.0


def test_bounds_are_the_printed_formulas():
    R = torch.diag(matrix([math.e, 1.0]))  # gamma = 1
    assert spectral_gamma(R) == pytest.approx(1)
    assert near_identity_bound(R, 10, "v3") == pytest.approx((4 * math.pi + 3) / 10)
    assert near_identity_bound(R, 10, "submission") == pytest.approx(2 * (math.sqrt(math.pi) + math.sqrt(3)) ** 2 / 10)
    assert near_identity_bound(R, 10) == pytest.approx(math.expm1(0.1))
    assert near_identity_bound(rotation(1.0), 10) == pytest.approx(2 * math.sin(0.05))
    with pytest.raises(DepthError, match=r"depth = 2 < 3 gamma = 3"):
        near_identity_bound(R, 2, "v3")


def test_submission_bound_is_returned_where_it_is_false():
    """det R = -1: the printed bound falls below 1, and no factorisation has all norms below 1."""
    R = torch.diag(matrix([1.0, -1.0]))
    assert near_identity_bound(R, 100, "submission") == pytest.approx(2 * math.pi / 100)
    assert near_identity_lower_bound(R, 100) == 1.0
    with pytest.raises(DeterminantError):
        near_identity_bound(R, 100, "v3")


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 6),
    depth=st.integers(1, 40),
    family=st.sampled_from(FAMILIES),
)
def test_bounds_order(seed, d, depth, family):
    """lower bound <= measured norm <= polar bound, at every depth."""
    R = sample_target(family, d, generator(seed))
    measured = float(max_layer_norm(factor_near_identity(R, depth)))
    assert near_identity_lower_bound(R, depth) <= measured + 1e-12
    assert measured <= near_identity_bound(R, depth) * (1 + 1e-12) + 1e-14


@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), depth=st.integers(1, 20))
def test_negative_determinant_is_refused_and_has_bound_one(seed, d, depth):
    R = sample_target("gaussian", d, generator(seed))
    R[0] *= -1
    with pytest.raises(DeterminantError, match="det R < 0"):
        factor_near_identity(R, depth)
    with pytest.raises(DeterminantError):
        near_identity_bound(R, depth)
    assert near_identity_lower_bound(R, depth) == 1.0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: factor_near_identity(torch.ones(2, 3), 4), ShapeError, r"R has shape \(2, 3\): a square"),
        (lambda: factor_near_identity(torch.ones(3), 4), ShapeError, r"R has shape \(3,\)"),
        (lambda: factor_near_identity(torch.ones(0, 0), 4), ShapeError, r"\(0, 0\)"),
        (lambda: factor_near_identity(torch.eye(2) * 1j, 4), ShapeError, "complex"),
        (lambda: factor_near_identity(torch.tensor([[math.nan]]), 4), NotFiniteError, "R holds 1 entries"),
        (lambda: factor_near_identity(torch.tensor([[math.inf]]), 4), NotFiniteError, "R holds 1 entries"),
        (lambda: factor_near_identity(torch.eye(2), 0), DepthError, "depth = 0: an integer of at least 1"),
        (lambda: factor_near_identity(torch.eye(2), 2.0), DepthError, "depth = 2.0"),
        (lambda: factor_near_identity(torch.eye(2), True), DepthError, "depth = True"),
        (lambda: factor_near_identity(torch.eye(2), 2, "qr"), OptionError, "method = 'qr': one of 'polar', 'svd'"),
        (lambda: factor_near_identity(torch.zeros(2, 2), 2), DeterminantError, "det R = 0"),
        (lambda: factor_near_identity([[1.0, 2.0], [2.0, 4.0]], 2), DeterminantError, "sigma_min"),
        (lambda: near_identity_bound(torch.eye(2), 2, "v4"), OptionError, "version = 'v4'"),
        (lambda: near_identity_lower_bound([[1.0, 0.0], [0.0, 1e-300]], 2), DeterminantError, "cannot be told"),
        (lambda: compose(torch.eye(2)), ShapeError, r"A has shape \(2, 2\): layers"),
        (lambda: factorization_error(torch.zeros(2, 2, 2), torch.eye(1)), ShapeError, r"R is \(1, 1\) and A has d = 2"),
        (lambda: factorization_error(torch.zeros(2, 2, 2, 2), torch.eye(2)), ShapeError, "one network"),
        (lambda: factor_near_identity(None, 2), ShapeError, "R of type NoneType is no array of real numbers"),
        (lambda: factor_near_identity("R", 2), ShapeError, "R of type str is no array"),
        (lambda: factor_near_identity([[1.0], [1.0, 2.0]], 2), ShapeError, "R of type list is no array"),
        (lambda: factor_near_identity([[10**400]], 2), ShapeError, "R of type list is no array"),
        (lambda: factor_near_identity([[1j]], 2), ShapeError, "R has dtype torch.complex128"),
        (lambda: factor_near_identity(torch.eye(2).half(), 2), ShapeError, "float32 or float64 is needed"),
        (lambda: factor_near_identity(torch.eye(2).to_sparse(), 2), ShapeError, "a dense one"),
        (lambda: compose(torch.zeros(0, 2, 2)), ShapeError, "depth >= 1"),
        (lambda: spectral_gamma(torch.zeros(1, 1)), DeterminantError, "det R = 0"),
        (lambda: sample_target("cauchy", 2, generator(0)), OptionError, "family = 'cauchy'"),
    ],
)
def test_bad_input_names_argument_value_and_condition(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_singular_targets_have_lower_bound_one():
    assert near_identity_lower_bound([[1.0, 2.0], [2.0, 4.0]], 50) == 1.0
    assert near_identity_lower_bound(torch.zeros(2, 2), 50) == 1.0


@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.3, 2.9), (math.pi, 1.0), (math.pi, math.pi)])
def test_rotation_angle_is_the_largest_angle_of_the_polar_factor(angles):
    """Against the eigenvalues e^(+-i angle) of Q = R P^-1; a stretch does not change it."""
    generator = torch.Generator().manual_seed(5)
    S = random_rotation(5, generator)
    block = torch.eye(5, dtype=torch.float64)
    for i, angle in enumerate(angles):
        cosine, sine = math.cos(angle), math.sin(angle)
        block[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    V = random_rotation(5, generator)
    P = V.mT @ (torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)[:, None] * V)
    assert rotation_angle(S @ block @ S.mT @ P) == pytest.approx(max(angles), abs=1e-7)


def test_rotation_angle_refuses_reflections():
    with pytest.raises(DeterminantError, match="det R < 0"):
        rotation_angle([[1.0, 0.0], [0.0, -1.0]])
