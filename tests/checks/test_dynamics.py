"""The trials of training, at small size: right numbers from known curves, and a wrong library is noticed."""

import numpy as np
import pytest
import torch

from resid.book.checks.linear import dynamics
from resid.book.checks.linear.dynamics_study import Study
from resid.book.journal import Journal
from resid.ledger import get_claim


def study(**change):
    given = {
        "data": "digits",
        "seeds": [0, 1],
        "epochs": 80,
        "rates": [0.01, 0.1, 1.0],
        "journal": Journal("t", (), None),
        "path_epochs": 900,
    }
    return Study(**(given | change))


class Told(Study):
    """A study that is told its losses instead of measuring them: told[kind, depth] is (seeds, rates)."""

    def sweep(self, kind, depth, activation="linear"):
        return self.told[kind, depth]


def told(losses):
    found = Told("digits", [0], 1, [0.1, 1.0], Journal("t", (), None))
    found.told = {key: np.array([values]) for key, values in losses.items()}
    return found


def test_final_losses_are_read_off_the_sweeps():
    floor = study().least_loss
    losses = {
        ("2-shortcut", 4): [0.02 * floor, 1.0],
        ("2-shortcut", 16): [1.0, 0.001],
        ("2-shortcut", 32): [1.0, 0.01],
        ("2-shortcut", 12): [1.0, 0.01],
        ("orthogonal", 16): [0.1, 1.0],
        ("orthogonal", 32): [0.1, np.inf],
        ("xavier", 16): [0.01, 1.0],
        ("xavier", 32): [0.03, np.inf],
        ("1-shortcut", 16): [0.001, 1.0],
        ("3-shortcut", 12): [0.1, 1.0],
        ("4-shortcut", 12): [10.0, 10.0],
    }
    found = dynamics.final_losses(told(losses), [4, 16, 32], [16, 32], [12])
    values = {claim: measured.values[0] for claim, measured in found.items()}
    assert values == {
        "li/section-5-length-1-like-orthogonal": pytest.approx(2),
        "li/figure-7-left": pytest.approx(0.01 / floor),
        "li/figure-7-left-plain": pytest.approx(np.log10(3)),
        "li/abstract-longer-shortcuts": pytest.approx(1),
        "li/figure-7-right": pytest.approx(1),
        "li/figure-7-right-depth-96": pytest.approx(0),  # the diverged rate does not count
    }
    for claim, measured in found.items():
        assert measured.malformed(get_claim(claim)) == []


def test_relu_losses_are_read_off_the_sweeps():
    losses = {
        ("2-shortcut", 4): [1.0, 0.1],
        ("2-shortcut", 16): [1.0, 0.01],
        ("xavier", 4): [0.2, 1.0],
        ("xavier", 16): [0.3, 0.4],
        ("orthogonal", 4): [0.1, 1.0],
        ("orthogonal", 16): [0.5, 1.0],
    }
    found = dynamics.relu_losses(told(losses), 4, [16])
    values = {claim: measured.values[0] for claim, measured in found.items()}
    assert values == {
        "li/figure-8-left": pytest.approx(np.log10(30)),
        "li/figure-8-left-deeper": pytest.approx(1),
        "li/figure-8-left-plain": pytest.approx(np.log10(1.5)),
        "li/figure-8-right-depth-64": pytest.approx(np.log10(2)),
    }


def test_conditioning_on_digits():
    found = dynamics.conditioning(
        study(), {"2-shortcut": 0.1, "orthogonal": 0.01, "xavier": 0.02}, depth=4, step=4, count=12
    )
    assert min(found.stays_near_zero.values) > 1
    assert all(abs(v) < 0.3 for v in found.figure_6_right.values)
    assert all(0 < v <= 1.2 for v in found.figure_6_left_drop.values)
    assert found.figure_5_large_loss.seeds == (0, 1)


def test_conditioning_at_the_start_is_that_of_zero_weights():
    index, kappa = study(seeds=[0]).early("2-shortcut", 4, 0.1, 1, 1)
    assert index[0, 0] == 0.5
    assert kappa[0, 0] == pytest.approx(1.5424, abs=0.02)


def test_escape_is_harder_for_longer_units():
    (value,) = dynamics.escape(study(seeds=[0]), depth=12, limit=1500).values
    assert 0.3 < value < 1.5


def test_norms_fall_with_depth():
    found = dynamics.norms_fall_with_depth(study(), [4, 8], 0.5)
    assert all(-0.6 < v < -0.2 for v in found.values)


def test_minimisers_have_a_hessian_of_rank_d_squared(monkeypatch):
    claim = get_claim("li/section-5.2-minimisers")
    rank, against = dynamics.minimisers(20, torch.Generator().manual_seed(0))
    assert rank.unfavourable(claim, "smoke") == []
    assert against.unfavourable(claim, "smoke") == []
    assert against.lhs - against.rhs > 1  # powers of ten, between minimisers of one network
    real = dynamics.best_map
    monkeypatch.setattr(dynamics, "best_map", lambda *a: 1.01 * real(*a))  # no minimum any more
    with pytest.raises(ArithmeticError, match=r"not after d\^2 = 9"):
        dynamics.minimisers(10, torch.Generator().manual_seed(0))


def test_minimisers_look_at_the_first_eigenvalue_that_vanishes(monkeypatch):
    """One more eigenvalue than the theorem allows, small but above the margin, is seen."""
    real = dynamics.hessian_eigenvalues

    def with_one_more(H):
        values = real(H)
        values[-10] = 2e-10 * values[-1]
        return values

    monkeypatch.setattr(dynamics, "hessian_eigenvalues", with_one_more)
    rank, _ = dynamics.minimisers(4, torch.Generator().manual_seed(0))
    assert rank.worst == pytest.approx(2e-10)
    assert rank.unfavourable(get_claim("li/section-5.2-minimisers"), "smoke")


def test_balanced_minimisers_have_the_spectrum_of_the_formula(monkeypatch):
    claim = get_claim("beyond/balanced-minimisers")
    found = dynamics.balanced_minimisers(32, torch.Generator().manual_seed(0))
    assert found.unfavourable(claim, "smoke") == []
    real = dynamics.balanced_hessian_spectrum
    monkeypatch.setattr(dynamics, "balanced_hessian_spectrum", lambda R, depth: real(R, depth + 1))
    assert dynamics.balanced_minimisers(32, torch.Generator().manual_seed(0)).unfavourable(claim, "smoke")


def test_trained_minimisers_end_where_balance_leads(monkeypatch):
    found = dynamics.trained_minimisers([1], depth=4, d=2)
    assert found.excess <= 1e-9
    assert found.logs[0, 1:] == pytest.approx(found.balanced[0], abs=0.05)
    assert found.logs[0, 0] > found.balanced[0] + 0.01  # balanced inside each unit only
    assert found.spread.values[0] == pytest.approx(found.logs.max() - found.logs.min())
    real = dynamics.initial_weights  # far from balance the formula says nothing
    monkeypatch.setattr(
        dynamics, "initial_weights", lambda network, init, g, scale=1.0: real(network, "xavier", g, 0.7)
    )
    far = dynamics.trained_minimisers([1], depth=4, d=2)
    assert abs(far.logs[0, 1] - far.balanced[0]) > 0.1
