"""The launcher and the command line: torchrun with a rank that dies, interrupts, and what is not tried again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch

from resid.errors import OptionError
from resid.training import cli, launcher
from resid.training.launcher import LaunchError, launch, worker_command
from resid.training.options import RunOptions
from resid.training.recipe import RecipeError
from resid.training.trainer import FAILED, STOPPED
from tests.training.runs import run
from tests.training.test_faults import ALLCONV, PROC

#: Rank 1 of the first try dies before its fifth step; `site` imports this in every process that Python starts.
SITE = """
    import os, pathlib
    if os.environ.get("RANK") == "1" and not pathlib.Path({marker!r}).exists():
        import signal, torch
        step, seen = torch.optim.SGD.step, []
        def stepping(*arguments, **more):
            seen.append(None)
            if len(seen) == 5:
                pathlib.Path({marker!r}).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **more)
        torch.optim.SGD.step = stepping
"""


def no_children():
    return not [child for child in psutil.Process().children(recursive=True) if "resid.training.cli" in child.cmdline()]


def test_a_rank_that_dies_stops_the_job_and_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(SITE.format(marker=str(tmp_path / "died"))))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", ""), str(Path.cwd())])
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = []
    result = launch(PROC, tmp_path / "run", nproc=2, retries=1, save_every=2, device="cpu", say=said.append)
    assert [line for line in said if line.startswith("rank ")] == ["rank 1 was ended by SIGKILL"]
    assert (result.state, result.step) == ("finished", 12)
    assert [line.split(",")[0] for line in said if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert no_children()
    assert run(PROC, tmp_path / "whole", 2) == [0, 0]
    whole = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, result.weights()[name]) for name, value in whole.items())


def test_what_another_try_would_not_help_is_tried_once(tmp_path):
    said = []
    with pytest.raises(LaunchError, match=r"has failed: the loss is not finite at step \d+ \(epoch 0"):
        launch(ALLCONV.replace(lr=1e6), tmp_path, retries=3, device="cpu", say=said.append)
    assert said == []
    assert (tmp_path / "log.txt").read_text().count("DivergedError") == 1


def test_what_dies_each_time_is_an_error_with_the_reason(tmp_path, monkeypatch):
    lines = """import os; print('resid-train: WorkerDiedError: a worker'); os._exit(3)"""
    command = worker_command(ALLCONV, tmp_path, RunOptions(retries=1))
    start = command[: command.index("-m", 2)]
    monkeypatch.setattr(launcher, "worker_command", lambda *_: [*start, "--no-python", sys.executable, "-c", lines])
    said = []
    with pytest.raises(LaunchError, match=r"rank 0 left with exit status 3: WorkerDiedError: a worker$"):
        launch(ALLCONV, tmp_path, device="cpu", say=said.append)
    assert said == ["rank 0 left with exit status 3: WorkerDiedError: a worker"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_end_the_children_which_save(tmp_path, number):
    before = signal.getsignal(number)
    sent = []

    def say(line):
        if not sent:  # a second Ctrl-C would not wait
            sent.append(number)
            os.kill(os.getpid(), number)

    result = launch(ALLCONV.replace(epochs=2000), tmp_path, device="cpu", say=say)
    assert (result.state, result.reason) == ("stopped", "SIGTERM"), "as the children got it"
    assert 6 <= result.step < 12_000
    assert no_children()
    assert signal.getsignal(number) is before


def test_an_error_of_a_caller_ends_the_children_which_save(tmp_path):
    def say(line):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(ALLCONV.replace(epochs=2000), tmp_path, device="cpu", say=say)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    assert no_children()


def test_a_run_whose_launcher_was_killed_is_saved_and_ends(tmp_path):
    """A kernel that is killed, say: its runs must not go on unseen, with a lock on their folders."""
    code = f"""
        from resid.training.launcher import launch
        from resid.training.recipe import Recipe
        launch(Recipe.from_json({ALLCONV.replace(epochs=4000).to_json()!r}), {str(tmp_path / "run")!r}, device="cpu")
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.DEVNULL) as launcher:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.1)
        children = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        psutil.wait_procs(children, 30)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "the launcher is gone")
    assert list((tmp_path / "run").glob("**/step-*.pt"))


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(OptionError, match="nproc = 0"):
        launch(ALLCONV, tmp_path, nproc=0)
    with pytest.raises(OptionError, match="retries = -1"):
        launch(ALLCONV, tmp_path, retries=-1)


def test_the_list_may_be_read_in_part():
    pipe, write = os.pipe()
    os.close(pipe)  # nobody reads any more
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "resid.training.cli", "--list"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_command_line(tmp_path, capsys, monkeypatch):
    command = ["digits-allconv", "--set", "options.blocks=1", "--set", "epochs=1", "--set", "schedule=constant",
               "--set", "milestones=", "--device", "cpu", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    assert cli.main([*command, "--max-seconds", "0"]) == STOPPED
    assert "stopped at step 1 (max_seconds is over): the same command goes on" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert capsys.readouterr().out.startswith("epoch 1/1, step 45: loss ")
    assert cli.main([*command, "--set", "lr=0.1"]) == FAILED
    assert "RecipeMismatchError" in capsys.readouterr().err
    assert cli.main(["digits-alconv"]) == FAILED
    assert "no recipe 'digits-alconv': --list shows the names" in capsys.readouterr().err
    assert cli.main(["--list"]) == 0
    assert "li-figure-9-110-2" in capsys.readouterr().out.split()
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESID_RUNS", "runs")
    (tmp_path / "mine.json").write_text(ALLCONV.to_json())
    assert cli.main(["mine.json", "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / f"mine-{ALLCONV.replace(seed=0).hash}-seed{ALLCONV.seed}" / "weights.pt").exists()
    with pytest.raises(RecipeError, match=r"no recipe 'none.json'"):
        cli.read_recipe("none.json")
