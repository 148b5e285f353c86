"""Trials of Zaeemzadeh et al., Section 2, at small size: they pass, come near their bounds, notice a wrong library."""

import json
import math
import re

import pytest
import torch

from resid.book.checks.linear.factor import family_trial
from resid.book.checks.norms import batch_norm_stack as stack
from resid.book.checks.norms import bounds
from resid.ledger import get_claim
from resid.theory.factor import max_layer_norm, rotation_angle, spectral_gamma
from resid.theory.norms import (
    SMOOTH_FAMILIES,
    flow_bound,
    flow_constant,
    linear_bound,
    norm_deviation,
    sample_smooth_map,
)
from tests.checks.helpers import generator, passes
from tools.paths import ROOT


def refused(claim_id, evidence):
    return evidence.unfavourable(get_claim(claim_id), "smoke")


def test_lemma_1_and_the_shift_are_attained():
    lemma, shift = bounds.lemma_1(90, generator())
    passes("zaeemzadeh/lemma-1", lemma)
    passes("zaeemzadeh/section-1-shift-to-one", shift)
    assert lemma.worst == pytest.approx(1, abs=1e-12)
    assert shift.worst == pytest.approx(1, abs=1e-12)


def test_linear_networks():
    cases, gap = bounds.theorem_2(54, generator())
    passes("zaeemzadeh/theorem-2", cases)
    assert gap < 1e-12
    passes("zaeemzadeh/lemma-3", bounds.reflection_against_lemma_3())
    assert refused("zaeemzadeh/lemma-3", bounds.reflection_against_lemma_3(6))  # 2 pi / 6 > 1
    passes("zaeemzadeh/lemma-3", family_trial(2, generator()).submission)


def test_theorem_2_stops_at_a_wrong_product(monkeypatch):
    real = bounds.norm_preserving_layers
    monkeypatch.setattr(bounds, "norm_preserving_layers", lambda *a: 1.001 * real(*a))
    with pytest.raises(ArithmeticError, match="the product misses"):
        bounds.theorem_2(3, generator())


def test_flow_trial_keeps_to_every_bound_and_comes_near_ours():
    found = bounds.flow_trial(12, generator(), points=6)
    passes("zaeemzadeh/theorem-1", found.theorem)
    passes("zaeemzadeh/section-2-rates", found.rate)
    passes("zaeemzadeh/lemma-2", found.lipschitz)
    passes("zaeemzadeh/section-2-global-minimiser", found.represented)
    assert found.theorem.n == found.rate.n == 12
    assert 0.9 < found.rate.worst <= 1 + 1e-9
    assert found.lipschitz.worst > 0.3
    assert 0.5 < found.optimal <= 1 + 1e-9


def stated_bound(text):
    """delta <= c/(L - j) for L >= j + c, with its c, as a text states it: a function of h and L.

    The text is LaTeX; the terms of c are products of the symbols below.
    """
    lower, least = (
        re.search(r"\\delta\\le\s*(?:\\frac c\{L-(\d)\}|c/\(L-(\d)\))", text),
        re.search(r"L\\ge(\d)\+c", text),
    )
    shift = int(lower[1] or lower[2])
    assert int(least[1]) == shift
    terms = re.search(r"c=(\\alpha[^.,$]*)", text)[1].strip().split("+")

    def value(h, L):
        A = h.jacobian(torch.zeros(h.dimension, dtype=torch.float64))
        known = {
            r"\alpha": h.alpha,
            r"\beta": h.beta,
            "r": h.radius,
            r"\theta": rotation_angle(A),
            r"(e-1)": math.e - 1,
            r"\gamma_A": spectral_gamma(A),
        }
        c = 0.0
        for term in terms:
            factors = re.findall(r"\\gamma_A|\\alpha|\\beta|\\theta|\(e-1\)|r", term)
            assert "".join(factors) == re.sub(r"\s", "", term)  # no symbol is left over
            c += math.prod(known[factor] for factor in factors)
        return c / (L - shift)

    return value


