"""The trials of the shortcut chapter at small size: they pass, they are not vacuous, they notice a wrong library."""

import math

import numpy as np
import pytest
import sympy as sp
import torch

from resid.book.checks.linear import shortcut_algebra as symbolic
from resid.book.checks.linear import shortcut_depth as depth
from resid.book.checks.linear import shortcut_start as start
from resid.data.whitened import load_whitened
from resid.ledger.evidence import Seeds
from resid.theory.shortcut import ShortcutNetwork, second_moments
from tests.checks.helpers import fails, generator, passes


@pytest.fixture(scope="module")
def digits():
    return second_moments(*load_whitened("digits"))[1]


def test_the_second_definition_agrees_with_the_library():
    gen = generator()
    for length, kind in ((1, ("silu", "post")), (2, ("relu", "mid")), (3, ("tanh", "pre"))):
        W, X, Y = (torch.randn(*s, generator=gen, dtype=torch.float64) for s in ((2, length, 3, 3), (5, 3), (5, 3)))
        expected = float(ShortcutNetwork(length, 2, 3, *kind).loss(W, X, Y))
        assert float(depth.direct_loss(W, X, Y, *kind)) == pytest.approx(expected, rel=1e-12)


def test_length_two_trial_passes():
    found = depth.length_two_at_zero(9, generator())
    passes("li/theorem-2-length-2", found.hessian)
    passes("li/theorem-2-length-2-condition", found.condition)
    passes("li/theorem-2-length-2-copies", found.copies)
    passes("li/theorem-2-length-2-strict-saddle", found.saddle)
    assert found.saddle.worst == pytest.approx(1, abs=1e-9)  # attained
    passes("li/eq-25-permutation", found.permutation)
    passes("li/section-2-zero-spurious-minimum", found.least)
    passes("li/section-2-zero-spurious-minimum", found.lower)


def test_length_two_trial_notices_a_transposed_M(monkeypatch):
    real = depth.moment_difference
    monkeypatch.setattr(depth, "moment_difference", lambda *a: real(*a).mT.contiguous())
    found = depth.length_two_at_zero(8, generator())
    fails("li/theorem-2-length-2", found.hessian)
    fails("li/eq-25-permutation", found.permutation)
    passes("li/theorem-2-length-2-copies", found.copies)  # a transpose has the same singular values


def test_length_two_trial_notices_a_wrong_size_and_wrong_copies(monkeypatch):
    real = depth.moment_difference
    monkeypatch.setattr(depth, "moment_difference", lambda *a: 0.999 * real(*a))
    found = depth.length_two_at_zero(8, generator())
    fails("li/theorem-2-length-2-copies", found.copies)
    fails("li/section-2-zero-spurious-minimum", found.least)
    monkeypatch.setattr(depth, "moment_difference", lambda *a: 1.001 * real(*a))
    fails("li/theorem-2-length-2-strict-saddle", depth.length_two_at_zero(8, generator()).saddle)
    monkeypatch.setattr(depth, "moment_difference", lambda *a: real(*a) + 0.01)
    fails("li/theorem-2-length-2-condition", depth.length_two_at_zero(8, generator()).condition)


def test_length_one_trials_pass():
    passes("li/theorem-2-length-1", depth.length_one_at_zero(25, generator()))
    growth = depth.length_one_growth(15, generator())
    passes("li/theorem-2-length-1-explodes", growth)
    assert growth.worst > 0.999999  # attained


def test_length_one_trials_notice_a_wrong_library(monkeypatch):
    hessian, blocks, bound = depth.hessian_at_zero, depth.toeplitz_blocks, depth.length_one_growth_bound
    monkeypatch.setattr(depth, "hessian_at_zero", lambda n, R, M, xx: hessian(n, R, M.mT, xx))
    fails("li/theorem-2-length-1", depth.length_one_at_zero(5, generator()))
    monkeypatch.setattr(depth, "hessian_at_zero", hessian)
    monkeypatch.setattr(depth, "toeplitz_blocks", lambda *a: (blocks(*a)[0].mT.contiguous(), blocks(*a)[1]))
    fails("li/theorem-2-length-1", depth.length_one_at_zero(5, generator()))
    monkeypatch.setattr(depth, "length_one_growth_bound", lambda *a: 2 * bound(*a))
    fails("li/theorem-2-length-1-explodes", depth.length_one_growth(10, generator()))


