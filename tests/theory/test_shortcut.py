"""Li et al.: shortcut networks, their exact Hessians anywhere, and Theorem 2 at zero."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from resid.data.whitened import load_whitened
from resid.errors import CovarianceError, DepthError, NotFiniteError, OptionError, ShapeError
from resid.theory.shortcut import (
    ShortcutNetwork,
    balanced_hessian_spectrum,
    best_map,
    condition_number,
    condition_number_limit,
    hessian_at_zero,
    hessian_eigenvalues,
    hessian_index,
    hessian_spectrum_at_zero,
    least_linear_loss,
    length_one_growth_bound,
    moment_difference,
    neuron_matrices,
    orthogonal_as_shortcut,
    second_moments,
    whitened_condition_bound,
)
from resid.theory.shortcut._moments import excess_and_gradient
from resid.theory.targets import random_rotation
from tests.twins.shortcut import gradient_twin, hessian_twin, loss_twin, output_twin

F64 = torch.float64
KINDS = [
    kind
    for kind in itertools.product(("linear", "relu", "tanh", "silu"), ("pre", "mid", "post"), (True, False))
    if kind[0] != "linear" or kind[1] == "mid"
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=F64)


def problem(length, units, d, seed=0, m=7, size=0.7):
    gen = generator(seed)
    return size * normal(gen, units, length, d, d), normal(gen, m, d), normal(gen, m, d)


def close(actual, expected, tolerance=1e-12):
    """Relative to the norm of what is expected."""
    error = float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-300))
    assert error <= tolerance, error


CASES = [
    (length, *kind)
    for length in (1, 2, 3, 4)
    for kind in KINDS
    if length > 1 or kind[0] == "linear" or kind[1] != "mid"  # else there is no place between matrices
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_hessian_is_the_second_derivative_of_the_definition(case):
    length, *kind = case
    activation = kind[0]
    for d, units, size in ((1, 3, 0.7), (3, 1, 0.9), (2, 2, 0.7)):
        network = ShortcutNetwork(length, units, d, *kind)
        W, X, Y = problem(length, units, d, seed=10 * d + units, m=4, size=size)
        close(network.loss(W, X, Y), loss_twin(W, X, Y, *kind))
        close(network.hessian(W, X, Y), hessian_twin(W, X, Y, *kind))
        if activation == "linear":
            xx, yx = second_moments(X, Y)
            close(network.hessian_from_moments(W, xx, yx), hessian_twin(W, X, Y, *kind))
            close(network.gradient_from_moments(W, xx, yx), gradient_twin(W, X, Y, *kind))


def test_hessian_of_many_samples_is_taken_in_chunks(monkeypatch):
    monkeypatch.setattr("resid.theory.shortcut._closed_form._CHUNK", 40)
    W, X, Y = problem(2, 2, 2, m=11)
    for kind in (("relu", "mid"), ("tanh", "pre")):
        close(ShortcutNetwork(2, 2, 2, *kind).hessian(W, X, Y), hessian_twin(W, X, Y, *kind))


def test_forward_takes_networks_at_once_and_is_differentiable():
    network = ShortcutNetwork(2, 3, 4, "tanh", "post")
    W, X, Y = problem(2, 3, 4)
    many = torch.stack([W, 2 * W, 0 * W])
    outputs = network.forward(many, X)
    assert outputs.shape == (3, 7, 4)
    for i, scale in enumerate((1, 2, 0)):
        expected = torch.stack([output_twin(scale * W, x, "tanh", "post") for x in X])
        close(outputs[i], expected)
    variable = W.clone().requires_grad_()
    network.loss(variable, X, Y).backward()
    close(variable.grad, gradient_twin(W, X, Y, "tanh", "post", True))


def test_linear_gradient_takes_networks_at_once():
    for length, shortcut in itertools.product((1, 2, 3), (True, False)):
        network = ShortcutNetwork(length, 3, 2, shortcut=shortcut)
        W, X, Y = problem(length, 3, 2)
        many = torch.stack([W, -0.5 * W])
        found = network.gradient_from_moments(many, *second_moments(X, Y))
        for i in range(2):
            close(found[i], gradient_twin(many[i], X, Y, "linear", "mid", shortcut))


def test_linear_map_is_what_the_network_does():
    network = ShortcutNetwork(3, 2, 4)
    W, X, _ = problem(3, 2, 4)
    close(X @ network.linear_map(W).mT, network.forward(W, X))
    close(network.forward(0 * W, X), X)


def test_excess_loss_is_accurate_near_the_optimum():
    """A difference of losses would be rounding there."""
    eps = 1e-9
    xx, yx = torch.eye(2, dtype=F64), torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=F64)
    W = (yx - torch.eye(2) + eps * torch.ones(2, 2)).reshape(1, 1, 2, 2)
    excess, _ = excess_and_gradient(W, xx, best_map(xx, yx), shortcut=True)
    assert float(excess) == pytest.approx(0.5 * 4 * eps**2, rel=1e-6, abs=0)


# ------------------------------------------------------------------------------------------------------------ at zero


@pytest.mark.parametrize("units", [1, 3, 7])
@pytest.mark.parametrize(
    "kind", [("linear", "mid"), ("tanh", "mid"), ("silu", "post"), ("relu", "pre"), ("silu", "pre")]
)
def test_length_two_at_zero(units, kind):
    """Theorem 2, part 2: blocks, spectrum, condition number, all from one d x d matrix."""
    _, X, Y = problem(2, units, 3)
    M = moment_difference(X, Y, *kind)
    true = hessian_twin(torch.zeros(units, 2, 3, 3, dtype=F64), X, Y, *kind)
    close(hessian_at_zero(2, units, M), true)
    spectrum = hessian_spectrum_at_zero(units, M)
    close(spectrum, torch.linalg.eigvalsh(true), 1e-10)
    sigma = torch.linalg.svdvals(M)
    assert condition_number(true) == pytest.approx(float(sigma[0] / sigma[-1]), rel=1e-9)
    assert hessian_index(true) == 0.5


@pytest.mark.parametrize("units", [1, 2, 5])
def test_length_one_at_zero_is_block_toeplitz(units):
    _, X, Y = problem(1, units, 3)
    xx, yx = second_moments(X, Y)
    true = hessian_twin(torch.zeros(units, 1, 3, 3, dtype=F64), X, Y)
    close(hessian_at_zero(1, units, xx - yx, xx), true)
    if units > 1:  # not what a transposed M would give
        wrong = hessian_at_zero(1, units, (xx - yx).mT, xx)
        assert float((wrong - true).norm() / true.norm()) > 0.01


@pytest.mark.parametrize("length", [3, 4])
def test_longer_units_have_no_hessian_at_zero(length):
    _, X, Y = problem(length, 2, 2)
    zero = torch.zeros(2, length, 2, 2, dtype=F64)
    for kind in (("linear", "mid"), ("tanh", "mid"), ("silu", "pre"), ("tanh", "post")):
        assert float(hessian_twin(zero, X, Y, *kind).abs().max()) == 0
        assert float(ShortcutNetwork(length, 2, 2, *kind).hessian(zero, X, Y).abs().max()) == 0
    assert float(hessian_at_zero(length, 2, torch.eye(2)).abs().max()) == 0


def test_scalar_length_one_spectrum():
    """d = 1: s + (R - 1)(s + M) once, -M otherwise."""
    s, M, units = 0.7, 0.4, 6
    values = torch.linalg.eigvalsh(hessian_at_zero(1, units, [[M]], [[s]]))
    expected = sorted([-M] * (units - 1) + [s + (units - 1) * (s + M)])
    np.testing.assert_allclose(values, expected, atol=1e-12)


def growth_spectrum(units, d, m):
    """|eigenvalues| at zero for length 1, Sigma = I and M = m I, m > 0, in exact fractions, ascending.

    On symmetric V the map C(V) = M V^T is m, on skew ones -m; c stands for either. The units see 1 on the diagonal and
    1 + c elsewhere.
    """
    found = []
    for c, copies in ((m, d * (d + 1) // 2), (-m, d * (d - 1) // 2)):
        found += copies * ([abs(1 + (units - 1) * (1 + c))] + (units - 1) * [abs(c)])
    return sorted(found)


def interpolated(values, q):
    """The quantile q of ascending fractions, linear between order statistics."""
    place = q * (len(values) - 1)
    low = place.numerator // place.denominator
    return values[low] if low == place else values[low] + (place - low) * (values[low + 1] - values[low])


def last_quantile(units, d):
    """The greatest quantile for which the growth bound is claimed."""
    return Fraction(units // 2 * d * d - 1, units * d * d - 1)


@pytest.mark.parametrize(
    ("units", "d", "m", "q", "true"),
    [
        (2, 2, Fraction(1, 2), Fraction(1, 2), Fraction(5, 2)),
        (2, 3, Fraction(3, 10), Fraction(1, 2), Fraction(23, 10)),
        (2, 2, Fraction(1, 20), Fraction(1, 2), Fraction(41, 20)),
        (2, 1, Fraction(1, 10), Fraction(1, 10), Fraction(7)),
    ],
)
def test_growth_bound_of_length_one_on_exact_instances(units, d, m, q, true):
    """It is attained up to its last quantile, and false at these ones beyond."""
    values = growth_spectrum(units, d, m)
    M = float(m) * torch.eye(d, dtype=F64)
    np.testing.assert_allclose(
        hessian_eigenvalues(hessian_at_zero(1, units, M)).abs().sort().values, [*map(float, values)]
    )
    bound = length_one_growth_bound(units, M)
    exact = (units + (units - 1) * m) / m
    assert bound == pytest.approx(float(exact), rel=1e-12)
    last = last_quantile(units, d)
    assert values[-1] / interpolated(values, last) == exact
    assert q > last
    assert values[-1] / interpolated(values, q) == true
    assert condition_number(hessian_at_zero(1, units, M), float(q)) == pytest.approx(float(true))
    assert true < exact


def test_growth_needs_two_dimensions_and_two_units():
    """d = 1, y = 2x: the Hessian is the identity at every depth; one unit: it is Sigma."""
    for units in (2, 5, 30):
        assert condition_number(hessian_at_zero(1, units, [[-1.0]])) == 1
        assert length_one_growth_bound(units, [[-1.0]]) == 1
    with pytest.raises(DepthError, match="units = 1"):
        length_one_growth_bound(1, torch.eye(2))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_growth_bound_of_length_one_under_attack(d):
    """Every Sigma, singular and badly scaled too; every shape and size of M; least eigenvalue and last quantile."""
    gen, worst, top = generator(d), 0.0, 0.0
    for case in range(250):
        units = 2 + case % 6
        half = normal(gen, d, d) @ torch.diag(normal(gen, d).mul(case % 3).exp())
        sigma = half @ half.mT
        if case % 5 == 0:
            sigma[-1], sigma[:, -1] = 0, 0
        M = normal(gen, d, d)
        shape = case // 6 % 6
        if shape == 1:
            M = M - M.mT if d > 1 else M
        elif shape == 2:
            M = torch.outer(M[0], M[-1])
        elif shape == 3:
            sigma, M = torch.eye(d, dtype=F64), torch.eye(d, dtype=F64) + 10.0 ** -(case // 18) * M
        elif shape == 4:
            M = -(M @ M.mT)
        elif shape == 5:  # the labels that make x -> 2x, nearly
            M = -sigma + 10.0 ** -(case % 5) * M
        M = M * float(normal(gen, 1).mul(3).exp())
        H = hessian_at_zero(1, units, M, sigma)
        sizes = np.sort(hessian_eigenvalues(H).abs().numpy())
        bound = length_one_growth_bound(units, M, sigma)
        small = sizes[units // 2 * d * d - 1]  # the order statistic that the last quantile reaches
        worst = max(worst, bound * small / sizes[-1])
        if d >= 2:
            top = max(top, units * float(torch.linalg.eigvalsh(sigma)[-1] / torch.linalg.matrix_norm(M, ord=2)) / bound)
    assert 0.999999 < worst <= 1 + 1e-9  # attained, so a bound larger by a millionth would show
    assert top <= 1 + 1e-9
    assert d == 1 or top > 0.9


def test_relu_between_the_matrices_has_a_hessian_per_neuron():
    """Near zero the spectrum is +- the singular values of M(w), not what a slope of 1/2 predicts; autograd says 0."""
    gen = generator(3)
    X, Y = normal(gen, 40, 3), normal(gen, 40, 3)
    network = ShortcutNetwork(2, 2, 3, "relu", "mid")
    zero = torch.zeros(2, 2, 3, 3, dtype=F64)
    assert float(network.hessian(zero, X, Y).abs().max()) == 0
    W = 1e-7 * normal(gen, 2, 2, 3, 3)
    spectrum = torch.linalg.eigvalsh(network.hessian(W, X, Y))
    sigma = torch.cat([torch.linalg.svdvals(neuron_matrices(unit[0], X, Y)).flatten() for unit in W])
    expected = torch.cat([-sigma, sigma]).sort().values
    assert float((spectrum - expected).abs().max() / expected[-1]) < 1e-5
    halved = torch.linalg.svdvals(0.5 * moment_difference(X, Y)).repeat_interleave(6)
    predicted = torch.cat([-halved, halved]).sort().values
    assert float((spectrum - predicted).abs().max() / predicted[-1]) > 0.1
    close(neuron_matrices(W[0, 0], X, Y) + neuron_matrices(-W[0, 0], X, Y), moment_difference(X, Y).expand(3, 3, 3))
    with pytest.raises(OptionError, match="no Hessian at zero"):
        moment_difference(X, Y, "relu", "mid")


def test_orthogonal_network_is_a_one_shortcut_network_with_turned_labels():
    gen = generator(5)
    Q = torch.stack([random_rotation(3, gen) for _ in range(4)])
    X, Y, V = normal(gen, 20, 3), normal(gen, 20, 3), 0.3 * normal(gen, 4, 3, 3)
    U, turn = orthogonal_as_shortcut(Q)
    W = Q + U[1:] @ V @ U[:-1].mT
    plain, short = ShortcutNetwork(1, 4, 3, shortcut=False), ShortcutNetwork(1, 4, 3)
    xx, yx = second_moments(X, Y)
    close(plain.linear_map(W[:, None]), U[-1] @ short.linear_map(V[:, None]))
    close(
        hessian_eigenvalues(plain.hessian_from_moments(W[:, None], xx, yx)),
        hessian_eigenvalues(short.hessian_from_moments(V[:, None], xx, turn @ yx)),
        1e-10,
    )
    with pytest.raises(ShapeError, match="not orthogonal"):
        orthogonal_as_shortcut(2 * Q)


def test_digits_have_the_recorded_numbers():
    """Reference values with the stated signs of the principal components."""
    X, Y = load_whitened("digits")
    M = moment_difference(X, Y)
    spectrum = hessian_spectrum_at_zero(1, M)
    assert condition_number(spectrum) == pytest.approx(1.678339, abs=1e-6)
    assert condition_number(spectrum, 0.1) == pytest.approx(1.542389, abs=1e-6)
    assert float(ShortcutNetwork(2, 4, 10).loss(torch.zeros(4, 2, 10, 10), X, Y)) == pytest.approx(5.401140, abs=1e-6)
    assert least_linear_loss(X, Y) == pytest.approx(0.276599, abs=1e-6)
    other = load_whitened("digits", signs=[-1] + [1] * 9)[0]
    assert condition_number(hessian_spectrum_at_zero(1, moment_difference(other, Y))) != pytest.approx(1.6783, abs=1e-3)
    assert condition_number(spectrum) <= whitened_condition_bound(Y.mean(0))


def labelled(gen, counts, copies):
    """One-hot labels (m, K), and centred inputs (m, K) of second moment I, as far from chance as the labels allow.

    The inputs are the centred labels, brought to second moment 1 where they vary, turned over in every other direction
    of an eigenbasis of their covariance, and random where they do not vary.
    """
    K = len(counts)
    Y = torch.eye(K, dtype=F64).repeat_interleave(copies * torch.tensor(counts), 0)
    centred = Y - Y.mean(0)
    basis = torch.linalg.eigh(centred.mT @ centred / len(Y))[1]
    signs = (-1.0) ** torch.arange(K, dtype=F64)
    along = torch.cat([normal(gen, len(Y), 1), (centred @ basis)[:, 1:] * signs[1:]], 1)  # the first one is constant
    along = along - along.mean(0)
    along[:, 0] -= along[:, 1:] @ torch.linalg.lstsq(along[:, 1:], along[:, 0]).solution
    return Y, along / along.square().mean(0).sqrt() @ basis.mT


@pytest.mark.parametrize("counts", [(9, 1), (1, 1), (1, 1, 1), (7, 2, 1), (1, 1, 1, 1), (97, 1, 1, 1), (3, 3, 2, 2)])
def test_class_bound_under_attack(counts):
    """Inputs made of the labels, and turned in every way: never above; attained by three equal classes."""
    gen, shares = generator(0), torch.tensor(counts, dtype=F64) / sum(counts)
    bound, worst = whitened_condition_bound(shares), 0.0
    spread = torch.diag(shares) - torch.outer(shares, shares)
    root = float(torch.linalg.eigvalsh(spread)[-1]) ** 0.5
    assert bound == pytest.approx((1 + root) / (1 - root), rel=1e-12)
    assert bound <= 3 + 2 * 2**0.5 + 1e-12
    for case in range(120):
        Y, X = labelled(gen, counts, 4)
        if case:
            skew = (0.01, 0.3, 3.0)[case % 3] * normal(gen, *spread.shape).tril(-1)
            X = X @ torch.matrix_exp(skew - skew.mT)
        np.testing.assert_allclose(X.mT @ X / len(X), torch.eye(len(counts)), atol=1e-9)
        worst = max(worst, condition_number(hessian_spectrum_at_zero(1, moment_difference(X, Y))) / bound)
    assert worst <= 1 + 1e-9
    if counts == (1, 1, 1):
        assert worst > 1 - 1e-9
    if counts == (9, 1):
        assert bound == pytest.approx(2.4738, abs=1e-4)
        aligned = Y / shares.sqrt()  # of second moment I, but not centred: the bound does not hold
        assert condition_number(hessian_spectrum_at_zero(1, moment_difference(aligned, Y))) > 13


def test_hessian_at_an_optimum_has_rank_at_most_d_squared():
    gen = generator(2)
    network = ShortcutNetwork(2, 4, 3)
    W = 0.4 * normal(gen, 4, 2, 3, 3)
    xx = torch.eye(3, dtype=F64)
    values = hessian_eigenvalues(network.hessian_from_moments(W, xx, network.linear_map(W) @ xx))
    assert float(values[-9]) > 1e-3
    assert float(values[:-9].abs().max()) < 1e-12
    assert hessian_index(values) == 0
    assert condition_number(values) == condition_number_limit(72)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_balanced_minimiser_has_the_spectrum_of_the_formula(d, depth):
    """Against second derivatives of the definition, for diagonal matrices in random bases; one map is singular."""
    gen = generator(10 * d + depth)
    for singular in (False, True):
        s = normal(gen, d).exp()
        s[-1] *= not singular
        bases = torch.linalg.qr(normal(gen, depth + 1, d, d))[0]
        W = bases[1:] @ torch.diag(s ** (1 / depth)) @ bases[:-1].mT
        R = bases[-1] @ torch.diag(s) @ bases[0].mT
        X = d**0.5 * torch.eye(d, dtype=F64)
        values = hessian_eigenvalues(hessian_twin(W[:, None], X, X @ R.mT, "linear", "mid", False))
        expected = sorted(
            sum(float(a) ** (2 * (depth - i) / depth) * float(b) ** (2 * (i - 1) / depth) for i in range(1, depth + 1))
            for a in s
            for b in s
        )
        found = balanced_hessian_spectrum(R, depth)
        np.testing.assert_allclose(found, expected, atol=1e-6 * expected[-1])  # the root of a singular value's rounding
        np.testing.assert_allclose(values[-d * d :], expected, atol=1e-12 * expected[-1])
        assert depth == 1 or float(values[: -d * d].abs().max()) <= 1e-12 * expected[-1]
        if not singular:
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            ratio = (float(s.max()) / float(s.min())) ** (2 * (depth - 1) / depth)
            assert condition_number(found) == pytest.approx(ratio, rel=1e-9)


# ------------------------------------------------------------------------------------------- numbers of the spectrum


def test_condition_number_and_index():
    values = torch.tensor([3.0, -4.0, 0.5, 1.0, -2.0])
    H = torch.diag(values)
    assert condition_number(H) == condition_number(values) == 8
    sizes = sorted([3.0, 4.0, 0.5, 1.0, 2.0])
    assert condition_number(H, 0.1) == pytest.approx(4 / np.quantile(sizes, 0.1))
    assert hessian_index(H) == 0.4
    assert condition_number(torch.zeros(2, 2)) == math.inf
    assert hessian_index(torch.zeros(2, 2)) == 0


def test_condition_number_stops_at_the_noise_of_float64():
    limit = condition_number_limit(2)
    assert condition_number([1.0, 1e-30]) == limit
    assert condition_number([1.0, 0.0]) == limit
    assert condition_number([1.0, 2 / limit]) == pytest.approx(limit / 2)
    assert hessian_index([1.0, -1e-17]) == 0


@pytest.mark.parametrize("quantile", [0, 1, -0.5, 2, True, "0.1", math.nan])
def test_quantile_lies_between_0_and_1(quantile):
    with pytest.raises(OptionError, match="quantile ="):
        condition_number([1.0, 2.0], quantile)


def test_bad_input_is_named():
    network = ShortcutNetwork(2, 3, 4)
    W, X, Y = problem(2, 3, 4)
    eye = torch.eye(4, dtype=F64)
    for call, error, text in (
        (lambda: ShortcutNetwork(0, 1, 1), DepthError, "length = 0"),
        (lambda: ShortcutNetwork(1, 1, 2.5), DepthError, "width = 2.5"),
        (lambda: ShortcutNetwork(2, 1, 1, "gelu"), OptionError, "activation = 'gelu'"),
        (lambda: ShortcutNetwork(2, 1, 1, "relu", "end"), OptionError, "position = 'end'"),
        (lambda: ShortcutNetwork(1, 1, 1, "relu", "mid"), OptionError, "no place between matrices"),
        (lambda: ShortcutNetwork(1, 1, 1, shortcut=1), OptionError, "shortcut = 1"),
        (lambda: network.forward(W[:2], X), ShapeError, r"weights has shape \(2, 2, 4, 4\)"),
        (lambda: network.forward(W, X[:, :3]), ShapeError, r"X has shape \(7, 3\)"),
        (lambda: network.loss(W, X, Y[:5]), ShapeError, r"Y has shape \(5, 4\)"),
        (lambda: network.hessian(torch.stack([W, W]), X, Y), ShapeError, "one network"),
        (lambda: network.hessian(W, X, Y * math.nan), NotFiniteError, "Y holds 28 entries"),
        (lambda: network.hessian(W, X, Y[:5]), ShapeError, r"Y has shape \(5, 4\)"),
        (lambda: network.hessian_from_moments(W, eye[:3, :3], eye), ShapeError, "sigma_xx has shape"),
        (lambda: network.hessian_from_moments(W, eye, eye[:3, :3]), ShapeError, "sigma_yx"),
        (lambda: network.hessian_from_moments(W, -eye, eye), CovarianceError, "sigma_xx has the eigenvalue"),
        (lambda: ShortcutNetwork(2, 1, 1, "tanh").linear_map(W), OptionError, "linear_map needs a linear network"),
        (lambda: second_moments(X, Y[:5]), ShapeError, "both must be"),
        (lambda: hessian_at_zero(2, 1, X), ShapeError, "a square matrix"),
        (lambda: hessian_at_zero(1, 0, eye), DepthError, "units = 0"),
        (lambda: hessian_eigenvalues(X), ShapeError, "a matrix"),
        (lambda: hessian_eigenvalues([[0.0, 1.0], [2.0, 0.0]]), ShapeError, "not symmetric"),
        (lambda: whitened_condition_bound([1.0, 0.0]), OptionError, r"shares = \[1.0, 0.0\]"),
        (lambda: whitened_condition_bound([0.7, 0.2]), OptionError, "sum 1"),
        (lambda: whitened_condition_bound([1.5, -0.5]), OptionError, "numbers >= 0"),
        (lambda: whitened_condition_bound(0.1), ShapeError, r"shape \(\)"),
        (lambda: neuron_matrices(eye[:, :3], X, Y), ShapeError, "W1 has shape"),
        (lambda: length_one_growth_bound(3, 0 * eye), OptionError, "M is zero"),
        (lambda: moment_difference(X, Y, "gelu"), OptionError, "activation = 'gelu'"),
        (lambda: orthogonal_as_shortcut(eye), ShapeError, r"\(depth, d, d\)"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_float32_and_int_inputs_keep_the_dtype_of_the_weights():
    W, X, Y = problem(2, 1, 2)
    H = ShortcutNetwork(2, 1, 2).hessian(W.float(), X, Y)
    assert H.dtype == torch.float32
    assert float((H - ShortcutNetwork(2, 1, 2).hessian(W, X, Y)).abs().max()) < 1e-5
