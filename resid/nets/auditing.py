"""How the blocks of any network treat the norm of a gradient: an audit of a `torch.nn.Module` by hooks.

For every call of a block with input x and output y the audit has the gradient of the loss with respect to x *through
the block* and with respect to y, hence the ratio that Zaeemzadeh et al. 2018 plot (out/in) and bound (in/out); the size
of what the block adds, ||y - x||/||x||; and the singular values of its convolutions and linear layers at the image
sizes that they met. The model is left as it was: its mode, gradients, buffers, hooks and the random number generators
of torch, NumPy and Python, also if something fails on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid._ambient import uncompiled
from resid._arguments import check_option
from resid.errors import OptionError, ShapeError
from resid.nets._audit_state import left_as_it_was
from resid.nets._audit_watch import Call, Chain, differentiable, gradients_of, watching
from resid.nets.blocks import Chooser, find_blocks, quotient
from resid.theory.conv_spectrum.spectrum import conv_singular_values
from resid.theory.norms import DIRECTIONS

__all__ = ["Audit", "BlockAudit", "LayerAudit", "audit", "find_blocks"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerAudit:
    """The largest and smallest singular value of one convolution or linear layer.

    With circular padding n is the size of the input it met, and the values are exact. With zero padding n is larger by
    dilation (kernel - 1), so that nothing wraps, and sigma_max is an upper bound, that of
    `resid.theory.conv_spectrum.zero_padding_bound`. The stride may make it a little larger.

    Attributes:
        name: of the module.
        n: of a convolution, the size at which its circular map was decomposed.
        sigma_max: largest singular value.
        sigma_min: smallest singular value, of min(inputs, outputs).
    """

    name: str
    n: tuple[int, ...]
    sigma_max: float
    sigma_min: float


@dataclass(frozen=True)
class BlockAudit:
    """One call of one block.

    Attributes:
        name: of the module; from the second call on with "#2" and so on.
        in_norm: gradient norm at its input (through the block), of the whole batch.
        out_norm: gradient norm at its first output.
        stream: norm of the input.
        branch: norm of output minus input, NaN where the shapes differ.
        layers: its convolutions (`Conv2d`) and linear layers.
        bound: delta with ``|in/out - 1| <= delta``, or NaN; `audit` says for which blocks there is one.
        outputs: through how many outputs the gradient came back; where these are several, their ratio is NaN, since
            in_norm is the norm of all that came back, out_norm of one part of what went in.
        rounding: the size of a branch below which rounding of the output would tell, 4 eps of the output's norm.
    """

    name: str
    in_norm: float
    out_norm: float
    stream: float
    branch: float
    layers: tuple[LayerAudit, ...]
    bound: float
    outputs: int = 1
    rounding: float = 0.0

    def ratio(self, direction: str) -> float:
        """Return ||g_in||/||g_out|| for "in/out", the inverse for "out/in"; NaN for 0/0 and for several outputs."""
        ratio = _ratio(self.in_norm, self.out_norm, direction)
        return ratio if self.outputs == 1 else math.nan

    @property
    def branch_to_stream(self) -> float:
        """||y - x||/||x||; NaN where outputs are several, or where the branch is below the rounding of y."""
        known = self.stream > 0 and self.outputs == 1 and self.branch >= self.rounding
        return self.branch / self.stream if known else math.nan

    @property
    def sigma_max(self) -> float:
        """Largest singular value of any of its layers; NaN without layers, or where they were not asked for."""
        return max((layer.sigma_max for layer in self.layers), default=math.nan)

    @property
    def sigma_min(self) -> float:
        """Smallest singular value of any of its layers."""
        return min((layer.sigma_min for layer in self.layers), default=math.nan)


@dataclass(frozen=True)
class Audit:
    """Every call of every block, in the order of the calls.

    Attributes:
        blocks: the calls.
        direction: in which ratios are shown, "in/out" or "out/in".
        loss: its value.
        uncalled: names of the blocks that the model did not call.
    """

    blocks: tuple[BlockAudit, ...]
    direction: str
    loss: float
    uncalled: tuple[str, ...] = ()

    @property
    def ratios(self) -> np.ndarray:
        """Gradient ratios in `direction`, (calls,)."""
        return np.array([block.ratio(self.direction) for block in self.blocks])

    @property
    def end_to_end(self) -> float:
        """Ratio of gradient norms at the input of the first and the output of the last block; NaN if it has several."""
        if self.blocks[-1].outputs > 1:
            return math.nan
        return _ratio(self.blocks[0].in_norm, self.blocks[-1].out_norm, self.direction)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the numbers that are missing, zero or infinite in the table, and why."""
        return tuple(_notes(self))

    def table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return header and rows; a block with several outputs is marked by a star."""
        head = ["block", f"gradient {self.direction}", "branch/stream", "sigma min", "sigma max", "bound"]
        return head, [
            (name, b.ratio(self.direction), b.branch_to_stream, b.sigma_min, b.sigma_max, b.bound)
            for b in self.blocks
            for name in [f"{b.name} *" if b.outputs > 1 else b.name]
        ]

    def __str__(self) -> str:
        """The table as plain text, with `notes` below."""
        head, rows = self.table()
        shown = [[row[0], *("-" if math.isnan(value) else f"{value:.4g}" for value in row[1:])] for row in rows]
        cells = [head, *shown]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        last = f"end to end {self.direction}: {self.end_to_end:.4g}, loss {self.loss:.4g}"
        return "\n".join([*lines, last, *self.notes])

    def figure(self) -> Figure:
        """Draw ratios and branch-to-stream norms against the blocks, from the input."""
        from matplotlib.figure import Figure  # only to draw: it takes a third of a second to import

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
    put back afterwards. What `torch.compile` has compiled is run as it is written. Ratios are of the whole batch.

    The bound of a block is a delta with ``|in/out - 1| <= delta`` for every gradient: Corollary 1, the product of the
    largest singular values of its layers and of the largest slopes of its nonlinearities. It is given for a block
    x + W_m rho(.. W_1 x) or x + W_m rho(.. W_1 rho(x)) of `Conv2d` and `Linear` layers, each called once, and known
    nonlinearities: ReLU and leaky ReLU, ReLU6, Hardtanh, Hardswish, ELU, CELU, SELU, GELU (exact), SiLU, Softplus, tanh
    and sigmoid. That a block has this form is read off the operations that autograd recorded, so functions count like
    modules. Every other block has none: one with a normalisation, an attention, a gate, dropout in train mode, a gain,
    a second branch, two sums, a convolution that pads by reflecting or repeating pixels.

    Args:
        model: any module.
        inputs: its input, a tuple of inputs, or a dict of keyword arguments.
        loss: maps the model's output to a scalar.
        blocks: which submodules are blocks: a type or types, a pattern for qualified names ("layers.*"), or a function
            of name and module; default those that `find_blocks` finds. A block's first tensor argument and first tensor
            output count. Other outputs that depend on this argument and have a gradient make its ratio NaN.
        direction: "out/in", which the paper plots, or "in/out", which it bounds.
        sigma: whether to decompose layers.

    Returns:
        The audit; print it, or use `table`, `notes`, `figure`, `ratios`, `end_to_end`.

    Raises:
        OptionError: no module matches, no block was called, or the loss does not depend on the blocks.
        ShapeError: the loss is no scalar.
        Exception: what the model itself raises passes through.

    Example:
        >>> triple = nn.utils.skip_init(nn.Linear, 4, 4, bias=False)
        >>> _ = nn.init.eye_(triple.weight).data.mul_(3)
        >>> audit(nn.Sequential(triple), torch.ones(2, 4), torch.sum, nn.Linear, direction="in/out").ratios
        array([3.])
    """
    check_option("direction", direction, DIRECTIONS)
    chosen = find_blocks(model, blocks)
    # the hooks stay for the backward pass, for models that compute parts of the forward pass anew there
    with (
        left_as_it_was(model),
        uncompiled(),
        torch.inference_mode(False),
        torch.enable_grad(),
        watching(chosen) as watch,
    ):
        batch = differentiable(inputs)
        output = model(**batch) if isinstance(batch, dict) else model(*_as_tuple(batch))
        calls = list(watch.calls)
        if not calls:
            raise OptionError(f"none of the {len(chosen)} blocks was called, the first is {chosen[0][0]!r}")
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ShapeError(f"loss returned {_shape(value)}: a tensor with one number is needed")
        gradients = gradients_of(value, calls)
        called = {call.name for call in calls}
        layers = {
            name: _layers(name, module, watch.sizes) if sigma else {} for name, module in chosen if name in called
        }
    measured = [
        _measured(call, layers[call.name], watch.sizes, *gradient)
        for call, gradient in zip(calls, gradients, strict=True)
    ]
    uncalled = tuple(name for name, _ in chosen if name not in called)
    return Audit(tuple(measured), direction, float(value.detach()), uncalled)


