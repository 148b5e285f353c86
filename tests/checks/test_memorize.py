"""The trials of Theorem 3.2 at small size: they pass, and they notice a wrong library."""

import math

import pytest
import torch

from resid.book.checks.samples import memorize
from resid.book.checks.samples import memorize_proof as proof
from resid.data.whitened import unit_digits
from resid.ledger import get_claim
from resid.theory.memorize import construct_memorizer
from tests.checks.helpers import generator, passes


def test_every_claim_of_the_chapter_passes_at_small_size():
    passes("hardt-ma/theorem-3.2", memorize.random_networks(24, generator()))
    passes("hardt-ma/theorem-3.2", memorize.exact_networks())
    passes("hardt-ma/theorem-3.2-parameters", memorize.parameter_bound(2, generator()))
    for evidence in memorize.parameter_count(9, generator()):
        passes("hardt-ma/section-3-parameter-count", evidence)
    for evidence in memorize.final_block(5, generator()):
        passes("hardt-ma/section-3-final-block", evidence)
    passes("hardt-ma/section-3-surrogate-vectors", memorize.surrogate_vectors(2, 50, (10, 30)))
    passes("hardt-ma/section-5-conjecture", memorize.conjecture_at_zero(generator()))
    passes("hardt-ma/section-5-conjecture", memorize.conjecture_away_from_zero(20, generator()))


def test_every_claim_of_the_appendix_passes_at_small_size():
    passes("hardt-ma/lemma-b.1", proof.separation_counterexample())
    passes("hardt-ma/lemma-b.1", proof.isolated_moves(50, generator()))
    passes("hardt-ma/lemma-b.2", proof.surrogate_counterexample())
    passes("hardt-ma/lemma-b.2", proof.block_by_block(30, generator()))
    for evidence in proof.rho_third(3, generator()):
        passes("hardt-ma/proof-3.2-rho-third", evidence)
    for evidence in proof.projection_width_trial(2, generator()):
        passes("hardt-ma/proof-3.2-width-constant", evidence)
    for evidence in proof.projection_scale(2, generator()):
        passes("hardt-ma/proof-3.2-projection-scale", evidence)
    assert proof.wrong_neuron() == pytest.approx(0.5)


def test_coincidences_are_counted_in_whole_numbers():
    images = torch.tensor([[2, 4], [1, 2], [3, 6], [2, 1], [0, 0], [0, 0], [7, 7]], dtype=torch.uint8)
    found = memorize.coincidences(images, torch.tensor([0, 0, 1, 0, 2, 2, 0]))
    assert (found.pairs, found.conflicting) == (4, 2)  # three multiples of (1, 2), one of them labelled 1; two zeros
    images, labels = unit_digits()
    assert memorize.coincidences((16 * images).to(torch.int64), labels).pairs == 0


def test_memorized_labels_are_those_that_were_asked_for():
    data = unit_digits()
    true = memorize.memorize_labels("digits", *data, 4, None)
    random = memorize.memorize_labels("digits", *data, 4, generator())
    assert (true.data, random.data) == ("digits, true labels", "digits, random labels")
    assert true.n == 1797
    assert max(true.error, random.error) < 1e-12


def test_untouched_sees_a_block_that_moves_the_points_of_others():
    X, y = memorize.random_problem(30, 5, 3, generator())
    net = construct_memorizer(X, y, 3)
    assert memorize.untouched(net, X, y) == (0, pytest.approx(0, abs=1e-12))
    net.s.add_(0.5)
    changed, spread = memorize.untouched(net, X, y)
    assert changed > 10
    assert spread > 0.1


def test_smallest_widths_grow_with_the_sample():
    (_, low, few), (_, high, more) = memorize.smallest_widths((60, 240), 100, generator())
    assert low < high
    assert few < more
    assert few < low


@pytest.mark.parametrize(
    ("module", "name", "trial", "claim"),
    [
        (memorize, "construct_memorizer", lambda g: memorize.random_networks(8, g), "theorem-3.2"),
        (memorize, "_exact", lambda g: memorize.exact_networks(), "theorem-3.2"),
        (memorize, "construct_memorizer", lambda g: memorize.parameter_bound(1, g), "theorem-3.2-parameters"),
        (proof, "isolating_block", lambda g: proof.isolated_moves(20, g), "lemma-b.1"),
        (proof, "isolating_block", lambda g: proof.block_by_block(20, g), "lemma-b.2"),
        (proof, "unit_points", lambda g: proof.projection_scale(1, g)[1], "proof-3.2-projection-scale"),
        (proof, "projection_width", lambda g: proof.projection_width_trial(2, g)[1], "proof-3.2-width-constant"),
    ],
)
def test_trials_notice_a_wrong_library(monkeypatch, module, name, trial, claim):
    real = getattr(module, name)
    wrong = {
        "construct_memorizer": lambda *a, **k: spoilt(real(*a, **k)),
        "_exact": lambda net, X, y: real(net, X, [label + 1 for label in y]),
        "isolating_block": lambda *a: (real(*a)[0], real(*a)[1] + 0.05, real(*a)[2]),
        "projection_width": lambda n, rho, c=None: real(n, rho, c) // 20,
        "unit_points": lambda *a: 1.1 * real(*a),
    }[name]
    monkeypatch.setattr(module, name, wrong)
    try:
        evidence = trial(generator())
    except ArithmeticError:
        return
    assert evidence.unfavourable(get_claim(f"hardt-ma/{claim}"), "smoke")


def spoilt(net):
    net.last_bias.mul_(1.01)
    return net


def test_gradient_in_v_is_that_of_automatic_differentiation():
    gen = generator()
    X, Y = (torch.randn(9, 3, generator=gen, dtype=torch.float64) for _ in range(2))
    weights = [(U, torch.zeros_like(V).requires_grad_(), s) for U, V, s in memorize._random_weights(3, 3, 1.0, gen)]
    risk = (memorize._relu_network(weights, X) - Y).square().sum() / 9
    expected = torch.autograd.grad(risk, [V for _, V, _ in weights])
    for found, wanted in zip(memorize._gradient_in_v(weights, X, Y), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert all(math.isfinite(float(g.norm())) and float(g.norm()) > 0 for g in expected)
