"""The trials at small size: they pass, they are not vacuous, and they notice a wrong library."""

import numpy as np
import pytest
import sympy as sp
import torch
from scipy.linalg import expm, fractional_matrix_power

from resid.book.checks._worst import worst_of
from resid.book.checks.linear import factor, landscape
from resid.book.checks.linear import landscape_algebra as symbolic
from resid.ledger import get_claim
from resid.theory.factor import near_identity_lower_bound
from resid.theory.targets import sample_target
from tests.checks.helpers import generator, passes


def test_family_trial_covers_nine_families_and_keeps_to_the_bounds():
    found = factor.family_trial(6, generator())
    assert len(found.rows) == 9
    assert found.theorem.n == 54
    assert 0.3 < found.theorem.worst < 1  # near enough to the bound to be able to break it
    assert all(svd >= polar >= mean > 0 for _, svd, polar, mean in found.rows)
    passes("hardt-ma/theorem-2.1", found.theorem)
    passes("hardt-ma/intro-norm-falls-with-depth", found.falls)
    passes("hardt-ma/theorem-2.1-submission", found.submission)


def test_family_trial_stops_at_a_wrong_product(monkeypatch):
    real = factor.factor_near_identity
    monkeypatch.setattr(factor, "factor_near_identity", lambda *a: 1.001 * real(*a))
    with pytest.raises(ArithmeticError, match="the product misses R"):
        factor.family_trial(2, generator())


def test_small_trials_of_theorem_2_1():
    against_gamma, against_root = factor.positive_definite(30, generator())
    passes("hardt-ma/theorem-2.1-positive-definite", against_gamma)
    passes("hardt-ma/intro-psd-product", against_root)
    assert against_root.worst == pytest.approx(1, abs=1e-9)  # attained
    orthogonal, normal = factor.orthogonal_blocks(48, generator())
    passes("hardt-ma/proof-2.1-orthogonal-blocks", orthogonal)
    passes("hardt-ma/claim-normal-block-diagonal", normal)
    passes("hardt-ma/proof-2.1-split", factor.split_counterexample())
    passes("hardt-ma/proof-2.1-split", factor.split_rounded(45, generator()))
    passes("hardt-ma/remark-gamma-scaling", factor.gamma_scaling(10, generator()))
    assert max(factor.normal_targets_gap(12, generator())) < 1e-9


def test_rounded_split_is_tried_on_most_targets():
    assert factor.split_rounded(90, generator()).n > 60


def test_three_factor_norm_is_that_of_the_layers():
    """Roots by logarithm and exponential, multiplied out; in some cases the stretch is the largest, in some a turn."""
    gen, largest = generator(2), set()
    for case in range(12):
        d, counts = 2 + case % 3, (2 + case % 2, 1 + case % 4, 3)
        skew = [0.4 * torch.randn(d, d, generator=gen, dtype=torch.float64).tril(-1) for _ in range(2)]
        logs = [(s - s.mT).numpy() for s in skew]
        stretch = (0.2, 2.0)[case % 2] * torch.randn(d, generator=gen, dtype=torch.float64).numpy()
        U, Vh, K = expm(logs[0]), expm(logs[1]), np.exp(stretch)
        roots = [expm(logs[0] / counts[0]), np.diag(np.exp(stretch / counts[1])), expm(logs[1] / counts[2])]
        factors = [np.linalg.matrix_power(root, count) for root, count in zip(roots, counts, strict=True)]
        np.testing.assert_allclose(factors[0] @ factors[1] @ factors[2], (U * K) @ Vh, atol=1e-10)
        norms = [np.linalg.norm(root - np.eye(d), 2) for root in roots]
        largest.add(int(np.argmax(norms)))
        assert max(factor._three_factor_norms(U, K, Vh, counts)) == pytest.approx(max(norms), rel=1e-9)
    assert 1 in largest
    assert len(largest) > 1


def test_the_split_misses_the_bound_for_every_choice_of_signs():
    """The counterexample of the first version's split; the later bound, and other constructions, are met there."""
    against = factor.split_counterexample()
    assert against.lhs == pytest.approx(1.273184, abs=1e-6)
    assert against.rhs == pytest.approx(1.264416, abs=1e-6)
    assert against.lhs <= (4 * np.pi + 3e-5) / 5