def _measured(
    call: Call,
    layers: dict[nn.Module, LayerAudit],
    sizes: dict[nn.Module, tuple[int, ...]],
    into: Tensor,
    out: Tensor,
    outputs: int,
) -> BlockAudit:
    """The numbers of one call; into, out: gradients at its input and its first output."""
    x, y = call.x.detach(), call.y.detach()
    name = call.name if call.count == 1 else f"{call.name}#{call.count}"
    return BlockAudit(
        name=name,
        in_norm=_norm(into),
        out_norm=_norm(out),
        stream=_norm(x),
        branch=_norm(y.double() - x.double()) if x.shape == y.shape else math.nan,
        layers=tuple(layers.values()),
        bound=_bound(call.chain, layers, sizes),
        outputs=outputs,
        rounding=4 * max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps) * _norm(y),
    )


def _bound(chain: Chain | None, layers: dict[nn.Module, LayerAudit], sizes: dict[nn.Module, tuple[int, ...]]) -> float:
    """The product of a chain's slopes and norms; NaN where a norm is not known at the size that the layer met."""
    if chain is None or not layers:
        return math.nan
    for layer, size in chain.layers:
        if isinstance(layer, nn.Conv2d) and (size != sizes[layer] or _repeats_pixels(layer, size)):
            return math.nan
    return math.prod((layers[layer].sigma_max for layer, _ in chain.layers), start=chain.slopes)


