"""The trials of the chapter on small weights: they pass, they are not vacuous, they notice a wrong library."""

import math

import mpmath
import pytest
import torch

from resid.book.checks.samples import small_weights as trials
from resid.book.checks.samples.many_digits import arc_round, open_loop_error
from resid.ledger import get_claim
from resid.theory.small_weights import construct_small_weight_network, paths
from tests.checks.helpers import fails, generator, passes


def test_trials_of_the_lemmas_pass():
    passes("li/lemma-1", trials.lemma_one(60, generator()))
    paths = trials.lemma_two(40, generator())
    passes("li/lemma-2-clearance", paths.clearance)
    passes("li/lemma-2-length", paths.length)
    assert paths.bypasses > 10
    assert paths.clearance.worst == pytest.approx(1, abs=1e-9)  # attained on the way round
    assert paths.length.worst > 0.5  # near enough to be able to fail


def test_trials_of_the_theorem_pass():
    found = trials.memorised(24, generator())
    passes("li/theorem-1", found)
    assert found.worst > 0.4
    passes("li/eq-7-rate", trials.rate_of_fall((0, 1), m=8))
    norms = trials.distance_from_zero(12, generator())
    passes("li/section-4.1-closer-to-zero", norms.formula)
    passes("li/section-4.1-closer-to-zero", norms.bound)
    passes("li/section-4.1-closer-to-zero", norms.attained)
    assert norms.limit < 0.01
    assert 0.95 < norms.sharpest <= 1


def test_trials_of_the_limits_pass():
    found = trials.distinct_outputs(60, generator())
    passes("li/main-result-1", found)
    assert found.worst > 0.99  # attained by units along one direction
    passes("li/main-result-1", trials.same_label(20, generator()))
    scaled, whitened, rows = trials.row_norms()
    passes("li/assumption-1-practice", scaled)
    passes("li/assumption-1-practice", whitened)
    assert [row[0] for row in rows] == ["digits", "mnist"]
    assert all(row[3] > 1.1 for row in rows)
    loss, clash = trials.noisy_labels(6, generator())
    passes("li/assumption-2-noise", loss)
    passes("li/assumption-2-noise", clash)


def test_lemma_trials_notice_a_wrong_unit_and_a_wrong_path(monkeypatch):
    real = trials.isolating_unit

    def without_bias(*given):
        W1, b, W2 = real(*given)
        return W1, 0 * b, W2

    monkeypatch.setattr(trials, "isolating_unit", without_bias)
    fails("li/lemma-1", trials.lemma_one(12, generator()))
    monkeypatch.setattr(
        trials, "isolating_unit", lambda *given: (real(*given)[0], *real(*given)[1:2], 1.001 * real(*given)[2])
    )
    fails("li/lemma-1", trials.lemma_one(12, generator()))
    route = paths.path_round
    monkeypatch.setattr(paths, "path_round", lambda p, q, o, c: route(p, q, o[:0], c))  # straight through
    fails("li/lemma-2-clearance", trials.lemma_two(20, generator()).clearance)
    monkeypatch.setattr(paths, "path_round", lambda p, q, o, c: route(q, p, o, c))
    with pytest.raises(ArithmeticError, match="the path of sample 0 is none"):
        trials.lemma_two(2, generator())


def test_theorem_trials_notice_a_wrong_network(monkeypatch):
    real = trials.construct_small_weight_network
    monkeypatch.setattr(trials, "construct_small_weight_network", lambda X, Y, units: real(X, Y, units, False))
    fails("li/theorem-1", trials.memorised(40, generator()))
    monkeypatch.setattr(trials, "construct_small_weight_network", lambda X, Y, units: real(X, Y, 4 * len(X)))
    fails("li/eq-7-rate", trials.rate_of_fall((0,), m=6))
    monkeypatch.setattr(
        trials, "construct_small_weight_network", lambda X, Y, units: real(X, Y, units, threshold="sharp")
    )
    fails("li/section-4.1-closer-to-zero", trials.distance_from_zero(4, generator()).formula)
    monkeypatch.setattr(
        trials,
        "construct_small_weight_network",
        lambda X, Y, units, threshold: lambda inputs: real(X, Y, units)(inputs) + 1e-4,
    )
    fails("li/assumption-2-noise", trials.noisy_labels(3, generator())[0])


