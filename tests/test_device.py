"""What a GPU computes, against the CPU. Where there is no GPU both are the CPU, so that these tests at least run.

On a machine with a GPU: `python -m pytest tests/test_device.py`, about two minutes. Only what makes sense on a GPU
alone is skipped without one.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resid import audit
from resid._precision import float32_products
from resid.book.checks.norms.norm_images import Images
from resid.book.checks.norms.norm_study import PAPER, NormStudy, follow_three_layers, follow_transitions
from resid.book.experiments import overhead as cifar_overhead
from resid.nets.norm_preservation import ProcrustesProjection, input_sizes
from resid.nets.preact import ProcResNet
from resid.theory.conv_spectrum import conv_singular_values
from resid.theory.factor import compose, factor_near_identity
from resid.theory.landscape import population_risk, risk_gradient
from resid.theory.procrustes import (
    METHODS,
    polar_factor,
    project_norm_preserving,
    project_orthonormal_taps,
    released_projection,
)
from resid.theory.shortcut import ShortcutNetwork
from resid.theory.small_weights import construct_small_weight_network
from resid.training.recipe import Recipe
from resid.training.trainer import train

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="torch finds no GPU")
ALLCONV = Recipe(
    dataset="digits", network="allconv", options={"blocks": 1, "widths": (4, 8, 8, 16)}, epochs=2, batch=100, lr=0.05,
    pad=1, flip=False,
)  # fmt: skip
PROC = Recipe(
    dataset="digits", network="proc", options={"depth": 13, "width": 2}, epochs=2, batch=100, pad=1, flip=True,
    nesterov=True, projection_every=1, probe_epochs=(0, 1),
)  # fmt: skip


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alike(here, there, tolerance):
    """`there` lies on the device under test, and both are the same up to rounding."""
    assert there.device.type == DEVICE.type
    assert there.dtype == here.dtype
    torch.testing.assert_close(there.cpu(), here, atol=tolerance, rtol=tolerance)


# -------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 8, 3), (2, 3, 8), (34, 24, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_polar_factors(method, shape, dtype):
    A = draw(*shape, dtype=dtype)
    U, _, Vh = torch.linalg.svd(A.to(torch.complex128), full_matrices=False)
    with float32_products("tf32"):  # which the library must not use for them
        found = polar_factor(A.to(DEVICE), method)
    alike(
        (U @ Vh).to(dtype) if dtype.is_complex else (U @ Vh).real.to(dtype),
        found,
        1e-4 if dtype != torch.complex128 else 1e-10,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "n", "more"),
    [
        ((64, 3, 3, 3), 32, {}), ((32, 16, 1, 1), 16, {"stride": 2}), ((8, 8, 3, 3), 8, {"relu": True}),
        ((8, 4, 2, 2), 8, {"stride": 2}), ((3, 5, 3, 3), 7, {"repeats": 3}), ((8, 2, 3, 3), 6, {"groups": 2}),
    ],
)  # fmt: skip
def test_projections(shape, n, more, dtype):
    kernel = draw(*shape, dtype=dtype)
    here = project_norm_preserving(kernel, n, **more)
    alike(here, project_norm_preserving(kernel.to(DEVICE), n, **more), 1e-4 if dtype == torch.float32 else 1e-9)


def test_kernels_and_spectra():
    kernel = draw(64, 3, 3, 3)
    alike(project_orthonormal_taps(kernel), project_orthonormal_taps(kernel.to(DEVICE)), 1e-9)
    alike(released_projection(kernel, 8), released_projection(kernel.to(DEVICE), 8), 1e-9)
    for padding, stride in (("circular", 1), ("circular", 2), ("zeros", 1)):
        small = draw(4, 3, 3, 3)
        here = conv_singular_values(small, 6, padding=padding, stride=stride)
        alike(here, conv_singular_values(small.to(DEVICE), 6, padding=padding, stride=stride), 1e-9)


def test_linear_networks():
    R, sigma = torch.linalg.qr(draw(5, 5))[0], torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    R = R * torch.linalg.det(R)
    layers = factor_near_identity(R.to(DEVICE), 8)
    alike(R, compose(layers), 1e-10)
    A = 0.1 * draw(3, 5, 5)
    alike(population_risk(A, R, sigma), population_risk(A.to(DEVICE), R.to(DEVICE), sigma.to(DEVICE)), 1e-10)
    alike(risk_gradient(A, R, sigma), risk_gradient(A.to(DEVICE), R.to(DEVICE), sigma.to(DEVICE)), 1e-10)
    network, W, X, Y = ShortcutNetwork(2, 2, 3), 0.1 * draw(2, 2, 3, 3), draw(7, 3), draw(7, 3, seed=1)
    alike(network.hessian(W, X, Y), network.hessian(*(part.to(DEVICE) for part in (W, X, Y))), 1e-9)


def test_networks_through_a_sample_take_inputs_from_the_device():
    axes = torch.eye(4, dtype=torch.float64)
    network = construct_small_weight_network(axes, -axes, 40)
    alike(-axes, network(axes.to(DEVICE)), 1e-9)


# ------------------------------------------------------------------------------------------------------------ networks


def test_the_projection_of_a_network():
    torch.manual_seed(0)
    net = ProcResNet(13, 4)
    sizes = input_sizes(net, torch.zeros(1, 3, 16, 16))
    here = [conv.weight.detach().clone() for conv in net.linear_convolutions()]
    layers = [(m, sizes[name]) for name, m in net.named_modules() if any(m is c for c in net.linear_convolutions())]
    net.to(DEVICE)
    ProcrustesProjection(layers).project()
    for kernel, (conv, n) in zip(here, layers, strict=True):
        alike(project_norm_preserving(kernel, n, stride=conv.stride), conv.weight.detach(), 1e-4)


def test_the_audit():
    torch.manual_seed(0)
    net, x, labels = ProcResNet(13, 4), draw(8, 3, 16, 16, dtype=torch.float32), torch.arange(8)
    here = audit(net, x, lambda out: F.cross_entropy(out, labels))
    there = audit(net.to(DEVICE), x.to(DEVICE), lambda out: F.cross_entropy(out, labels.to(DEVICE)))
    assert len(here.ratios) == len(net.blocks())
    np.testing.assert_allclose(here.ratios, there.ratios, rtol=1e-3)


# ----------------------------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("recipe", [ALLCONV, PROC], ids=["allconv", "proc"])
def test_training(recipe, precision, tmp_path):
    here = train(recipe, tmp_path / "cpu", device="cpu").metrics
    there = train(recipe.replace(precision=precision), tmp_path / "device", device=str(DEVICE)).metrics
    assert there[-1]["loss"] < there[0]["loss"]
    tolerance = 0.02 if precision == "fp32" else 0.2  # rounding grows as a network learns
    assert here[0]["loss"] == pytest.approx(there[0]["loss"], rel=tolerance)
    if "ratios" in here[0]:  # at the first step nothing has grown yet
        for block, ratio in here[0]["ratios"].items():
            assert math.log(there[0]["ratios"][block]) == pytest.approx(
                math.log(ratio), abs=0.01 if precision == "fp32" else 0.1
            )


@pytest.mark.parametrize("recipe", [ALLCONV, PROC], ids=["allconv", "proc"])
def test_a_training_that_was_stopped_goes_on(recipe, tmp_path):
    whole = train(recipe, tmp_path / "whole", device=str(DEVICE))
    part = train(recipe, tmp_path / "parts", device=str(DEVICE), max_seconds=0)
    assert part.state == "stopped"
    part = train(recipe, tmp_path / "parts", device=str(DEVICE))
    assert part.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], rel=0.05)
    weights = torch.load(tmp_path / "parts" / "weights.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", [ALLCONV, PROC], ids=["allconv", "proc"])
def test_compiled_training(recipe, precision, mode, tmp_path):
    recipe = recipe.replace(precision=precision)
    plain = train(recipe, tmp_path / "plain", device=str(DEVICE)).metrics
    found = train(recipe.replace(compile=mode, channels_last=True), tmp_path / "compiled", device=str(DEVICE)).metrics
    assert found[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.02 if precision == "fp32" else 0.1)


# --------------------------------------------------------------------------------------------------- gradients followed


def images(device):
    labels = torch.randint(0, 10, (120,), generator=torch.Generator().manual_seed(1))
    noise = torch.randint(0, 100, (120, 3, 8, 8), generator=torch.Generator().manual_seed(2))
    return Images(*((part.to(device)) for part in ((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)))


@pytest.mark.parametrize("projected", [False, True])
def test_three_layers(projected):
    recipe = replace(PAPER, batch=20)
    here = follow_three_layers(images("cpu"), 4, 6, projected, (0, 1), 1, recipe)
    there = follow_three_layers(images(DEVICE), 4, 6, projected, (0, 1), 1, recipe)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.ratio[0], b.ratio[0], rtol=1e-3)
        np.testing.assert_allclose(a.ratio, b.ratio, rtol=0.1)
        np.testing.assert_allclose(a.share[0], b.share[0], rtol=1e-3)


def test_transitions():
    recipe = replace(PAPER, batch=20)
    here = follow_transitions(images("cpu"), 0, 1, recipe, blocks=1, width=2)
    there = follow_transitions(images(DEVICE), 0, 1, recipe, blocks=1, width=2)
    np.testing.assert_allclose(here.ratio[0], there.ratio[0], rtol=1e-3)
    np.testing.assert_allclose(here.share[0], there.share[0], rtol=1e-3)


def test_many_networks_at_once():
    study = NormStudy(images(DEVICE), replace(PAPER, batch=20), together=3)
    alone = NormStudy(images(DEVICE), replace(PAPER, batch=20))
    cases = [((2, 4), True), ((4, 4), False)]
    for a, b in zip(study.three_layers(cases, (0, 1, 2), 1), alone.three_layers(cases, (0, 1, 2), 1), strict=True):
        for first, second in zip(a, b, strict=True):
            np.testing.assert_allclose(first.ratio[:2], second.ratio[:2], rtol=1e-2)


@pytest.mark.parametrize("route", cifar_overhead.ROUTES)
def test_the_time_of_a_step(route):
    seconds = cifar_overhead.step_seconds(13, route, steps=2, warmup=2, batch=4, width=2, size=8, device=str(DEVICE))
    assert 0 < seconds < 60


def test_a_module_is_audited_where_it_lies():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(DEVICE)
    found = audit(net, torch.ones(2, 4, device=DEVICE), lambda out: out.square().sum(), blocks=nn.Linear)
    assert found.ratios.shape == (2,)
    assert np.all((found.ratios > 0) & np.isfinite(found.ratios))
