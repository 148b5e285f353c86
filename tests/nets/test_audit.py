"""The audit: gradients through blocks as computed by hand, for awkward models, and nothing left changed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import resid
from resid.errors import OptionError, ShapeError
from resid.nets.auditing import audit, find_blocks
from resid.nets.preact import Bottleneck, PreActResNet, ProcResNet
from tests.nets.test_audit_bounds import worst_change


class Residual(nn.Module):
    def __init__(self, d, inplace=False, norm=False, dropout=0.0):
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm1d(d) if norm else nn.Identity(),
            nn.ReLU(inplace=inplace),
            nn.Linear(d, d),
            nn.Dropout(dropout),
            nn.ReLU(inplace=inplace),
            nn.Linear(d, d),
        )

    def forward(self, x):
        return x + self.branch(x.clone() if isinstance(self.branch[0], nn.Identity) and self.branch[1].inplace else x)


def chain(n=3, d=5, **kwargs):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, d), *(Residual(d, **kwargs) for _ in range(n)), nn.Linear(d, 3)).double()


def by_hand(model, x, blocks):
    """Gradient norms at every boundary, with leaves cut out of the graph one block at a time."""
    states = [x]
    for module in model:
        states.append(module(states[-1]).detach())
    g = 2 * states[-1]
    norms = {}
    for i in reversed(range(len(model))):
        leaf = states[i].clone().requires_grad_()
        out = model[i](leaf)
        (into,) = torch.autograd.grad(out, leaf, g)
        norms[i] = (float(into.norm()), float(g.norm()), float(states[i].norm()), states[i], states[i + 1])
        g = into
    return [norms[i] for i in blocks]


def squares(out):
    return out.square().sum()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_ratios_are_those_of_a_backward_pass_by_hand(inplace, norm):
    model, x = chain(inplace=inplace, norm=norm), torch.randn(6, 4, dtype=torch.float64)
    found = audit(model, x, squares, Residual, direction="in/out")
    expected = by_hand(model, x, [1, 2, 3])
    assert [b.name for b in found.blocks] == ["1", "2", "3"]
    for block, (into, out, stream, before, after) in zip(found.blocks, expected, strict=True):
        assert block.in_norm == pytest.approx(into, rel=1e-12)
        assert block.out_norm == pytest.approx(out, rel=1e-12)
        assert block.stream == pytest.approx(stream, rel=1e-12)
        assert block.branch_to_stream == pytest.approx(float((after - before).norm()) / stream, rel=1e-12)
        assert block.ratio("in/out") == pytest.approx(into / out)
        assert block.ratio("out/in") == pytest.approx(out / into)
    assert found.end_to_end == pytest.approx(expected[0][0] / expected[-1][1])
    assert found.end_to_end == pytest.approx(math.prod(found.ratios), rel=1e-9)
    assert audit(model, x, squares, Residual).ratios == pytest.approx(1 / found.ratios)
    assert found.loss == pytest.approx(float(squares(model(x)).detach()))


def test_the_short_name_is_the_same_function():
    assert resid.audit is audit
    with pytest.raises(AttributeError, match="audits"):
        _ = resid.audits


def test_spectra_and_the_bound_of_the_corollary():
    model, x = chain(2), torch.randn(6, 4, dtype=torch.float64)
    found = audit(model, x, squares, "[12]")
    for block, module in zip(found.blocks, (model[1], model[2]), strict=True):
        values = [torch.linalg.svdvals(layer.weight.detach()) for layer in (module.branch[2], module.branch[5])]
        assert [layer.sigma_max for layer in block.layers] == pytest.approx([float(v[0]) for v in values])
        assert block.sigma_min == pytest.approx(float(min(v[-1] for v in values)))
        assert block.bound == pytest.approx(float(values[0][0] * values[1][0]))
        assert abs(block.ratio("in/out") - 1) <= block.bound
    assert math.isnan(audit(chain(1, norm=True), x, squares, Residual).blocks[0].bound)
    bare = audit(model, x, squares, Residual, sigma=False).blocks[0]
    assert math.isnan(bare.sigma_max)
    assert bare.layers == ()


class Gained(nn.Module):
    """A residual block with weights that are no layer's."""

    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(6, 6, bias=False)
        self.other = {
            "gain": lambda: nn.Parameter(torch.tensor(50.0)),
            "convolution": lambda: nn.Conv1d(3, 3, 1, bias=False),
            "nothing": nn.Identity,
        }[kind]()

    def forward(self, x):
        y = self.linear(x)
        return x + (self.other * y if isinstance(self.other, nn.Parameter) else self.other(y))


