"""The norm-preserving projection as a drop-in for `torch.nn.Conv2d`: in place after an optimiser step, or as a
parametrization that is always on. Mixed precision (`torch.autocast`) may be on around either.

Both project for circular padding, whatever the layer does at its border (Zaeemzadeh et al. 2018 do the same). Weights
in half precision are projected in float32 and cast back, so that their singular values are s to the precision of their
type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from resid._ambient import isolated
from resid._arguments import IntPair, as_pair, as_size
from resid.errors import OptionError
from resid.nets._modes import evaluating
from resid.theory.procrustes.projection import ProjectionReport, project_norm_preserving, projection_report
from resid.theory.procrustes.released import released_projection

__all__ = ["NormPreserving", "ProcrustesProjection", "input_sizes", "norm_preserving"]

_HALF = (torch.float16, torch.bfloat16)


def _full(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype in _HALF else weight


class NormPreserving(nn.Module):
    """Parametrization of a Conv2d weight by a norm-preserving kernel near it; gradients pass through the projection.

    Args:
        conv: the layer, whose stride, groups and dilation count.
        n: size of its input, integer or pair.
        relu: whether a ReLU follows, for the scale.
        repeats: how often to project and crop.
        method: of `resid.theory.procrustes.polar_factor`.
    """

    def __init__(self, conv: nn.Conv2d, n: IntPair, relu: bool = False, repeats: int = 1, method: str = "auto") -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "n": as_pair("n", n),
            "relu": relu,
            "repeats": repeats,
            "method": method,
            **_geometry(conv),
        }

    @isolated
    def forward(self, weight: Tensor) -> Tensor:
        """Project the kernel."""
        return project_norm_preserving(_full(weight), **self.options).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return a kernel whose projection is the nearest one to `weight`: itself."""
        return weight


def norm_preserving(
    conv: nn.Conv2d, n: IntPair, relu: bool = False, repeats: int = 1, method: str = "auto"
) -> nn.Conv2d:
    """Register `NormPreserving` on the weight of a layer, and return the layer.

    `torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")` takes it off again.

    Args:
        conv: the layer.
        n: size of its input, integer or pair.
        relu: whether a ReLU follows, for the scale.
        repeats: how often to project and crop.
        method: of `resid.theory.procrustes.polar_factor`.

    Raises:
        OptionError: not a `torch.nn.Conv2d`.
        SizeError: `n` or `repeats` is no integer >= 1, or `n` is too small.
        ShapeError: a weight that cannot be projected.

    Example:
        >>> layer = norm_preserving(torch.nn.Conv2d(4, 8, 1, bias=False), n=8)
        >>> W = layer.weight[:, :, 0, 0]
        >>> bool(torch.allclose(W.T @ W, 2 * torch.eye(4), atol=1e-5))
        True
    """
    parametrize.register_parametrization(conv, "weight", NormPreserving(conv, n, relu, repeats, method))
    return conv


