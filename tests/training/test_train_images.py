"""Training on image files: exact after a stop, for any number of ranks and parts, and whatever happens to the files."""

import json
import multiprocessing
import os
import signal
import textwrap
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from resid.book.experiments.sample_images import write_sample_tree
from resid.data.imagenet import IMAGENET_MEAN, IMAGENET_STD, ImageBatches, WorkerDiedError, decode_test, open_images
from resid.data.official import DataFileError
from resid.training import cli, engine
from resid.training import feeds as sources
from resid.training.checkpoint import RunFolder
from resid.training.feeds import default_workers, open_source, spread
from resid.training.launcher import launch
from resid.training.ranks import Ranks
from resid.training.recipe import Recipe, build_network
from resid.training.recipes import RECIPES
from resid.training.trainer import INTERRUPTED, train
from tests.training.runs import Fault, run

LONE = Ranks(0, 1, torch.device("cpu"))
#: 63 training and 21 test files of seven classes: the last batches are ragged, for two and three ranks as well
IMAGES = Recipe(
    dataset="images", classes=7, size=16, network="allconv", epochs=2, batch=20, lr=0.02, pad=0,
    options={"blocks": 1, "widths": (4, 4, 8), "stem": (3, 2), "strides": (2, 2)},
)  # fmt: skip
DIGITS = Recipe(
    dataset="digits", network="allconv", options={"blocks": 1, "widths": (2, 4, 4, 8)}, epochs=1, batch=320, lr=0.05,
    pad=1, flip=False,
)  # fmt: skip
TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("images"), classes=7, per_class=9, val=3, seed=1)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """An uninterrupted run."""
    return train(IMAGES, tmp_path_factory.mktemp("whole"), data_folder=tree, workers=0)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_close(found, expected, atol=1e-6):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=name)


