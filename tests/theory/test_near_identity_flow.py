"""Smooth maps with certified constants, and their decomposition into blocks near the identity."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resid.errors import ConvergenceError, DepthError, DeterminantError, NotFiniteError, OptionError, ShapeError
from resid.theory.factor import near_identity_lower_bound
from resid.theory.norms import (
    SMOOTH_FAMILIES,
    SmoothMap,
    flow_bound,
    flow_constant,
    flow_times,
    linear_bound,
    mirror_augmented,
    near_identity_flow,
    norm_deviation,
    residual_map,
    sample_smooth_map,
    shear,
    twist,
)
from tests.twins.norms import flow_step_twin, jacobian_twin

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distance(J):
    return float(torch.linalg.matrix_norm(J - torch.eye(J.shape[-1], dtype=J.dtype), ord=2).max())


# --------------------------------------------------------------------------------------------- maps and their constants


@pytest.mark.parametrize("family", SMOOTH_FAMILIES)
@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_maps_have_the_slope_sign_and_constants_they_say(family, d, sign):
    gen = generator(d)
    for _ in range(4):
        h = sample_smooth_map(family, d, gen, sign)
        x = h.points(40, gen)
        slope = h.jacobian(x)
        torch.testing.assert_close(slope, jacobian_twin(h, x), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(slope, replace(h, slope=None).jacobian(x), rtol=1e-12, atol=1e-12)
        assert bool((torch.linalg.det(slope) * sign > 0).all())
        i, j = torch.triu_indices(40, 40, 1)
        apart = (x[i] - x[j]).norm(dim=1)
        bend = torch.linalg.matrix_norm(slope[i] - slope[j], ord=2) / apart
        back = apart / (h(x)[i] - h(x)[j]).norm(dim=1)
        assert 0.05 * h.alpha < float(bend.max()) <= h.alpha * (1 + 1e-9)
        assert 0.05 * h.beta < float(back.max()) <= h.beta * (1 + 1e-9)


def into_the_ball(h, points):
    return h.radius * points / points.norm(dim=-1, keepdim=True).clamp_min(1)


def bend(h, points):
    x, y = into_the_ball(h, points)
    apart = (x - y).norm(dim=1)
    change = torch.linalg.matrix_norm(h.jacobian(x) - h.jacobian(y), ord=2)
    return torch.where(apart > 1e-6 * h.radius, change / apart, 0)


def steepness(h, points):
    return 1 / torch.linalg.svdvals(h.jacobian(into_the_ball(h, points[0])))[:, -1]


@pytest.mark.parametrize("radius", [0.3, 1.0, 3.0])
def test_no_pair_of_points_breaks_the_certified_constants(radius):
    """A search on what alpha and beta bound, over maps of every kind and size; both are nearly reached."""
    gen, worst = generator(5), {}
    A = torch.linalg.qr(torch.randn(3, 3, generator=gen, dtype=F64))[0] @ torch.diag(
        torch.tensor([2.0, 1.0, 0.2], dtype=F64)
    )
    W = torch.randn(3, 3, generator=gen, dtype=F64)
    line = torch.ones(1, 1, dtype=F64)
    maps = {
        "residual": residual_map(A, W / radius, 0.2 * radius * W.mT / (1 + W.norm() ** 2), radius),
        "residual, one number": residual_map(line, 2 * line / radius, -0.4 * radius * line, radius),
        "shear": shear(0.7 / radius, A, radius),
        "twist, slow": twist(0.01 / radius**2, None, radius),
        "twist": twist(1 / radius**2, A, radius),
        "mirror": mirror_augmented(shear(0.1, 4 * torch.eye(2, dtype=F64), radius)),
    }
    for name, h in maps.items():
        found = []
        for pairs, value in ((True, bend), (False, steepness)):
            points = torch.randn(2, 200, h.dimension, generator=gen, dtype=F64)
            best = value(h, points)
            for step in range(40):  # keep what is better
                moved = points + 0.8**step * torch.randn(points.shape, generator=gen, dtype=F64)
                new = value(h, moved)
                points = torch.where((new > best)[:, None], moved, points)
                best = torch.maximum(best, new)
            found.append(float(best.max()) / (h.alpha if pairs else h.beta))
        worst[name] = found
    for bent, back in worst.values():
        assert bent <= 1 + 1e-9
        assert back <= 1 + 1e-9
    assert min(worst[name][0] for name in ("residual, one number", "twist, slow", "mirror")) > 0.95
    assert min(worst[name][1] for name in ("residual, one number", "twist, slow", "mirror")) > 0.95


def test_a_rotation_is_cut_into_chords():
    """For a map that only turns the bound is exact: 2 sin(theta/2m) is reached by the m blocks."""
    angle = 2.5
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    for depth in (2, 5, 12):
        h = SmoothMap(lambda x: x @ turn.mT, 2, alpha=0.0, beta=1.0, slope=lambda x: turn.expand(*x.shape[:-1], 2, 2))
        flow = near_identity_flow(h, depth)
        seen = distance(flow.jacobians(torch.zeros(1, 2, dtype=F64)))
        assert flow_bound(h, depth) == pytest.approx(seen, rel=1e-12) == pytest.approx(2 * math.sin(angle / 2 / depth))


def test_constants_of_the_shear_are_attained():
    h = shear(1.5, radius=2.0)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=F64)
    slope = h.jacobian(x)
    assert float(torch.linalg.matrix_norm(slope[0] - slope[1], ord=2)) / 4 == pytest.approx(h.alpha) == 3
    assert float(1 / torch.linalg.svdvals(slope[0])[-1]) == pytest.approx(h.beta)


def test_points_fill_the_ball_and_its_surface():
    x = shear(1.0, radius=3.0).points(400, generator())
    size = x.norm(dim=1)
    assert float(size.max()) == pytest.approx(3)
    assert int((size > 3 - 1e-12).sum()) == 100
    assert float(size.min()) < 0.5
    assert not bool(torch.equal(x, shear(1.0, radius=3.0).points(400, generator(1))))


# ------------------------------------------------------------------------------------------------------------ the flow


@pytest.mark.parametrize("family", SMOOTH_FAMILIES)
@pytest.mark.parametrize("times", ["uniform", "geometric"])
@pytest.mark.parametrize("d", [2, 4])
def test_networks_are_exact_and_within_their_bounds(family, times, d):
    gen = generator(d)
    h = sample_smooth_map(family, d, gen)
    x = h.points(10, gen)
    for depth in (2, 7, math.ceil(1 + flow_constant(h)), 60):
        flow = near_identity_flow(h, depth, times)
        assert flow.depth == len(flow.blocks) == depth
        torch.testing.assert_close(flow(x), h(x), rtol=1e-11, atol=1e-12)
        J = flow.jacobians(x)
        assert J.shape == (depth, 10, d, d)
        product = torch.eye(d, dtype=F64)
        for block in J:
            product = block @ product
        torch.testing.assert_close(product, h.jacobian(x), rtol=1e-11, atol=1e-11)
        assert distance(J) <= flow.bound * (1 + 1e-9) == flow_bound(h, depth, times) * (1 + 1e-9)
        assert float(norm_deviation(J).max()) <= distance(J) + 1e-12  # Lemma 1
        if times == "uniform" and depth >= 1 + flow_constant(h):
            assert flow.bound <= flow_constant(h) / (depth - 1) * (1 + 1e-12)


@pytest.mark.parametrize("times", ["uniform", "geometric"])
def test_each_block_is_a_function_of_its_input_with_that_jacobian(times):
    gen = generator(5)
    h = sample_smooth_map("residual", 3, gen)
    flow = near_identity_flow(h, 6, times)
    x = h.points(5, gen)
    for block, J in zip(flow.blocks, flow.jacobians(x), strict=True):
        torch.testing.assert_close(jacobian_twin(block, x), J, rtol=1e-6, atol=1e-7)
        automatic = torch.autograd.functional.jacobian(lambda p, b=block: b(p).sum(0), x).movedim(1, 0)
        torch.testing.assert_close(automatic, J, rtol=1e-10, atol=1e-11)
        x = block(x)


@pytest.mark.parametrize("family", ["residual", "shear", "twist"])
def test_blocks_equal_their_twin(family):
    h = sample_smooth_map(family, 2, generator(3))
    flow = near_identity_flow(h, 7)
    m = len(flow.linear)
    x = h.points(4, generator(4))
    for layer in flow.linear:
        x = x + x @ layer.mT
    for i, block in enumerate(flow.blocks[m:], start=1):
        start, stop = float(flow.times[i - 1]), float(flow.times[i])
        expected = torch.stack([flow_step_twin(h, point, start, stop) for point in x])
        if i == len(flow.times) - 1:
            expected = expected + h(torch.zeros(2, dtype=F64))
        x = block(x)
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("narrow", [1.0, 0.1, 0.01])
def test_bound_is_nearly_attained_where_the_inverse_is_steep(narrow):
    """A shear after diag(narrow, 1): alpha does not depend on narrow, beta and the distance are inverse to it."""
    A = torch.diag(torch.tensor([narrow, 1.0], dtype=F64))
    x = torch.tensor([[1.0, 0.0]], dtype=F64)
    for depth in (20, 200):
        flow = near_identity_flow(shear(0.05, A), depth)
        assert 0.9 * flow.bound < distance(flow.jacobians(x)) <= flow.bound * (1 + 1e-12)


@pytest.mark.parametrize("depth", [1, 2, 16, 128])
@pytest.mark.parametrize("bend", [0.5, -3.0])
def test_shear_in_closed_form(depth, bend):
    """Block i adds bend (t_i - t_{i-1}) x_1^2: the distance is exactly 2 |bend| / depth."""
    flow = near_identity_flow(shear(bend), depth)
    assert len(flow.linear) == 0
    x = torch.tensor([[1.0, 0.3], [-0.4, 0.2]], dtype=F64)
    assert distance(flow.jacobians(x)) == pytest.approx(2 * abs(bend) / depth, rel=1e-12)
    for block in flow.blocks:
        y = block(x)
        expected = torch.stack([x[:, 0], x[:, 1] + bend / depth * x[:, 0] ** 2], 1)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
        x = y


def test_rates_of_uniform_and_geometric_times():
    """L delta is constant for uniform times; L delta / log(2L) nearly so for geometric ones."""
    x = torch.tensor([[1.0, 0.0]], dtype=F64)
    reached = {
        times: [distance(near_identity_flow(shear(1.0), L, times).jacobians(x)) for L in (16, 64, 256, 1024)]
        for times in ("uniform", "geometric")
    }
    depths = torch.tensor([16.0, 64, 256, 1024], dtype=F64)
    uniform = depths * torch.tensor(reached["uniform"], dtype=F64)
    geometric = depths * torch.tensor(reached["geometric"], dtype=F64)
    torch.testing.assert_close(uniform, torch.full_like(uniform, 2.0), rtol=1e-9, atol=0)
    assert float(geometric[-1] / geometric[0]) > 2
    steady = geometric / (2 * depths).log()
    assert float(steady.max() / steady.min()) < 1.1


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(SMOOTH_FAMILIES), st.integers(2, 5), st.integers(2, 40))
def test_no_flow_is_better_than_the_lower_bounds(seed, family, d, depth):
    """The product of the Jacobians is h'(x), so what holds for every factorisation of h'(x) holds for the blocks."""
    h = sample_smooth_map(family, d, generator(seed))
    x = h.points(2, generator(seed + 1))
    J = near_identity_flow(h, depth).jacobians(x)
    for k, slope in enumerate(h.jacobian(x)):
        assert float(norm_deviation(J[:, k]).max()) >= linear_bound(slope, depth) * (1 - 1e-9) - 1e-12
        assert distance(J[:, k]) >= near_identity_lower_bound(slope, depth) * (1 - 1e-9) - 1e-12


def test_offset_is_added_once_also_for_linear_maps():
    gen = generator(9)
    base, offset = sample_smooth_map("twist", 3, gen), torch.tensor([5.0, -2.0, 1.0], dtype=F64)
    moved = replace(base, value=lambda x: base.value(x) + offset.to(x))
    x = base.points(6, gen)
    for depth in (2, 9):
        torch.testing.assert_close(near_identity_flow(moved, depth)(x), base(x) + offset, rtol=1e-11, atol=1e-11)
    A = torch.tensor([[0.0, -2.0], [1.0, 0.0]], dtype=F64)
    affine = SmoothMap(lambda x: x @ A.mT.to(x) + 3, 2, alpha=0.0, beta=1.0)
    flow = near_identity_flow(affine, 5)
    assert len(flow.linear) == 5
    torch.testing.assert_close(flow(x[:, :2]), affine(x[:, :2]))


def test_times():
    for count in (1, 2, 10):
        for times in ("uniform", "geometric"):
            t = flow_times(count, times)
            assert (float(t[0]), float(t[-1]), len(t)) == (0, 1, count + 1)
            assert bool((t.diff() > 0).all())
    torch.testing.assert_close(flow_times(4).diff(), torch.full((4,), 0.25, dtype=F64))
    ratio = flow_times(9, "geometric")[1:]
    torch.testing.assert_close(ratio[1:] / ratio[:-1], torch.full((8,), 18 ** (1 / 8), dtype=F64))
    assert float(ratio[0]) == pytest.approx(1 / 18)


def test_float32_points_are_mapped_in_float32():
    h = sample_smooth_map("residual", 3, generator(2))
    x = h.points(6, generator(3)).float()
    y = near_identity_flow(h, 8)(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, h(x.double()).float(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_map_of_negative_determinant_is_refused_until_augmented():
    h = sample_smooth_map("residual", 3, generator(1), sign=-1)
    with pytest.raises(DeterminantError, match="mirror_augmented"):
        near_identity_flow(h, 10)
    wide = mirror_augmented(h)
    x = wide.points(8, generator(2))
    torch.testing.assert_close(near_identity_flow(wide, 20)(x), torch.cat([h(x[:, :-1]), -x[:, -1:]], 1))


def test_input_outside_the_image_is_refused():
    """tanh takes no value above 1."""
    h = SmoothMap(torch.tanh, 1, alpha=1.0, beta=3.0)
    flow = near_identity_flow(h, 4)
    with pytest.raises(ConvergenceError, match="the residual is still"):
        flow.blocks[-1](torch.tensor([[4.0]], dtype=F64))


def test_bad_input_is_named():
    eye = torch.eye(2, dtype=F64)
    h = residual_map(eye, 0.5 * eye, eye)
    flow = near_identity_flow(h, 4)
    for call, error, text in (
        (lambda: near_identity_flow(h, 0), DepthError, "depth = 0"),
        (lambda: near_identity_flow(h, 1), DepthError, "depth = 1: h is not linear"),
        (lambda: near_identity_flow(h, 4, "log"), OptionError, "times = 'log'"),
        (lambda: flow_times(4, "log"), OptionError, "times = 'log'"),
        (lambda: flow.jacobians(torch.ones(2)), ShapeError, r"x has shape \(2,\)"),
        (lambda: flow.blocks[2](torch.ones(1, 3)), ShapeError, r"points \(n, 2\)"),
        (lambda: flow.jacobians([[math.nan, 0.0]]), NotFiniteError, "x holds 1"),
        (lambda: residual_map(eye, eye, eye), OptionError, "it must be below 1"),
        (lambda: residual_map(eye, torch.ones(3, 2), eye), ShapeError, "are needed"),
        (lambda: residual_map(0 * eye, 0.1 * eye, eye), DeterminantError, "A is singular"),
        (lambda: shear(math.nan), OptionError, "bend = nan"),
        (lambda: shear(1.0, [[1.0]]), ShapeError, "at least two dimensions"),
        (lambda: shear(1.0, torch.ones(2, 2)), DeterminantError, "A is singular to its precision"),
        (lambda: twist("1"), OptionError, "rate = '1'"),
        (lambda: twist(1.0, radius=0), OptionError, "radius = 0"),
        (lambda: SmoothMap(torch.sin, 2, alpha=-1.0, beta=1.0), OptionError, "alpha = -1.0"),
        (lambda: SmoothMap(torch.sin, 2, alpha=1.0, beta=0.0), OptionError, "beta = 0.0"),
        (lambda: SmoothMap(torch.sin, 0, alpha=1.0, beta=1.0), DepthError, "dimension = 0"),
        (lambda: sample_smooth_map("wave", 2, generator()), OptionError, "family = 'wave'"),
        (lambda: sample_smooth_map("shear", 1, generator()), ShapeError, "d = 1"),
        (lambda: sample_smooth_map("shear", 2, generator(), 0), OptionError, "sign = 0"),
    ):
        with pytest.raises(error, match=text):
            call()