def test_orders_pass_and_notice_a_network_that_is_not_flat(monkeypatch):
    found = depth.taylor_orders(9, generator())
    passes("li/theorem-2-order", found.lower)
    assert found.leading < 1e-9
    passes("li/theorem-2-zero-hessian", depth.long_units_at_zero(8, generator()))
    monkeypatch.setitem(depth.SIGMA, "linear", lambda z: z + 0.01)
    fails("li/theorem-2-order", depth.taylor_orders(9, generator()).lower)
    fails("li/theorem-2-zero-hessian", depth.long_units_at_zero(4, generator()))


def test_lemmas_pass_and_notice_other_networks(monkeypatch):
    missing, paths = depth.lemma_three(12, generator())
    passes("li/lemma-3", missing)
    assert paths < 1e-10
    same, reversed_order = depth.lemma_four(12, generator())
    passes("li/lemma-4", same)
    assert reversed_order > 1e-6
    monkeypatch.setitem(depth.SIGMA, "linear", lambda z: z + 0.01)  # units at zero are no longer the identity
    fails("li/lemma-4", depth.lemma_four(12, generator())[0])
    fails("li/lemma-3", depth.lemma_three(12, generator())[0])


@pytest.mark.parametrize("order", [2, 3])
def test_taylor_orders_notices_a_term_of_any_lower_order(monkeypatch, order):
    """A loss with one more term, whose derivatives below `order` vanish at zero: no flat point of order n - 1 then."""
    real = depth.direct_loss
    monkeypatch.setattr(depth, "direct_loss", lambda W, *a: real(W, *a) + 0.01 * W.sum() ** order)
    fails("li/theorem-2-order", depth.taylor_orders(9, generator()).lower)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_lemma_three_takes_derivatives_of_every_order(monkeypatch, order):
    real = depth.direct_loss
    monkeypatch.setattr(depth, "direct_loss", lambda W, *a: real(W, *a) + 0.01 * W.sum() ** order)
    fails("li/lemma-3", depth.lemma_three(5, generator())[0])


def test_saddle_biases_and_relu_pass():
    saddle = depth.gradient_at_zero(24, generator())
    passes("li/section-4.1-zero-saddle", saddle.gradient)
    passes("li/section-4.1-zero-saddle", saddle.not_critical)
    biases = depth.biases(6, generator())
    passes("li/eq-3-hessian", biases.spectrum)
    passes("li/eq-3-hessian", biases.zeros)
    assert biases.zeros.lhs == 3 * 2  # d zeros in each of two units
    relu = depth.relu_near_zero(6, generator())
    passes("li/assumption-3-relu", relu.neurons)
    passes("li/assumption-3-relu", relu.half)
    assert relu.average < 1e-12
    assert relu.automatic_at_zero == 0


def test_saddle_biases_and_relu_notice_a_wrong_library(monkeypatch):
    moments, neurons = depth.moment_difference, depth.neuron_matrices
    monkeypatch.setattr(depth, "moment_difference", lambda *a: -moments(*a))
    fails("li/section-4.1-zero-saddle", depth.gradient_at_zero(8, generator()).gradient)
    monkeypatch.setattr(depth, "moment_difference", lambda *a: moments(*a).mT)
    fails("li/eq-3-hessian", depth.biases(6, generator()).spectrum)
    monkeypatch.setattr(depth, "neuron_matrices", lambda W, X, Y: neurons(-W, X, Y))
    fails("li/assumption-3-relu", depth.relu_near_zero(4, generator()).neurons)


def test_orthogonal_identity_passes_and_needs_the_right_turn(monkeypatch):
    found = depth.orthogonal_identity(3, generator(), steps=20)
    passes("li/abstract-length-1-equivalent", found.identity)
    assert found.products < 1e-10
    real = depth.orthogonal_as_shortcut
    monkeypatch.setattr(depth, "orthogonal_as_shortcut", lambda Q: (real(Q)[0], real(Q)[1].mT))
    fails("li/abstract-length-1-equivalent", depth.orthogonal_identity(3, generator(), steps=5).identity)


