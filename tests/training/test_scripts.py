"""The scripts for one machine and for Slurm: what they name exists, and they run, with stand-ins for Slurm's words."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from resid.book.experiments.sample_images import write_sample_tree
from resid.training import cli
from resid.training.cost import main as time_command
from resid.training.recipes import RECIPES
from resid.training.sweep import run_folder
from resid.training.trainer import STOPPED, train
from tests.training.test_train_images import IMAGES
from tools.paths import ROOT

SCRIPTS = sorted((ROOT / "scripts").iterdir())
PAGES = [
    *SCRIPTS,
    ROOT / "book" / "clusters.md",
    ROOT / "README.md",
    ROOT / "book" / "experiments" / "allconv_imagenet.ipynb",
]
#: 60 steps, so that something can happen under way
LONG = IMAGES.replace(epochs=None, steps=60)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("images"), classes=7, per_class=9, val=3, seed=1)


def test_there_is_one_for_a_machine_and_one_for_slurm():
    assert [path.name for path in SCRIPTS] == ["imagenet-node.sh", "imagenet.slurm"]
    for path in SCRIPTS:
        assert os.access(path, os.X_OK), path
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_recipes_and_options_that_are_named_exist(page):
    """Every name of a recipe for images, and every option after one of the commands, up to the end of its line."""
    text = page.read_text().replace("\\\n", " ").replace("\\\\\\n", " ")
    names = set(re.findall(r"\b(?:imagenet|images)-(?:paper|modern|allconv)[\w-]*", text))
    assert names or page.name == "README.md"
    assert names <= set(RECIPES)
    known = set(cli.make_parser()._option_string_actions)
    for command in re.findall(r"(?:resid-train|-m resid\.training\.cli)\b([^\n`]*)", text):
        assert set(re.findall(r"(?<=\s)--[a-z-]+", command)) <= known, command


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_settings_that_are_named_are_fields(page):
    for setting in re.findall(r"--set ([\w.]+=[^\s`\"]+)", page.read_text()):
        RECIPES["imagenet-paper"].with_settings([setting])


def test_the_benchmark_command_of_the_page_runs(capsys):
    (command,) = re.findall(r"python -m resid\.training\.cost (.*)", (ROOT / "book" / "clusters.md").read_text())
    words = [re.sub(r"[\d,]+$", "2", word) for word in shlex.split(command)]
    small = ["--set", "size=32", "--set", "compile=no", "--steps", "1", "--warmup", "1", "--device", "cpu"]
    assert time_command([*words, *small]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == 2


def stand_ins(folder, **commands):
    """Commands of a shell for the front of PATH."""
    folder.mkdir()
    for name, text in commands.items():
        file = folder / name.replace("_", "-")
        file.write_text("#!/usr/bin/env bash\n" + textwrap.dedent(text))
        file.chmod(0o755)
    return folder


def execute(script, words, tmp_path, tree, more):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    here = stand_ins(
        tmp_path / f"bin{len(list(tmp_path.iterdir()))}",
        srun=f"""
            echo "$@" >> {tmp_path}/srun.txt
            while [[ $1 == -* ]]; do shift; done
            exec "$@"
        """,
        scontrol=f"""
            echo "$@" >> {tmp_path}/scontrol.txt
            [ "$1" = show ] && echo 127.0.0.1 || true
        """,
        torchrun=f'exec {sys.executable} -m torch.distributed.run "$@"',
        resid_train=f'exec {sys.executable} -m resid.training.cli "$@"',
        nvidia_smi="printf 'GPU 0\\nGPU 1\\n'",
    )
    places = [*more.pop("first", []), str(ROOT)]
    environment = {
        **os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "RESID_IMAGENET": str(tree),
        "RUN": str(tmp_path / "run"), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places),
        "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7",
        "MASTER_PORT": str(port), **more,
    }  # fmt: skip
    words = [LONG.to_json(), "--device", "cpu", "--workers", "0", *words]
    return subprocess.run([str(script), *words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    return train(LONG, tmp_path_factory.mktemp("whole"), data_folder=tree, workers=0).weights()


def assert_as_whole(folder, whole):
    found = torch.load(folder / "weights.pt", weights_only=True)
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_runs_lie_where_the_chapters_look(script, tree, tmp_path):
    done = execute(script, ["--max-seconds", "0"], tmp_path, tree, {"RUN": "", "RESID_RUNS": str(tmp_path / "runs")})
    (place,) = (tmp_path / "runs").iterdir()
    assert place == run_folder("recipe", LONG, tmp_path / "runs"), done.stderr
    assert json.loads((place / "status.json").read_text())["state"] == "stopped"


def test_one_machine(tree, whole, tmp_path):
    script = ROOT / "scripts" / "imagenet-node.sh"
    first = execute(script, ["--max-seconds", "0"], tmp_path, tree, {})
    assert first.returncode == STOPPED, first.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    last = execute(script, [], tmp_path, tree, {})
    assert last.returncode == 0, last.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["ranks"] == 2
    assert_as_whole(tmp_path / "run", whole)
    again = subprocess.run([str(script)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert again.returncode != 0
    assert "RESID_IMAGENET: must name the folder with train and val" in again.stderr


def test_slurm_stops_in_time_and_queues_itself_again(tree, tmp_path):
    script = ROOT / "scripts" / "imagenet.slurm"
    done = execute(script, [], tmp_path, tree, {"SLURM_JOB_END_TIME": str(int(time.time()) + 600)})
    assert done.returncode == 0, done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "max_seconds is over")
    assert status["step"] < LONG.steps
    assert (tmp_path / "scontrol.txt").read_text().splitlines() == ["show hostnames node[1-2]", "requeue 7"]
    words = (tmp_path / "srun.txt").read_text().split()
    assert words[:5] == ["--kill-on-bad-exit=0", "torchrun", "--nnodes=1:1", "--nproc-per-node=2", "--max-restarts=3"]


def test_slurm_does_not_queue_a_job_again_that_never_began(tree, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"state": "stopped", "step": 3, "reason": "of an earlier job"}')
    script = ROOT / "scripts" / "imagenet.slurm"
    done = execute(script, ["--no-such-option"], tmp_path, tree, {})
    assert done.returncode != 0
    assert (tmp_path / "scontrol.txt").read_text().splitlines() == ["show hostnames node[1-2]"]


#: Rank 1 dies before its 20th step, the first time; `site` imports this in every process that Python starts.
SITE = """
    import os, pathlib
    if os.environ.get("RANK") == "1" and not pathlib.Path({marker!r}).exists():
        import signal, torch
        step, seen = torch.optim.SGD.step, []
        def stepping(*arguments, **more):
            seen.append(None)
            if len(seen) == 20:
                pathlib.Path({marker!r}).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **more)
        torch.optim.SGD.step = stepping