class ProcrustesProjection:
    """Algorithm 1: project the weights of some layers in place, after a step of the optimiser.

    It needs no state but its count of steps: a kernel that was projected before and moved a little since is near an
    isometry, which the projection notices and answers at a fraction of the cost. The optimiser's own state, momentum
    for instance, is left alone.

    Args:
        layers: (conv, n) or (conv, n, relu) for each layer, n the size of its input, which `input_sizes` measures.
        every: project after every so many steps.
        probability: instead, toss a coin after each step, as the released code does with 1/2; the same coin for all
            layers.
        repeats: how often to project and crop.
        method: of `resid.theory.procrustes.polar_factor`.
        seed: of the coin.
        released: instead of Algorithm 1, run `resid.theory.procrustes.released_projection` at the size of the layer's
            output, slip and all: to compare with.

    Raises:
        OptionError: no layer, something else than a `torch.nn.Conv2d`, a layer with a parametrized weight, groups or
            dilation that the released code does not know, or a probability outside (0, 1].
        SizeError: `n`, `every` or `repeats` is no integer >= 1.

    Example:
        >>> layer = torch.nn.Conv2d(3, 6, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> projection = ProcrustesProjection([(layer, 8)])
        >>> handle = projection.attach(optimizer)
        >>> layer(torch.ones(1, 3, 8, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> round(projection.reports()[0].sigma_max, 5)
        1.0
    """

    def __init__(
        self,
        layers: Iterable[tuple[Any, ...]],
        every: int = 1,
        probability: float | None = None,
        repeats: int = 1,
        method: str = "auto",
        seed: int = 0,
        released: bool = False,
    ) -> None:
        self.layers = [(layer[0], as_pair("n", layer[1]), bool(layer[2:] and layer[2])) for layer in layers]
        if not self.layers:
            raise OptionError("layers is empty: at least one (conv, n) is needed")
        for conv, _, _ in self.layers:
            geometry = _geometry(conv)
            if released and (geometry["groups"] != 1 or geometry["dilation"] != (1, 1)):
                raise OptionError("released = True: groups and dilation 1 are needed, as the released code has them")
            if parametrize.is_parametrized(conv, "weight"):
                raise OptionError("layers: a weight is parametrized already, and cannot be changed in place")
        if probability is not None and not 0 < probability <= 1:
            raise OptionError(f"probability = {probability!r}: more than 0 and at most 1 is needed")
        self.every, self.probability = as_size("every", every), probability
        self.repeats, self.method, self.released = as_size("repeats", repeats), method, released
        self.steps = 0
        self._coin = torch.Generator("cpu").manual_seed(seed)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `step` after every step of the optimiser; the handle's `remove()` ends it."""

        def after(*_: Any) -> None:
            self.step()

        return optimizer.register_step_post_hook(after)

    @isolated
    def step(self) -> bool:
        """Count a step of the optimiser, project if it is time, and say whether it was."""
        self.steps += 1
        if self.probability is not None:
            due = float(torch.rand((), generator=self._coin)) < self.probability
        else:
            due = self.steps % self.every == 0
        if due:
            self.project()
        return due

    @isolated(grad=False)
    def project(self) -> None:
        """Project all layers now."""
        for conv, n, relu in self.layers:
            weight = _full(conv.weight)
            if self.released:
                kernel = released_projection(weight, -(-n[0] // conv.stride[0]))
            else:
                kernel = project_norm_preserving(weight, n, relu, self.repeats, self.method, **_geometry(conv))
            conv.weight.copy_(kernel)

    @isolated
    def reports(self) -> list[ProjectionReport]:
        """Measure the singular values of each layer over s, as if padded circularly, and the energy it has lost."""
        return [
            projection_report(_full(conv.weight.detach()), n, relu, **_geometry(conv)) for conv, n, relu in self.layers
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps and the coin, for a checkpoint."""
        return {"steps": self.steps, "coin": self._coin.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state that `state_dict` has returned."""
        self.steps = state["steps"]
        self._coin.set_state(state["coin"])


def input_sizes(model: nn.Module, *inputs: Any) -> dict[str, tuple[int, int]]:
    """Measure (height, width) of the input of every Conv2d of a model, by name, in one forward pass.

    The pass is made in evaluation mode and without gradients. A layer that is called several times keeps its last size;
    one that is not called is left out.

    Args:
        model: any network.
        *inputs: its inputs.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3))
        >>> input_sizes(model, torch.zeros(1, 1, 8, 8))
        {'0': (8, 8), '2': (6, 6)}
    """
    sizes: dict[str, tuple[int, int]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            sizes[name] = (args[0].shape[-2], args[0].shape[-1])

        return hook

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in model.named_modules() if _is_conv(m)]
    try:
        with evaluating(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _geometry(conv: nn.Module) -> dict[str, Any]:
    """Stride, groups and dilation of a Conv2d."""
    if not isinstance(conv, nn.Conv2d):
        raise OptionError(f"a layer of type {type(conv).__name__}: torch.nn.Conv2d is needed")
    return {"stride": conv.stride, "groups": conv.groups, "dilation": conv.dilation}
