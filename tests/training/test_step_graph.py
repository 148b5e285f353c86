"""Steps that are recorded once: on the CPU by a tape instead of a CUDA graph, against training step by step."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from resid.errors import OptionError
from resid.training import engine as engine_module
from resid.training.checkpoint import RunFolder
from resid.training.cost import time_steps
from resid.training.ranks import Ranks
from resid.training.recipe import Recipe, RecipeError
from resid.training.step_graph import WARM_UP, StepGraph
from resid.training.trainer import DivergedError, loop, train
from tests.twins.tape import TapedStep

ALLCONV = Recipe(
    dataset="digits", network="allconv", options={"blocks": 1, "widths": (2, 4, 4, 8)}, epochs=2, batch=200, lr=0.05,
    pad=1, flip=False, schedule="linear", warmup=1,
)  # fmt: skip
PROC = Recipe(
    dataset="digits", network="proc", options={"depth": 13, "width": 1}, epochs=2, batch=200, pad=1, flip=True,
    nesterov=True, projection_probability=0.5, probe_epochs=(0, 1), label_smoothing=0.1,
)  # fmt: skip
CLOCK = ("seconds", "images_per_second")


@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr(engine_module, "StepGraph", TapedStep)
    monkeypatch.setattr(TapedStep, "played", 0)


def without_clock(metrics):
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in metrics]


@pytest.mark.parametrize(
    "recipe", [ALLCONV, PROC, ALLCONV.replace(micro_batch=70), ALLCONV.replace(precision="bf16")],
    ids=["allconv", "proc", "in parts", "bf16"],
)  # fmt: skip
def test_a_recorded_step_trains_as_the_step_itself(recipe, taped, tmp_path):
    plain = train(recipe, tmp_path / "plain", device="cpu")
    assert TapedStep.played == 0
    played = train(recipe.replace(graph=True), tmp_path / "graph", device="cpu")
    probed, last_batches = len(recipe.probe_epochs), recipe.epochs  # which are smaller
    assert TapedStep.played == plain.step - last_batches - probed - WARM_UP > 8
    assert without_clock(played.metrics) == without_clock(plain.metrics)
    for name, weight in plain.weights().items():
        torch.testing.assert_close(played.weights()[name], weight, atol=0, rtol=0, msg=name)


def test_a_run_that_was_stopped_records_anew(taped, tmp_path):
    plain = train(ALLCONV, tmp_path / "plain", device="cpu")
    recipe = ALLCONV.replace(graph=True)
    for _ in range(2):
        assert train(recipe, tmp_path / "graph", device="cpu", max_seconds=0).state == "stopped"
    again = train(recipe, tmp_path / "graph", device="cpu")
    assert TapedStep.played > 0
    assert without_clock(again.metrics) == without_clock(plain.metrics)


def test_the_step_that_diverges_is_the_one_of_the_run(taped, tmp_path):
    wild = ALLCONV.replace(lr=3.0, schedule="constant", warmup=0, epochs=4)
    steps = []
    for graph in (False, True):
        with pytest.raises(DivergedError) as raised:
            train(wild.replace(graph=graph), tmp_path / str(graph), device="cpu")
        steps.append(raised.value.step)
    assert steps[0] == steps[1] > WARM_UP + 1
    assert TapedStep.played > 0


def test_what_cannot_be_recorded(taped, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"graph = True: compile = 'no' or 'default'"):
        ALLCONV.replace(graph=True, compile="reduce-overhead")
    with pytest.raises(OptionError, match=r"warmup = 3: more than 3"):
        time_steps(ALLCONV.replace(graph=True), 8, "cpu", warmup=WARM_UP)
    monkeypatch.setattr(engine_module, "StepGraph", StepGraph)
    with pytest.raises(OptionError, match=r"graph = True records a CUDA graph: not on cpu"):
        train(ALLCONV.replace(graph=True), tmp_path, device="cpu")
    with pytest.raises(OptionError, match=r"records the step of one process, and there are 2"):
        engine_module.Engine(ALLCONV.replace(graph=True), Ranks(0, 2, torch.device("cpu")), tmp_path)


def test_an_engine_and_its_graph_are_freed_at_once(taped, tmp_path):
    """Without waiting for garbage to be collected, which must not happen while another step is recorded."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    engine = engine_module.Engine(ALLCONV.replace(graph=True), ranks, RunFolder(tmp_path, ALLCONV.replace(graph=True)))
    gc.collect()
    gc.disable()
    try:
        with engine.stream():
            loop(engine, engine_module.Stop())
        assert TapedStep.played > 0
        gone = weakref.ref(engine)
        del engine
        assert gone() is None
    finally:
        gc.enable()


def test_no_garbage_is_collected_while_a_step_is_recorded(monkeypatch):
    seen = []

    @contextmanager
    def recorded(graph, **_):
        seen.append(gc.isenabled())
        yield

    class Graph:
        def replay(self):
            seen.append("played")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    step = StepGraph(lambda *_: seen.append("body"), [], torch.device("cuda"))
    for _ in range(WARM_UP + 2):
        step(torch.zeros(1), torch.zeros(1))
    assert seen == ["body"] * WARM_UP + [False, "body", "played", "played"]
    assert gc.isenabled()


def test_recipes_of_before_keep_their_hashes():
    assert '"graph"' not in ALLCONV.to_json()
    assert ALLCONV.replace(graph=True).hash != ALLCONV.hash
    assert Recipe.from_json(ALLCONV.replace(graph=True).to_json()).graph
