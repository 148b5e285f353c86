"""How the blocks of any network treat the norm of a gradient: an audit of a `torch.nn.Module` by hooks.

For every call of a block with input x and output y the audit has the gradient of the loss with respect to x *through
the block* and with respect to y, hence the ratio that Zaeemzadeh et al. 2018 plot (out/in) and bound (in/out); the size
of what the block adds, ||y - x||/||x||; and the singular values of its convolutions and linear layers at the image
sizes that they met. The model is left as it was: its mode, gradients, buffers, hooks and the random number generators,
also if something fails on the way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from resid.errors import OptionError, ShapeError
from resid.theory._check import check_option
from resid.theory.conv_spectrum import conv_singular_values
from resid.theory.norms import DIRECTIONS

__all__ = ["Audit", "BlockAudit", "LayerAudit", "audit", "find_blocks"]

Chooser = type | tuple[type, ...] | str | Callable[[str, nn.Module], bool]
_NORMALISING = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class LayerAudit:
    """One convolution or linear layer. sigma_max, sigma_min: largest and smallest singular value, of min(inputs,
    outputs); for convolutions those of the circular map at size `n`.

    With circular padding n is the size of the input it met, and the values are exact. With zero padding n is larger by
    dilation (kernel - 1), so that nothing wraps, and sigma_max is an upper bound: see
    `resid.theory.conv_spectrum.zero_padding_bound`. The stride may make it a little larger.
    """

    name: str
    n: tuple[int, ...]
    sigma_max: float
    sigma_min: float


@dataclass(frozen=True)
class BlockAudit:
    """One call of one block.

    name: of the module; from the second call on with "#2" and so on. in_norm, out_norm: gradient norms at its input
    (through the block) and output, of the whole batch. stream: norm of the input. branch: norm of output minus input,
    NaN where the shapes differ. layers: its convolutions (`Conv2d`) and linear layers. normalised: whether it holds a
    normalisation, others: whether it holds weights outside of `layers`, or a convolution whose padding repeats pixels;
    either way the product of its layers' norms bounds nothing.
    """

    name: str
    in_norm: float
    out_norm: float
    stream: float
    branch: float
    layers: tuple[LayerAudit, ...]
    normalised: bool
    others: bool

    def ratio(self, direction: str) -> float:
        """||g_in||/||g_out|| for "in/out", the inverse for "out/in"; NaN where both are zero."""
        return _ratio(self.in_norm, self.out_norm, direction)

    @property
    def branch_to_stream(self) -> float:
        """||y - x||/||x||."""
        return self.branch / self.stream if self.stream else math.nan

    @property
    def sigma_max(self) -> float:
        """Largest singular value of any of its layers; NaN without layers, or where they were not asked for."""
        return max((layer.sigma_max for layer in self.layers), default=math.nan)

    @property
    def sigma_min(self) -> float:
        """Smallest singular value of any of its layers."""
        return min((layer.sigma_min for layer in self.layers), default=math.nan)

    @property
    def bound(self) -> float:
        """The product of its layers' largest singular values, which is the delta of Corollary 1 for a block that is the
        identity plus these layers with ReLUs between; NaN with a normalisation in it, which voids the corollary, or
        with weights of another kind, such as a gain or an attention."""
        if not self.layers or self.normalised or self.others:
            return math.nan
        return math.prod(layer.sigma_max for layer in self.layers)


@dataclass(frozen=True)
class Audit:
    """Every call of every block, in the order of the calls, and the direction in which ratios are shown."""

    blocks: tuple[BlockAudit, ...]
    direction: str
    loss: float

    @property
    def ratios(self) -> np.ndarray:
        """(calls,), in `direction`."""
        return np.array([block.ratio(self.direction) for block in self.blocks])

    @property
    def end_to_end(self) -> float:
        """Gradient norm at the input of the first block and at the output of the last, as a ratio in `direction`."""
        return _ratio(self.blocks[0].in_norm, self.blocks[-1].out_norm, self.direction)

    def table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Header and rows."""
        head = ["block", f"gradient {self.direction}", "branch/stream", "sigma min", "sigma max", "bound"]
        return head, [
            (b.name, b.ratio(self.direction), b.branch_to_stream, b.sigma_min, b.sigma_max, b.bound)
            for b in self.blocks
        ]  # fmt: skip

    def __str__(self) -> str:
        """The table as plain text."""
        head, rows = self.table()
        shown = [[row[0], *("-" if math.isnan(value) else f"{value:.4g}" for value in row[1:])] for row in rows]
        cells = [head, *shown]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([*lines, f"end to end {self.direction}: {self.end_to_end:.4g}, loss {self.loss:.4g}"])

    def figure(self) -> Figure:
        """Ratios and branch-to-stream norms against the blocks, from the input."""
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        place = np.arange(1, len(self.blocks) + 1)
        axes.axhline(1, color="0.6", linewidth=1)
        axes.plot(place, self.ratios, "o", label=f"gradient norm {self.direction}")
        axes.plot(place, [b.branch_to_stream for b in self.blocks], "s", label="branch/stream")
        axes.set(xlabel="block, from the input", ylabel="ratio", yscale="log")
        axes.legend()
        return figure


