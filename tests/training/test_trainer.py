"""The training loop in this process: against the loop by hand, exact after a stop, and clear about what goes wrong."""

import errno
import gc
import json
import os
import signal
from contextlib import contextmanager

import psutil
import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from resid.data.batches import crop_and_flip, draw_crops, draw_order, pixel_statistics
from resid.data.loading import load_dataset
from resid.errors import OptionError
from resid.nets.auditing import audit
from resid.nets.probes import blocks_of, mean_weight_norm, watch_gradients
from resid.training import checkpoint
from resid.training import trainer as training
from resid.training.checkpoint import BusyError, CheckpointError, RecipeMismatchError, RunFolder
from resid.training.engine import Engine, numerics
from resid.training.ranks import Ranks
from resid.training.recipe import Recipe, build_network
from resid.training.trainer import DivergedError, train
from tests.twins.training import slow_training

ALLCONV = Recipe(
    dataset="digits", network="allconv", options={"blocks": 1, "widths": (2, 4, 4, 8)}, epochs=2, batch=300, lr=0.05,
    pad=1, flip=False,
)  # fmt: skip
PROC = Recipe(
    dataset="digits", network="proc", options={"depth": 13, "width": 1}, epochs=2, batch=300, pad=1, flip=True,
    nesterov=True, projection_probability=0.5, probe_epochs=(0, 1),
)  # fmt: skip


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cpu_keeps_its_memory_while_it_trains_and_no_longer(tmp_path, monkeypatch):
    log, real = [], training.loop

    @contextmanager
    def kept():
        log.append("begins")
        yield
        log.append("ends")

    monkeypatch.setattr(training, "reused_memory", kept)
    monkeypatch.setattr(training, "loop", lambda *given: (log.append("trains"), real(*given))[1])
    train(ALLCONV.replace(epochs=1), tmp_path, device="cpu")
    assert log == ["begins", "trains", "ends"]


@pytest.mark.parametrize(
    "recipe",
    [
        ALLCONV.replace(
            normalize="image", decay="convolutions", weight_decay=0.1, schedule="steps", milestones=(1,),
            options={**ALLCONV.network_options, "init": "standard", "fixed_head": False},
        ),
        PROC.replace(
            projection_probability=None, fill="reflect", batch=500, weight_decay=0.01, probe_epochs=(), lr=0.05
        ),
    ],
    ids=["allconv", "proc"],
)  # fmt: skip
def test_weights_are_those_of_the_loop_by_hand(recipe, tmp_path):
    weights, losses = slow_training(recipe)
    result = train(recipe, tmp_path)
    found = result.weights()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert [line["loss"] for line in result.metrics] == pytest.approx(losses, rel=1e-4)
    moved = max(float((found[n] - w).abs().max()) for n, w in build_network(recipe).state_dict().items() if w.ndim == 4)
    assert moved > 0.02, "the comparison would not notice a step left out"


def test_metrics_weights_and_status(tmp_path):
    lines = []
    result = train(ALLCONV, tmp_path, say=lines.append)
    assert (result.state, result.step, len(lines)) == ("finished", 10, 2)
    assert result.metrics == [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in result.metrics] == [5, 10]
    assert lines[1].startswith("epoch 2/2, step 10: loss ")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()) == ALLCONV

    model = build_network(ALLCONV)
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    test, look = load_dataset("digits", "test"), pixel_statistics(load_dataset("digits").images)
    with torch.no_grad():
        logits = model(((test.images - look[0].view(1, -1, 1, 1)) / look[1].view(1, -1, 1, 1)).float())
    last = result.metrics[-1]
    assert last["test_error"] == float((logits.argmax(1) != test.labels).double().mean())
    assert last["test_loss"] == pytest.approx(float(F.cross_entropy(logits, test.labels)), rel=1e-5)
    assert last["weight_norm"] == pytest.approx(float(mean_weight_norm(model)))
    assert last["images_per_second"] == pytest.approx(1433 / last["seconds"])
    assert last["device"] == "CPU"
    before = (tmp_path / "weights.pt").stat().st_mtime_ns
    assert train(ALLCONV, tmp_path).metrics == result.metrics
    assert (tmp_path / "weights.pt").stat().st_mtime_ns == before, "a finished run is left alone"


