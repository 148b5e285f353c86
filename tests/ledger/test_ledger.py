"""Claims, evidence, records and verdicts: what fails must raise, what is broken must be named."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from importlib import resources

import numpy as np
import pytest
import sympy
import torch

from resid.errors import OptionError
from resid.ledger import (
    UNSETTLED,
    VERDICTS,
    Cases,
    ClaimFailed,
    Counterexample,
    LedgerError,
    RecordError,
    Seeds,
    Symbolic,
    UnknownClaimError,
    claims,
    finish_run,
    get_claim,
    papers,
    read_record,
    read_records,
    record,
    retest_summary,
    scoreboard,
    start_run,
    summary,
    verdicts,
)
from resid.ledger import run as run_module
from resid.ledger.catalog import BEYOND, Claim, Smoke, _load
from resid.ledger.evidence import from_json, to_json
from resid.ledger.judge import judge_experiment
from resid.ledger.run import git_commit
from resid.ledger.store import write_record
from resid.ledger.tables import accepted

THEOREM = "hardt-ma/theorem-2.1"  # ratio, no correction
CORRECTABLE = "hardt-ma/eq-2.3"  # ratio, has a correction
EXPERIMENT = next(c for c in claims() if c.kind == "experiment" and c.printed is not None and c.seeds == 5)


@pytest.fixture(autouse=True)
def _committed(monkeypatch):
    """Records of these tests are as if made from committed code, whatever the checkout looks like."""
    monkeypatch.setattr("resid.ledger.run.git_commit", lambda: ("0" * 40, False))


def enough(claim_id, worst=0.5, **kind):
    return Cases(get_claim(claim_id).cases, worst, "made up", **kind)


def full_record(folder, *evidence, mode="full"):
    """A finished record with this evidence, (claim id, evidence) pairs of one chapter."""
    run = start_run(mode, folder=folder)
    for claim_id, item in evidence:
        record(claim_id, item)
    finish_run()
    return run.path


# ------------------------------------------------------------------------------------------------------------ claims


def test_every_statement_of_three_papers_is_there():
    counts = {paper.key: sum(c.paper == paper.key for c in claims()) for paper in papers()}
    assert counts.pop(BEYOND) >= 10
    assert set(counts) == {"hardt-ma", "li", "zaeemzadeh"}
    assert min(counts.values()) >= 50
    assert sum(counts.values()) >= 200


def test_claims_have_what_a_verdict_needs():
    for claim in claims():
        assert claim.seeds >= 1
        assert claim.margin >= 0
        if claim.kind == "experiment":
            assert claim.target is not None, claim.id
        else:
            assert claim.cases >= 1, claim.id
            # a margin of a theorem is for rounding; where it is for a printed number's digits, one case says so
            assert claim.margin <= 1e-3 or claim.cases == 1 or claim.measure == "error", claim.id


def test_statements_are_safe_in_a_table_row():
    for claim in claims():
        for text in (claim.statement, claim.correction, claim.where):
            assert text.count("$") % 2 == 0, claim.id
            assert "|" not in text, f"{claim.id}: write \\vert"
            assert "\n" not in text


def test_unknown_claim_names_near_ones():
    with pytest.raises(UnknownClaimError, match=r"hardt-ma/theorem-9\.9.*near: .*theorem-2\.1"):
        get_claim("hardt-ma/theorem-9.9")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["claims"][0].update(margin=-1), "margin"),
        (lambda c: c["claims"][0].update(kind="lemma"), "kind"),
        (lambda c: c["claims"][0].pop("test"), "'test' is a required property"),
        (lambda c: c["claims"][0].update(surprise=1), "surprise"),
        (lambda c: c["claims"].append(c["claims"][0]), "appears twice"),
        (lambda c: c["papers"][0].update(key="nobody"), "no paper has the key"),
        (lambda c: c["claims"][0].update(margin=math.inf), "no finite number"),
    ],
)
def test_a_broken_claims_file_is_refused_by_entry(tmp_path, change, text):
    import yaml

    source = resources.files("resid.ledger").joinpath("claims", "hardt_ma.yaml")
    content = yaml.safe_load(source.read_text("utf-8"))
    content["claims"] = content["claims"][:2]
    change(content)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(LedgerError, match=text):
        _load(path)
    for wrong, why in (
        ("claims: [unclosed", "is not YAML"),
        ("claims: 1\nclaims: 2\n", "the key 'claims' is given twice"),
    ):
        path.write_text(wrong)
        _load.cache_clear()
        with pytest.raises(LedgerError, match=why):
            _load(path)
    _load.cache_clear()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("part"), "'part' is a dependency of 'recipes'"),
        (lambda c: c.pop("measure"), "'measure' is a dependency"),
        (lambda c: c.pop("recipes"), "'recipes' is a dependency of 'small'"),
        (lambda c: c.update(recipes=[]), "recipes"),
        (lambda c: c.update(kind="identity", cases=1), "experiment"),
    ],
)
def test_an_experiment_says_all_of_itself_or_nothing(tmp_path, change, text):
    import yaml

    source = resources.files("resid.ledger").joinpath("claims", "beyond.yaml")
    content = yaml.safe_load(source.read_text("utf-8"))
    content["claims"] = content["claims"][:1]
    claim = content["claims"][0]
    assert {"part", "recipes", "small", "measure"} <= set(claim)
    change(claim)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(LedgerError, match=text if text != "experiment" else "beyond/allconv-bfloat16"):
        _load(path)


# ---------------------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize(
    ("claim_id", "evidence", "text"),
    [
        (THEOREM, Cases(10, 1.0001, "w"), r"the worst ratio is 1.0001, not between 0 and 1"),
        (THEOREM, Cases(10, math.nan, "w"), "the worst ratio is nan"),
        (THEOREM, Cases(10, -0.1, "w"), "the worst ratio is -0.1"),
        (THEOREM, Cases(10, -math.inf, "w"), "the worst ratio is -inf"),
        (THEOREM, Symbolic(False, "d = 2"), "does not hold for d = 2"),
        (THEOREM, Counterexample(1.0, 2.0, "<=", "w"), "not violated"),
        (THEOREM, Counterexample(1.0, 1.0, "==", "w"), "not violated"),
        (THEOREM, Counterexample(1 + 1e-12, 1.0, "<=", "w"), "not violated"),
        (THEOREM, Counterexample(math.nan, 1.0, "<=", "w"), "not violated"),
        ("hardt-ma/lemma-2.4", Cases(9, 1e-3, "w", statement="corrected"), "the worst error is 0.001, not between"),
    ],
)
def test_evidence_that_fails_raises_and_is_on_record(tmp_path, claim_id, evidence, text):
    run = start_run("smoke", folder=tmp_path)
    with pytest.raises(ClaimFailed, match=text):
        record(claim_id, evidence)
    content = json.loads(run.path.read_text())
    assert content["evidence"][0]["passed"] is False
    assert content["finished"] is False


@pytest.mark.parametrize("mode", ["smoke", "full"])
@pytest.mark.parametrize(
    ("claim_id", "evidence", "text"),
    [
        (THEOREM, Cases(0, 0.5, "w"), "nothing was tried"),
        (THEOREM, Cases(9999, 0.5, "w", statement="corrected"), "no correction"),
        (THEOREM, Seeds([1.0], [0], "w"), "not Seeds"),
        (CORRECTABLE, Cases(9999, 0.5, "w"), "the printed statement takes a Counterexample only"),
        (CORRECTABLE, Symbolic(True, "d = 1"), "the printed statement takes a Counterexample only"),
        (EXPERIMENT.id, Cases(10, 0.5, "w"), "it takes Seeds, not Cases"),
        (EXPERIMENT.id, Counterexample(1.0, 2.0, "==", "w"), "it takes Seeds, not Counterexample"),
        (EXPERIMENT.id, Seeds([1.0, 2.0], [0], "w"), "one value for each"),
        (EXPERIMENT.id, Seeds([1.0, 2.0], [3, 3], "w"), "one value for each"),
        (EXPERIMENT.id, Seeds([], [], "w"), "one value for each"),
    ],
)
def test_evidence_that_cannot_be_about_the_claim_is_an_error_in_every_mode(tmp_path, mode, claim_id, evidence, text):
    start_run(mode, folder=tmp_path)
    with pytest.raises(LedgerError, match=text):
        record(claim_id, evidence, strict=False)
    assert not list(tmp_path.iterdir())


def test_the_same_evidence_counts_once(tmp_path):
    start_run("smoke", folder=tmp_path)
    record(THEOREM, Cases(3, 0.5, "w"))
    with pytest.raises(LedgerError, match="recorded before"):
        record(THEOREM, Cases(3, 0.5, "w"))
    record(THEOREM, Cases(3, 0.5, "other instances"))
    finish_run()


def test_evidence_of_no_known_form_cannot_be_made():
    with pytest.raises(OptionError, match="statement = 'both': one of 'printed', 'corrected'"):
        Cases(10, 0.5, "w", statement="both")
    with pytest.raises(OptionError, match="relation = '<': one of '<=', '>=', '=='"):
        Counterexample(1.0, 2.0, "<", "w")
    for value in (math.nan, "False", None, torch.tensor(1.0)):
        with pytest.raises(OptionError, match="the outcome of a comparison"):
            Symbolic(value, "d = 1")
    with pytest.raises(OptionError, match="no rational number"):
        Counterexample(0.1 + 0.2, 0.3, "==", "w", exact=True)
    assert Symbolic(sympy.true, "d = 1").holds is True


def test_exact_counterexamples_need_no_margin_and_do_not_round():
    claim = get_claim(THEOREM)
    big = 10**17
    for left, right, relation in [
        (big + 1, big, "<="),
        (Fraction(1, 3), Fraction(1, 2), ">="),
        (sympy.Rational(1, 3), 1, "=="),
    ]:
        assert not Counterexample(left, right, relation, "w", exact=True).unfavourable(claim, "smoke")
    assert Counterexample(big, big, "==", "w", exact=True).unfavourable(claim, "smoke")
    assert not Counterexample(2.0, 1.0, "<=", "w").unfavourable(claim, "smoke")
    assert not Counterexample(1.0, 2.0, ">=", "w").unfavourable(claim, "smoke")
    assert not Counterexample(1.0, 2.0, "==", "w").unfavourable(claim, "smoke")


def test_full_runs_need_the_cases_fixed_beforehand():
    claim = get_claim(THEOREM)
    few = Cases(claim.cases - 1, 0.5, "w")
    assert not few.unfavourable(claim, "smoke")
    assert "fixed for a full run" in few.unfavourable(claim, "full")[0]


def test_smoke_bars_of_experiments():
    claim = replace(EXPERIMENT, smoke=Smoke("at-least", 0.9, "accuracy"))
    assert not Seeds([0.95, 0.9], [0, 1], "w").unfavourable(claim, "smoke")
    assert "seed 1: accuracy is 0.89" in Seeds([0.95, 0.89], [0, 1], "w").unfavourable(claim, "smoke")[0]
    assert "seed 0 is nan" in Seeds([math.nan], [0], "w").unfavourable(claim, "smoke")[0]
    assert "no smoke bar" in Seeds([0.95], [0], "w").unfavourable(replace(EXPERIMENT, smoke=None), "smoke")[0]
    assert not Seeds([0.1], [0], "w").unfavourable(claim, "full")  # the verdict says what it amounts to


@pytest.mark.parametrize(
    "evidence",
    [
        Cases(3, 0.25, "w", statement="corrected"),
        Cases(3, math.inf, "w"),
        Symbolic(True, "d = 1", complete=True),
        Counterexample(1.0, -math.inf, "<=", "w"),
        Counterexample(Fraction(85, 4), 7, "<=", "w", exact=True),
        Seeds([1.0, math.nan], [4, 5], "w"),
    ],
)
def test_evidence_survives_json(evidence):
    text = json.dumps(to_json(evidence), allow_nan=False)
    assert repr(from_json(json.loads(text))) == repr(evidence)


def test_tensors_become_numbers():
    assert Cases(torch.tensor(3), torch.tensor(0.5), "w") == Cases(3, 0.5, "w")


# ----------------------------------------------------------------------------------------------------------- records


def test_a_record_says_what_ran_where(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_COMMAND", "papermill here.ipynb out.ipynb")
    run = start_run("full", seeds=(3, 4), folder=tmp_path, precision="float64")
    record(THEOREM, enough(THEOREM))
    finish_run()
    found = read_record(run.path)
    assert run.path.name == "linear-factor.full.json"
    info = found.info
    assert info["chapter"] == "linear/factor"
    assert info["seeds"] == [3, 4]
    assert info["command"] == "papermill here.ipynb out.ipynb"
    assert info["wall_seconds"] >= 0
    assert set(info["versions"]) >= {"python", "torch", "numpy", "resid"}
    assert len(info["commit"] or "0" * 40) == 40
    assert found.entries[0].evidence == enough(THEOREM)


def test_recipes_have_files_of_their_own(tmp_path):
    run = start_run("full", folder=tmp_path, recipe="abc123")
    record(THEOREM, enough(THEOREM))
    assert run.path.name == "linear-factor.full.abc123.partial"
    finish_run()
    assert run.path.name == "linear-factor.full.abc123.json"
    for recipe in ("a/b", "", "a.b"):
        with pytest.raises(OptionError, match="part of a file name"):
            start_run("full", folder=tmp_path, recipe=recipe)


def test_a_run_belongs_to_one_chapter(tmp_path):
    start_run("smoke", folder=tmp_path)
    record(THEOREM, Cases(3, 0.5, "w"))
    with pytest.raises(LedgerError, match="belongs to chapter 'linear/landscape'"):
        record(CORRECTABLE, Cases(3, 0.5, "w", statement="corrected"))
    finish_run()
    with pytest.raises(LedgerError, match="no run is open"):
        record(THEOREM, Cases(3, 0.5, "w"))
    start_run("smoke", folder=tmp_path)
    with pytest.raises(LedgerError, match="recorded no claim"):
        finish_run()
    with pytest.raises(OptionError, match="mode = 'fast'"):
        start_run("fast", folder=tmp_path)


def test_a_record_says_when_the_state_of_the_code_is_unknown(tmp_path, monkeypatch):
    """git failing is not the same as a clean tree."""
    monkeypatch.setattr("resid.ledger.run.git_commit", git_commit)
    monkeypatch.setattr("resid.ledger.run._git", lambda *_: None)
    assert git_commit() == (None, None)
    full_record(tmp_path, (THEOREM, enough(THEOREM)))
    assert "not known to be committed" in verdicts(tmp_path)[THEOREM].detail
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr("resid.ledger.run._ROOT", tmp_path)
    monkeypatch.setattr("resid.ledger.run._git", lambda *a: " M resid/x.py" if a[0] == "status" else "a" * 40)
    assert git_commit() == ("a" * 40, True)
    monkeypatch.setattr("resid.ledger.run._git", lambda *a: "" if a[0] == "status" else "a" * 40)
    assert git_commit() == ("a" * 40, False)


def test_nothing_else_lies_in_the_folder_after_writing(tmp_path):
    full_record(tmp_path, (THEOREM, enough(THEOREM)))
    assert [p.name for p in tmp_path.iterdir()] == ["linear-factor.full.json"]


def test_a_failed_write_keeps_the_old_record(tmp_path, monkeypatch):
    path = full_record(tmp_path, (THEOREM, enough(THEOREM)))
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resid._atomic.os.fsync", no_space)
    start_run("full", folder=tmp_path)
    with pytest.raises(OSError, match="No space left"):
        record(THEOREM, enough(THEOREM, 0.7))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_run_that_stops_half_way_keeps_the_old_record_and_is_noticed(tmp_path):
    path = full_record(tmp_path, (THEOREM, enough(THEOREM)))
    before = path.read_bytes()
    run = start_run("full", folder=tmp_path)
    record(THEOREM, enough(THEOREM, 0.7))
    assert path.read_bytes() == before
    with pytest.raises(RecordError, match=r"linear-factor.full.partial: the run did not finish"):
        read_records(tmp_path)
    finish_run()
    assert run.path == path
    assert read_record(path).entries[0].evidence.worst == 0.7
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_killed_process_leaves_a_whole_record_or_none(tmp_path):
    """kill -9 in the middle of many writes: what lies there can be read, or says that its run did not finish."""
    script = (
        "import sys; from resid.ledger import Cases, record, start_run\n"
        f"start_run('smoke', folder={str(tmp_path)!r})\n"
        f"record({THEOREM!r}, Cases(3, .5, 'w'))\n"
        "print('go', flush=True)\n"  # the first write is done, so that something lies there
        f"n = 3\nwhile True: n += 1; record({THEOREM!r}, Cases(n, .5, 'w'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.wait(timeout=20)
    process.stdout.close()
    (path,) = tmp_path.glob("*.partial")
    assert json.loads(path.read_text())["evidence"]
    with pytest.raises(RecordError, match="did not finish"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda t: t[: len(t) // 2], "cannot be read as a record"),
        (lambda t: "", "cannot be read as a record"),
        (lambda t: t.replace("0.5", "0.4"), "does not match its checksum"),
        (lambda t: t.replace('"smoke"', '"full"'), "does not match its checksum"),
        (lambda t: t.replace('"finished": true', '"finished": false'), "does not match its checksum"),
        (lambda t: t.replace('"seeds"', '"saat"', 1), "does not fit the record schema"),
        (lambda t: "[]", "does not fit the record schema"),
        (lambda t: "\x00\xff", "cannot be read|schema"),
    ],
)
def test_damaged_records_are_refused_by_name(tmp_path, damage, text):
    path = full_record(tmp_path, (THEOREM, Cases(3, 0.5, "w")), mode="smoke")
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=text) as error:
        read_records(tmp_path)
    assert path.name in str(error.value)


def test_what_is_no_record_does_not_lie_among_records(tmp_path):
    path = full_record(tmp_path, (THEOREM, enough(THEOREM)))
    (tmp_path / "README.md").write_text("what these files are")
    assert len(read_records(tmp_path)) == 1
    copy = tmp_path / "linear-factor.full.backup.json"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(RecordError, match=r"a record of this run is called linear-factor.full.json"):
        read_records(tmp_path)
    copy.unlink()
    (tmp_path / "old").mkdir()
    with pytest.raises(RecordError, match="old: is no record"):
        read_records(tmp_path)
    with pytest.raises(RecordError, match="a folder of records is needed"):
        read_records(path)


# ---------------------------------------------------------------------------------------------------------- verdicts


def verdict_of(folder, claim_id):
    return verdicts(folder)[claim_id]


def test_verdicts_on_theorems(tmp_path):
    folder = iter(tmp_path / str(i) for i in range(10))

    at = next(folder)
    full_record(at, (THEOREM, enough(THEOREM)))
    assert verdict_of(at, THEOREM).label == f"verified numerically ({get_claim(THEOREM).cases} cases)"

    at = next(folder)
    full_record(at, (THEOREM, enough(THEOREM)), (THEOREM, Symbolic(True, "d = 1")))
    assert verdict_of(at, THEOREM).verdict == "verified numerically"
    assert "symbolically for d = 1" in verdict_of(at, THEOREM).detail

    at = next(folder)
    full_record(at, (THEOREM, Symbolic(True, "every d", complete=True)))
    assert verdict_of(at, THEOREM).verdict == "proved symbolically"

    at = next(folder)
    full_record(at, (THEOREM, Symbolic(True, "d = 1")))
    assert verdict_of(at, THEOREM).verdict == "inconclusive"

    at = next(folder)
    full_record(at, (CORRECTABLE, Counterexample(1.0, 2.0, ">=", "an instance")))
    assert verdict_of(at, CORRECTABLE).verdict == "refuted (counterexample)"
    assert "1 >= 2 is false" in verdict_of(at, CORRECTABLE).detail

    at = next(folder)
    corrected = enough(CORRECTABLE, statement="corrected")
    full_record(at, (CORRECTABLE, Counterexample(1.0, 2.0, ">=", "w")), (CORRECTABLE, corrected))
    assert verdict_of(at, CORRECTABLE).verdict == "corrected"
    exact = Counterexample(Fraction(1, 4), Fraction(3, 2), ">=", "a case in fractions", exact=True)
    full_record(at, (CORRECTABLE, exact), (CORRECTABLE, corrected))
    assert "a case in fractions: 0.25 >= 1.5 is false" in verdict_of(at, CORRECTABLE).detail

    at = next(folder)
    full_record(at, (CORRECTABLE, corrected))
    assert verdict_of(at, CORRECTABLE).verdict == "inconclusive"
    assert "not refuted on record" in verdict_of(at, CORRECTABLE).detail

    assert verdict_of(next(folder), THEOREM).verdict == "not run"


def altered(monkeypatch, claim_id, **fields):
    """The list of claims with one of them changed, wherever it is read."""
    changed = tuple(replace(c, **fields) if c.id == claim_id else c for c in claims())
    (claim,) = (c for c in changed if c.id == claim_id)
    monkeypatch.setattr("resid.ledger.judge.claims", lambda: changed)
    monkeypatch.setattr("resid.ledger.run.get_claim", lambda _: claim)
    return claim


def test_a_sharper_statement_is_no_correction(tmp_path, monkeypatch):
    claim = altered(monkeypatch, THEOREM, sharper="the exact value")
    full_record(tmp_path / "a", (THEOREM, enough(THEOREM)), (THEOREM, enough(THEOREM, statement="sharper")))
    found = verdict_of(tmp_path / "a", THEOREM)
    assert (found.verdict, found.detail) == ("sharpened", f"what more holds: {claim.cases} cases")
    full_record(tmp_path / "b", (THEOREM, enough(THEOREM)))
    assert verdict_of(tmp_path / "b", THEOREM).verdict == "verified numerically"
    assert "not refuted" in Counterexample(2.0, 1.0, "<=", "w").malformed(claim)[0]
    assert "the ledger has none" in Cases(3, 0.5, "w", statement="sharper").malformed(get_claim(CORRECTABLE))[0]


def test_a_reading_of_ours_is_not_refuted_but_fails(tmp_path, monkeypatch):
    altered(monkeypatch, CORRECTABLE, status="our reading")
    against = Counterexample(1.0, 2.0, ">=", "w")
    full_record(tmp_path / "a", (CORRECTABLE, against))
    assert verdict_of(tmp_path / "a", CORRECTABLE).verdict == "fails as we read it"
    full_record(tmp_path / "b", (CORRECTABLE, against), (CORRECTABLE, enough(CORRECTABLE, statement="corrected")))
    assert verdict_of(tmp_path / "b", CORRECTABLE).verdict == "fails as we read it"
    assert "the correction" in verdict_of(tmp_path / "b", CORRECTABLE).detail


def test_an_experiment_on_a_reading_of_ours_fails_as_we_read_it(tmp_path, monkeypatch):
    claim = altered(monkeypatch, EXPERIMENT.id, status="our reading")
    full_record(tmp_path, (claim.id, Seeds([1e6] * claim.seeds, claim.fixed_seeds, "w")))
    assert verdict_of(tmp_path, claim.id).verdict == "fails as we read it"
    full_record(tmp_path, (claim.id, Seeds([claim.target] * claim.seeds, claim.fixed_seeds, "w")))
    assert verdict_of(tmp_path, claim.id).verdict == "reproduced"


@pytest.mark.parametrize("field", ["statement", "test"])
def test_words_changed_after_the_run_are_told(tmp_path, monkeypatch, field):
    """A rewording voids nothing: a record of weeks may be worth more than a comma. But it is said."""
    path = full_record(tmp_path, (THEOREM, enough(THEOREM)))
    assert "words" not in verdict_of(tmp_path, THEOREM).detail
    altered(monkeypatch, THEOREM, **{field: "the number is the colour of the sky"})
    assert verdict_of(tmp_path, THEOREM).detail.endswith(
        "the words of the claim or of its test were changed after the run"
    )
    content = json.loads(path.read_text())
    del content["evidence"][0]["words"], content["sha256"]
    write_record(path, content)  # as records from before this field are
    assert "words" not in verdict_of(tmp_path, THEOREM).detail


def test_every_quick_check_is_told_apart_from_the_verdict(tmp_path):
    found = verdicts(tmp_path)
    theorem, experiment = found[THEOREM], found[EXPERIMENT.id]
    assert (theorem.quick_check, replace(theorem, quick="wrong").quick_check) == ("", "**failed in this build**")
    wiring = "quick check ran: wiring right"
    for word in VERDICTS:
        assert replace(experiment, verdict=word, quick="right").quick_check == wiring
        said = replace(theorem, verdict=word, quick="right").quick_check
        if word == "fails as we read it":
            assert said == "tested again: fails as we read it"
        else:
            assert (said == wiring) == (word in UNSETTLED), word
        assert ("false as printed" in said) == (word in ("corrected", "refuted (counterexample)"))


def test_the_sentence_on_a_build_counts_no_wiring_as_a_result(tmp_path):
    found = verdicts(tmp_path)
    assert retest_summary(found) == "No chapter has been run beside this page."
    found[THEOREM] = replace(found[THEOREM], verdict="verified numerically", quick="right")
    found[CORRECTABLE] = replace(found[CORRECTABLE], verdict="corrected", quick="right")
    found[EXPERIMENT.id] = replace(found[EXPERIMENT.id], quick="right")
    text = retest_summary(found)
    assert "2 theorems and identities were tested again" in text
    assert "1 of them are false as printed" in text
    assert "For 1 other claims" in text
    assert "failed" not in text
    found[EXPERIMENT.id] = replace(found[EXPERIMENT.id], quick="wrong")
    assert "**1 claims failed in this build.**" in retest_summary(found)


def test_contradicting_evidence_is_an_error(tmp_path):
    full_record(tmp_path, (THEOREM, Counterexample(2.0, 1.0, "<=", "w")), (THEOREM, enough(THEOREM)))
    with pytest.raises(LedgerError, match="both refutes the printed statement and verifies it"):
        verdicts(tmp_path)


def test_a_theorem_is_recorded_in_one_place(tmp_path):
    full_record(tmp_path, (THEOREM, enough(THEOREM)))
    start_run("full", folder=tmp_path, recipe="again")
    record(THEOREM, enough(THEOREM, 0.6))
    finish_run()
    with pytest.raises(LedgerError, match=r"linear-factor.full.again.json and linear-factor.full.json"):
        verdicts(tmp_path)


def test_evidence_that_failed_never_counts(tmp_path):
    start_run("full", folder=tmp_path)
    assert not record(THEOREM, enough(THEOREM, 1.4), strict=False)
    finish_run()
    with pytest.raises(LedgerError, match=r"the worst ratio is 1\.4.*it failed when it was recorded"):
        verdicts(tmp_path)


def test_a_claim_that_failed_in_smoke_is_shown_as_failed(tmp_path):
    start_run("smoke", folder=tmp_path)
    record(THEOREM, Cases(3, 1.4, "w"), strict=False)
    finish_run()
    found = verdicts(tmp_path / "none", smoke=tmp_path)
    assert found[THEOREM].quick == "wrong"
    assert "failed in this build" in scoreboard("hardt-ma", found)


def test_a_smoke_record_never_counts_as_a_full_one(tmp_path):
    full_record(tmp_path, (THEOREM, enough(THEOREM)), mode="smoke")
    with pytest.raises(LedgerError, match="a smoke record where full records belong"):
        verdicts(tmp_path)
    found = verdicts(tmp_path / "nothing", smoke=tmp_path)
    assert found[THEOREM].verdict == "not run"
    assert found[THEOREM].quick == "right"


@pytest.mark.parametrize("change", [{"margin": 0.5}, {"margin": 0.0}, {"cases": 1}, {"measure": "error"}, {"seeds": 2}])
def test_terms_changed_after_the_run_void_the_record(tmp_path, monkeypatch, change):
    full_record(tmp_path, (THEOREM, enough(THEOREM, 0.9)))
    altered = tuple(replace(c, **change) if c.id == THEOREM else c for c in claims())
    monkeypatch.setattr("resid.ledger.judge.claims", lambda: altered)
    (name,) = change
    with pytest.raises(LedgerError, match=f"{name} was .* when it was run and is .* now: run it again"):
        verdicts(tmp_path)


def test_a_record_of_an_unknown_claim_is_an_error(tmp_path, monkeypatch):
    full_record(tmp_path, (THEOREM, enough(THEOREM)))
    monkeypatch.setattr("resid.ledger.judge.claims", lambda: tuple(c for c in claims() if c.id != THEOREM))
    with pytest.raises(LedgerError, match=r"linear-factor.full.json: claim .* is not in the ledger"):
        verdicts(tmp_path)


def claim(sense="equal", target=6.0, margin=0.5, seeds=5, printed=None):
    return Claim("x/y", "Table", "experiment", "s", "a/b", "t", margin, seeds, printed, sense=sense, target=target)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([6.0, 6.1, 5.9, 6.05, 5.95], {}, "reproduced"),
        ([6.0, 6.1, 5.9], {}, "incomplete"),  # fewer seeds than fixed say nothing yet, for
        ([8.0, 8.1], {}, "incomplete"),  # nor against
        ([6.0, math.nan], {}, "incomplete"),
        ([math.inf] * 5, {}, "not reproduced"),
        ([6.4, 6.3, 6.6, 6.2, 6.7], {"printed": 6.0}, "consistent"),  # mean inside, interval across the edge
        ([6.4, 6.3, 6.6, 6.2, 6.7], {}, "inconclusive"),  # the same where the paper prints no number
        ([6.9, 6.2, 7.4, 6.0, 6.8], {"printed": 6.0}, "inconclusive"),  # mean outside, interval reaches in
        ([8.0, 8.1, 7.9, 8.05, 7.95], {}, "not reproduced"),
        ([5.0, 5.1, 4.9, 5.05, 4.95], {}, "not reproduced"),  # better than printed is not equal to it
        ([5.0, 5.1, 4.9, 5.05, 4.95], {"sense": "at-most"}, "reproduced"),
        ([0.2, 0.3, 0.25, 0.2, 0.3], {"sense": "at-least", "target": 0.0, "margin": 0.0}, "reproduced"),
        ([0.2, -0.3, 0.25, -0.2, 0.3], {"sense": "at-least", "target": 0.0, "margin": 0.0}, "inconclusive"),
        ([-0.2, 0.3, -0.25, 0.2, -0.3], {"sense": "at-least", "target": 0.0, "margin": 0.0}, "inconclusive"),
        # one run was fixed: it has no interval
        ([6.2], {"seeds": 1}, "consistent"),
        ([6.9], {"seeds": 1}, "inconclusive"),
        ([7.1], {"seeds": 1}, "not reproduced"),
        ([6.6], {"seeds": 1, "sense": "at-least"}, "consistent"),
        ([6.4], {"seeds": 1, "sense": "at-least"}, "inconclusive"),  # too near to the edge to be told from noise
        ([5.6], {"seeds": 1, "sense": "at-least"}, "inconclusive"),
        ([5.4], {"seeds": 1, "sense": "at-least"}, "not reproduced"),
        ([5.4], {"seeds": 1, "sense": "at-most"}, "consistent"),
        ([6.6], {"seeds": 1, "sense": "at-most"}, "not reproduced"),
    ],
)
def test_verdicts_on_experiments(values, options, expected):
    verdict, detail = judge_experiment(claim(**options), values)
    assert verdict == expected
    assert detail


@pytest.mark.parametrize("n", [3, 5, 10])
def test_without_an_effect_a_one_sided_claim_hardly_ever_gets_a_verdict(n):
    """1000 experiments in which nothing happens: at most 5% are called for or against."""
    draws = np.random.default_rng(n).normal(size=(1000, n))
    one_sided = claim("at-least", 0.0, 0.0, n)
    found = Counter(judge_experiment(one_sided, list(values))[0] for values in draws)
    assert set(found) <= {"reproduced", "inconclusive", "not reproduced"}
    assert 0.02 < 1 - found["inconclusive"] / 1000 < 0.07
    for value in (1e-6, -1e-6):  # and a single one of several seeds never
        assert judge_experiment(one_sided, [value])[0] == "incomplete"


def test_an_effect_that_would_have_been_seen_is_seen():
    values = [0.2, -0.3, 0.25, -0.2, 0.3]
    one_sided = claim("at-least", 0.0, 0.0)
    verdict, detail = judge_experiment(one_sided, values)
    size = float(re.search(r"an effect of (\S+) would have been seen", detail)[1])
    assert judge_experiment(one_sided, [v - np.mean(values) + size for v in values])[0] == "reproduced"
    assert verdict == "inconclusive"


def test_what_is_accepted_of_a_single_run_is_what_is_judged():
    """One run has no interval: it has to be clear of the edge by the margin."""
    for sense, sign in (("at-least", 1), ("at-most", -1)):
        one = claim(sense, 25.0, 0.5, 1)
        edge = float(re.search(r"(?:more|less) than (\S+), with seed 0 alone", accepted(one))[1])
        assert judge_experiment(one, [edge + sign * 0.01])[0] == "consistent"
        assert judge_experiment(one, [edge - sign * 0.01])[0] == "inconclusive"


def test_a_single_run_needs_a_margin_to_be_told_from_its_edge():
    for one in claims():
        if one.kind == "experiment" and one.seeds == 1:
            assert one.margin > 0, one.id


def test_seeds_other_than_those_fixed_do_not_count(tmp_path):
    full_record(tmp_path, (EXPERIMENT.id, Seeds([EXPERIMENT.target] * 5, range(100, 105), "w")))
    found = verdict_of(tmp_path, EXPERIMENT.id)
    assert (found.verdict, found.detail) == ("incomplete", "no record of the seeds 0, 1, 2, 3, 4, only of others")


def test_evidence_is_of_the_seeds_that_its_record_names(tmp_path):
    run = start_run("full", (0, 1), tmp_path, recipe="part", some_seeds=True)
    run.record(EXPERIMENT.id, Seeds([1.0, 1.0], (1, 2), "w"))
    finish_run()
    with pytest.raises(LedgerError, match=r"of the seeds \[0, 1\], its evidence of \[2\]"):
        verdicts(tmp_path)


@pytest.mark.parametrize("n", [2.7, True, "5", 5.0, None])
def test_numbers_of_cases_and_seeds_are_whole_and_not_made_so(n):
    for make in (lambda: Cases(n, 0.5, "w"), lambda: Seeds([1.0], [n], "w")):
        with pytest.raises(OptionError, match=re.escape(f"{n!r} is no whole number")):
            make()


def test_what_is_no_evidence_is_refused_by_name(tmp_path):
    start_run("smoke", folder=tmp_path)
    with pytest.raises(OptionError, match="measured = None: Cases, Symbolic, Counterexample or Seeds"):
        record(THEOREM, None)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"\xff\xfe", "cannot be read"), (b"[" * 20000, "is not YAML"), (b"papers: []\nclaims: [1, 2]", "fit its schema")],
)
def test_a_file_that_is_no_list_of_claims_is_named(tmp_path, content, text):
    path = tmp_path / "claims.yaml"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=text):
        claims(path)
    with pytest.raises(LedgerError, match="cannot be read"):
        claims(tmp_path / "none.yaml")


def test_a_record_of_brackets_is_refused(tmp_path):
    (tmp_path / "a.full.json").write_text("[" * 100000)
    with pytest.raises(RecordError, match="cannot be read as a record"):
        read_records(tmp_path)


def test_seeds_are_counted_once_of_one_recipe_and_no_more_than_fixed(tmp_path):
    start_run("full", folder=tmp_path / "twice")
    record(EXPERIMENT.id, Seeds([1.0], [7], "w"))
    record(EXPERIMENT.id, Seeds([2.0], [7], "w"))
    finish_run()
    with pytest.raises(LedgerError, match="seed 7 is recorded twice"):
        verdicts(tmp_path / "twice")
    for recipe, seed in (("a", 0), ("b", 1)):
        start_run("full", folder=tmp_path / "mixed", recipe=recipe)
        record(EXPERIMENT.id, Seeds([1.0], [seed], "w"))
        finish_run()
    with pytest.raises(LedgerError, match="recorded with the recipes a, b"):
        verdicts(tmp_path / "mixed")
    start_run("full", folder=tmp_path / "more")
    target = EXPERIMENT.target
    record(EXPERIMENT.id, Seeds([target + 1e6] * 3 + [target] * 5, [9, 8, 7, 0, 1, 2, 3, 4], "w"))
    finish_run()
    found = verdicts(tmp_path / "more")[EXPERIMENT.id]
    assert found.verdict == "reproduced"
    assert "3 further seeds not counted" in found.detail


def some_seeds(folder, seeds, what="w", precision="float32", value=None):
    value = EXPERIMENT.target if value is None else value
    run = start_run("full", seeds, folder, recipe="part", precision=precision, some_seeds=True)
    record(EXPERIMENT.id, Seeds([value + seed / 1e6 for seed in seeds], seeds, what))
    finish_run()
    return run.path


def test_records_of_some_seeds_count_together(tmp_path):
    first = some_seeds(tmp_path, (0, 1))
    assert first.name.endswith(".full.part.seeds-0-1.json")
    assert verdict_of(tmp_path, EXPERIMENT.id).verdict == "incomplete"
    second = some_seeds(tmp_path, (2, 3, 4), "w; drawn again: 3")
    found = verdict_of(tmp_path, EXPERIMENT.id)
    assert found.verdict == "reproduced"
    assert "5 seeds" in found.detail
    assert "no record" not in found.detail
    assert found.records == (first.name, second.name)
    some_seeds(tmp_path, (2,))
    with pytest.raises(LedgerError, match="seed 2 is recorded twice"):
        verdicts(tmp_path)


def test_a_seed_left_out_is_told(tmp_path):
    for seeds in ((0, 1), (4,)):
        some_seeds(tmp_path, seeds)
    assert verdict_of(tmp_path, EXPERIMENT.id).detail.endswith("; no record of seed 2, 3")


@pytest.mark.parametrize(
    ("other", "told"),
    [({"what": "v"}, "measurements v | w"), ({"precision": "bfloat16"}, "precisions bfloat16 | float32")],
)
def test_records_of_different_measurements_are_not_mixed(tmp_path, other, told):
    some_seeds(tmp_path, (0, 1))
    some_seeds(tmp_path, (2, 3), **other)
    with pytest.raises(LedgerError, match=re.escape(f"records of the different {told}")):
        verdicts(tmp_path)


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1, 0)])
def test_some_seeds_are_distinct_and_can_stand_in_a_name(tmp_path, seeds):
    with pytest.raises(OptionError, match="distinct seeds from 0 on"):
        start_run("full", seeds, tmp_path, some_seeds=True)


def test_a_record_of_some_seeds_cannot_pass_for_one_of_others(tmp_path):
    path = some_seeds(tmp_path, (0, 1))
    path.rename(tmp_path / path.name.replace("0-1", "2-3"))
    with pytest.raises(RecordError, match=r"a record of this run is called .*seeds-0-1"):
        verdicts(tmp_path)


def test_an_experiment_not_reproduced_does_not_stop_a_full_run(tmp_path):
    start_run("full", folder=tmp_path)
    assert record(EXPERIMENT.id, Seeds([1e6 + i for i in range(5)], range(5), "w"))
    finish_run()
    assert verdict_of(tmp_path, EXPERIMENT.id).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.1, 0.2, 0.15], "held"),
        ([4.1, 4.2, 4.15], "did not hold"),
        ([0.1], "incomplete"),
        ([0.1, 0.2, 0.9], "inconclusive"),
    ],
)
def test_what_no_paper_claims_is_not_reproduced_but_holds(tmp_path, values, word):
    claim = get_claim("beyond/allconv-bfloat16")
    assert (claim.target, claim.margin, claim.seeds) == (0, 0.5, 3)
    full_record(tmp_path, (claim.id, Seeds(values, range(len(values)), "made up")))
    found = verdicts(tmp_path)
    assert found[claim.id].verdict == word
    assert word in VERDICTS
    row = next(line for line in summary(found).splitlines() if f"| {word} |" in line)
    assert [int(n) for n in row.strip("| ").split(" | ")[1:]] == [0, 0, 0, 1, 1]


def test_every_verdict_word_is_known(tmp_path):
    assert {v.verdict for v in verdicts(tmp_path).values()} == {"not run"}
    assert "not reproduced" in VERDICTS


# -------------------------------------------------------------------------------------------------------- scoreboard


def test_tables_count_every_claim_once(tmp_path):
    full_record(tmp_path, (THEOREM, enough(THEOREM)))
    found = verdicts(tmp_path)
    text = summary(found)
    assert text.splitlines()[-1].endswith(f"**{len(claims())}** |")
    assert "| verified numerically | 1 | 0 | 0 | 0 | 1 |" in text
    for paper in papers():
        rows = scoreboard(paper.key, found).splitlines()
        assert len(rows) == 2 + sum(c.paper == paper.key for c in claims())
        assert {row.count(" | ") for row in rows[2:]} == {2}  # no cell breaks its row


def test_links_only_to_pages_that_exist(tmp_path):
    text = scoreboard("hardt-ma", verdicts(tmp_path), pages={"linear/factor"})
    assert "[linear/factor](linear/factor.ipynb)" in text
    assert "(linear/landscape.ipynb)" not in text


@pytest.mark.parametrize(
    ("parent", "found"),
    [
        (["/v/bin/python", "/v/bin/papermill", "a.ipynb", "out.ipynb", "-p", "MODE", "full"],
         "papermill a.ipynb out.ipynb -p MODE full"),
        (["python3", "-m", "papermill", "a.ipynb", "b.ipynb"], "papermill a.ipynb b.ipynb"),
        (["/v/bin/python", "/v/bin/jupyter-lab", "papermill"], "interactive notebook"),
        (["/v/bin/python", "/v/bin/jupyter-lab"], "interactive notebook"),
        ([], "interactive notebook"),
    ],
)  # fmt: skip
def test_a_record_says_which_papermill_command_started_its_kernel(monkeypatch, parent, found):
    monkeypatch.delenv("RESID_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", ["/v/ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(run_module, "_arguments_of", lambda process: parent)
    assert run_module._command() == found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not show command lines in /proc")
def test_the_arguments_of_a_process():
    command = [sys.executable, "-c", "print(flush=True); input()", "two words"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"\n"  # it has begun: before that, its command line is empty
            assert run_module._arguments_of(process.pid) == command
        finally:
            process.communicate(b"\n", timeout=20)
    assert run_module._arguments_of(-1) == []
