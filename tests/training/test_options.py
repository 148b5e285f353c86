"""Options of a run: checked in one place, changed by name, and the same on the command line."""

import dataclasses

import pytest

from resid.errors import OptionError
from resid.training import cli
from resid.training.options import FLAGS, RunOptions
from resid.training.sweep import run_recipes
from resid.training.trainer import train
from tests.training.test_trainer import ALLCONV


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"keep": 0}, "keep = 0: an integer of at least 1"),
        ({"keep": None}, "keep = None"),
        ({"nproc": 1.5}, "nproc = 1.5"),
        ({"at_once": 0}, "at_once = 0"),
        ({"retries": -1}, "retries = -1: an integer of at least 0"),
        ({"save_every": 0}, "save_every = 0"),
        ({"workers": -1}, "workers = -1"),
        ({"max_seconds": "5"}, "max_seconds = '5': a number of seconds"),
        ({"max_seconds": float("nan")}, "max_seconds = nan"),
        ({"device": "gpu"}, "device = 'gpu'"),
    ],
)
def test_what_is_out_of_range_is_named(changes, text):
    with pytest.raises(OptionError, match=text):
        RunOptions().changed(**changes)


def test_the_command_line_reads_what_a_worker_is_told(tmp_path):
    options = RunOptions(
        device="cpu", max_seconds=1.5, save_every=3, keep=4, data_folder=tmp_path, workers=0, retries=7
    )
    given = cli.make_parser().parse_args(["x", *options.words()])
    assert dataclasses.replace(cli.options_of(given), say=None) == options
    assert RunOptions().words() == []
    assert {f.name for f in dataclasses.fields(RunOptions)} - set(FLAGS) == {"say", "at_once"}


def test_words_change_a_record_and_others_are_refused(tmp_path):
    record = RunOptions(device="cpu", max_seconds=0)
    assert train(ALLCONV, tmp_path, record).state == "stopped"
    assert train(ALLCONV, tmp_path, record, max_seconds=None).state == "finished"
    for call in (lambda: train(ALLCONV, tmp_path, tracker="x"), lambda: run_recipes({"a": ALLCONV}, [0], nprocs=2)):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()
