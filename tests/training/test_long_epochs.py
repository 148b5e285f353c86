"""Epochs that take many minutes: saved inside, and heard of, on one rank and on two."""

import functools

import pytest
import torch

from resid.training import engine, progress, trainer
from resid.training.checkpoint import CheckpointError, RunFolder
from resid.training.trainer import train
from tests.training.runs import Fault, run
from tests.training.test_faults import ALLCONV, PROC
from tests.training.test_trainer import equal

#: 12 steps an epoch, 2 epochs
LONG, LONG_PROC = ALLCONV.replace(batch=120), PROC.replace(batch=120)


class Clock:
    """A clock that only steps move, by so many seconds each."""

    def __init__(self, seconds, monkeypatch):
        self.now, self.seconds = 0.0, seconds
        step = torch.optim.SGD.step

        @functools.wraps(step)  # torch marks what has its hooks, and would wrap it in them again
        def stepping(*arguments):
            self.now += self.seconds
            return step(*arguments)

        monkeypatch.setattr(torch.optim.SGD, "step", stepping)
        for module in (engine, progress, trainer):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr("tqdm.std.time", self.monotonic)

    def monotonic(self):
        return self.now


def saved(folder, recipe=LONG):
    return [int(path.name[5:14]) for path in RunFolder(folder, recipe).checkpoints()]


def statuses(monkeypatch):
    """What is written to status.json."""
    found, write = [], RunFolder.set_status

    def noted(self, state, **more):
        found.append({"state": state, **more})
        write(self, state, **more)

    monkeypatch.setattr(RunFolder, "set_status", noted)
    return found


def test_a_long_epoch_tells_of_itself_and_is_saved(tmp_path, monkeypatch):
    whole = train(LONG, tmp_path / "whole")
    Clock(40, monkeypatch)
    said, written = [], statuses(monkeypatch)
    result = train(LONG, tmp_path / "long", keep=9, say=said.append)
    assert equal(result.weights(), whole.weights())
    # more than 300 s inside an epoch, more than 60 at the end of one
    assert saved(tmp_path / "long") == [8, 12, 20, 24]
    inside = [line for line in said if line.startswith("in ")]
    assert inside[0] == "in epoch 1/2: step 2 of 24, 3 images/s, 14:40 left"
    assert [line.split(",")[0] for line in inside] == [
        f"in epoch {1 + k // 12}/2: step {k} of 24" for k in (2, 4, 6, 8, 10, 14, 16, 18, 20, 22)
    ]
    assert [line.split(",")[0] for line in said if line not in inside] == ["epoch 1/2", "epoch 2/2"]
    first = {"state": "running", "step": 2, "steps": 24, "images_per_second": 3.0, "seconds_left": 880}
    assert written[1] == first
    assert [line["step"] for line in written] == [0, *range(2, 25, 2), 24]


def test_short_epochs_do_not_tell_but_the_status_is_kept(tmp_path, monkeypatch):
    Clock(4, monkeypatch)  # 48 s an epoch
    said, written = [], statuses(monkeypatch)
    train(LONG, tmp_path, say=said.append)
    assert [line.split(",")[0] for line in said] == ["epoch 1/2", "epoch 2/2"]
    assert [(line["state"], line["step"]) for line in written] == [("running", 0), ("running", 15), ("finished", 24)]
    assert written[1]["seconds_left"] == 9 * 4


def test_steps_that_were_asked_for_are_kept_to(tmp_path, monkeypatch):
    Clock(400, monkeypatch)
    train(LONG, tmp_path, keep=9, save_every=5)
    assert saved(tmp_path) == [5, 10, 15, 20, 24]


def test_a_full_disk_stops_what_has_to_be_written_alone(tmp_path, monkeypatch):
    Clock(40, monkeypatch)
    write = RunFolder.set_status

    def full(self, state, **more):
        if "seconds_left" in more:
            raise CheckpointError("the disk is full")
        write(self, state, **more)

    monkeypatch.setattr(RunFolder, "set_status", full)
    assert train(LONG, tmp_path).state == "finished"


@pytest.mark.parametrize("recipe", [LONG, LONG_PROC], ids=["allconv", "proc"])
def test_a_run_killed_in_a_long_epoch_goes_on_inside_it(recipe, tmp_path, monkeypatch):
    whole = train(recipe, tmp_path / "whole")
    clock = Clock(40, monkeypatch)

    class KilledError(Exception):
        pass

    def kill(line):
        if "step 10 of" in line:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", say=kill)
    assert saved(tmp_path / "killed", recipe) == [8]
    clock.now = 0.0
    said = []
    result = train(recipe, tmp_path / "killed", say=said.append)
    assert equal(result.weights(), whole.weights())
    assert said[0].startswith("in epoch 1/2: step 10 of 24, 3 images/s"), "counted from where it went on"


@pytest.mark.parametrize("early", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_save_together_whichever_clock_is_ahead(early, tmp_path):
    assert run(LONG, tmp_path / "whole", 2) == [0, 0]
    assert run(LONG, tmp_path / "jumped", 2, Fault("jump", 3), early, save_every=None) == [0, 0]
    assert saved(tmp_path / "jumped") == [8, 24], "asked every eight steps"
    assert equal(*(torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "jumped")))


def test_the_display_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress.Bar(print, 50, total=20, initial=5, mininterval=0) as bar:
        bar.set_description_str("epoch 2/4", refresh=False)
        bar.update()
        bar.begin_epoch(10)
        bar.update()
    out = capsys.readouterr().out
    assert "epoch 2/4: " in out
    assert " 6/20 [" in out
    assert " 11/20 [" in out
    assert "images/s]" in out


def test_many_runs_say_a_line_a_minute_each(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    say = progress.once_a_minute(said.append, "a, seed 0: ")
    for now[0] in (1, 59, 61, 62, 120, 122):
        say(f"at {now[0]}")
    assert said == ["a, seed 0: at 61", "a, seed 0: at 122"]
