"""The bound of the audit: given only where it holds, sharp where it can be, and none for blocks of another form."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resid.nets.auditing import audit

F64 = torch.float64
D = 4


def worst_change(block, x):
    """max |in/out - 1| over all gradients, from the Jacobian of a block at x."""
    J = torch.autograd.functional.jacobian(lambda x: block(x.clone()), x).reshape(x.numel(), -1)
    sigma = torch.linalg.svdvals(J)
    return float(torch.maximum(sigma[0] - 1, 1 - sigma[-1]))


def scaled(size, d=D, seed=0, layer=None):
    """A linear layer without bias whose norm is `size`."""
    layer = nn.Linear(d, d, bias=False, dtype=F64) if layer is None else layer
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, dtype=F64, generator=torch.Generator().manual_seed(seed)))
        layer.weight *= size / torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    return layer


class Plus(nn.Module):
    """x + F(x) with a branch of modules."""

    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


class Free(nn.Module):
    """A block of two or three layers of norm 0.3 that does with them what a function says."""

    def __init__(self, function, count=2, size=0.3):
        super().__init__()
        self.layers = nn.ModuleList(scaled(size, seed=i) for i in range(count))
        self.function = function

    def forward(self, x):
        return self.function(x, *self.layers)


def bound_of(block, x):
    (found,) = audit(nn.Sequential(block), x, lambda out: out.square().sum(), type(block)).blocks
    return found.bound


# The largest slope of each, with a point at which it has it.
SMOOTH = {
    "ReLU": (nn.ReLU(), 1.0, 1.0),
    "LeakyReLU": (nn.LeakyReLU(0.1), 1.0, 1.0),
    "LeakyReLU, steeper on the left": (nn.LeakyReLU(1.5), 1.5, -1.0),
    "ReLU6": (nn.ReLU6(), 1.0, 1.0),
    "Hardtanh": (nn.Hardtanh(), 1.0, 0.5),
    "Hardswish": (nn.Hardswish(), 1.5, 3 - 1e-9),
    "ELU": (nn.ELU(), 1.0, 1.0),
    "ELU(2)": (nn.ELU(2.0), 2.0, -1e-9),
    "SELU": (nn.SELU(), 1.0507009873554805 * 1.6732632423543772, -1e-12),
    "CELU(2)": (nn.CELU(2.0), 1.0, 1.0),
    "GELU": (nn.GELU(), 1.1289041451, math.sqrt(2)),
    "SiLU": (nn.SiLU(), 1.0998393201, 2.3993572805),
    "Softplus": (nn.Softplus(), 1.0, 40.0),
    "Softplus(3)": (nn.Softplus(3.0), 1.0, 40.0),
    "tanh": (nn.Tanh(), 1.0, 0.0),
    "sigmoid": (nn.Sigmoid(), 0.25, 0.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_has_the_slope_of_the_activation_and_is_attained(name):
    """x + 0.3 rho(x) at the steepest point: |in/out - 1| is the bound, so that a smaller one would be false."""
    activation, slope, steepest = SMOOTH[name]
    inner, outer = (nn.Linear(D, D, bias=False, dtype=F64) for _ in range(2))
    with torch.no_grad():
        inner.weight.copy_(torch.eye(D))
        outer.weight.copy_(0.3 * torch.eye(D, dtype=F64))
    block, x = Plus(inner, activation, outer), torch.full((1, D), steepest, dtype=F64)
    found = bound_of(block, x)
    assert found == pytest.approx(0.3 * slope, rel=1e-9)
    assert worst_change(block, x) == pytest.approx(found, rel=1e-8)
    for seed in range(20):
        block = Plus(scaled(1.2, seed=seed), activation, scaled(0.3, seed=seed + 1))
        x = 3 * torch.randn(1, D, dtype=F64, generator=torch.Generator().manual_seed(seed))
        assert worst_change(block, x) <= bound_of(block, x) * (1 + 1e-12) == pytest.approx(0.36 * slope)


def attention(x, q, k, v):
    return x + F.scaled_dot_product_attention(q(x), k(x), v(x))


# What the table of numbers that bounded nothing has, and more of the kind.
OTHER = {
    "GELU by tanh": lambda: Plus(scaled(0.3), nn.GELU("tanh"), scaled(1.0)),
    "Mish": lambda: Plus(scaled(0.3), nn.Mish(), scaled(1.0)),
    "dropout in train mode": lambda: Plus(scaled(0.3), nn.Dropout(0.5), scaled(1.0)),
    "two branches": lambda: Free(lambda x, A, B: x + A(x) + B(x)),
    "two branches added first": lambda: Free(lambda x, A, B: x + (A(x) + B(x))),
    "a layer used twice": lambda: Free(lambda x, W: x + W(W(x)), 1, 1.5),
    "two residual steps": lambda: Free(lambda x, A, B: (x + A(x)) + B(x + A(x))),
    "two residual steps by name": lambda: Free(lambda x, A, B: (lambda u: u + B(u))(x + A(x))),
    "gate": lambda: Free(lambda x, A, B: A(x) * torch.sigmoid(B(x))),
    "gated branch": lambda: Free(lambda x, A, B: x + A(x) * torch.sigmoid(B(x))),
    "gated input": lambda: Free(lambda x, A, B: A(x) + x * torch.sigmoid(B(x))),
    "attention": lambda: Free(attention, 3, 1.0),
    "functional layer norm": lambda: Free(lambda x, A, B: x + B(A(F.layer_norm(x, (D,))))),
    "layer norm without weights": lambda: Plus(nn.LayerNorm(D, elementwise_affine=False, dtype=F64), scaled(0.3)),
    "group norm without weights": lambda: Plus(nn.GroupNorm(2, D, affine=False, dtype=F64), scaled(0.3)),
    "RMS norm without weights": lambda: Plus(nn.RMSNorm(D, elementwise_affine=False, dtype=F64), scaled(0.3)),
    "batch norm without weights": lambda: Plus(nn.BatchNorm1d(D, affine=False, dtype=F64), scaled(0.3)),
    "softmax": lambda: Plus(scaled(0.3), nn.Softmax(-1)),
    "a gain": lambda: Free(lambda x, A, B: x + 3 * B(A(x))),
    "a weighted sum": lambda: Free(lambda x, A, B: torch.add(x, B(A(x)), alpha=4)),
    "no identity": lambda: Free(lambda x, A, B: B(A(x))),
    "twice the identity": lambda: Free(lambda x, A, B: x + x + B(A(x))),
    "minus": lambda: Free(lambda x, A, B: B(A(x)) - x),
    "an activation after the sum": lambda: Free(lambda x, A, B: torch.relu(x + B(A(x)))),
    "an activation before both": lambda: Free(lambda x, A, B: (lambda z: z + B(A(z)))(torch.relu(x))),
    "a slice": lambda: Free(lambda x, A, B: x + B(A(x))[:, :1]),
    "a column for all": lambda: Free(lambda x, A, B: x + B(A(x)).mean(-1, keepdim=True)),
    "a convolution of one dimension": lambda: Plus(scaled(3.0, layer=nn.Conv1d(D, D, 1, bias=False, dtype=F64))),
    "a bilinear form": lambda: Free(lambda x, A, B: x + A(x) @ B(x).mT @ x),
    "an output without a graph": lambda: Free(lambda x, A, B: x + B(A(x)).detach()),
    "power": lambda: Free(lambda x, A, B: x + B(A(x) ** 3)),
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", OTHER)
def test_blocks_of_another_form_have_no_bound(name, zero):
    """Also where the input is zero, and a comparison of numbers could not tell the form."""
    torch.manual_seed(0)
    block = OTHER[name]()
    x = torch.zeros(3, D, dtype=F64) if zero else torch.randn(3, D, dtype=F64)
    assert math.isnan(bound_of(block, x[..., None] if "one dimension" in name else x))


CHAINS = {
    "three layers, preactivation": lambda: Plus(nn.ReLU(), scaled(0.9), nn.Tanh(), scaled(0.8), nn.ReLU(), scaled(0.7)),
    "functions": lambda: Free(lambda x, A, B: x + B(F.relu(A(torch.tanh(x)))), size=0.7),
    "in place": lambda: Free(lambda x, A, B: B(A(x).relu_()).add_(x), size=0.7),
    "the branch first": lambda: Free(lambda x, A, B: B(A(x)) + x, size=0.7),
    "moved about": lambda: Free(lambda x, A: x + A(x.mT.clone().mT), 1),
    "onto the input": lambda: Free(lambda x, A, B: x.__iadd__(B(A(x.clone()))), size=0.7),
    "dropout off": lambda: Plus(scaled(0.7), nn.Dropout(0.5), scaled(0.7)).eval(),
    "dropout of nothing": lambda: Plus(scaled(0.7), nn.Dropout(0.0), scaled(0.7)),
    "a bias": lambda: Plus(scaled(0.7, layer=nn.Linear(D, D, dtype=F64)), nn.ReLU(), scaled(0.7)),
    "an activation at the end": lambda: Plus(scaled(0.7), nn.Sigmoid()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_in_other_words_have_one(name):
    torch.manual_seed(0)
    for _ in range(5):
        block, x = CHAINS[name](), torch.randn(1, D, dtype=F64)
        found = bound_of(block, x)
        assert worst_change(block, x) <= found * (1 + 1e-12) < 0.6


def test_layers_of_a_kind_of_their_own_have_no_bound():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Odd(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return 2 * super()._conv_forward(x, weight, bias)

    class Named(nn.Linear):
        def forward(self, *, hidden):
            return super().forward(hidden), None

    x = torch.randn(1, D, dtype=F64)
    named = Free(lambda x, A, B: x + A(hidden=x)[0])
    named.layers[0] = Named(D, D, dtype=F64)
    assert math.isnan(bound_of(named, x))
    assert math.isnan(bound_of(Plus(scaled(0.3, layer=Twice(D, D, bias=False, dtype=F64))), x))
    layer = scaled(0.3)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight)
    assert math.isnan(bound_of(Plus(layer), x))
    conv = Odd(1, 1, 3, padding=1, bias=False, dtype=F64)
    assert math.isnan(bound_of(Plus(conv), x.reshape(1, 1, 2, 2)))


def test_a_hook_on_a_layer_is_no_part_of_it():
    layer, x = scaled(0.3), torch.randn(1, D, dtype=F64)
    block = Plus(layer)
    assert bound_of(block, x) == pytest.approx(0.3)
    layer.register_forward_hook(lambda module, args, out: 5 * out)
    assert math.isnan(bound_of(block, x))
    assert worst_change(block, x) > 0.3


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_convolutions_in_groups(groups, padding):
    """Against the convolution as a dense matrix."""
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, padding_mode=padding, bias=False, dtype=F64)
    x = torch.randn(1, 4, 5, 5, dtype=F64)
    (found,) = audit(nn.Sequential(Plus(conv)), x, lambda out: out.square().sum(), Plus).blocks
    exact = torch.linalg.svdvals(torch.autograd.functional.jacobian(conv, x).reshape(100, 100))
    if padding == "circular":
        assert found.sigma_max == pytest.approx(float(exact[0]))
        assert found.sigma_min == pytest.approx(float(exact[-1]))
    assert float(exact[0]) <= found.bound * (1 + 1e-12) == found.sigma_max * (1 + 1e-12)
    assert worst_change(nn.Sequential(Plus(conv)), x) <= found.bound


def test_a_block_called_at_a_second_size_has_no_bound_there():
    """The singular values are those of the size of the first call."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Plus(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=F64))

        def forward(self, x):
            return self.block(x).sum() + self.block(x[..., :4, :4]).sum()

    first, second = audit(Two(), torch.randn(1, 1, 6, 6, dtype=F64), lambda out: out, Plus).blocks
    assert math.isfinite(first.bound)
    assert math.isnan(second.bound)


def test_shapes_that_a_sum_spreads_leave_no_bound():
    """A layer with one output, added to all entries: its norm is multiplied by the root of their number."""
    block = Free(lambda x, A, B: x, 2)
    block.layers[1] = nn.Linear(D, 1, bias=False, dtype=F64)
    block.function = lambda x, A, B: x + B(A(x))
    with torch.no_grad():
        block.layers[0].weight.copy_(torch.eye(D))
        block.layers[1].weight.fill_(0.5)
    x = torch.randn(1, D, dtype=F64)
    assert worst_change(block, x) == pytest.approx(2)  # the norms of the layers are 1
    assert math.isnan(bound_of(block, x))


def test_weights_under_a_parametrization_are_those_of_the_forward_pass():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(D, D, bias=False, dtype=F64), n_power_iterations=1)
    seen = []
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    block = Plus(layer)
    x = torch.eye(D, dtype=F64)
    (found,) = audit(nn.Sequential(block), x, lambda out: out.square().sum(), Plus).blocks
    assert found.sigma_max == pytest.approx(float(torch.linalg.matrix_norm(seen[0].detach(), 2)), rel=1e-12)
