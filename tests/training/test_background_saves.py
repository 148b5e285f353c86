"""Checkpoints that are written in the background."""

import errno
import json
import os
import signal
import threading

import pytest
import torch

from resid.training import checkpoint
from resid.training.checkpoint import CheckpointError, RunFolder
from resid.training.trainer import train
from tests.training.runs import Fault, run
from tests.training.test_train_images import DIGITS, assert_equal


@pytest.mark.parametrize("moment", ["half", "rename"])
def test_killed_while_a_checkpoint_is_written_in_the_background(moment, tmp_path):
    recipe = DIGITS.replace(batch=240, epochs=2)
    behind = ["--background-saves"]
    assert run(recipe, tmp_path, fault=Fault(moment, 3), more=behind) == [-signal.SIGKILL]
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    kept = RunFolder(tmp_path, recipe).checkpoints()
    assert [p.name[:14] for p in kept] == ["step-000000002", "step-000000004"]
    assert RunFolder(tmp_path, recipe).load()["step"] == 4
    assert run(recipe, tmp_path, more=behind) == [0]
    assert not list(tmp_path.glob("*.tmp"))
    plain = train(recipe, tmp_path / "whole")
    assert_equal(torch.load(tmp_path / "weights.pt", weights_only=True), plain.weights())


class Slow:
    """Checkpoints wait, before they are turned into bytes, until they may; how many are under way at once is kept."""

    def __init__(self, monkeypatch):
        self.may, self.under_way, self.most, self.threads = threading.Event(), 0, 0, set()
        turn = checkpoint._bytes

        def slow(state):
            self.threads.add(threading.current_thread().name)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            assert self.may.wait(30)
            self.under_way -= 1
            return turn(state)

        monkeypatch.setattr(checkpoint, "_bytes", slow)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    folder, slow = RunFolder(tmp_path, DIGITS), Slow(monkeypatch)
    weight = torch.zeros(3)
    with folder.opened(True):
        folder.save_behind(1, {"model": {"w": weight}, "list": [weight, 5]})
        weight += 1  # the next step, while the first state waits to be written
        assert folder.checkpoints() == []
        slow.may.set()
        folder.save_behind(2, {"model": {"w": weight}})
        folder.save(3, {"model": {"w": weight + 1}})
    found = [torch.load(path, weights_only=True) for path in folder.checkpoints()]
    assert [state["step"] for state in found] == [2, 3]
    assert found[0]["model"]["w"].tolist() == [1, 1, 1]
    assert slow.most == 1
    assert len(slow.threads) == 2, "two in the background, one at the end of the run"


def test_the_state_is_copied_before_it_is_written(tmp_path, monkeypatch):
    folder, slow = RunFolder(tmp_path, DIGITS, keep=9), Slow(monkeypatch)
    weight = torch.zeros(3)
    with folder.opened(True):
        folder.save_behind(1, {"model": {"w": weight, "more": (weight[:1], {"deep": weight})}})
        weight += 1
        slow.may.set()
    state = torch.load(folder.checkpoints()[0], weights_only=True)
    assert state["model"]["w"].tolist() == [0, 0, 0]
    first, rest = state["model"]["more"]
    assert (first.tolist(), rest["deep"].tolist()) == ([0], [0, 0, 0])


def full_disk(monkeypatch, name):
    write = checkpoint.write_whole

    def limited(path, content):
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", limited)


@pytest.mark.parametrize(("full", "reached"), [("step-000000002", 4), ("step-000000004", 5)])
def test_a_full_disk_shows_at_the_next_checkpoint_and_at_the_end(full, reached, tmp_path, monkeypatch):
    steps = []
    step = torch.optim.SGD.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda self, *a: steps.append(None) or step(self, *a))
        full_disk(patch, full)
        with pytest.raises(CheckpointError, match=rf"step {int(full[-1])} cannot be written .*the disk is full"):
            train(DIGITS, tmp_path, save_every=2, background_saves=True)
    assert len(steps) == reached
    assert json.loads((tmp_path / "status.json").read_text())["error"] == "CheckpointError"
    assert not (tmp_path / "weights.pt").exists()
    assert train(DIGITS, tmp_path).state == "finished"


def test_a_run_that_ends_by_an_error_waits_for_its_checkpoint(tmp_path, monkeypatch):
    folder, slow = RunFolder(tmp_path, DIGITS), Slow(monkeypatch)
    threading.Timer(0.3, slow.may.set).start()

    def fail():
        with folder.opened(True):
            folder.save_behind(1, {"model": {}})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name[:14] for path in folder.checkpoints()] == ["step-000000001"]


def test_saves_behind_give_the_same_run(tmp_path):
    plain, behind = train(DIGITS, tmp_path / "a"), train(DIGITS, tmp_path / "b", save_every=1, background_saves=True)
    assert_equal(behind.weights(), plain.weights())
    found = [RunFolder(tmp_path / name, DIGITS).load() for name in ("a", "b")]
    assert_equal(found[1]["model"], found[0]["model"])
    assert len(RunFolder(tmp_path / "b", DIGITS).checkpoints()) == 2
