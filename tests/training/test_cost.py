"""What runs cost: operations by hand, steps with a clock of our own, hours by arithmetic, and the benchmark command."""

import json
import time

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resid.errors import OptionError
from resid.training import cost
from resid.training.cost import PEAKS, Timing, count_flops, hours, peak, sweep, time_steps
from resid.training.recipe import Recipe, build_network
from resid.training.recipes import RECIPES

SMALL = Recipe(
    dataset="images", classes=7, size=16, network="allconv", epochs=2, batch=20, pad=0, precision="fp32",
    options={"blocks": (1, 2), "widths": (4, 4, 8), "stem": (5, 2), "strides": (1, 2)},
)  # fmt: skip


def test_operations_by_hand():
    """Two for a multiplication and an addition; backwards twice as many, but none for the gradient of the images."""
    stem = 2 * 5 * 5 * 3 * 4 * 8 * 8
    stages = 2 * 9 * (2 * 4 * 4 * 8 * 8 + (4 * 8 + 3 * 8 * 8) * 4 * 4)
    head = 2 * 8 * 7
    found = count_flops(SMALL)
    assert found.forward == stem + stages + head
    assert found.training == 2 * stem + 3 * stages + 2 * head  # the head is not trained
    assert count_flops(SMALL.replace(batch=7)) == found


@pytest.mark.parametrize(
    "name",
    ["digits-allconv-batch-norm", "digits-proc22", "digits-plain20", "digits-shortcut-20-2", "images-allconv"],
)
def test_operations_are_those_of_the_counter_of_torch(name):
    recipe = RECIPES[name]
    with torch.device("meta"):
        model = build_network(recipe)
        image, label = torch.empty(1, *recipe.image_shape), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        loss = F.cross_entropy(model(image), label)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert count_flops(recipe) == (forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops())


def test_operations_of_the_34_layer_layout():
    """Its published count is 3.6 thousand million products, with a pooling in place of the first stride."""
    assert count_flops(RECIPES["imagenet-paper"]).forward / 2 == pytest.approx(3.64e9, rel=0.01)
    assert count_flops(RECIPES["hardt-ma-cifar10"]).training / 1e9 == pytest.approx(11.8, rel=0.02)


def test_steps_are_timed_without_the_first_ones(monkeypatch):
    clock = [0.0]
    step = torch.optim.SGD.step

    def stepping(self, *arguments):
        clock[0] += 100.0 if clock[0] < 100 else 2.0
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", stepping)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    found = time_steps(SMALL, 10, "cpu", steps=3, warmup=1)
    assert found == Timing("CPU", "fp32", 1, 10, 2.0)
    assert found.images_per_second == 5
    with pytest.raises(OptionError, match="warmup = 0"):
        time_steps(SMALL, 10, "cpu", warmup=0)


def test_every_step_trains_a_whole_batch(monkeypatch):
    sizes, steps = [], []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: steps.append(None) or step(self, *a))
    forward = cost.Engine._count
    monkeypatch.setattr(cost.Engine, "_count", lambda self, a, b, c: sizes.append(len(c)) or forward(self, a, b, c))
    found = time_steps(SMALL.replace(lr=1e9, precision="bf16"), 12, "cpu", steps=2, warmup=1)
    assert (len(steps), sizes) == (3, [12, 12, 12])
    assert 0 < found.seconds < 60


def test_a_sweep_ends_where_the_memory_does(monkeypatch):
    asked = []

    def timed(recipe, batch, device, **options):
        asked.append((batch, device, options))
        if batch > 64:
            raise torch.OutOfMemoryError
        return Timing("GPU", "bf16", 1, batch, 1.0)

    monkeypatch.setattr(cost, "time_steps", timed)
    found = sweep(SMALL, (128, 32, 64, 256), "cuda", steps=3)
    assert [timing.batch for timing in found] == [32, 64]
    assert asked == [(batch, "cuda", {"steps": 3}) for batch in (32, 64, 128)]


def test_peaks_by_name():
    assert peak("NVIDIA H100 80GB HBM3", "bf16") == peak("NVIDIA H200", "bf16") == 989.4e12
    assert peak("NVIDIA H100 PCIe", "tf32") == 378e12
    assert peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak("NVIDIA H100 NVL", "bf16") is None
    assert peak("CPU", "bf16") is None
    for of in PEAKS.values():
        assert of["bf16"] == pytest.approx(2 * of["tf32"], rel=1e-3)
        assert of["fp32"] < of["tf32"]


def test_hours():
    found = hours(179.2e6, 1000.0, {1: 1.0, 8: 0.8})
    assert found[0].wall == found[0].card == pytest.approx(49.78, abs=0.01)
    assert found[1].wall == pytest.approx(49.78 / 6.4, abs=0.01)
    assert found[1].card == pytest.approx(49.78 / 0.8, abs=0.01)
    assert [h.cards for h in hours(1.0, 1.0)] == [1, 8, 64]
    assert all(a.efficiency > b.efficiency for a, b in zip(hours(1.0, 1.0), hours(1.0, 1.0)[1:], strict=False))


def test_the_command(capsys, monkeypatch):
    command = ["images-allconv", "--set", "size=16", "--batches", "8,4", "--steps", "1", "--warmup", "1", "--device"]
    assert cost.main([*command, "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["batch"] for line in lines] == [4, 8]
    assert "fraction_of_peak" not in lines[0]
    flops = count_flops(RECIPES["images-allconv"].replace(size=16)).training
    assert {line["flops_per_image"] for line in lines} == {flops}
    monkeypatch.setattr(cost, "time_steps", lambda recipe, n, *a, **m: Timing("NVIDIA H200", "bf16", 2, n, 0.1))
    cost.main([*command, "cuda"])
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["fraction_of_peak"] == pytest.approx(4 / 0.1 * flops / (2 * 989.4e12))
