"""What the three-layer network computes in another way than it is defined, and where its tensors lie."""

import ctypes
import platform
import resource

import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resid.nets.three_layers import ThreeLayers, mean_of_convolution, wrap
from resid.training._memory import reused_memory


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "by"), [((2, 3, 5, 4), 1), ((1, 2, 4, 6), 2), ((3, 1, 1, 2), 1), ((2, 2, 3, 3), 3)])
def test_wrapping_is_circular_padding(layout, shape, by):
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.pad(x, (by, by, by, by), mode="circular")
    found = wrap(x, by)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.is_contiguous(memory_format=layout)
    g = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (found, expected)), rtol=0, atol=1e-14)
    assert wrap(x, 0) is x


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_mean_of_a_convolution_without_the_convolution(groups, bias, kernel):
    conv = nn.Conv2d(4, 6, kernel, padding=kernel // 2, groups=groups, bias=bias).double()
    x = torch.randn(3, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    expected, found = conv(x).mean((2, 3)), mean_of_convolution(x, conv)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    g = torch.randn_like(expected)
    by = [x, *conv.parameters()]
    for a, b in zip(torch.autograd.grad(found, by, g), torch.autograd.grad(expected, by, g), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("nets", "kernel"), [(1, 3), (2, 3), (3, 1)])
def test_the_network_is_its_three_layers(nets, kernel):
    net = ThreeLayers(3, 4, kernel, channels=2, nets=nets).double()
    x = torch.randn(5, 2 * nets, 6, 6, dtype=torch.float64)
    logits, (before, linear, after) = net(x)
    assert logits.shape == (5, nets, 10)
    torch.testing.assert_close(before, F.relu(net.first(x)))
    torch.testing.assert_close(linear, net.middle(before))
    torch.testing.assert_close(after, F.relu(linear))
    torch.testing.assert_close(logits.flatten(1), net.last(after).mean((2, 3)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept where the C library is glibc")
def test_reused_memory_is_not_cleared_again():
    """Pages that the system hands out while tensors of 64 MiB come and go; and what is left afterwards."""

    def pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    outside = pages()
    with reused_memory():
        pages()
        inside = pages()
        resident = psutil.Process().memory_info().rss
    assert outside > 100
    assert inside < outside / 10
    assert psutil.Process().memory_info().rss < resident - 60 * 2**20


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    with reused_memory():
        assert torch.ones(3).sum() == 3
