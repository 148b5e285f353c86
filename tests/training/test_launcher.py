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
from resid.training import cli
from resid.training.launcher import LaunchError, launch
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
    result = launch(
        PROC, tmp_path / "run", nproc=2, retries=1, save_every=2, device="cpu",
        say=lambda line: said.append((time.monotonic(), line)),
    )  # fmt: skip
    failures = [(when, line) for when, line in said if line.startswith("try ")]
    assert [line for _, line in failures] == ["try 1 of 2 failed: rank 1 was ended by SIGKILL"]
    assert failures[0][0] - (tmp_path / "died").stat().st_mtime - time.monotonic() + time.time() < 60
    assert (result.state, result.step) == ("finished", 12)
    assert [line.split(",")[0] for _, line in said if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert no_children()
    assert run(PROC, tmp_path / "whole", 2) == [0, 0]
    whole = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, result.weights()[name]) for name, value in whole.items())


def test_what_another_try_would_not_help_is_tried_once(tmp_path):
    recipe, said = ALLCONV.replace(lr=1e6), []
    with pytest.raises(LaunchError, match=r"try 1: the loss is not finite at step \d+ \(epoch 0") as caught:
        launch(recipe, tmp_path, retries=3, device="cpu", say=said.append)
    assert len(caught.value.reasons) == len(said) == 1
    assert "DivergedError" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_interrupt_and_sigterm_end_the_children_which_save(tmp_path, how):
    recipe = ALLCONV.replace(epochs=2000)

    def say(line):
        if how == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            launch(recipe, tmp_path, device="cpu", say=say)
    else:
        assert launch(recipe, tmp_path, device="cpu", say=say).state == "stopped"
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGTERM")
    assert 6 <= status["step"] < 12_000
    assert no_children()
    assert signal.getsignal(signal.SIGTERM) is before


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
        (child,) = [c for c in psutil.Process(launcher.pid).children() if "resid.training.cli" in c.cmdline()]
        launcher.kill()
        launcher.wait()
        child.wait(30)
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


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    progress = cli.Progress()
    progress("try 1 of 3 failed: why")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress("epoch 2/4, step 10: loss 1")
    progress("epoch 3/4, step 15: loss 0.5")
    progress("in epoch 4/4: step 17 of 20, 57 images/s, about 2 min left")
    out = capsys.readouterr().out
    assert "try 1 of 3 failed: why\n" in out
    assert "3/4" in out
    assert "4/4" not in out.replace("2/4", "").replace("3/4", ""), "the last epoch is not over"
    assert "loss 0.5" in out
    assert "about 2 min left" in out
