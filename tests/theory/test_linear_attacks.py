"""Searches for a violation of the statements of Part I on linear networks that are our own or that we corrected.

Each looks where a false clause would show: optimisation towards the edge, or many instances near the extreme case, in
every small dimension. Each also has to reach the edge, so that a statement only a little too strong would be caught.
"""

import math

import pytest
import torch

from resid.theory.factor import (
    compose,
    factor_near_identity,
    factorization_error,
    max_layer_norm,
    near_identity_bound,
    near_identity_lower_bound,
)
from resid.theory.landscape import gradient_lower_bound, population_risk, risk_gradient
from resid.theory.shortcut import ShortcutNetwork, hessian_eigenvalues, orthogonal_as_shortcut
from tests.twins.shortcut import gradient_twin, hessian_twin, loss_twin

F64 = torch.float64
DIMENSIONS = pytest.mark.parametrize("d", [1, 2, *(pytest.param(d, marks=pytest.mark.slow) for d in (3, 4))])


def normal(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=F64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def ascend(ratio, *start, steps=250, rate=0.03):
    """The largest value, over all steps, of a batch of ratios that Adam drives up, and the arguments at the end."""
    variables = [value.clone().requires_grad_() for value in start]
    optimizer, largest = torch.optim.Adam(variables, lr=rate, betas=(0.9, 0.99)), -math.inf
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps) ** 2 + 1e-5
        optimizer.zero_grad()
        values = ratio(*variables)
        assert bool(torch.isfinite(values).all())
        largest = max(largest, float(values.detach().max()))
        (-values.log().sum()).backward()
        optimizer.step()
    return largest, [value.detach() for value in variables]


def product(layers):
    """(I + A_l) ... (I + A_1) for layers (batch, l, d, d), one factor after another."""
    whole = torch.eye(layers.shape[-1], dtype=F64)
    for i in range(layers.shape[1]):
        whole = whole + layers[:, i] @ whole
    return whole


def of_norm(size, raw):
    """Layers of the direction of raw (..., d, d) and spectral norm size."""
    return size * raw / torch.linalg.matrix_norm(raw, ord=2)[..., None, None]


# -------------------------------------------------------------------------------------------------- the factorisation


@DIMENSIONS
@pytest.mark.parametrize("a", [0.05, 0.6, 0.98])
def test_no_vector_goes_further_than_the_layers_allow(d, a):
    """The lower bound, for layers that an optimiser chooses: |rho^(1/l) e^(i phi/l) - 1| <= max ||A_i||."""
    gen, best = generator(100 * d), 0.0
    for depth in (1, 2, 5):
        raw, v = normal(gen, 12, depth, d, d), normal(gen, 12, d)
        raw[:4] = -torch.eye(d, dtype=F64) + 0.1 * raw[:4]  # towards shrinking, where log(1 + z) is steepest

        def step(raw, v, depth=depth):
            image = (product(of_norm(a, raw)) @ v[..., None])[..., 0]
            rho = image.norm(dim=-1) / v.norm(dim=-1)
            cosine = (image * v).sum(-1) / image.norm(dim=-1) / v.norm(dim=-1)
            phi = torch.acos(cosine.clamp(-1 + 1e-14, 1 - 1e-14))
            return ((rho ** (1 / depth) * (phi / depth).cos() - 1) ** 2 + rho ** (2 / depth) * (phi / depth).sin() ** 2
                    ).sqrt() / a  # fmt: skip

        reached, (raw, _) = ascend(step, raw, v, steps=120)
        best = max(best, reached)
        assert reached <= 1 + 1e-7  # 1e-14 in a cosine is 1e-7 in an angle
        for layers in of_norm(a, raw)[::4]:
            R = compose(layers)
            assert near_identity_lower_bound(R, depth) <= a * (1 + 1e-9)
    assert best > 0.999


def test_the_set_of_a_layer_is_convex():
    """S_a = {log(1 + z): |z| <= a}: means of points on its edge stay inside, up to a next to 1."""
    gen, worst = generator(0), 0.0
    for a in (0.01, 0.5, 0.9, 0.999, 0.999999):
        angle = (2 * math.pi * torch.rand(4000, 1, generator=gen, dtype=F64) + normal(gen, 4000, 3) * 0.3)[:, :3]
        angle[:1000] = math.pi + 0.01 * angle[:1000]  # next to z = -a
        points = (a * torch.polar(torch.ones_like(angle), angle) + 1).log()
        share = torch.rand(4000, 3, generator=gen, dtype=F64)
        mean = (share / share.sum(1, keepdim=True) * points).sum(1)
        worst = max(worst, float((mean.exp() - 1).abs().max()) / a)
        turning = (1 + a * angle.cos()) / (1 + 2 * a * angle.cos() + a**2)
        assert float(turning.min()) >= (1 - a) / (1 + a) ** 2 * (1 - 1e-9)
    assert 0.999 < worst <= 1 + 1e-9


