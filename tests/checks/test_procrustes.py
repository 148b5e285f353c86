"""The trials of the chapter on the projection at small size: they pass, and they notice a wrong library."""

import math

import numpy as np
import pytest
import torch

from resid.book.checks.norms import norm_drift
from resid.book.checks.norms import procrustes as trials
from resid.book.checks.norms.norm_images import load_images
from resid.book.checks.norms.norm_study import DIGITS, DIGITS_TRANSITIONS, NormStudy, follow_three_layers
from resid.theory.conv_spectrum import conv_matrix, conv_singular_values
from tests.checks.helpers import fails, generator, passes


def test_energy_identities_pass_and_notice_wrong_vectors_and_scales(monkeypatch):
    passes("zaeemzadeh/eq-6-energy", trials.energy(12, generator()))
    passes("zaeemzadeh/eq-7", trials.equal_singular_values(12, generator()))
    real = trials.conv_svd

    def swapped(K, n):
        found = real(K, n)
        return type(found)(found.left.flip(0), found.sigma, found.right)

    monkeypatch.setattr(trials, "conv_svd", swapped)
    fails("zaeemzadeh/eq-6-energy", trials.energy(4, generator()))
    monkeypatch.setattr(trials, "conv_svd", real)
    monkeypatch.setattr(trials, "norm_preserving_scale", lambda c, d: math.sqrt(d / c))
    fails("zaeemzadeh/eq-7", trials.equal_singular_values(6, generator()))


def test_nearest_passes_and_notices_another_isometry(monkeypatch):
    found = trials.nearest(45, generator())
    passes("zaeemzadeh/eq-8-nearest", found)
    assert found.worst > 0.99  # the search and the small moves come near
    passes("zaeemzadeh/eq-8-singular-values", trials.polar_is_svd(72, generator()))
    real = trials.polar_factor
    monkeypatch.setattr(trials, "polar_factor", lambda A: trials._isometry(A))
    fails("zaeemzadeh/eq-8-nearest", trials.nearest(45, generator()))
    monkeypatch.setattr(trials, "polar_factor", lambda A: real(A).conj().resolve_conj())
    fails("zaeemzadeh/eq-8-singular-values", trials.polar_is_svd(12, generator()))


def test_iteration_passes_and_notices_too_few_steps(monkeypatch):
    found = trials.iteration(20, generator())
    passes("zaeemzadeh/eq-9", found.wrong_sign)
    passes("zaeemzadeh/eq-9", found.divided)
    assert found.diverges > 1e6
    quadratic = trials.quadratic(12, generator())
    passes("zaeemzadeh/eq-9-quadratic", quadratic)
    assert 0.5 < quadratic.worst < 1
    real = trials.coupled_newton_schulz
    monkeypatch.setattr(trials, "coupled_newton_schulz", lambda gram, steps: real(gram, steps - 8))
    fails("zaeemzadeh/eq-9", trials.iteration(20, generator()).divided)


def test_algorithm_passes_and_notices_a_wrong_scale(monkeypatch):
    against, exact = trials.algorithm_1(35, generator())
    passes("zaeemzadeh/algorithm-1", against)
    passes("zaeemzadeh/algorithm-1", exact)
    real = trials.norm_preserving_scale
    monkeypatch.setattr(trials, "norm_preserving_scale", lambda c, d, relu: math.sqrt(d / c))
    fails("zaeemzadeh/algorithm-1", trials.algorithm_1(35, generator())[1])
    monkeypatch.setattr(trials, "norm_preserving_scale", real)
    wrong = trials.project_norm_preserving
    monkeypatch.setattr(trials, "project_norm_preserving", lambda *a: 1.0001 * wrong(*a))
    fails("zaeemzadeh/algorithm-1", trials.algorithm_1(35, generator())[1])


def test_zero_padding_passes_is_attained_and_notices_a_wrong_share(monkeypatch):
    found = trials.zero_padded(60, generator())
    passes("beyond/zero-padding-isometry", found)
    assert found.worst > 1 - 1e-9
    real = trials.border_share
    monkeypatch.setattr(trials, "border_share", lambda K: 0.999 * real(K))
    fails("beyond/zero-padding-isometry", trials.zero_padded(60, generator()))


