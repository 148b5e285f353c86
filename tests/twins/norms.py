"""Twins of `resid.theory.norms` and its flow: finite differences, plain loops, torch's own modules."""

import math

import numpy as np
import torch
from scipy.optimize import root
from torch import nn


def jacobian_twin(function, x, step=1e-5):
    """Central differences of a function of points (n, d): (n, d, d)."""
    columns = []
    for k in range(x.shape[1]):
        shift = torch.zeros_like(x)
        shift[:, k] = step
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, dim=-1)


def ratios_twin(blocks, x, g):
    """in/out for each block and sample: gradients by transposed Jacobians from differences, from the output back."""
    states = [x]
    for block in blocks:
        states.append(block(states[-1]))
    gradients = [g]
    for block, state in zip(blocks[::-1], states[-2::-1], strict=True):
        J = jacobian_twin(block, state)
        gradients.insert(0, torch.einsum("nij,ni->nj", J, gradients[0]))
    norms = [gradient.norm(dim=1) for gradient in gradients]
    return torch.stack([norms[i] / norms[i + 1] for i in range(len(blocks))])


def flow_step_twin(h, point, start, stop):
    """H_stop(H_start^-1(point)) for one point, with SciPy's root finder."""
    origin = torch.zeros(h.dimension, dtype=torch.float64)
    slope = h.jacobian(origin)

    def scaled(z, t):
        return slope @ z if t == 0 else (h(t * z) - h(origin)) / t

    def equation(z):
        return (scaled(torch.from_numpy(z), start) - point).numpy()

    z = root(equation, torch.linalg.solve(slope, point).numpy(), tol=1e-14).x
    return scaled(torch.from_numpy(z), stop)


def product_of_norms_twin(weights, c_rho, nonlinearities):
    """Each norm by NumPy, multiplied one by one."""
    bound = 1.0
    for W in weights:
        bound *= np.sqrt(np.linalg.eigvalsh(W.numpy() @ W.numpy().T)[-1])
    for _ in range(nonlinearities):
        bound *= c_rho
    return bound


def deviation_twin(J, n=20000, seed=0):
    """Largest change of the norm of many random gradients: from below, close in few dimensions."""
    g = torch.randn(n, J.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=J.dtype)
    return float(((g @ J).norm(dim=1) / g.norm(dim=1) - 1).abs().max())


def batch_norm_ratios_twin(depth, layers, width, gain=1.0, samples=1024, seed=0):
    """in/out of a stack of torch's own modules at He weights, and the variance each block adds."""
    torch.manual_seed(seed)
    blocks = nn.ModuleList()
    for _ in range(depth):
        parts = []
        for k in range(layers):
            linear = nn.Linear(width, width, bias=False)
            nn.init.normal_(linear.weight, std=math.sqrt(2 / width) * (gain if k == layers - 1 else 1))
            parts += [nn.BatchNorm1d(width), nn.ReLU(), linear]
        blocks.append(nn.Sequential(*parts))
    states = [torch.randn(samples, width, requires_grad=True)]
    for block in blocks:
        states.append(states[-1] + block(states[-1]))
        states[-1].retain_grad()
    (states[-1] * torch.randn(samples, width)).sum().backward()
    norms = [float(state.grad.norm()) for state in states]
    variances = [float(state.detach().var(0).mean()) for state in states]
    return np.divide(norms[:-1], norms[1:]), np.diff(variances)