@DIMENSIONS
def test_polar_bound_under_attack(d):
    """Any angle, any stretch, every depth; a turn across the axes of the stretch attains the bound in the limit."""
    gen, worst = generator(d), 0.0
    for case in range(120):
        depth = (1, 2, 3, 10, 300)[case % 5]
        gamma = float(torch.rand((), generator=gen, dtype=F64)) * (0.1, 2, 8)[case % 3]
        angle = math.pi * float(torch.rand((), generator=gen, dtype=F64)) ** (case % 2)  # half of them half turns
        stretch = torch.ones(d, dtype=F64)
        stretch[0] = math.exp(gamma)
        Q = torch.eye(d, dtype=F64)
        if d >= 2:
            stretch[1] = math.exp(-gamma)
            turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            Q[:2, :2] = torch.tensor(turn, dtype=F64)
        if case % 4 == 3:  # other axes, other angles
            Q = torch.linalg.matrix_exp(2 * (normal(gen, d, d) - normal(gen, d, d).mT).tril(-1))
            Q = torch.linalg.qr(Q)[0]
            Q[:, 0] *= torch.linalg.det(Q).sign()
        R = Q @ torch.diag(stretch)
        A = factor_near_identity(R, depth)
        norms = torch.linalg.matrix_norm(A, ord=2)
        assert factorization_error(A, R) < 1e-11
        assert float(norms.max() - norms.min()) < 1e-9 * float(norms.max()) + 1e-12
        bound = near_identity_bound(R, depth)
        worst = max(worst, float(norms.max()) / bound)
        if depth >= 3 * gamma:
            assert bound <= (math.pi + 3 * math.expm1(1 / 3) * gamma) / depth * (1 + 1e-12) + 1e-14
        assert near_identity_lower_bound(R, depth) <= float(norms.max()) * (1 + 1e-9) + 1e-12
    assert 0.98 < worst <= 1 + 1e-9


# ------------------------------------------------------------------------------------------------------ the landscape


@DIMENSIONS
@pytest.mark.parametrize("depth", [2, 4])
def test_no_network_has_a_smaller_gradient_than_the_bound(d, depth):
    """The corrected inequality, for layers, target and second moment that an optimiser chooses; both forms."""
    gen = generator(10 * d + depth)
    sizes = normal(gen, 16, depth, 1, 1)
    raw, E, half = normal(gen, 16, depth, d, d), normal(gen, 16, d, d), normal(gen, 16, d, d)
    raw[:8] = -torch.eye(d, dtype=F64) + 0.3 * raw[:8]

    def parts(sizes, raw, E, half):
        A = 0.97 * torch.sigmoid(sizes) * raw / torch.linalg.matrix_norm(raw, ord=2)[..., None, None]
        sigma = half @ half.mT + 1e-3 * torch.eye(d, dtype=F64)
        return A, E / E.norm(dim=(-2, -1), keepdim=True), sigma

    def ratio(*variables):
        """4 sum_i prod_{j != i} (1 - ||A_j||)^2 sigma_min f over the squared gradient, from the definition."""
        A, E, sigma = parts(*variables)
        eye, squared, bound = torch.eye(d, dtype=F64), 0.0, 0.0
        room = 1 - torch.linalg.matrix_norm(A, ord=2)
        for i in range(depth):
            before = after = eye
            for j in range(i):
                before = (eye + A[:, j]) @ before
            for j in range(i + 1, depth):
                after = (eye + A[:, j]) @ after
            squared = squared + (2 * after.mT @ E @ sigma @ before.mT).square().sum((-2, -1))
            bound = bound + 4 * room[:, [j for j in range(depth) if j != i]].prod(1) ** 2
        f = (E @ sigma * E).sum((-2, -1))
        return bound * torch.linalg.eigvalsh(sigma)[..., 0] * f / squared

    reached, variables = ascend(ratio, sizes, raw, E, half, steps=300, rate=0.1)
    assert 0.99 < reached <= 1 + 1e-9
    for A, E, sigma in zip(*parts(*variables), strict=True):
        R = compose(A) - E
        squared = float(risk_gradient(A, R, sigma).square().sum())
        for form in ("norm", "product"):
            assert float(gradient_lower_bound(A, R, sigma, form)) <= squared * (1 + 1e-9)


