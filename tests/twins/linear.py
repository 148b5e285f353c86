"""Twins of `resid.theory.factor` and `resid.theory.landscape`: written from the definitions, without any shortcut."""

import numpy as np
import torch
from scipy.linalg import polar
from scipy.optimize import minimize


def compose_twin(A):
    """Push each basis vector through the layers, one after another."""
    d = A.shape[-1]
    columns = []
    for k in range(d):
        h = torch.zeros(d, dtype=A.dtype)
        h[k] = 1
        for layer in A:
            h = h + layer @ h
        columns.append(h)
    return torch.stack(columns, dim=1)


def rotation_power(Q, t):
    """Q^t from the complex eigendecomposition of a rotation, eigenvalue -1 taken as e^(i pi) and e^(-i pi) in pairs."""
    values, vectors = np.linalg.eig(np.asarray(Q, complex))
    # orthonormalise within each eigenspace: a normal matrix has an orthonormal eigenbasis
    angle = np.angle(values)
    half_turns = np.flatnonzero(np.abs(np.abs(angle) - np.pi) < 1e-6)
    rest = [k for k in range(len(values)) if k not in half_turns]
    power = np.zeros_like(vectors)
    for k in rest:
        group = [j for j in rest if abs(values[j] - values[k]) < 1e-6]
        basis = np.linalg.qr(vectors[:, group])[0]
        column = basis[:, group.index(k)]
        power += np.exp(1j * t * angle[k]) * np.outer(column, column.conj())
    if len(half_turns):
        # any orthonormal real basis of the space turned by pi, its vectors paired into planes
        space = np.linalg.svd(np.asarray(Q) + np.eye(len(Q)))[2][-len(half_turns) :]
        for a, b in zip(space[::2], space[1::2], strict=True):
            cosine, sine = np.cos(np.pi * t), np.sin(np.pi * t)
            power = power + cosine * (np.outer(a, a) + np.outer(b, b)) + sine * (np.outer(b, a) - np.outer(a, b))
    return power.real


def polar_layers_twin(R, depth):
    """I + A_i = Q^(i/depth) P^(1/depth) Q^(-(i-1)/depth), each power taken anew, layer by layer."""
    Q, P = polar(R.numpy())
    k, V = np.linalg.eigh(P)
    root = V @ np.diag(k ** (1 / depth)) @ V.T
    powers = [rotation_power(Q, i / depth) for i in range(depth + 1)]
    layers = [powers[i + 1] @ root @ powers[i].T - np.eye(len(Q)) for i in range(depth)]
    return torch.from_numpy(np.stack(layers))


def lower_bound_twin(R, depth, starts=200, seed=0):
    """max_v |rho^(1/l) e^(i phi/l) - 1| by random vectors, the best of them improved without derivatives."""
    rng = np.random.default_rng(seed)
    R = R.numpy()

    def value(v):
        v = v / np.linalg.norm(v)
        w = R @ v
        rho = np.linalg.norm(w)
        phi = np.arccos(np.clip(v @ w / rho, -1, 1))
        return abs(rho ** (1 / depth) * np.exp(1j * phi / depth) - 1)

    vectors = sorted(rng.standard_normal((starts, len(R))), key=value, reverse=True)[:5]
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000}
    return max(-minimize(lambda v: -value(v), v, method="Nelder-Mead", options=options).fun for v in vectors)


def risk_twin(A, R, sigma):
    """E ||network(x) - R x||^2 for x uniform on +- sqrt(d) times the columns of a square root of sigma."""
    d = len(R)
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.clamp_min(0).sqrt()  # sigma = root root^T, hence sum over the columns x of x x^T
    total = 0.0
    for k in range(d):
        x = root[:, k]
        h = x
        for layer in A:
            h = h + layer @ h
        total = total + (h - R @ x).square().sum()
    return total


def gradient_twin(A, R, sigma):
    """Autograd through `risk_twin`."""
    A = A.clone().requires_grad_()
    return torch.autograd.grad(risk_twin(A, R, sigma), A)[0]
