"""The notebook kit: checks that can fail, glue as MyST-NB reads it, tables, plots, the slider."""

import json
import os
import re
import subprocess
import sys
from itertools import combinations

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

mpl.use("agg")

import matplotlib.pyplot as plt

from resid import book
from resid.book import kit
from resid.errors import OptionError, ShapeError
from resid.ledger import Cases, ClaimFailed, LedgerError, Seeds, verdicts
from tools.shown import PRAISE


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would display."""
    out = []
    monkeypatch.setattr("resid.book.kit.display", lambda *items, **options: out.append((items, options)))
    return out


def test_check_prints_number_and_limit_and_can_fail(capsys):
    book.check("error", torch.tensor(0.5), at_most=1)
    assert capsys.readouterr().out == "ok   error: 0.5 <= 1\n"
    book.check("error", 0.5, at_most=1, at_least=0.25)
    assert capsys.readouterr().out == "ok   error: 0.5 <= 1 and >= 0.25\n"
    for value, limits in [(1.5, {"at_most": 1}), (0.5, {"at_least": 1}), (float("nan"), {"at_most": 1})]:
        with pytest.raises(book.CheckFailed, match="does not hold"):
            book.check("error", value, **limits)
    with pytest.raises(OptionError, match="could not fail"):
        book.check("error", 0.5)


def test_setup_seeds_reports_and_opens_a_run(capsys, monkeypatch, tmp_path, shown):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    draws = []
    for _ in range(2):
        book.setup("smoke", seed=5)
        draws.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert draws[0] == draws[1]
    text = capsys.readouterr().out
    assert re.search(r"mode smoke, seed 5, device .+, \d+ threads\npython 3\.\d+", text)
    assert "torch" in text
    book.record("hardt-ma/theorem-2.1", Cases(9, 0.5, "made up"))
    assert "ok   hardt-ma/theorem-2.1: 9 cases, worst ratio 0.5 <= 1 (made up)" in capsys.readouterr().out
    book.finish()
    (row,) = (line for line in shown[0][0][0].data.splitlines() if "hardt-ma/theorem-2.1" in line)
    verdict = verdicts()["hardt-ma/theorem-2.1"].label
    assert row == f"| `hardt-ma/theorem-2.1` | Theorem 2.1 (later versions) | {verdict} | tested again: holds |"
    assert json.loads((tmp_path / "linear-factor.smoke.json").read_text())["finished"]
    with pytest.raises(LedgerError, match="no run is open"):
        book.record("hardt-ma/theorem-2.1", Cases(9, 0.5, "made up"))
    with pytest.raises(OptionError, match="mode = 'quick'"):
        book.setup("quick")


def test_a_quick_run_of_an_experiment_is_not_called_a_result(capsys, monkeypatch, tmp_path, shown):
    """Whatever the small network shows: beside a claim that is not run stands what was tried, and no praise."""
    claim = next(v.claim for v in verdicts().values() if v.verdict == "not run" and v.claim.smoke)
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    book.setup("smoke")
    capsys.readouterr()
    book.record(claim.id, Seeds([claim.smoke.value], [0], "made up"))
    book.finish()
    (row,) = (line for line in shown[0][0][0].data.splitlines() if claim.id in line)
    assert row.endswith("| not run | quick check ran: wiring right |")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"quick check of {claim.id}: 1 seeds")
    assert not PRAISE.search(line)
    book.setup("full")
    capsys.readouterr()
    book.record(claim.id, Seeds([claim.smoke.value], [0], "made up"))
    assert capsys.readouterr().out.startswith(f"recorded {claim.id}: 1 seeds")
    book.finish()
    assert shown[-1][0][0].data.splitlines()[-1].endswith("| recorded |")


def test_a_claim_that_failed_is_not_called_recorded(monkeypatch, tmp_path, shown):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    book.setup("full")
    book.record("hardt-ma/theorem-2.1", Cases(9000, 99.0, "made up"), strict=False)
    book.finish()
    assert shown[-1][0][0].data.splitlines()[-1].endswith("| **failed** |")


def test_void_records_stop_no_chapter_and_give_no_verdict(capsys, monkeypatch, tmp_path, shown):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    asked = []

    def void(records=None):
        asked.append(records)
        if records is None:
            raise LedgerError("margin was 1 when it was run and is 2 now: run it again")
        return verdicts(records)

    monkeypatch.setattr(kit, "verdicts", void)
    book.setup()
    book.record("hardt-ma/theorem-2.1", Cases(9, 0.5, "made up"))
    book.finish()
    assert asked == [None, ()]
    assert "no verdict: margin was 1" in capsys.readouterr().out
    assert shown[0][0][0].data.splitlines()[-1].endswith("| not run | quick check ran: wiring right |")


class Shell:
    """What IPython knows after a cell of parameters and, where papermill was given some, the cell of those."""

    def __init__(self, given=""):
        self.user_ns = {"In": ["", "the cell of parameters", *([f"# Parameters\n{given}"] if given else []), "setup"]}
        self.user_ns["__annotations__"] = {"MODE": str, "SEED": int, "SEEDS": int, "MAX_SECONDS": float}
        exec(given, self.user_ns)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("SEDES = 1", "SEDES is no parameter of this notebook: is SEEDS meant?"),
        ("mode = 'full'", "mode is no parameter of this notebook: is MODE meant?"),
        ("X = 1", "X is no parameter of this notebook: there are MODE, SEED, SEEDS, MAX_SECONDS"),
        ("SEED = 'abc'", "SEED = 'abc': int is needed, this is str"),
        ("SEED = 1.5", "SEED = 1.5: int is needed, this is float"),
        ("MODE = 'full'\nSEEDS = True", "SEEDS = True: int is needed, this is bool"),
        ("MAX_SECONDS = '1e1'", "MAX_SECONDS = '1e1': float is needed, this is str"),
    ],
)
def test_a_parameter_that_the_notebook_has_not_is_an_error(given, text, monkeypatch, tmp_path):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    monkeypatch.setattr(kit, "get_ipython", lambda: Shell(given))
    with pytest.raises(OptionError, match=re.escape(text)):
        book.setup()


def test_only_the_last_cell_of_parameters_counts(monkeypatch, tmp_path):
    """A wrong one may have been corrected in the same kernel; and annotations may be texts, or of parts."""
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    shell = Shell("SEDES = 1")
    shell.user_ns["In"].append("# Parameters\nSEED = 1\nWORDS = ['a']\nMODE = 'smoke'")
    shell.user_ns |= {"SEED": 1, "WORDS": ["a"], "MODE": "smoke"}
    shell.user_ns["__annotations__"] |= {"WORDS": list[str], "MODE": "str"}
    monkeypatch.setattr(kit, "get_ipython", lambda: shell)
    book.setup()


@pytest.mark.parametrize("given", ["", "SEED = 4\nMODE = 'smoke'", "MAX_SECONDS = 10"])
def test_the_parameters_of_a_notebook_are_taken(given, monkeypatch, tmp_path):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    monkeypatch.setattr(kit, "get_ipython", lambda: Shell(given))
    book.setup()


def test_papermill_ends_with_an_error_for_a_parameter_it_only_warns_of(tmp_path):
    """The true cell that papermill writes, in a true kernel."""
    cells = [
        new_code_cell('MODE: str = "smoke"\nSEED: int = 0', metadata={"tags": ["parameters"]}),
        new_code_cell("from resid import book\nbook.setup(mode=MODE, seed=SEED)"),
    ]
    source = tmp_path / "a.ipynb"
    nbformat.write(
        new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
        ),
        source,
    )
    command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    environment = {**os.environ, "RESID_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for given, status in (("SEDES", 1), ("SEED", 0)):
        done = subprocess.run(
            [*command, "-p", given, "1"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, done.stderr
    assert "SEDES is no parameter" not in done.stderr


def test_a_failed_claim_stops_a_notebook(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RESID_RESULTS", str(tmp_path))
    book.setup()
    with pytest.raises(ClaimFailed):
        book.record("hardt-ma/theorem-2.1", Cases(9, 1.5, "made up"))
    assert "ok" not in capsys.readouterr().out.split("\n", 2)[2]


def test_glue_has_the_mime_bundle_of_myst_nb(shown):
    book.glue("norm", 0.25)
    ((data,), options) = shown[0]
    assert data == {"application/papermill.record/text/plain": "0.25"}
    assert options["raw"]
    assert options["metadata"]["scrapbook"] == {"name": "norm", "mime_prefix": "application/papermill.record/"}


def test_tables_round_numbers(shown):
    book.table(("a", "b"), [(1 / 3, torch.tensor(2.0)), ("text", 7)])
    assert shown[0][0][0].data == "| a | b |\n| --- | --- |\n| 0.3333 | 2 |\n| text | 7 |"


def test_bars_do_not_break_a_table(shown):
    book.table(("|ratio - 1|", "b"), [(r"already \| escaped", 1)])
    lines = shown[0][0][0].data.splitlines()
    assert lines[0] == r"| \|ratio - 1\| | b |"
    assert lines[2] == r"| already \| escaped | 1 |"


def test_measurements_are_points_with_a_band():
    _, axes = plt.subplots()
    book.plot_theory(axes, [1, 2, 3], torch.tensor([1.0, 2.0, 3.0]), "theory")
    book.plot_measured(axes, [1, 2, 3], torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [0.0, 1.0, 2.0]]), "measured")
    line, points = axes.lines
    assert line.get_linestyle() == "-"
    assert points.get_marker() == "o"
    assert points.get_linestyle() == "None"
    np.testing.assert_allclose(points.get_ydata(), [1, 2, 3])
    (band,) = axes.collections
    low, high = band.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (0.0, 4.0)
    book.plot_measured(axes, [1, 2], [3.0, 4.0], "one seed")
    assert len(axes.collections) == 1
    with pytest.raises(OptionError, match=r"\(seeds, 2\) is needed"):
        book.plot_measured(axes, [1, 2], [[1, 2, 3]], "wrong")
    plt.close("all")


#: What is seen of linear RGB without the red or the green cones (Machado, Oliveira & Fernandes 2009, severity 1).
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def linear_rgb(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def cielab(linear):
    """For D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_differ_for_every_eye():
    """Dark enough on white for text-sized marks (WCAG contrast 3), and a distance of 20 in CIELAB for any two."""
    for colour in book.COLOURS:
        luminance = np.dot([0.2126, 0.7152, 0.0722], linear_rgb(colour))
        assert 1.05 / (luminance + 0.05) >= 3, colour
    for matrix in map(np.array, VISION.values()):
        seen = [cielab(np.clip(matrix @ linear_rgb(colour), 0, 1)) for colour in book.COLOURS]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 20


