"""Hardt & Ma, Theorem 3.2: networks through any finite sample."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resid.data.whitened import unit_digits
from resid.errors import DepthError, MarginError, NotFiniteError, OptionError, SampleConflictError, ShapeError
from resid.nets.memorizer import export_memorizer
from resid.theory.memorize import _blocks as _memorize
from resid.theory.memorize import (
    construct,
    construct_exact_memorizer,
    construct_memorizer,
    isolating_block,
    measure_margins,
    projection_width,
    rational_sphere_point,
    separation,
    smallest_width,
)
from tests.twins.memorize import competitors_twin, output_twin, separation_twin

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(n, d, r, seed=0, unit=False):
    gen = generator(seed)
    X = torch.randn(n, d, generator=gen, dtype=F64)
    y = torch.randint(r, (n,), generator=gen)
    y[: min(n, r)] = torch.arange(r)[:n]
    return (torch.nn.functional.normalize(X, dim=1) if unit else X), y


def one_hot(y, r):
    return torch.nn.functional.one_hot(y, r).to(F64)


MODES = [
    ("triangular", 1, "paper", False),
    ("triangular", 3, "paper", False),
    ("triangular", 3, "paper", True),
    ("triangular", 3, "clipped", False),
    ("triangular", 9, "paper", True),
    ("shared", 6, "paper", False),
    ("shared", 7, "clipped", False),
    ("neuron", 6, "paper", True),
]


@pytest.mark.parametrize(("mode", "width", "output", "skip"), MODES)
def test_network_is_the_written_one_and_hits_every_label(mode, width, output, skip):
    X, y = sample(23, 6, 4, unit=True)
    projection = "gaussian" if mode == "triangular" else "orthogonal"
    net = construct_memorizer(X, y, width, mode, projection=projection, output=output, skip=skip)
    slow = torch.tensor([output_twin(net, x) for x in X.tolist()], dtype=F64)
    torch.testing.assert_close(net(X), slow, atol=1e-9, rtol=0)
    torch.testing.assert_close(slow, one_hot(y, 4), atol=1e-9, rtol=0)
    assert net.error(X, y) == pytest.approx(float((net(X) - one_hot(y, 4)).abs().max()))
    assert torch.equal(net.predict(X), y)
    assert (net.width, net.classes, net.depth, net.mode) == (width, 4, -(-23 // width) + 1, mode)


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("size", [1, 40, 1 << 23])
def test_competitors_are_those_of_the_definition(monkeypatch, later, size):
    monkeypatch.setattr(_memorize, "_PRODUCTS", size)
    z, _ = sample(17, 3, 2)
    q, _ = sample(5, 3, 2, seed=1)
    for labels in (q, q[:0]):
        found = _memorize.competitors(z, labels, later)
        expected = torch.tensor(competitors_twin(z.tolist(), labels.tolist(), later), dtype=F64)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_every_neuron_sees_its_own_point_and_nothing_it_must_ignore(width):
    X, y = sample(31, 4, 3)
    net = construct_memorizer(X, y, width)
    z = X @ net.first.mT + net.shift
    ends = net.hidden(X)[-1]
    U, s = net.U.flatten(0, 1)[:31], net.s.flatten()[:31]
    order = [int((z - u).norm(dim=1).argmin()) for u in U]  # which point a neuron belongs to
    assert sorted(order) == list(range(31))
    norms = z[order].norm(dim=1)
    assert bool((norms[:-1] >= norms[1:]).all())
    for i, (u, bias) in enumerate(zip(U, s, strict=True)):
        assert float(u @ z[order[i]] + bias) > 0
        assert all(float(u @ z[j] + bias) < 0 for j in order[i + 1 :])
        assert bool((ends @ u + bias < 0).all())  # the surrogate labels, where points already moved now are
    padding = net.s.flatten()[31:]
    assert bool((padding == -1).all())
    assert float(net.U.flatten(0, 1)[31:].abs().sum()) == 0


def test_points_are_bitwise_untouched_by_the_blocks_of_others():
    X, y = (part[:300] for part in unit_digits())
    for dtype in (F64, torch.float32):
        h = construct_memorizer(X, y, 7).to(dtype).hidden(X)
        assert bool(((h[1:] != h[:-1]).any(2).sum(0) == 1).all())
        ends = torch.cdist(h[-1].to(F64), h[-1].to(F64))
        same = y[:, None] == y
        assert float(ends[same].max()) < 1e-3 * float(ends[~same].min())


@pytest.mark.parametrize("width", [2, 16])
def test_digits_with_true_and_random_labels(width):
    images, true = unit_digits()
    for labels in (true, torch.randint(10, (1797,), generator=generator())):
        net = construct_memorizer(images, labels, width)
        assert net.error(images, labels) < 1e-13
        assert net.n_parameters < 2 * (2 * width + 1) * 1797


def test_parameters_are_counted_part_by_part():
    X, y = sample(50, 9, 5, unit=True)
    k, d, r, blocks = 4, 9, 5, 13
    net = construct_memorizer(X, y, k, output="paper", shift=False)
    assert net.parameter_counts == {
        "first": k * d,
        "shift": 0,
        "blocks": blocks * (2 * k * k + k),
        "last": r * k + r + r * r,
    }
    assert net.n_parameters == k * d + blocks * (2 * k * k + k) + r * k + r * r + r
    clipped = construct_memorizer(X, y, k)
    assert clipped.n_parameters - net.n_parameters == k + r * k + r + r * r  # the shift, and twice the neurons
    assert sum(p.numel() for p in export_memorizer(clipped).parameters()) == clipped.n_parameters


def test_clipped_output_does_not_pass_on_what_happens_to_hidden_vectors():
    X, y = sample(40, 5, 4)
    paper, clipped = (construct_memorizer(X, y, 3, output=output) for output in ("paper", "clipped"))
    spoilt = [m.to(F64) for m in (paper, clipped)]
    for m in spoilt:
        m.V.mul_(1 + 1e-5)
    errors = [m.error(X, y) for m in spoilt]
    assert errors[0] > 1e-7
    assert errors[1] < 1e-13


def test_the_clipped_block_rises_in_the_middle_third_of_its_gap():
    q = torch.randn(4, 3, generator=generator(3), dtype=F64)
    q = q / q.norm(dim=1, keepdim=True)
    rows, bias, out = construct._last_block(q, "clipped", False)
    for i in range(4):
        rival = max(float(q[i] @ q[j]) for j in range(4) if j != i)
        for share, expected in ((-1.0, 0), (0.0, 0), (0.3333, 0), (0.5, 0.5), (0.6667, 1), (1.0, 1), (1.5, 1)):
            h = (rival + share * (1 - rival)) * q[i]  # <q_i, h> is that share of the way from the rival to |q_i|^2
            found = float((out @ torch.relu(rows @ h + bias))[i])
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("slack", [None, 0.2])
def test_the_gap_is_that_of_the_definition(slack):
    X, y = sample(12, 30, 3, seed=5, unit=True)
    for mode in ("shared", "neuron"):
        net = construct_memorizer(X, y, 60, mode, seed=1, slack=slack if mode == "shared" else None)
        z, q = net.hidden(X)[0], net.last_in  # "paper": the rows are the surrogate labels, in some order
        gaps = []
        for i in range(12):
            square = float(z[i] @ z[i])
            rivals = [float(z[i] @ z[j]) for j in range(12) if j != i] + [float(z[i] @ label) for label in q]
            threshold = -float(net.s.flatten()[i])
            if mode == "neuron":
                assert threshold == pytest.approx((square + max(rivals)) / 2)
                gaps.append((square - max(rivals)) / square)
            else:
                largest = float(z.square().sum(1).max())
                gaps.append(2 * min(square - threshold, threshold - max(rivals)) / largest)
        assert net.gap == pytest.approx(min(gaps), rel=1e-10)


@pytest.mark.parametrize(("k", "d"), [(4, 9), (6, 6), (9, 4)])
def test_an_orthogonal_projection_has_the_scale_of_a_gaussian_one(k, d):
    """Rows of squared norm d/k for k < d, as entries of variance 1/k have on average; else an isometry."""
    first = _memorize.projection_matrix(sample(5, d, 2)[0], k, "orthogonal", generator(), unit=False)
    gram = first @ first.mT if k < d else first.mT @ first
    torch.testing.assert_close(gram, max(1.0, d / k) * torch.eye(min(k, d), dtype=F64), rtol=0, atol=1e-12)


def test_adversarial_samples_are_memorized():
    """Duplicates to the last bits, clusters, heavy tails, far from the origin, lattices."""
    gen = generator(9)
    for case in range(60):
        n, d, k = 2 + case % 20, 1 + case % 5, 1 + case % 7
        X = torch.randn(n, d, generator=gen, dtype=F64)
        if case % 6 == 1:
            X = torch.cat([X, X * (1 + 1e-12)])
        elif case % 6 == 2:
            X = torch.randn(1, d, generator=gen, dtype=F64) + 10.0 ** -(case % 9) * X
        elif case % 6 == 3:
            X = X / torch.rand(n, 1, generator=gen, dtype=F64) ** 3
        elif case % 6 == 4:
            X = X + 1e7
        elif case % 6 == 5:
            X = torch.cartesian_prod(*[torch.arange(3.0, dtype=F64)] * d).reshape(-1, d)[:40]
        y = torch.randint(3, (len(X),), generator=gen)
        net = construct_memorizer(X, y, k, seed=case, classes=3)
        assert torch.equal(net.predict(X), y)
        assert net.error(X, y) <= (1e-12 if k > 1 else 1e-13 / net.gap**2)


def test_separation_far_from_the_origin():
    cube = torch.rand(200, 4, generator=generator(2), dtype=F64)
    for offset in (1e6, 1e8, 1e9):
        X = offset + cube
        i, j = torch.triu_indices(200, 200, 1)
        exact = (X[i] - X[j]).square().sum(1)
        value, a, b = separation(X)
        at = int(exact.argmin())
        assert value == float(exact[at])
        assert (a, b) == (int(i[at]), int(j[at]))


NASTY = ["near", "line", "antipodal", "one class", "integers", "grid", "offset"]


def nasty(kind, n, d, seed):
    gen = generator(seed)
    d = max(d, 2) if kind == "antipodal" else d  # in one dimension there are only two unit vectors
    X = torch.randn(n, d, generator=gen, dtype=F64)
    y = torch.randint(3, (n,), generator=gen)
    if kind == "near":  # pairs 1e-7 apart
        X = torch.cat([X, X + 1e-7 * torch.nn.functional.normalize(torch.randn(n, d, generator=gen, dtype=F64), dim=1)])
        y = torch.cat([y, (y + 1) % 3])
    elif kind == "line":
        X = torch.linspace(-1, 1, n, dtype=F64)[:, None] * torch.randn(d, generator=gen, dtype=F64) + 1
    elif kind == "antipodal":
        X = torch.nn.functional.normalize(X, dim=1)
        X, y = torch.cat([X, -X]), torch.cat([y, (y + 1) % 3])
    elif kind == "one class":
        y = torch.zeros_like(y)
    elif kind == "integers":
        X = torch.arange(n * d).view(n, d) ** 2
    elif kind == "grid":
        X = torch.stack([torch.arange(n) % 4, torch.arange(n) // 4], 1).to(F64)
    elif kind == "offset":
        X = 1e4 + X
    return X, y


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(NASTY),
    n=st.integers(1, 24),
    d=st.integers(1, 6),
    width=st.integers(1, 9),
    scale=st.sampled_from([1e-150, 1e-3, 1.0, 1e3, 1e100]),
    seed=st.integers(0, 10**6),
)
def test_any_distinct_points_are_memorized(kind, n, d, width, scale, seed):
    X, y = nasty(kind, n, d, seed)
    if X.is_floating_point():
        X = scale * X
    net = construct_memorizer(X, y, width, seed=seed, classes=3)
    # rounding of a sum near 1, over the gap that resolves it; the clipped last block does not pass it on
    assert net.error(X, y) <= (1e-12 if width > 1 else 1e-13 / net.gap**2)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), d=st.integers(2, 8), r=st.integers(1, 6), seed=st.integers(0, 10**6), k=st.integers(0, 4))
def test_margin_modes_either_hit_every_label_or_refuse(n, d, r, seed, k):
    X, y = sample(n, d, r, seed, unit=True)
    for mode in ("shared", "neuron"):
        try:
            net = construct_memorizer(X, y, max(1, d + k - 2), mode, seed=seed, classes=r)
        except MarginError:
            continue
        assert net.error(X, y) < 1e-13 / net.gap**2


def test_isometric_projection_separates_all_distinct_unit_vectors():
    X, y = sample(200, 7, 4, unit=True)
    for mode in ("shared", "neuron"):
        assert construct_memorizer(X, y, 9, mode, projection="orthogonal").error(X, y) < 1e-9
    with pytest.raises(MarginError, match=r"mode = 'shared': no neuron can tell X\[\d+\] from X\[\d+\].*triangular"):
        construct_memorizer(X, y, 3, "shared")


def test_literal_threshold_of_the_lemma():
    X, y = sample(60, 50, 3, unit=True)
    rho, *_ = separation(X)
    net = construct_memorizer(X, y, 50, "shared", projection="orthogonal", slack=rho / 10)
    assert bool((net.s.flatten()[:60] == -(1 - rho / 5)).all())
    assert net.error(X, y) < 1e-12
    with pytest.raises(MarginError, match="no neuron can tell"):  # a threshold below the inner products
        construct_memorizer(X, y, 50, "shared", projection="orthogonal", slack=0.45)
    with pytest.raises(OptionError, match="only 'shared' has a common threshold"):
        construct_memorizer(X, y, 50, slack=0.1)


def test_equal_points():
    X = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])
    net = construct_memorizer(X, [1, 1, 0, 1], width=2)
    assert net.predict(X).tolist() == [1, 1, 0, 1]
    assert len(net.U) == 1  # two different points
    with pytest.raises(SampleConflictError, match=r"X\[0\] and X\[3\] are the same point and y\[0\] = 1, y\[3\] = 2"):
        construct_memorizer(X, [1, 1, 0, 2], width=2)


def test_points_too_close_for_float64_are_named():
    X = torch.tensor([[1.0, 0.3], [1.0 + 2.0**-52, 0.3], [5.0, 5.0]], dtype=F64)
    with pytest.raises(MarginError, match=r"(X\[0\] from X\[1\]|X\[1\] from X\[0\]).*in every draw"):
        construct_memorizer(X, [0, 1, 0], width=2)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_do_not_change_anything(monkeypatch, size):
    X, y = sample(40, 6, 4)
    expected = construct_memorizer(X, y, 3)
    monkeypatch.setattr(_memorize, "ROWS", size)
    monkeypatch.setattr(_memorize, "_PRODUCTS", 40 * size)
    monkeypatch.setattr("resid.theory.memorize.network._POINTS", size)
    found = construct_memorizer(X, y, 3)
    torch.testing.assert_close(found(X), expected(X), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.first, expected.first)


def test_inputs_of_every_kind_and_shape():
    images, y = (part[:50] for part in unit_digits())
    images = (16 * images).to(torch.uint8)
    net = construct_memorizer(images, y.numpy(), width=4)
    for same in (images, images.to(torch.float32), images.flatten(1).numpy(), images.tolist()):
        X = torch.as_tensor(same).flatten(1) if not isinstance(same, list) else torch.tensor(same)
        torch.testing.assert_close(net(X), one_hot(y, 10), atol=1e-12, rtol=0)
    single = net.to(torch.float32)
    assert single(images).dtype == torch.float32
    assert torch.equal(single.predict(images), y)
    grad = images.to(F64).requires_grad_()
    assert not construct_memorizer(grad, y, 4)(grad).requires_grad
    assert construct_memorizer(np.eye(3), [0.0, 1.0, 2.0], 2, classes=5)(np.eye(3)).shape == (3, 5)
    X, y = sample(9, 4, 2)
    assert torch.equal(construct_memorizer(X, y, 2, seed=3).first, construct_memorizer(X, y, 2, seed=3).first)
    assert not torch.equal(construct_memorizer(X, y, 2, seed=3).first, construct_memorizer(X, y, 2, seed=4).first)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"width": 0}, DepthError, "width = 0: an integer of at least 1"),
        ({"width": 2.0}, DepthError, "width = 2.0"),
        ({"mode": "best"}, OptionError, "mode = 'best'"),
        ({"projection": "pca"}, OptionError, "projection = 'pca'"),
        ({"output": "soft"}, OptionError, "output = 'soft'"),
        ({"output": "clipped", "width": 1}, OptionError, "needs width >= 2 and no skip"),
        ({"output": "clipped", "skip": True}, OptionError, "needs width >= 2 and no skip"),
        ({"slack": -1, "mode": "shared"}, OptionError, "slack = -1"),
        ({"X": torch.zeros(3)}, ShapeError, r"X has shape \(3,\)"),
        ({"X": torch.zeros(0, 2)}, ShapeError, r"X has shape \(0, 2\)"),
        ({"X": torch.zeros(3, 2, dtype=torch.bool)}, ShapeError, "dtype torch.bool"),
        ({"X": torch.full((3, 2), math.nan)}, NotFiniteError, "X holds 6 entries"),
        ({"X": torch.tensor([[1e308, -1e308], [-1e308, 1e308], [0.0, 0.0]], dtype=F64)}, None, ""),
        ({"y": [0, 1]}, ShapeError, r"y has shape \(2,\): one label for each of the 3"),
        ({"y": [0, -1, 1]}, ShapeError, r"y\[1\] = -1"),
        ({"y": [0, 0.5, 1]}, ShapeError, r"y\[1\] = 0.5"),
        ({"classes": 1}, ShapeError, "classes = 1: an integer of at least 2"),
        ({"mode": "shared", "width": 1, "y": [0, 1, 2]}, MarginError, "width = 1 has no 3 different"),
        (
            {"shift": False, "X": torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])},
            MarginError,
            r"X\[0\] is projected",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    arguments = {"X": torch.eye(3, 2), "y": [0, 1, 1], "width": 2} | change
    if error is None:
        assert construct_memorizer(**arguments).error(arguments["X"], arguments["y"]) < 1e-12
        return
    with pytest.raises(error, match=text):
        construct_memorizer(**arguments)


def test_network_refuses_points_of_another_dimension():
    net = construct_memorizer(torch.eye(3), [0, 1, 2], 2)
    with pytest.raises(ShapeError, match="X has 2 numbers a point: the network was made for 3"):
        net(torch.zeros(1, 2))


def test_export_is_the_same_network(tmp_path):
    X, y = sample(30, 5, 4)
    for skip in (False, True):
        for width in (2, 6):
            net = construct_memorizer(X, y, width, output="paper", skip=skip)
            module = export_memorizer(net)
            torch.testing.assert_close(module(X).detach(), net(X), atol=1e-11, rtol=0)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    module.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    module(X).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():
        module.first.weight.zero_()
    assert net.error(X, y) < 1e-9  # the module has copies


def test_separation_and_margins_are_those_of_the_definition():
    X, _ = sample(23, 4, 2)
    rho, i, j = separation(X)
    expected, a, b = separation_twin(X.tolist())
    assert (i, j) == (a, b)
    assert rho == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ShapeError, match="two are needed"):
        separation(X[:1])
    q, _ = sample(3, 4, 2, seed=1)
    squares = X.square().sum(1)
    rivals = torch.tensor(competitors_twin(X.tolist(), q.tolist(), False), dtype=F64)
    found = measure_margins(X, q)
    assert found.shared == pytest.approx(float(squares.min() - rivals.max()))
    assert found.neuron == pytest.approx(float((squares - rivals).min()))
    with pytest.raises(ShapeError, match=r"q \(3, 2\)"):
        measure_margins(X, q[:, :2])


def test_projection_width_makes_the_union_bound_less_than_one():
    for n, rho in ((100, 0.5), (2000, 1.5)):
        k, e = projection_width(n, rho), rho / 3
        events = n + n * (n - 1) / 2
        assert events * 2 * math.exp(-k * (e**2 / 4 - e**3 / 6)) < 1.1
        assert events * 2 * math.exp(-0.9 * k * (e**2 / 4 - e**3 / 6)) > 1.1
    with pytest.raises(OptionError, match="at most 4"):
        projection_width(10, 4.5)
    with pytest.raises(DepthError, match="n = 1"):
        projection_width(1, 1.0)


def test_smallest_width_separates_and_half_of_it_does_not():
    X, _ = sample(150, 60, 2, unit=True)
    shared, neuron = (smallest_width(X, mode, 10, generator()) for mode in ("shared", "neuron"))
    assert 8 < neuron < shared < 150
    with pytest.raises(MarginError):
        construct_memorizer(X, torch.arange(150) % 10, shared // 3, "shared")
    with pytest.raises(MarginError, match="no width up to"):
        smallest_width(torch.ones(2, 3), "neuron", 2, generator())
    with pytest.raises(OptionError, match="mode = 'triangular'"):
        smallest_width(X, "triangular", 2, generator())


def test_isolating_block_at_the_corrected_distance_and_below_it():
    slack = 0.1
    far = math.acos(1 - 3 * slack)  # squared distance 6 slack on the unit circle
    for angle, alone in ((far, True), (0.8 * far, False)):
        alpha = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=F64)
        U, s, V = isolating_block(alpha, [[3.0, -2.0]], [0], slack)
        assert s.tolist() == [-0.8]
        after = alpha + torch.relu(alpha @ U.mT + s) @ V.mT
        torch.testing.assert_close(after[0], torch.tensor([3.0, -2.0], dtype=F64))
        assert (float((after[1] - alpha[1]).abs().max()) < 1e-14) is alone
    with pytest.raises(ShapeError, match=r"beta has shape \(1, 2\): \(2, 2\)"):
        isolating_block(alpha, [[3.0, -2.0]], [0, 1], slack)


def test_rational_networks_have_no_error_at_all():
    X = [[Fraction(i, 3), Fraction(i * i, 7), Fraction(-i, 2)] for i in range(12)]
    y = [i % 3 for i in range(12)]
    for width in (1, 2, 5, 20):
        net = construct_exact_memorizer(X, y, width)
        assert all(net(x) == [int(j == label) for j in range(3)] for x, label in zip(X, y, strict=True))
        hidden = [net.hidden(x) for x in X]
        assert all(sum(a != b for a, b in pairwise(h)) == 1 for h in hidden)  # each moved once
    # a float would be refused, not rounded
    with pytest.raises(ShapeError, match="int and Fraction are exact"):
        construct_exact_memorizer([[0.5]], [0], 1)


def test_rational_sphere_points_are_on_the_sphere():
    for t in ([0, 0], [Fraction(3, 7), -2], [5]):
        assert sum(v * v for v in rational_sphere_point(t)) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([[1, 2], [1, 2]], [0, 1], 2), SampleConflictError, r"X\[0\] and X\[1\] are the same point"),
        (([[1, 2], [1]], [0, 1], 2), ShapeError, "points of one dimension"),
        (([[1], [2]], [0], 1), ShapeError, "2 points and y 1 labels"),
        (([[1], [2]], [0, -1], 1), ShapeError, "no class number"),
        (([[1], [2]], [0, 1], 0), DepthError, "width = 0"),
        (([[1], [2]], [0, 1], 1, "neuron"), OptionError, "mode = 'neuron'"),
        (([[1], [2]], [0, 1], 1, "shared"), MarginError, "mode = 'shared': neuron 0 has 1"),
    ],
)
def test_rational_construction_names_what_is_wrong(arguments, error, text):
    kwargs = {"first": [[1]]} if "shared" in arguments else {}
    with pytest.raises(error, match=text):
        construct_exact_memorizer(*arguments, **kwargs)


def test_rational_construction_refuses_projections_that_join_points():
    with pytest.raises(MarginError, match="to the same place"):
        construct_exact_memorizer([[1, 0], [1, 1]], [0, 1], 1, first=[[1, 0]])
    with pytest.raises(ShapeError, match=r"first: \(1, 2\)"):
        construct_exact_memorizer([[1, 0], [1, 1]], [0, 1], 1, first=[[1, 0, 0]])
    with pytest.raises(ShapeError, match="surrogates: at least 2 vectors of 1"):
        construct_exact_memorizer([[1, 0], [1, 1]], [0, 1], 1, surrogates=[[1, 0]])
    net = construct_exact_memorizer([[2], [2], [3]], [1, 1, 0], 1)  # equal points with one label are one point
    assert net([2]) == [0, 1]
