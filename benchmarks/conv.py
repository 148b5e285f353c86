"""Rows of the chapters on norm preservation: spectra of convolutions and the projection."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from benchmarks.harness import Row, Side
from resid.theory.conv_spectrum import conv_singular_values
from resid.theory.procrustes import norm_preserving_scale, project_norm_preserving, project_orthonormal_taps
from tests.twins.conv import published_projection

#: Stem and transitions of ProcResNet: (d, c, k, n), n the size of the map at the output, as published.
LAYERS = ((64, 3, 3, 32), (128, 64, 1, 16), (256, 128, 1, 8))
OURS_TIMES, PEER_MATRICES = 20, 32


def _kernels() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(d, c, k, k, generator=generator), n) for d, c, k, n in LAYERS]


def _after_a_step(K: Tensor, generator: torch.Generator) -> Tensor:
    """A kernel moved by a hundredth of its norm, as a step of an optimiser would."""
    step = torch.randn(K.shape, generator=generator)
    return K + 0.01 * K.norm() / step.norm() * step


def _moved() -> list[tuple[Tensor, int]]:
    """Projected kernels, after a step."""
    generator = torch.Generator().manual_seed(1)
    return [(_after_a_step(project_norm_preserving(K, n), generator), n) for K, n in _kernels()]


def _project_all(given: Any) -> None:
    for _ in range(OURS_TIMES):
        for K, n in given:
            project_norm_preserving(K, n)


def _publish(given: Any) -> None:
    for K, n in given:
        published_projection(K, n)


def _square() -> Tensor:
    return torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))


def _half_spectrum(K: Tensor) -> None:
    conv_singular_values(K, 32)


def _full_spectrum(K: Tensor) -> None:
    A = torch.fft.fft2(K.double(), (32, 32)).permute(2, 3, 0, 1)
    torch.linalg.svdvals(A).flatten().sort(descending=True)


def _large() -> Tensor:
    return torch.randn(256, 256, 3, 3, generator=torch.Generator().manual_seed(0)) / 48


def _large_spectrum(K: Tensor) -> None:
    conv_singular_values(K, 32)


def _few_frequencies() -> Tensor:
    """Matrices of some frequencies out of 1,024; the transform is outside the clock."""
    spectrum = torch.fft.fft2(_large(), (32, 32)).permute(2, 3, 0, 1)
    return spectrum.flatten(0, 1)[:PEER_MATRICES].contiguous()


def _few_svdvals(A: Tensor) -> None:
    torch.linalg.svdvals(A.to(torch.complex128))


def _large_projection(K: Tensor) -> None:
    project_norm_preserving(K, 32)


def _few_polar(A: Tensor) -> None:
    U, _, Vh = torch.linalg.svd(A, full_matrices=False)
    U @ Vh


def _pointwise() -> Any:
    """The larger transition; the peer as a layer whose weight torch keeps orthogonal, fresh for each use."""
    (K, n), layer = _moved()[2], torch.nn.Linear(128, 256, bias=False)
    return K, n, parametrizations.orthogonal(layer, orthogonal_map="householder")


def _project_pointwise(given: Any) -> None:
    for _ in range(OURS_TIMES):
        project_norm_preserving(given[0], given[1])


def _householder(given: Any) -> None:
    for _ in range(OURS_TIMES):
        given[2].weight.sum().backward()


def _of_library(name: str, d: int, c: int) -> Any:
    """A 3 x 3 layer of a library of orthogonal convolutions, and a direction for the gradient by its weight."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what these libraries import
        if name == "orthogonium":
            from orthogonium.layers import AdaptiveOrthoConv2d as Layer
        else:
            from deel.torchlip import SpectralConv2d as Layer
        layer = Layer(c, d, 3, padding=1, padding_mode="circular", bias=False)
    return layer, torch.randn(d, c, 3, 3)


def _use(given: Any, times: int) -> None:
    """What the layer adds to each step of a training: its weight, and the gradient back through it."""
    layer, direction = given
    for _ in range(times):
        (layer.weight * direction).sum().backward()


def _trained(d: int, c: int, times: int, project: Any) -> Tensor:
    """A kernel projected `times` times, after a step."""
    generator = torch.Generator().manual_seed(0)
    K = torch.randn(d, c, 3, 3, generator=generator)
    for _ in range(times):
        K = project(K)
    return _after_a_step(K, generator)


def _again(K: Tensor, times: int, project: Any) -> None:
    for _ in range(times):
        project(K)