def slider(**change):
    given = {
        "x": [1, 10, 100],
        "series": [
            book.Series("line", [[1, 2, 3], [2, 3, 4]]),
            book.Series("points", [[1, 2, 3], [2, 3, float("nan")]], "measured"),
        ],
        "positions": [0.5, 1.5],
        "readings": ["first <reading>", "second"],
        "name": "gamma",
        "xlabel": "depth",
        "ylabel": "norm",
        "alt": 'curves & "points"',
    }  # fmt: skip
    return book.slider(**(given | change))


def test_slider_is_self_contained_and_readable_without_script():
    html = slider(log_x=True)._repr_html_()
    assert "http" not in html
    assert 'aria-label="curves &amp; &quot;points&quot;"' in html
    assert "<li>first &lt;reading&gt;</li><li>second</li>" in html
    assert '<input type="range" min="0" max="1" value="0"' in html
    assert html.count("data-curve=") == 2 + html.count("path[data-curve]") * 0
    data = json.loads(re.search(r"d=(\{.*?\}),\s*i=", html, re.DOTALL)[1])
    assert len(data["paths"]) == 2
    assert len(data["paths"][0]) == 2
    assert data["positions"] == ["0.5", "1.5"]
    assert data["paths"][1][1].count("M") == 2  # the missing point is not drawn
    assert slider()._repr_html_() == slider()._repr_html_()
    assert 'value="1"' in slider(start=1)._repr_html_()
    assert "figcaption" not in html
    assert ">two &lt;curves&gt;</figcaption></figure>" in slider(caption="two <curves>")._repr_html_()