def test_search_lies_between_the_bounds():
    R = torch.tensor([[1.0, 10.0], [0.0, 1.0]], dtype=torch.float64)
    found, error = factor.search_least_norm(R, 8)
    assert error < 1e-12
    assert near_identity_lower_bound(R, 8) <= found <= 0.4131  # .41300 in the notes


def test_trials_of_the_risk_and_its_gradient():
    risk = landscape.risk_on_samples(4, generator(), samples=5000)
    passes("hardt-ma/claim-2.3", risk.identity)
    passes("hardt-ma/claim-2.3-constant", risk.constant)
    passes("hardt-ma/claim-2.3-constant", risk.printed_constant)
    assert risk.standard_errors < 4.5
    passes("hardt-ma/lemma-2.4", landscape.gradient_against_autograd(20, generator()))


def test_gradient_trial_notices_a_wrong_gradient(monkeypatch):
    real = landscape.risk_gradient
    monkeypatch.setattr(landscape, "risk_gradient", lambda *a: real(*a) * (1 + 1e-6))
    trial = landscape.gradient_against_autograd(5, generator())
    assert trial.unfavourable(get_claim("hardt-ma/lemma-2.4"), "smoke")


def test_bound_ratios_separate_right_from_wrong():
    ratios = landscape.bound_ratios(200, generator())
    assert ratios["corrected"].max() <= 1 + 1e-9
    assert ratios["product form"].max() <= 1 + 1e-9
    assert np.all(ratios["corrected"] <= ratios["product form"] * (1 + 1e-12))
    assert (ratios["printed"] > 1).sum() > 3
    assert (ratios["exponent right, sigma_min squared"] > 1).sum() > 1
    for d in range(1, 6):  # some come near, in every dimension
        assert ratios["corrected"][d - 1 :: 5].max() > 0.95


def test_tight_curves_are_attained_and_ordered():
    taus = np.linspace(0, 0.9, 5)
    found = landscape.tight_curves(taus, [2, 6], generator())
    np.testing.assert_allclose(found.extreme, found.corrected, rtol=1e-9)
    assert np.all(found.random >= found.corrected * (1 - 1e-9))
    np.testing.assert_allclose(found.printed**2, found.corrected)


def test_standard_critical_points_have_the_spectra_of_the_notes():
    """Excess risk, zero gradient, least eigenvalue, number of negative eigenvalues; sec. 3.1."""
    expected = [(5, -4, 4), (5, 0, 0), (1, -2, 1), (1, 0, 0), (1, 0, 0), (4, -2, 1), (5, None, 4)]
    for (name, risk, gradient, least, negative), (f, low, count) in zip(
        landscape.standard_critical_points(), expected, strict=True
    ):
        assert risk == pytest.approx(f), name
        assert gradient < 1e-12, name
        assert negative == count, name
        assert low is None or least == pytest.approx(low, abs=1e-9), name


def test_remaining_trials_of_the_landscape():
    passes("hardt-ma/intro-standard-zero-critical", landscape.zero_weights(20, generator()))
    optima = landscape.no_spurious_optima(12, generator())
    passes("hardt-ma/abstract-no-spurious-optima", optima.descent)
    assert optima.critical < 1e-12
    assert optima.outside >= 1 - 1e-12
    assert optima.downhill < 1 - 1e-5
    descent = landscape.descent_in_the_ball(2, generator())
    passes("hardt-ma/remark-descent-converges", descent.decrease)
    assert descent.left_ball == 0
    assert descent.decrease.worst > 0.999999  # a larger promise would be broken
    passes("hardt-ma/remark-augmentation", landscape.augmented_determinants(24, generator()))


def nan(*_, **__):
    return torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("module", "name", "trial"),
    [
        (landscape, "risk_gradient", lambda: landscape.gradient_against_autograd(3, generator())),
        (landscape, "risk_gradient", lambda: landscape.zero_weights(3, generator())),
        (landscape, "population_risk", lambda: landscape.risk_on_samples(2, generator(), samples=50)),
        (landscape, "population_risk", lambda: landscape.no_spurious_optima(2, generator())),
        (landscape, "gradient_lower_bound", lambda: landscape.descent_in_the_ball(1, generator())),
        (landscape, "augment_negative_determinant", lambda: landscape.augmented_determinants(3, generator())),
        (factor, "near_identity_bound", lambda: factor.family_trial(3, generator())),
        (factor, "near_identity_lower_bound", lambda: factor.normal_targets_gap(3, generator())),
        (factor, "max_layer_norm", lambda: factor.positive_definite(3, generator())),
    ],
)
def test_a_function_that_returns_nan_fails_every_trial(monkeypatch, module, name, trial):
    """max(0.0, nan) is 0.0: a running maximum would report a perfect result."""
    monkeypatch.setattr(module, name, lambda *a, **k: a[0] * nan() if name == "augment_negative_determinant" else nan())
    with pytest.raises((ArithmeticError, ValueError, IndexError, TypeError)) as error:
        trial()
    assert "NaN" in str(error.value) or not isinstance(error.value, ArithmeticError)