def audit(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    blocks: Chooser | None = None,
    *,
    direction: str = "out/in",
    sigma: bool = True,
) -> Audit:
    """Measure every block of a model on one batch, and leave the model as it was.

    The model is run once in the mode it is in: batch norm in train mode uses the batch, and its running averages are
    put back afterwards. Ratios are of the whole batch.

    Args:
        model: any module. inputs: its input, a tuple of inputs, or a dict of keyword arguments.
        loss: maps the model's output to a scalar.
        blocks: which submodules are blocks: a type or types, a pattern for qualified names ("layers.*"), or a function
            of name and module; default, see `find_blocks`. A block's first tensor argument and first tensor output
            count.
        direction: "out/in", as the paper plots, or "in/out", as it bounds. sigma: whether to decompose layers.

    Returns:
        the audit; print it, or use `table`, `figure`, `ratios`, `end_to_end`.

    Raises:
        OptionError: no module matches, a block was never called, or the loss does not depend on the blocks.
        ShapeError: the loss is no scalar. What the model itself raises passes through.

    Example:
        >>> triple = nn.utils.skip_init(nn.Linear, 4, 4, bias=False)
        >>> _ = nn.init.eye_(triple.weight).data.mul_(3)
        >>> audit(nn.Sequential(triple), torch.ones(2, 4), torch.sum, nn.Linear, direction="in/out").ratios
        array([3.])
    """
    check_option("direction", direction, DIRECTIONS)
    chosen = find_blocks(model, blocks)
    # the hooks stay for the backward pass, for models that compute parts of the forward pass anew there
    with _left_as_it_was(model), torch.enable_grad(), _watching(chosen) as record, _sizes(chosen) as sizes:
        output = model(**inputs) if isinstance(inputs, dict) else model(*_as_tuple(inputs))
        calls = list(record)
        if not calls:
            raise OptionError(f"none of the {len(chosen)} blocks was called, the first is {chosen[0][0]!r}")
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ShapeError(f"loss returned {_shape(value)}: a tensor with one number is needed")
        gradients = _gradients(value, [tensor for call in calls for tensor in (call.x, call.y)])
    layers = {name: _layers(name, module, sizes) if sigma else () for name, module in chosen}
    measured = []
    for i, call in enumerate(calls):
        x, y = call.x.detach(), call.y.detach()
        branch = _norm(y - x) if x.shape == y.shape else math.nan
        parts = list(call.module.modules())
        normalised = any(isinstance(m, _NORMALISING) for m in parts)
        others = any(_owns_weights(m) for m in parts if not isinstance(m, (nn.Conv2d, nn.Linear)))
        others |= any(_repeats_pixels(m, sizes[m]) for m in parts if isinstance(m, nn.Conv2d) and m in sizes)
        into, out = (_norm(g) for g in gradients[2 * i : 2 * i + 2])
        name = call.name if call.count == 1 else f"{call.name}#{call.count}"
        measured.append(BlockAudit(name, into, out, _norm(x), branch, layers[call.name], normalised, others))
    return Audit(tuple(measured), direction, float(value.detach()))


