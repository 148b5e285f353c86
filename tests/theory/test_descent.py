"""Batched descent against one network at a time by autograd; the journal; the study."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from resid._closure import PACKAGE, _content, _imports_of, code_hash
from resid.book.checks.linear.dynamics_study import SOURCES, Study, make_network, make_weights
from resid.book.checks.norms import norm_study
from resid.book.journal import Journal, cache_folder
from resid.data.whitened import load_whitened
from resid.errors import NotFiniteError, OptionError, ShapeError
from resid.theory.shortcut import ShortcutNetwork, _native, choose_kernel, descend, initial_weights, least_linear_loss
from tests.twins.shortcut import output_twin

F64 = torch.float64
NETWORKS = [
    ShortcutNetwork(1, 3, 3, shortcut=False),
    ShortcutNetwork(2, 2, 3),
    ShortcutNetwork(3, 1, 3),
    ShortcutNetwork(2, 2, 3, "relu", "mid"),
    ShortcutNetwork(2, 2, 3, "tanh", "pre"),
    ShortcutNetwork(2, 2, 3, "relu", "post"),
    ShortcutNetwork(2, 2, 3, "relu", "mid", shortcut=False),
    ShortcutNetwork(3, 2, 3, "relu", "mid"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(m=30, d=3):
    gen = generator(1)
    return torch.randn(m, d, generator=gen, dtype=F64), torch.randn(m, d, generator=gen, dtype=F64)


def descent_twin(network, W, rate, X, Y, epochs):
    """Losses and weights before each of `epochs` steps and after the last, by one plain loop with autograd."""
    losses, weights, kind = [], [W.clone()], (network.activation, network.position, network.shortcut)
    for _ in range(epochs + 1):
        W = weights[-1].requires_grad_()
        outputs = torch.vmap(lambda x, W=W: output_twin(W, x, *kind))(X)
        loss = (outputs - Y).square().sum() / (2 * len(X))
        (gradient,) = torch.autograd.grad(loss, W)
        losses.append(loss.item())
        weights.append((W - rate * gradient).detach())
    return losses, weights


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.length}-{n.activation}-{n.position}-{n.shortcut}")
@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_batch_does_what_each_network_does_alone(network, kernel, monkeypatch):
    monkeypatch.setattr("resid.theory.shortcut.descent._ROWS", 6)  # groups of two runs and one
    monkeypatch.setattr(
        "resid.theory.shortcut.descent._VALUES", 500
    )  # several chunks of samples, the last a shorter one
    X, Y = data(200)
    W = torch.stack([initial_weights(network, "xavier", generator(i), 0.8) for i in range(3)])
    rates = torch.tensor([0.05, 0.1, 0.2], dtype=F64)
    done = descend(network, W, rates, X, Y, epochs=6, keep=[0, 3], kernel=kernel)
    floor = least_linear_loss(X, Y) if network.activation == "linear" else 0.0
    torch.testing.assert_close(done.weights[0], W)
    for i in range(3):
        losses, weights = descent_twin(network, W[i], float(rates[i]), X, Y, 6)
        np.testing.assert_allclose(done.loss[:, i] + floor, losses, rtol=1e-10)
        torch.testing.assert_close(done.weights[6][i], weights[6].detach(), rtol=1e-10, atol=1e-12)
        assert float((weights[7] - weights[6].detach()).abs().max()) > 1e-6  # one step more is another place
    assert sorted(done.weights) == [0, 3, 6]


@pytest.mark.skipif(not _native._compiler(), reason="there is no C++ compiler; .ci/run installs one")
def test_compiled_code_is_there_and_of_either_precision():
    network, (X, Y) = ShortcutNetwork(2, 3, 3, "relu"), data(1000)
    W = torch.stack([initial_weights(network, "xavier", generator(i)) for i in range(3)])
    for dtype, rtol in ((torch.float32, 1e-5), (F64, 1e-13)):
        assert choose_kernel(network, W.to(dtype)) == "native"
        ours, plain = (descend(network, W.to(dtype), 0.1, X, Y, 20, kernel=k) for k in ("native", "torch"))
        assert ours.loss.dtype == ours.weights[20].dtype == dtype
        torch.testing.assert_close(ours.loss, plain.loss, rtol=rtol, atol=0)
        torch.testing.assert_close(ours.weights[20], plain.weights[20], rtol=rtol, atol=rtol)


def test_without_a_compiler_torch_steps_in(monkeypatch, tmp_path):
    network, (X, Y) = ShortcutNetwork(2, 2, 2, "relu"), data(20, 2)
    W = torch.zeros(1, 2, 2, 2, 2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_kernel(network, W) == "torch"
    assert descend(network, W, 0.1, X, Y, 1).loss.shape == (2, 1)
    with pytest.raises(OptionError, match=r"kernel = 'native': there is no C\+\+ compiler"):
        descend(network, W, 0.1, X, Y, 1, kernel="native")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho sorry >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert choose_kernel(network, W) == "torch"
    with pytest.raises(OptionError, match=r"broken cannot compile _relu_descent\.cpp: sorry"):
        choose_kernel(network, W, "native")
    with pytest.raises(OptionError, match="knows ReLU at 'mid' only, not 'tanh' at 'mid'"):
        choose_kernel(ShortcutNetwork(2, 2, 2, "tanh"), W, "native")
    with pytest.raises(OptionError, match=r"not torch\.float16 on"):
        choose_kernel(network, W.half(), "native")
    with pytest.raises(OptionError, match="kernel = 'fast'"):
        choose_kernel(network, W, "fast")


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_diverged_run_harms_no_other(activation, kernel):
    network, (X, Y) = ShortcutNetwork(2, 3, 3, activation), data()
    W = torch.stack([initial_weights(network, "xavier", generator(i), 0.3) for i in range(3)])
    alone = descend(network, W[::2], 0.05, X, Y, 40, kernel=kernel)
    mixed = descend(network, W, [0.05, 50.0, 0.05], X, Y, 40, keep=[5], kernel=kernel)
    assert mixed.diverged.tolist() == [False, True, False]
    torch.testing.assert_close(mixed.loss[:, ::2], alone.loss)
    assert bool(mixed.loss[-1, 1].isinf())
    assert bool(mixed.weights[40][1].isnan().all())
    assert bool(mixed.gradient_norm[-1, 1].isnan())
    every = descend(network, W, 50.0, X, Y, 40, keep=[40], kernel=kernel)
    assert bool(every.diverged.all())
    assert bool(every.weights[40].isnan().all())


def test_gradient_norm_is_that_of_the_gradient():
    network, (X, Y) = ShortcutNetwork(2, 2, 3), data()
    W = initial_weights(network, "orthogonal", generator())
    expected = torch.func.grad(lambda w: network.loss(w, X, Y))(W).norm()
    assert float(descend(network, W[None], 0.1, X, Y, 0).gradient_norm[0, 0]) == pytest.approx(float(expected))


def test_progress_hears_of_every_epoch():
    heard = []
    network, (X, Y) = ShortcutNetwork(1, 1, 3), data()
    descend(network, torch.zeros(1, 1, 1, 3, 3), 0.1, X, Y, 3, progress=heard.append)
    assert heard == [0, 1, 2, 3]


def test_initial_weights():
    network = ShortcutNetwork(2, 400, 10)
    W = initial_weights(network, "xavier", generator(), 0.01)
    assert float(W.var()) == pytest.approx(1e-4 / 10, rel=0.02)
    Q = initial_weights(network, "orthogonal", generator()).flatten(0, 1)
    torch.testing.assert_close(Q @ Q.mT, torch.eye(10, dtype=F64).expand_as(Q))
    assert 0.4 < float((torch.linalg.det(Q) > 0).double().mean()) < 0.6  # both halves of O(d)
    assert abs(float(Q.mean())) < 0.01
    with pytest.raises(OptionError, match="init = 'he'"):
        initial_weights(network, "he", generator())


def test_bad_input_is_named():
    network, (X, Y) = ShortcutNetwork(1, 2, 3), data()
    W = torch.zeros(4, 2, 1, 3, 3)
    for arguments, error, text in (
        ((W[0], 0.1, X, Y, 1), ShapeError, r"weights has shape \(2, 1, 3, 3\)"),
        ((W * math.nan, 0.1, X, Y, 1), NotFiniteError, "weights holds"),
        ((W, [0.1, 0.2], X, Y, 1), ShapeError, "or 4 of them"),
        ((W, -0.1, X, Y, 1), ShapeError, "a positive number"),
        ((W, 0.1, X[:, :2], Y[:, :2], 1), ShapeError, r"both must be \(m, 3\)"),
        ((W, 0.1, X, Y, -1), OptionError, "epochs = -1"),
        ((W, 0.1, X, Y, 3, [7]), OptionError, r"keep = \[3, 7\]"),
    ):
        with pytest.raises(error, match=text):
            descend(network, *arguments)


# ------------------------------------------------------------------------------------------------------------ journal


def test_a_journal_keeps_what_was_computed(tmp_path):
    source = tmp_path / "code.py"
    source.write_text("a = 1")
    calls, lines = [], []

    def compute():
        calls.append(1)
        return {"x": np.arange(3.0), "inf": np.inf}

    for _ in range(2):
        journal = Journal("work", (source,), tmp_path / "cache", lines.append)
        found = journal({"depth": 3}, compute)
        np.testing.assert_array_equal(found["x"], [0, 1, 2])
        assert np.isinf(found["inf"])
    assert len(calls) == 1
    assert lines == ['{"depth": 3}']
    assert (journal.reused, journal.computed) == (1, 0)
    Journal("work", (source,), tmp_path / "cache")({"depth": 4}, compute)  # another key
    assert journal({"depth": 3}, compute) is journal({"depth": 3}, compute)  # from memory
    source.write_text("a = 2")
    Journal("work", (source,), tmp_path / "cache")({"depth": 3}, compute)  # other code
    assert len(calls) == 3


def test_half_a_file_is_computed_again(tmp_path):
    journal = Journal("work", (), tmp_path)
    journal({"a": 1}, lambda: {"x": np.ones(100)})
    (path,) = (tmp_path / "work").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    again = Journal("work", (), tmp_path)  # another run, with nothing in memory
    assert again({"a": 1}, lambda: {"x": np.zeros(2)})["x"].shape == (2,)


def test_an_interrupted_piece_leaves_nothing(tmp_path):
    def stop():
        raise KeyboardInterrupt

    journal = Journal("work", (), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        journal({"a": 1}, stop)
    assert not (tmp_path / "work").exists()


def test_where_the_journal_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("RESID_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RESID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resid"
    with pytest.raises(OptionError, match="the name of a folder"):
        Journal("a/b", ())


# -------------------------------------------------------------------------------------------------------------- study


def study(**change):
    given = {"data": "digits", "seeds": [0, 1], "epochs": 60, "rates": [0.01, 0.1], "journal": Journal("t", (), None)}
    return Study(**(given | change))


def test_networks_of_the_study():
    assert make_network("xavier", 6) == ShortcutNetwork(1, 6, 10, shortcut=False)
    assert make_network("orthogonal", 6, activation="relu") == ShortcutNetwork(2, 3, 10, "relu", shortcut=False)
    assert make_network("3-shortcut", 6) == ShortcutNetwork(3, 2, 10)
    with pytest.raises(ValueError, match="units = 0"):
        make_network("4-shortcut", 6)
    weights = make_weights("2-shortcut", make_network("2-shortcut", 8), [3, 4])
    assert weights.shape == (2, 4, 2, 10, 10)
    assert 0.002 < float(weights.std()) < 0.004
    assert torch.equal(weights[1], make_weights("2-shortcut", make_network("2-shortcut", 8), [4])[0])


def test_sweep_is_the_training_of_each_seed_at_each_rate():
    found = study().sweep("2-shortcut", 4)
    X, Y = load_whitened("digits")
    network = make_network("2-shortcut", 4)
    for i, seed in enumerate((0, 1)):
        for j, rate in enumerate((0.01, 0.1)):
            done = descend(network, make_weights("2-shortcut", network, [seed]), rate, X, Y, 60)
            assert found[i, j] == pytest.approx(float(done.loss[-1, 0]), rel=1e-9)
    loss, rate = study().best("2-shortcut", 4)
    np.testing.assert_allclose(loss, found.min(1))
    assert rate.tolist() == [0.1, 0.1]


def test_a_sweep_with_relu_is_kept_seed_by_seed(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes longer than the sweep
    s = study(epochs=2, dtype=F64)
    found = s.sweep("orthogonal", 4, "relu")
    assert s.journal.computed == 2  # an interruption costs one seed at most
    X, Y = load_whitened("digits")
    network = make_network("orthogonal", 4, activation="relu")
    for i, rate in enumerate((0.01, 0.1)):  # one rate for each seed: every row and every column once
        W = make_weights("orthogonal", network, [i])[0]
        losses, _ = descent_twin(network, W, rate, X.to(F64), Y.to(F64), 2)
        assert found[i, i] == pytest.approx(losses[2], rel=1e-9)
    np.testing.assert_array_equal(study(epochs=2, dtype=F64, seeds=[1]).sweep("orthogonal", 4, "relu"), found[1:])


def test_levels_are_crossed_where_they_say():
    s = study(seeds=[0], path_epochs=60)
    path = s.path("2-shortcut", 4, 0.1)
    assert path["excess"].shape == (1, 61)
    level = float(np.sqrt(path["excess"][0, 40] * path["excess"][0, 41]))  # half way, in the logarithm
    at = s.at_levels("2-shortcut", 4, 0.1, [level, 1e-9])
    index, kappa = s.early("2-shortcut", 4, 0.1, step=1, count=42)
    assert at["kappa"][0, 0] == pytest.approx(math.sqrt(kappa[0, 40] * kappa[0, 41]), rel=1e-9)
    assert at["index"][0, 0] == pytest.approx((index[0, 40] + index[0, 41]) / 2)
    assert np.isnan(at["kappa"][0, 1])


def test_steps_to_halve_counts_steps():
    s = study(seeds=[0])
    (steps,) = s.steps_to_halve(2, 4, 0.03, 0.1, limit=700)
    X, Y = load_whitened("digits")
    network = make_network("2-shortcut", 4)
    loss = descend(network, make_weights("2-shortcut", network, [0], 0.03), 0.1, X, Y, int(steps)).loss[:, 0]
    half = (s.first_excess + s.least_loss) / 2 - s.least_loss
    assert float(loss[-1]) <= half < float(loss[-2])
    assert s.steps_to_halve(4, 4, 0.001, 0.1, limit=600).tolist() == [600]


def test_norm_slopes_are_those_of_the_norms():
    s = study()
    slopes = s.norm_slopes([4, 8], 0.1)
    expected = np.log(s.norms(8, 0.1) / s.norms(4, 0.1)) / math.log(2)
    np.testing.assert_allclose(slopes, expected)


@pytest.mark.parametrize(
    ("study", "decisive"),
    [
        ("linear/dynamics_study.py", "theory/targets.py"),  # draws the orthogonal starts
        ("linear/dynamics_study.py", "_arguments.py"),
        ("linear/dynamics_study.py", "theory/shortcut/_relu_descent.cpp"),
        ("norms/norm_study.py", "theory/conv_spectrum/_geometry.py"),
        ("norms/norm_study.py", "nets/preact.py"),
    ],
)
def test_kept_work_is_of_the_code_that_made_it(tmp_path, study, decisive):
    """Whatever a study imports decides what it comes out as: no list of it is kept by hand."""
    package = shutil.copytree(PACKAGE, tmp_path / "resid", ignore=shutil.ignore_patterns("__pycache__", "_recorded"))
    source = package / "book" / "checks" / study
    before = code_hash([source], tmp_path)
    path = package / decisive
    text = path.read_text("utf-8")
    mark = "//" if path.suffix == ".cpp" else "#"
    path.write_text(f"{text}\n{mark} another comment\n")
    _imports_of.cache_clear()
    assert (code_hash([source], tmp_path) == before) == (path.suffix == ".py")  # C++ counts whole
    path.write_text(f"{text}\nint other;\n" if path.suffix == ".cpp" else f"{text}\nOTHER = 1\n")
    assert code_hash([source], tmp_path) != before


def test_what_no_study_imports_leaves_its_work_alone(tmp_path):
    package = shutil.copytree(PACKAGE, tmp_path / "resid", ignore=shutil.ignore_patterns("__pycache__", "_recorded"))
    source = package / "book" / "checks" / "linear" / "dynamics_study.py"
    before = code_hash([source], tmp_path)
    (package / "theory" / "landscape.py").write_text("OTHER = 1\n")
    assert code_hash([source], tmp_path) == before


def test_the_journals_of_the_book_follow_their_studies():
    for sources in (SOURCES, norm_study.SOURCES):
        assert all(path.is_file() and path.suffix == ".py" for path in sources)
    assert SOURCES[0].name == "dynamics_study.py"
    assert norm_study.SOURCES[0].name == "norm_study.py"


def test_code_has_one_hash_in_every_version_of_python(tmp_path, monkeypatch):
    """The text of `ast.dump` changes from version to version: it is not in the hash; nor is how a path is spelled."""
    source = tmp_path / "code.py"
    source.write_text("def f(x, *, y=None): return x, ()\n")
    x, y, none = "arg='x'", "arg='y'", "Constant()"
    arguments = f"args=arguments(args=[arg({x})], kwonlyargs=[arg({y})], kw_defaults=[{none}])"
    name = "Name(id='x', ctx=Load())"
    given = f"value=Tuple(elts=[{name}, Tuple(ctx=Load())], ctx=Load())"
    assert _content(source).decode() == f"Module(body=[FunctionDef(name='f', {arguments}, body=[Return({given})])])"
    monkeypatch.chdir(tmp_path)
    assert code_hash([Path("code.py")]) == code_hash([source])


def test_docstrings_and_comments_are_no_code(tmp_path):
    source = tmp_path / "code.py"
    found = set()
    for text in ('"""One."""\nx = 1\n', '"""Two."""\nx = 1  # as is\n', "x = 1\n"):
        source.write_text(text)
        found.add(code_hash([source]))
    assert len(found) == 1
    source.write_text("x = 2\n")
    assert code_hash([source]) not in found


def test_a_bit_that_flips_in_a_kept_file_is_noticed(tmp_path):
    journal = Journal("work", (), tmp_path)
    journal({"a": 1}, lambda: {"x": np.arange(4.0), "y": np.ones(2)})
    (path,) = (tmp_path / "work").iterdir()
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        again = Journal("work", (), tmp_path)
        assert again({"a": 1}, lambda: {"x": np.zeros(1)})["x"].shape == (1,), at
    path.write_bytes(whole)
    assert Journal("work", (), tmp_path)({"a": 1}, dict)["x"].tolist() == [0, 1, 2, 3]
