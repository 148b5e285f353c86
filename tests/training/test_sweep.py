"""Several runs: what is finished is not trained again, what was stopped goes on, what diverged is over."""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from resid.errors import OptionError
from resid.training import cli
from resid.training import sweep as experiment
from resid.training.launcher import LaunchError, launch
from resid.training.recipe import Recipe
from resid.training.recipes import RECIPES
from resid.training.sweep import UnfinishedError, finished_runs, run_folder, run_recipes, runs_folder
from resid.training.trainer import DivergedError, train

SMALL = Recipe(
    dataset="digits", network="shortcut_depth", options={"depth": 5, "length": 1, "width": 2}, epochs=2, batch=256,
    pad=0, flip=False,
)  # fmt: skip
WILD = SMALL.replace(lr=1e30)
#: Training sets switches of the whole process: threads of tests that train here take turns.
ALONE = threading.Lock()


def status(folder):
    return json.loads((folder / "status.json").read_text())


def quiet(*args, **options):
    return run_recipes(*args, **{"say": None, "device": "cpu", **options})


def test_a_finished_run_is_read_and_not_trained_again(tmp_path, monkeypatch):
    said = []
    runs = quiet({"a": SMALL}, [0, 3], tmp_path, say=said.append)
    assert set(runs) == {("a", 0), ("a", 3)}
    assert [len(metrics) for metrics in runs.values()] == [2, 2]
    assert runs["a", 0][-1]["loss"] != runs["a", 3][-1]["loss"]
    assert said[0].startswith("a, seed 0: begins in a-")
    assert said[1].startswith("a, seed 0: 2 epochs, test error ")
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("trained again"))
    assert quiet({"a": SMALL}, [0, 3], tmp_path) == runs
    assert finished_runs({"a": SMALL}, [0, 1, 3], tmp_path) == runs


def test_seeds_share_a_hash_and_other_recipes_do_not(tmp_path):
    names = [run_folder("a", recipe, tmp_path).name for recipe in (SMALL, SMALL.replace(seed=3), SMALL.replace(lr=1))]
    assert names[1] == names[0].replace("seed0", "seed3")
    assert names[2] != names[0]
    assert all(name.startswith("a-") for name in names)


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole = quiet({"a": SMALL}, [0], tmp_path / "whole")["a", 0]
    stopped = run_folder("a", SMALL, tmp_path / "parts")
    train(SMALL, stopped, device="cpu", max_seconds=0)
    assert finished_runs({"a": SMALL}, [0], tmp_path / "parts") == {}
    said = []
    resumed = quiet({"a": SMALL}, [0], tmp_path / "parts", say=said.append)["a", 0]
    assert "goes on in" in said[0]
    for line, other in zip(resumed, whole, strict=True):
        assert {k: line[k] for k in ("step", "loss", "test_error")} == {
            k: other[k] for k in ("step", "loss", "test_error")
        }


def test_when_the_time_is_up_the_error_says_how_to_go_on(tmp_path):
    done = quiet({"a": SMALL}, [0], tmp_path)
    with pytest.raises(
        UnfinishedError, match=r"1 of 3 runs .*the same command goes on with b seed 0, c seed 0"
    ) as told:
        quiet({"a": SMALL, "b": SMALL.replace(lr=0.2), "c": SMALL.replace(lr=0.3)}, [0], tmp_path, max_seconds=1e-9)
    assert told.value.runs == done
    assert not run_folder("b", SMALL.replace(lr=0.2), tmp_path).exists()
    with pytest.raises(UnfinishedError, match=r"0 of 1 runs are finished \(max_seconds is over\)"):
        quiet({"b": SMALL.replace(lr=0.2, epochs=10_000)}, [0], tmp_path, max_seconds=0.5)
    assert run_folder("b", SMALL.replace(lr=0.2, epochs=10_000), tmp_path).exists()


