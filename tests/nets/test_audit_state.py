"""The audit among states: of the model, which it leaves as they were, of torch, and of blocks with several outputs."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from resid.errors import OptionError
from resid.nets._audit_state import left_as_it_was
from resid.nets.auditing import audit

F64 = torch.float64


def squares(out):
    return out.square().sum()


class Block(nn.Module):
    """x + W x, in float64."""

    def __init__(self, d=4, size=0.5):
        super().__init__()
        self.linear = nn.Linear(d, d, bias=False, dtype=F64)
        with torch.no_grad():
            self.linear.weight.copy_(size * torch.eye(d))

    def forward(self, x):
        return x + self.linear(x)


# ------------------------------------------------------------------------------------------------------- left as it was


class Buffers(Block):
    """Buffers that a forward pass assigns, creates, takes away, resizes, fills, changes beside autograd, and adds."""

    def __init__(self):
        super().__init__()
        for name in ("assigned", "calls", "taken", "changed", "hidden"):
            self.register_buffer(name, torch.zeros(4, dtype=F64), persistent=name != "hidden")
        self.register_buffer("first", None)
        self.register_buffer("least", torch.zeros(0, dtype=F64))
        self.register_buffer("table", torch.ones(2, 3))

    def forward(self, x):
        self.assigned = x.mean(0)
        self.calls = self.calls + 1
        if self.first is None:
            self.first = x[0].clone()
        self.taken = None
        self.changed.data.add_(1)
        self.least.resize_(4).copy_(x[0])
        self.table.resize_(5)
        self.hidden += 1
        self.register_buffer("new", x.sum())
        random.random()
        np.random.rand(3)  # noqa: NPY002 - what models call
        torch.rand(3)
        return super().forward(x)


def generators():
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def state(model):
    tensors = {
        name: (id(t), None if t is None else t.tolist()) for m in model.modules() for name, t in m._buffers.items()
    }
    return tensors, list(model.state_dict()), [m.training for m in model.modules()], generators()


@pytest.mark.parametrize("failing", [False, True])
def test_buffers_and_generators_are_put_back(failing):
    model, x = nn.Sequential(Buffers(), Block()), torch.randn(3, 4, dtype=F64)
    before = state(model)
    if failing:
        with pytest.raises(ZeroDivisionError):
            audit(model, x, lambda out: 1 / 0, Block)
    else:
        audit(model, x, squares, Block)
    assert state(model) == before


def test_a_spectral_norm_makes_no_step():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, dtype=F64)), Block())
    old = nn.utils.spectral_norm(nn.Linear(4, 4, dtype=F64))
    model.append(old)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(audit(model, torch.randn(3, 4, dtype=F64), squares, nn.Linear).blocks) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].parametrizations.training


def test_the_rest_is_put_back_where_one_thing_cannot_be():
    class Stubborn(torch.Tensor):
        def copy_(self, *_):
            raise ArithmeticError("stubborn")

    def use():
        with left_as_it_was(model):
            model.eval()
            model(torch.randn(3, 4, dtype=F64))
            model[1].other.grad = torch.ones(2)

    model = nn.Sequential(Buffers(), Block(), Buffers())
    model[1].other = nn.Parameter(torch.zeros(2))
    model[1].register_buffer("stubborn", torch.zeros(2).as_subclass(Stubborn))
    before = state(model)
    with pytest.raises(ArithmeticError, match="stubborn"):
        use()
    assert state(model) == before
    assert model[1].other.grad is None


def test_lazy_modules_are_made_by_the_audit_as_by_any_call():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 4))
    found = audit(model, torch.randn(5, 3), squares, "2")
    assert math.isfinite(found.ratios[0])
    assert model[1].num_batches_tracked.shape == ()


# ----------------------------------------------------------------------------------------------------- states of torch


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # within torch's compiler
@pytest.mark.parametrize("whole", ["model.compile", "torch.compile", "block"])
def test_compiled_models(whole):
    model, x = nn.Sequential(Block(size=0.5), Block(size=2.0)), torch.randn(3, 4, dtype=F64)
    expected = audit(model, x, squares, Block)
    if whole == "torch.compile":
        model = torch.compile(model, backend="eager")
    elif whole == "block":
        model[1].compile(backend="eager")
    else:
        model.compile(backend="eager")
    model(x)
    found = audit(model, x, squares, Block)
    assert found.ratios == pytest.approx(expected.ratios, rel=1e-12)
    assert [b.bound for b in found.blocks] == [0.5, 2.0]


def test_an_audit_in_any_mode():
    model, x = nn.Sequential(Block(), nn.Linear(4, 3, dtype=F64), nn.ReLU()), torch.randn(3, 4, dtype=F64)
    expected = str(audit(model, x, squares, Block))
    with torch.no_grad():
        assert str(audit(model, x, squares, Block)) == expected
    with torch.inference_mode():
        assert str(audit(model, x, squares, Block)) == expected
        assert str(audit(model, x.clone(), squares, Block)) == expected
        assert str(audit(model, {"input": x.clone()}, squares, Block)) == expected
    with torch.device("meta"):
        assert str(audit(model, x, squares, Block)) == expected
    assert str(audit(model, x.clone().requires_grad_(), squares, Block)) == expected


# ----------------------------------------------------------------------------------------------------- several outputs


class Twice(nn.Module):
    def forward(self, x):
        return [x, x]


class Head(nn.Module):
    """Two blocks' outputs, weighted."""

    def __init__(self, block, weights=(1.0, 3.0)):
        super().__init__()
        self.block, self.weights = block, weights

    def forward(self, x):
        out = self.block(x)
        out = list(out.values()) if isinstance(out, dict) else out
        out = [out[0], *(out[1].values() if isinstance(out[1], dict) else [out[1]])]
        return sum(w * y for w, y in zip(self.weights, out, strict=True))


