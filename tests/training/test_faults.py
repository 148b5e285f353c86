"""Runs that are killed at any moment end with the weights of a run that was not, bit for bit."""

import json
import random
import signal

import pytest
import torch

from resid.training.checkpoint import RunFolder
from resid.training.recipe import Recipe
from resid.training.trainer import FAILED, STOPPED
from tests.training.runs import Fault, run

ALLCONV = Recipe(
    dataset="digits", network="allconv", options={"blocks": 1, "widths": (2, 4, 4, 8)}, epochs=2, batch=240, lr=0.05,
    pad=1, flip=False,
)  # fmt: skip
#: batch norm, momentum, projection: everything that has a state
PROC = Recipe(
    dataset="digits", network="proc", options={"depth": 13, "width": 1}, epochs=2, batch=240, pad=1, flip=False,
    projection_probability=0.5, probe_epochs=(1,),
)  # fmt: skip
STEPS = 12


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights of uninterrupted runs, each made once."""
    made = {}

    def find(recipe, ranks):
        if (recipe, ranks) not in made:
            folder = tmp_path_factory.mktemp("whole")
            assert run(recipe, folder, ranks) == [0] * ranks
            made[recipe, ranks] = weights(folder)
        return made[recipe, ranks]

    return find


def assert_same(folder, expected):
    found = weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert steps(folder) == [6, 12]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("recipe", [pytest.param(ALLCONV, marks=pytest.mark.slow), PROC], ids=["allconv", "proc"])
def test_killed_at_random_steps(recipe, whole, tmp_path):
    done, chance = 0, random.Random(recipe.network)
    while done < STEPS - 3:
        struck = chance.randint(3, STEPS - done)
        assert run(recipe, tmp_path, fault=Fault("step", struck)) == [-signal.SIGKILL]
        done += (struck - 1) // 2 * 2  # a checkpoint every second step
        assert RunFolder(tmp_path, recipe).checkpoints()[-1].name.startswith(f"step-{done:09d}")
    one_more = Fault("step", STEPS - done + 1)  # which would strike if any step were taken twice
    assert run(recipe, tmp_path, fault=one_more) == [0]
    assert_same(tmp_path, whole(recipe, 1))


@pytest.mark.parametrize("moment", ["half", "rename"])
def test_killed_while_a_checkpoint_is_written(moment, whole, tmp_path):
    for number in (3, 1, 2):
        assert run(ALLCONV, tmp_path, fault=Fault(moment, number)) == [-signal.SIGKILL]
        assert len(list(tmp_path.glob("*.tmp"))) == 1
    assert [p.name[:14] for p in RunFolder(tmp_path, ALLCONV).checkpoints()] == ["step-000000004", "step-000000006"]
    assert run(ALLCONV, tmp_path) == [0]
    assert_same(tmp_path, whole(ALLCONV, 1))


@pytest.mark.parametrize("recipe", [pytest.param(ALLCONV, marks=pytest.mark.slow), PROC], ids=["allconv", "proc"])
@pytest.mark.parametrize("struck", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_of_two_ranks_killed(recipe, struck, whole, tmp_path):
    step = random.Random(f"{recipe.network} {struck}").randint(4, STEPS)
    codes = run(recipe, tmp_path, 2, Fault("step", step), struck)
    assert codes[struck] == -signal.SIGKILL
    assert codes[1 - struck] not in (0, STOPPED), "the other rank notices, and does not claim to have saved"
    assert not (tmp_path / "weights.pt").exists()
    assert run(recipe, tmp_path, 2) == [0, 0]
    assert_same(tmp_path, whole(recipe, 2))


def test_the_writing_rank_of_two_killed_while_it_writes(whole, tmp_path):
    assert run(PROC, tmp_path, 2, Fault("half", 2))[0] == -signal.SIGKILL
    assert run(PROC, tmp_path, 2) == [0, 0]
    assert_same(tmp_path, whole(PROC, 2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_and_leaves_with_the_stated_status(ranks, whole, tmp_path):
    assert run(ALLCONV, tmp_path, ranks, Fault("step", 3, signal.SIGTERM), ranks - 1, 100) == [STOPPED] * ranks
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["reason"] == ("SIGTERM" if ranks == 1 else "another rank has to stop")
    assert status["step"] == (3 if ranks == 1 else 6), "two ranks agree at the end of the epoch, or every eighth step"
    assert run(ALLCONV, tmp_path, ranks) == [0] * ranks
    assert_same(tmp_path, whole(ALLCONV, ranks))


@pytest.mark.parametrize(("rate", "status"), [(0.05, 0), (1e30, FAILED)], ids=["finished", "diverged"])
def test_nothing_holds_the_other_ranks_when_one_leaves(rate, status, tmp_path):
    """What is freed after the group of ranks can wait forever for a thread of it: one run of eight never ended."""
    assert run(ALLCONV.replace(lr=rate), tmp_path, 2, Fault("leave", 1)) == [status, status]


def test_two_ranks_then_one_then_three(whole, tmp_path):
    expected, alone = whole(ALLCONV, 2), whole(ALLCONV, 1)
    assert run(ALLCONV, tmp_path, 2, Fault("step", 6))[0] == -signal.SIGKILL
    assert run(ALLCONV, tmp_path, 1, Fault("step", 5))[0] == -signal.SIGKILL
    assert run(ALLCONV, tmp_path, 3) == [0, 0, 0]
    found = weights(tmp_path)
    for other in (expected, alone):
        for name, value in other.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
    assert steps(tmp_path) == [6, 12]


def test_another_recipe_is_refused_on_all_ranks(tmp_path):
    assert run(ALLCONV, tmp_path, fault=Fault("step", 4)) == [-signal.SIGKILL]
    assert run(ALLCONV.replace(lr=0.1), tmp_path, 2) == [FAILED, FAILED]
    assert run(ALLCONV, tmp_path) == [0]
