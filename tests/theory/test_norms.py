"""Gradient norms across blocks: ratios, Lemma 1, Corollary 1, Theorem 2, stacks with batch normalisation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from resid.errors import DepthError, DeterminantError, NotFiniteError, OptionError, ShapeError
from resid.theory.factor import compose, factor_near_identity, factorization_error, spectral_gamma
from resid.theory.norms import (
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
from resid.theory.targets import FAMILIES, sample_target
from tests.twins.norms import batch_norm_ratios_twin, deviation_twin, product_of_norms_twin, ratios_twin

F64 = torch.float64


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("depth", [2, 3])
def test_a_search_finds_no_layers_that_preserve_norms_better_than_the_optimum(depth, sign):
    """Random changes of free layers, the last one completing the product; what is better is kept."""
    gen = torch.Generator().manual_seed(depth)
    eye, found = torch.eye(3, dtype=F64), []
    for scale in (0.3, 1.0):
        R = torch.linalg.matrix_exp(scale * torch.randn(3, 3, generator=gen, dtype=F64))
        R[0] *= sign
        best, size = norm_preserving_layers(R, depth)[:-1] + eye, linear_bound(R, depth) / 2
        starts = best.expand(60, -1, -1, -1) + size * torch.randn(60, depth - 1, 3, 3, generator=gen, dtype=F64)
        starts[0] = best

        def worst(free, R=R):
            product = free[:, 0]
            for layer in range(1, free.shape[1]):
                product = free[:, layer] @ product
            every = torch.cat([free, (R @ torch.linalg.inv(product))[:, None]], 1)
            return (torch.linalg.svdvals(every) - 1).abs().amax((1, 2))

        value = worst(starts)
        for step in range(300):
            moved = starts + size * 0.98**step * torch.randn(starts.shape, generator=gen, dtype=F64)
            new = worst(moved)
            better = new < value
            starts, value = torch.where(better[:, None, None, None], moved, starts), torch.minimum(value, new)
        found.append(float(value[1:].min()) / linear_bound(R, depth))
        assert float(value.min()) >= linear_bound(R, depth) * (1 - 1e-12)
    assert max(found) < 1.1  # the search itself comes near


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=F64)


# ------------------------------------------------------------------------------------------------ the two directions


def test_directions_by_hand():
    """A block that doubles its input doubles the gradient on the way back: in/out is 2."""
    x = torch.tensor([[1.0, -2.0]], dtype=F64)
    blocks = [lambda x: 2 * x, lambda x: x / 5]
    for direction, expected in (("in/out", [2, 0.2]), ("out/in", [0.5, 5])):
        found = gradient_norm_ratios(blocks, x, torch.sum, direction=direction)
        assert found.tolist() == pytest.approx(expected, rel=1e-15)
    J = 2 * torch.eye(3, dtype=F64)
    assert [float(v) for v in ratio_range(J, direction="in/out")] == [2, 2]
    assert [float(v) for v in ratio_range(J, direction="out/in")] == [0.5, 0.5]
    assert float(norm_deviation(J)) == 1


def test_directions_are_inverse_and_must_be_named():
    gen = generator()
    gradients = [normal(gen, 5, 3) for _ in range(4)]
    for per_sample in (False, True):
        there, back = (norm_ratios(gradients, direction=d, per_sample=per_sample) for d in DIRECTIONS)
        assert there.shape == ((3, 5) if per_sample else (3,))
        torch.testing.assert_close(there * back, torch.ones_like(there))
    with pytest.raises(TypeError, match="direction"):
        norm_ratios(gradients)
    with pytest.raises(TypeError, match="direction"):
        batch_norm_ratios(3, 1.0)
    with pytest.raises(OptionError, match="direction = 'forward'"):
        norm_ratios(gradients, direction="forward")


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 3])
def test_backpropagated_ratios_equal_their_twin(d, depth):
    gen = generator(d + depth)
    weights = [(normal(gen, d, d), normal(gen, d, d)) for _ in range(depth)]
    blocks = [lambda x, a=a, b=b: x + torch.tanh(x @ a.mT) @ b.mT / 2 for a, b in weights]
    x, g = normal(gen, 6, d), normal(gen, 6, d)
    found = gradient_norm_ratios(blocks, x, lambda y: (y * g).sum(), direction="in/out", per_sample=True)
    torch.testing.assert_close(found, ratios_twin(blocks, x, g), rtol=1e-6, atol=1e-8)


def test_ratios_of_modules_and_of_a_whole_batch():
    torch.manual_seed(0)
    layers, x = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 1)], torch.randn(4, 2, 6, 6)
    ratios = gradient_norm_ratios(layers, x, lambda y: y.square().mean(), direction="out/in")
    x.requires_grad_()
    first = layers[0](x)
    first.retain_grad()
    layers[2](layers[1](first)).square().mean().backward()
    assert ratios.shape == (3,)
    assert ratios.dtype == torch.float32
    assert float(ratios[0]) == pytest.approx(float(first.grad.norm() / x.grad.norm()), rel=1e-6)


@given(st.integers(1, 4), st.integers(0, 10**6))
def test_no_gradient_leaves_the_range(d, seed):
    gen = generator(seed)
    J, g = normal(gen, d, d), normal(gen, 20, d)
    ratios = (g @ J).norm(dim=1) / g.norm(dim=1)
    least, most = ratio_range(J, direction="in/out")
    assert float(ratios.min()) >= float(least) * (1 - 1e-12)
    assert float(ratios.max()) <= float(most) * (1 + 1e-12)
    deviation = float(norm_deviation(J))
    assert deviation >= float((ratios - 1).abs().max()) - 1e-12
    if d <= 2:
        assert deviation_twin(J) == pytest.approx(deviation, rel=1e-3, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- Lemma 1


@given(st.integers(1, 6), st.floats(-6, 6), st.sampled_from(["random", "-I", "singular", "nilpotent"]), st.integers(0))
def test_lemma_1_on_adversarial_matrices(d, decade, kind, seed):
    M = normal(generator(seed % 2**60), d, d) * 10**decade
    if kind == "-I":
        M = -torch.eye(d, dtype=F64)
    elif kind == "singular":
        M[0] = 0
    elif kind == "nilpotent":
        M = M.triu(1)
    low, high = identity_plus_bounds(M)
    sigma = torch.linalg.svdvals(M + torch.eye(d, dtype=F64))
    slack = 1e-12 * float(high)
    assert float(low) - slack <= float(sigma[-1])
    assert float(sigma[0]) <= float(high) + slack
    assert float(low + high) == pytest.approx(2, abs=slack)


def test_lemma_1_is_attained_on_both_sides():
    for m in (0.3, 1.0, 2.5):
        M = torch.stack([m * torch.eye(2, dtype=F64), -m * torch.eye(2, dtype=F64)])
        low, high = identity_plus_bounds(M)
        assert high.tolist() == pytest.approx([1 + m] * 2)
        assert float(torch.linalg.svdvals(M + torch.eye(2))[0, 0]) == pytest.approx(1 + m)
        if m <= 1:
            assert float(torch.linalg.svdvals(M + torch.eye(2))[1, -1]) == pytest.approx(float(low[1]), abs=1e-15)


# ------------------------------------------------------------------------------------------------------- Corollary 1


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("form", ["plain", "preactivation"])
def test_layers_bound_equals_its_twin(layers, form):
    gen = generator(layers)
    sizes = [3, *[5, 1, 4, 2][: layers - 1], 3]
    weights = [normal(gen, b, a) for a, b in pairwise(sizes)]
    nonlinearities = layers - 1 if form == "plain" else layers
    expected = product_of_norms_twin(weights, 1.3, nonlinearities)
    assert layers_bound(weights, 1.3, form) == pytest.approx(expected, rel=1e-12)
    if layers == 2:
        assert block_bound(*weights, 1.3, form) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", ["plain", "preactivation"])
def test_block_bound_is_attained_by_gelu(form):
    """In one dimension, where GELU is steepest: a missing or doubled c_rho shows at once."""
    at = torch.tensor([[math.sqrt(2)]], dtype=F64)
    after = float(functional.gelu(at))
    W1 = torch.tensor([[1.0 if form == "plain" else math.sqrt(2) / after]], dtype=F64)
    W2 = torch.tensor([[0.5]], dtype=F64)

    def block(x):
        inner = x if form == "plain" else functional.gelu(x)
        return x + functional.gelu(inner @ W1.mT) @ W2.mT

    ratio = float(gradient_norm_ratios([block], at, torch.sum, direction="in/out"))
    assert ratio - 1 == pytest.approx(block_bound(W1, W2, SLOPES["gelu"], form), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SLOPES if name != "linear"])
def test_slopes_are_the_largest_ones(name):
    z = torch.linspace(-60, 60, 1_200_001, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(functional, name)(z).sum(), z)
    assert float(slope.abs().max()) == pytest.approx(SLOPES[name], rel=1e-9)
    assert float(slope.abs().max()) <= SLOPES[name] * (1 + 1e-12)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["tanh", "relu", "gelu", "silu"]), st.integers(0, 10**6))
def test_random_blocks_keep_to_corollary_1(d, m, name, seed):
    gen, rho = generator(seed), getattr(functional, name)
    W1, W2, x, g = (normal(gen, *size) for size in ((m, d), (d, m), (4, d), (4, d)))
    ratios = gradient_norm_ratios(
        [lambda x: x + rho(rho(x) @ W1.mT) @ W2.mT], x, lambda y: (y * g).sum(), direction="in/out", per_sample=True
    )
    assert float((ratios - 1).abs().max()) <= block_bound(W1, W2, SLOPES[name], "preactivation") * (1 + 1e-12)


# --------------------------------------------------------------------------------------------------------- Theorem 2


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_preserving_layers_are_exact_and_optimal(family):
    gen = generator(FAMILIES.index(family))
    for case in range(24):
        R = sample_target(family, 1 + case % 7, gen)
        R[0] *= (-1) ** case
        depth = 1 + case % 5
        W = norm_preserving_layers(R, depth)
        assert W.shape == (depth, *R.shape)
        assert factorization_error(W, R) < 1e-12
        delta = float(norm_deviation(W + torch.eye(len(R), dtype=F64)).max())
        assert delta == pytest.approx(linear_bound(R, depth), rel=1e-9, abs=1e-12)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_no_network_beats_the_optimal_linear_bound(d, depth, seed):
    """Any layers at all: the worst of them changes some gradient at least as much as the bound of their product."""
    W = normal(generator(seed), depth, d, d) / 2
    R = compose(W)
    sigma = torch.linalg.svdvals(R)
    if float(sigma[-1]) < 1e-9 * float(sigma[0]):
        return
    delta = float(norm_deviation(W + torch.eye(d, dtype=F64)).max())
    assert delta >= linear_bound(R, depth) * (1 - 1e-9) - 1e-12


def test_versions_of_the_linear_bound():
    R = torch.tensor([[0.0, -2.0], [0.5, 0.0]], dtype=F64)
    gamma, depth = math.log(2), 12
    assert spectral_gamma(R) == pytest.approx(gamma)
    assert linear_bound(R, depth) == pytest.approx(2 ** (1 / 12) - 1)
    expected = 2 * (math.sqrt(math.pi) + math.sqrt(3 * gamma)) ** 2 / depth
    assert linear_bound(R, depth, "printed") == pytest.approx(expected)
    polar = linear_bound(R, depth, "polar")
    assert polar == pytest.approx(math.expm1(gamma / 12) + 2 * math.sin(math.pi / 48))
    assert float(norm_deviation(factor_near_identity(R, depth) + torch.eye(2)).max()) <= polar
    shrinking = torch.diag(torch.tensor([0.25, 1.0], dtype=F64))
    assert linear_bound(shrinking, 2) == pytest.approx(0.5)  # 1 - sigma_min^(1/2)


# ----------------------------------------------------------------------------------------------- batch normalisation


@pytest.mark.parametrize(("layers", "gain"), [(1, 1.0), (2, 1.0), (3, 1.0), (3, 0.5)])
def test_batch_norm_formula_against_modules(layers, gain):
    """Ratios minus one, which a wrong power of q would change by a third."""
    measured, added = batch_norm_ratios_twin(6, layers, width=512, gain=gain)
    s = (1 - 1 / math.pi) * gain**2
    np.testing.assert_allclose(added, s, rtol=0.1)
    predicted = batch_norm_ratios(6, s, 1.0, layers, direction="in/out").numpy()
    np.testing.assert_allclose(measured - 1, predicted - 1, rtol=0.1)


def test_batch_norm_formula_by_hand():
    q = 1 - 1 / math.pi
    first, second = batch_norm_ratios(2, q, 1.0, direction="in/out").tolist()
    assert first == pytest.approx(math.sqrt(1 + 1 / q**2))
    assert second == pytest.approx(math.sqrt(1 + q / (q**3 * (1 + q))))
    torch.testing.assert_close(
        batch_norm_ratios(5, 0.2, 3.0, direction="out/in"), 1 / batch_norm_ratios(5, 0.2, 3.0, direction="in/out")
    )
    # only the share of the variance matters
    torch.testing.assert_close(
        batch_norm_ratios(5, 0.2, 1.0, direction="in/out"), batch_norm_ratios(5, 20.0, 100.0, direction="in/out")
    )


# ---------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    eye, nan = torch.eye(2), torch.full((2, 2), math.nan)
    for call, error, text in (
        (lambda: norm_ratios([eye], direction="in/out"), ShapeError, "1 gradients"),
        (lambda: norm_ratios([eye, 0 * eye], direction="in/out"), OptionError, "exactly zero"),
        (lambda: norm_ratios([eye, nan], direction="in/out"), NotFiniteError, r"gradients\[1\] holds 4"),
        (lambda: ratio_range(eye, direction=""), OptionError, "direction = ''"),
        (lambda: ratio_range(eye[:1], direction="in/out"), ShapeError, r"J has shape \(1, 2\)"),
        (lambda: identity_plus_bounds(nan), NotFiniteError, "M holds 4 entries"),
        (lambda: gradient_norm_ratios([], eye, torch.sum, direction="in/out"), ShapeError, "1 gradients"),
        (lambda: gradient_norm_ratios([torch.sin], eye, lambda y: y, direction="in/out"), ShapeError, "the loss has"),
        (lambda: block_bound(eye, eye, 0.0), OptionError, "c_rho = 0.0"),
        (lambda: block_bound(eye, eye, 1.0, "post"), OptionError, "form = 'post'"),
        (lambda: block_bound(eye, torch.ones(2, 3), 1.0), ShapeError, "what the one before it puts out"),
        (lambda: block_bound(torch.ones(3, 2), torch.ones(1, 3), 1.0), ShapeError, "in a cycle"),
        (lambda: layers_bound([], 1.0), ShapeError, "at least one matrix"),
        (lambda: layers_bound([torch.ones(2)], 1.0), ShapeError, "no other arrays"),
        (lambda: linear_bound(eye, 3, "v3"), OptionError, "version = 'v3'"),
        (lambda: linear_bound(eye, 0), DepthError, "depth = 0"),
        (lambda: linear_bound(torch.ones(2, 2), 3), DeterminantError, "R is singular"),
        (lambda: linear_bound(-torch.diag(torch.tensor([1.0, -1.0])), 3, "polar"), DeterminantError, "det R < 0"),
        (lambda: linear_bound(100 * eye, 3, "printed"), DepthError, "depth = 3 < 3 gamma"),
        (lambda: norm_preserving_layers(0 * eye, 3), DeterminantError, "R is singular"),
        (lambda: norm_preserving_layers(eye, 1.5), DepthError, "depth = 1.5"),
        (lambda: batch_norm_ratios(0, 1.0, direction="in/out"), DepthError, "depth = 0"),
        (lambda: batch_norm_ratios(3, -1.0, direction="in/out"), OptionError, "added_variance = -1.0"),
        (lambda: batch_norm_ratios(3, 1.0, 0.0, direction="in/out"), OptionError, "initial_variance = 0.0"),
        (lambda: batch_norm_ratios(3, 1.0, layers=0, direction="in/out"), DepthError, "layers = 0"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_float32_stays_float32():
    R = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    assert norm_preserving_layers(R, 4).dtype == torch.float32
    assert norm_deviation(R).dtype == torch.float32
    assert identity_plus_bounds(R)[0].dtype == torch.float32
    assert factorization_error(norm_preserving_layers(R, 4), R) < 1e-6
