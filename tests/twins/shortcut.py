"""Twins of `resid.theory.shortcut`: one sample after another, one unit after another, derivatives by autograd."""

import torch

SIGMA = {
    "linear": lambda z: z,
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "tanh": lambda z: 2 * torch.sigmoid(2 * z) - 1,
    "silu": lambda z: z * (1 + torch.tanh(z / 2)) / 2,
}


def output_twin(W, x, activation="linear", position="mid", shortcut=True):
    """Definition 2 of Li et al. for one sample x (d,)."""
    pre, mid, post = (SIGMA[activation if position == place else "linear"] for place in ("pre", "mid", "post"))
    h = x
    for unit in W:
        v = unit[0] @ pre(h)
        for matrix in unit[1:]:
            v = matrix @ mid(v)
        v = post(v)
        h = h + v if shortcut else v
    return h


def loss_twin(W, X, Y, *kind):
    """(1/2m) sum ||y_hat - y||^2."""
    total = torch.zeros((), dtype=X.dtype)
    for x, y in zip(X, Y, strict=True):
        total = total + ((output_twin(W, x, *kind) - y) ** 2).sum()
    return total / (2 * len(X))


def hessian_twin(W, X, Y, *kind):
    """Hessian (N, N) by automatic differentiation, twice."""
    return torch.func.hessian(lambda w: loss_twin(w.reshape(W.shape), X, Y, *kind))(W.flatten())


def gradient_twin(W, X, Y, *kind):
    """Gradient shaped like W by automatic differentiation."""
    W = W.clone().requires_grad_()
    return torch.autograd.grad(loss_twin(W, X, Y, *kind), W)[0]
