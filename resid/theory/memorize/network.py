"""The residual network x -> one-hot label that `construct_memorizer` makes, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from resid._ambient import isolated
from resid._arguments import ArrayLike
from resid.errors import ShapeError
from resid.theory.memorize._blocks import affine, as_labels, as_points

#: Points evaluated at a time: the hidden vectors of a chunk stay in a core's cache.
_POINTS = 1 << 13


@dataclass(frozen=True)
class Memorizer:
    """A residual network x -> one-hot label; callable on (n, d), returns (n, r).

    Attributes:
        first: A_0, (k, d).
        shift: (k,), added to A_0 x.
        U: (blocks, k, k), of the blocks h + V ReLU(U h + s).
        s: (blocks, k).
        V: (blocks, k, k).
        last_in: (p, k), of the last block, with p = r neurons ("paper") or 2r ("clipped").
        last_bias: (p,).
        last_out: (r, p).
        skip: whether the last block adds the hidden vector, cut or padded with zeros to r entries.
        mode: how it was constructed.
        gap: the least relative gap between a point and what its neuron must ignore.
    """

    first: Tensor
    shift: Tensor
    U: Tensor
    s: Tensor
    V: Tensor
    last_in: Tensor
    last_bias: Tensor
    last_out: Tensor
    skip: bool
    mode: str
    gap: float

    @property
    def width(self) -> int:
        """Dimension k of the hidden vectors."""
        return len(self.first)

    @property
    def classes(self) -> int:
        """Number r of classes."""
        return len(self.last_out)

    @property
    def depth(self) -> int:
        """Number of residual blocks, the last one included."""
        return len(self.U) + 1

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of "first", "shift" (0 where it is not used), "blocks" and "last"."""
        shift = self.shift.numel() if bool((self.shift != 0).any()) else 0
        blocks = self.U.numel() + self.s.numel() + self.V.numel()
        last = self.last_in.numel() + self.last_bias.numel() + self.last_out.numel()
        return {"first": self.first.numel(), "shift": shift, "blocks": blocks, "last": last}

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        return sum(self.parameter_counts.values())

    @isolated
    def __call__(self, X: ArrayLike) -> Tensor:
        """Compute outputs (n, r) for points (n, d) or (n, ...), in the network's precision; no gradients are kept.

        Raises:
            ShapeError: points of another dimension.
            NotFiniteError: `X` holds NaN or infinity.
        """
        X = self._points(X)
        outputs = self.first.new_empty(len(X), self.classes)
        for start in range(0, len(X), _POINTS):
            rows = slice(start, start + _POINTS)
            h = affine(X[rows], self.first, self.shift)
            for U, s, V in zip(self.U, self.s, self.V, strict=True):
                h.addmm_(torch.addmm(s, h, U.mT).relu_(), V.mT)
            out = torch.addmm(self.last_bias, h, self.last_in.mT).relu_() @ self.last_out.mT
            if self.skip:
                common = min(self.width, self.classes)
                out[:, :common] += h[:, :common]
            outputs[rows] = out
        return outputs

    @isolated
    def predict(self, X: ArrayLike) -> Tensor:
        """Return class numbers (n,) for points (n, d): the largest output."""
        return self(X).argmax(1)

    @isolated
    def hidden(self, X: ArrayLike) -> Tensor:
        """Return hidden vectors (blocks + 1, n, k) before the first block and after each; meant for small samples."""
        h = affine(self._points(X), self.first, self.shift)
        vectors = [h]
        for U, s, V in zip(self.U, self.s, self.V, strict=True):
            h = torch.addmm(h, torch.addmm(s, h, U.mT).relu_(), V.mT)
            vectors.append(h)
        return torch.stack(vectors)

    @isolated
    def error(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the largest entry of output minus one-hot label, for points (n, d) and class numbers (n,).

        Raises:
            ShapeError: points of another dimension, or labels that are no class numbers.
            NotFiniteError: `X` or `y` holds NaN or infinity.
        """
        X = self._points(X)
        y, _ = as_labels("y", y, len(X), self.classes)
        return float(self(X).scatter_add_(1, y.to(X.device)[:, None], -self.first.new_ones(len(X), 1)).abs().max())

    def to(self, *args: Any, **kwargs: Any) -> Memorizer:
        """Convert the network to another precision or device, with the arguments of `torch.Tensor.to`."""
        moved = {
            f.name: getattr(self, f.name).to(*args, **kwargs)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def _points(self, X: ArrayLike) -> Tensor:
        X = as_points("X", X)
        if X.shape[1] != self.first.shape[1]:
            raise ShapeError(f"X has {X.shape[1]} numbers a point: the network was made for {self.first.shape[1]}")
        return X.to(self.first.device)
