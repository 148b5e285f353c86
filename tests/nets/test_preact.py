"""The networks of Zaeemzadeh et al.: parameters, shapes, and what a block computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resid.errors import DepthError, OptionError, ShapeError
from resid.nets.allconv import AllConvResNet
from resid.nets.preact import Bottleneck, PlainNet, PreActResNet, ProcResNet
from resid.nets.shortcut_depth import ShortcutDepthResNet


def size(model):
    return sum(p.numel() for p in model.parameters())


# theory notes, table of section 6, for the forms with and without shortcuts; ProcResNet two layers deeper
PARAMETERS = {
    83: (868_666, 826_682, 880_394),
    164: (1_703_290, 1_661_306, 1_715_018),
    272: (2_816_122, 2_774_138, 2_827_850),
    1001: (10_327_738, 10_285_754, 10_339_466),
}


@pytest.mark.parametrize("depth", [83, 164, *(pytest.param(d, marks=pytest.mark.slow) for d in (272, 1001))])
def test_parameter_counts(depth):
    with torch.device("meta"):
        assert (size(PreActResNet(depth)), size(PlainNet(depth)), size(ProcResNet(depth + 2))) == PARAMETERS[depth]


def test_classes_and_an_erased_relu_in_the_count():
    with torch.device("meta"):
        assert size(PreActResNet(29, classes=100)) - size(PreActResNet(29)) == 23_130
        assert size(PreActResNet(29, erase_relu=True)) == size(PreActResNet(29))


@pytest.mark.parametrize("cls", [PreActResNet, PlainNet, ProcResNet])
def test_depth_counts_convolutions_and_the_linear_layer(cls):
    depth = 22 if cls is ProcResNet else 20
    model = cls(depth, width=4, channels=1)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = 3 if cls is PreActResNet else 0  # those in parallel to a branch add no depth
    assert len(weighted) - shortcuts == depth == model.depth
    assert len(model.blocks()) == 6
    for shape in ((2, 1, 8, 8), (1, 1, 32, 32), (3, 1, 9, 7)):
        assert model(torch.randn(shape)).shape == (shape[0], 10)
    x = torch.randn(2, 1, 8, 8)
    model.eval()
    lasts = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(lasts, model.to(memory_format=torch.contiguous_format)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shortcut", ["identity", "projection", "none"])
@pytest.mark.parametrize("erase", [False, True])
def test_block_computes_what_it_says(shortcut, erase):
    inputs, m, stride = (8, 2, 1) if shortcut == "identity" else (6, 2, 2)
    block = Bottleneck(inputs, m, stride, shortcut, erase).double()
    x = torch.randn(3, inputs, 8, 8, dtype=torch.float64)
    one, three, last = (w for w in block.branch.parameters() if w.ndim == 4)

    def norm_relu(v, relu=True):
        v = (v - v.mean((0, 2, 3), keepdim=True)) / (v.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return v.clamp_min(0) if relu else v

    z = norm_relu(x)
    out = F.conv2d(norm_relu(F.conv2d(z, one, stride=stride)), three, padding=1)
    out = F.conv2d(norm_relu(out, relu=not erase), last)
    if shortcut == "identity":
        out = out + x
    elif shortcut == "projection":
        out = out + F.conv2d(z, block.project.weight, stride=stride)
    torch.testing.assert_close(block(x), out)


@pytest.mark.parametrize(
    "model",
    [PreActResNet(29, 1), PlainNet(29, 1), ProcResNet(31, 1), AllConvResNet(blocks=2, widths=(2, 4, 4, 8)),
     ShortcutDepthResNet(14, 2)],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_blocks_come_in_the_order_in_which_they_are_called(model):
    called = []
    for block in model.blocks():
        block.register_forward_hook(lambda module, given, out: called.append(module))
    model(torch.randn(2, 3, 8, 8))
    assert len(called) > 5
    assert model.blocks() == called


def test_linear_convolutions_have_their_own_initial_variance():
    torch.manual_seed(0)
    model = ProcResNet(22, width=16)
    found = model.linear_convolutions()
    assert [c.weight.shape for c in found] == [(64, 3, 3, 3), (128, 64, 1, 1), (256, 128, 1, 1)]
    assert [c.stride for c in found] == [(1, 1), (2, 2), (2, 2)]
    for convolution in found[1:]:
        assert float(convolution.weight.detach().var()) * convolution.in_channels == pytest.approx(1, rel=0.05)
    inner = model.blocks()[0].branch[3].weight
    assert float(inner.detach().var()) * inner[0].numel() == pytest.approx(2, rel=0.1)


def test_bad_depths_and_shortcuts_are_named():
    for cls, depth in ((PreActResNet, 111), (PlainNet, 2), (ProcResNet, 164), (ProcResNet, 22.0)):
        with pytest.raises(DepthError, match=f"depth = {depth!r}: 9n [+]"):
            cls(depth)
    with pytest.raises(ShapeError, match="inputs = 6, m = 2, stride = 1: an identity needs"):
        Bottleneck(6, 2)
    with pytest.raises(OptionError, match="shortcut = 'dense'"):
        Bottleneck(8, 2, shortcut="dense")
