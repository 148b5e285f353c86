"""What goes wrong on people's machines: mended where nothing is lost by it, else one line that says what to do."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from resid.errors import OptionError
from resid.training import cli, launcher
from resid.training.checkpoint import DamagedRunError, RunFolder
from resid.training.options import RunOptions
from resid.training.recipe import RecipeError, build_network
from resid.training.signals import Stop
from resid.training.trainer import FAILED, INTERRUPTED, STOPPED, train
from tests.training.test_trainer import ALLCONV
from tools import bootstrap, site

# --- interrupts


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A shell has what it starts in the background ignore Ctrl-C, and these tests may be run there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_stops_and_a_second_one_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert stop.wish() == ""
        assert signal.getsignal(signal.SIGINT) is not before
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wish() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_are_ignored_or_not_pythons_stay_so(monkeypatch):
    """In the background of a shell SIGINT is ignored; a program around Python may have set handlers of its own."""
    monkeypatch.setattr(signal, "getsignal", lambda name: signal.SIG_IGN if name == signal.SIGINT else None)
    asked = []
    monkeypatch.setattr(signal, "signal", lambda name, handler: asked.append(name))
    with Stop():
        assert asked == [signal.SIGTERM]
    assert asked == [signal.SIGTERM]


def test_ctrl_c_in_a_training_loses_nothing(tmp_path, monkeypatch, capsys):
    step, done = torch.optim.SGD.step, []

    def interrupted(self, *arguments):
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    words = [ALLCONV.to_json(), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupted)
        assert cli.main(words) == STOPPED
    assert RunFolder(tmp_path / "run", ALLCONV).status() == {"state": "stopped", "step": 2, "reason": "SIGINT"}
    assert "the same command goes on" in capsys.readouterr().out
    assert cli.main(words) == 0
    whole = train(ALLCONV, tmp_path / "whole").weights()
    found = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    assert all(torch.equal(value, found[name]) for name, value in whole.items())


def test_ctrl_c_before_there_is_a_training_is_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_train", interrupt)
    assert cli.main([ALLCONV.to_json()]) == INTERRUPTED
    assert capsys.readouterr().err == "resid-train: interrupted: the same command goes on\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_processes_catch_it_is_no_failure(tmp_path, monkeypatch, number):
    """They take seconds to import torch, and die of the signal; another try would train on against the wish."""
    monkeypatch.setattr(launcher, "worker_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    before = signal.getsignal(number)
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    result = launcher.launch(ALLCONV, tmp_path, nproc=2, device="cpu", say=None)
    assert (result.state, result.reason) == ("stopped", number.name)
    assert signal.getsignal(number) is before


def test_the_launcher_passes_a_signal_on_once(tmp_path, monkeypatch):
    """torchrun takes a second one for an order to leave its ranks alone."""
    code = f"""if True:
        import pathlib, signal, time
        def note(*_):
            with open({str(tmp_path / "seen")!r}, "a") as file:
                file.write("x")
        signal.signal(signal.SIGTERM, note)
        pathlib.Path({str(tmp_path / "seen")!r}).touch()
        time.sleep(3)
        time.sleep(1)
    """
    monkeypatch.setattr(launcher, "worker_command", lambda *_: [sys.executable, "-c", code])

    def interrupt():
        limit = time.monotonic() + 30
        while time.monotonic() < limit and not (tmp_path / "seen").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert launcher.launch(ALLCONV, tmp_path, device="cpu", say=None).state == "stopped"
    assert (tmp_path / "seen").read_text() == "x"


def test_ranks_of_one_machine_need_no_name_for_it():
    assert "--local-addr=127.0.0.1" in launcher.worker_command(ALLCONV, "run", RunOptions(nproc=2))


# --- the command line


def refused(words, capsys):
    """The one line that a command says before it ends with the status for what another try would not help."""
    assert cli.main(words) == FAILED
    out = capsys.readouterr()
    (line,) = out.err.splitlines()
    assert line.startswith("resid-train: ")
    assert "Traceback" not in out.out
    return line


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize("more", [[], ["--nproc", "2"]], ids=["alone", "launched"])
def test_a_run_folder_that_is_a_file(below, more, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / below)
    line = refused([ALLCONV.to_json(), "--run-dir", place, "--device", "cpu", *more], capsys)
    assert f"run_dir = {place.rstrip('/')!r}: nothing can be written there: " in line


@pytest.mark.parametrize("more", [[], ["--nproc", "2"]], ids=["alone", "launched"])
@pytest.mark.parametrize(
    ("device", "text"),
    [("gpu", '"cpu", "cuda" or "cuda:0", say, is needed'), ("cuda", "torch"), ("meta", "for CPUs and for GPUs")],
)
def test_a_device_that_is_not_there(device, text, more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launcher, "_run", lambda *_: pytest.fail("a process was started"))
    line = refused([ALLCONV.to_json(), "--run-dir", str(tmp_path / "run"), "--device", device, *more], capsys)
    assert f"device = {device!r}: " in line
    assert text in line


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ('options.widths=[16,"a"]', "widths"),
        ("options.widths=[0,16]", "widths"),
    ],
)
def test_options_that_make_no_network(setting, text, tmp_path, capsys):
    line = refused(["digits-allconv", "--set", setting, "--run-dir", str(tmp_path), "--device", "cpu"], capsys)
    assert "RecipeError: options = " in line
    assert text in line


@pytest.mark.parametrize("width", [0, -1, "a", 1.5])
def test_a_width_that_makes_no_network(width):
    recipe = cli.read_recipe("digits-proc22")[1]
    with pytest.raises(RecipeError, match="width"):
        build_network(recipe.replace(options={**recipe.network_options, "width": width}))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-seconds", "nan"], "max_seconds = nan: a number of seconds is needed"),
        (["--max-seconds", "-1"], "max_seconds = -1.0: a number of seconds is needed"),
        (["--save-every", "-3"], "save_every = -3: an integer of at least 1 is needed"),
        (["--data", "nowhere/at/all"], "--data nowhere/at/all: there is no such folder"),
    ],
)
def test_options_of_no_use(words, text, tmp_path, capsys):
    assert text in refused([ALLCONV.to_json(), "--run-dir", str(tmp_path), "--device", "cpu", *words], capsys)


def test_a_recipe_that_is_no_text(tmp_path, capsys):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    assert "a.json cannot be read" in refused([str(tmp_path / "a.json")], capsys)


# --- files of a run folder


@pytest.fixture
def finished(tmp_path):
    train(ALLCONV, tmp_path, save_every=3)
    return tmp_path


def test_a_line_of_metrics_that_was_cut_off_is_left_out(finished):
    path = finished / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({"step": 1, "ratios": {"a": {"b": 1}}})
    path.write_text("\n".join(lines)[:-1])  # behind the end of an inner brace
    assert [line["epoch"] for line in RunFolder(finished, ALLCONV).lines()] == list(range(1, len(lines)))
    path.write_text("{\n" + "\n".join(lines))
    with pytest.raises(DamagedRunError, match=r"metrics.jsonl, line 1 is damaged"):
        RunFolder(finished, ALLCONV).lines()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_status_is_written_anew(finished, content):
    (finished / "status.json").write_bytes(content)
    with pytest.warns(UserWarning, match="status.json is damaged and passed over"):
        assert RunFolder(finished, ALLCONV).status() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(ALLCONV, finished).state == "finished"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"epochs": 1, "epochen": 2}'])
def test_a_damaged_recipe_is_named(finished, content):
    (finished / "recipe.json").write_bytes(content)
    with pytest.raises(DamagedRunError, match=r"recipe.json is no recipe: .*choose another folder"):
        RunFolder(finished, ALLCONV)


@pytest.mark.parametrize("what", ["text", "list", "without a recipe"])
def test_a_checkpoint_that_is_none_is_passed_over(finished, what):
    """Its checksum is right, so that somebody, or another program, has written it so."""
    buffer = io.BytesIO()
    torch.save([1, 2] if what == "list" else {"step": 9}, buffer)
    content = b"hello" if what == "text" else buffer.getvalue()
    (finished / f"step-999999999-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    before = RunFolder(finished, ALLCONV).checkpoints()[-2]
    with pytest.warns(UserWarning, match="is no checkpoint and passed over"):
        state = RunFolder(finished, ALLCONV).load()
    assert state["step"] == int(before.name[5:14])


def test_two_checkpoints_are_of_two_steps(tmp_path):
    folder = RunFolder(tmp_path, ALLCONV, keep=2)
    for step, value in ((1, 1), (2, 1), (2, 2)):  # a stop right behind a save
        folder.save(step, {"x": torch.tensor(value)})
    assert [int(path.name[5:14]) for path in folder.checkpoints()] == [1, 2]
    assert folder.load()["x"] == 2


@pytest.mark.parametrize("keep", [0, -1, 1.5, None])
def test_a_run_keeps_at_least_one_checkpoint(tmp_path, keep):
    with pytest.raises(OptionError, match=r"keep = .*: an integer of at least 1"):
        train(ALLCONV, tmp_path, keep=keep)


def test_metrics_say_what_made_them(finished):
    for line in RunFolder(finished, ALLCONV).lines():
        assert line["threads"] == torch.get_num_threads()
        assert line["torch"] == torch.__version__
        assert len(line["code"]) == 16


# --- make


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path, monkeypatch):
    """An interrupt of the first `make` leaves Python there, and no pip."""
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    assert not bootstrap.whole()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert not bootstrap.whole()
    made = []

    def create(place, with_pip):
        made.append(place.exists())
        raise subprocess.CalledProcessError(1, "venv")

    monkeypatch.setattr(bootstrap.venv, "create", create)
    with pytest.raises(SystemExit):
        bootstrap.main()
    assert made == [False]
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    assert bootstrap.whole()


def test_a_site_whose_build_was_interrupted_is_built_whole(tmp_path, monkeypatch):
    """Pages name styles with a checksum: those that were written before the interrupt have the new one, others not."""
    asked = []

    class Done:
        returncode, stdout = 0, ""

    def run(command, **_):
        asked.append("--all" in command)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return Done

    for name in ("assets.fetch", "notebooks.execute_all"):
        monkeypatch.setattr(f"tools.site.{name}", lambda *_: None)
    monkeypatch.setattr(site, "stage", set)
    monkeypatch.setattr(site, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(site.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        site.build()
    site.build()
    site.build()
    assert asked == [False, True, False]
    assert not Path(tmp_path / "unfinished").exists()
