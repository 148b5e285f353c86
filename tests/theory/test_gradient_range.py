"""Ratios of gradient norms where the gradients are tiny or huge: the right ratio, or an error that is true."""

from functools import partial

import pytest
import torch

from resid.errors import NotFiniteError, OptionError
from resid.theory.norms import gradient_norm_ratios, norm_ratios

F32, F64 = torch.float32, torch.float64


def scaled(factor, x):
    return factor * x


def ratios(factor, blocks, dtype, start=1.0, per_sample=False, direction="in/out"):
    x = torch.full((2, 4), 1.0, dtype=dtype)
    return gradient_norm_ratios(
        [partial(scaled, factor)] * blocks, x, lambda y: start * y.sum(), direction=direction, per_sample=per_sample
    )


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("direction", ["in/out", "out/in"])
@pytest.mark.parametrize(
    ("factor", "blocks", "dtype", "start"),
    [
        (0.5, 100, F32, 1.0),
        (2.0, 100, F32, 1.0),
        (0.1, 30, F32, 1.0),
        (0.5, 100, F64, 1e-170),
        (2.0, 100, F64, 1e160),
        (0.1, 30, F64, 1e-170),
        (0.1, 300, F64, 1.0),
        (10.0, 300, F64, 1.0),
    ],
)
def test_gradients_whose_squares_leave_the_range(factor, blocks, dtype, start, direction, per_sample):
    found = ratios(factor, blocks, dtype, start, per_sample, direction)
    assert found.dtype == dtype
    expected = torch.full_like(found, factor if direction == "in/out" else 1 / factor)
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_an_error_says_what_is_so():
    with pytest.raises(OptionError, match=r"gradients\[0\]: a gradient is exactly zero"):
        ratios(0.1, 60, F32)  # 1e-60
    with pytest.raises(OptionError, match=r"1e-40, is below the least normal number of torch.float32"):
        ratios(0.1, 40, F32)
    with pytest.raises(NotFiniteError, match=r"gradients\[0\]"):
        ratios(10.0, 60, F32)
    with pytest.raises(OptionError, match=r"outside of what torch.float64 can hold"):
        norm_ratios([[1e-200], [1e200]], direction="in/out")
    with pytest.raises(OptionError, match=r"outside of what torch.float64 can hold"):
        norm_ratios([[1e-200], [1e200]], direction="out/in")
    with pytest.raises(OptionError, match="exactly zero"):
        norm_ratios(torch.zeros(2, 3, 0), direction="in/out", per_sample=True)


def test_entries_of_unequal_size():
    """The largest entry sets the scale; 3 and 4 of it make 5."""
    g = torch.tensor([[3e160, 4e160, 1e-160], [6e150, 0.0, 8e150]], dtype=F64)
    (found,) = norm_ratios(g, direction="out/in")
    assert float(found) == pytest.approx(2e-10, rel=1e-14)