@pytest.mark.parametrize("recipe", [ALLCONV, PROC], ids=["allconv", "proc"])
def test_stopping_changes_nothing(recipe, tmp_path):
    whole = train(recipe, tmp_path / "whole")
    for i in range(20):
        part = train(recipe, tmp_path / "parts", max_seconds=0)
        if part.state == "finished":
            break
        assert (part.state, part.reason, part.step) == ("stopped", "max_seconds is over", i + 1)
    assert i == 9
    assert equal(part.weights(), whole.weights())
    times = {"seconds", "images_per_second"}
    for mine, theirs in zip(part.metrics, whole.metrics, strict=True):
        assert {k: v for k, v in mine.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}


def test_runs_given_in_steps_end_inside_an_epoch(tmp_path):
    recipe = ALLCONV.replace(epochs=None, steps=7, schedule="steps", milestones=(6,))
    result = train(recipe, tmp_path)
    assert [line["step"] for line in result.metrics] == [5, 7]
    assert [line["lr"] for line in result.metrics] == pytest.approx([0.05, 0.005])


def test_sigterm_saves_and_stops(tmp_path, monkeypatch):
    step = torch.optim.SGD.step

    def terminated(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", terminated)
        result = train(ALLCONV, tmp_path)
    assert (result.state, result.reason, result.step) == ("stopped", "SIGTERM", 1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "status.json").read_text()) == {"state": "stopped", "step": 1, "reason": "SIGTERM"}


def test_old_checkpoints_go_and_a_damaged_one_is_passed_over(tmp_path):
    whole = train(ALLCONV, tmp_path / "whole", save_every=3)
    found = RunFolder(tmp_path / "whole", ALLCONV).checkpoints()
    assert [path.name[:14] for path in found] == ["step-000000009", "step-000000010"]
    (tmp_path / "whole" / "weights.pt").unlink()
    content = bytearray(found[-1].read_bytes())
    content[len(content) // 2] ^= 1
    found[-1].write_bytes(content)
    with pytest.warns(UserWarning, match="step-000000010.*damaged and passed over"):
        again = train(ALLCONV, tmp_path / "whole")
    assert equal(again.weights(), whole.weights())
    assert [line["step"] for line in again.metrics] == [5, 10]


@pytest.mark.parametrize("without_recipe_file", [False, True])
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, without_recipe_file):
    train(ALLCONV, tmp_path, max_seconds=0)
    if without_recipe_file:
        (tmp_path / "recipe.json").unlink()
    other = ALLCONV.replace(lr=0.1, options={"blocks": 2, "widths": (2, 4, 4, 8)})
    with pytest.raises(RecipeMismatchError, match=r"differs in options: .*'blocks': 1.*'blocks': 2.*; lr: 0.05, 0.1"):
        train(other, tmp_path)
    assert train(ALLCONV, tmp_path).state == "finished"