class Second(nn.Module):
    """x + W x and something else, in a container."""

    def __init__(self, kind, container):
        super().__init__()
        self.inner, self.kind, self.container = Block(), kind, container
        self.free = nn.Parameter(torch.ones(4, dtype=F64))

    def forward(self, x):
        y = self.inner(x)
        second = {
            "input": lambda: x,
            "inner": lambda: self.inner.linear(x),
            "part": lambda: y[:, :1],
            "parameter": lambda: self.free * 2,
            "detached": lambda: x.detach() * 2,
            "same": lambda: y,
        }[self.kind]()
        return {"tuple": (y, second), "list": [y, second], "dict": {"a": y, "b": second}, "inside": (y, {"b": second})}[
            self.container
        ]


def test_a_tensor_handed_on_twice_counts_whole():
    x = torch.randn(3, 4, dtype=F64)
    (block,) = audit(Head(Twice()), x, squares, Twice, direction="in/out").blocks
    assert block.ratio("in/out") == 1
    assert block.out_norm == pytest.approx(float((2 * 16 * x).norm()))

    class Sum(nn.Module):
        def forward(self, a, b):
            return a + 2 * b

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Sum()

        def forward(self, x):
            return self.block(x, x)

    (block,) = audit(Same(), x, squares, Sum, direction="in/out").blocks
    assert block.ratio("in/out") == pytest.approx(3)


@pytest.mark.parametrize("container", ["tuple", "list", "dict", "inside"])
@pytest.mark.parametrize("kind", ["input", "inner", "part", "parameter", "detached", "same"])
def test_blocks_with_a_second_output(kind, container):
    x = torch.randn(3, 4, dtype=F64)
    found = audit(Head(Second(kind, container)), x, squares, "block", direction="in/out")
    (block,) = found.blocks
    if kind in ("parameter", "detached", "same"):  # nothing comes back through it, or it is the same
        assert block.ratio("in/out") == pytest.approx(1.5)
        assert block.branch_to_stream == pytest.approx(0.5)
        assert found.end_to_end == pytest.approx(1.5)
        assert found.notes == ()
    else:
        assert block.outputs == 2
        assert all(map(math.isnan, (block.ratio("in/out"), block.branch_to_stream, found.end_to_end)))
        assert found.table()[1][0][0] == "block *"
        assert "more than one output, which leaves no ratio: block." in str(found)
    if kind == "inner":  # where the layer is called twice
        assert math.isnan(block.bound)
    else:
        assert block.bound == pytest.approx(0.5)