def _notes(report: Audit) -> Iterable[str]:
    """What cannot be read off the numbers of an audit."""
    blocks = report.blocks
    several = [b.name for b in blocks if b.outputs > 1]
    if several:
        yield f"* Gradients came back through more than one output, which leaves no ratio: {_listed(several)}."
    bad = [b.name for b in blocks if not math.isfinite(b.in_norm + b.out_norm)]
    none = [b.name for b in blocks if b.in_norm == b.out_norm == 0]
    lost = [b.name for b in blocks if b.in_norm == 0 < b.out_norm]
    if bad:
        yield f"Gradients are infinite or no numbers: {_listed(bad)}."
    if len(none) == len(blocks):
        yield "All gradients are zero: a small change of the blocks does not change the loss, so there are no ratios."
    elif none:
        yield f"The gradient is zero on both sides, which leaves no ratio: {_listed(none)}."
    if lost:
        yield f"The gradient ends here, at the input it is zero: {_listed(lost)}."
    if len(none) < len(blocks) and not 0 < report.end_to_end < math.inf:
        first, last = blocks[0], blocks[-1]
        reasons = [
            (last.outputs > 1, f"the last block, {last.name}, has several outputs"),
            (bool(bad), "gradients are infinite or no numbers"),
            (first.in_norm == 0, f"no gradient reaches the input of the first block, {first.name}"),
            (last.out_norm == 0, f"no gradient enters at the output of the last block, {last.name}"),
        ]
        yield f"End to end {report.end_to_end:g}: " + " and ".join(text for so, text in reasons if so) + "."
    small = [b.name for b in blocks if b.outputs == 1 and b.branch < b.rounding]
    if small:
        yield f"The branch is zero or below the rounding of the output: {_listed(small)}."
    if report.uncalled:
        yield f"Not called: {_listed(report.uncalled)}."


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _layers(name: str, block: nn.Module, sizes: dict[nn.Module, tuple[int, ...]]) -> dict[nn.Module, LayerAudit]:
    """The convolutions of a block that were called, and its linear layers."""
    layers: dict[nn.Module, LayerAudit] = {}
    for inner, module in block.named_modules():
        if not isinstance(module, nn.Linear) and not (isinstance(module, nn.Conv2d) and module in sizes):
            continue
        if parametrize.is_parametrized(module, "weight"):
            # a parametrization that steps in train mode, as a spectral norm does, has made its step already
            module.parametrizations.eval()  # type: ignore[union-attr]
        weight = module.weight.detach().double()
        if isinstance(module, nn.Conv2d):
            size = tuple(
                # with zeros around it room so that nothing wraps; and a multiple of the stride, as the spectrum needs
                -(-(n + margin if module.padding_mode == "zeros" else max(n, margin + 1)) // s) * s
                for n, margin, s in zip(sizes[module], _margins(module), module.stride, strict=True)
            )
            values = conv_singular_values(weight, size, module.stride, groups=module.groups, dilation=module.dilation)
        else:
            size, values = (), torch.linalg.svdvals(weight.cpu())
        layers[module] = LayerAudit(f"{name}.{inner}" if inner else name, size, float(values[0]), float(values[-1]))
    return layers


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


def _norm(tensor: Tensor) -> float:
    """In float64, scaled by the largest entry, so that no square over- or underflows."""
    flat = tensor.detach().double().flatten()
    size = float(flat.abs().max()) if len(flat) else 0.0
    return size * float(torch.linalg.vector_norm(flat / size)) if 0 < size < math.inf else size


def _ratio(into: float, out: float, direction: str) -> float:
    check_option("direction", direction, DIRECTIONS)
    return quotient(into, out) if direction == "in/out" else quotient(out, into)


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
