"""Every measure on made-up metrics, with the number worked out by hand; counts; parts."""

import json
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from resid.book.experiments import counts as cifar_counts
from resid.book.experiments import overhead as cifar_overhead
from resid.book.experiments import parts as cifar_parts
from resid.book.experiments.measures import MEASURES, takes_depths
from resid.book.experiments.parts import chapters, evidence, get_part, parts_of, recipes_for
from resid.book.journal import Journal
from resid.errors import OptionError
from resid.ledger import Cases, Counterexample, Record, Seeds, Verdict, claims, get_claim, record
from resid.ledger.store import Entry
from resid.nets.preact import PreActResNet, ProcResNet
from resid.training.recipe import RecipeError
from resid.training.recipes import RECIPES
from resid.training.sweep import UnfinishedError
from tests.checks.helpers import passes
from tools.paths import ROOT

E = math.e


def run(test, train=None, loss=None, ratios=None, norms=None, steps=1, branches=None):
    """Metrics of epochs: errors in percent, gradient ratios by block for each epoch, weight norms, branches."""
    train = [0.0] * len(test) if train is None else train
    found = []
    for i, (a, b) in enumerate(zip(test, train, strict=True)):
        line = {"epoch": i + 1, "step": steps * (i + 1), "test_error": a / 100, "train_error": b / 100}
        line |= {"loss": loss[i] if loss else 1.0, "weight_norm": norms[i] if norms else 1.0}
        if ratios:
            line["ratios"] = ratios[i]
        if branches and branches[i]:
            line["branches"] = branches[i]
        found.append(line)
    return found


def image_run(test, top5, plain):
    """One epoch on image files, errors in percent."""
    (line,) = run([test])
    return [{**line, "test_top5_error": top5 / 100, "plain_train_error": plain / 100}]


def gone(epoch=1):
    """The end of a run that diverged."""
    end = {"epoch": epoch, "step": epoch, "diverged": True, "loss": math.inf, "test_loss": math.inf}
    end |= {"test_top5_error": 0.5, "plain_train_error": 0.9}
    return [*run([50.0] * (epoch - 1)), {**end, "train_error": 0.9, "test_error": 0.9}]


def blocks(**powers):
    """Gradient ratios e^p of blocks; `a` and `b` have identity skips, s is the stem, t0 to t2 are transitions."""
    names = {"a": "stages.0.0", "b": "stages.1.0", "s": "stem"} | {f"t{i}": f"transitions.{i}" for i in range(3)}
    return {names[key]: E**power for key, power in powers.items()}


def zigzag(size, base=20.0, length=100):
    """Test errors that go up and down by `size`, after ten wild epochs."""
    return run([90.0 if i % 2 else 10.0 for i in range(10)] + [base + size * (i % 2) for i in range(length - 10)])