@pytest.mark.parametrize("kind", ["gain", "convolution", "nothing"])
def test_weights_that_are_not_counted_leave_no_bound(kind):
    torch.manual_seed(0)
    (block,) = audit(nn.Sequential(Gained(kind)), torch.randn(2, 3, 6), squares, Gained).blocks
    if kind == "nothing":
        assert abs(block.ratio("in/out") - 1) <= block.bound
    else:
        assert math.isnan(block.bound)


class Map(nn.Module):
    """A convolution, once pushed through as a dense matrix."""

    def __init__(self, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding_mode="circular", bias=False, **kwargs)

    def forward(self, x):
        return self.conv(x)


def test_spectrum_of_a_convolution_is_that_of_its_matrix():
    model = nn.Sequential(Map(padding=1)).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    (layer,) = audit(model, x, squares, Map).blocks[0].layers
    basis = torch.eye(72, dtype=torch.float64).view(72, 2, 6, 6)
    values = torch.linalg.svdvals(model(basis).detach().flatten(1).mT)
    assert (layer.name, layer.n) == ("0.conv", (6, 6))
    assert (layer.sigma_max, layer.sigma_min) == pytest.approx((float(values[0]), float(values[-1])), rel=1e-9)
    odd = audit(nn.Sequential(Map(stride=2, padding=1)).double(), x[..., :5, :5], squares, Map).blocks[0]
    assert odd.layers[0].n == (6, 6)


class Padded(nn.Module):
    """x + C x, or C x alone."""

    def __init__(self, residual=True, channels=1, **kwargs):
        super().__init__()
        self.residual, self.conv = residual, nn.Conv2d(channels, channels, 3, bias=False, **kwargs)

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


def test_with_zeros_around_an_image_the_bound_is_one():
    """Differences of neighbors, five of them: the circular map of five has a smaller norm than the one with zeros."""
    model = nn.Sequential(Padded(padding=1)).double()
    with torch.no_grad():
        model[0].conv.weight.zero_()[0, 0, 1, :2] = torch.tensor([-1.0, 1.0])
    dense = model[0].conv(torch.eye(25, dtype=torch.float64).view(25, 1, 5, 5)).detach().flatten(1)
    exact = float(torch.linalg.svdvals(dense)[0])
    assert exact == pytest.approx(2 * math.cos(math.pi / 11))
    assert exact > 2 * math.sin(2 * math.pi / 5) + 0.01  # the norm of the circular map
    block = audit(model, torch.randn(1, 1, 5, 5, dtype=torch.float64), squares, Padded).blocks[0]
    assert block.layers[0].n == (7, 7)
    assert exact <= block.bound <= 2


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_bound_holds_for_zeros_of_any_width(padding, stride, dilation):
    torch.manual_seed(padding + 3 * stride + 9 * dilation)
    options = {"padding": padding, "stride": stride, "dilation": dilation, "channels": 2}
    model = nn.Sequential(Padded(residual=False, **options)).double()
    basis = torch.eye(98, dtype=torch.float64).view(98, 2, 7, 7)
    exact = float(torch.linalg.svdvals(model(basis).detach().flatten(1))[0])
    block = audit(model, basis[:3], squares, Padded).blocks[0]
    assert 0.3 * block.sigma_max <= exact <= block.sigma_max * (1 + 1e-12)


class Around(nn.Module):
    """x + a convolution of one channel, brought back to the shape of x."""

    def __init__(self, mode, stride, padding, outputs):
        super().__init__()
        options = {"padding": padding, "padding_mode": mode, "bias": False}
        self.conv = nn.Conv2d(1, outputs, 3, stride=stride, **options)
        self.second = nn.Conv2d(1, 1, 3, bias=False) if padding == 2 else nn.Identity()

    def forward(self, x):
        return x + self.second(self.conv(x)).reshape(x.shape)