def test_initial_condition_numbers_have_the_growth_of_figure_4(digits):
    two = start.initial_kappas("2-shortcut", (2, 4, 8), (0, 1), digits)
    passes("li/figure-4-length-2", Seeds(two.slopes(8), two.seeds, "digits"))
    xavier = start.initial_kappas("Xavier", (2, 4, 8), (0, 1), digits)
    orthogonal = start.initial_kappas("orthogonal", (2, 4, 8), (0, 1), digits)
    passes("li/figure-4-xavier", Seeds(xavier.slopes(8), (0, 1), "digits"))
    passes("li/figure-4-orthogonal", Seeds(orthogonal.slopes(8), (0, 1), "digits"))
    slower = np.subtract(xavier.slopes(8), orthogonal.slopes(8))
    passes("li/figure-4-orthogonal-slower", Seeds(slower, (0, 1), "digits"))
    fails("li/figure-4-length-2", Seeds(orthogonal.slopes(8), (0, 1), "digits"))
    fails("li/figure-4-orthogonal", Seeds(two.slopes(8), (0, 1), "digits"))
    assert start.initial_kappas("3-shortcut", (3,), (0,), digits).kappa.shape == (1, 1)


def test_slopes_leave_out_noise_and_refuse_too_few():
    depths, limits = (2, 4, 8, 16), np.full(4, 1e10)
    noisy = start.Start(depths, (0,), np.array([[2.0, 4.0, 8.0, 1e10]]), limits)
    assert noisy.slopes(16) == [pytest.approx(1)]
    with pytest.raises(ArithmeticError, match="2 values below the noise"):
        noisy.slopes(4)
    broken = start.Start(depths, (0,), np.array([[2.0, 4.0, 8.0, math.nan]]), limits)
    with pytest.raises(ArithmeticError, match="are needed"):
        broken.slopes(16)


def test_variance_doubles_and_the_percentile_is_steadier(digits):
    variance = start.variance_growth((0, 1), units=(2, 4, 8), width=30)
    passes("li/section-4.1-variance-explodes", variance)
    assert max(variance.values) < 1.5
    steps, condition = start.percentile_steps(digits, (2, 4, 8), (0, 1))
    passes("li/appendix-b-percentile", steps)
    assert condition.shape == (2, 2, 3)
    assert np.all(condition[:, 0] >= condition[:, 1])


def test_sign_spread_has_the_recorded_ends(digits):
    spread = start.sign_spread(digits)
    assert spread.shape == (1024, 2)
    np.testing.assert_allclose(spread.min(0), [1.437, 1.368], atol=1e-3)
    np.testing.assert_allclose(spread.max(0), [1.706, 1.632], atol=1e-3)


def test_haar_matrices_are_orthogonal_with_both_determinants():
    gen = generator()
    found = torch.stack([start.haar(3, gen) for _ in range(20)])
    assert float((found.mT @ found - torch.eye(3)).abs().max()) < 1e-12
    assert set(torch.linalg.det(found).round().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("length", "units"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
def test_symbolic_hessians_are_the_formula(length, units):
    difference = symbolic.zero_hessian_difference(length, units, d=2)
    assert difference == sp.zeros(*difference.shape)


def test_symbolic_hessian_notices_a_wrong_formula(monkeypatch):
    real = symbolic._formula
    monkeypatch.setattr(symbolic, "_formula", lambda s, n, one, two: real(s, n, two, one))
    assert symbolic.zero_hessian_difference(1, 2, d=2) != sp.zeros(8)
    assert symbolic.zero_hessian_difference(2, 1, d=2) != sp.zeros(8)


def test_symbolic_spectrum():
    assert symbolic.spectrum_of_block(1) == 0
    assert symbolic.spectrum_of_block(2) == 0


@pytest.mark.parametrize(
    ("name", "trial"),
    [
        ("moment_difference", lambda: depth.gradient_at_zero(4, generator())),
        ("neuron_matrices", lambda: depth.relu_near_zero(2, generator())),
        ("length_one_growth_bound", lambda: depth.length_one_growth(2, generator())),
        ("hessian_at_zero", lambda: depth.length_two_at_zero(2, generator())),
        ("hessian_spectrum_at_zero", lambda: depth.length_two_at_zero(2, generator())),
    ],
)
def test_a_function_that_returns_nan_fails_the_trial(monkeypatch, name, trial):
    real = getattr(depth, name)
    monkeypatch.setattr(depth, name, lambda *a: real(*a) * math.nan)
    with pytest.raises((ArithmeticError, RuntimeError), match=r"NaN|contained non-finite|converge"):
        trial()


def test_trials_are_reproducible(digits):
    assert depth.relu_near_zero(3, generator(7)) == depth.relu_near_zero(3, generator(7))
    first, second = (start.initial_kappas("orthogonal", (2, 4), (3,), digits) for _ in range(2))
    np.testing.assert_array_equal(first.kappa, second.kappa)
