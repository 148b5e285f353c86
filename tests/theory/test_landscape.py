"""Theorem 2.2 of Hardt & Ma: risk, gradient in the right order, the corrected inequality, the augmentation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resid.errors import CovarianceError, DeterminantError, NotFiniteError, OptionError, ShapeError
from resid.theory.factor import compose, factor_near_identity, max_layer_norm
from resid.theory.landscape import (
    augment_covariance,
    augment_negative_determinant,
    gradient_descent,
    gradient_lower_bound,
    population_risk,
    regression_map,
    risk_gradient,
    smallest_nonzero_eigenvalue,
)
from resid.theory.targets import sample_target
from tests.twins.linear import gradient_twin, risk_twin

F64 = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


def instance(seed, d, depth, tau=0.9, rank=None):
    """Layers of norm at most tau, a Gaussian target, a random second moment of the given rank."""
    g = generator(seed)
    A = torch.randn(depth, d, d, generator=g, dtype=F64)
    A *= tau * torch.rand(depth, 1, 1, generator=g, dtype=F64) / torch.linalg.matrix_norm(A, ord=2)[:, None, None]
    R = torch.randn(d, d, generator=g, dtype=F64)
    half = torch.randn(d, rank or d, generator=g, dtype=F64)
    return A, R, half @ half.mT / d


CASES = [(1, 1), (1, 5), (2, 1), (2, 3), (3, 2), (4, 5), (7, 4)]


@pytest.mark.parametrize(("d", "depth"), CASES)
def test_risk_and_gradient_equal_their_twins(d, depth):
    for seed in range(5):
        A, R, sigma = instance(seed, d, depth)
        torch.testing.assert_close(population_risk(A, R, sigma), risk_twin(A, R, sigma), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(risk_gradient(A, R, sigma), gradient_twin(A, R, sigma), rtol=1e-11, atol=1e-11)


def test_printed_order_of_the_gradient_is_wrong():
    """Both chains reversed, as Lemma 2.4 prints them: far from autograd, and equal only at depth <= 2."""
    A, R, sigma = instance(0, 4, 5)
    W = A + torch.eye(4, dtype=F64)
    error = compose(A) - R
    right, printed = gradient_twin(A, R, sigma), torch.empty_like(A)
    for i in range(5):
        left = torch.eye(4, dtype=F64)
        for j in range(4, i, -1):  # W_depth^T ... W_(i+1)^T instead of W_(i+1)^T ... W_depth^T
            left = left @ W[j].mT
        back = torch.eye(4, dtype=F64)
        for j in range(i - 1, -1, -1):
            back = back @ W[j].mT
        printed[i] = 2 * left @ error @ sigma @ back
    assert float((printed - right).norm() / right.norm()) > 0.1


def test_risk_is_the_monte_carlo_mean_up_to_the_noise():
    """E ||network(x) - y||^2 - E ||noise||^2, with correlated inputs that are not centred."""
    A, R, _ = instance(3, 3, 4)
    g = generator(9)
    x = torch.randn(200_000, 3, generator=g, dtype=F64) @ torch.randn(3, 3, generator=g, dtype=F64) + 1.0
    noise = 0.5 * torch.randn(200_000, 3, generator=g, dtype=F64)
    loss = (x @ compose(A).mT - x @ R.mT - noise).square().sum(-1)
    mean, error = loss.mean(), loss.std() / math.sqrt(len(loss))
    expected = population_risk(A, R, x.mT @ x / len(x)) + noise.square().sum(-1).mean()
    assert abs(float(mean - expected)) < 4 * float(error)


def test_batches_are_independent():
    A = torch.stack([instance(s, 3, 4)[0] for s in range(6)]).reshape(2, 3, 4, 3, 3)
    _, R, sigma = instance(0, 3, 4)
    risk, gradient, bound = (f(A, R, sigma) for f in (population_risk, risk_gradient, gradient_lower_bound))
    assert risk.shape == bound.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(risk[i, j], population_risk(A[i, j], R, sigma))
            torch.testing.assert_close(gradient[i, j], risk_gradient(A[i, j], R, sigma))
            torch.testing.assert_close(bound[i, j], gradient_lower_bound(A[i, j], R, sigma))


def test_risk_is_differentiable_and_its_derivative_is_the_gradient():
    A, R, sigma = instance(1, 2, 3)
    A.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: population_risk(a, R, sigma), A)
    (automatic,) = torch.autograd.grad(population_risk(A, R, sigma), A)
    torch.testing.assert_close(automatic, risk_gradient(A.detach(), R, sigma))


@pytest.mark.parametrize(
    ("tau", "sigma", "depth", "squared", "printed"),
    [(0.5, 1.0, 4, 2.157, 17.26), (0.0, 2.0, 3, 192.0, 384.0), (0.25, 4.0, 8, 76.72, 2298.9)],
)
def test_reference_counterexamples_to_the_printed_inequality(tau, sigma, depth, squared, printed):
    """d = 1, R = 3, every layer -tau: the corrected bound is attained, the printed one is far above."""
    A = torch.full((depth, 1, 1), -tau, dtype=F64)
    R, S = torch.tensor([[3.0]], dtype=F64), torch.tensor([[sigma]], dtype=F64)
    actual = float(risk_gradient(A, R, S).square().sum())
    assert actual == pytest.approx(squared, rel=3e-4)
    assert float(gradient_lower_bound(A, R, S)) == pytest.approx(actual, rel=1e-12)
    assert float(gradient_lower_bound(A, R, S, form="product")) == pytest.approx(actual, rel=1e-12)
    wrong = 4 * depth * (1 - tau) ** (depth - 1) * sigma**2 * float(population_risk(A, R, S))
    assert wrong == pytest.approx(printed, rel=3e-4)
    assert wrong > 1.9 * actual


@pytest.mark.parametrize("count", [600, pytest.param(4000, marks=pytest.mark.slow)])
def test_random_instances_keep_to_the_corrected_bound(count):
    worst = {"norm": 0.0, "product": 0.0}
    for seed in range(count):
        A, R, sigma = instance(seed, 1 + seed % 5, 2 + seed % 10, tau=0.95)
        squared = float(risk_gradient(A, R, sigma).square().sum())
        bounds = {form: float(gradient_lower_bound(A, R, sigma, form)) for form in worst}
        assert bounds["norm"] <= bounds["product"] * (1 + 1e-12)
        for form, bound in bounds.items():
            worst[form] = max(worst[form], bound / squared)
    assert worst["norm"] <= worst["product"] <= 1 + 1e-10
    assert worst["product"] > 0.5  # the instances come near the bound, so they could violate a larger one


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_bound_is_attained_in_every_dimension(d, depth):
    """A_i = -tau I and an error on the smallest eigenvector of Sigma: equality."""
    g = generator(d * depth)
    half = torch.randn(d, d, generator=g, dtype=F64)
    sigma = half @ half.mT + 0.1 * torch.eye(d, dtype=F64)
    v = torch.linalg.eigh(sigma)[1][:, 0]
    A = (-0.3 * torch.eye(d, dtype=F64)).repeat(depth, 1, 1)
    R = compose(A) - torch.outer(torch.randn(d, generator=g, dtype=F64), v)
    squared = float(risk_gradient(A, R, sigma).square().sum())
    assert float(gradient_lower_bound(A, R, sigma)) == pytest.approx(squared, rel=1e-10)


def test_singular_covariance_uses_the_smallest_nonzero_eigenvalue():
    for seed in range(200):
        A, R, sigma = instance(seed, 4, 3, rank=2)
        bound, squared = float(gradient_lower_bound(A, R, sigma)), float(risk_gradient(A, R, sigma).square().sum())
        assert 0 < bound <= squared * (1 + 1e-9)
    assert smallest_nonzero_eigenvalue(torch.zeros(2, 2)) == 0.0
    assert float(gradient_lower_bound(A, R, torch.zeros(4, 4, dtype=F64))) == 0.0


@pytest.mark.parametrize(
    ("sigma", "dtype"),
    [
        (torch.diag(torch.tensor([1.0, 1e-7])), torch.float32),
        (torch.diag(torch.tensor([1.0, 1e-16], dtype=F64)), F64),
        (torch.diag(torch.tensor([1.0, 1e-16], dtype=F64)), torch.float32),
        (torch.diag(torch.tensor([1.0, 1e-2, 4e-8])), torch.float32),
    ],
)
def test_an_eigenvalue_that_rounding_hides_does_not_inflate_the_bound(sigma, dtype):
    """The error lies along the hidden direction: counting it with the next eigenvalue would exceed the gradient."""
    d = len(sigma)
    A = torch.zeros(3, d, d, dtype=dtype)
    R = torch.eye(d, dtype=dtype)
    R[0, -1] = -1
    squared = float(risk_gradient(A.double(), R.double(), sigma.double()).square().sum())
    for form in ("norm", "product"):
        assert float(gradient_lower_bound(A, R, sigma, form)) <= squared * (1 + 1e-5)


def test_risk_is_never_negative():
    for seed in range(300):
        A, _, sigma = instance(seed, 3, 2, rank=2)
        null = torch.linalg.eigh(sigma)[1][:, :1]  # an error that Sigma cannot see
        R = compose(A) + 10 * null @ null.mT
        assert float(population_risk(A, R, sigma)) >= 0
        assert float(gradient_lower_bound(A, R, sigma)) >= 0
        assert float(gradient_descent(A, R, sigma, 0.1, 0).risk[0]) >= 0


def test_norm_one_is_sharp():
    """A_i = -I has norm 1 and is critical for depth >= 2, though not optimal: the bound must be 0 there and beyond."""
    A = -torch.eye(3, dtype=F64).repeat(4, 1, 1)
    R, sigma = 2 * torch.eye(3, dtype=F64), torch.eye(3, dtype=F64)
    assert float(risk_gradient(A, R, sigma).abs().max()) == 0.0
    assert float(population_risk(A, R, sigma)) > 1
    for form in ("norm", "product"):
        assert float(gradient_lower_bound(A, R, sigma, form)) == 0.0
        assert float(gradient_lower_bound(3 * A, R, sigma, form)) == 0.0


@given(seed=st.integers(0, 10**6), d=st.integers(1, 5), depth=st.integers(1, 8), rank=st.integers(1, 5))
def test_no_critical_point_but_the_optimum(seed, d, depth, rank):
    A, R, sigma = instance(seed, d, depth, tau=0.99, rank=min(rank, d))
    squared = float(risk_gradient(A, R, sigma).square().sum())
    assert float(gradient_lower_bound(A, R, sigma, "product")) <= squared * (1 + 1e-9)


@given(seed=st.integers(0, 10**6), d=st.integers(1, 4))
def test_constructed_optimum_has_no_risk_and_no_gradient(seed, d):
    R = sample_target("gaussian", d, generator(seed))
    A = factor_near_identity(R, 9)
    sigma = torch.eye(d, dtype=F64)
    scale = float(R.norm())
    assert float(population_risk(A, R, sigma)) < 1e-20 * scale**2
    assert float(risk_gradient(A, R, sigma).norm()) < 1e-8 * scale


def test_augmentation_makes_the_determinant_positive():
    for seed in range(50):
        R = sample_target("gaussian", 1 + seed % 6, generator(seed))
        R[0] *= -1
        bigger = augment_negative_determinant(R)
        assert torch.equal(bigger[:-1, :-1], R)
        torch.testing.assert_close(torch.linalg.det(bigger), -torch.linalg.det(R))
        with pytest.raises(DeterminantError, match="det R is positive"):
            augment_negative_determinant(bigger)
    with pytest.raises(DeterminantError, match="det R is 0 to float64 precision"):
        augment_negative_determinant(torch.zeros(2, 2))


def test_augmented_risk_is_the_risk_plus_that_of_the_new_coordinate():
    """Block-diagonal layers: the augmented problem separates, which is why exact zero initialisation gains nothing."""
    A, R, sigma = instance(2, 3, 4)
    R = -sample_target("gaussian", 3, generator(0))
    wide = torch.zeros(4, 4, 4, dtype=F64)
    wide[:, :3, :3] = A
    risk = population_risk(wide, augment_negative_determinant(R), augment_covariance(sigma, 2.0))
    assert float(risk) == pytest.approx(float(population_risk(A, R, sigma)) + 2.0 * 4.0, rel=1e-12)
    gradient = risk_gradient(wide, augment_negative_determinant(R), augment_covariance(sigma, 2.0))
    assert float(gradient[:, 3, :3].abs().max()) == float(gradient[:, :3, 3].abs().max()) == 0.0


def test_descent_reaches_a_positive_target_and_stalls_on_a_negative_one():
    g = generator(0)
    R = torch.eye(4, dtype=F64) + 0.3 * torch.randn(4, 4, generator=g, dtype=F64)
    assert float(torch.linalg.det(R)) > 0
    good = gradient_descent(torch.zeros(16, 4, 4, dtype=F64), R, torch.eye(4, dtype=F64), 0.2 / 16, 3000)
    assert bool(good.converged)
    assert good.risk.shape == (int(good.steps) + 1,)
    bad = R.clone()
    bad[0] *= -1
    start = 0.01 * torch.randn(3, 16, 4, 4, generator=g, dtype=F64)
    run = gradient_descent(start, bad, torch.eye(4, dtype=F64), 0.2 / 16, 3000)
    floor = float(torch.linalg.svdvals(bad)[-1]) ** 2
    assert not bool(run.converged.any())
    assert torch.all(run.risk[-1] > floor)
    assert torch.all(run.risk[-1] < floor + 0.02)


@pytest.mark.parametrize("eigenvalues", [(-1.0, -1.0), (-1.0, -2.0), (-0.5, 1.5, -2.0)])
def test_a_positive_determinant_is_not_enough(eigenvalues):
    """Symmetric R with negative eigenvalues (Bartlett, Helmbold and Long): from zero each is a problem of its own.

    Descent stays among polynomials in R, so the negative eigenvalues are learned as 0 at best, well inside the ball.
    """
    values = torch.tensor(eigenvalues, dtype=F64)
    R, eye = torch.diag(values), torch.eye(len(values), dtype=F64)  # diagonal: rounding keeps the symmetry
    assert float(torch.linalg.det(R)) > 0
    assert float(max_layer_norm(factor_near_identity(R, 16))) < 0.35  # a solution inside the ball
    run = gradient_descent(0 * eye.repeat(16, 1, 1), R, eye, 0.01, 1500)
    floor = float(values[values < 0].square().sum())
    assert not bool(run.converged)
    assert torch.all(run.risk > floor * (1 - 1e-9))
    assert float(run.risk[-1]) < floor + 0.01
    assert float(max_layer_norm(run.A)) < 0.5
    assert float((run.A @ R - R @ run.A).abs().max()) < 1e-12
    if eigenvalues == (-1.0, -1.0):
        noise = 0.05 * torch.randn(16, 2, 2, generator=generator(0), dtype=F64)
        assert bool(gradient_descent(noise, R, eye, 0.02, 3000).converged)


def test_descent_is_gradient_descent():
    """Three steps by hand with autograd."""
    A, R, sigma = instance(5, 3, 4)
    run = gradient_descent(A, R, sigma, 0.01, 3)
    for step in range(4):
        assert float(run.risk[step]) == pytest.approx(float(risk_twin(A, R, sigma)), rel=1e-12)
        if step < 3:
            A = A - 0.01 * gradient_twin(A, R, sigma)
    torch.testing.assert_close(run.A, A, rtol=1e-12, atol=1e-13)


def test_a_diverging_run_does_not_touch_the_others():
    A, R, sigma = instance(5, 2, 3)
    both = gradient_descent(torch.stack([A, 50 * A]), R, sigma, 0.01, 60)
    alone = gradient_descent(A, R, sigma, 0.01, 60)
    torch.testing.assert_close(both.risk[:, 0], alone.risk, rtol=1e-12, atol=0)
    assert not math.isfinite(float(both.risk[-1, 1]))
    assert not bool(both.converged[1])


def test_regression_map_recovers_a_linear_model_and_its_noise():
    g = generator(4)
    X = torch.randn(5000, 3, generator=g, dtype=F64) + 0.5
    R = torch.randn(3, 3, generator=g, dtype=F64)
    exact, sigma, noise = regression_map(X, X @ R.mT)
    torch.testing.assert_close(exact, R)
    torch.testing.assert_close(sigma, X.mT @ X / len(X))
    assert noise < 1e-25
    Y = X @ R.mT + 0.1 * torch.randn(5000, 3, generator=g, dtype=F64)
    fitted, _, noise = regression_map(X, Y)
    assert noise == pytest.approx(3 * 0.01, rel=0.05)
    # the loss of any map is the noise plus its excess risk
    A = 0.1 * torch.randn(2, 3, 3, generator=g, dtype=F64)
    loss = float((X @ compose(A).mT - Y).square().sum() / len(X))
    assert loss == pytest.approx(noise + float(population_risk(A, fitted, sigma)), rel=1e-12)


def test_regression_keeps_the_finer_precision_and_descent_keeps_no_graph():
    X = torch.randn(20, 2, generator=generator(0))
    assert regression_map(X, X.double())[0].dtype == F64
    run = gradient_descent(torch.zeros(2, 1, 1, requires_grad=True), [[2.0]], [[1.0]], 0.05, 3)
    assert run.risk.grad_fn is None
    assert not run.A.requires_grad


def test_dtype_follows_the_layers():
    A, R, sigma = (t.to(torch.float32) for t in instance(0, 3, 4))
    assert population_risk(A, R.double(), sigma.double()).dtype == torch.float32
    assert risk_gradient(A, R, sigma).dtype == torch.float32


EYE = torch.eye(2, dtype=F64)
ZERO = torch.zeros(3, 2, 2, dtype=F64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: population_risk(EYE, EYE, EYE), ShapeError, r"A has shape \(2, 2\): layers"),
        (lambda: population_risk(ZERO, torch.eye(3), EYE), ShapeError, r"R is \(3, 3\) and A has d = 2"),
        (lambda: population_risk(ZERO, EYE, torch.eye(3)), ShapeError, r"sigma has shape \(3, 3\): \(2, 2\)"),
        (lambda: population_risk(ZERO, EYE, [[1.0, 0.5], [0.0, 1.0]]), CovarianceError, "sigma is not symmetric"),
        (lambda: risk_gradient(ZERO, EYE, [[1.0, 2.0], [2.0, 1.0]]), CovarianceError, "eigenvalue -1 < 0"),
        (lambda: risk_gradient(ZERO / 0, EYE, EYE), NotFiniteError, "A holds 12 entries"),
        (lambda: gradient_lower_bound(ZERO, EYE, EYE, "sum"), OptionError, "form = 'sum'"),
        (lambda: gradient_descent(ZERO, EYE, EYE, 0.0, 5), OptionError, "learning_rate = 0.0: a finite number > 0"),
        (lambda: gradient_descent(ZERO, EYE, EYE, 0.1, -1), OptionError, "steps = -1"),
        (lambda: gradient_descent(ZERO, EYE, EYE, 0.1, 5, target=math.nan), OptionError, "target = nan"),
        (lambda: augment_covariance(EYE, -1.0), OptionError, "variance = -1.0"),
        (lambda: regression_map(torch.ones(5, 2), torch.ones(4, 2)), ShapeError, r"X has shape \(5, 2\), Y \(4, 2\)"),
        (lambda: regression_map(torch.ones(5, 2), torch.ones(5, 2)), ShapeError, "rank 1 < d = 2"),
        (lambda: augment_negative_determinant([[0.1, 0.2], [0.2, 0.4]]), DeterminantError, "0 to float64 precision"),
        (lambda: gradient_descent(ZERO, EYE, EYE, "fast", 5), OptionError, "learning_rate = 'fast'"),
    ],
)
def test_bad_input_names_argument_value_and_condition(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_rounding_in_a_covariance_is_accepted():
    """A second moment in float32 is symmetric and nonnegative only up to rounding."""
    X = torch.randn(50, 40, generator=generator(0)) @ torch.randn(40, 60, generator=generator(1))
    sigma = X.mT @ X / 50
    sigma[0, 1] *= 1 + 1e-7
    assert float(torch.linalg.eigvalsh(sigma.double())[0]) < 0
    population_risk(torch.zeros(1, 60, 60), torch.eye(60), sigma)