def test_worst_of_refuses_nothing_and_nan():
    assert worst_of(iter([1, 3, 2])) == 3.0
    with pytest.raises(ArithmeticError, match="nothing was measured"):
        worst_of([])
    with pytest.raises(ArithmeticError, match="1 of 2 measured numbers are NaN"):
        worst_of([1.0, float("nan")])


def test_determinants_of_near_identities_are_positive():
    assert 1 - 1e-6 < factor.determinants_stay_positive(96, generator()) < 1.01  # next to the worst case


def test_trials_are_reproducible():
    assert factor.split_rounded(30, generator(7)) == factor.split_rounded(30, generator(7))
    assert landscape.zero_weights(5, generator(7)) == landscape.zero_weights(5, generator(7))


def test_symbolic_differences_vanish():
    assert symbolic.risk_identity(2) == 0
    polynomial, hessian = symbolic.zero_hessians()
    assert polynomial == 0
    assert hessian == sp.zeros(12)


def test_chain_applies_the_first_factor_first():
    a, b, c = (sp.Matrix(2, 2, sp.symbols(f"{name}:4")) for name in "abc")
    assert symbolic.chain([a, b, c]) == c * b * a
    assert symbolic.chain([]) == sp.eye(2)


def test_the_sum_of_squares_is_attained_by_turns_and_nearly_by_stretches():
    """The bound is a triangle inequality: a pure turn attains its logarithm in the limit, a pure stretch its c."""
    found = factor.small_sums(12, torch.Generator().manual_seed(5))
    assert 0.9 < found.worst <= 1
    assert found.n == 12 * len(factor.FAMILIES)


@pytest.mark.parametrize("power", [0.9, 1.1])
def test_a_wrong_constant_of_the_sums_is_noticed(power, monkeypatch):
    """A construction whose layers are a tenth off in their norm, either way, fails or is no test of the bound."""
    real = factor.factor_near_identity
    monkeypatch.setattr(factor, "_checked_layers", lambda *given: power * real(*given))
    if power > 1:
        assert factor.small_sums(12, torch.Generator().manual_seed(5)).worst > 1
    else:
        with pytest.raises(ArithmeticError, match="not put to the test"):
            factor.small_sums(12, torch.Generator().manual_seed(5))


def test_complex_layers_against_a_matrix_function():
    """Powers by scipy, for a map of negative determinant; and real layers where the real construction has them."""
    R = np.array([[0.3, 1.2, 0.0], [-0.7, 0.4, 0.5], [0.1, 0.0, -2.0]])
    U, S, Vh = np.linalg.svd(R)
    Q, P, depth = (U @ Vh).astype(complex), (Vh.T * S @ Vh).astype(complex), 5
    powers = [fractional_matrix_power(Q, k / depth) for k in range(depth + 1)]
    root = fractional_matrix_power(P, 1 / depth)
    expected = [powers[i] @ root @ np.linalg.inv(powers[i - 1]) - np.eye(3) for i in range(1, depth + 1)]
    assert np.linalg.det(R) < 0
    np.testing.assert_allclose(factor.complex_layers(R, depth), expected, atol=1e-12)
    turned = sample_target("gaussian", 4, torch.Generator().manual_seed(1))
    ours = factor.factor_near_identity(turned, 6)
    np.testing.assert_allclose(factor.complex_layers(turned.numpy(), 6), ours, atol=1e-10)


def test_complex_maps_need_the_right_sheet_of_the_root(monkeypatch):
    found = factor.complex_targets(18, torch.Generator().manual_seed(0))
    assert 0.9 < found.worst <= 1
    angle = np.angle
    monkeypatch.setattr(factor.np, "angle", lambda z: angle(z) + 2 * np.pi * (angle(z) < 0))  # from 0 to 2 pi
    assert factor.complex_targets(18, torch.Generator().manual_seed(0)).worst > 1