class FullDisk:
    """A file on a disk that is full after half of what is written."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    whole = train(ALLCONV, tmp_path / "whole")
    opened = checkpoint.Path.open

    def limited(self, mode="r", *rest, **more):
        file = opened(self, mode, *rest, **more)
        return FullDisk(file) if self.name.startswith(".step-000000006") and "w" in mode else file

    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "open", limited)
        with pytest.raises(
            CheckpointError, match=r"step-000000006.* cannot be written .*the disk is full.*step-000000003"
        ):
            train(ALLCONV, folder, save_every=3)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "CheckpointError")
    assert not list(folder.glob("*.tmp"))
    assert [p.name[:14] for p in RunFolder(folder, ALLCONV).checkpoints()] == ["step-000000003"]
    assert equal(train(ALLCONV, folder).weights(), whole.weights())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    cross_entropy, calls = F.cross_entropy, []

    def poisoned(*arguments, **more):
        calls.append(None)
        return cross_entropy(*arguments, **more) * (float("nan") if len(calls) == 8 else 1)

    monkeypatch.setattr(F, "cross_entropy", poisoned)  # 5 training steps, 1 test batch, 2 training steps
    recipe = ALLCONV.replace(schedule="steps", milestones=(1,))
    with pytest.raises(DivergedError, match=r"step 6 \(epoch 1, learning rate 0.005\).*step-000000004") as caught:
        train(recipe, tmp_path, save_every=4)
    assert (caught.value.step, caught.value.epoch) == (6, 1)
    assert caught.value.rate == pytest.approx(0.005)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "DivergedError")
    assert (status["step"], status["epoch"]) == (6, 1)
    assert [p.name[:14] for p in RunFolder(tmp_path, recipe).checkpoints()] == ["step-000000004"]


def test_kernels_that_are_not_finite_and_are_to_be_projected_stop_the_run_as_diverged(tmp_path):
    """The projection meets weights that are not finite before the end of the epoch asks for the loss."""
    recipe = PROC.replace(projection_probability=None, projection_every=1, lr=1e30)
    with pytest.raises(DivergedError, match=r"step 1 \(epoch 0, learning rate 1e\+30\)"):
        train(recipe, tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["error"], status["step"]) == ("failed", "DivergedError", 1)


def test_two_processes_do_not_share_a_folder(tmp_path):
    with RunFolder(tmp_path, ALLCONV).opened(True), pytest.raises(BusyError, match="another process is writing"):
        train(ALLCONV, tmp_path)


def test_probes_agree_with_the_audit(tmp_path):
    recipe = PROC.replace(probe_epochs=(0,))
    result = train(recipe, tmp_path)
    assert "ratios" not in result.metrics[1]
    model, split = build_network(recipe), load_dataset("digits")
    which = draw_order(1433, 0, 0)[:300]
    mean, std = (t.view(1, -1, 1, 1) for t in pixel_statistics(split.images))
    images = ((split.images[which] - mean) / std).float()
    images = crop_and_flip(images, draw_crops(1433, 0, 0, 1, True)[which], 1)
    names = blocks_of(model)
    found = audit(
        model, images, lambda out: F.cross_entropy(out, split.labels[which]), lambda name, m: name in names, sigma=False
    )
    expected = dict(zip([block.name for block in found.blocks], found.ratios, strict=True))
    ratios = result.metrics[0]["ratios"]
    assert (
        list(ratios)
        == list(expected)
        == ["stem", "stages.0.0", "transitions.1", "stages.1.0", "transitions.2", "stages.2.0"]
    )
    assert ratios == pytest.approx(expected, rel=1e-3)
    assert len({round(ratio, 3) for ratio in ratios.values()}) == 6
    streams = {block.name: block.branch_to_stream for block in found.blocks if block.name.startswith("stages")}
    assert result.metrics[0]["branches"] == pytest.approx(streams, rel=1e-3)
    assert len({round(ratio, 3) for ratio in streams.values()}) == 3


@pytest.mark.parametrize(
    ("network", "options", "added"),
    [
        ("allconv", {"blocks": 2, "widths": (2, 4, 4, 8)}, 3),  # the first block of a stage changes the shape
        ("shortcut_depth", {"depth": 14, "length": 2, "width": 2}, 4), ("plain", {"depth": 20, "width": 1}, 0),
        ("preact", {"depth": 20, "width": 1}, 3),
    ],
)  # fmt: skip
def test_only_blocks_with_an_identity_have_branches(network, options, added, tmp_path):
    recipe = ALLCONV.replace(network=network, options=options, steps=1, epochs=None, probe_epochs=(0,))
    (line,) = train(recipe, tmp_path).metrics
    assert len(line["ratios"]) > added
    assert len(line.get("branches", {})) == added
    assert all(value > 0 for value in line.get("branches", {}).values())


def test_probes_change_nothing(tmp_path):
    plain = train(PROC.replace(probe_epochs=()), tmp_path / "a")
    probed = train(PROC, tmp_path / "b")
    assert equal(plain.weights(), probed.weights())
    assert [sorted(line.keys() - plain.metrics[0].keys()) for line in probed.metrics] == 2 * [["branches", "ratios"]]


def test_a_block_called_twice_is_probed_twice():
    layer = torch.nn.Linear(3, 3, bias=False)
    torch.nn.init.eye_(layer.weight).data.mul_(2)
    with watch_gradients({"layer": layer}) as probe:
        layer(torch.tanh(layer(torch.ones(1, 3)))).sum().backward()
    assert probe.names == ["layer", "layer"]
    assert (probe.squares()[:, 1] / probe.squares()[:, 0]).tolist() == pytest.approx([4, 4])


def test_projection_keeps_the_linear_convolutions_norm_preserving(tmp_path):
    sigma = {}
    for every in (1, None):
        result = train(PROC.replace(projection_probability=None, projection_every=every), tmp_path / str(every))
        weight = result.weights()["transitions.1.weight"][:, :, 0, 0]
        sigma[every] = torch.linalg.svdvals(weight)
    assert float(sigma[1].max() / sigma[1].min()) == pytest.approx(1, abs=1e-4)
    assert float(sigma[None].max() / sigma[None].min()) > 1.5


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_projection_has_full_precision_in_every_training(tmp_path, precision):
    recipe = PROC.replace(projection_probability=None, projection_every=1, precision=precision)
    weight = train(recipe, tmp_path).weights()["transitions.1.weight"][:, :, 0, 0]
    sigma = torch.linalg.svdvals(weight)
    assert float(sigma.max() / sigma.min()) == pytest.approx(1, abs=1e-4)


def test_precision_is_as_asked_and_put_back(tmp_path, monkeypatch):
    before = torch.backends.cuda.matmul.fp32_precision
    for precision, wanted in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with numerics(precision, torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == wanted
            assert torch.backends.cudnn.conv.fp32_precision == wanted
    for device, fastest in (("cuda", True), ("cpu", False)):  # the devices are named only
        with monkeypatch.context() as changed:
            changed.setattr(torch.backends.cudnn, "benchmark", not fastest)
            with numerics("fp32", torch.device(device)):
                assert torch.backends.cudnn.benchmark == fastest
            assert torch.backends.cudnn.benchmark == (not fastest)
    assert torch.backends.cuda.matmul.fp32_precision == before
    plain, half = train(ALLCONV, tmp_path / "a"), train(ALLCONV.replace(precision="bf16"), tmp_path / "b")
    assert all(value.dtype == torch.float32 for value in half.weights().values())
    difference = abs(plain.metrics[-1]["test_loss"] - half.metrics[-1]["test_loss"])
    assert 0 < difference < 0.02
    last = train(ALLCONV.replace(channels_last=True), tmp_path / "c")
    torch.testing.assert_close(last.weights(), plain.weights(), atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch asks for it, and hides the warning
def test_compiled_blocks_stay_compiled_from_run_to_run(tmp_path, monkeypatch):
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, mode, **how: compile_(block, backend="eager", **how))
    for i, erase in enumerate((False, True, False)):  # the third would find the versions of the first
        options = {"depth": 20, "width": 1, "erase_relu": erase}
        recipe = PROC.replace(network="preact", options=options, steps=2, epochs=None, projection_probability=None)
        counters.clear()
        done = train(recipe.replace(compile="default"), tmp_path / f"compiled-{i}")
        assert counters["stats"]["unique_graphs"] == 6
        assert not counters["unimplemented"]  # where torch says that it has given up
        assert equal(done.weights(), train(recipe, tmp_path / f"plain-{i}").weights())


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_blocks_are_compiled_for_each_shape(tmp_path, monkeypatch):
    """Of nine kinds of blocks each has code of its own; torch stops at eight by itself."""
    seen, compile_ = [], torch.nn.Module.compile

    def compiler(graph, inputs):
        seen.append([size for each in inputs for size in ([each] if isinstance(each, torch.SymInt) else each.shape)])
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, mode, **how: compile_(block, backend=compiler, **how))
    recipe = ALLCONV.replace(
        options={"blocks": 2, "widths": (2, 2, 4, 6, 8, 10)}, steps=2, epochs=None, compile="default"
    )
    done = train(recipe, tmp_path / "compiled")
    assert len(seen) == 9, "in the first stage all blocks are alike"
    assert not any(isinstance(size, torch.SymInt) for sizes in seen for size in sizes)
    assert equal(done.weights(), train(recipe.replace(compile="no"), tmp_path / "plain").weights())


def test_cuda_graphs_need_cuda():
    recipe = ALLCONV.replace(compile="reduce-overhead")
    with pytest.raises(OptionError, match=r"reduce-overhead.*not on cpu"):
        Engine(recipe, Ranks(0, 1, torch.device("cpu")))


def test_memory_stays_the_same_over_the_epochs(tmp_path):
    held, resident, process = [], [], psutil.Process()

    def look(line):
        if int(line.split("/")[0].removeprefix("epoch ")) in (2, 10, 40):
            gc.collect()
            found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
            tensors = [t for t in found if type(t) is not FakeTensor]  # torch.compile leaves some, without memory
            held.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
            resident.append(process.memory_info().rss)

    train(ALLCONV.replace(epochs=40, probe_epochs=tuple(range(40))), tmp_path, save_every=5, say=look)
    assert held[0] > 1797 * 64  # the images, at the least
    assert held == [held[0]] * 3
    assert resident[2] - resident[1] < 5 * 2**20  # 30 epochs of 0.35 MiB of images