# changes of +-d, 89 of them, 45 up: their standard deviation is d times this
SPREAD = math.sqrt((89 - 1 / 89) / 88)
BEST_FIRST = run([5.0, 30.0], [1.0, 10.0])  # the best epoch is not the last
OTHER = run([40.0, 28.0], [2.0, 12.5])
#: claim -> (runs in the order of the recipes, the number)
EXPECTED = {
    "hardt-ma/section-4.1-initialization-helps": ([BEST_FIRST, OTHER], 30 - 28),
    "hardt-ma/section-4.1-fixed-projection": ([OTHER, BEST_FIRST], 28 - 30),
    "hardt-ma/section-4.1-no-overfitting": ([run([9.0, 5.0, 6.5])], 6.5 - 5),
    "hardt-ma/section-4.1-batch-norm-overfits": ([BEST_FIRST, OTHER], (30 - 10) - (28 - 12.5)),
    "hardt-ma/section-4.2-top-5": ([[{"test_top5_error": 0.5}, *image_run(30.0, 12.0, 40.0)]], 12),
    "hardt-ma/section-4.2-underfits": ([[{"plain_train_error": 0.5}, *image_run(30.0, 12.0, 40.0)]], 40),
    "hardt-ma/section-4.1-peak-steps": ([run([9, 6.3, 7, 6.2, 6.0, 6.1], steps=10_000)], 40),
    "hardt-ma/figure-1-left": (
        [run([50.0] * 27 + [20, 21, 22] + [0] + [10, 12, 14] + [0, 0], steps=1000)], (20 + 21 + 22) / 3 - 12),
    "hardt-ma/figure-1-right": (
        [run([90.0] * 27 + [40, 40, 40] + [0] + [30, 31, 32] + [0, 0], steps=1000)], 40 - 31),
    "li/figure-2": (
        [run([1] * 200, norms=[depth**-0.5] * 199 + [depth**0.25]) for depth in (20, 56, 110)], 0.25),
    "li/figure-9-length-1": ([BEST_FIRST, OTHER], 28 - 30),
    "li/figure-9-length-2": ([BEST_FIRST, OTHER], 30 - 28),
    "li/figure-9-length-3": ([BEST_FIRST, OTHER], 28 - 30),
    "li/figure-9-length-4": ([BEST_FIRST, OTHER], 28 - 30),
    "li/figure-9-longer": ([BEST_FIRST, OTHER], 30 - 28),
    "zaeemzadeh/section-4-every-two-iterations": ([OTHER, BEST_FIRST], 28 - 30),
    "zaeemzadeh/figure-3-plain164-unstable": ([gone(7)], 7),
    "zaeemzadeh/figure-3-plain-diverges": (
        [run([1, 1, 1], ratios=[blocks(a=0.5, b=-1), blocks(a=-3, b=0), blocks(a=1, b=1)])], 3 - 1),
    "zaeemzadeh/figure-3-plain-depth": (
        [run([1, 1], ratios=[blocks(a=2, t0=-4), blocks(a=0, t0=-2)]), run([1], ratios=[blocks(a=-1, b=0)])], 2 - 0.5),
    "zaeemzadeh/figure-3-residual-depth": (
        [run([1], ratios=[blocks(a=p, b=-p, s=50, t0=70, t1=80, t2=90)]) for p in (5, 2, 1, 0.5)], 0.5),
    "zaeemzadeh/section-4.1-worst-block": (
        [run([1, 1], ratios=[blocks(a=a, b=-2, t0=9, t1=9, t2=9), blocks(a=40, b=0)]) for a in (1, 5)], 2 - 5),
    "zaeemzadeh/figure-3-plain83-one-block": (
        [run([1] * 7, ratios=[blocks(t0=2, a=1, t1=-1.5)] * 4 + [blocks(t0=-4, a=0, t1=1)]
             + [blocks(t0=30, a=99, t1=99)] * 2)], 4 - 1.5),
    "zaeemzadeh/figure-3-plain83-large": (
        [run([1] * 7, ratios=[blocks(t0=-18, a=1, t1=1.5)] * 4 + [blocks(t0=-1, a=0, t1=1)]
             + [blocks(t0=30, a=99, t1=99)] * 2)], -1 - 1.5),
    "zaeemzadeh/figure-3-depth-20-alike": (
        [run([1], ratios=[blocks(a=0.25, t0=-0.75)]), run([1], ratios=[blocks(a=0.25, t0=0.5)])], 0.5 - 0.375),
    "zaeemzadeh/figure-3-depth-20-procresnet": (
        [run([1], ratios=[blocks(a=0.25, t0=-0.75)]), run([1], ratios=[blocks(a=0.25, s=2)])], 0.5 - 1.125),
    "zaeemzadeh/figure-3-procresnet-stem": (
        [run([1, 1], ratios=[blocks(s=3, a=1, t1=2, t2=0), blocks(s=-1, a=-2, t1=-1, t2=0)])], 2 - 1.5),
    "zaeemzadeh/figure-3-procresnet-transitions": (
        [run([1, 1], ratios=[blocks(t0=9, t1=1, t2=-2, a=8), blocks(t0=9, t1=0, t2=0, a=8)]),
         run([1, 1], ratios=[blocks(s=9, t1=0, t2=0, a=8), blocks(s=9, t1=-0.5, t2=0.25, a=8)])], 2 - 0.5),
    "zaeemzadeh/figure-3-around-one": (
        [run([1, 1], ratios=[{"a": 0.5, "b": 0.7}, {"a": 0.9, "b": 9.0}])] + [run([1], ratios=[{"a": 1.1}])] * 7,
        1 - 0.8),
    "zaeemzadeh/figure-4-plain-train": ([BEST_FIRST, OTHER], 10 - 12.5),
    "zaeemzadeh/figure-4-residual-train": (
        [run([1, 1], loss=[0, last]) for last in (0.9, 0.8, 0.5, 0.6, 0.4, 0.3)], 0.1),
    "zaeemzadeh/figure-4-resnet-fluctuation": ([zigzag(3.0), zigzag(1.0)], 2 * SPREAD),
    "zaeemzadeh/figure-4-procresnet-smaller": ([zigzag(1.0), zigzag(3.0)], -2 * SPREAD),
    "zaeemzadeh/figure-4-procresnet-fluctuation": ([zigzag(3.0), zigzag(2.0, base=70.0)], 1.5),
    "zaeemzadeh/table-1-smaller-gap": (
        [run([a, a + 4], [0, 0]) for a in (9, 5, 8, 6, 7, 1)], 8 - 6),
    "zaeemzadeh/table-1-smaller-fluctuation": (
        [run([10, 10 + d], [0, 0]) for d in (8, 2, 6, 2, 2, 4)], (2 - 4) / 2),
    "zaeemzadeh/table-2-better-cifar10": ([run([1, e]) for e in (6.0, 5.0, 4.0, 4.5)], -0.5),
    "zaeemzadeh/table-2-better-cifar100": ([run([1, e]) for e in (26.0, 25.0, 24.0, 20.5)], 1.0),
    "zaeemzadeh/table-3-architecture-helps": ([BEST_FIRST, OTHER], 30 - 28),
    "zaeemzadeh/table-3-projection-helps": ([OTHER, BEST_FIRST], 28 - 30),
    "beyond/allconv-bfloat16": ([OTHER, BEST_FIRST], 28 - 30),
    "beyond/procresnet-released": ([OTHER, BEST_FIRST], 28 - 30),
    "beyond/shortcut-length-depth-74": ([run([1, e]) for e in (6.0, 9.0, 7.0, 5.5)], -0.5),
    "beyond/shortcut-length-depth-110": ([run([1, e]) for e in (6.0, 9.0, 7.5, 7.0)], 1.0),
    "beyond/shortcut-length-zero-start": (
        [run([1, 1], loss=[0, last]) for last in (0.9, 0.5, 0.7, 0.8, 2.0, 0.75, 0.6, 0.7, 0.8, 2.0, 3.0, 0.65)], 0.1),
    "beyond/shortcut-small-start": (
        [run([1, 1], loss=[0, last]) for last in (0.9, 0.5, 0.7, 0.8, 2.0, 0.75, 0.6, 0.7, 0.8, 2.0, 3.0, 0.65)], 0.1),
    "beyond/shortcut-small-start-longer": (
        [run([1, 1], loss=[0, last]) for last in (0.9, 0.5, 0.7, 0.75, 0.6, 0.7, 0.8, 2.0, 0.65)], 0.1),
    "beyond/allconv-branches": (
        [run([1] * 3, branches=[{"a": 9.0, "b": 9.0}, {"a": 0.5, "b": 1.5}, None])], 1.5),
    "beyond/allconv-preserves-norms": ([run([1, 1], ratios=[blocks(a=9, s=9), blocks(a=0.25, s=-0.75)])], 0.5),
    "beyond/shortcut-branches": (
        [run([1, 1, 1], branches=[{"a": depth**-0.2}, {"a": 7.0}, {"a": 0.5 * depth**-0.5, "b": 1.5 * depth**-0.5}])
         for depth in (20, 56, 110)], -0.3),
}  # fmt: skip
TRAINED = {claim.id: claim for claim in claims() if claim.recipes}
for name in TRAINED:  # rows of tables: 100 epochs count for Table 1, the last one for the others
    if name.startswith("zaeemzadeh/table-1-") and name not in EXPECTED:
        number = 5.0 if name.endswith("-mean") else 10.0
        EXPECTED[name] = [run([10.0, 20.0] * 50 + [99.0], [10.0] * 100 + [0.0])], number
    elif name not in EXPECTED:
        EXPECTED[name] = [BEST_FIRST], 30.0