@pytest.mark.parametrize(
    ("mode", "stride", "padding", "outputs", "bounded"),
    [
        ("zeros", 1, 1, 1, True),
        ("reflect", 1, 1, 1, False),
        ("replicate", 1, 1, 1, False),
        ("circular", 1, 1, 1, True),
        ("circular", 1, "same", 1, True),
        ("circular", 2, 1, 4, True),
        ("circular", 4, 1, 9, False),  # six pixels in steps of four
        ("circular", 1, 2, 1, False),  # two rows come twice
    ],
)
def test_padding_that_repeats_pixels_leaves_no_bound(mode, stride, padding, outputs, bounded):
    torch.manual_seed(0)
    model = nn.Sequential(Around(mode, stride, padding, outputs)).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    found = audit(model, x, squares, Around).blocks[0]
    assert math.isnan(found.bound) is not bounded
    if bounded:
        assert worst_change(model[0], x[:1]) <= found.bound


def test_finding_blocks():
    model = ProcResNet(22, width=2, channels=1)
    names = [name for name, _ in find_blocks(model)]
    assert names == [f"stages.{i}.{j}" for i in range(3) for j in range(2)]
    assert names == [name for name, _ in find_blocks(model, Bottleneck)]
    assert names == [name for name, _ in find_blocks(model, "stages.?.?")]
    assert names == [name for name, _ in find_blocks(model, lambda name, m: hasattr(m, "shortcut"))]
    assert [name for name, _ in find_blocks(model, (nn.ModuleList, Bottleneck))] == ["transitions", "stages"]
    with pytest.raises(OptionError, match=r"blocks = 'layer\*' matches no submodule; the model has .*Bottleneck"):
        find_blocks(model, "layer*")
    with pytest.raises(OptionError, match="blocks = 3: a type, a pattern"):
        find_blocks(model, 3)


class Awkward(nn.Module):
    """Several inputs, a shared block, keyword arguments, tuples, a block that the loss does not see."""

    def __init__(self):
        super().__init__()
        self.shared, self.side, self.pair = nn.Linear(3, 3), nn.Linear(3, 3), PairBlock()

    def forward(self, x, index, scale=1.0):
        self.side(x)
        for _ in range(2):
            x = x + scale * self.shared(x)
        x, _ = self.pair(index, [x, 1])
        return {"out": x[index]}


class PairBlock(nn.Module):
    def forward(self, index, values):
        return values[0] * 3, index


@pytest.mark.parametrize("inputs", ["tuple", "dict"])
def test_shared_blocks_several_inputs_and_tuples(inputs):
    model = Awkward()
    x, index = torch.randn(4, 3), torch.tensor([0, 2])
    given = (x, index, 0.5) if inputs == "tuple" else {"index": index, "x": x, "scale": 0.5}
    found = audit(model, given, lambda out: out["out"].sum(), (nn.Linear, PairBlock), direction="in/out")
    assert [b.name for b in found.blocks] == ["side", "shared", "shared#2", "pair"]
    side, first, second, pair = found.blocks
    assert (side.in_norm, side.out_norm) == (0, 0)
    assert math.isnan(side.ratio("in/out"))
    assert pair.ratio("in/out") == pytest.approx(3)
    g = torch.zeros(4, 3)
    g[[0, 2]] = 3.0
    W = model.shared.weight.detach()
    assert second.out_norm == pytest.approx(float(0.5 * g.norm()), rel=1e-6)
    assert second.in_norm == pytest.approx(float((0.5 * g @ W).norm()), rel=1e-6)
    assert first.out_norm == pytest.approx(float((0.5 * (g + 0.5 * g @ W)).norm()), rel=1e-6)


def fingerprint(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state(),
    )


def same(a, b):
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    assert a[1] == b[1]
    assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))
    assert a[3:5] == b[3:5]
    assert torch.equal(a[5], b[5])


class Trouble(RuntimeError):
    pass


def fail(out):
    raise Trouble