"""


@pytest.mark.slow
def test_torchrun_starts_again_after_a_process_died(tree, whole, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(SITE.format(marker=str(tmp_path / "died"))))
    done = execute(ROOT / "scripts" / "imagenet.slurm", ["--save-every", "6"], tmp_path, tree, {"first": [str(site)]})
    assert (tmp_path / "died").exists()
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert not [line for line in (tmp_path / "scontrol.txt").read_text().splitlines() if "requeue" in line]
    assert_as_whole(tmp_path / "run", whole)


def test_a_time_to_end_is_the_earlier_one(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    for words, left in (([], None), (["--until", "1060"], 60), (["--until", "900"], 0),
                        (["--max-seconds", "5", "--until", "1060"], 5), (["--max-seconds", "99"], 99)):  # fmt: skip
        assert cli.options_of(cli.make_parser().parse_args(["x", *words])).max_seconds == left


def test_a_stop_is_no_failure_where_torchrun_would_start_again(tree, tmp_path, monkeypatch, capsys):
    command = [LONG.to_json(), "--run-dir", str(tmp_path), "--data", str(tree), "--workers", "0", "--device", "cpu",
               "--max-seconds", "0"]  # fmt: skip
    for restarts, status in (("3", 0), ("0", STOPPED)):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        assert cli.main(command) == status
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    assert cli.main(command) == STOPPED
    assert Path(tmp_path / "status.json").exists()
