"""The constructed networks of `resid.theory.memorize` as ordinary modules, to be saved, moved and trained further."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resid.theory.memorize import Memorizer

__all__ = ["MemorizerNet", "export_memorizer"]


class _Block(nn.Module):
    """h + V ReLU(U h + s)."""

    def __init__(self, U: Tensor, s: Tensor, V: Tensor) -> None:
        super().__init__()
        self.inner, self.outer = _linear(U, s), _linear(V, None)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(torch.relu(self.inner(h)))


class MemorizerNet(nn.Module):
    """The network x (n, d) or (n, ...) -> (n, r): a linear layer, residual blocks, and a last block.

    Args:
        memorizer: a constructed network.
    """

    def __init__(self, memorizer: Memorizer) -> None:
        super().__init__()
        m = memorizer
        self.first = _linear(m.first, m.shift)
        self.blocks = nn.Sequential(*(_Block(U, s, V) for U, s, V in zip(m.U, m.s, m.V, strict=True)))
        self.last_in, self.last_out = _linear(m.last_in, m.last_bias), _linear(m.last_out, None)
        self.skip = m.skip

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, r) in the precision of the weights."""
        h = self.blocks(self.first(x.flatten(1).to(self.first.weight.dtype)))
        out = self.last_out(torch.relu(self.last_in(h)))
        if self.skip:
            common = min(h.shape[1], out.shape[1])
            out = out + torch.nn.functional.pad(h[:, :common], (0, out.shape[1] - common))
        return out


def export_memorizer(memorizer: Memorizer) -> MemorizerNet:
    """Copy the weights of a constructed network into a module, in its precision and on its device.

    Args:
        memorizer: a constructed network.

    Example:
        >>> from resid.theory.memorize import construct_memorizer
        >>> net = export_memorizer(construct_memorizer([[0.0], [1.0], [2.0]], [0, 1, 0], width=2))
        >>> net(torch.tensor([[1.0]])).argmax().item()
        1
    """
    return MemorizerNet(memorizer)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
