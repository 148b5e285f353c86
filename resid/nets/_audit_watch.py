"""Hooks that keep what goes into the blocks of a model and what comes out, and how the one was made of the other."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resid.errors import OptionError
from resid.theory.norms import SLOPES

__all__ = ["Call", "Chain", "Watch", "differentiable", "gradients_of", "watching"]

Size = tuple[int, ...]

#: Operations, as autograd names them, that move numbers about or copy them, so that no norm changes.
_ISOMETRIES = {
    f"{name}Backward0"
    for name in ("Clone", "ToCopy", "Alias", "View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute")
}  # fmt: skip
_CURVES = {
    "ReluBackward0": SLOPES["relu"],
    "TanhBackward0": SLOPES["tanh"],
    "SigmoidBackward0": SLOPES["sigmoid"],
    "SoftplusBackward0": SLOPES["softplus"],
    "SiluBackward0": SLOPES["silu"],
    "CeluBackward0": 1.0,
    "HardtanhBackward0": 1.0,  # ReLU6, too
    "HardswishBackward0": 1.5,  # (2 x + 3)/6 at x = 3
}


@dataclass(frozen=True)
class Chain:
    """A block that is the identity plus a chain: its layers with the size of their input, and the product of slopes."""

    layers: tuple[tuple[nn.Module, Size], ...]
    slopes: float


@dataclass
class Call:
    """One call of a block: input, first output, other outputs that have gradients; chain: None for another form."""

    name: str
    module: nn.Module
    count: int
    x: Tensor
    y: Tensor
    others: list[Tensor]
    chain: Chain | None


@dataclass
class Watch:
    """What was seen: the calls, and the spatial size of the input that each convolution met at its first call."""

    calls: list[Call] = field(default_factory=list)
    sizes: dict[nn.Module, Size] = field(default_factory=dict)


@dataclass
class _Open:
    """A call that has begun. layers: by the node of their output, with node, numbers and size of their input."""

    module: nn.Module
    x: Tensor
    entry: Any
    layers: dict[Any, tuple[nn.Module, Any, int, int, Size]] = field(default_factory=dict)
    times: Counter[nn.Module] = field(default_factory=Counter)


@contextlib.contextmanager
def watching(chosen: Sequence[tuple[str, nn.Module]]) -> Iterator[Watch]:
    """Keep the input and the outputs of every call of the blocks.

    What is kept is a copy, and the block, or what comes after it, gets a copy of that: an operation in place on either
    side does not change it, and the gradient of the copy is the gradient through the block alone. A tensor that is
    handed on twice is replaced twice by the same copy, whose gradient is the sum.
    """
    watch = Watch()
    running: list[_Open] = []
    counts: Counter[nn.Module] = Counter()

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            copies = _Copies(name, others=False)
            args, kwargs = copies.visit(args), copies.visit(kwargs)
            x, passed_on = copies.first()
            running.append(_Open(module, x, passed_on.grad_fn))
            return args, kwargs

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            while running[-1].module is not module:  # a call that ended in an error, which the model caught
                running.pop()
            begun, copies = running.pop(), _Copies(name, others=True)
            replaced = copies.visit(output)
            y, _ = copies.first()
            counts[module] += 1
            chain = _chain(begun, copies.made[0][0])
            others = [copy for _, copy, _ in copies.made[1:]]
            watch.calls.append(Call(name, module, counts[module], begun.x, y, others, chain))
            return replaced

        return hook

    def layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):  # a subclass with arguments of its own
            return
        size = tuple(x.shape[-2:]) if isinstance(module, nn.Conv2d) else ()
        if size:
            watch.sizes.setdefault(module, size)
        if running and isinstance(output, Tensor) and output.grad_fn is not None:
            running[-1].layers[output.grad_fn] = (module, x.grad_fn, x.numel(), output.numel(), size)
            running[-1].times[module] += 1

    with contextlib.ExitStack() as stack:
        for name, block in chosen:
            layers = [m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            handles = [
                block.register_forward_pre_hook(before(name), with_kwargs=True, prepend=True),
                block.register_forward_hook(after(name), with_kwargs=True),
                # first of the hooks, so that what another one does to the output is no part of the layer
                *(m.register_forward_hook(layer, with_kwargs=True, prepend=True) for m in layers),
            ]
            for handle in handles:
                stack.callback(handle.remove)
        yield watch


def gradients_of(value: Tensor, calls: Sequence[Call]) -> list[tuple[Tensor, Tensor, int]]:
    """For each call the gradient at input and first output, and through how many outputs it came back to the input."""
    if not value.requires_grad:
        raise OptionError("the loss does not depend on any block: it has no gradient")
    tensors = [tensor for call in calls for tensor in (call.x, call.y, *call.others)]
    again = any(call.others for call in calls)
    gradients = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=again)
    if all(gradient is None for gradient in gradients):
        raise OptionError("the loss does not depend on any block: all gradients are missing")
    triples, rest = [], iter(gradients)
    for call in calls:
        into, out, others = next(rest), next(rest), [next(rest) for _ in call.others]
        # an output that has a gradient, but does not depend on the input, takes nothing away
        live = sum(_comes_back(call.x, tensor, g) for tensor, g in zip(call.others, others, strict=True))
        into, out = (torch.zeros_like(t) if g is None else g for g, t in ((into, call.x), (out, call.y)))
        triples.append((into, out, 1 + live))
    return triples


def differentiable(inputs: Any) -> Any:
    """Copies of tensors that come from an inference mode, since nothing can be differentiated with them."""
    if isinstance(inputs, Tensor):
        return inputs.clone() if inputs.is_inference() else inputs
    if isinstance(inputs, dict):
        return {key: differentiable(value) for key, value in inputs.items()}
    return type(inputs)(differentiable(value) for value in inputs) if type(inputs) in (tuple, list) else inputs


class _Copies:
    """Copies in the place of floating-point tensors: of the first and, if asked for, of all that have a gradient.

    Tuples, lists and dictionaries are looked into. made: tensor, copy that is kept, and copy that is handed on.
    """

    def __init__(self, name: str, others: bool) -> None:
        self.name, self.others = name, others
        self.made: list[tuple[Tensor, Tensor, Tensor]] = []

    def visit(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            for tensor, _, passed_on in self.made:
                if value is tensor:
                    return passed_on
            if self.made and not (self.others and value.requires_grad):
                return value
            copy = value.clone()
            leaf = copy if copy.requires_grad else copy.requires_grad_()
            self.made.append((value, leaf, leaf.clone()))
            return self.made[-1][2]
        if type(value) in (tuple, list):
            return type(value)(self.visit(v) for v in value)
        if type(value) is dict:
            return {key: self.visit(v) for key, v in value.items()}
        return value

    def first(self) -> tuple[Tensor, Tensor]:
        if not self.made:
            raise OptionError(
                f"block {self.name!r} was called with, or returned, no floating-point tensor: nothing has a gradient "
                "there"
            )
        return self.made[0][1:]


def _as_written(module: nn.Module) -> bool:
    """Whether a layer computes what torch's own does."""
    kind: Any = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    names = ("forward", "_conv_forward") if kind is nn.Conv2d else ("forward",)
    return all(getattr(type(module), n) is getattr(kind, n) and n not in vars(module) for n in names)


