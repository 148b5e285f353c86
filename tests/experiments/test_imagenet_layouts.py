"""The search for the paper's layout on ImageNet: its formula against networks as they are built, and what it finds."""

import numpy as np
import pytest
import torch

from resid.book.experiments.imagenet_layouts import (
    BLOCKS,
    PRINTED,
    Layout,
    count_layout,
    families,
    nearest_widths,
    paper_run,
    parameter_evidence,
)
from resid.errors import DepthError, OptionError
from resid.nets.allconv import AllConvResNet
from resid.training.recipe import build_network
from resid.training.recipes import IMAGENET_WIDTHS, RECIPES, WIDE_WIDTHS
from tests.checks.helpers import passes


def trainable(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize(("blocks", "widths"), [(BLOCKS, IMAGENET_WIDTHS), ((1, 3), (6, 10, 14)), ((2,), (8, 8))])
def test_the_formula_counts_networks_as_they_are_built(blocks, widths, kernel, trained):
    with torch.device("meta"):
        network = AllConvResNet(1000, 3, blocks, widths, (kernel, 2), [2] * len(blocks), fixed_head=not trained)
    assert count_layout(blocks, widths, kernel, trained) == trainable(network)


def test_projections_count_where_the_width_changes():
    plain, more = (count_layout((1, 1, 2), (4, 4, 8, 16), projections=p) for p in (False, True))
    assert more - plain == 4 * 8 + 8 * 16


def test_all_layouts_at_once_are_counted_as_one_by_one():
    widths = np.array([[64, 64, 96, 128, 160], [64, 64, 64, 64, 96]])
    for choice in ((7, False, True), (3, True, False)):
        together = count_layout(BLOCKS, widths.T, *choice)
        assert together.tolist() == [count_layout(BLOCKS, w.tolist(), *choice) for w in widths]


def test_the_search_is_whole_and_its_best_counts_what_it_says():
    found = families()
    assert [family.tried for family in found] == [8, 33 * 8, 46_376 * 8, 8**4 * 8, 12 * 8]
    for family in found:
        layout = family.nearest
        assert count_layout(layout.blocks, layout.widths, layout.kernel, layout.trained_head, layout.projections) == (
            family.parameters
        )
        assert (family.fit > 0) == (abs(family.parameters - PRINTED) <= 5e4)
    assert found[0].fit == 0, "the widths of the 34-layer network do not make 35.7 million"
    assert str(found[0].nearest).startswith("blocks (3, 4, 6, 3), widths (64, 64, 128, 256, 512), stem of 7, ")


def test_how_many_fit_is_counted_one_by_one():
    """A small family again, by a plain loop."""
    tried = fit = 0
    for base in range(64, 129, 2):
        widths = (base, base, 2 * base, 4 * base, 8 * base)
        for kernel in (3, 7):
            for head in (False, True):
                for projections in (False, True):
                    tried += 1
                    fit += abs(count_layout(BLOCKS, widths, kernel, head, projections) / 1e6 - 35.7) <= 0.05
    assert (tried, fit) == families()[1][1:3]


def test_the_wide_recipe_has_the_nearest_widths_that_fit():
    assert nearest_widths() == WIDE_WIDTHS
    with torch.device("meta"):
        count = trainable(build_network(RECIPES["imagenet-paper-wide"]))
    assert round(count / 1e6, 1) == 35.7
    away = np.abs(np.log(np.array(WIDE_WIDTHS) / np.array(IMAGENET_WIDTHS))).sum()
    closer = []
    for last in range(64, 1025, 32):  # with the two middle widths of the answer, none nearer fits
        widths = (64, 64, 192, 256, last)
        fits = abs(count_layout(BLOCKS, widths) / 1e6 - 35.7) <= 0.05
        closer.append(fits and np.abs(np.log(np.array(widths) / np.array(IMAGENET_WIDTHS))).sum() < away)
    assert not any(closer)


def test_the_claim_is_about_the_network_that_is_trained():
    found = parameter_evidence((0, 1))
    assert found.values == (21.095616, 21.095616)
    passes("hardt-ma/section-4.2-parameters", found)
    assert trainable(build_network(RECIPES["imagenet-paper"])) == 21_095_616


def test_the_papers_run_in_numbers():
    run = paper_run()
    assert (run.images, round(run.epochs, 2)) == (179_200_000, 139.87)
    assert run.last_rate == pytest.approx(0.1 * 0.94**69)
    assert run.images_per_second == pytest.approx(179_200_000 / (48 * 604_800))


def test_layouts_of_the_network():
    torch.manual_seed(0)
    network = AllConvResNet(7, 3, (2, 1, 3), (8, 8, 12, 16), (7, 2), (2, 2, 1))
    assert [len(stage) for stage in network.stages] == [2, 1, 3]
    shapes = []
    for stage in network.stages:
        stage.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(8, 8, 8), (12, 4, 4), (16, 4, 4)]
    assert network.stem.weight.shape == (8, 3, 7, 7)
    wide = AllConvResNet(7, 3, 1, (512, 512), (7, 2))
    assert float(wide.stem.weight.detach().std()) == pytest.approx((2 / (49 * 512)) ** 0.5, rel=0.05)
    short, long = AllConvResNet(blocks=2), AllConvResNet(blocks=(2, 2, 2), stem=(3, 1), strides=(1, 2, 2))
    assert [p.shape for p in short.parameters()] == [p.shape for p in long.parameters()]
    assert [m.stride for m in short.blocks()] == [m.stride for m in long.blocks()]
    for bad, message in (
        ({"blocks": (1, 2)}, r"blocks = \(1, 2\): one number for each of the 3 stages"),
        ({"strides": (1,)}, r"strides = \(1,\): one number for each"),
        ({"stem": (4, 1)}, r"stem = \(4, 1\): an odd kernel"),
        ({"stem": (3,)}, r"stem = \(3,\)"),
        ({"stem": (3, 0)}, r"stem = \(3, 0\)"),
    ):
        with pytest.raises(OptionError, match=message):
            AllConvResNet(**bad)
    with pytest.raises(DepthError, match="blocks"):
        AllConvResNet(blocks=(1, 0, 1))


def test_layouts_have_words():
    assert str(Layout((1,), (2, 4), 3, True, True)) == (
        "blocks (1,), widths (2, 4), stem of 3, trained head, projections"
    )