def test_slider_places_points_where_they_belong():
    """Three points at 1, 10, 100 on a logarithmic axis are equally spaced; larger values are higher up."""
    html = slider(log_x=True, series=[book.Series("line", [[1, 2, 3], [3, 2, 1]])])._repr_html_()
    first, second = json.loads(re.search(r"d=(\{.*?\}),\s*i=", html, re.DOTALL)[1])["paths"][0]
    at = [[float(v) for v in pair.split()] for pair in re.findall(r"[ML]([\d. ]+)", first)]
    assert at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.2)
    assert at[0][1] > at[1][1] > at[2][1]
    assert second != first


def test_slider_cannot_end_the_script_element():
    assert "</script><b>" not in slider(readings=["</script><b>", "x"])._repr_html_()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"series": [book.Series("line", [[1, 2, 3]])]}, ShapeError, r"\(2 positions, 3 points\) is needed"),
        ({"series": [book.Series("line", [[1, 2, 3]] * 2, "dots")]}, OptionError, "kind 'dots'"),
        ({"readings": ["one"]}, ShapeError, "1 readings for 2 positions"),
        ({"alt": " "}, OptionError, "alt is empty"),
        ({"start": 2}, OptionError, "start = 2"),
        ({"series": []}, OptionError, "series is empty"),
        ({"x": [0, -1, -2], "log_x": True}, OptionError, "nothing to draw on the logarithmic x axis"),
    ],
)
def test_slider_refuses_what_it_cannot_draw(change, error, text):
    with pytest.raises(error, match=text):
        slider(**change)