def test_a_second_output_that_the_loss_does_not_use():
    (block,) = audit(Head(Second("input", "tuple"), (1.0, 0.0)), torch.randn(3, 4, dtype=F64), squares, "block").blocks
    assert block.ratio("in/out") == pytest.approx(1.5)


# ----------------------------------------------------------------------------------- what a table alone does not say


def test_all_gradients_zero():
    model = nn.Sequential(Block(), Block(), nn.Linear(4, 2, bias=False, dtype=F64))
    nn.init.zeros_(model[2].weight)
    found = audit(model, torch.randn(3, 4, dtype=F64), squares, Block)
    assert np.isnan(found.ratios).all()
    assert len(found.notes) == 1
    assert "All gradients are zero" in str(found)


class Dead(nn.Module):
    """x -> c, with no gradient at x, or x ReLU'd away."""

    def forward(self, x):
        return torch.relu(x - 1e9) + 1


class Skip(nn.Module):
    """The loss sees the second of three blocks only."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        y = self.blocks[1](self.blocks[0](x))
        self.blocks[2](y)
        return y


def test_infinite_and_missing_ratios_are_explained():
    x = torch.randn(3, 4, dtype=F64)
    found = audit(nn.Sequential(Dead(), Block()), x, squares, (Dead, Block))
    assert found.end_to_end == math.inf
    text = " ".join(found.notes)
    assert "at the input it is zero: 0." in text
    assert "End to end inf: no gradient reaches the input of the first block, 0." in text
    found = audit(Skip(), x, squares, Block)
    assert "no gradient enters at the output of the last block, blocks.2." in str(found)
    assert "on both sides, which leaves no ratio: blocks.2." in str(found)
    found = audit(nn.Sequential(Block(), Block()), x, lambda out: (out * 1e200).square().sum(), Block)
    assert "Gradients are infinite or no numbers: 0, 1." in str(found)
    assert audit(nn.Sequential(Block(), Block()), x, squares, Block).notes == ()


def test_blocks_that_are_not_called_are_named():
    model = nn.Sequential(Block(), Block())
    model.forward = lambda x: model[1](x)
    found = audit(model, torch.randn(3, 4, dtype=F64), squares, Block)
    assert found.uncalled == ("0",)
    assert found.notes == ("Not called: 0.",)
    model = nn.Sequential(*(Block() for _ in range(9)))
    model.forward = lambda x: model[8](x)
    found = audit(model, torch.randn(3, 4, dtype=F64), squares, Block)
    assert found.notes == ("Not called: 0, 1, 2, 3, 4 and 3 more.",)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_a_branch_is_right_or_missing(dtype):
    """LayerScale: x + s W x for smaller and smaller s, against the branch itself in float64."""
    torch.manual_seed(0)
    x, eps, shown = torch.randn(64, 32).to(dtype), torch.finfo(dtype).eps, []
    for exponent in range(0, 60, 2):
        block = nn.Sequential(Block(32, 1.0).to(dtype))
        with torch.no_grad():
            block[0].linear.weight.copy_(torch.randn(32, 32) * 2.0**-exponent / 6)
        (found,) = audit(block, x, squares, Block).blocks
        branch = x.double() @ block[0].linear.weight.detach().double().mT
        exact = float(branch.norm() / x.double().norm())
        if not math.isnan(found.branch_to_stream):
            assert found.branch_to_stream == pytest.approx(exact, rel=0.02)
            shown.append(exact)
    assert eps < min(shown) < 20 * eps
    assert len(shown) > 2
    text = str(audit(block, x, squares, Block))
    assert "below the rounding of the output: 0." in text


@pytest.mark.parametrize("factor", [1e160, 1e-170])
def test_norms_whose_squares_leave_the_range(factor):
    model, x = nn.Sequential(Block(), Block(size=2.0)), factor * torch.randn(3, 4, dtype=F64)
    found = audit(model, x, lambda out: out.sum() * factor, Block)
    assert found.ratios == pytest.approx([1 / 1.5, 1 / 3])
    assert [b.branch_to_stream for b in found.blocks] == pytest.approx([0.5, 2.0])


def test_the_error_names_the_block():
    with pytest.raises(OptionError, match="block '0' was called with, or returned, no floating-point tensor"):
        audit(nn.Sequential(nn.Embedding(4, 2)), torch.tensor([[1, 2]]), squares, nn.Embedding)
