"""The precision of products on GPUs: set and put back, whichever of torch's two kinds of switches a caller uses."""

import pytest
import torch

from resid._precision import float32_products
from resid.theory.procrustes import polar

BACKENDS = torch.backends


def switches():
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def _as_found():
    matmul, conv = BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32
    yield
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = matmul, conv


@pytest.mark.parametrize("allowed", [False, True])
def test_older_switches_can_be_read_again_afterwards(allowed):
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = allowed
    with float32_products():
        assert switches() == ("ieee", "ieee")
    assert (BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32) == (allowed, allowed)


def test_they_come_back_after_an_error_and_inside_each_other():
    before = switches()
    seen = []

    @float32_products("tf32")
    def failing():
        seen.append(switches())
        with float32_products():
            seen.append(switches())
        seen.append(switches())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert seen == [("tf32", "tf32"), ("ieee", "ieee"), ("tf32", "tf32")]
    assert switches() == before


@pytest.mark.parametrize("newer", [False, True])
def test_polar_factors_have_full_precision_whatever_the_caller_allows(newer, monkeypatch):
    seen = []
    real = polar._METHODS["gram"]
    monkeypatch.setitem(polar._METHODS, "gram", lambda A: (seen.append(switches()), real(A))[1])
    A = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    if newer:
        with float32_products("tf32"):
            polar.polar_factor(A, method="gram")
            assert switches() == ("tf32", "tf32")
    else:
        BACKENDS.cuda.matmul.allow_tf32 = True
        polar.polar_factor(A, method="gram")
        assert BACKENDS.cuda.matmul.allow_tf32
    assert [found[0] for found in seen] == ["ieee"]
