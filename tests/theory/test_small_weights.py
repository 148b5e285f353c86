"""Li et al. 2016, Theorem 1: paths round obstacles, units that move one vector, and the network made of both."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resid.book.checks.samples.many_digits import arc_round
from resid.book.checks.samples.small_weights import awkward_samples, measured_log_gains, on_sphere, random_samples
from resid.errors import DepthError, MarginError, NotFiniteError, OptionError, ShapeError
from resid.theory.small_weights import (
    apply_units,
    construct_small_weight_network,
    isolating_unit,
    least_parameter_norm,
    least_stretch,
    max_norm_bound,
    minimum_distance,
    separation,
    sphere_path,
    sphere_paths,
    total_norm_bound,
)
from resid.theory.small_weights.network import _woken, ordered_dot
from tests.twins.small_weights import least_distance_twin, network_twin

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(m, d, seed=0, **options):
    return random_samples(m, d, generator(seed), **options)


def distances(A, B):
    return torch.cdist(A, B, compute_mode="donot_use_mm_for_euclid_dist")


# -------------------------------------------------------------------------------------------------------------- paths


def on_the_way(path, obstacles, count=2000):
    """Checks everything Lemma 2 says of a path, on many points of it."""
    points = path.points(count)
    steps = (points[1:] - points[:-1]).norm(dim=1)
    assert float((points.norm(dim=1) - 1).abs().max()) < 1e-12
    assert torch.equal(points[0], path.start)
    assert torch.equal(points[-1], path.goal)
    assert float(steps.max()) <= path.length / count * (1 + 1e-6) + 1e-9
    assert float(steps.sum()) == pytest.approx(path.length, rel=1e-3, abs=1e-9)
    assert path.length <= math.pi**2 / 2
    if len(obstacles):
        assert float(distances(points, obstacles).min()) >= path.clearance * (1 - 1e-9)


@pytest.mark.parametrize("d", [3, 4, 9])
@pytest.mark.parametrize("seed", range(6))
def test_random_paths_keep_clear_and_are_short(d, seed):
    X, Y = samples(9, d, seed)
    for i, path in enumerate(sphere_paths(X, Y)):
        on_the_way(path, torch.cat([Y[:i], X[i + 1 :]]))


@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize("kind", range(5))
def test_awkward_paths_keep_clear_and_are_short(kind, d):
    for seed in range(5):
        X, Y = awkward_samples(kind, d, generator(seed))
        paths = sphere_paths(X, Y)
        for i, path in enumerate(paths):
            on_the_way(path, torch.cat([Y[:i], X[i + 1 :]]))
        if kind == 2:
            assert paths[0].bypasses == 1  # X[1] lies in the middle of the first arc


@pytest.mark.parametrize("seed", range(5))
def test_a_path_is_that_of_the_textbook_formulas(seed):
    """Against acos and great-circle interpolation in 40 digits."""
    passed = 0
    X, Y = samples(12, 3, seed)
    with mpmath.workdps(40):
        for i, path in enumerate(sphere_paths(X, Y)):
            p, q, o = (
                [[mpmath.mpf(v) for v in row] for row in rows.tolist()]
                for rows in (X[i : i + 1], Y[i : i + 1], torch.cat([Y[:i], X[i + 1 :]]))
            )
            expected = np.array(arc_round(p[0], q[0], o, mpmath.mpf(path.clearance), 50), dtype=float)
            assert np.abs(path.points(50).numpy() - expected).max() < 1e-12
            passed += path.bypasses
    assert passed


@pytest.mark.parametrize("side", [0.0, 1e-17, 1e-15, -1e-13, 1e-9, -0.05, 0.1])
def test_an_obstacle_in_the_way_is_passed_on_the_nearer_side(side):
    E = torch.eye(3, dtype=F64)
    o = on_sphere(torch.tensor([[1.0, 1.0, side]], dtype=F64))
    path = sphere_path(E[0], E[1], o, 0.2)
    on_the_way(path, o)
    assert path.bypasses == 1
    if abs(side) > 1e-14:
        assert float(path.points(10)[5, 2]) * side < 0
    # half of the boundary if the arc goes through the centre, less if it does not
    if abs(side) < 1e-8:
        radius = 0.2 * math.sqrt(1 - 0.2**2 / 4)
        assert path.length == pytest.approx(math.pi / 2 - 4 * math.asin(0.1) + math.pi * radius, abs=1e-8)


def test_ends_that_coincide_or_are_opposite():
    E = torch.eye(4, dtype=F64)
    still = sphere_path(E[0], E[0], E[1:], 0.5)
    assert still.length == 0
    assert torch.equal(still.points(3), E[0].expand(4, 4))
    for goal in (-E[0], on_sphere(-E[0] + 1e-12 * E[1]), on_sphere(-E[0] + 1e-16 * E[2])):
        path = sphere_path(E[0], goal, E[1:2], 0.5)
        on_the_way(path, E[1:2])
        assert path.length >= math.pi - 1e-11


def test_no_obstacles_and_touching_caps():
    E = torch.eye(3, dtype=F64)
    assert sphere_path(E[0], E[1], torch.zeros(0, 3), 0.3).length == pytest.approx(math.pi / 2)
    angles = torch.tensor([0.6, 0.9], dtype=F64)
    two = torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    path = sphere_path(E[0], E[1], two, float((two[0] - two[1]).norm()) / 2)
    on_the_way(path, two)
    assert path.bypasses == 2


# --------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("clearance", [None, 0.3])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_a_unit_moves_one_vector_only(d, clearance):
    points = torch.tensor([[1.0], [-1.0]], dtype=F64) if d == 1 else on_sphere(torch.eye(d, dtype=F64) + 0.1)
    target = on_sphere(points[0] + 0.7 * torch.ones(d, dtype=F64)) if d > 1 else points[1]
    W1, b, W2 = isolating_unit(points, 0, target, clearance)
    after = apply_units(torch.stack([W1, W2])[None], b[None], points)
    at_threshold = clearance is None  # the nearest vector is right there, where rounding decides
    assert float((after[1:] - points[1:]).abs().max()) <= (1e-15 if at_threshold else 0)
    assert float((after[0] - target).abs().max()) < 1e-14
    delta = float((target - points[0]).norm())
    rho = clearance or float((points[1:] - points[0]).norm(dim=1).min())
    for W in (W1, W2):
        assert float(torch.linalg.matrix_norm(W)) == pytest.approx(math.sqrt(2 * delta) / rho, rel=1e-12)
    assert float(b.norm()) <= float(torch.linalg.matrix_norm(W1))


def test_a_unit_needs_room():
    E = torch.eye(3, dtype=F64)
    with pytest.raises(MarginError, match=r"points\[0\] is at distance 1.414 from points\[2\]: clearance = 1.5"):
        isolating_unit(E, 2, E[0], 1.5)
    with pytest.raises(MarginError, match=r"points\[2\] is at distance 0 from points\[0\]"):
        isolating_unit(E[[0, 1, 0]], 0, E[2])
    one = isolating_unit(E[:1], 0, E[2])  # alone
    assert float(apply_units(torch.stack([one[0], one[2]])[None], one[1][None], E[:1])[0, 2]) == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("m", "d", "steps"), [(1, 3, 1), (1, 5, 7), (5, 3, 1), (5, 3, 64), (12, 3, 16), (20, 10, 4), (3, 17, 9)]
)
@pytest.mark.parametrize("threshold", ["paper", "sharp"])
def test_every_sample_reaches_its_label_within_the_bounds(m, d, steps, threshold):
    for seed in range(3):
        X, Y = samples(m, d, seed)
        units = m * steps + seed % m
        network = construct_small_weight_network(X, Y, units, threshold=threshold)
        assert float((network(X) - Y).abs().max()) < 1e-13
        assert torch.equal(network.norms.max(), torch.tensor(network.max_norm, dtype=F64))
        assert network.max_norm <= max_norm_bound(network.rho, m, units)
        assert network.total_norm <= total_norm_bound(network.rho, m)
        assert float(network.offsets.abs().max()) <= network.max_norm
        assert network.rho == pytest.approx(least_distance_twin(X, Y) if m > 1 else 2, rel=1e-12)
        assert (network.units, network.width, network.steps) == (units, d, steps)


def test_the_norms_are_those_of_the_lemmas():
    X, Y = samples(8, 4, 3)
    network = construct_small_weight_network(X, Y, 8 * 11 + 3)
    moves = (network.trajectory(X).diff(dim=0)).norm(dim=2).sum(1)
    expected = (2 * moves).sqrt() / (network.rho / 2)
    np.testing.assert_allclose(network.norms[:, 0], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(network.norms[:, 1], expected, rtol=1e-10, atol=1e-12)
    assert float(network.norms[88:].abs().max()) == 0  # left over
    sharp = construct_small_weight_network(X, Y, 91, threshold="sharp")
    assert bool((sharp.norms <= network.norms * (1 + 1e-12)).all())


def test_all_ways_of_computing_an_output_agree_to_the_bit():
    X, Y = samples(6, 5, 2)
    network = construct_small_weight_network(X, Y, 6 * 9 + 2)
    inputs = torch.cat([X, on_sphere(X + 0.02 * torch.randn(6, 5, generator=generator(), dtype=F64)), -2 * X])
    together = network(inputs)
    assert torch.equal(network.trajectory(inputs)[-1], together)
    for x, y in zip(inputs, together, strict=True):
        assert torch.equal(network(x[None])[0], y)
        assert network_twin(network.weights, network.biases, x) == y.tolist()
    dense = apply_units(network.weights, network.biases, inputs)
    gain = network.log_gains.max().exp()
    assert float((dense - together).abs().max()) < 1e-14 * float(gain)


def test_samples_leave_one_another_alone():
    """Before and after its own turn a vector does not move by a single bit."""
    X, Y = samples(7, 3, 4)
    network = construct_small_weight_network(X, Y, 7 * 6)
    h = network.trajectory(X)
    for i in range(7):
        assert torch.equal(h[: 6 * i + 1, i], X[i].expand(6 * i + 1, 3))
        assert torch.equal(h[6 * i + 6 :, i], h[-1, i].expand(37 - 6 * i, 3)[: len(h) - 6 * i - 6])


def test_rows_that_a_unit_moves_by_its_rounding_only_are_found():
    """Whatever the fixed order of summation moves has to be among the rows that the matrix product lets through."""
    gen, barely = generator(21), 0
    for _ in range(40):
        h, w = on_sphere(torch.randn(60, 40, generator=gen, dtype=F64)), torch.randn(3, 40, generator=gen, dtype=F64)
        for row in range(3):
            for unit in w:
                exact = ordered_dot(h[row], unit)
                offset = torch.nextafter(-exact, torch.tensor(math.inf, dtype=F64))
                assert bool(exact + offset > 0)
                assert row in _woken(h, unit[None], offset[None])
                barely += bool((h @ unit)[row] + offset <= 0)
    assert barely > 10  # which the matrix product alone would have left asleep


def test_adversarial_samples_reach_their_labels_within_the_bounds():
    """Nearly antipodal ends, everything on one circle, cycles of labels, samples that are close together."""
    gen, worst = generator(22), 0.0
    for case in range(40):
        d = 3 + case % 3
        X, Y = random_samples(4, d, gen)
        noise = on_sphere(torch.randn(4, d, generator=gen, dtype=F64))
        if case % 4 == 0:
            Y = on_sphere(-X + 10.0 ** -(case % 15) * noise)
        elif case % 4 == 1:
            angles = 2 * math.pi * torch.rand(8, generator=gen, dtype=F64)
            circle = torch.stack([angles.cos(), angles.sin()], 1) @ torch.eye(2, d, dtype=F64)
            X, Y = circle[:4], circle[4:]
        elif case % 4 == 2:
            Y = on_sphere(X.roll(1, 0) + 1e-2 * noise)
        else:
            X[1] = on_sphere(X[0] + 1e-4 * noise[0])
        network = construct_small_weight_network(X, Y, 4 * (1 + case % 9))
        assert float((network(X) - Y).norm(dim=1).max()) < 1e-14
        assert network.max_norm <= max_norm_bound(network.rho, 4, network.units)
        assert max(path.length for path in network.paths) <= math.pi**2 / 2
        for i, path in enumerate(network.paths):
            resting = torch.cat([Y[:i], X[i + 1 :]])
            worst = max(worst, network.rho / 2 / float(distances(path.points(200), resting).min()))
    assert 0.99 < worst <= 1 + 1e-9


def test_the_open_loop_is_right_in_theory_and_explodes_in_float64():
    X, Y = samples(5, 3, 0)
    closed, loose = (construct_small_weight_network(X, Y, 320, loop) for loop in (True, False))
    np.testing.assert_allclose(loose.norms, closed.norms, rtol=1e-9)
    assert float((closed(X) - Y).abs().max()) < 1e-13
    assert float((loose(X) - Y).abs().max()) > 1
    gentle = samples(4, 20, 0)
    assert float((construct_small_weight_network(*gentle, 40, False)(gentle[0]) - gentle[1]).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("m", "d", "seed"), [(5, 3, 1), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((8, 3, 2), (10, 5, 0)))]
)
def test_the_growth_of_errors_is_the_predicted_one(m, d, seed):
    X, Y = samples(m, d, seed)
    network = construct_small_weight_network(X, Y, 400 * m)
    rate = math.sqrt(8) / network.rho
    gap = (measured_log_gains(network, X) - network.log_gains).abs()
    assert float(gap.max()) <= math.log(rate) + 0.1 * float(network.log_gains.max())
    assert float((gap / network.log_gains).median()) < 0.15


@pytest.mark.parametrize("clearance", [0.4, 0.1, 0.05])
def test_the_growth_on_a_way_round_is_the_predicted_one(clearance):
    """A product of many small units; the factor in front of the exponential is about 1/clearance."""
    E = torch.eye(3, dtype=F64)
    path = sphere_path(E[0], E[1], on_sphere(E[:1] + E[1:2]), clearance)
    points, J = path.points(4000), E
    for a, b in itertools.pairwise(points):
        J = J + torch.outer(b - a, a @ J) / (clearance**2 / 2)
    in_front = float(torch.linalg.matrix_norm(J, ord=2).log()) - path.log_gain
    assert in_front == pytest.approx(-math.log(clearance), abs=0.25)


def test_gradients_pass():
    X, Y = samples(4, 3, 1)
    network = construct_small_weight_network(X, Y, 40)
    x = (X + 1e-4).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,), eps=1e-9, atol=1e-3, rtol=1e-3)


def test_labels_of_the_samples_own_place_and_exchanges():
    E = torch.eye(3, dtype=F64)
    still = construct_small_weight_network(E, E, 9)
    assert still.max_norm == 0
    assert torch.equal(still(E), E)
    with pytest.raises(MarginError, match=r"X\[1\] and Y\[0\] are at distance 0"):
        construct_small_weight_network(E, E[[1, 0, 2]], 9)
    X, Y = E[:2], E[[2, 0]]  # the place of the second label is free by then
    assert float((construct_small_weight_network(X, Y, 8)(X) - Y).abs().max()) < 1e-14


def test_float32_and_integers():
    X, Y = samples(6, 4, 5)
    network = construct_small_weight_network(X.float(), Y.float(), 60)
    out = network(X.float())
    assert out.dtype == torch.float32
    assert torch.equal(out, Y.float())
    whole = construct_small_weight_network([[1, 0, 0], [0, -1, 0]], [[0, 0, 1], [0, 1, 0]], 8)
    np.testing.assert_allclose(whole([[1, 0, 0], [0, -1, 0]]), [[0, 0, 1], [0, 1, 0]], atol=1e-15)


def test_near_duplicates_are_told_apart_or_refused():
    X, Y = samples(3, 3, 1)
    for distance in (1e-3, 1e-5):
        X[1] = on_sphere(X[0] + distance * on_sphere(torch.linalg.cross(X[0], X[2])))
        network = construct_small_weight_network(X, Y, 12)
        assert float((network(X) - Y).abs().max()) < 1e-12
        assert network.max_norm <= max_norm_bound(network.rho, 3, 12)
    X[1] = on_sphere(X[0] + 1e-7 * on_sphere(torch.linalg.cross(X[0], X[2])))
    with pytest.raises(MarginError, match=r"X\[1\] and X\[0\] are at distance 1e-07"):
        construct_small_weight_network(X, Y, 12)
    X[1] = on_sphere(X[0] + 1e-3 * on_sphere(torch.linalg.cross(X[0], X[2])))
    with pytest.raises(MarginError, match=r"in this precision"):
        construct_small_weight_network(X.float(), Y.float(), 12)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whole_number_directions(data):
    """Samples and labels in few directions: collinear, opposite, coplanar, equal; memorised or refused by name."""
    d, m = data.draw(st.integers(3, 4)), data.draw(st.integers(1, 6))
    entry = st.integers(-2, 2)
    row = st.lists(entry, min_size=d, max_size=d).filter(any)
    rows = torch.tensor(data.draw(st.lists(row, min_size=2 * m, max_size=2 * m)), dtype=F64)
    X, Y = on_sphere(rows[:m]), on_sphere(rows[m:])
    units, threshold = data.draw(st.integers(m, 9 * m)), data.draw(st.sampled_from(["paper", "sharp"]))
    near = data.draw(st.sampled_from([0.0, 1e-7, 1e-4]))
    X[0] = on_sphere(X[0] + near)
    least = least_distance_twin(X, Y) if m > 1 else 2.0
    try:
        network = construct_small_weight_network(X, Y, units, threshold=threshold)
    except MarginError:
        assert least < 2e-6
        return
    assert float((network(X) - Y).abs().max()) < 1e-12
    assert network.max_norm <= max_norm_bound(least, m, units) * (1 + 1e-9)


# ------------------------------------------------------------------------------------------------ what it cannot do


@pytest.mark.parametrize("seed", range(4))
def test_least_stretch_bounds_and_is_attained(seed):
    gen = generator(seed)
    W = 0.2 * torch.randn(5, 2, 3, 3, generator=gen, dtype=F64)
    b, x = torch.randn(5, 3, generator=gen, dtype=F64), torch.randn(2, 3, generator=gen, dtype=F64)
    out = apply_units(W, b, x)
    norms = [torch.linalg.svdvals(matrix)[0] for matrix in W.flatten(0, 1)]
    expected = math.prod(1 - float(norms[2 * r] * norms[2 * r + 1]) for r in range(5))
    assert least_stretch(W) == pytest.approx(expected)
    assert float((out[0] - out[1]).norm()) >= expected * float((x[0] - x[1]).norm())
    contract = torch.tensor([[[[0.5]], [[-0.5]]]], dtype=F64)
    ends = apply_units(contract, [[9.0]], [[0.0], [1.0]])
    assert float(ends[1] - ends[0]) == pytest.approx(least_stretch(contract))
    assert least_stretch(3 * contract) == 0


def test_apply_units_is_equation_3():
    gen = generator(7)
    W, b, X = (torch.randn(*shape, generator=gen, dtype=F64) for shape in ((4, 2, 3, 3), (4, 3), (5, 3)))
    out = apply_units(W, b, X)
    for x, y in zip(X, out, strict=True):
        np.testing.assert_allclose(network_twin(W, b, x), y, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 10])
def test_ordered_dot_is_the_inner_product(d):
    a, b = torch.randn(2, 6, d, generator=generator(), dtype=F64)
    np.testing.assert_allclose(ordered_dot(a, b), (a * b).sum(1), rtol=1e-12, atol=1e-14)


def descend_on_norm(start, units, seed, steps=400):
    """bound over norm of all weights and biases, made as large as gradient descent can from random units."""
    W, b = random_units(units, len(start), seed)
    optimizer = torch.optim.Adam([W, b], lr=0.02)
    best = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        end = apply_units(W, b, start[None])[0]
        way = (end - start).norm()
        square = 2 * (torch.asinh(start.norm() + way) - torch.asinh(start.norm()))
        square = torch.maximum(square, 2 * way / (1 + torch.maximum(end.norm(), start.norm()) ** 2).sqrt())
        ratio = (square / (W.square().sum() + b.square().sum())).sqrt()
        best = max(best, ratio.item())
        (-ratio).backward()
        optimizer.step()
    return best, W.detach(), b.detach()


def random_units(units, d, seed):
    W = 0.3 * torch.randn(units, 2, d, d, generator=generator(seed), dtype=F64)
    b = 0.3 * torch.randn(units, d, generator=generator(seed + 1), dtype=F64)
    return W.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize(
    ("units", "size", "attained"), [(1, 1.0, 0.99), (6, 1.0, 0.99), (6, 0.1, 0.97), (3, 4.0, 0.97)]
)
def test_no_units_are_nearer_to_zero_than_their_outputs_allow(units, size, attained):
    x = size * on_sphere(torch.randn(1, 3, generator=generator(3), dtype=F64))
    best, W, b = descend_on_norm(x[0], units, 5)
    assert attained < best <= 1 + 1e-12
    norm = math.hypot(float(W.norm()), float(b.norm()))
    assert attained < least_parameter_norm(x, apply_units(W, b, x)) / norm <= 1 + 1e-12


@pytest.mark.parametrize(("units", "degrees", "size"), [(1, 90, 1.0), (6, 90, 1.0), (3, 170, 1.0), (4, 60, 0.5)])
def test_more_units_do_not_come_nearer_to_zero_on_the_sphere_or_inwards(units, degrees, size):
    x, angle = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64), math.radians(degrees)
    y = size * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=F64)
    W, b = random_units(units, 3, 2)
    optimizer = torch.optim.LBFGS([W, b], max_iter=1000, history_size=50, line_search_fn="strong_wolfe")

    def norm_and_penalty():
        optimizer.zero_grad()
        loss = W.square().sum() + b.square().sum() + 100 * (apply_units(W, b, x)[0] - y).square().sum()
        loss.backward()
        return loss

    optimizer.step(norm_and_penalty)
    W, b = W.detach(), b.detach()
    end = apply_units(W, b, x)
    assert float((end[0] - y).norm()) < 0.02  # the penalty pulls it this near, and a little inside
    assert float(end.norm()) <= 1
    norm = math.hypot(float(W.norm()), float(b.norm()))
    exact = math.sqrt(2 * float((end - x).norm()) / math.sqrt(2))
    assert exact <= norm * (1 + 1e-12)
    assert norm < 1.002 * exact
    assert least_parameter_norm(x, end) == pytest.approx(exact, rel=1e-12)


def test_no_way_in_many_steps_is_cheaper_than_one_step():
    """What a unit costs depends on where it starts and how far it goes alone: search over the points in between."""
    gen = generator(11)
    x, y = (
        torch.randn(400, 3, generator=gen, dtype=F64) * 10 ** (4 * torch.rand(400, 1, generator=gen, dtype=F64) - 2)
        for _ in range(2)
    )
    y[::2] *= (x.norm(dim=1) / y.norm(dim=1) * torch.rand(400, generator=gen, dtype=F64).sqrt())[::2, None]  # inwards
    least = torch.tensor([least_parameter_norm(a[None], b[None]) for a, b in zip(x, y, strict=True)], dtype=F64)
    size = torch.maximum(x.norm(dim=1), y.norm(dim=1))[:, None]
    found = []
    for between in (1, 2, 4, 8):
        share = torch.linspace(0, 1, between + 2, dtype=F64)[1:-1, None, None]
        noise = torch.randn(between, 400, 3, generator=gen, dtype=F64) * 10 ** -torch.linspace(0, 2, 400)[:, None]
        points = ((x + share * (y - x)) / size + noise).requires_grad_()
        optimizer = torch.optim.Adam([points], lr=0.03)
        for _ in range(120):
            optimizer.zero_grad()
            way = torch.cat([x[None], points * size, y[None]])
            cost = 2 * (way.diff(dim=0).norm(dim=2) / (1 + way[:-1].square().sum(2)).sqrt()).sum(0) / least**2
            found.append(cost.min().item())
            cost.sum().backward()
            optimizer.step()
    assert 1 - 1e-12 <= min(found) < 1.02  # never below, and nearly reached


def test_no_random_network_is_nearer_to_zero():
    gen = generator(12)
    worst = 0.0
    for case in range(1500):
        d, units, size = 1 + case % 4, 1 + case % 7, 10.0 ** (case % 6 / 2 - 2)
        W, b = torch.randn(units, 2, d, d, generator=gen, dtype=F64), torch.randn(units, d, generator=gen, dtype=F64)
        W, b = size * W, size * b
        if case % 3:  # every unit nearly the cheapest one for where it is
            W[:, 0, 1:], W[:, 1, :, 1:], b[:, 1:] = 0, 0, 0
            b[:, 0].abs_()
        x = 3 * torch.randn(1, d, generator=gen, dtype=F64)
        worst = max(worst, least_parameter_norm(x, apply_units(W, b, x)) / math.hypot(float(W.norm()), float(b.norm())))
    assert 0.8 < worst <= 1 + 1e-12


def test_the_least_norm_is_that_of_the_farthest_sample():
    X, Y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.1], [3.0, 2.0], [0.0, 1.0]])
    one_by_one = [least_parameter_norm(X[i : i + 1], Y[i : i + 1]) for i in range(3)]
    assert one_by_one[1] == pytest.approx(math.sqrt(2 * (math.asinh(5) - math.asinh(2))))
    assert one_by_one[2] == pytest.approx(math.sqrt(2 * math.asinh(1)))
    assert least_parameter_norm([[0.0, 2.0]], [[1.0, 0.5]]) == pytest.approx(math.sqrt(2 * math.sqrt(3.25 / 5)))
    assert least_parameter_norm([[1e200]], [[-1e200]]) == pytest.approx(2)
    assert least_parameter_norm(X, Y) == max(one_by_one)
    assert least_parameter_norm(X, X) == 0


def test_without_its_biases_a_unit_can_be_as_near_to_zero_as_one_likes():
    x, way = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([-1.0, 1.0], dtype=F64)
    W, b = torch.zeros(1, 2, 2, 2, dtype=F64), torch.tensor([[1e6, 0.0]], dtype=F64)
    W[0, 1, :, 0] = way / 1e6
    assert torch.allclose(apply_units(W, b, x), x + way)
    assert float(W.norm()) < 1e-5 < least_parameter_norm(x, x + way)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_named():
    X, Y = samples(4, 3, 0)
    E = torch.eye(3, dtype=F64)
    build = construct_small_weight_network
    for call, error, text in (
        (lambda: build(X, Y, 3), DepthError, r"units = 3 < m = 4"),
        (lambda: build(X, Y, 4.0), DepthError, "units = 4.0"),
        (lambda: build(X, Y[:3], 9), ShapeError, r"X has shape \(4, 3\), Y \(3, 3\)"),
        (lambda: build(X[:, :2], Y[:, :2], 9), ShapeError, "d = 2 < 3: on a circle"),
        (lambda: build(X * 1.01, Y, 9), ShapeError, r"X\[\d\] has norm 1.01"),
        (lambda: build(X, torch.cat([Y[:2], 2 * Y[2:]]), 9), ShapeError, r"Y\[[23]\] has norm 2"),
        (lambda: build(X, Y * math.nan, 9), NotFiniteError, "Y holds 12 entries"),
        (lambda: build(X, Y, 9, threshold="none"), OptionError, "threshold = 'none'"),
        (lambda: build(X, Y[[0, 1, 2, 1]], 9), MarginError, r"Y\[3\] and Y\[1\] are at distance 0"),
        (lambda: build(X[[0, 1, 0, 2]], Y, 9), MarginError, r"X\[2\] and X\[0\] are at distance 0"),
        (lambda: build(X, Y, 9)(X[:, :2]), ShapeError, r"inputs has shape \(4, 2\): \(n, 3\)"),
        (lambda: sphere_paths(X, Y, 2.0), MarginError, "rho = 2 is more"),
        (lambda: sphere_path(E[0], E[1], E[:1], 0.1), MarginError, r"obstacles\[0\] is at distance 0 from start"),
        (lambda: sphere_path(E[0], E[1], E[1:], 0.1), MarginError, r"obstacles\[0\] is at distance 0 from goal"),
        (lambda: sphere_path(E[0], E[1], -E[[2, 2]], 0.1), MarginError, r"from obstacles\[0\]"),
        (lambda: sphere_path(E[0], E[1], E[:, :2], 0.1), ShapeError, r"\(n, 3\) is needed"),
        (lambda: sphere_path(E[0, :2], E[1, :2], E, 0.1), ShapeError, "d >= 3"),
        (lambda: sphere_path(E[0], 2 * E[1], E[2:], 0.1), ShapeError, r"goal\[0\] has norm 2"),
        (lambda: sphere_path(E[0], E[1], E[2:], 0), OptionError, "clearance = 0"),
        (lambda: sphere_path(E[0], E[1], E[2:], 1.1), OptionError, "clearance = 1.1 > 1"),
        (lambda: isolating_unit(E, 3, E[0]), ShapeError, "index = 3"),
        (lambda: isolating_unit(E, 0, E), ShapeError, "target has shape"),
        (lambda: isolating_unit(2 * E, 0, E[1]), ShapeError, r"points\[0\] has norm 2"),
        (lambda: isolating_unit(E[0], 0, E[1]), ShapeError, "unit vectors as rows"),
        (lambda: minimum_distance(E[:1]), ShapeError, "n >= 2"),
        (lambda: max_norm_bound(0.0, 3, 9), OptionError, "rho = 0.0"),
        (lambda: max_norm_bound(1.0, 3, 2), DepthError, "units = 2 < samples = 3"),
        (lambda: apply_units(E, E, X), ShapeError, r"weights has shape \(3, 3\)"),
        (lambda: apply_units(torch.zeros(2, 2, 3, 3), E, X), ShapeError, "biases has shape"),
        (lambda: least_stretch(torch.zeros(2, 3, 3, 3)), ShapeError, r"\(units, 2, d, d\)"),
        (lambda: least_parameter_norm(torch.zeros(2, 3), torch.zeros(3, 3)), ShapeError, r"\(n, d\) twice"),
        (lambda: least_parameter_norm(torch.zeros(3), torch.zeros(3)), ShapeError, r"\(n, d\) twice"),
    ):
        with pytest.raises(error, match=text):
            call()
    assert separation(X, Y) >= minimum_distance(torch.cat([X, Y]))