def test_the_rate_is_stated_with_one_constant():
    """The ledger, the chapter's theorem and the library give the same number, which bounds every block."""
    cells = json.loads((ROOT / "book/norms/bounds.ipynb").read_text("utf-8"))["cells"]
    (theorem,) = (text for text in ("".join(c["source"]) for c in cells) if ":label: thm-norms-flow" in text)
    stated = [stated_bound(get_claim("zaeemzadeh/section-2-rates").sharper), stated_bound(theorem)]
    for case, family in enumerate(SMOOTH_FAMILIES):
        h = sample_smooth_map(family, 2 + case, generator())
        L = 3 + math.ceil(flow_constant(h))
        for bound in stated:
            assert bound(h, L) == pytest.approx(flow_constant(h) / (L - 1), rel=1e-12)
        assert flow_bound(h, L) <= stated[0](h, L)


def test_flow_trial_notices_jacobians_that_are_too_small(monkeypatch):
    real = bounds.norm_deviation
    monkeypatch.setattr(bounds, "norm_deviation", lambda J: real(J) / 2)
    with pytest.raises(ArithmeticError, match="backpropagation changes a norm"):
        bounds.flow_trial(2, generator(), points=40)


def test_counterexamples():
    grown, logarithm = bounds.shear_rate()
    assert grown < 1.01 < 2 < logarithm
    against, error = bounds.scaled_network()
    passes("zaeemzadeh/section-2-global-minimiser", against)
    assert error < 1e-14
    assert against.lhs == pytest.approx(100)
    assert refused("zaeemzadeh/section-2-global-minimiser", bounds.scaled_network(scale=1.0)[0])


def test_orientation():
    cases = bounds.orientation(20, generator())
    passes("zaeemzadeh/assumption-1-orientation", cases)
    assert cases.n == 20


def test_orientation_notices_a_missing_reflection(monkeypatch):
    real = bounds.sample_smooth_map
    monkeypatch.setattr(bounds, "sample_smooth_map", lambda *a, sign: real(*a))
    assert refused("zaeemzadeh/assumption-1-orientation", bounds.orientation(4, generator()))


def test_corollary_1_is_attained_in_both_forms():
    two, more = bounds.corollary_1(10, generator()), bounds.corollary_1_more_layers(12, generator())
    assert (two.n, more.n) == (80, 96)
    passes("zaeemzadeh/corollary-1", two)
    passes("zaeemzadeh/corollary-1-more-layers", more)
    assert two.worst == pytest.approx(1, abs=1e-12)
    assert more.worst == pytest.approx(1, abs=1e-12)


def test_corollary_1_needs_every_factor(monkeypatch):
    monkeypatch.setitem(bounds.SLOPES, "gelu", 1.0)
    assert bounds.corollary_1(6, generator()).worst > 1.1


def test_trained_linear_network_is_near_the_optimum():
    """The reference of the notes: delta L close to gamma, far below the printed constant."""
    R = torch.linalg.matrix_exp(0.35 * torch.randn(8, 8, generator=generator(), dtype=torch.float64))
    W, error = bounds.train_linear(R, 16)
    assert error < 1e-6
    delta = float(norm_deviation(W + torch.eye(8, dtype=torch.float64)).max())
    assert linear_bound(R, 16) * (1 - 1e-6) <= delta <= float(max_layer_norm(W)) < 0.2 * linear_bound(R, 16, "printed")


@pytest.mark.parametrize(("kernel", "shape"), [(1, (1024, 1)), (3, (32, 6))])
@pytest.mark.parametrize("fan", ["in", "out"])
def test_stack_follows_the_formula(kernel, shape, fan):
    found = stack.stack_trial(12, generator(), 128, shape, kernel, fan)
    passes("zaeemzadeh/section-2-small-weights", found.cases)
    assert found.cases.n == 12
    torch.testing.assert_close(found.measured[0] - 1, found.predicted[0] - 1, rtol=0.12, atol=0)
    added = (1 - 1 / math.pi) / (1 if fan == "in" else 4)
    assert float(found.variance[-1]) == pytest.approx(1 + 12 * added, rel=0.1)