def timeless(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def by_hand(recipe, weights, tree, split="test", chosen=None):
    """Loss, top-1 and top-5 error of a network, image by image."""
    files, model = open_images(split, tree), build_network(recipe)
    model.load_state_dict(weights)
    losses, ranks = [], []
    for i in range(len(files)) if chosen is None else chosen:
        pixels = decode_test(tree / files.name(i), recipe.size, round(recipe.size * 256 / 224)).double()
        image = (pixels - IMAGENET_MEAN.view(3, 1, 1)) / IMAGENET_STD.view(3, 1, 1)
        with torch.no_grad():
            logits = model(image.float()[None])[0]
        losses.append(float(-logits.log_softmax(0)[files.labels[i]]))
        ranks.append(int((logits > logits[files.labels[i]]).sum()))
    n = len(losses)
    return sum(losses) / n, sum(r > 0 for r in ranks) / n, sum(r > 4 for r in ranks) / n


def test_errors_are_those_of_every_image_by_hand(tree, tmp_path):
    recipe = IMAGES.replace(check_training=10, lr=1e-4, seed=4)  # which is wrong often enough
    last = train(recipe, tmp_path, data_folder=tree, workers=0)
    line = last.metrics[-1]
    loss, top1, top5 = by_hand(recipe, last.weights(), tree)
    assert (line["test_error"], line["test_top5_error"]) == (top1, top5)
    assert 0 < top5 < top1 < 1, "the two would not be told apart"
    assert line["test_loss"] == pytest.approx(loss, rel=1e-5)
    chosen = spread(63, 10).tolist()
    loss, top1, top5 = by_hand(recipe, last.weights(), tree, "train", chosen)
    assert (line["plain_train_error"], line["plain_train_top5_error"]) == (top1, top5)
    assert "plain_train_error" not in last.metrics[0]


def test_training_images_are_checked_in_memory_too(tmp_path):
    recipe = DIGITS.replace(check_training=7)
    result = train(recipe, tmp_path)
    source = open_source(recipe, LONE)
    assert torch.equal(source.checking.split.images, source.training.split.images[spread(1433, 7)])
    model = build_network(recipe)
    model.load_state_dict(result.weights())
    ((images, labels, _),) = source.checking.plain()
    loss = float(F.cross_entropy(model(images), labels).detach())
    assert result.metrics[-1]["plain_train_loss"] == pytest.approx(loss)
    assert (spread(3, 7).tolist(), spread(10, 3).tolist()) == ([0, 1, 2], [0, 3, 6])


@pytest.mark.parametrize("workers", [0, 1])
def test_stopping_inside_an_epoch_changes_nothing(workers, tree, whole, tmp_path):
    for step in range(1, 8):
        part = train(IMAGES, tmp_path, data_folder=tree, workers=workers, max_seconds=0)
        assert (part.state, part.step) == ("stopped", step)
        if workers and step == 2:
            break  # workers take a while to start
    last = train(IMAGES, tmp_path, data_folder=tree, workers=workers, save_every=1)
    assert (last.state, last.step) == ("finished", 8)
    assert_equal(last.weights(), whole.weights())
    assert timeless(last.metrics) == timeless(whole.metrics)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_number_of_ranks_sees_each_file_once(ranks, tree, whole, tmp_path):
    given = ["--data", str(tree), "--workers", "0"]
    assert run(IMAGES, tmp_path, ranks, more=given) == [0] * ranks
    found = RunFolder(tmp_path, IMAGES).lines()
    for mine, theirs in zip(found, whole.metrics, strict=True):
        assert mine["ranks"] == ranks
        for name in ("loss", "train_error", "test_loss", "test_error", "test_top5_error"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert_close(torch.load(tmp_path / "weights.pt", weights_only=True), whole.weights())


def test_another_number_of_ranks_goes_on(tree, whole, tmp_path):
    given = ["--data", str(tree), "--workers", "0"]
    assert run(IMAGES, tmp_path, 2, Fault("step", 4), save_every=1, more=given)[0] == -signal.SIGKILL
    assert run(IMAGES, tmp_path, 1, Fault("step", 3), save_every=1, more=given)[0] == -signal.SIGKILL
    assert run(IMAGES, tmp_path, 3, more=given) == [0, 0, 0]
    assert_close(torch.load(tmp_path / "weights.pt", weights_only=True), whole.weights())
    assert [line["step"] for line in RunFolder(tmp_path, IMAGES).lines()] == [4, 8]


# --- files that cannot be read, and workers that die ---


def test_broken_files_count_nowhere_and_are_named(tmp_path):
    tree = write_sample_tree(tmp_path / "images", classes=7, per_class=9, val=3, seed=1, odd=("truncated", "empty"))
    (tree / "val" / "n00000003" / "n00000003_1.JPEG").write_bytes(b"")
    recipe, lines = IMAGES.replace(epochs=1, lr=0.0), []
    result = train(recipe, tmp_path / "run", data_folder=tree, workers=0, say=lines.append)
    (line,) = result.metrics
    noted = json.loads((tmp_path / "run" / "broken.json").read_text())
    assert sorted(noted) == [
        "train/n00000000/n00000000_odd_truncated.JPEG", "train/n00000001/n00000001_odd_empty.JPEG",
        "val/n00000003/n00000003_1.JPEG",
    ]  # fmt: skip
    assert (line["broken"], line["broken_first"]) == (3, sorted(noted))
    assert "3 files cannot be read, see broken.json: train/n00000000/n00000000_odd_truncated.JPEG" in lines[0]
    good = [i for i in range(21) if i != 10]
    loss, top1, top5 = by_hand(recipe, result.weights(), tree, "test", good)
    assert (line["test_error"], line["test_top5_error"]) == (top1, top5)
    assert line["test_loss"] == pytest.approx(loss, rel=1e-5)
    model, wrong = build_network(recipe), 0
    for images, labels, _ in ImageBatches(open_images("train", tree), 20, recipe.seed, size=16).epoch(0):
        wrong += int((model(images).argmax(1) != labels)[labels >= 0].sum())
    assert line["train_error"] == wrong / 63
    assert line["images_per_second"] == pytest.approx(63 / line["seconds"])


def test_broken_files_of_all_ranks_are_named(tmp_path):
    tree = write_sample_tree(tmp_path / "images", classes=7, per_class=9, val=3, seed=1, odd=("truncated", "empty"))
    recipe = IMAGES.replace(epochs=1)
    assert run(recipe, tmp_path / "run", 2, more=["--data", str(tree), "--workers", "0"]) == [0, 0]
    assert len(json.loads((tmp_path / "run" / "broken.json").read_text())) == 2
    assert RunFolder(tmp_path / "run", recipe).lines()[0]["broken"] == 2


def test_a_worker_that_is_killed_is_worth_another_try(tree, whole, tmp_path, monkeypatch):
    step, steps = torch.optim.SGD.step, []

    def deadly(self, *arguments):
        steps.append(None)
        if len(steps) == 2:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", deadly)
        with pytest.raises(WorkerDiedError):
            train(IMAGES, tmp_path, data_folder=tree, workers=1, save_every=1)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "running", "a state of 'failed' would keep the launcher from another try"
    assert RunFolder(tmp_path, IMAGES).checkpoints(), "it goes on from there"
    last = train(IMAGES, tmp_path, data_folder=tree, workers=0)
    assert_equal(last.weights(), whole.weights())


#: In the first try, kill what decodes images before the third step; `site` imports this in every process.
SITE = """
    import os, pathlib
    if "TRAINS" in os.environ and not pathlib.Path({marker!r}).exists():
        import multiprocessing, signal, torch
        step, seen = torch.optim.SGD.step, []
        def stepping(*arguments, **more):
            seen.append(None)
            if len(seen) == 3:
                pathlib.Path({marker!r}).touch()
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)
            return step(*arguments, **more)
        torch.optim.SGD.step = stepping
"""


def test_the_launcher_tries_again_after_a_worker_was_killed(tree, whole, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(SITE.format(marker=str(tmp_path / "killed"))))
    places = [str(site), os.environ.get("PYTHONPATH", ""), str(Path.cwd())]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    monkeypatch.setenv("TRAINS", "yes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = []
    last = launch(
        IMAGES, tmp_path / "run", retries=1, save_every=1, device="cpu", data_folder=tree, workers=1, say=said.append
    )
    failures = [line for line in said if line.startswith("rank ")]
    assert len(failures) == 1
    assert "rank 0 left with exit status 1: WorkerDiedError: a worker process" in failures[0]
    assert_equal(last.weights(), whole.weights())


def test_the_command_line_says_that_another_try_may_help(tree, tmp_path, monkeypatch, capsys):
    def gone(*arguments, **more):
        raise WorkerDiedError("a worker process has ended before its time")

    monkeypatch.setattr(engine, "open_source", gone)
    command = [IMAGES.to_json(), "--run-dir", str(tmp_path), "--data", str(tree), "--workers", "0", "--device", "cpu"]
    assert cli.main(command) == INTERRUPTED
    assert "WorkerDiedError: a worker process has ended" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tree, tmp_path, monkeypatch):
    monkeypatch.delenv("RESID_IMAGENET", raising=False)
    with pytest.raises(DataFileError, match="no folder of images is given: RESID_IMAGENET has to name one"):
        train(IMAGES, tmp_path / "a")
    monkeypatch.setenv("RESID_IMAGENET", str(tmp_path / "nowhere"))
    with pytest.raises(DataFileError, match="nowhere is not a folder: RESID_IMAGENET"):
        train(IMAGES, tmp_path / "b")
    monkeypatch.setenv("RESID_IMAGENET", str(tree))
    with pytest.raises(DataFileError, match="has 7 classes, and the recipe is for 1000"):
        train(RECIPES["imagenet-paper"], tmp_path / "c", device="cpu", workers=0)
    assert json.loads((tmp_path / "c" / "status.json").read_text())["error"] == "DataFileError"


def test_workers_share_the_cpus_of_a_machine(monkeypatch):
    monkeypatch.setattr(sources, "usable_cpus", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(Ranks(0, 4, torch.device("cpu"))) == 3
    assert default_workers(LONE) == 8
    monkeypatch.setattr(sources, "usable_cpus", lambda: 2)
    assert default_workers(Ranks(0, 4, torch.device("cpu"))) == 1


@pytest.mark.parametrize(("n", "ranks"), [(50_000, 64), (21, 3), (65, 2), (1, 1), (5, 5), (64, 1)])
def test_the_last_test_batch_has_a_file_for_every_rank(n, ranks):
    size = sources._at_once(n, 64, Ranks(0, ranks, torch.device("cpu")))
    assert (n % size or min(size, n)) >= ranks
    assert size <= max(2 * 64, ranks)
