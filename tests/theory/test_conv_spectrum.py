"""Singular values and vectors of convolutions beside the dense matrix built entry by entry."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resid.errors import NotFiniteError, OptionError, ShapeError, SizeError
from resid.theory.conv_spectrum import (
    conv_matrix,
    conv_singular_values,
    conv_svd,
    largest_conv_singular_values,
    zero_padding_bound,
)
from resid.theory.conv_spectrum._geometry import as_convolution as checked
from resid.theory.conv_spectrum._geometry import half_grid, taps_of, transfer
from tests.twins.conv import conv_matrix_twin

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def worst(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


# (c_out, c_in, kernel, n, stride, padding, groups, dilation)
AWKWARD = [
    (1, 1, (1, 1), 1, 1, "circular", 1, 1),
    (2, 3, (3, 3), 5, 1, "circular", 1, 1),
    (3, 2, (3, 3), 4, 1, "circular", 1, 1),
    (2, 2, (2, 2), 6, 1, "circular", 1, 1),
    (2, 1, (4, 1), (5, 3), 1, "circular", 1, 1),
    (2, 2, (3, 3), 2, 1, "circular", 1, 1),  # taps fall on one another
    (1, 2, (5, 5), 3, 1, "circular", 1, 2),
    (4, 4, (3, 3), 5, 1, "circular", 2, 1),
    (4, 6, (3, 3), 4, 2, "circular", 2, 1),
    (3, 1, (3, 3), 6, 3, "circular", 1, 1),
    (5, 1, (2, 2), 4, 2, "circular", 1, 1),  # more outputs than 4 c_in
    (2, 3, (3, 3), 8, 2, "circular", 1, 2),
    (2, 3, (3, 2), (6, 9), (2, 3), "circular", 1, (1, 2)),
    (2, 3, (1, 1), 5, 2, "circular", 1, 1),  # pointwise: the stride need not divide n
    (3, 2, (1, 1), 6, 3, 0, 1, 1),
    (2, 2, (3, 3), 5, 2, "circular", 1, 1),  # it does not divide n: dense
    (2, 3, (3, 3), 5, 1, "zeros", 1, 1),
    (3, 2, (2, 2), 4, 1, "zeros", 1, 1),
    (2, 2, (3, 3), 6, 2, "zeros", 1, 1),
    (2, 2, (3, 3), 6, 2, 1, 1, 1),
    (2, 2, (3, 3), 5, 1, 0, 1, 1),
    (4, 2, (3, 3), 5, 1, (0, 2), 2, 2),
    (2, 2, (1, 1), 3, 1, 1, 1, 1),  # a border of outputs that see nothing
]


def example(case, seed=0):
    d, c, taps, n, stride, padding, groups, dilation = case
    return normal(d, c // groups, *taps, seed=seed), n, stride, padding, groups, dilation


@pytest.mark.parametrize("case", AWKWARD, ids=str)
def test_spectrum_is_that_of_the_matrix_entry_by_entry(case):
    arguments = example(case)
    matrix = conv_matrix_twin(*arguments)
    assert worst(conv_matrix(*arguments), matrix) == 0
    assert worst(conv_singular_values(*arguments), torch.linalg.svdvals(matrix)) < 1e-13


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["circular", "zeros"]),
    st.integers(1, 2),
)
def test_spectrum_of_any_convolution(shape, n, stride, dilation, padding, groups):
    d, c, height, width = shape
    kernel = normal(d * groups, c, height, width, seed=sum(shape))
    matrix = conv_matrix_twin(kernel, n, stride, padding, groups, dilation)
    values = conv_singular_values(kernel, n, stride, padding, groups, dilation)
    assert worst(values, torch.linalg.svdvals(matrix)) < 1e-12


def test_padding_is_that_of_conv2d():
    kernel, image = normal(2, 3, 2, 3), normal(1, 3, 4, 5, seed=1)
    with warnings.catch_warnings():  # it warns of a copy when a kernel is even
        warnings.simplefilter("ignore")
        same = torch.nn.functional.conv2d(image, kernel, padding="same").flatten()
    torch.testing.assert_close(conv_matrix(kernel, (4, 5), padding="zeros") @ image.flatten(), same)
    layer = torch.nn.Conv2d(3, 2, 3, stride=2, padding=1, padding_mode="circular", bias=False, dtype=F64)
    image = normal(1, 3, 6, 6, seed=2)
    matrix = conv_matrix(layer.weight, 6, stride=2)
    torch.testing.assert_close(matrix @ image.flatten(), layer(image).flatten().detach())
    strided = torch.nn.functional.conv2d(image, layer.weight, stride=2, padding=1).flatten().detach()
    torch.testing.assert_close(conv_matrix(layer.weight, 6, 2, padding=1) @ image.flatten(), strided)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3), (1, 4), (4, 1), (5, 6), (6, 5), (2, 7)])
def test_half_of_the_frequencies_stand_for_all(grid):
    pairs, singles = half_grid(*grid)
    mirrored = [(-p % grid[0], -q % grid[1]) for p, q in pairs]
    assert sorted([*pairs, *mirrored, *singles]) == sorted(itertools.product(range(grid[0]), range(grid[1])))
    assert len(singles) == (2 - grid[0] % 2) * (2 - grid[1] % 2)
    assert all((-p % grid[0], -q % grid[1]) == (p, q) for p, q in singles)


def test_pieces_of_the_transform_do_not_depend_on_their_size():
    taps = taps_of(checked(normal(2, 3, 3, 3), 6))
    whole, small = ([A for A, *_ in transfer(taps, chunk)] for chunk in (10**6, 7))
    assert len(small) > len(whole)
    complex_ones = [torch.cat([A for A in part if A.is_complex()]) for part in (whole, small)]
    torch.testing.assert_close(*complex_ones)
    torch.testing.assert_close(*(torch.cat([A for A in part if not A.is_complex()]) for part in (whole, small)))


@pytest.mark.parametrize("case", AWKWARD, ids=str)
def test_singular_vectors_are_real_orthonormal_and_belong_together(case):
    kernel, n, *rest = example(case, seed=3)
    matrix = conv_matrix_twin(kernel, n, *rest)
    count = int((torch.linalg.svdvals(matrix) > 1e-9).sum())
    found = conv_svd(kernel, n, count, *rest)
    U, V = found.left.flatten(1), found.right.flatten(1)
    eye = torch.eye(count, dtype=F64)
    scale = float(found.sigma[0])
    assert float((U @ U.mT - eye).abs().max()) < 1e-12
    assert float((V @ V.mT - eye).abs().max()) < 1e-12
    assert float((matrix @ V.mT - U.mT * found.sigma).abs().max()) < 1e-12 * scale
    assert worst(found.sigma, torch.linalg.svdvals(matrix)[:count]) < 1e-12


def test_largest_singular_values_without_the_matrix():
    for case in (AWKWARD[16], AWKWARD[18], AWKWARD[20], AWKWARD[1]):
        kernel, n, *rest = example(case)
        exact = torch.linalg.svdvals(conv_matrix_twin(kernel, n, *rest))
        assert worst(largest_conv_singular_values(kernel, n, 4, *rest), exact[:4]) < 1e-9


@pytest.mark.parametrize(("k", "n"), [(2, 3), (3, 4), (3, 6), (5, 5)])
def test_zero_padding_bound_holds_on_every_torus_that_fits(k, n):
    kernel = normal(3, 2, k, k, seed=n)
    exact = float(conv_singular_values(kernel, n, padding="zeros")[0])
    for torus in (None, n + k // 2, n + k // 2 + 1, 3 * n):
        assert exact <= zero_padding_bound(kernel, n, torus) * (1 + 1e-12)
    too_small = normal(1, 1, 3, 3, seed=k)
    with pytest.raises(SizeError, match=rf"torus = {n}: at least {n + 1}"):
        zero_padding_bound(too_small, n, n)


def test_an_even_kernel_needs_the_longer_side_and_the_default_torus_is_n_plus_k_minus_1():
    """On a smaller torus an end reads the other one, and its largest singular value is no bound."""
    for k, n in ((2, 4), (4, 5)):
        kernel = torch.zeros(1, 1, 1, k, dtype=F64)
        kernel[..., (k - 1) // 2] = 1
        kernel[..., -1] = 1
        before, after = (k - 1) // 2, k - 1 - (k - 1) // 2
        with pytest.raises(SizeError, match=f"at least {n + after}"):
            zero_padding_bound(kernel, (1, n), (1, n + before))
        found = []
        for seed in range(20):
            some = normal(2, 2, k, k, seed=seed)
            exact = float(conv_singular_values(some, n, padding="zeros")[0])
            assert exact <= zero_padding_bound(some, n, n + after) * (1 + 1e-12)
            whole = float(conv_singular_values(some, n + k - 1)[0])
            assert zero_padding_bound(some, n) == pytest.approx(whole, rel=1e-12)
            found.append(abs(whole / zero_padding_bound(some, n, n + after) - 1))
        assert (max(found) > 1e-3) == (k == 4)  # the two are one torus for k = 2


def test_a_search_finds_no_zero_padded_map_above_its_bound():
    """Gradient ascent on the ratio to the circular norm of the smallest torus, from kernels of every shape."""
    best = []
    for k, n in (((1, 2), (1, 4)), ((2, 2), (3, 3)), ((3, 3), (3, 3)), ((1, 4), (1, 5))):
        torus = tuple(size + taps - 1 - (taps - 1) // 2 for size, taps in zip(n, k, strict=True))
        units = torch.eye(math.prod(k), dtype=F64).view(-1, 1, 1, *k)
        zeros, circular = (
            torch.stack([conv_matrix(tap, size, padding=padding) for tap in units])
            for size, padding in ((n, "zeros"), (torus, "circular"))
        )
        for seed in range(6):
            K = normal(2, 2, len(units), seed=seed).requires_grad_()
            optimizer = torch.optim.Adam([K], lr=0.05)
            for _ in range(40):
                optimizer.zero_grad()
                norms = [
                    torch.linalg.matrix_norm(torch.einsum("dct,tpq->dpcq", K, maps).flatten(2).flatten(0, 1), ord=2)
                    for maps in (zeros, circular)
                ]
                ratio = norms[0] / norms[1]
                best.append(ratio.item())
                (-ratio).backward()
                optimizer.step()
    assert 0.95 < max(best) <= 1 + 1e-12


def test_zero_padding_is_not_circular():
    kernel = normal(2, 2, 3, 3)
    gap = conv_singular_values(kernel, 6, padding="zeros") - conv_singular_values(kernel, 6)
    assert float(gap.abs().max()) > 0.1


def test_a_shift_and_a_scale_act_as_they_must():
    kernel = normal(3, 2, 3, 3)
    moved = torch.zeros(3, 2, 5, 5, dtype=F64)
    moved[..., 2:, 1:4] = kernel
    expected = conv_singular_values(kernel, 7)
    assert worst(conv_singular_values(moved, 7), expected) < 1e-13
    assert worst(conv_singular_values(-3 * kernel, 7), 3 * expected) < 1e-13
    assert float(expected.square().sum()) == pytest.approx(49 * float(kernel.square().sum()), rel=1e-13)


def test_types_memory_layout_and_huge_values():
    kernel = normal(2, 3, 3, 3)
    expected = conv_singular_values(kernel, 4)
    single = conv_singular_values(kernel.float(), 4)
    assert single.dtype == torch.float32
    assert worst(single.double(), expected) < 1e-6
    strided = kernel.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert worst(conv_singular_values(strided, 4), expected) < 1e-14
    assert worst(conv_singular_values(kernel.tolist(), 4), expected) == 0
    assert worst(conv_singular_values(1e150 * kernel, 4), 1e150 * expected) < 1e-13
    assert conv_singular_values(torch.ones(1, 1, 1, 1, dtype=torch.int64), 2).tolist() == [1.0] * 4
    assert float(conv_singular_values(torch.zeros(2, 2, 3, 3), 3).max()) == 0
    assert not conv_singular_values(kernel.clone().requires_grad_(), 4).requires_grad


def test_bad_input_is_refused_by_name():
    kernel = normal(2, 3, 3, 3)
    for call, error, text in (
        (lambda: conv_singular_values(kernel[0], 4), ShapeError, r"kernel has shape \(3, 3, 3\)"),
        (lambda: conv_singular_values(kernel[:0], 4), ShapeError, r"kernel has shape \(0, 3, 3, 3\)"),
        (lambda: conv_singular_values(kernel * math.nan, 4), NotFiniteError, "kernel holds 54 entries"),
        (lambda: conv_singular_values(kernel.half(), 4), ShapeError, "dtype torch.float16"),
        (lambda: conv_singular_values(kernel.to(torch.complex64), 4), ShapeError, "complex"),
        (lambda: conv_singular_values(kernel, 0), SizeError, "n = 0"),
        (lambda: conv_singular_values(kernel, (4, 4, 4)), SizeError, "an integer or two"),
        (lambda: conv_singular_values(kernel, 4.0), SizeError, r"n = 4\.0"),
        (lambda: conv_singular_values(kernel, 4, stride=0), SizeError, "stride = 0"),
        (lambda: conv_singular_values(kernel, 4, padding="same"), OptionError, "padding = 'same'"),
        (lambda: conv_singular_values(kernel, 4, padding=-1), SizeError, "padding = -1"),
        (lambda: conv_singular_values(kernel, 2, padding=0), SizeError, "n = 2: with a kernel of 3 taps"),
        (lambda: conv_singular_values(kernel, 4, groups=3), ShapeError, "groups = 3 does not divide"),
        (lambda: conv_singular_values(kernel, 4, dilation=0), SizeError, "dilation = 0"),
        (lambda: conv_singular_values(normal(64, 64, 3, 3), 32, padding="zeros"), SizeError, "65536 x 65536"),
        (lambda: conv_svd(kernel, 4, 33), SizeError, "at most 32"),
        (lambda: conv_svd(normal(1, 64, 3, 3), 64, 4096), SizeError, "over 2\\^26"),
        (lambda: conv_svd(normal(5, 1, 2, 2), 4, 17, 2), SizeError, "at most 16"),
        (lambda: conv_svd(normal(5, 1, 1, 1), 4, 16, 2), SizeError, "only 4 singular values"),
        (lambda: largest_conv_singular_values(kernel, 4, 32), SizeError, "below 32"),
    ):
        with pytest.raises(error, match=text):
            call()
