"""The harness of `make bench`: times per unit, limits that can be broken, sides that die, rows that are left out."""

import json
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import harness, rows
from tests.book.bench_rows import ROWS

MODULE = "tests.book.bench_rows"


def row(name):
    return next(row for row in ROWS if row.name == name)


def test_a_ratio_is_of_times_per_unit():
    whole, each = (harness.measure(row(name), MODULE) for name in ("waits", "units"))
    assert 1.2 < whole["ratio"] < 4
    assert 0.6 < each["ratio"] < 1.5
    assert whole["problems"] == each["problems"] == []
    ours, peer = (whole["sides"][which] for which in ("ours", "peer"))
    assert len(ours["seconds"]) == len(peer["seconds"]) == harness.REPEATS
    assert min(ours["seconds"]) >= 0.02
    assert ours["quality"] == "waited 0.02"
    assert "quality" not in peer
    assert ours["peak_gib"] > 0.01


def test_broken_limits_are_said():
    problems = harness.measure(row("slow"), MODULE)["problems"]
    assert [problem.split()[-1] for problem in problems] == ["50", "s", "GiB"]


def test_a_side_that_dies_is_named():
    with pytest.raises(RuntimeError, match="fails: the process measuring 'peer' failed"):
        harness.measure(row("fails"), MODULE)


def test_the_command_saves_rows_and_leaves_out_what_cannot_be_had(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "ROWS", ROWS)
    monkeypatch.setattr(command, "has_official", lambda name: False)
    monkeypatch.setattr(command, "measure", lambda row: harness.measure(row, MODULE))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "waits", "missing", "no-data"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "  one wait: waited 0.02" in said
    assert "missing: left out, no_such_module is not installed" in said
    assert "no-data: left out, its data are not here" in said
    assert [path.name for path in tmp_path.iterdir()] == ["waits.json"]
    assert json.loads((tmp_path / "waits.json").read_text())["row"] == "waits"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "slow"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code
    assert "BEYOND ITS LIMIT" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "none"])
    with pytest.raises(SystemExit, match="no row none; there are waits"):
        command.main()


def test_every_row_has_a_result_and_every_result_a_row():
    assert {path.stem for path in harness.RESULTS.glob("*.json")} == {row.name for row in rows.ROWS}
