"""Kernels with orthonormal taps: all singular values are s, on every map, from the explicit matrix."""

import pytest
import torch

from resid.errors import NotFiniteError, ShapeError, SizeError
from resid.theory.conv_spectrum import conv_singular_values
from resid.theory.procrustes import norm_preserving_scale, project_norm_preserving, project_orthonormal_taps
from tests.twins.conv import conv_matrix_twin


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("shape", [(9, 1, 3, 3), (20, 2, 3, 3), (7, 3, 1, 2), (5, 1, 2, 2), (4, 4, 1, 1)])
def test_every_singular_value_is_s(shape, n, relu):
    found = project_orthonormal_taps(normal(*shape), relu)
    s = norm_preserving_scale(shape[1], shape[0], relu)
    matrix = conv_matrix_twin(found, n)
    gram = matrix.mT @ matrix
    torch.testing.assert_close(gram, s**2 * torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-12)


def test_it_is_the_nearest_with_orthonormal_taps():
    K = normal(20, 2, 3, 3)
    found = project_orthonormal_taps(K)
    size = found.flatten(1).norm(dim=0)[0]
    distance = (K - found).norm()
    for seed in range(20):
        start = torch.randn(20, 18, generator=torch.Generator().manual_seed(seed), dtype=K.dtype)
        rival = torch.linalg.qr(found.flatten(1) + 0.1 * seed * start)[0]
        rival = rival * (rival * found.flatten(1)).sum(0).sign()  # columns of the sign that is nearer
        assert (K.flatten(1) - size * rival).norm() >= distance - 1e-12
    torch.testing.assert_close(project_orthonormal_taps(3 * found), found)
    torch.testing.assert_close(project_norm_preserving(found, 6), found)  # norm-preserving already


def test_zeros_around_leave_two_thirds():
    """A corner pixel lies in four of nine windows."""
    found = project_orthonormal_taps(normal(20, 2, 3, 3))
    values = conv_singular_values(found, 5, padding="zeros") / norm_preserving_scale(2, 20)
    expected = torch.tensor([1.0] * 9 + [6 / 9] * 12 + [4 / 9] * 4, dtype=values.dtype).sqrt().repeat_interleave(2)
    torch.testing.assert_close(values, expected)


def test_groups_and_precision():
    K = normal(24, 1, 3, 3, dtype=torch.float32)
    found = project_orthonormal_taps(K, groups=2)
    assert found.dtype == torch.float32
    for half, alone in zip(found.split(12), K.split(12), strict=True):
        torch.testing.assert_close(half, project_orthonormal_taps(alone))
    values = conv_singular_values(found, 5, groups=2)
    assert float((values / 12**0.5 - 1).abs().max()) < 1e-5


def test_gradients_pass():
    K = normal(9, 1, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(project_orthonormal_taps, K)


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="17 output channels of a group and 2 x 9 taps"):
        project_orthonormal_taps(normal(17, 2, 3, 3))
    with pytest.raises(ShapeError, match="kernel has shape"):
        project_orthonormal_taps(normal(9, 3, 3))
    with pytest.raises(SizeError, match="groups = 0"):
        project_orthonormal_taps(normal(9, 1, 3, 3), groups=0)
    with pytest.raises(NotFiniteError):
        project_orthonormal_taps(normal(9, 1, 3, 3) * torch.nan)