@DIMENSIONS
def test_hessian_at_zero_without_shortcuts_under_attack(d):
    """Depth 2: +-2 sigma_j(R Sigma), each d times, also for singular R and Sigma; depth 3: zero."""
    gen = generator(d)
    for case in range(12):
        R, half = normal(gen, d, d), normal(gen, d, d)
        if case % 3 == 1:
            R[0] = 0
        if case % 3 == 2:
            half[0] = 0
        sigma = half @ half.mT
        for depth in (2, 3):

            def risk(w, depth=depth, R=R, sigma=sigma):
                return population_risk(w.reshape(depth, d, d) - torch.eye(d, dtype=F64), R, sigma)

            H = torch.func.hessian(risk)(torch.zeros(depth * d * d, dtype=F64))
            values = 2 * torch.linalg.svdvals(R @ sigma).repeat_interleave(d)
            expected = torch.cat([-values, values]).sort().values if depth == 2 else torch.zeros(len(H), dtype=F64)
            assert float((torch.linalg.eigvalsh(H) - expected).abs().max()) <= 1e-11 * (1 + float(values.max()))


@DIMENSIONS
def test_no_map_of_positive_determinant_comes_nearer_than_the_floor(d):
    """det R < 0: the excess risk of every F with det F > 0 is above sigma_min(R Sigma^(1/2))^2, and comes near it."""
    gen = generator(d)
    R, half = normal(gen, 8, d, d), normal(gen, 8, d, d)
    R[:, 0] *= -torch.linalg.det(R).sign()[:, None]
    sigma = half @ half.mT + 0.1 * torch.eye(d, dtype=F64)
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    floor = torch.linalg.svdvals(R @ root)[:, -1] ** 2

    def nearness(B, C):
        F = torch.linalg.matrix_exp(B) @ torch.linalg.matrix_exp(C)  # of positive determinant
        return floor / ((F - R) @ root).square().sum((-2, -1))

    reached, _ = ascend(nearness, 0.5 * normal(gen, 8, d, d), 0.5 * normal(gen, 8, d, d), steps=400, rate=0.1)
    assert 0.9 < reached < 1


# ---------------------------------------------------------------------------------------------------------- shortcuts


@DIMENSIONS
def test_orthogonal_networks_are_one_shortcut_networks_under_attack(d):
    """Both determinants, far from zero, singular moments: loss, spectrum, and every entry of a gradient step."""
    gen = generator(d)
    for case in range(8):
        depth = 1 + case % 4
        Q = torch.linalg.qr(normal(gen, depth, d, d))[0]
        Q[::2, 0] *= (-1) ** (case // 4)
        X, Y, V = normal(gen, 6, d), normal(gen, 6, d), (0.1, 1.0, 4.0)[case % 3] * normal(gen, depth, d, d)
        X[:, 0] *= case % 2
        U, turn = orthogonal_as_shortcut(Q)

        def weights(V, Q=Q, U=U):
            return Q + U[1:] @ V @ U[:-1].mT

        turned = Y @ turn.mT
        plain = (weights(V)[:, None], X, Y, "linear", "mid", False)
        short = (V[:, None], X, turned)
        assert float(loss_twin(*plain)) == pytest.approx(float(loss_twin(*short)), rel=1e-11)
        ours, other = (hessian_eigenvalues(hessian_twin(*given)) for given in (plain, short))
        assert float((ours - other).abs().max()) <= 1e-10 * float(ours.abs().max())
        step = weights(V)[:, None] - 0.1 * gradient_twin(*plain)
        expected = weights(V - 0.1 * gradient_twin(*short)[:, 0])[:, None]
        assert float((step - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


@DIMENSIONS
def test_a_minimum_has_rank_at_most_d_squared_and_reaches_it(d):
    """Every length, every number of units, Sigma of every rank: at F = best map the rank is at most d rank(Sigma)."""
    gen = generator(d)
    for case in range(12):
        length, units, rank = 1 + case % 3, 2 + case % 2, max(1, d - case % 2)
        network = ShortcutNetwork(length, units, d)
        W, half = 0.7 * normal(gen, units, length, d, d), normal(gen, d, rank)
        sigma = half @ half.mT
        noise = torch.eye(d, dtype=F64) - half @ torch.linalg.pinv(half)  # what Sigma cannot see
        target = network.linear_map(W) + normal(gen, d, d) @ noise
        values = hessian_eigenvalues(network.hessian_from_moments(W, sigma, target @ sigma)).abs().sort().values
        assert float(values[: -d * rank].max()) <= 1e-12 * float(values[-1])
        assert float(values[-d * rank]) > 1e-9 * float(values[-1])


def test_layers_are_compared_with_a_norm_that_sees_them():
    """The attacks scale layers to a spectral norm: the library measures the same."""
    layers = of_norm(0.37, normal(generator(0), 5, 3, 3))
    assert float(max_layer_norm(layers)) == pytest.approx(0.37, rel=1e-12)
