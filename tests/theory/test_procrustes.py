"""The nearest norm-preserving kernel: polar factors by every method, the projection beside its slow twin, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resid.book.checks.norms.procrustes import isometric_kernel
from resid.errors import ConvergenceError, NotFiniteError, OptionError, ShapeError, SizeError
from resid.theory.conv_spectrum import conv_matrix, conv_singular_values
from resid.theory.procrustes import (
    coupled_newton_schulz,
    norm_preserving_scale,
    project_norm_preserving,
    projection_report,
    released_projection,
)
from resid.theory.procrustes.polar import METHODS, POLAR_EXPRESS, inverse_square_root, polar_factor, scaled_to_one
from tests.twins.conv import conv_matrix_twin, projection_twin, published_projection

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def error(found, expected):
    assert found.shape == expected.shape
    return float((found.to(expected.dtype) - expected).abs().max())


def with_singular_values(values, rows, dtype=torch.complex128, seed=0):
    """A matrix (rows, len(values)) with these singular values, and its polar factor."""
    sigma = torch.as_tensor(values, dtype=F64)
    wide = torch.complex128 if dtype.is_complex else F64
    U, V = (torch.linalg.qr(normal(m, len(sigma), seed=seed + m, dtype=wide))[0] for m in (rows, len(sigma)))
    return ((U * sigma) @ V.mH).to(dtype), U @ V.mH


# ------------------------------------------------------------------------------------------------------- polar factors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1), (5, 2), (2, 5), (4, 3, 3), (2, 3, 6, 4)])
def test_every_method_gives_the_polar_factor(method, dtype, shape):
    single = dtype in (torch.float32, torch.complex64)
    A = normal(*shape, seed=sum(shape), dtype=dtype)
    wide = A.to(torch.complex128)
    U, _, Vh = torch.linalg.svd(wide, full_matrices=False)
    found = polar_factor(A, method)
    assert found.dtype == dtype
    assert found.is_contiguous() or len(shape) > 1
    assert error(found, U @ Vh) < (1e-5 if single else 1e-10)


@given(
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=6),
    st.integers(0, 3),
    st.floats(-20, 20),
    st.sampled_from([torch.float32, torch.complex64, torch.float64, torch.complex128]),
)
def test_auto_is_accurate_for_every_matrix_that_is_not_singular(values, more, log_scale, dtype):
    single = dtype in (torch.float32, torch.complex64)
    sigma = sorted(values, reverse=True)
    A, Q = with_singular_values(sigma, len(sigma) + more, dtype)
    found = polar_factor(A * math.exp(log_scale), "auto").to(torch.complex128)
    assert float((torch.linalg.svdvals(found) - 1).abs().max()) < (1e-5 if single else 1e-10)
    condition = sigma[0] / sigma[-1]
    assert error(found, Q.to(torch.complex128)) < max(1e-5, 3e-7 * condition) if single else 1e-10 * condition


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7)])
def test_the_scale_of_a_matrix_does_not_matter(method, shape):
    for dtype, scales in (
        (F64, (1e-300, 1e-160, 1e155, 1e300)),
        (torch.complex128, (1e-160, 1e155)),
        (torch.float32, (1e-36, 1e-30, 1e19, 1e36)),
    ):
        A = normal(2, *shape, seed=sum(shape), dtype=dtype)
        A[1] *= 1e-5  # each matrix of a batch by itself
        expected = polar_factor(A, "svd")
        for scale in scales:
            assert error(polar_factor(scale * A, method), expected) < (2e-4 if dtype == torch.float32 else 1e-11)
    zero = torch.zeros(1, *shape)
    assert torch.equal(scaled_to_one(zero), zero)
    least = torch.full((1, *shape), 5e-324, dtype=F64)
    assert bool(torch.isfinite(scaled_to_one(least)).all())


@pytest.mark.parametrize("scale", [1e-160, 1e-100, 1e100, 1e155])
@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (3, 3, 3, 3), (2, 5, 1, 1)])
def test_the_scale_of_a_kernel_does_not_matter(shape, scale):
    K = normal(*shape)
    assert error(project_norm_preserving(scale * K, 6), project_norm_preserving(K, 6)) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [4, 8])
def test_the_polar_factor_is_off_by_no_more_than_rounding_of_the_entries(dtype, columns):
    """And that is much for large condition numbers, while the columns stay orthonormal."""
    eps, seen = torch.finfo(dtype).eps, []
    for power in range(8 if dtype == torch.float32 else 15):
        A, Q = with_singular_values([1, 1, 10.0**-power, 10.0**-power], columns, dtype=F64, seed=power)
        found = polar_factor(A.to(dtype)).to(F64)
        assert float((torch.linalg.svdvals(found) - 1).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-10)
        seen.append(error(found, Q) / (eps * 10**power))
    assert max(seen) < (20 if columns == 4 else 1e-7 / eps)  # through the Gram matrix up to `accuracy`
    assert max(seen[4:]) > 0.01


@pytest.mark.parametrize("off", [1e-9, 1e-4, 1e-2, 0.08, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_isometries_are_as_accurate_as_others(off, dtype):
    A, Q = with_singular_values(7 * (1 + off * np.linspace(-1, 1, 9)), 12, dtype)
    assert error(polar_factor(A), Q) < (5e-6 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-7, 1e-12])
def test_inverse_square_root_keeps_its_tolerance_or_says_so(tolerance):
    for spread in (1e-8, 1e-3, 0.05, 0.3, 0.9, 1 - 1e-12):
        values = torch.tensor([1 - spread, 1.0, 1 + spread], dtype=F64)
        Q = torch.linalg.qr(normal(3, 3))[0]
        root, good = inverse_square_root((Q * values) @ Q.mT, tolerance)
        exact = (Q * values.rsqrt()) @ Q.mT
        if bool(good):
            assert error(root, exact) <= 20 * tolerance * float(exact.abs().max())
        else:
            assert spread > 0.99 or tolerance < 1e-10
            assert not root.any()
    one, good = inverse_square_root(4 * torch.eye(2, dtype=F64), tolerance, eigenvalues=False)
    assert bool(good)
    assert error(one, 0.5 * torch.eye(2, dtype=F64)) < 1e-15
    assert not inverse_square_root(torch.diag(torch.tensor([1.0, 9.0], dtype=F64)), tolerance, eigenvalues=False)[1]


def _polar_or_none(A, method):
    try:
        return polar_factor(A, method)
    except ConvergenceError:
        return None


@pytest.mark.parametrize("A", [torch.zeros(3, 2), torch.ones(4, 4), torch.eye(3)[:, [0, 1, 1]], torch.zeros(2, 2, 3)])
def test_matrices_without_full_rank_get_a_nearest_isometry_or_an_error(A):
    wide = A if A.shape[-2] <= A.shape[-1] else A.mT
    for method in ("auto", "svd"):
        Q = polar_factor(A.to(F64), method)
        rows = Q if A.shape[-2] <= A.shape[-1] else Q.mT
        assert error(rows @ rows.mT, torch.eye(wide.shape[-2], dtype=F64).expand_as(rows @ rows.mT)) < 1e-12
        nuclear = torch.linalg.svdvals(A.to(F64)).sum(-1)
        assert error((Q * A).sum((-2, -1)), nuclear) < 1e-12  # the largest possible inner product
    for method in ("gram", "newton-schulz", "polar-express", "qdwh"):
        found = _polar_or_none(A.to(F64), method)
        if found is not None:  # rounding has lifted the zeros off the ground, and then the result has to be right
            assert error((found * A).sum((-2, -1)), nuclear) < 1e-9
            assert float((torch.linalg.svdvals(found) - 1).abs().max()) < 1e-9
    with pytest.raises(ConvergenceError, match="full rank"):
        polar_factor(torch.zeros(2, 2), "newton-schulz")


def test_quintics_are_the_best_ones_on_the_intervals_they_meet():
    low, high, cushion = 1e-3, 1.0, 0.02407327424182761
    for i, (a, b, c) in enumerate(POLAR_EXPRESS[:6]):
        p = np.polynomial.Polynomial([0, a, 0, b, 0, c])
        left = max(low, cushion * high)
        turns = [x.real for x in p.deriv().roots() if abs(x.imag) < 1e-9 and left < x.real < high]
        heights = p(np.array([left, *sorted(turns), high]))
        assert len(heights) == 4  # equioscillation: four extremes of equal size and alternating side of their middle
        middle = (heights.max() + heights.min()) / 2
        size = (heights.max() - heights.min()) / 2
        np.testing.assert_allclose((heights - middle) / size, [-1, 1, -1, 1], atol=1e-5 if i < 5 else 1e-3)
        assert p(low) - 1 == pytest.approx(1 - p(high), abs=1e-9)  # the true ends are equally far from 1
        low, high = float(p(low)), float(p(high))
    values = np.logspace(-3, 0, 2001)
    for step, (a, b, c) in enumerate(POLAR_EXPRESS):
        scale = 1.01 if step < len(POLAR_EXPRESS) - 1 else 1
        values = values / scale
        values = a * values + b * values**3 + c * values**5
    values = 1.875 * values - 1.25 * values**3 + 0.375 * values**5
    assert np.abs(values - 1).max() < 1e-5


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivative_is_that_of_finite_differences(shape, dtype):
    A = normal(*shape, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(polar_factor, (A,))


def test_derivative_at_equal_singular_values_is_finite_and_refused_at_zero():
    A = torch.eye(3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(polar_factor, (A,))
    flat = torch.zeros(2, 2, dtype=F64).requires_grad_()
    with pytest.raises(ConvergenceError, match="no derivative"):
        polar_factor(flat).sum().backward()


# ----------------------------------------------------------------------------------------------------------- projection


SHAPES = [
    (1, 1, 1, 4),
    (5, 2, 3, 6),
    (2, 5, 3, 7),
    (3, 3, 3, 5),
    (4, 1, 2, 4),
    (7, 4, 3, 3),
    (6, 6, 1, 3),
    (3, 2, 5, 5),
]


@pytest.mark.parametrize(("d", "c", "k", "n"), SHAPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu", [False, True])
def test_projection_is_that_of_the_twin(d, c, k, n, method, relu):
    kernel = normal(d, c, k, k, seed=d + 10 * c)
    try:
        found = project_norm_preserving(kernel, n, relu, method=method)
    except ConvergenceError:
        assert method == "gram"  # in float64 it takes moderate condition numbers only
        return
    assert error(found, projection_twin(kernel, n, relu)) < 1e-11
    if method in ("auto", "svd"):
        single = project_norm_preserving(kernel.float(), n, relu, method=method)
        assert single.dtype == torch.float32
        assert error(single, projection_twin(kernel.float().double(), n, relu)) < 1e-5


def test_route_through_singular_values_is_the_same_where_gram_matrices_fail():
    kernel = normal(6, 3, 3, 3)
    kernel[:, 2] = kernel[:, 1] * (1 + 1e-6) + 1e-6 * kernel[:, 2]  # Gram matrices of condition number 1e12
    assert error(project_norm_preserving(kernel, 6), projection_twin(kernel, 6)) < 1e-8
    kernel = normal(4, 4, 3, 3)  # square: never through Gram matrices
    assert error(project_norm_preserving(kernel, 6), projection_twin(kernel, 6)) < 1e-11


@pytest.mark.parametrize(
    ("shape", "n", "stride", "groups", "dilation", "scale"),
    [
        ((6, 2, 3, 3), 6, 1, 3, 1, 1),
        ((6, 2, 3, 3), 6, 2, 3, 1, 1),
        ((4, 3, 2, 2), 6, 2, 1, 1, 1),
        ((9, 1, 2, 2), 4, 2, 1, 1, 1.5),  # nine outputs, four grids of one channel
        ((9, 2, 3, 3), 7, 1, 1, 2, 4.5**0.5),
        ((4, 2, 1, 1), 5, 2, 1, 1, 2**0.5),
        ((4, 1, 3, 2), (6, 8), (3, 2), 2, 1, 1),
        ((4, 4, 4, 4), 8, 4, 1, 1, 1),
    ],
)
def test_projection_of_any_convolution_is_that_of_its_matrix(shape, n, stride, groups, dilation, scale):
    """s times the polar factor of the dense matrix on its range, cut to the taps that the kernel has."""
    kernel = normal(*shape)
    size = (-(-n // stride) * stride,) * 2 if isinstance(n, int) else n
    matrix = conv_matrix_twin(kernel, size, stride, "circular", groups, dilation)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = 1e-9 * S[0] < S
    whole = U[:, kept] @ Vh[kept]
    found = project_norm_preserving(kernel, n, stride=stride, groups=groups, dilation=dilation)
    mask = conv_matrix_twin(torch.ones_like(kernel), size, stride, "circular", groups, dilation)
    ours = conv_matrix_twin(found, size, stride, "circular", groups, dilation)
    assert error(ours, scale * whole * mask) < 1e-10
    report = projection_report(found, n, stride=stride, groups=groups, dilation=dilation)
    assert report.scale == pytest.approx(scale)
    values = conv_singular_values(found, size, stride, groups=groups, dilation=dilation)
    assert report.sigma_max * report.scale == pytest.approx(float(values[0]))
    assert report.energy_lost == pytest.approx(
        1 - float(ours.square().sum() / (scale * whole).square().sum()), abs=1e-9
    )


def test_already_norm_preserving_kernels_come_back():
    gen = generator()
    for d, c in ((4, 4), (6, 2), (3, 1), (1, 1)):
        kernel = isometric_kernel(d, c, gen)
        for n in (5, 8):
            values = conv_singular_values(kernel, n)
            assert float((values / norm_preserving_scale(c, d) - 1).abs().max()) < 1e-12
            assert error(project_norm_preserving(kernel, n), kernel) < 1e-12
            assert error(project_norm_preserving(kernel.float(), n), kernel) < 1e-6


@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_pointwise_kernels_are_exact_and_stay_as_they_are(d, c, relu, seed):
    once = project_norm_preserving(normal(d, c, 1, 1, seed=seed), 4, relu)
    s = math.sqrt((2 if relu else 1) * max(d / c, 1))
    matrix = once[:, :, 0, 0]
    assert float((torch.linalg.svdvals(matrix) / s - 1).abs().max()) < 1e-9
    assert error(project_norm_preserving(once, 9, relu), once) < 1e-9


def test_scale_of_both_shapes():
    assert norm_preserving_scale(2, 8) == 2
    assert norm_preserving_scale(8, 2) == 1
    assert norm_preserving_scale(8, 2, relu=True) == pytest.approx(math.sqrt(2))
    assert norm_preserving_scale(3, 6, relu=True) == pytest.approx(2)


def test_repeating_heals_the_crop_of_oblong_kernels():
    kernel = normal(32, 4, 3, 3)
    spread = []
    for repeats in (1, 10, 40):
        report = projection_report(project_norm_preserving(kernel, 8, repeats=repeats), 8)
        spread.append(report.sigma_max - report.sigma_min)
        assert report.energy_lost >= -1e-12
    assert spread[0] > 0.2
    assert spread[2] < spread[1] < 0.1
    step = project_norm_preserving(project_norm_preserving(kernel, 8), 8)
    assert error(project_norm_preserving(kernel, 8, repeats=2), step) == 0


def test_transition_of_two_by_two_taps_keeps_every_gradient():
    kernel = project_norm_preserving(normal(8, 3, 2, 2), 6, stride=2)
    back = conv_matrix(kernel, 6, stride=2).mT
    assert error(back.mT @ back, torch.eye(back.shape[1], dtype=F64)) < 1e-12


def test_projection_is_differentiable_and_does_not_change_its_argument():
    kernel = normal(3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda K: project_norm_preserving(K, 3), (kernel,))
    assert torch.autograd.gradcheck(lambda K: project_norm_preserving(K, 3, repeats=2, stride=2), (kernel,))
    plain = normal(4, 2, 3, 3)
    before = plain.clone()
    project_norm_preserving(plain, 5)
    torch.testing.assert_close(plain, before, rtol=0, atol=0)
    strided = plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert error(project_norm_preserving(strided, 5), project_norm_preserving(plain, 5)) < 1e-14


def test_dead_channels_get_a_norm_preserving_kernel_all_the_same():
    kernel = normal(6, 3, 1, 1)
    kernel[:, 1] = 0
    W = project_norm_preserving(kernel, 4)[:, :, 0, 0]
    assert error(W.mT @ W, 2 * torch.eye(3, dtype=F64)) < 1e-12
    whole = project_norm_preserving(torch.zeros(4, 2, 3, 3, dtype=F64), 3)  # n = k: no crop
    assert projection_report(whole, 3).sigma_min == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------- released code


def test_released_steps_with_the_right_sign_are_the_projection():
    kernel = normal(12, 3, 3, 3, dtype=torch.float32)
    right = released_projection(kernel, 8, slip=False)
    assert error(right, published_projection(kernel, 8)) < 1e-6
    assert error(right, project_norm_preserving(kernel, 8)) < 1e-4
    slipped = released_projection(kernel, 8)
    # a conjugate spectrum has its taps at -t modulo n; (0, 0) is the only one of nine that the crop and the flip share
    assert error(slipped[..., 0, 0], right[..., 0, 0]) < 1e-6
    energies = slipped.square().sum((0, 1))
    assert float(energies[0, 0] / energies.sum()) > 0.8


def test_coupled_iteration_converges_where_it_should_only():
    gram = torch.diag(torch.tensor([0.1, 1.0, 2.9], dtype=F64))
    Y, Z = coupled_newton_schulz(gram, 20)
    assert error(Z, gram.diagonal().rsqrt().diag()) < 1e-12
    assert error(Y, gram.diagonal().sqrt().diag()) < 1e-12
    assert float(coupled_newton_schulz(torch.tensor([[4.0]]), 6)[1]) == -0.5
    assert not torch.isfinite(coupled_newton_schulz(torch.tensor([[5.5]]), 20)[1]).all()


def test_bad_input_is_refused_by_name():
    kernel = normal(4, 2, 3, 3)
    for call, kind, text in (
        (lambda: project_norm_preserving(kernel, 2), SizeError, "n = 2: two taps of a kernel that reaches over 3"),
        (lambda: project_norm_preserving(kernel, 4, dilation=2), SizeError, "reaches over 5"),
        (lambda: project_norm_preserving(kernel * math.nan, 4), NotFiniteError, "kernel holds"),
        (lambda: project_norm_preserving(kernel.half(), 4), ShapeError, "half precision is too coarse"),
        (lambda: project_norm_preserving(kernel, 4, repeats=0), SizeError, "repeats = 0"),
        (lambda: project_norm_preserving(kernel, 4, method="qr"), OptionError, "method = 'qr'"),
        (lambda: project_norm_preserving(kernel, 4, groups=3), ShapeError, "groups = 3"),
        (lambda: project_norm_preserving(kernel[0], 4), ShapeError, "kernel has shape"),
        (lambda: project_norm_preserving(0 * kernel, 4, method="polar-express"), ConvergenceError, "is left"),
        (lambda: norm_preserving_scale(0, 3), SizeError, "c_in = 0"),
        (lambda: polar_factor(torch.ones(3)), ShapeError, r"A has shape \(3,\)"),
        (lambda: polar_factor(torch.ones(3, 0)), ShapeError, "without an empty axis"),
        (lambda: polar_factor(torch.full((2, 2), math.inf)), NotFiniteError, "A holds"),
        (lambda: polar_factor(torch.ones(2, 2).half()), ShapeError, "dtype torch.float16"),
        (lambda: polar_factor(torch.eye(2), "lu"), OptionError, "method = 'lu'"),
        (lambda: released_projection(kernel, 2), SizeError, "n = 2"),
    ):
        with pytest.raises(kind, match=text):
            call()