def _range(kernel: Tensor, scale: float) -> str:
    values = conv_singular_values(kernel.detach(), 32) / scale
    return f"singular values {float(values[-1]):.4f} to {float(values[0]):.4f} times the one wanted"


def _beside_library(
    name: str, what: str, d: int, c: int, library: str, module: str, project: Any, called: str, uses: int, least: float
) -> Row:
    """A row of one use of a 3 x 3 weight that is kept norm-preserving, by projecting and by a library's layer."""
    return Row(
        name=name,
        what=f"weight of {d} <- {c} channels, 3 x 3, {what}, one use",
        ours=Side(
            f"{called} after a step",
            partial(_trained, d, c, 20, project),
            partial(_again, times=uses, project=project),
            uses,
            lambda K: _range(project(K), norm_preserving_scale(c, d)),
        ),
        peer=Side(
            f"{library}, forward and backward",
            partial(_of_library, module, d, c),
            partial(_use, times=20),
            20,
            lambda given: _range(given[0].weight, 1.0),
        ),
        threads=1,
        least_ratio=least,
        unit="use",
        needs=module,
    )


def _project(K: Tensor) -> Tensor:
    return project_norm_preserving(K, 32)


_PUBLISHED = "published route, sign corrected: whole grid, real blocks, ten coupled Newton-Schulz steps"

ROWS = (
    Row(
        name="projection",
        what="projection of the three linear convolutions of ProcResNet, from random kernels",
        ours=Side("project_norm_preserving", _kernels, _project_all, OURS_TIMES),
        peer=Side(_PUBLISHED, _kernels, _publish),
        threads=1,
        least_ratio=200,
        unit="projection of all three",
    ),
    Row(
        name="projection-warm",
        what="the same, kernels projected before and moved by one step of an optimiser",
        ours=Side("project_norm_preserving", _moved, _project_all, OURS_TIMES),
        peer=Side(_PUBLISHED, _moved, _publish),
        threads=1,
        least_ratio=350,
        unit="projection of all three",
    ),
    Row(
        name="projection-parametrized",
        what="weight of 256 <- 128 channels, 1 x 1, kept norm-preserving through a training, one use",
        ours=Side("project_norm_preserving after a step", _pointwise, _project_pointwise, OURS_TIMES),
        peer=Side(
            "torch.nn.utils.parametrizations.orthogonal, householder, forward and backward",
            _pointwise,
            _householder,
            OURS_TIMES,
        ),
        threads=1,
        least_ratio=1,
        unit="use",
    ),
    _beside_library(
        "projection-stem",
        "kept norm-preserving through a training",
        64,
        3,
        "orthogonium.layers.AdaptiveOrthoConv2d",
        "orthogonium",
        _project,
        "project_norm_preserving",
        20,
        2,
    ),
    _beside_library(
        "projection-taps",
        "kept with orthonormal taps through a training",
        64,
        3,
        "deel.torchlip.SpectralConv2d",
        "deel",
        project_orthonormal_taps,
        "project_orthonormal_taps",
        20,
        0.5,
    ),
    _beside_library(  # slower, and not norm-preserving: said on the page
        "projection-square",
        "kept as near to norm-preserving as it gets through a training",
        64,
        64,
        "orthogonium.layers.AdaptiveOrthoConv2d",
        "orthogonium",
        _project,
        "project_norm_preserving",
        2,
        0.005,
    ),
    Row(
        name="conv-spectrum",
        what="all singular values of a 3 x 3 convolution, 64 <- 64 channels, n = 32",
        ours=Side("conv_singular_values, half of the frequencies", _square, _half_spectrum),
        peer=Side("all frequencies by torch.fft.fft2, then svdvals", _square, _full_spectrum),
        threads=1,
        least_ratio=1.8,
    ),
    Row(
        name="conv-spectrum-256",
        what="all singular values of a 3 x 3 convolution, 256 <- 256 channels, n = 32, in memory",
        ours=Side("conv_singular_values", _large, _large_spectrum, 1024),
        peer=Side(f"svdvals of {PEER_MATRICES} frequencies", _few_frequencies, _few_svdvals, PEER_MATRICES),
        threads=1,
        least_ratio=1.5,
        most_gib=2,
        unit="frequency",
    ),
    Row(
        name="projection-256",
        what="projection of a 3 x 3 convolution, 256 <- 256 channels, n = 32, in memory",
        ours=Side("project_norm_preserving", _large, _large_projection, 1024),
        peer=Side(f"svd of {PEER_MATRICES} frequencies", _few_frequencies, _few_polar, PEER_MATRICES),
        threads=1,
        least_ratio=1.3,
        most_gib=2,
        unit="frequency",
    ),
)