def test_bottleneck_equals_convolutions():
    """The middle layer as a circular convolution of torch; taps in the order of `torch.roll`."""
    weights = stack.bottleneck_weights(8, generator(), kernel=3)
    x = torch.randn(3, 5, 5, 8, generator=generator(2), dtype=torch.float64)
    h = x
    for W, k in zip(weights, (1, 3, 1), strict=True):
        flat = h.reshape(-1, h.shape[-1])
        h = ((flat - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()).relu().reshape(h.shape).movedim(3, 1)
        kernel = W.reshape(len(W), k, k, -1).permute(0, 3, 1, 2).flip(2, 3)  # tap (i, j) reads x[p - (i, j)]
        h = torch.nn.functional.pad(h, (k // 2,) * 4, mode="circular") if k > 1 else h
        h = torch.nn.functional.conv2d(h, kernel).movedim(1, 3)
    torch.testing.assert_close(stack.bottleneck(weights, x), x + h)


def test_small_weights_change_nothing_before_a_batch_norm():
    against, change = stack.shrunk_weights(0.1, generator())
    passes("zaeemzadeh/section-2-small-weights", against)
    assert change == pytest.approx(1, abs=0.01)
    assert against.rhs < 0.3
    assert refused("zaeemzadeh/section-2-small-weights", stack.shrunk_weights(1.0, generator())[0])


@pytest.mark.parametrize(
    ("module", "name", "trial"),
    [
        (bounds, "identity_plus_bounds", lambda: bounds.lemma_1(3, generator())),
        (bounds, "norm_deviation", lambda: bounds.theorem_2(3, generator())),
        (bounds, "norm_deviation", lambda: bounds.flow_trial(2, generator(), points=3)),
        (bounds, "flow_constant", lambda: bounds.flow_trial(2, generator(), points=3)),
        (bounds, "block_bound", lambda: bounds.corollary_1(2, generator())),
        (bounds, "layers_bound", lambda: bounds.corollary_1_more_layers(2, generator())),
        (stack, "batch_norm_ratios", lambda: stack.stack_trial(2, generator(), 16, (32, 1)).cases),
    ],
)
def test_a_function_that_returns_nan_fails_the_trial(monkeypatch, module, name, trial):
    nan = torch.tensor(math.nan)
    monkeypatch.setattr(module, name, lambda *a, **k: (nan, nan) if name == "identity_plus_bounds" else nan)
    with pytest.raises(ArithmeticError, match=r"NaN|nan"):
        trial()


def test_trials_are_reproducible():
    assert bounds.flow_trial(3, generator(7), points=4) == bounds.flow_trial(3, generator(7), points=4)
    assert bounds.corollary_1(3, generator(7)) == bounds.corollary_1(3, generator(7))
    first, second = (stack.stack_trial(3, generator(7), 16, (64, 1)) for _ in range(2))
    torch.testing.assert_close(first.measured, second.measured, rtol=0, atol=0)


def test_the_entrywise_norm_is_attained_and_the_largest_entry_bounds_nothing(monkeypatch):
    found = bounds.entrywise_norm(40, generator())
    passes("zaeemzadeh/section-2-entrywise", found)
    assert found.worst > 1 - 1e-9
    monkeypatch.setattr(torch.Tensor, "norm", lambda self: self.abs().max())  # another reading of the sentence
    assert bounds.entrywise_norm(40, generator()).worst > 1.5


def test_the_variance_of_a_stack_is_that_of_its_end_over_that_of_its_start():
    (value,) = stack.output_variance([3], depth=5, width=16).values
    trial = stack.stack_trial(5, torch.Generator().manual_seed(3), 16)
    assert value == float(trial.variance[5] / trial.variance[0])
    assert value == pytest.approx(1 + 5 * (1 - 1 / math.pi), rel=0.35)
    assert stack.output_variance([3], depth=1, width=16).values[0] < 10  # a shallow one does not pass