def test_trials_of_the_limits_notice_a_wrong_bound(monkeypatch):
    least = trials.least_parameter_norm
    for factor in (1.1, 0.999):
        monkeypatch.setattr(trials, "least_parameter_norm", lambda X, Y, f=factor: f * least(X, Y))
        norms = trials.distance_from_zero(12, generator())
        fails("li/section-4.1-closer-to-zero", norms.bound if factor > 1 else norms.attained)
    real = trials.least_stretch
    monkeypatch.setattr(trials, "least_stretch", lambda W: 1.001 * real(W))
    fails("li/main-result-1", trials.distinct_outputs(20, generator()))
    monkeypatch.setattr(trials, "least_stretch", lambda W: 3.0)
    with pytest.raises(ArithmeticError, match="below the bound"):
        trials.same_label(20, generator())
    monkeypatch.setattr(trials, "on_sphere", lambda rows: rows)
    fails("li/assumption-1-practice", trials.row_norms()[0])


@pytest.mark.parametrize(
    ("name", "trial"),
    [
        ("max_norm_bound", lambda: trials.memorised(2, generator())),
        ("least_stretch", lambda: trials.distinct_outputs(2, generator())),
    ],
)
def test_a_function_that_returns_nan_fails_the_trial(monkeypatch, name, trial):
    monkeypatch.setattr(trials, name, lambda *given: math.nan)
    with pytest.raises(ArithmeticError, match="NaN"):
        trial()


def test_the_open_loop_is_exact_in_exact_arithmetic():
    """The error falls with the digits, one by one, and stands above them by the gain."""
    X, Y = trials.random_samples(5, 3, generator(0))
    found = [open_loop_error(X, Y, 16, digits) for digits in (60, 90, 120, 150)]
    for digits, error in zip((60, 90, 120, 150), found, strict=True):
        assert error < -digits + 60
    assert found[0] - found[-1] == pytest.approx(90, abs=5)
    network = construct_small_weight_network(X, Y, 80)
    gains = trials.measured_log_gains(network, X) / math.log(10)
    assert found[-1] + 150 == pytest.approx(float(gains.max()), abs=4)


def test_arcs_in_many_digits_keep_clear():
    X, Y = trials.random_samples(12, 3, generator(5))
    with mpmath.workdps(50):
        rows = [[[mpmath.mpf(v) for v in row] for row in part.tolist()] for part in (X, Y)]
        scaled = [[[v / mpmath.norm(row) for v in row] for row in part] for part in rows]
        x, y = scaled
        rest = y[:3] + x[4:]
        clearance = min(mpmath.norm([a - b for a, b in zip(p, q, strict=True)]) for p in [x[3], y[3]] for q in rest) / 2
        for point in arc_round(x[3], y[3], rest[:1], clearance, 100):
            assert mpmath.norm(point) == pytest.approx(1, abs=1e-15)
            assert mpmath.norm([a - b for a, b in zip(point, rest[0], strict=True)]) >= clearance * (
                1 - mpmath.mpf(10) ** -40
            )


def test_trials_are_reproducible():
    assert trials.memorised(4, generator(7)) == trials.memorised(4, generator(7))
    assert trials.lemma_two(4, generator(7)) == trials.lemma_two(4, generator(7))


def test_two_sentences_of_hardt_and_ma():
    against, apart = trials.normalised_multiples(10, generator())
    assert not against.unfavourable(get_claim("hardt-ma/section-3-normalised"), "full")
    assert apart.worst == 0
    assert not trials.few_kinks().unfavourable(get_claim("hardt-ma/abstract-more-parameters"), "full")
    assert trials.memorised_anyhow(6, generator()).worst == 0


def test_without_the_constant_multiples_are_lost(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(trials.torch, "ones", zeros)
    assert trials.normalised_multiples(10, generator())[1].worst > 0


def test_five_parameters_change_the_sign_of_the_slope_once():
    """Any a, b, u, v, s: the slopes of x -> h + v ReLU(u h + s), h = a x + b, change sign once at most."""
    draw, x = generator(), torch.linspace(0, 5, 400, dtype=torch.float64)
    for _ in range(300):
        a, b, u, v, s = 3 * torch.randn(5, generator=draw, dtype=torch.float64)
        h = a * x + b
        slopes = (h + v * (u * h + s).relu()).diff()
        signs = slopes[slopes.abs() > 1e-9].sign()
        assert int((signs.diff() != 0).sum()) <= 1


def test_a_network_that_misses_labels_is_noticed(monkeypatch):
    real = trials.construct_memorizer
    monkeypatch.setattr(trials, "construct_memorizer", lambda X, y, **more: real(X, y.roll(1), **more))
    assert trials.memorised_anyhow(4, generator()).worst > 0.3
