"""What is asked and answered at a reduced scale: apart from the verdicts, and hard to talk into anything."""

import dataclasses
import json

import numpy as np
import pytest

from resid.ledger import LedgerError, Seeds, catalog, get_claim, start_run, verdicts
from resid.ledger.catalog import Reduced
from resid.ledger.judge import judge_reduced
from resid.ledger.store import read_records
from resid.ledger.tables import scoreboard, summary

CLAIM = "li/figure-9-length-3"
HOW = Reduced("short", ("digits-allconv",), "a sixteenth of the width", "at-least", 0.0, 0.5, 4, 10)


def asked(**changes):
    return dataclasses.replace(get_claim(CLAIM), reduced=dataclasses.replace(HOW, **changes)).at_reduced_scale


@pytest.mark.parametrize(
    ("sense", "values", "said"),
    [
        ("at-least", [1, 1.1, 0.9, 1], "holds"),
        ("at-least", [-1, -1.1, -0.9, -1], "does not hold"),
        ("at-least", [0.1, -0.1, 0.05, -0.02], "no effect seen"),
        ("at-least", [2, -2, 1, -1], "undecided"),
        ("at-most", [-1, -1.1, -0.9, -1], "holds"),
        ("at-most", [1, 1.1, 0.9, 1], "does not hold"),
        ("at-most", [0.1, -0.1, 0.05, -0.02], "no effect seen"),
        ("equal", [0.1, -0.1, 0.05, -0.02], "holds"),
        ("equal", [1, 1.1, 0.9, 1], "does not hold"),
        ("equal", [-1, -1.1, -0.9, -1], "does not hold"),
        ("equal", [2, -2, 1, -1], "undecided"),
        ("equal", [0.5, 0.4, 0.6, 0.5], "undecided"),
        ("at-least", [1, 1.1, 0.9], "incomplete"),
        ("at-least", [1], "incomplete"),
        ("at-least", [1, 1, 1, float("nan")], "does not hold"),
        ("at-least", [1, 1, 1, float("inf")], "does not hold"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_values_say(sense, values, said):
    assert judge_reduced(asked(sense=sense), values)[0] == said


def test_a_target_is_where_the_effect_is_counted_from():
    up = [5.9, 6.1, 6.0, 6.0]
    assert judge_reduced(asked(target=5.0), up)[0] == "holds"
    assert judge_reduced(asked(target=7.0), up)[0] == "does not hold"
    assert judge_reduced(asked(target=6.0), up)[0] == "no effect seen"
    assert judge_reduced(asked(target=6.0, sense="equal"), up)[0] == "holds"


@pytest.mark.parametrize("sense", ["at-least", "at-most"])
def test_without_an_effect_one_in_twenty_says_something(sense):
    generator, claim = np.random.default_rng(0), asked(sense=sense)
    for spread in (0.05, 0.5, 5.0):
        said = [judge_reduced(claim, list(row))[0] for row in spread * generator.standard_normal((2000, 4))]
        shares = [said.count(word) / len(said) for word in ("holds", "does not hold")]
        assert sum(shares) < 0.065
        assert max(shares) < 0.04


def test_what_matters_and_is_there_is_seldom_called_absent():
    generator, claim = np.random.default_rng(1), asked()
    for spread in (0.1, 0.5, 2.0):
        said = [judge_reduced(claim, list(row))[0] for row in 0.5 + spread * generator.standard_normal((2000, 4))]
        assert said.count("no effect seen") / len(said) < 0.03


def ask(monkeypatch, how):
    """The ledger with one claim that is asked at reduced scale, too."""
    known = tuple(dataclasses.replace(c, reduced=how if c.id == CLAIM else None) for c in catalog.claims())
    real = catalog.papers()
    monkeypatch.setattr(catalog, "_load", lambda path: (real, known))


def recorded(folder, seeds, values, mode="reduced", recipe="short"):
    run = start_run(mode, seeds, folder, recipe=recipe, precision="float32", some_seeds=True)
    run.record(CLAIM, Seeds(values, seeds, "digits-allconv (0000)"), strict=False)
    run.finish()


def test_a_record_at_reduced_scale_is_no_verdict(tmp_path, monkeypatch):
    ask(monkeypatch, HOW)
    recorded(tmp_path, (10, 11), (1.0, 1.2))
    verdict = verdicts(tmp_path)[CLAIM]
    assert (verdict.verdict, verdict.reduced) == ("not run", "incomplete")
    recorded(tmp_path, (12, 13), (1.1, 0.9))
    verdict = verdicts(tmp_path)[CLAIM]
    assert (verdict.verdict, verdict.reduced) == ("not run", "holds")
    assert verdict.records == ()
    assert {path.name.split(".")[1] for path in tmp_path.iterdir()} == {"reduced"}
    content = json.loads(next(tmp_path.iterdir()).read_text())
    assert content["evidence"][0]["terms"]["margin"] == 0.5, "the terms are those of the reduced scale"
    row = next(line for line in scoreboard(found=verdicts(tmp_path)).splitlines() if f"`{CLAIM}`" in line)
    assert "*At reduced scale: holds, 1.05 +- 0.21 (95%, 4 seeds)*" in row
    assert "**not run**" in row
    assert summary(verdicts(tmp_path)) == summary(verdicts(()))
    recorded(tmp_path, (0, 1), (-9.0, -9.0), mode="full", recipe="figure-9")
    verdict = verdicts(tmp_path)[CLAIM]
    assert verdict.reduced == "holds", "full runs are not pooled with it"
    assert verdict.verdict == "incomplete"


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    ask(monkeypatch, HOW)
    recorded(tmp_path / "a", (10, 11), (1.0, 1.2))
    with pytest.raises(LedgerError, match="a reduced record where smoke records belong"):
        verdicts((), read_records(tmp_path / "a"))
    run = start_run("reduced", (10,), tmp_path, recipe="short", some_seeds=True)
    with pytest.raises(LedgerError, match="does not say how it is asked at a reduced scale"):
        run.record("li/figure-9-length-4", Seeds((1.0,), (10,), "x"))
    ask(monkeypatch, dataclasses.replace(HOW, margin=0.4))
    with pytest.raises(LedgerError, match=r"margin was 0.5 when it was run and is 0.4 now"):
        verdicts(tmp_path / "a")
