"""Trainings of the chapter on the projection: on synthetic images, on a part of CIFAR-10, alone, together, resumed."""

import math
import os
import sys
from dataclasses import fields, replace

import numpy as np
import psutil
import pytest
import torch

from resid._precision import float32_products
from resid.book.checks.norms import norm_drift, norm_study
from resid.book.checks.norms.norm_images import Images, load_images
from resid.book.checks.norms.norm_study import (
    DIGITS,
    PAPER,
    SOURCES,
    NormStudy,
    Passage,
    Recipe,
    follow_three_layers,
    follow_transitions,
)
from resid.book.journal import Journal
from resid.errors import OptionError, ShapeError
from resid.nets.norm_preservation import ProcrustesProjection
from resid.nets.preact import ProcResNet
from resid.nets.three_layers import ThreeLayers
from resid.theory.conv_spectrum import conv_matrix

SMALL = replace(PAPER, batch=20)
needs_files = pytest.mark.skipif(
    "RESID_DATA" not in os.environ, reason="the official files are not here: set RESID_DATA"
)


def pixels(count=60, channels=3, size=8, seed=0):
    """Random images whose class shows in their brightness."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=draw)
    noise = torch.randint(0, 100, (count, channels, size, size), generator=draw)
    return (noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels


def synthetic(**options):
    return Images(*pixels(**options), name="synthetic")


def same(first, second, exactly=True):
    for item in fields(Passage):
        a, b = getattr(first, item.name), getattr(second, item.name)
        if exactly:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=2e-3)


# ---------------------------------------------------------------------------------------------------------------- data


def test_batches_are_standardised_and_laid_out_by_network():
    images, labels = pixels()
    data = Images(images, labels)
    assert data.pixels.dtype == torch.uint8
    index = torch.tensor([[3, 5], [7, 7], [0, 59]])
    x, y = data.batch(index)
    assert x.shape == (3, 6, 8, 8)
    assert x.dtype == torch.float32
    slow = images.double()
    slow = (slow - slow.mean((0, 2, 3), keepdim=True)) / slow.std((0, 2, 3), keepdim=True)
    for i in range(3):
        for net in range(2):
            torch.testing.assert_close(x[i, 3 * net : 3 * net + 3].double(), slow[index[i, net]], rtol=0, atol=1e-5)
            assert y[i, net] == labels[index[i, net]]


@pytest.mark.parametrize("move", [(4, 4, 0), (4, 4, 1), (0, 4, 0), (8, 8, 1), (3, 6, 0)])
def test_a_move_is_a_shift_with_the_mean_outside(move):
    data = synthetic(size=10)
    index = torch.tensor([[11]])
    still = data.batch(index)[0][0]
    moved = data.batch(index, torch.tensor([[move]]))[0][0]
    expected = torch.zeros_like(still)
    for row in range(10):
        for column in range(10):
            a, b = row + move[0] - 4, (9 - column if move[2] else column) + move[1] - 4
            if 0 <= a < 10 and 0 <= b < 10:
                expected[:, row, column] = still[:, a, b]
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)


def test_an_epoch_shows_every_image_once_and_each_seed_has_its_order():
    data = synthetic()
    steps = list(norm_study._steps(data, SMALL, (3, 4), 2))
    assert len(steps) == 6
    index = torch.cat([step[0] for step in steps[:3]])
    moves = torch.cat([step[1] for step in steps])
    assert index.sort(0).values.tolist() == [[i, i] for i in range(60)]
    assert not torch.equal(index[:, 0], index[:, 1])
    assert moves.amin((0, 1)).tolist() == [0, 0, 0]
    assert moves.amax((0, 1)).tolist() == [8, 8, 1]
    alone = list(norm_study._steps(data, SMALL, (4,), 2))
    for together, single in zip(steps, alone, strict=True):
        assert torch.equal(together[0][:, 1:], single[0])
        assert torch.equal(together[1][:, 1:], single[1])


@pytest.mark.parametrize("device", ["gpu", "meta", 3.5, "cuda:x"])
def test_a_device_that_is_none_is_named(device):
    with pytest.raises(OptionError, match=rf'device = {device!r}: "cpu" or "cuda" is needed'):
        Images(*pixels(), device)
    with pytest.raises(OptionError, match="device = "):
        load_images("cifar10", device)  # before a file is looked for


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="device = 'cuda': torch finds no CUDA device"):
        load_images("digits", "cuda")


def test_bad_images_are_refused():
    images, labels = pixels()
    with pytest.raises(ShapeError, match="images has shape"):
        Images(images[:, 0], labels)
    with pytest.raises(ShapeError, match=r"labels \(59,\)"):
        Images(images, labels[1:])
    with pytest.raises(OptionError, match="data = 'cifar'"):
        load_images("cifar")
    with pytest.raises(ShapeError, match="60 images: at least a batch of 64"):
        follow_three_layers(Images(images, labels), 2, 2, False, (0,), 1)
    with pytest.raises(ShapeError, match="size 10: a multiple of 4"):
        follow_transitions(synthetic(size=10), 0, 1, SMALL)


# ----------------------------------------------------------------------------------------------------------- trainings


def test_networks_side_by_side_are_those_alone():
    data = synthetic()
    for projected in (False, True):
        together = follow_three_layers(data, 3, 5, projected, (0, 1, 2), 2, SMALL)
        assert len(together) == 3
        for seed in range(3):
            alone = follow_three_layers(data, 3, 5, projected, (seed,), 2, SMALL)[0]
            same(alone, together[seed], exactly=False)
        assert not np.allclose(together[0].ratio, together[1].ratio)


@pytest.mark.parametrize("size", [5, 6])
def test_measurements_are_those_of_plain_autograd(size):
    """Ratio, share and what passes at the first step, from the dense matrix of the convolution."""
    data, recipe = synthetic(size=size), Recipe(0.01, 20)
    passage = follow_three_layers(data, 2, 3, False, (5,), 1, recipe)[0]
    net = ThreeLayers.of_seeds((5,), c=2, d=3, channels=3).double()
    index, _ = next(norm_study._steps(data, recipe, (5,), 1))
    x, labels = data.batch(index)
    logits, ends = net(x.double())
    loss = torch.nn.functional.cross_entropy(logits[:, 0], labels[:, 0])
    g_in, g_linear, g_out = torch.autograd.grad(loss, ends)
    J = conv_matrix(net.middle.weight.detach(), size)
    torch.testing.assert_close(g_linear.flatten(1) @ J, g_in.flatten(1))
    U = torch.linalg.svd(J, full_matrices=False)[0]
    inside = (g_linear.flatten(1) @ U).square().sum() / g_linear.square().sum()
    assert passage.loss[0] == pytest.approx(loss.item(), rel=1e-4)
    assert passage.ratio[0, 0] == pytest.approx(float(g_out.norm() / g_in.norm()), rel=1e-4)
    assert passage.share[0, 0] == pytest.approx(float(inside), rel=1e-4)
    assert passage.passed[0, 0] == pytest.approx(float((g_linear.norm() / g_out.norm()) ** 2), rel=1e-4)


def test_every_other_step_starts_from_a_projected_layer():
    """ratio^2 = 1 / (s^2 f r) where all singular values of a pointwise layer are s, and not in between."""
    for run in follow_three_layers(synthetic(), 3, 6, True, (0, 1), 3, replace(SMALL, share_every=1), kernel=1):
        gap = np.abs(run.ratio**2 * 4 * run.share * run.passed - 1)[:, 0]
        assert gap[::2].max() < 1e-4
        assert gap[1::2].max() > 1e-3


def test_transitions_are_measured_as_by_plain_autograd():
    data, recipe = synthetic(), Recipe(0.01, 20)
    passage = follow_transitions(data, 3, 1, recipe, blocks=1, width=2)
    torch.manual_seed(3)
    net = ProcResNet(13, 2, channels=3)
    layers = net.linear_convolutions()
    ProcrustesProjection([(layer, 8) for layer in layers]).project()
    ends = []
    for layer in layers[1:]:
        layer.register_forward_hook(lambda _, given, out: ends.extend([given[0], out]))
    index, _ = next(norm_study._steps(data, recipe, (3,), 1))
    x, labels = data.batch(index)
    loss = torch.nn.functional.cross_entropy(net(x), labels[:, 0])
    gradients = torch.autograd.grad(loss, ends)
    assert passage.loss[0] == pytest.approx(loss.item(), rel=1e-4)
    assert np.all(passage.passed == 1)
    for j, layer in enumerate(layers[1:]):
        g_in, g_out = gradients[2 * j : 2 * j + 2]
        columns = torch.linalg.svd(layer.weight.detach()[:, :, 0, 0], full_matrices=False)[0]
        inside = (g_out.movedim(1, -1) @ columns).square().sum() / g_out.square().sum()
        assert passage.share[0, j] == pytest.approx(float(inside), rel=1e-3)
        assert passage.ratio[0, j] == pytest.approx(float(g_out.norm() / g_in.norm()), rel=1e-3)
        assert passage.ratio[0, j] == pytest.approx((2 * float(inside)) ** -0.5, rel=1e-3)


def test_the_share_is_measured_at_some_steps_only():
    data = synthetic(count=240)
    passage = follow_three_layers(data, 2, 4, True, (0,), 1, SMALL)[0]
    assert np.flatnonzero(np.isfinite(passage.share[:, 0])).tolist() == [0, 10]
    assert passage.last_epoch("share")[0] == pytest.approx(float(np.nanmean(passage.share)))
    net = follow_transitions(data, 0, 1, replace(SMALL, share_every=5), blocks=1, width=2)
    assert net.share.shape == net.ratio.shape == (12, 2)
    assert np.isfinite(net.share).all(1).tolist() == [i % 5 == 0 for i in range(12)]
    assert np.all((net.share[::5] > 0) & (net.share[::5] < 1))


def test_training_leaves_the_global_generator_and_the_precision_alone(monkeypatch):
    seen = []
    real = norm_study._backward

    def watching(*given):
        seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
        return real(*given)

    monkeypatch.setattr(norm_study, "_backward", watching)
    state = torch.get_rng_state()
    with float32_products("tf32"):
        follow_three_layers(synthetic(), 2, 2, True, (0,), 1, SMALL)
        follow_transitions(synthetic(), 0, 1, SMALL, blocks=1, width=2)
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert set(seen) == {("ieee", "ieee")}
    assert torch.equal(state, torch.get_rng_state())


def test_a_dead_network_is_drawn_again_and_said_so(monkeypatch):
    real, asked = norm_study.follow_three_layers, []

    def deadly(data, c, d, projected, seeds, *rest):
        asked.append(tuple(seeds))
        found = real(data, c, d, projected, seeds, *rest)
        dead = (1, 1001, 2)
        return [replace(p, ratio=p.ratio * np.nan) if seed in dead else p for p, seed in zip(found, seeds, strict=True)]

    monkeypatch.setattr(norm_study, "follow_three_layers", deadly)
    study = NormStudy(synthetic(), SMALL, together=2)
    found = norm_drift.figure_2(study, [(2, 2)], (0, 1, 2), epochs=1)
    each = [[(0, 1), (2,)], [(1001, 1002)], [(2001,)]]  # draws; without projection, then with it
    assert asked == [seeds for draw in each for seeds in 2 * draw]
    assert [run.seed for run in found.runs[True][2, 2]] == [0, 2001, 1002]
    assert found.redrawn == {(2, 2): 4}
    assert "drawn again since they died: 4 of 2 to 2" in found.few_channels(2).what
    assert not any(run.dead for run in found.runs[False][2, 2])


def test_a_network_that_always_dies_is_an_error():
    study = NormStudy(synthetic(), replace(SMALL, rate=1e6))
    found = norm_drift.figure_2(study, [(2, 2)], (0,), epochs=3)
    assert found.runs[True][2, 2][0].seed == 4000  # the last draw
    assert found.runs[True][2, 2][0].ratio.shape == found.runs[False][2, 2][0].ratio.shape == (9, 1)
    with pytest.raises(ArithmeticError, match="has died"):
        found.few_channels(2)
    with pytest.raises(ArithmeticError, match="of every pair have died"):
        found.projection_helps()


def test_a_pair_that_dies_in_every_draw_is_left_out_on_both_sides_and_said_so(monkeypatch):
    real = norm_study.follow_three_layers

    def deadly(data, c, d, projected, seeds, *rest):
        """Without projection 4 to 2 dies with the seeds 1, 1001, ...; all other deviations are c, with projection d."""
        ratio = math.exp(d if projected else c)
        return [
            replace(p, ratio=np.full_like(p.ratio, np.nan if (c, seed % 1000) == (4, 1) and not projected else ratio))
            for p, seed in zip(real(data, c, d, projected, seeds, *rest), seeds, strict=True)
        ]

    monkeypatch.setattr(norm_study, "follow_three_layers", deadly)
    found = norm_drift.figure_2(NormStudy(synthetic(), SMALL), [(2, 2), (2, 8), (4, 2)], (0, 1), epochs=1)
    helps = found.projection_helps()
    assert helps.values == pytest.approx(((2 + 2 + 4 - 2 - 8 - 2) / 3, (2 + 2 - 2 - 8) / 2))
    assert found.dead == {(4, 2): 1}
    assert "; dead in every draw: 1 of 4 to 2" in helps.what
    assert np.isnan(found.mean(False, (4, 2), "ratio", math.nan)).tolist() == [False, True]


def test_a_network_that_diverges_does_no_harm_to_those_beside_it(monkeypatch):
    real = norm_study.ThreeLayers.of_seeds

    def spoilt(seeds, **shape):
        net = real(seeds, **shape)
        if 1 in seeds:
            with torch.no_grad():
                net.last.weight.unflatten(0, (len(seeds), -1))[list(seeds).index(1)] *= 1e30
        return net

    monkeypatch.setattr(norm_study.ThreeLayers, "of_seeds", spoilt)
    first, second, third = follow_three_layers(synthetic(), 2, 3, True, (0, 1, 2), 2, SMALL)
    assert second.dead
    assert second.ratio.shape == (6, 1)
    monkeypatch.undo()
    same(first, follow_three_layers(synthetic(), 2, 3, True, (0,), 2, SMALL)[0])
    same(third, follow_three_layers(synthetic(), 2, 3, True, (2,), 2, SMALL)[0])


# ------------------------------------------------------------------------------------------------------------- journal


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data, pairs, seeds = synthetic(), [(2, 2), (2, 3)], (0, 1)

    def run(folder):
        journal = Journal("norms-procrustes", SOURCES, folder)
        return norm_drift.figure_2(NormStudy(data, SMALL, journal), pairs, seeds, epochs=1), journal

    whole, _ = run(None)
    real, left = norm_study.follow_three_layers, [3]

    def failing(*given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*given)

    monkeypatch.setattr(norm_study, "follow_three_layers", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(list((tmp_path / "norms-procrustes").glob("*.npz"))) == 3
    monkeypatch.setattr(norm_study, "follow_three_layers", real)
    resumed, journal = run(tmp_path)
    assert (journal.reused, journal.computed) == (3, 5)
    assert resumed.what == f"{whole.what}; 3 of 8 trainings made by an earlier process"
    for projected in (False, True):
        for pair in pairs:
            for a, b in zip(whole.runs[projected][pair], resumed.runs[projected][pair], strict=True):
                same(a, b)
    monkeypatch.setattr(norm_study, "follow_transitions", lambda *given: follow_transitions(*given[:-2], 1, 2))
    first = NormStudy(data, SMALL, Journal("norms-procrustes", SOURCES, tmp_path)).transitions([0], 1)[0]
    monkeypatch.setattr(norm_study, "follow_transitions", None)
    same(first, NormStudy(data, SMALL, Journal("norms-procrustes", SOURCES, tmp_path)).transitions([0], 1)[0])


def test_processes_beside_each_other_find_the_same(tmp_path):
    data, cases, seeds = synthetic(), [((2, 3), True), ((2, 2), False)], (0, 1)
    alone = NormStudy(data, SMALL).three_layers(cases, seeds, 1)
    journal = Journal("norms-procrustes", SOURCES, tmp_path)
    study = NormStudy(data, SMALL, journal, processes=2)
    study.three_layers(cases[1:], seeds[1:], 1)  # a single one, here
    assert (journal.reused, journal.computed) == (0, 1)
    together = study.three_layers(cases, seeds, 1)
    assert journal.computed == 4
    for first, second in zip(alone, together, strict=True):
        assert [one.seed for one in second] == [0, 1]
        for a, b in zip(first, second, strict=True):
            same(a, b, exactly=False)
    again = Journal("norms-procrustes", SOURCES, tmp_path)
    NormStudy(data, SMALL, again, processes=2).three_layers(cases, seeds, 1)
    assert (again.reused, again.computed) == (4, 0)
    nets = study.transitions(seeds, 1, blocks=1, width=2)
    for seed, net in zip(seeds, nets, strict=True):
        same(net, follow_transitions(data, seed, 1, SMALL, blocks=1, width=2), exactly=False)


def test_a_piece_is_of_its_settings(tmp_path):
    """Whatever decides the numbers asks for a training of its own."""
    data = synthetic()
    journal = Journal("norms-procrustes", SOURCES, tmp_path)
    ways = [
        (NormStudy(data, SMALL, journal), ([((2, 2), True)], (0,), 1)),
        (NormStudy(data, SMALL, journal), ([((2, 2), False)], (0,), 1)),
        (NormStudy(data, SMALL, journal), ([((2, 3), True)], (0,), 1)),
        (NormStudy(data, SMALL, journal), ([((2, 2), True)], (7,), 1)),
        (NormStudy(data, SMALL, journal), ([((2, 2), True)], (0,), 2)),
        (NormStudy(data, SMALL, journal), ([((2, 2), True)], (0,), 1, 1)),
        (NormStudy(data, replace(SMALL, rate=0.05), journal), ([((2, 2), True)], (0,), 1)),
        (NormStudy(data, replace(SMALL, moves=False), journal), ([((2, 2), True)], (0,), 1)),
        (NormStudy(synthetic(count=80), SMALL, journal), ([((2, 2), True)], (0,), 1)),
    ]
    for i, (study, given) in enumerate(ways):
        study.three_layers(*given)
        assert journal.computed == i + 1
    ways[0][0].three_layers(*ways[0][1])
    assert journal.computed == len(ways)


# ------------------------------------------------------------------------------------------------------------ CIFAR-10


@needs_files
def test_a_part_of_cifar10_goes_all_the_way():
    whole = load_images("cifar10")
    assert (len(whole), whole.channels, whole.size, whole.name) == (50_000, 3, 32, "cifar10")
    assert whole.pixels.dtype == torch.uint8
    x, _ = whole.batch(torch.arange(2000)[:, None])
    assert x.mean((0, 2, 3)).abs().max() < 0.05
    part = Images(whole.pixels[:300], whole.labels[:300], name="part of cifar10")
    study = NormStudy(part, replace(PAPER, batch=50))
    found = norm_drift.figure_2(study, [(2, 2), (2, 4), (4, 4)], (0, 1), epochs=1)
    for evidence in (found.projection_helps(), found.many_channels(4), found.few_channels(4), found.passed((4, 4))):
        assert "part of cifar10" in evidence.what
        assert np.isfinite(evidence.values).all()
    assert found.runs[True][2, 2][0].ratio.shape == (6, 1)
    evidence, runs = norm_drift.energy_assumption(study, (0,), epochs=1, width=2)
    assert runs[0].share.shape == (6, 2)
    assert 0 < evidence.values[0] < 2


def test_the_digits_are_learned():
    run = follow_three_layers(load_images(), 8, 8, True, (0,), 6, replace(DIGITS, rate=0.1))[0]
    assert run.loss[-5:].mean() < 0.7 * run.loss[:5].mean()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how memory is handed back depends on the system")
def test_memory_does_not_grow_with_the_steps(monkeypatch):
    """Batches of the size of CIFAR-10's: a small tensor kept at each step made it grow by 5 MiB a step."""
    resident, backward = [], norm_study._backward

    def watched(*arguments):
        resident.append(psutil.Process().memory_info().rss)
        return backward(*arguments)

    monkeypatch.setattr(norm_study, "_backward", watched)
    data = synthetic(count=128 * 10, size=32)
    follow_three_layers(data, 32, 32, False, [0], 8, replace(PAPER, share_every=10**6))
    assert len(resident) == 80
    assert max(resident[60:]) - max(resident[20:40]) < 60 * 2**20
