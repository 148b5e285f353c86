"""What must not change by accident: the hashes of all recipes, and what two small trainings come out as.

A recipe whose hash is another refuses the folders of runs begun before. `python -m tests.training.test_golden`
writes the numbers of the trainings anew, for a change that is meant; the changelog has to say so.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path

import pytest
import torch

from resid.training.recipe import Recipe
from resid.training.recipes import RECIPES
from resid.training.trainer import train

HERE = Path(__file__).parent
HASHES = json.loads((HERE / "recipe_hashes.json").read_text())
STORED = HERE / "golden.json"
#: Both with ragged last batches, probes and a schedule; the second has batch norm and a projection.
TRAININGS = {
    "allconv": Recipe(
        dataset="digits", network="allconv", options={"blocks": 1, "widths": (2, 4, 4, 8)}, epochs=3, batch=300,
        lr=0.05, pad=1, flip=False, normalize="image", decay="convolutions", schedule="steps", milestones=(2,),
        probe_epochs=(0, 2), check_training=50, label_smoothing=0.1,
    ),
    "proc": Recipe(
        dataset="digits", network="proc", options={"depth": 13, "width": 1}, epochs=3, batch=300, pad=1, nesterov=True,
        schedule="linear", warmup=1, projection_probability=0.5, probe_epochs=(0, 1),
    ),
}  # fmt: skip
TIMES = {"seconds", "images_per_second", "code", "torch", "threads", "device"}


def machine():
    """What rounding depends on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line for line in lines if line.startswith("model name")), platform.processor())
    return f"{torch.__version__} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {processor}"


def outcome(recipe, folder):
    """Checksum of the final weights, and the metrics without those that are no function of the recipe."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(recipe, folder, device="cpu")
    finally:
        torch.set_num_threads(before)
    digest = hashlib.sha256()
    for name, weight in result.weights().items():
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    metrics = [{k: v for k, v in line.items() if k not in TIMES} for line in result.metrics]
    return {"weights": digest.hexdigest(), "metrics": metrics}


@pytest.mark.parametrize("name", HASHES)
def test_hashes_of_recipes_stay(name):
    assert RECIPES[name].hash == HASHES[name]


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_come_out_as_before(name, tmp_path):
    """Bit for bit on the kind of machine that wrote the numbers, elsewhere up to rounding."""
    stored = json.loads(STORED.read_text())
    found = outcome(TRAININGS[name], tmp_path)
    if machine() == stored["machine"]:
        assert found == stored[name]
    assert [line.keys() for line in found["metrics"]] == [line.keys() for line in stored[name]["metrics"]]
    for line, other in zip(found["metrics"], stored[name]["metrics"], strict=True):
        assert line["step"] == other["step"]
        assert [line[key] for key in ("loss", "test_loss", "weight_norm")] == pytest.approx(
            [other[key] for key in ("loss", "test_loss", "weight_norm")], rel=1e-2
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        numbers = {name: outcome(recipe, Path(place) / name) for name, recipe in TRAININGS.items()}
    STORED.write_text(json.dumps({"machine": machine(), **numbers}, indent=1) + "\n")