def _chain(begun: _Open, y: Tensor) -> Chain | None:
    """The layers between input and output if the output is x + W_m rho(.. W_1 x), read off autograd's graph; or None.

    Every step of the graph must be known: the sum, a layer, a nonlinearity with a known slope, or what moves numbers
    about. A gate, an attention, a normalisation, dropout in train mode, a second branch or a gain are none of these.
    """
    if y.shape != begun.x.shape:
        return None
    total = _past_isometries(y.grad_fn, begun)
    if total is None or total.name() != "AddBackward0" or total._saved_alpha != 1:
        return None
    sides = [node for node, _ in total.next_functions]
    branch = [node for node in sides if _past_isometries(node, begun) is not begun.entry]
    if len(sides) != 2 or len(branch) != 1:
        return None
    node, numbers, slopes = branch[0], y.numel(), 1.0
    layers: list[tuple[nn.Module, Size]] = []
    while (node := _past_isometries(node, begun)) is not begun.entry:
        if node is None:
            return None
        if node in begun.layers:
            module, below, inputs, outputs, size = begun.layers[node]
            if outputs != numbers or begun.times[module] > 1 or not _as_written(module):
                return None
            layers.append((module, size))
            node, numbers = below, inputs
            continue
        slope = _slope(node)
        if slope is None:
            return None
        slopes *= slope
        node = node.next_functions[0][0]
    return Chain(tuple(layers), slopes)


def _past_isometries(node: Any, begun: _Open) -> Any:
    while node is not None and node is not begun.entry and node not in begun.layers and node.name() in _ISOMETRIES:
        node = node.next_functions[0][0]
    return node


def _slope(node: Any) -> float | None:
    """The largest absolute slope of the nonlinearity that a node belongs to, or None if it is not known."""
    name = node.name()
    if name == "EluBackward0":  # SELU, too
        return abs(node._saved_scale) * max(1.0, abs(node._saved_alpha * node._saved_input_scale))
    if name == "LeakyReluBackward0":
        return max(1.0, abs(node._saved_negative_slope))
    if name == "GeluBackward0":
        return SLOPES["gelu"] if node._saved_approximate == "none" else None
    return _CURVES.get(name)


def _comes_back(x: Tensor, output: Tensor, gradient: Tensor | None) -> bool:
    """Whether a part of the gradient at x comes through this output."""
    if gradient is None:
        return False
    (part,) = torch.autograd.grad(output, x, gradient, allow_unused=True, retain_graph=True)
    return part is not None and bool((part != 0).any())
