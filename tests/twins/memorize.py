"""Slow, obviously right versions of the constructions through finite samples: loops over points and neurons."""

from __future__ import annotations


def dot(a, b):
    """Inner product of two lists."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def block_twin(U, s, V, h):
    """V ReLU(U h + s), neuron by neuron."""
    active = [max(0.0, dot(row, h) + bias) for row, bias in zip(U, s, strict=True)]
    return [dot(row, active) for row in V]


def output_twin(net, x):
    """The whole network on one point, in Python floats."""
    h = [dot(row, x) + b for row, b in zip(net.first.tolist(), net.shift.tolist(), strict=True)]
    for U, s, V in zip(net.U.tolist(), net.s.tolist(), net.V.tolist(), strict=True):
        h = [a + b for a, b in zip(h, block_twin(U, s, V, h), strict=True)]
    out = block_twin(net.last_in.tolist(), net.last_bias.tolist(), net.last_out.tolist(), h)
    if net.skip:
        out = [value + (h[i] if i < len(h) else 0.0) for i, value in enumerate(out)]
    return out


def competitors_twin(z, q, later):
    """Largest inner product of each point with the others (or the later ones) and with the surrogate labels."""
    found = []
    for i, own in enumerate(z):
        others = [w for j, w in enumerate(z) if (j > i if later else j != i)] + list(q)
        found.append(max((dot(own, w) for w in others), default=float("-inf")))
    return found


def separation_twin(X):
    """Least squared distance of two points."""
    pairs = [(i, j) for j in range(len(X)) for i in range(j)]
    return min((sum((a - b) ** 2 for a, b in zip(X[i], X[j], strict=True)), i, j) for i, j in pairs)