def test_the_share_at_the_border_counts_the_corners():
    K = torch.randn(3, 2, 3, 4, generator=generator(4), dtype=torch.float64)
    seen = 0.0
    for corner in ((0, 0), (0, 4), (4, 0), (4, 4)):  # of 5 x 5: what one pixel sends out, over what a middle one does
        x = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
        x[torch.arange(2), torch.arange(2), corner[0], corner[1]] = 1
        seen += conv_matrix(K, 5, padding="zeros").matmul(x.flatten(1).mT).square().sum().item() / 4
    assert trials.border_share(K) == pytest.approx(seen / K.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize(("d", "c"), [(4, 2), (2, 2), (1, 3)])
def test_a_search_finds_isometries_of_one_tap_only_with_zeros_around(d, c):
    """Least squares on J^T J = I, or J J^T = I, from random 3 x 3 kernels; on the torus others are found."""
    found = {}
    for padding in ("circular", "zeros"):
        units = torch.eye(9, dtype=torch.float64).view(9, 1, 1, 3, 3)
        maps = torch.stack([conv_matrix(tap, 4, padding=padding) for tap in units])  # of each tap
        found[padding] = []
        for seed in range(4):
            K = torch.randn(d, c, 9, generator=generator(seed), dtype=torch.float64).requires_grad_()
            optimizer = torch.optim.LBFGS([K], max_iter=120, tolerance_change=0, line_search_fn="strong_wolfe")

            def off(K=K, maps=maps, optimizer=optimizer):
                optimizer.zero_grad()
                J = torch.einsum("dct,tpq->dpcq", K, maps).flatten(2).flatten(0, 1)
                gram = J.mT @ J if d >= c else J @ J.mT
                loss = (gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum()
                loss.backward()
                return loss

            optimizer.step(off)
            energies = K.detach().square().sum((0, 1))
            found[padding].append((off().item(), 1 - (energies[4] / energies.sum()).item()))
    # with zeros the loss is of fourth order in the other taps, so that it falls slowly
    near = [others for loss, others in found["zeros"] if loss < 1e-5]
    assert near  # some are found
    assert max(near) < 0.01
    assert max(others for loss, others in found["circular"] if loss < 1e-10) > 0.3


def test_released_code_is_shown_and_a_flipped_kernel_noticed(monkeypatch):
    found = trials.released(10, generator())
    passes("zaeemzadeh/footnote-1-released-code", found.tap)
    passes("zaeemzadeh/footnote-1-released-code", found.unchanged)
    assert found.agrees < 1e-5
    assert float(found.after[0, 0]) > 0.98
    assert float(found.ours.max()) < 0.2
    real = trials.project_norm_preserving
    monkeypatch.setattr(trials, "project_norm_preserving", lambda K, n: real(K, n).flip(-1, -2))
    fails("zaeemzadeh/footnote-1-released-code", trials.released(10, generator()).unchanged)


def test_isometric_kernels_are_isometric_and_use_all_taps():
    gen = generator()
    for d, c in ((2, 2), (5, 5), (6, 3), (1, 1)):
        kernel = trials.isometric_kernel(d, c, gen)
        values = conv_singular_values(kernel, 6)
        assert float((values - math.sqrt(d / c)).abs().max()) < 1e-12
        if d > 1:
            assert float(kernel.square().sum((0, 1)).min()) > 1e-6


def test_crop_table_and_transitions():
    rows = trials.crop_table(generator(), ((16, 2, 6), (4, 4, 6)), (1, 8))
    assert [row[1] for row in rows] == [1, 8, 1, 8]
    assert rows[1][3] > 0.95  # many more outputs: healed
    assert rows[3][3] < 0.8  # square: not
    found = trials.transition(generator(), c=3, n=4)
    assert found["2 x 2"] == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))
    assert found["1 x 1"][0] == pytest.approx(2**-0.5)
    assert found["1 x 1"][1] > 100


def test_experiments_have_the_shapes_of_their_claims():
    found = norm_drift.figure_2(NormStudy(load_images(), DIGITS), [(2, 2), (2, 3), (3, 3)], (0, 1), epochs=1)
    for evidence in (found.projection_helps(), found.many_channels(3), found.few_channels(3), found.passed((3, 3))):
        assert evidence.seeds == (0, 1)
        assert all(map(math.isfinite, evidence.values))
    with_it = found.runs[True][3, 3][0]
    assert with_it.ratio.shape == (28, 1)
    assert np.all(with_it.deviation >= 0)
    assert np.all((with_it.passed > 0) & (with_it.passed <= 1))
    np.testing.assert_allclose(with_it.share, 1)  # as many outputs as inputs: the range is everything
    assert np.all(found.runs[True][2, 3][0].share < 1)
    again = norm_drift.figure_2(NormStudy(load_images(), DIGITS), [(2, 2)], (1,), epochs=1)
    np.testing.assert_array_equal(again.runs[True][2, 2][0].ratio, found.runs[True][2, 2][1].ratio)


def test_ratio_is_that_of_the_two_assumptions_for_pointwise_layers():
    """ratio^2 = 1 / (s^2 f r) for a layer of equal singular values, f and r the two shares."""
    run = follow_three_layers(load_images(), 3, 6, True, (0,), epochs=1, kernel=1)[0]
    projected = slice(0, None, 2)  # after every other step the kernel is exact
    expected = 1 / np.sqrt(4 * run.share * run.passed)
    np.testing.assert_allclose(run.ratio[projected], expected[projected], rtol=1e-3)


def test_energy_assumption_is_one_number_a_seed():
    evidence, runs = norm_drift.energy_assumption(NormStudy(load_images(), DIGITS_TRANSITIONS), (3,), epochs=1, width=2)
    assert len(runs) == 1
    assert runs[0].share.shape == (28, 2)
    assert evidence.values[0] == pytest.approx(2 * float(runs[0].share.mean()))
    assert np.all((runs[0].share > 0) & (runs[0].share < 1))