@pytest.mark.parametrize("where", ["nowhere", "loss", "forward", "mode"])
def test_the_model_is_left_as_it_was(where):
    model = chain(norm=True, dropout=0.5)
    model[2].eval()
    x = torch.randn(6, 4, dtype=torch.float64)
    squares(model(x)).backward()
    model[0].weight.requires_grad_(False)
    model[1].branch[2].bias.grad = None
    before = fingerprint(model)
    with torch.no_grad():
        if where == "nowhere":
            audit(model, x, squares, Residual)
        elif where == "loss":
            with pytest.raises(Trouble):
                audit(model, x, fail, Residual)
        elif where == "forward":
            with pytest.raises(RuntimeError):
                audit(model, x[:, :3], squares, Residual)
        else:
            with pytest.raises(Trouble):
                audit(model, x, lambda out: fail(model.eval()), Residual)
    same(before, fingerprint(model))
    assert x.grad is None
    assert not x.requires_grad


def test_batch_norm_is_measured_in_the_mode_the_model_is_in():
    model, x = PreActResNet(20, width=4, channels=1), 3 * torch.randn(8, 1, 8, 8)
    y = torch.arange(8)
    cross = lambda out: F.cross_entropy(out, y)  # noqa: E731
    train = audit(model, x, cross, sigma=False)
    evaluated = audit(model.eval(), x, cross, sigma=False)
    assert len(train.blocks) == 6
    assert abs(train.ratios / evaluated.ratios - 1).max() > 0.05
    again = audit(model.train(), x, cross, sigma=False)
    assert again.ratios == pytest.approx(train.ratios, rel=1e-6)  # the running averages were put back


def test_checkpointed_blocks():
    class Saving(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            for block in self.inner:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    inner, x = chain(), torch.randn(6, 4, dtype=torch.float64)
    expected = audit(inner, x, squares, Residual)
    found = audit(Saving(inner), x, squares, Residual)
    assert [b.name for b in found.blocks] == ["inner.1", "inner.2", "inner.3"]
    assert found.ratios == pytest.approx(expected.ratios)


def test_half_precision_and_frozen_models():
    model = chain().to(torch.bfloat16).requires_grad_(False)
    found = audit(model, torch.randn(6, 4, dtype=torch.bfloat16), squares, Residual)
    assert all(math.isfinite(r) and r > 0 for r in found.ratios)


@pytest.mark.parametrize(
    ("loss", "error", "text"),
    [
        (lambda out: out, ShapeError, r"loss returned a tensor of shape \(6, 3\)"),
        (lambda out: 1.0, ShapeError, "loss returned float"),
        (lambda out: torch.tensor(1.0), OptionError, "does not depend on any block"),
        (lambda out: torch.zeros(1, requires_grad=True).sum(), OptionError, "all gradients are missing"),
    ],
)
def test_bad_losses_are_named(loss, error, text):
    with pytest.raises(error, match=text):
        audit(chain(), torch.randn(6, 4, dtype=torch.float64), loss, Residual)


def test_other_bad_arguments_are_named():
    model, x = chain(), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(OptionError, match="direction = 'up'"):
        audit(model, x, squares, Residual, direction="up")
    model.add_module("unused", nn.Bilinear(2, 2, 2))
    model.forward = lambda x: model[0](x)
    with pytest.raises(OptionError, match="none of the 1 blocks was called, the first is 'unused'"):
        audit(model, x, squares, nn.Bilinear)
    counts = nn.Sequential(nn.Embedding(4, 2), nn.Flatten())
    with pytest.raises(OptionError, match="no floating-point tensor"):
        audit(counts, torch.tensor([[1, 2]]), squares, nn.Embedding)


def test_table_text_and_figure():
    found = audit(chain(), torch.randn(6, 4, dtype=torch.float64), squares, Residual)
    head, rows = found.table()
    assert head[1] == "gradient out/in"
    assert [row[1] for row in rows] == pytest.approx(found.ratios)
    text = str(found).splitlines()
    assert len(text) == 5
    assert text[-1].startswith("end to end out/in:")
    axes = found.figure().axes[0]
    points = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert list(points[0].get_ydata()) == pytest.approx(found.ratios)