def find_blocks(model: nn.Module, blocks: Chooser | None = None) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks of a model; blocks inside of blocks are left out.

    Args:
        model: any module.
        blocks: a type or types, a pattern as in `fnmatch` for qualified names, or a function of name and module.
            Default: modules whose class name contains "Block" or "Bottleneck".

    Raises:
        OptionError: nothing matches; the message lists the classes there are.

    Example:
        >>> [name for name, _ in find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "0")]
        ['0']
    """
    if blocks is None:
        matches: Callable[[str, nn.Module], bool] = lambda name, m: any(  # noqa: E731
            word in type(m).__name__.lower() for word in ("block", "bottleneck")
        )
    elif isinstance(blocks, str):
        matches = lambda name, m: fnmatchcase(name, blocks)  # noqa: E731
    elif isinstance(blocks, (type, tuple)):
        matches = lambda name, m: isinstance(m, blocks)  # noqa: E731
    elif callable(blocks):
        matches = blocks
    else:
        raise OptionError(f"blocks = {blocks!r}: a type, a pattern of names or a function is needed")
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if name and not inside and matches(name, module):
            found.append((name, module))
    if not found:
        classes = sorted({type(module).__name__ for module in model.modules()})
        raise OptionError(f"blocks = {blocks!r} matches no submodule; the model has {', '.join(classes)}")
    return found


@dataclass
class _Call:
    name: str
    module: nn.Module
    count: int
    x: Tensor
    y: Tensor


@contextlib.contextmanager
def _watching(chosen: Sequence[tuple[str, nn.Module]]) -> Iterator[list[_Call]]:
    """Hooks that keep the input and the output of every call.

    What is kept is a copy, and the block, or what comes after it, gets a copy of that: an operation in place on either
    side does not change it, and the gradient of the copy is the gradient through the block alone.
    """
    calls: list[_Call] = []
    waiting: dict[nn.Module, list[Tensor]] = {module: [] for _, module in chosen}
    counts = {module: 0 for _, module in chosen}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, args, kwargs = _swap(args, kwargs)
        waiting[module].append(kept)
        return args, kwargs

    def after(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            kept, (output,), _ = _swap((output,), {})
            counts[module] += 1
            calls.append(_Call(name, module, counts[module], waiting[module].pop(), kept))
            return output

        return hook

    handles = []
    try:
        for name, module in chosen:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _swap(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Copy the first floating-point tensor, put a copy of the copy in its place; tuples and lists are looked into."""
    kept: list[Tensor] = []

    def visit(value: Any) -> Any:
        if kept:
            return value
        if isinstance(value, Tensor) and value.is_floating_point():
            copy = value.clone()
            kept.append(copy if copy.requires_grad else copy.requires_grad_())
            return kept[0].clone()
        if type(value) in (tuple, list):
            return type(value)(visit(v) for v in value)
        return value

    args = tuple(visit(value) for value in args)
    kwargs = {name: visit(value) for name, value in kwargs.items()}
    if not kept:
        raise OptionError(
            "a block was called with, or returned, no floating-point tensor: nothing has a gradient there"
        )
    return kept[0], args, kwargs


@contextlib.contextmanager
def _sizes(chosen: Sequence[tuple[str, nn.Module]]) -> Iterator[dict[nn.Module, tuple[int, ...]]]:
    """The spatial size of the input that each convolution of the blocks meets at its first call."""
    found: dict[nn.Module, tuple[int, ...]] = {}

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.setdefault(module, tuple(args[0].shape[-2:]))

    handles = []
    try:
        for _, block in chosen:
            handles += [m.register_forward_pre_hook(hook) for m in block.modules() if isinstance(m, nn.Conv2d)]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers(name: str, block: nn.Module, sizes: dict[nn.Module, tuple[int, ...]]) -> tuple[LayerAudit, ...]:
    """The convolutions of a block that were called, and its linear layers."""
    found = []
    for inner, module in block.named_modules():
        full = f"{name}.{inner}" if inner else name
        if isinstance(module, nn.Conv2d) and module in sizes:
            size = tuple(
                # with zeros around it room so that nothing wraps; and a multiple of the stride, as the spectrum needs
                -(-(n + margin if module.padding_mode == "zeros" else max(n, margin + 1)) // s) * s
                for n, margin, s in zip(sizes[module], _margins(module), module.stride, strict=True)
            )
            values = conv_singular_values(
                module.weight.detach().double(), size, module.stride, groups=module.groups, dilation=module.dilation
            )
        elif isinstance(module, nn.Linear):
            size, values = (), torch.linalg.svdvals(module.weight.detach().double().cpu())
        else:
            continue
        found.append(LayerAudit(full, size, float(values[0]), float(values[-1])))
    return tuple(found)


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back modes, buffers, gradients and the states of the random number generators."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        raise OptionError("the loss does not depend on any block: it has no gradient")
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise OptionError("the loss does not depend on any block: all gradients are missing")
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]


def _margins(conv: nn.Conv2d) -> list[int]:
    """Height and width of the kernel, less one, with its dilation."""
    return [(k - 1) * dilation for k, dilation in zip(conv.kernel_size, conv.dilation, strict=True)]


def _repeats_pixels(conv: nn.Conv2d, size: tuple[int, ...]) -> bool:
    """Whether the padding repeats pixels, other than as a circular map does, so that the spectrum bounds nothing."""
    if conv.padding_mode == "zeros" or max(_margins(conv)) == 0:
        return False
    whole = all(n % s == 0 for n, s in zip(size, conv.stride, strict=True))
    same = isinstance(conv.padding, str) or all(2 * p <= m for p, m in zip(conv.padding, _margins(conv), strict=True))
    return conv.padding_mode != "circular" or not (whole and same)


def _owns_weights(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, not in its children."""
    return any(True for _ in module.parameters(recurse=False))


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().double()))


def _ratio(into: float, out: float, direction: str) -> float:
    check_option("direction", direction, DIRECTIONS)
    top, bottom = (into, out) if direction == "in/out" else (out, into)
    return top / bottom if bottom else (math.inf if top else math.nan)


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