def test_a_run_that_diverges_is_over(tmp_path, monkeypatch):
    (last,) = quiet({"wild": WILD}, [0], tmp_path)["wild", 0]
    assert last["diverged"]
    assert last["epoch"] == 1
    assert last["loss"] == last["test_loss"] == math.inf
    assert last["test_error"] == last["train_error"] == pytest.approx(0.9)
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("trained again"))
    assert quiet({"wild": WILD}, [0], tmp_path)["wild", 0] == [last]


def test_the_epoch_of_divergence_counts_from_one(tmp_path):
    later = SMALL.replace(epochs=4, schedule="steps", milestones=(2,), factor=1.0, lr=0.1)
    place = run_folder("later", later, tmp_path)
    train(later, place, device="cpu")
    status = '{"state": "failed", "error": "DivergedError", "reason": "the loss is not finite", "step": 13, "epoch": 2}'
    (place / "status.json").write_text(status)
    found = finished_runs({"later": later}, [0], tmp_path)["later", 0]
    assert [line["epoch"] for line in found] == [1, 2, 3]
    assert found[-1]["step"] == 13


def test_several_processes_go_through_the_launcher(tmp_path, monkeypatch):
    seen = []

    def launched(recipe, place, options, stop):
        seen.append((options.nproc, options.max_seconds))
        try:
            return train(recipe, place, options)
        except DivergedError as error:
            raise LaunchError(str(error)) from error

    monkeypatch.setattr(experiment, "launch", launched)
    assert len(quiet({"a": SMALL}, [0], tmp_path, nproc=2)["a", 0]) == 2
    assert quiet({"wild": WILD}, [0], tmp_path, nproc=2)["wild", 0][-1]["diverged"]
    assert seen == [(2, None), (2, None)]

    def broken(*_):
        raise LaunchError("rank 1 was ended by SIGKILL")

    monkeypatch.setattr(experiment, "launch", broken)
    with pytest.raises(LaunchError):
        quiet({"b": SMALL.replace(lr=0.2)}, [0], tmp_path, nproc=2)


def test_runs_at_once_are_those_one_after_the_other(tmp_path, monkeypatch):
    several = {"a": SMALL, "wild": WILD}
    alone = quiet(several, [0, 1], tmp_path / "alone")
    spans, said = [], []

    def launched(recipe, place, options, stop):
        assert options.at_once == 2
        begun = time.monotonic()
        try:
            return launch(recipe, place, options, stop)
        finally:
            spans.append((begun, time.monotonic()))

    monkeypatch.setattr(experiment, "launch", launched)
    together = quiet(several, [0, 1], tmp_path / "together", at_once=2, say=said.append)
    assert list(together) == list(alone)
    for key, metrics in alone.items():
        assert [line["loss"] for line in together[key]] == pytest.approx([line["loss"] for line in metrics], rel=1e-5)
    (first, second) = sorted(spans)[:2]
    assert first[0] <= second[0] < first[1]  # both at the same time
    assert sum("begins" in line for line in said) == 4
    assert quiet(several, [0, 1], tmp_path / "together", at_once=2) == together


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_runs_at_once_that_are_told_to_stop_are_saved_and_go_on(number, tmp_path):
    long = {name: SMALL.replace(epochs=4000, lr=rate) for name, rate in (("a", 0.01), ("b", 0.02), ("c", 0.03))}
    folders = [run_folder(name, recipe, tmp_path) for name, recipe in long.items()]

    def interrupt():
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not all((f / "metrics.jsonl").exists() for f in folders[:2]):
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    with pytest.raises(UnfinishedError, match=rf"0 of 3 runs are finished \({number.name}\)"):
        quiet(long, [0], tmp_path, at_once=2)
    assert signal.getsignal(number) == before
    assert [status(folder)["state"] for folder in folders[:2]] == ["stopped", "stopped"]
    assert not folders[2].exists()


def test_runs_wait_no_longer_when_told(tmp_path, monkeypatch):
    """The first run ends as usual just when the others are told."""
    begun = []

    def launched(recipe, folder, options, stop):
        begun.append(recipe.lr)
        stop.request("SIGTERM")
        with ALONE:
            return train(recipe, folder, device="cpu")

    monkeypatch.setattr(experiment, "launch", launched)
    several = {f"r{i}": SMALL.replace(lr=0.01 * (i + 1), epochs=1) for i in range(6)}
    with pytest.raises(UnfinishedError, match=r"[12] of 6 runs are finished"):
        quiet(several, [0], tmp_path, at_once=2)
    assert len(begun) <= 2


