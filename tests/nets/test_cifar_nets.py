"""The networks of the CIFAR experiments: parameters, initial weights, and what a block computes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resid.errors import DepthError, OptionError
from resid.nets.allconv import AllConvBlock, AllConvResNet
from resid.nets.shortcut_depth import ShortcutBlock, ShortcutDepthResNet


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_all_convolutional_network_of_table_1():
    model = AllConvResNet()
    rows = [size(model.stem)] + [size(stage) for stage in model.stages]
    assert rows == [432, 635_904, 2_580_480, 10_321_920]
    assert sum(rows) == size(model) == 13_538_736
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 55
    assert size(AllConvResNet(fixed_head=False, classes=100)) == 13_538_736 + 25_600
    shapes = []
    hooks = [stage.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:]))) for stage in model.stages]
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(("init", "std"), [("paper", lambda c: 1 / (9 * c)), ("standard", lambda c: 1 / (3 * c**0.5))])
def test_all_convolutional_initial_weights(init, std):
    torch.manual_seed(0)
    model = AllConvResNet(init=init, blocks=2)
    for block in model.blocks():
        for conv in (block.conv1, block.conv2):
            assert float(conv.weight.detach().std()) == pytest.approx(std(conv.out_channels), rel=0.05)
    assert float(model.stem.weight.detach().std()) == pytest.approx(math.sqrt(2 / 144), rel=0.1)
    assert float(model.head.var()) == pytest.approx(1 / 256, rel=0.05)
    assert not model.head.requires_grad
    assert "head" in model.state_dict()


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 1), (4, 8, 2), (3, 5, 3)])
@pytest.mark.parametrize("norm", [False, True])
def test_all_convolutional_block(inputs, outputs, stride, norm):
    block = AllConvBlock(inputs, outputs, stride, norm).double()
    x = torch.randn(2, inputs, 7, 6, dtype=torch.float64)

    def normalise(v):
        if not norm:
            return v
        return (v - v.mean((0, 2, 3), keepdim=True)) / (v.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    inner = F.conv2d(normalise(x), block.conv1.weight, stride=stride, padding=1).clamp_min(0)
    branch = F.conv2d(normalise(inner), block.conv2.weight, padding=1)
    skip = torch.zeros_like(branch)
    pad = (outputs - inputs) // 2
    for a in range(branch.shape[2]):
        for b in range(branch.shape[3]):
            square = x[:, :, a * stride : (a + 1) * stride, b * stride : (b + 1) * stride]
            skip[:, pad : pad + inputs, a, b] = square.mean((2, 3))
    torch.testing.assert_close(block(x), skip + branch)


def test_all_convolutional_zero_start_has_no_gradient_in_any_branch():
    """Both factors of every branch at zero: the point where the conjecture of Hardt & Ma fails."""
    x = torch.randn(4, 1, 8, 8)
    for init, dead in (("zero", True), ("paper", False)):
        model = AllConvResNet(channels=1, blocks=2, widths=(4, 8, 8, 8), init=init)
        model(x).square().sum().backward()
        gradients = [c.weight.grad for b in model.blocks() for c in (b.conv1, b.conv2)]
        assert all((float(g.abs().max()) == 0) is dead for g in gradients)


def test_bad_all_convolutional_arguments_are_named():
    with pytest.raises(OptionError, match="init = 'he'"):
        AllConvResNet(init="he")
    with pytest.raises(DepthError, match="blocks = 0"):
        AllConvResNet(blocks=0)
    for inputs, outputs in ((4, 7), (8, 4)):
        with pytest.raises(OptionError, match=f"inputs = {inputs}, outputs = {outputs}"):
            AllConvBlock(inputs, outputs)


# theory notes, section 7: the same for k = 1, 2, 3, 4
PARAMETERS = {(38, "A"): 561_370, (38, "B"): 564_122, (110, "A"): 1_727_962, (110, "B"): 1_730_714}


@pytest.mark.parametrize(("depth", "shortcut"), PARAMETERS)
def test_shortcut_length_does_not_change_the_parameters(depth, shortcut):
    for length in (1, 2, 3, 4, 6):
        model = ShortcutDepthResNet(depth, length, shortcut=shortcut)
        assert size(model) == PARAMETERS[depth, shortcut]
        assert len(model.blocks()) == (depth - 2) // length
        extra = 2 if shortcut == "B" else 0
        weighted = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
        assert weighted - extra == depth


def test_only_the_very_first_block_has_no_leading_normalisation():
    for length in (1, 2):
        blocks = ShortcutDepthResNet(26, length).blocks()
        leading = [isinstance(block.branch[0], nn.BatchNorm2d) for block in blocks]
        assert leading == [False] + [True] * (len(blocks) - 1)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("length", [1, 3])
def test_shortcut_block(shortcut, length):
    block = ShortcutBlock(3, 5, length, 2, shortcut).double()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)

    def normalise(v):
        return (v - v.mean((0, 2, 3), keepdim=True)) / (v.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    h = x
    for i, weight in enumerate(w for w in block.branch.parameters() if w.ndim == 4):
        h = F.conv2d(normalise(h).clamp_min(0), weight, stride=1 if i else 2, padding=1)
    if shortcut == "A":
        skip = torch.cat([x[:, :, ::2, ::2], x.new_zeros(2, 2, 4, 3)], 1)
    else:
        skip = normalise(F.conv2d(x, block.project[0].weight, stride=2))
    torch.testing.assert_close(block(x), h + skip)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_without_normalisation_branches_start_at_zero_and_leave_it(length):
    model = ShortcutDepthResNet(38, length, width=4, channels=1, batch_norm=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.randn(2, 1, 8, 8)
    assert all(float(block.branch[-1].weight.detach().abs().max()) == 0 for block in model.blocks())
    model(x).square().sum().backward()
    assert all(float(b.branch[-1].weight.grad.abs().max()) > 0 for b in model.blocks())


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_branches_start_as_small_as_they_are_told(length):
    made = []
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        made.append(ShortcutDepthResNet(38, length, width=4, channels=1, batch_norm=False, branch_scale=scale))
    usual, small = (dict(model.named_parameters()) for model in made)
    for name, weight in usual.items():
        factor = 0.1 if ".branch." in name else 1.0
        torch.testing.assert_close(small[name], factor * weight)
        assert float(weight.detach().abs().max()) > 0 or name.endswith("bias"), "no factor of a branch is zero"
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OptionError, match="branch_scale"):
            ShortcutDepthResNet(38, 2, batch_norm=False, branch_scale=wrong)
    with pytest.raises(OptionError, match="batch_norm = False"):
        ShortcutDepthResNet(38, 2, branch_scale=0.1)


def test_bad_depths_are_named():
    for depth, length in ((110, 5), (37, 2), (2, 1), (38.0, 2)):
        with pytest.raises(DepthError, match=f"depth = {depth!r}, length = {length}"):
            ShortcutDepthResNet(depth, length)
    with pytest.raises(OptionError, match="shortcut = 'C'"):
        ShortcutDepthResNet(38, 2, shortcut="C")
