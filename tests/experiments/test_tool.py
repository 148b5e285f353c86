"""The tool that runs the full trainings: what comes when, what is left out, what becomes of records and of failures."""

import dataclasses
import os
import re
import shutil
import time

import nbformat
import pytest

from resid.book.experiments.parts import chapters, get_part, parts_of, seeds_of
from resid.ledger import catalog, claims, get_claim, read_record, read_records, verdicts
from resid.ledger.catalog import Reduced
from resid.ledger.store import name_of, write_record
from resid.training.cost import Flops
from resid.training.recipes import RECIPES
from resid.training.trainer import STOPPED
from tools import experiments
from tools.experiments import Piece, keep, on_record, plan, run, table
from tools.paths import ROOT

PARTS = [part for chapter in chapters() for part in parts_of(chapter).values()]
ALL = {claim.id: set(seeds_of(claim)) for part in PARTS for claim in part.claims}
ONE = "zaeemzadeh/figure-3-plain83-one-block"
START = "experiments-procresnet_cifar.full.figure-3-start.json"


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    """One operation an image; no run is finished."""
    monkeypatch.setattr(experiments, "count_flops", lambda recipe: Flops(1, recipe.network_options.get("depth", 1)))
    monkeypatch.setenv("RESID_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("RESID_IMAGENET", raising=False)


def without(*claims):
    return {claim: seeds for claim, seeds in ALL.items() if claim not in claims}


def ids(piece):
    return tuple(claim.id for claim in piece.claims)


def row_one():
    return tuple(claim.id for claim in get_part("experiments/procresnet_cifar", "table-1-row-1").claims)


def names(pieces):
    return [(piece.name, piece.seed) for piece in pieces]


def test_what_is_on_record_is_not_run():
    assert plan(ALL, cuda=True) == []
    known = without() | {ONE: {0, 2}}
    (piece,) = plan(known, cuda=True)
    assert (piece.name, piece.seed, ids(piece)) == ("procresnet_cifar/figure-3-first", 1, (ONE,))
    # 5 epochs of 391 batches of 128 images, one operation for each layer
    assert piece.trainings == (("zaeemzadeh-first-plain83", 5 * 391 * 128 * 83),)


def test_the_first_seeds_come_first_and_of_those_what_costs_least_for_a_claim(monkeypatch):
    layers = {"allconv": 20}
    monkeypatch.setattr(
        experiments, "count_flops", lambda r: Flops(1, layers.get(r.network) or r.network_options["depth"])
    )
    row = row_one()
    pieces = plan(without(*row, ONE, "hardt-ma/figure-1-right"))
    order = ("procresnet_cifar/figure-3-first", "procresnet_cifar/table-1-row-1", "allconv_cifar/figure-1-right")
    assert names(pieces) == [(name, seed) for seed in range(5) for name in (order if seed < 3 else order[2:])]
    costs = [piece.flops / 128 for piece in pieces[:3]]
    assert costs == [5 * 391 * 83, 100 * 391 * (20 + 20 + 22), 60_000 * 20]
    assert costs[1] > costs[2] > costs[1] / 6, "six claims make the dearest the second"


def test_a_claim_is_not_asked_for_seeds_that_it_does_not_want(monkeypatch):
    row = row_one()
    monkeypatch.setattr(experiments, "seeds_of", lambda claim: (0,) if claim.id == row[0] else (0, 1))
    assert [(p.seed, ids(p)) for p in plan(without(*row), names=["procresnet_cifar/table-1-row-1"])] == [
        (0, row), (1, row[1:]),
    ]  # fmt: skip


def test_only_claims_that_lack_a_seed_are_paid_for():
    claims = row_one()
    (piece,) = plan(without(claims[0]) | {claims[0]: {1, 2}}, cuda=True)
    assert (piece.seed, ids(piece)) == (0, claims[:1])
    assert [name for name, _ in piece.trainings] == list(get_claim(claims[0]).recipes)


def test_an_epoch_has_as_many_steps_as_its_images_make():
    for name, steps in (("hardt-ma-cifar10", 391), ("imagenet-paper", 5005)):  # of 128 images, and of 256
        recipe = RECIPES[name].replace(epochs=3, steps=None)
        assert experiments._flops(recipe) == 3 * steps * recipe.batch


def test_what_is_trained_costs_nothing(monkeypatch):
    monkeypatch.setattr(experiments, "finished_runs", lambda recipes, seeds: {(n, seeds[0]): [] for n in recipes})
    assert plan(without(ONE))[0].trainings == ()


def test_what_cannot_be_run_here_comes_last_and_says_why(monkeypatch):
    known = without(ONE, "zaeemzadeh/section-3-overhead", "hardt-ma/table-2-imagenet")
    assert [(p.part.name, p.why_not) for p in plan(known, cuda=False)][-2:] == [
        ("overhead", "needs a GPU"), ("table-2", "needs RESID_IMAGENET"),
    ]  # fmt: skip
    monkeypatch.setenv("RESID_IMAGENET", "somewhere")
    assert [p.why_not for p in plan(known, cuda=True)] == [""] * 5
    assert next(p for p in plan(known, cuda=True) if p.part.name == "overhead").seed is None


def test_what_times_itself_is_run_until_all_seeds_are_there():
    claim = "zaeemzadeh/section-3-overhead"
    for known, pieces in (({0, 1}, 1), ({0, 1, 2}, 0)):
        assert len(plan(without(claim) | {claim: known}, cuda=True)) == pieces


def test_counts_that_are_missing_are_run(monkeypatch):
    (piece,) = plan(without("hardt-ma/table-1-parameters"))
    assert (piece.name, piece.seed, piece.flops) == ("allconv_cifar/counts", None, 0)
    assert piece.parameters("precision=bf16", 4, 2, None) == {"MODE": "full", "PART": "counts"}


def test_parameters_of_the_notebook():
    part = get_part("experiments/allconv_cifar", "bfloat16")
    piece = Piece(part, 3, part.claims)
    assert piece.parameters("precision=bf16 compile=default", 4, 1, 59.6) == {
        "MODE": "full", "PART": "bfloat16", "SEEDS": "1", "SEED": "3", "AT_ONCE": "4", "NPROC": "1",
        "COMPUTE": "compile=default", "MAX_SECONDS": "60",
    }  # fmt: skip
    layers = dataclasses.replace(piece, part=get_part(part.chapter, "layers"))
    given = layers.parameters("precision=bf16 compile=default", 1, 1, None)
    assert (given["COMPUTE"], "MAX_SECONDS" in given) == ("precision=bf16 compile=default", False)


def test_parts_are_chosen_by_name():
    known = without(ONE, "hardt-ma/figure-1-right")
    assert names(plan(known, names=["procresnet_cifar/figure-3-first"])) == [
        ("procresnet_cifar/figure-3-first", s) for s in (0, 1, 2)
    ]
    with pytest.raises(SystemExit, match="no part procresnet_cifar/figure-33"):
        plan(known, names=["procresnet_cifar/figure-33"])


def test_trainings_that_parts_share_are_counted_once():
    row = row_one()
    text = table(plan(without("hardt-ma/figure-1-right", "hardt-ma/figure-1-left", "hardt-ma/table-2-cifar100", *row)))
    trainings = 5 + 5 + 3 * 3  # two networks with five seeds for three parts, three with three
    assert text.splitlines()[-1].startswith(f"{trainings} trainings, some of which several parts share: ")
    assert len(text.splitlines()) == 2 + 5 + 5 + 5 + 3


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of the records, in place of them."""
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(experiments, "BUILD", tmp_path / "build")
    (tmp_path / "build").mkdir()
    return shutil.copytree(ROOT / "results", tmp_path / "results")


def test_records_on_file_are_known(results):
    found = on_record(read_records(results))
    assert found["zaeemzadeh/section-4.1-worst-block"] == {0, 1, 2, 3, 4}
    assert found["hardt-ma/table-1-parameters"] == set()
    assert "hardt-ma/table-2-cifar10" not in found


def other_seed(folder, **changes):
    """A record of the worst block with one more seed, the sixth."""
    info = {k: v for k, v in read_record(ROOT / "results" / START).info.items() if k != "sha256"}
    (entry,) = read_record(ROOT / "results" / START).entries
    evidence = {"kind": "seeds", "values": [0.1], "seeds": [5], "what": entry.evidence.what, "statement": "printed"}
    content = info | {"seeds": [5], "some_seeds": True} | changes
    content["evidence"] = [
        {"claim": entry.claim, "terms": entry.terms, "passed": True, "problems": [], "evidence": evidence}
    ]
    folder.mkdir(exist_ok=True)
    write_record(folder / name_of(content), content)
    return name_of(content)


def test_a_record_goes_to_the_others(results, tmp_path):
    name = other_seed(tmp_path / "new")
    assert keep(tmp_path / "new") == ""
    assert (results / name).exists()
    assert "1 further seeds not counted" in verdicts(results)["zaeemzadeh/section-4.1-worst-block"].detail


@pytest.mark.parametrize("there", [False, True], ids=["new", "in place of one"])
def test_a_record_that_does_not_fit_changes_nothing(there, results, tmp_path):
    name = other_seed(tmp_path / "new", precision="bfloat16")
    if there:
        other_seed(results)
    before = {path: path.read_bytes() for path in results.iterdir()}
    assert "does not fit beside the others" in keep(tmp_path / "new")
    assert {path: path.read_bytes() for path in results.iterdir()} == before
    assert (tmp_path / "build" / "refused" / name).exists()


class Runner:
    """In place of papermill: each piece takes a minute of a clock and puts its claims on record."""

    def __init__(self, monkeypatch, known, why=lambda piece: ""):
        self.now, self.ran, self.known, self.why = 0.0, [], known, why
        monkeypatch.setattr(experiments, "on_record", lambda records, mode: self.known)
        monkeypatch.setattr(experiments, "run", self.run)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(experiments, "refuse_changes", lambda dirty: None)

    def run(self, piece, parameters, threads=None):
        self.now += 60
        self.ran.append((piece.name, piece.seed, parameters.get("MAX_SECONDS")))
        if not (why := self.why(piece)):
            self.known |= {c.id: self.known.get(c.id, set()) | {piece.seed} for c in piece.claims}
        return why


FIRST = "procresnet_cifar/figure-3-first"


def test_everything_that_can_be_run_is_run_once(results, monkeypatch, capsys):
    runner = Runner(monkeypatch, without(ONE, "hardt-ma/table-2-imagenet"))
    assert experiments.main([]) == 0
    assert runner.ran == [(FIRST, seed, None) for seed in (0, 1, 2)]
    assert f"== {FIRST}, seed 2: on record" in capsys.readouterr().out


def test_the_time_that_is_left_is_handed_on(results, monkeypatch, capsys):
    runner = Runner(monkeypatch, without(ONE))
    assert experiments.main(["--minutes", "2.4"]) == STOPPED
    assert runner.ran == [(FIRST, 0, "144"), (FIRST, 1, "84")]
    assert "1 pieces are left, and the same command goes on with them" in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_the_command(results, monkeypatch, capsys):
    runner = Runner(monkeypatch, without(ONE), lambda piece: "cell full: UnfinishedError: 0 of 1 runs are finished")
    assert experiments.main([]) == STOPPED
    assert len(runner.ran) == 1
    assert "UnfinishedError: 0 of 1" in capsys.readouterr().out


def test_what_fails_is_named_and_not_tried_again(results, monkeypatch, capsys):
    runner = Runner(monkeypatch, without(ONE), lambda piece: "the disk is full" if piece.seed == 1 else "")
    assert experiments.main([]) == 1
    assert [seed for _, seed, _ in runner.ran] == [0, 1, 2]
    assert capsys.readouterr().err == f"failed: {FIRST}, seed 1\n"


@pytest.mark.parametrize(
    ("given", "folder"), [("", ROOT / "book" / "experiments" / "resid-runs"), ("here", ROOT / "here")]
)
def test_runs_are_looked_for_where_notebooks_keep_them(given, folder, results, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RESID_RUNS", given)
    runner = Runner(monkeypatch, without(ONE))
    experiments.main([FIRST])
    assert (os.environ["RESID_RUNS"], len(runner.ran)) == (str(folder), 3)


def test_the_list_runs_nothing(results, monkeypatch, capsys):
    runner = Runner(monkeypatch, without(ONE))
    assert experiments.main(["--list", FIRST]) == 0
    assert runner.ran == []
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_part_is_run_by_papermill_and_its_record_kept(results, capsys):
    name = "experiments-allconv_cifar.full.counts.json"
    before = read_record(results / name)
    (results / name).unlink()
    (piece,) = plan(on_record(read_records(results)), names=["allconv_cifar/counts"])
    assert run(piece, piece.parameters("", 1, 1, None)) == ""
    found = read_record(results / name)
    assert [(e.claim, e.evidence) for e in found.entries] == [(e.claim, e.evidence) for e in before.entries]
    assert found.info["command"].endswith("-p MODE full -p PART counts --cwd book/experiments")
    broken = dataclasses.replace(piece, part=dataclasses.replace(piece.part, name="no-part"))
    assert "OptionError: PART = 'no-part'" in run(broken, broken.parameters("", 1, 1, None))
    missing = dataclasses.replace(piece, part=dataclasses.replace(broken.part, chapter="experiments/missing"))
    stale = experiments.BUILD / "full" / "experiments"
    shutil.copy(stale / "allconv_cifar-no-part-all.ipynb", stale / "missing-no-part-all.ipynb")
    assert "OptionError" not in run(missing, missing.parameters("", 1, 1, None)), "that was the failure before"


@pytest.fixture
def reduced(monkeypatch):
    """One claim is asked at reduced scale, with three seeds, and no other."""
    how = Reduced("short", ("digits-allconv",), "small, on digits", "at-least", 0.0, 1.0, 3, 10)
    known = tuple(dataclasses.replace(c, reduced=how if c.id == "hardt-ma/figure-1-right" else None) for c in claims())
    real = catalog.papers()
    monkeypatch.setattr(catalog, "_load", lambda path: (real, known))
    parts_of.cache_clear()
    yield
    parts_of.cache_clear()


@pytest.mark.usefixtures("reduced")
def test_what_is_asked_at_reduced_scale_is_run_a_seed_on_each_core(results, monkeypatch, capsys):
    pieces = plan({}, mode="reduced")
    assert names(pieces) == [("allconv_cifar/short", seed) for seed in (10, 11, 12)]
    assert pieces[0].parameters("", 1, 1, None)["MODE"] == "reduced"
    assert plan({"hardt-ma/figure-1-right": {10, 11, 12}}, mode="reduced") == []
    known, ran = {}, []
    monkeypatch.setattr(experiments, "on_record", lambda records, mode: known if mode == "reduced" else ALL)
    monkeypatch.setattr(experiments, "usable_cpus", lambda: 2)
    monkeypatch.setattr(experiments, "refuse_changes", lambda dirty: None)

    def run(piece, parameters, threads=None):
        ran.append((piece.seed, threads))
        known.setdefault("hardt-ma/figure-1-right", set()).add(piece.seed)
        return ""

    monkeypatch.setattr(experiments, "run", run)
    assert experiments.main(["--reduced"]) == 0
    assert sorted(ran) == [(10, 1), (11, 1), (12, 1)]
    assert "of a CPU core" in capsys.readouterr().out


def test_records_of_one_mode_are_known_to_it_alone(results):
    records = [r for r in read_records(results) if r.mode == "full"]
    assert on_record(records, "reduced") == {}
    assert ONE in on_record(records)


def test_sizes_that_the_tool_assumes():
    assert get_claim(ONE).seeds == 3
    assert {recipe.dataset for name, recipe in RECIPES.items() if not recipe.streamed and "digits" not in name} == {
        "cifar10", "cifar100",
    }  # fmt: skip


@pytest.mark.parametrize("chapter", chapters())
def test_a_chapter_knows_every_parameter_that_it_is_given(chapter):
    """papermill only warns of one that it does not know, and runs without it."""
    cells = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).cells
    (cell,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    known = set(re.findall(r"^(\w+): \w+ =", cell, re.MULTILINE))
    for part in parts_of(chapter).values():
        for seed in (None, 1):
            given = experiments.Piece(part, seed, ()).parameters("precision=bf16 compile=default", 2, 2, 60.0)
            assert set(given) <= known, part.name
