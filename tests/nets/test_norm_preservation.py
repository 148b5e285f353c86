"""The drop-ins: in place after an optimiser step, and as a parametrization."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from resid.errors import OptionError, SizeError
from resid.nets.norm_preservation import ProcrustesProjection, input_sizes, norm_preserving
from resid.nets.preact import ProcResNet
from resid.theory.procrustes import project_norm_preserving


def conv(*arguments, **options):
    torch.manual_seed(0)
    return nn.Conv2d(*arguments, **options)


LAYERS = [
    lambda: conv(4, 8, 1),
    lambda: conv(8, 4, 1, bias=False),
    lambda: conv(3, 6, 3, padding=1),
    lambda: conv(4, 8, 3, padding=1, groups=2, dtype=torch.float64),
    lambda: conv(3, 6, 3, dilation=2, padding=2, padding_mode="circular"),
    lambda: conv(2, 8, 2, stride=2),
    lambda: conv(2, 8, (3, 1), stride=(1, 2), padding=(1, 0)),
]


@pytest.mark.parametrize("make", LAYERS)
def test_in_place_and_parametrized_agree_for_any_layer(make):
    inside, beside = make(), make()
    options = {"stride": inside.stride, "groups": inside.groups, "dilation": inside.dilation}
    expected = project_norm_preserving(inside.weight.detach(), 8, True, **options)
    ProcrustesProjection([(inside, 8, True)]).project()
    norm_preserving(beside, 8, relu=True)
    torch.testing.assert_close(inside.weight.detach(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(beside.weight.detach(), expected, rtol=0, atol=1e-6)
    image = torch.randn(2, inside.in_channels, 8, 8, dtype=inside.weight.dtype)
    torch.testing.assert_close(inside(image), beside(image), rtol=1e-4, atol=1e-5)


def test_parametrization_passes_gradients_on_and_can_be_taken_off():
    layer = norm_preserving(conv(3, 6, 3, padding=1, bias=False, dtype=torch.float64), n=6)
    original = layer.parametrizations.weight.original
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer(image).cos().sum().backward()
    step = 1e-6 * torch.randn(original.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = layer(image).cos().sum()
        original += step
        after = layer(image).cos().sum()
    assert float(after - before) == pytest.approx(float((original.grad * step).sum()), rel=1e-4)
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(layer.weight.detach(), weight)
    assert isinstance(layer.weight, nn.Parameter)


def test_projection_after_each_step_holds_through_a_training():
    layer = conv(3, 6, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    handle = ProcrustesProjection([(layer, 8)]).attach(optimizer)
    image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    biases, kernels = [layer.bias.detach().clone()], [layer.weight.detach().clone()]
    for _ in range(5):
        optimizer.zero_grad()
        (layer(image) - 1).square().mean().backward()
        optimizer.step()
        W = layer.weight.detach()[:, :, 0, 0]
        assert float((W.mT @ W - 2 * torch.eye(3)).abs().max()) < 1e-5
        kernels.append(layer.weight.detach().clone())
        biases.append(layer.bias.detach().clone())
    assert float((kernels[1] - kernels[5]).norm()) > 0.05  # it learns
    handle.remove()
    optimizer.step()
    assert float((layer.weight.detach()[:, :, 0, 0].square().sum() - 6).abs()) > 1e-4


def test_schedule_and_checkpoint():
    layer = conv(2, 2, 1)
    assert [ProcrustesProjection([(layer, 4)], every=3).step() for _ in range(2)] == [False, False]
    third = ProcrustesProjection([(layer, 4)], every=3)
    assert [third.step() for _ in range(6)] == [False, False, True, False, False, True]
    coin = ProcrustesProjection([(layer, 4)], probability=0.5, seed=3)
    first = [coin.step() for _ in range(40)]
    assert 10 < sum(first) < 30
    state = coin.state_dict()
    rest = [coin.step() for _ in range(20)]
    again = ProcrustesProjection([(layer, 4)], probability=0.5)
    again.load_state_dict(state)
    assert [again.step() for _ in range(20)] == rest
    assert again.steps == 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_projected_in_single_precision(dtype):
    layer = conv(4, 8, 1, bias=False).to(dtype)
    exact = project_norm_preserving(layer.weight.detach().float(), 4)
    projection = ProcrustesProjection([(layer, 4)])
    projection.project()
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight.detach(), exact.to(dtype), rtol=0, atol=0)
    report = projection.reports()[0]
    assert max(1 - report.sigma_min, report.sigma_max - 1) < 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(norm_preserving(conv(4, 8, 1, bias=False).to(dtype), 4).weight, layer.weight)


def test_sizes_of_all_inputs_come_from_one_pass():
    net = ProcResNet(13, width=2)
    net.train()
    net.head.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sizes = input_sizes(net, torch.zeros(1, 3, 16, 16))
    assert sizes["stem"] == (16, 16)
    assert (sizes["transitions.1"], sizes["transitions.2"]) == ((16, 16), (8, 8))
    assert net.training
    assert net.stages.training
    assert not net.head.training
    for name, value in net.state_dict().items():  # running statistics, too
        torch.testing.assert_close(value, before[name])
    projection = ProcrustesProjection(
        [(module, sizes[name]) for name, module in net.named_modules() if name in ("stem", "transitions.1")]
    )
    projection.project()
    assert projection.reports()[1].sigma_min == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("probability", [0.1, 0.9, 1.0])
def test_the_coin_falls_with_its_probability(probability):
    """400 tosses: five standard deviations around the mean, and every one for certainty."""
    projection = ProcrustesProjection([(conv(1, 1, 1), 4)], probability=probability, seed=1)
    count = sum(projection.step() for _ in range(400))
    assert abs(count - 400 * probability) <= 5 * (400 * probability * (1 - probability)) ** 0.5


def test_bad_input_is_refused_by_name():
    layer = conv(2, 4, 3)
    for call, kind, text in (
        (lambda: ProcrustesProjection([]), OptionError, "layers is empty"),
        (lambda: ProcrustesProjection([(nn.Linear(2, 2), 4)]), OptionError, "type Linear"),
        (lambda: ProcrustesProjection([(nn.ConvTranspose2d(2, 2, 1), 4)]), OptionError, "type ConvTranspose2d"),
        (lambda: ProcrustesProjection([(layer, 4)], probability=0.0), OptionError, "probability = 0.0"),
        (lambda: ProcrustesProjection([(layer, 4)], every=0), SizeError, "every = 0"),
        (lambda: ProcrustesProjection([(layer, 4.5)]), SizeError, "n = 4.5"),
        (lambda: ProcrustesProjection([(layer, 2)]).project(), SizeError, "n = "),
        (lambda: norm_preserving(nn.Linear(2, 2), 4), OptionError, "type Linear"),
        (lambda: ProcrustesProjection([(norm_preserving(conv(1, 1, 1), 4), 4)]), OptionError, "parametrized already"),
        (lambda: ProcrustesProjection([(layer, 4)], probability=math.nan), OptionError, "probability = nan"),
    ):
        with pytest.raises(kind, match=text):
            call()


def test_the_released_projection_differs_in_the_stem_alone():
    torch.manual_seed(0)
    networks = [ProcResNet(13, 4) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, released in zip(networks, (False, True), strict=True):
        sizes = input_sizes(network, torch.zeros(1, 3, 16, 16))
        names = {id(module): name for name, module in network.named_modules()}
        layers = [(conv, sizes[names[id(conv)]]) for conv in network.linear_convolutions()]
        ProcrustesProjection(layers, released=released).project()
    ours, theirs = ([conv.weight.detach() for conv in network.linear_convolutions()] for network in networks)
    for here, there in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
    energies = [weight.square().sum((0, 1)).flatten() for weight in (ours[0], theirs[0])]
    shares = [float(energy.max() / energy.sum()) for energy in energies]
    assert shares[0] < 0.3
    assert shares[1] > 0.95
    with pytest.raises(OptionError, match="released = True: groups and dilation 1"):
        ProcrustesProjection([(conv(4, 8, 3, groups=2), 8)], released=True)