def test_data_are_there_before_several_processes_want_them(tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr(experiment, "load_dataset", lambda *given: log.append(given))

    def launched(recipe, folder, *_):
        log.append("run")
        with ALONE:
            return train(recipe, folder, device="cpu")

    monkeypatch.setattr(experiment, "launch", launched)
    quiet({"a": SMALL, "b": SMALL.replace(lr=0.2)}, [0], tmp_path, at_once=2, data_folder=None)
    assert log[:2] == [("digits", "train", None), ("digits", "test", None)]
    assert log[2:] == ["run", "run"]


def test_a_run_that_fails_stops_those_beside_it(tmp_path, monkeypatch):
    fine = SMALL.replace(epochs=2000)
    place, begun = run_folder("fine", fine, tmp_path), []

    def launched(recipe, folder, options, stop):
        begun.append(folder.name.partition("-")[0])
        if folder == place:
            return launch(recipe, folder, options, stop)
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (place / "metrics.jsonl").exists():
            time.sleep(0.1)
        raise LaunchError("the disk is full")

    monkeypatch.setattr(experiment, "launch", launched)
    with pytest.raises(LaunchError):
        quiet({"fine": fine, "broken": SMALL, "last": SMALL.replace(lr=0.2)}, [0], tmp_path, at_once=2)
    assert status(place)["state"] == "stopped"
    assert sorted(begun) == ["broken", "fine"]


def test_the_folder_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_RUNS", str(tmp_path / "runs"))
    assert runs_folder() == tmp_path / "runs"
    quiet({"a": SMALL}, [0])
    assert [p.name[:2] for p in (tmp_path / "runs").iterdir()] == ["a-"]
    monkeypatch.delenv("RESID_RUNS")
    chapters = Path(experiment.__file__).parents[2] / "book" / "experiments"
    assert runs_folder() == chapters / "resid-runs"
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "site-packages" / "resid" / "lab" / "experiment.py"))
    assert str(runs_folder()) == "resid-runs"  # where there is no checkout


def test_what_was_trained_from_a_shell_is_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESID_RUNS", str(tmp_path))
    (tmp_path / "tiny.json").write_text(SMALL.replace(seed=3).to_json())
    words = [str(tmp_path / "tiny.json"), "--device", "cpu"]
    assert cli.main([*words, "--where"]) == 0
    place = Path(capsys.readouterr().out.strip())
    assert not place.exists()
    assert cli.main(words) == 0
    assert status(place)["state"] == "finished"
    assert list(finished_runs({"tiny": SMALL}, [3])) == [("tiny", 3)]


@pytest.mark.parametrize(
    ("names", "seeds", "more", "text"),
    [
        (["digits-proc22", "digits-proc23"], [0], {}, "no recipe 'digits-proc23'"),
        ("digits-proc22", [0], {}, "a list of names is needed"),
        (["digits-proc22"], [], {}, "at least one of each"),
        ([], [0], {}, "at least one of each"),
        (["digits-proc22"], [0], {"nproc": 0}, "nproc = 0: an integer of at least 1"),
        (["digits-proc22"], [0], {"at_once": 0}, "at_once = 0: an integer of at least 1"),
    ],
)
def test_what_cannot_be_run_is_refused(names, seeds, more, text, tmp_path):
    with pytest.raises(OptionError, match=text):
        quiet(names, seeds, tmp_path, **more)


def test_names_are_of_recipes_and_pairs_come_together():
    wanted = list(experiment._wanted(["digits-proc22", "digits-resnet20", "digits-proc22"], [0, 1]))
    assert wanted == [("digits-proc22", 0), ("digits-resnet20", 0), ("digits-proc22", 1), ("digits-resnet20", 1)]
    assert experiment._wanted(["digits-proc22"], [7])["digits-proc22", 7] == RECIPES["digits-proc22"].replace(seed=7)