def measured(name, runs):
    """The number of a claim."""
    measure = MEASURES[TRAINED[name].measure]
    depths = [recipe.network_options.get("depth") for recipe in recipes_for(name)]
    return measure(runs, depths) if takes_depths(measure) else measure(runs)


def test_every_experiment_has_recipes_that_exist_and_a_measure():
    """But for those that only count, or time a few steps."""
    for claim in claims():
        trains = claim.chapter.startswith("experiments/") and claim.kind == "experiment"
        if trains and claim.part not in ("parameters", "overhead"):
            assert claim.recipes, claim.id
        assert set(claim.recipes + claim.small) <= set(RECIPES), claim.id
        assert not claim.recipes or claim.measure in MEASURES, claim.id
    assert {claim.measure for claim in TRAINED.values()} == set(MEASURES)
    with pytest.raises(OptionError, match="no recipe trains for it"):
        recipes_for("hardt-ma/table-1-parameters")


@pytest.mark.parametrize("name", TRAINED)
def test_measures(name):
    given, number = EXPECTED[name]
    assert len(given) == len(TRAINED[name].recipes)
    assert measured(name, given) == pytest.approx(number, abs=1e-9)


#: Numbers of one run on ImageNet, after its last epoch.
IMAGENET = {name for name, claim in TRAINED.items() if claim.recipes == ("imagenet-paper",)}
#: What looks at the last epoch alone.
AT_THE_END = {name for name in TRAINED if "/table-2-" in name or "/table-3-" in name or "/figure-9-" in name} | {
    "hardt-ma/section-4.1-initialization-helps", "hardt-ma/section-4.1-fixed-projection",
    "hardt-ma/section-4.1-batch-norm-overfits", "hardt-ma/intro-competitive-with-resnet",
    "zaeemzadeh/section-4-every-two-iterations", "zaeemzadeh/figure-4-plain-train", "zaeemzadeh/figure-5-procresnet274",
    "beyond/allconv-bfloat16", "beyond/procresnet-released", "beyond/allconv-modern-cifar10",
    "beyond/allconv-modern-cifar100", "beyond/shortcut-length-depth-74", "beyond/shortcut-length-depth-110",
    "beyond/shortcut-length-zero-start", "beyond/shortcut-small-start", "beyond/shortcut-small-start-longer",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_that_diverged(name):
    """Guessing where the last error counts, the epoch for the claim about it, and no number where epochs matter."""
    given, number = EXPECTED[name]
    for several in ([gone(4), *given[1:]], [*given[:-1], gone(4)]):
        if name == "zaeemzadeh/section-4.1-worst-block":
            continue  # the first epoch is all it looks at
        if name.startswith(("beyond/shortcut-length", "beyond/shortcut-small")):
            continue  # see below
        found = measured(name, several)
        if name == "zaeemzadeh/figure-3-plain164-unstable":
            assert found == 4
        elif name in IMAGENET:
            assert found == (50 if name.endswith("top-5") else 90)
        elif name in AT_THE_END:
            wrong = [
                run([line["test_error"] * 100 for line in r], [line["train_error"] * 100 for line in r])
                for r in several
            ]
            assert found == measured(name, wrong)
            assert found != number or "better" in name
        else:
            assert math.isnan(found)
    first = measured(name, [gone(1), *given[1:]])
    tells = name in AT_THE_END and "shortcut-length-depth" not in name
    assert math.isnan(first) == (not tells and name not in IMAGENET | {"zaeemzadeh/figure-3-plain164-unstable"})


def test_a_ratio_that_is_no_number_shows():
    for name in TRAINED:
        given, _ = EXPECTED[name]
        for what in {"ratios", "branches"} & given[0][0].keys():
            spoilt = [{**line, what: dict.fromkeys(line.get(what, ()), math.nan)} for line in given[0] if what in line]
            assert math.isnan(measured(name, [spoilt, *given[1:]])), name


def test_a_rate_that_diverges_is_not_the_best_one():
    measure = MEASURES[TRAINED["beyond/shortcut-length-zero-start"].measure]
    given, number = EXPECTED["beyond/shortcut-length-zero-start"]
    assert measure([gone(4), *given[1:]]) == pytest.approx(number)
    assert measure([given[0], gone(4), *given[2:]]) == pytest.approx(0.6 - 0.7)
    assert math.isnan(measure([gone(4)] * 3 + given[3:]))  # where nothing was learned nothing is compared
    assert measure([*given[:3], *[gone(4)] * 9]) == pytest.approx(math.log(10) - 0.5)


@pytest.mark.parametrize("depth", [74, 110])
def test_a_length_that_diverges_is_not_the_best_one(depth):
    measure = MEASURES[TRAINED[f"beyond/shortcut-length-depth-{depth}"].measure]
    given, number = EXPECTED[f"beyond/shortcut-length-depth-{depth}"]
    assert math.isnan(measure([gone(4), *given[1:]]))
    assert measure([*given[:-1], gone(4)]) == pytest.approx(min(7.0 if depth == 74 else 7.5, 9.0) - 6.0)
    assert measure([given[0], gone(4), *given[2:]]) == pytest.approx(number)


def test_stable_plain_network_counts_as_a_hundred_epochs():
    assert measured("zaeemzadeh/figure-3-plain164-unstable", [run([1.0] * 100)]) == 100


def test_peak_step_at_the_ends():
    measure = MEASURES["steps to the peak"]
    assert measure([run([6.1, 6.0, 6.2], steps=1000)]) == 1
    assert measure([run([9.0, 6.2, 6.0], steps=1000)]) == 2  # a difference of 0.2 is within
    assert measure([run([9.0, 6.3, 6.0], steps=1000)]) == 3
    assert math.isnan(measured("hardt-ma/figure-1-left", [run([1.0, 2.0])]))  # too short


def test_evidence_pairs_seeds_and_names_recipes():
    plain, small = TRAINED["hardt-ma/section-4.1-initialization-helps"].recipes
    runs = {(plain, 0): run([7.0]), (small, 0): run([6.5]), (plain, 1): run([6.0]), (small, 1): run([8.0])}
    found = evidence("hardt-ma/section-4.1-initialization-helps", runs, (0, 1))
    assert isinstance(found, Seeds)
    assert found.values == pytest.approx((0.5, -2.0))
    assert found.seeds == (0, 1)
    assert RECIPES[small].hash in found.what
    assert found.malformed(get_claim("hardt-ma/section-4.1-initialization-helps")) == []
    with pytest.raises(OptionError, match="no runs of hardt-ma-cifar10-standard seed 2"):
        evidence("hardt-ma/section-4.1-initialization-helps", runs, (2,))
    with pytest.raises(OptionError, match="names no recipes"):
        evidence("hardt-ma/table-1-parameters", runs, (0,))
    with pytest.raises(OptionError, match="names no small recipes"):
        evidence("hardt-ma/table-2-cifar10", runs, (0,), small=True)


def test_small_networks_take_their_own_depths_and_epochs():
    runs = {
        (name, 0): run([1, 1, 1], norms=[depth**0.1, depth**-1.0, depth**-2.0])
        for name, depth in zip(TRAINED["li/figure-2"].small, (20, 38, 74), strict=True)
    }
    assert evidence("li/figure-2", runs, (0,), small=True).values == (pytest.approx(0.1),)


def test_small_networks_take_their_own_depths_for_branches():
    runs = {
        (name, 0): run([1, 1], branches=[{"a": depth**0.1}, {"a": depth**-0.3}])
        for name, depth in zip(TRAINED["beyond/shortcut-branches"].small, (20, 38, 74), strict=True)
    }
    assert evidence("beyond/shortcut-branches", runs, (0,), small=True).values == (pytest.approx(-0.4),)


def test_a_ratio_far_below_one_stands_out_and_is_not_large():
    """The fault of an absolute value: the measure of what is large has a sign."""
    small = {"transitions.0": 1e-8, "a": 1.5, "b": 0.8}
    for turned in (False, True):
        metrics = run([1], ratios=[{k: 1 / v if turned else v for k, v in small.items()}])
        assert measured("zaeemzadeh/figure-3-plain83-one-block", [metrics]) > 15
        assert (measured("zaeemzadeh/figure-3-plain83-large", [metrics]) > 0) == turned


def test_the_record_says_which_way_the_ratios_of_the_first_block_go():
    claim = "zaeemzadeh/figure-3-plain83-one-block"
    (name,) = TRAINED[claim].recipes
    runs = {
        (name, 0): run([80, 70], ratios=[{"transitions.0": 0.5, "a": 1.5}, {"transitions.0": 1e-8, "a": 0.75}]),
        (name, 1): run([90], ratios=[{"transitions.0": 30.0, "a": 1.0, "transitions.1": 2.0}]),
    }
    found = evidence(claim, runs, (0, 1))
    assert found.values == pytest.approx((math.log(1e8) - math.log(1.5), math.log(30) - math.log(2)))
    what, *remarks = found.what.split("; ")
    assert what == f"{name} ({RECIPES[name].hash})"
    assert [remark.rpartition(", training error")[0] for remark in remarks] == [
        "seed 0: out/in, first block from 1e-08 to 0.5, others from 0.75 to 1.5",
        "seed 1: out/in, first block from 30 to 30, others from 1 to 2",
    ]


def test_digits_stand_in_for_the_right_networks():
    """Same kind, same order: where the paper's recipe has a network, the small one has the same constructor."""
    for claim, entry in TRAINED.items():
        names, papers_names = entry.small, entry.recipes
        if not names:
            continue
        if claim.startswith(("beyond/shortcut-length-zero", "beyond/shortcut-small")):  # one rate, not three
            papers_names = papers_names[::3]
        full = [RECIPES[name].network for name in papers_names]
        small = [RECIPES[name].network for name in names]
        assert small == full or claim == "zaeemzadeh/figure-3-around-one", claim
        assert {RECIPES[name].dataset for name in names} == {"images" if claim in IMAGENET else "digits"}
        assert get_claim(claim).smoke is not None
        for a, b in zip(papers_names, names, strict=claim != "zaeemzadeh/figure-3-around-one"):
            ours, papers = (dict(RECIPES[name].options) for name in (b, a))
            for option in ("init", "fixed_head", "batch_norm", "length"):
                assert ours.get(option) == papers.get(option), (claim, option)
    deeper = {"zaeemzadeh/figure-3-plain-depth", "zaeemzadeh/figure-4-plain-train"}
    for claim in deeper:
        depths = [RECIPES[name].network_options["depth"] for name in TRAINED[claim].small]
        assert depths == sorted(depths, reverse=True)


@pytest.mark.parametrize("chapter", chapters())
def test_every_claim_of_a_chapter_is_in_one_part(chapter):
    listed = [claim.id for part in parts_of(chapter).values() for claim in part.claims]
    assert sorted(listed) == sorted(claim.id for claim in claims() if claim.chapter == chapter)
    for part in parts_of(chapter).values():
        assert part.trains == (part.name not in ("counts", "parameters", "overhead"))
        for claim in part.claims:
            assert (claim.kind == "experiment") == (part.name != "counts"), claim.id
            assert bool(claim.recipes) == part.trains, claim.id
    assert {p.name for p in parts_of(chapter).values() if p.of_a_precision} == {
        name for name in ("bfloat16", "modern-cifar10", "modern-cifar100") if name in parts_of(chapter)
    }


def test_finished_parts_need_every_seed(tmp_path, monkeypatch):
    chapter = "experiments/shortcut_depth_cifar"
    there = {(f"li-figure-2-{depth}", seed) for depth in (20, 56, 110) for seed in (0, 1, 2)}
    both = ("figure-2", "branches")

    def finished(names, seeds, folder):
        assert folder == tmp_path
        return {key: [] for key in there if key[0] in names and key[1] in seeds}

    monkeypatch.setattr(cifar_parts, "finished_runs", finished)

    def over(count):
        return tuple(p.name for p in parts_of(chapter).values() if p.finished(count, folder=tmp_path))

    assert over(0) == both
    assert over(4) == ()
    there.remove(("li-figure-2-56", 1))
    assert over(0) == ()
    assert over(1) == both
    assert cifar_parts.seeds_of(get_claim("li/figure-9-longer")) == (0, 1, 2, 3, 4)
    assert cifar_parts.seeds_of(get_claim("li/figure-9-longer"), 2, first=7) == (7, 8)


def test_a_chapter_records_the_part_it_is_given_or_all_that_are_finished(tmp_path, monkeypatch):
    chapter, done = "experiments/shortcut_depth_cifar", []
    monkeypatch.setattr(cifar_parts.book, "record", lambda claim, measured: done.append(claim))
    monkeypatch.setattr(cifar_parts.book, "finish", lambda: done.append("end"))
    monkeypatch.setattr(cifar_parts.Part, "start", lambda part, *given: done.append((part.name, given)) or (0,))
    monkeypatch.setattr(
        cifar_parts.Part, "evidence", lambda part, *given, **options: [(part.claims[0].id, options["nproc"])]
    )
    monkeypatch.setattr(cifar_parts, "finished_runs", lambda recipes, seeds, *_: {(n, 0): [] for n in recipes})
    runs = cifar_parts.run_parts(chapter, "branches", count=1, compute="compile=default", nproc=2)
    assert list(runs) == [(f"li-figure-2-{depth}", 0) for depth in (20, 56, 110)]
    assert done == [("branches", (1, 0, "compile=default")), "beyond/shortcut-branches", "end"]
    with pytest.raises(OptionError, match=r"PART = 'figure-3': .* has figure-2, counts, figure-9"):
        cifar_parts.run_parts(chapter, "figure-3", nproc=2)
    done.clear()
    monkeypatch.setattr(
        cifar_parts.Part, "finished", lambda part, *given, **more: part.name in ("figure-2", "branches")
    )
    cifar_parts.run_parts(chapter, nproc=2)
    assert [d[0] for d in done if isinstance(d, tuple)] == ["figure-2", "branches"]


@pytest.mark.parametrize(
    ("count", "first", "seeds", "name"),
    [
        (0, 0, (0, 1, 2), "figure-2.partial"),
        (2, 0, (0, 1), "figure-2.seeds-0-1.partial"),
        (1, 2, (2,), "figure-2.seeds-2.partial"),
        (0, 3, (3, 4, 5), "figure-2.seeds-3-4-5.partial"),
    ],
)
def test_some_seeds_of_a_part_have_a_record_of_their_own(tmp_path, monkeypatch, count, first, seeds, name):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    assert get_part("experiments/shortcut_depth_cifar", "figure-2").start(count, first) == seeds
    record("li/figure-2", Seeds([1.0] * len(seeds), seeds, "made up"))
    assert [path.name for path in tmp_path.iterdir()] == [f"experiments-shortcut_depth_cifar.full.{name}"]


def test_a_record_has_the_precision_of_its_recipes(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    for precision, told in (("fp32", "float32"), ("bf16", "bfloat16")):
        recipes = {name: recipe.replace(precision=precision) for name, recipe in RECIPES.items()}
        monkeypatch.setattr(cifar_parts, "RECIPES", recipes)
        get_part("experiments/shortcut_depth_cifar", "figure-2").start()
        record("li/figure-2", Seeds([1.0], [0], "made up"))
        (path,) = tmp_path.iterdir()
        assert json.loads(path.read_text())["precision"] == told


def test_evidence_says_on_what_it_was_trained():
    claim = "zaeemzadeh/table-2-resnet1001-cifar10"
    (name,) = TRAINED[claim].recipes
    runs = {(name, seed): run([1.0, 2.0]) for seed in (0, 1)}
    before = evidence(claim, runs, (0, 1)).what
    assert "trained" not in before
    runs[name, 0][-1]["device"], runs[name, 1][0]["device"] = "a card", "CPU"
    assert evidence(claim, runs, (0, 1)).what == f"{before}; trained on CPU, a card"
    assert evidence(claim, runs, (0,)).what == f"{before}; trained on a card"


def test_counts_do_not_depend_on_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    part = get_part("experiments/shortcut_depth_cifar", "counts")
    part.start(2, 1)
    for claim, found in part.evidence():
        record(claim, found)
    assert [path.name for path in tmp_path.iterdir()] == ["experiments-shortcut_depth_cifar.full.counts.partial"]


def test_the_evidence_of_a_part(monkeypatch):
    asked = []

    def trained(names, seeds, **options):
        asked.append((tuple(names), tuple(seeds), options))
        return {(name, seed): run([1.0, 50.0 - seed]) for name in names for seed in seeds}

    monkeypatch.setattr(cifar_parts, "run_recipes", trained)
    found = dict(get_part("experiments/procresnet_cifar", "table-2-row-2").evidence(first=4, nproc=2))
    assert {claim: (e.values, e.seeds) for claim, e in found.items()} == {
        f"zaeemzadeh/table-2-resnet1001-cifar{k}": ((46.0,), (4,)) for k in (10, 100)
    }
    names = ("zaeemzadeh-resnet1001-cifar10", "zaeemzadeh-resnet1001-cifar100")
    assert asked == [(names, (4,), {"nproc": 2})]
    counted = list(get_part("experiments/shortcut_depth_cifar", "counts").evidence())
    assert [claim for claim, _ in counted] == ["li/section-5.3.2-parameters"]
    times = {(depth, seed): {"none": 1.0, "published": 2.0, "svd": 3.0} for depth in (1, 2) for seed in (0, 1, 2)}
    given = []
    monkeypatch.setattr(cifar_parts, "measure_overhead", lambda seeds, **more: (given.append(more), times)[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="on a GPU, and there is none"):
        next(get_part("experiments/procresnet_cifar", "overhead").evidence())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = get_part("experiments/procresnet_cifar", "overhead").evidence(nproc=1, max_seconds=7.0)
    assert len(dict(found)) == 3
    assert [more["max_seconds"] for more in given] == [7.0]
    assert given[0]["journal"].folder is not None


def test_a_part_can_be_computed_in_other_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    chapter, ways = "experiments/allconv_cifar", "precision=bf16 compile=default"
    part = get_part(chapter, "batch-norm")
    several = part.recipes(ways)
    assert list(several) == list(TRAINED["hardt-ma/section-4.1-batch-norm-overfits"].recipes)
    for name, recipe in several.items():
        assert recipe == RECIPES[name].replace(precision="bf16", compile="default")
    asked = []

    def trained(recipes, seeds, **options):
        asked.append((recipes, tuple(seeds)))
        return {(name, seed): run([1.0, 50.0]) for name in recipes for seed in seeds}

    monkeypatch.setattr(cifar_parts, "run_recipes", trained)
    part.start(1, 2, ways)
    ((claim, found),) = part.evidence(1, 2, ways)
    record(claim, found)
    assert asked == [(several, (2,))]
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["precision"] == "bfloat16"
    assert all(recipe.hash in found.what and RECIPES[name].hash not in found.what for name, recipe in several.items())
    with pytest.raises(OptionError, match="compute"):
        part.recipes("lr=7")
    with pytest.raises(OptionError, match="'counts' trains nothing"):
        get_part(chapter, "counts").recipes(ways)
    with pytest.raises(OptionError, match="'bfloat16' is about a precision of its own"):
        get_part(chapter, "bfloat16").recipes(ways)
    assert len({r.hash for r in get_part(chapter, "bfloat16").recipes("compile=default").values()}) == 2
    with pytest.raises(RecipeError, match="precision = 'fp8'"):
        part.recipes("precision=fp8")

    seen = []
    monkeypatch.setattr(cifar_parts, "finished_runs", lambda names, *_: seen.append(names) or {})
    assert not any(p.finished(compute=ways) for p in parts_of(chapter).values())
    assert several in seen


def test_the_table_shows_recorded_experiments_only():
    found = {}
    for name, verdict in (
        ("hardt-ma/table-2-cifar10", "reproduced"), ("hardt-ma/figure-1-left", "not run"),
        ("hardt-ma/table-1-parameters", "verified numerically"), ("li/figure-2", "consistent"),
    ):  # fmt: skip
        found[name] = Verdict(get_claim(name), verdict, "6.4 +- 0.1", (), "")
    assert cifar_parts.paper_and_ours("experiments/allconv_cifar", found) == [
        (
            "Table 2, CIFAR-10",
            get_claim("hardt-ma/table-2-cifar10").statement + " Printed: 6.38 % error.",
            "between 5.88 and 6.88, over the seeds 0 to 4",
            "reproduced",
            "6.4 +- 0.1",
        )
    ]


def test_remarks_on_record_are_those_of_the_chapter():
    claim = "zaeemzadeh/figure-3-plain83-one-block"
    what = "a (1), b (2); trained on CPU; seed 0: out/in 1; seed 1: out/in 2"

    def made(chapter, claim):
        entry = Entry(claim, {}, Seeds((1.0, 2.0), (0, 1), what), True, (), {})
        return Record(ROOT, {"chapter": chapter}, (entry,))

    here = "experiments/procresnet_cifar"
    records = [made(here, claim), made("norms/bounds", claim), made(here, "zaeemzadeh/figure-3-plain-depth")]
    where = "Figure 3, plain networks of 83 and 164 layers"
    assert cifar_parts.remarks_on_record(here, records) == [(where, "seed 0: out/in 1"), (where, "seed 1: out/in 2")]


COUNTED = [claim.id for claim in claims() if claim.part == "counts"]


@pytest.mark.parametrize("name", COUNTED)
def test_counts_pass_in_full(name):
    several = cifar_counts.counted(name)
    claim = get_claim(name)
    assert (len(several) == 2) == bool(claim.correction)
    for found in several:
        passes(name, found)
        assert found.unfavourable(claim, "full") == []


def test_counts_are_of_real_networks():
    real = sum(p.numel() for p in ProcResNet(22, classes=7).parameters())
    assert cifar_counts.parameters(ProcResNet, 22, classes=7) == real
    by_hand = 3 * 16 * 9 + 2 * 16 + 2 * 256 + 256 * 10 + 10
    for m, inputs in ((16, 16), (32, 64), (64, 128)):
        inner = 9 * m * m + 4 * m * m + 4 * m
        by_hand += 2 * inputs + inputs * m + inner + inputs * 4 * m + 2 * 4 * m + 4 * m * m + inner
    assert cifar_counts.parameters(PreActResNet, 20) == by_hand


def test_a_trained_head_or_batch_norm_is_no_convolution():
    trained = cifar_counts.only_convolutions(("hardt-ma-cifar10", "hardt-ma-cifar10-trained-head"))
    assert trained.worst == 256 * 10
    assert cifar_counts.only_convolutions(("hardt-ma-cifar10-batch-norm",)).worst > 0
    assert cifar_counts.only_convolutions().worst == 0


def test_counts_notice_other_numbers():
    assert cifar_counts.allconv_convolutions(54).worst == 1
    assert cifar_counts.allconv_parameters(13.59e6).worst == pytest.approx(0.00377, abs=1e-4)
    assert cifar_counts.printed_parameters(PreActResNet, 164, 171).worst == pytest.approx(1 / 170)
    corrected, against = cifar_counts.resnet164_parameters(170, 1_703_291)
    assert isinstance(corrected, Cases)
    assert corrected.worst == 1
    assert isinstance(against, Counterexample)
    assert against.unfavourable(get_claim("zaeemzadeh/table-2-parameters-resnet164"), "full")
    assert cifar_counts.hundredths(1_715_018) == (172, 171)
    assert cifar_counts.hundredths(10_327_738) == (1033, 1032)


def test_the_main_path_leaves_out_projections():
    network = PreActResNet(20)
    convolutions = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules())
    assert cifar_counts._layers(network) == 20
    assert convolutions == 23


def test_overhead_is_paired_by_seed_and_depth():
    seconds = {"none": 1.0, "published": 1.5, "svd": 4.0, "ours": 1.1}

    def clock(depth, route, seed, device, steps, warmup):
        assert (steps, warmup) == ((3, 2) if route == "svd" else (30, 4))
        asked.append((depth, route, seed))
        return seconds[route] * depth * (1 + seed) + (0.1 * depth if route == "published" and seed else 0)

    asked = []
    times = cifar_overhead.measure_overhead((0, 1), (166, 1003), clock, steps=30, warmup=4)
    assert [(depth, seed) for depth, route, seed in asked if route == "svd"] == [(166, 0), (166, 1)]
    assert len(asked) == 2 * 4 + 2 * 3
    times[1003, 0]["published"] = 1.2 * times[1003, 0]["none"]
    found = cifar_overhead.overheads(times)
    assert set(found) == {c.id for c in get_part("experiments/procresnet_cifar", "overhead").claims}
    assert found["zaeemzadeh/section-3-overhead"].values == pytest.approx((50, 55))
    assert found["zaeemzadeh/section-4-overhead-depth"].values == pytest.approx((30, 0))
    assert found["zaeemzadeh/section-4-overhead-svd"].values == pytest.approx((250, 245))


def test_overhead_runs_every_route(monkeypatch):
    called = []
    monkeypatch.setattr(
        cifar_overhead, "_projected", lambda route, kernel, n, stride: called.append((route, n)) or kernel
    )
    for route in cifar_overhead.ROUTES:
        seconds = cifar_overhead.step_seconds(13, route, steps=2, warmup=3, batch=2, width=1, size=8)
        assert 0 < seconds < 60
    # after every second step: once in three, once in two; the stem and two transitions at their own sizes
    assert called == [(route, n) for route in cifar_overhead.ROUTES[1:] for _ in range(2) for n in (8, 8, 4)]


def test_the_published_routes_work_at_the_size_of_the_output(monkeypatch):
    sizes = []
    for name in ("released_projection", "svd_projection", "project_norm_preserving"):
        monkeypatch.setattr(
            cifar_overhead, name, lambda kernel, n, name=name, **more: sizes.append((name, n, more.get("stride")))
        )
    for route in cifar_overhead.ROUTES[1:]:
        for n, stride in ((32, (1, 1)), (32, (2, 2)), (16, (2, 2)), (7, (2, 2))):
            cifar_overhead._projected(route, None, n, stride)
    assert [n for name, n, _ in sizes if name == "released_projection"] == [32, 16, 8, 4]
    assert [n for name, n, _ in sizes if name == "svd_projection"] == [32, 16, 8, 4]
    assert [(n, stride) for name, n, stride in sizes if name == "project_norm_preserving"] == [
        (32, (1, 1)), (32, (2, 2)), (16, (2, 2)), (7, (2, 2))]  # fmt: skip


def test_steps_are_timed_in_full_precision(monkeypatch):
    seen = []
    real = cifar_overhead.F.cross_entropy

    def watching(*given):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
        return real(*given)

    monkeypatch.setattr(cifar_overhead.F, "cross_entropy", watching)
    cifar_overhead.step_seconds(13, "none", steps=1, warmup=1, batch=2, width=1, size=8)
    assert seen == [("ieee", "ieee")] * 2


def test_timing_stops_when_the_time_is_up_and_goes_on(tmp_path):
    asked, journal = [], Journal("cifar-overhead", (), tmp_path)

    def clock(depth, route, seed, **more):
        asked.append((depth, seed))
        time.sleep(0.05)
        return 1.0

    with pytest.raises(UnfinishedError, match="1 of 2 networks are timed"):
        cifar_overhead.measure_overhead((3,), (13, 22), clock, journal=journal, max_seconds=0.1)
    again = Journal("cifar-overhead", (), tmp_path)
    times = cifar_overhead.measure_overhead((3,), (13, 22), clock, journal=again, max_seconds=0.1)
    assert asked == [(13, 3)] * 4 + [(22, 3)] * 3
    assert cifar_overhead.measure_overhead((3,), (13, 22), clock, journal=again, max_seconds=0) == times  # all kept
    assert set(times[13, 3]) == set(cifar_overhead.ROUTES)
    assert set(times[22, 3]) == {"none", "published", "ours"}


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 4, 1, 1)])
def test_routes_agree(shape):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [cifar_overhead._projected(route, kernel, 8, (1, 1)) for route in cifar_overhead.ROUTES[1:]]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=1e-6)
