"""What the caller has set in torch changes no result: every public function of `theory` and `nets` under every state.

`CALLS` has a call of each of them. A new public function without one fails here.
"""

import importlib
import inspect
import pkgutil
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

import resid.nets
import resid.theory
from resid._ambient import isolated
from resid.nets import allconv, memorizer, preact, shapes, shortcut_depth
from resid.nets import norm_preservation as procrustes
from resid.theory import factor, landscape, memorize, norms, shortcut, small_weights, targets
from resid.theory.conv_spectrum import spectrum as conv_spectrum
from resid.theory.procrustes import orthonormal_taps, polar, released
from resid.theory.procrustes import projection as nearest
from resid.theory.small_weights.network import ordered_dot

F32, F64 = torch.float32, torch.float64
HALVES = (torch.bfloat16, torch.float16)


class Make:
    """Arguments, the same under every state."""

    def __init__(self, requires_grad=False):
        self.requires_grad = requires_grad

    def __call__(self, *shape, seed=0, dtype=F64):
        values = np.random.default_rng(seed).standard_normal(shape)
        return self.of(values, dtype)

    def of(self, values, dtype=F64):
        return torch.tensor(values, dtype=dtype, device="cpu", requires_grad=self.requires_grad)

    def near_identity(self, d, seed=0, dtype=F64):
        values = np.eye(d) + 0.3 * np.random.default_rng(seed).standard_normal((d, d)) / d**0.5
        return self.of(values, dtype)

    def sphere(self, n, d, seed=0):
        values = np.random.default_rng(seed).standard_normal((n, d))
        return self.of(values / np.linalg.norm(values, axis=1, keepdims=True))

    def moment(self, d, seed=0):
        values = np.random.default_rng(seed).standard_normal((d, 2 * d))
        return self.of(values @ values.T / (2 * d))


def draw(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def conv(*sizes, **options):
    """A Conv2d in float32 on the CPU."""
    layer = nn.Conv2d(*sizes, bias=False, device="cpu", dtype=F32, **options)
    with torch.no_grad():
        layer.weight.copy_(Make()(*layer.weight.shape, dtype=F32))
    return layer


def small_net(m):
    return small_weights.construct_small_weight_network(m.sphere(3, 3), m.sphere(3, 3, seed=1), units=40)


def memorizer_of(m, mode="triangular"):
    return memorize.construct_memorizer(m(8, 5), [0, 1, 2, 0, 1, 2, 0, 1], 4, mode)


def flow_of(m):
    return norms.near_identity_flow(norms.shear(0.4, m.near_identity(3)), 6)


def network(m):
    return shortcut.ShortcutNetwork(2, 2, 3, "tanh"), 0.3 * m(2, 2, 3, 3), m(5, 3, seed=1), m(5, 3, seed=2)


def linear_network(m):
    return shortcut.ShortcutNetwork(2, 2, 3), 0.3 * m(2, 2, 3, 3), m.moment(3), m(3, 3, seed=2)


def path_arguments(m):
    X = m.sphere(6, 3)
    return X[0], m.sphere(1, 3, seed=9)[0], X[1:], 0.05


def projected_by(m, **options):
    layer = conv(3, 6, 3, padding=1)
    projection = procrustes.ProcrustesProjection([(layer, 8)], **options)
    projection.project()
    return layer.weight


def attached(m):
    layer = conv(3, 6, 3, padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    projection = procrustes.ProcrustesProjection([(layer, 8)])
    projection.attach(optimizer)
    layer.weight.grad = Make()(*layer.weight.shape, seed=1, dtype=F32)
    optimizer.step()
    return layer.weight


def stepped(m):
    layer = conv(3, 6, 3, padding=1)
    projection = procrustes.ProcrustesProjection([(layer, 8)], probability=0.5)
    return [projection.step() for _ in range(6)], layer.weight, projection.state_dict()


def reloaded(m):
    layer = conv(3, 6, 1)
    one, two = (procrustes.ProcrustesProjection([(layer, 8)], probability=0.5) for _ in range(2))
    one.step()
    two.load_state_dict(one.state_dict())
    return two.state_dict()


def half_kernels(m):
    layer = conv(3, 6, 3).to(torch.bfloat16)
    procrustes.norm_preserving(layer, 8)
    return layer.weight


HERMITIAN = ((4.0, 1.0), (1.0, 3.0))
K = (4, 2, 3, 3)

#: How each public function is called. Functions of a class that return nothing of their own are left to `FREE`.
CALLS = {
    "conv_spectrum.conv_matrix": lambda m: conv_spectrum.conv_matrix(m(*K, dtype=F32), 4),
    "conv_spectrum.conv_singular_values": lambda m: [
        conv_spectrum.conv_singular_values(m(*K, dtype=F32), 6, stride, padding)
        for stride, padding in ((1, "circular"), (2, "circular"), (1, "zeros"))
    ],
    "conv_spectrum.conv_svd": lambda m: [conv_spectrum.conv_svd(m(*K), 4, 3, 1, p) for p in ("circular", "zeros")],
    "conv_spectrum.largest_conv_singular_values": lambda m: conv_spectrum.largest_conv_singular_values(m(*K), 6, 2),
    "conv_spectrum.zero_padding_bound": lambda m: conv_spectrum.zero_padding_bound(m(*K, dtype=F32), 6),
    "factor.compose": lambda m: factor.compose(0.1 * m(3, 4, 4, dtype=F32)),
    "factor.factor_near_identity": lambda m: [
        factor.factor_near_identity(m.near_identity(4, dtype=dtype), 5) for dtype in (F32, F64)
    ],
    "factor.factorization_error": lambda m: factor.factorization_error(0.1 * m(3, 4, 4), m.near_identity(4)),
    "factor.max_layer_norm": lambda m: factor.max_layer_norm(m(3, 4, 4, dtype=F32)),
    "factor.near_identity_bound": lambda m: factor.near_identity_bound(m.near_identity(4, dtype=F32), 5),
    "factor.rotation_angle": lambda m: factor.rotation_angle(m.near_identity(4, dtype=F32)),
    "factor.spectral_gamma": lambda m: factor.spectral_gamma(m.near_identity(4, dtype=F32)),
    "factor.near_identity_lower_bound": lambda m: factor.near_identity_lower_bound(m.near_identity(3, dtype=F32), 5),
    "shortcut.condition_number": lambda m: shortcut.condition_number(m.moment(4), 0.1),
    "shortcut.condition_number_limit": lambda m: shortcut.condition_number_limit(10),
    "shortcut.hessian_eigenvalues": lambda m: shortcut.hessian_eigenvalues(m.moment(4)),
    "shortcut.hessian_index": lambda m: shortcut.hessian_index(m.moment(4)),
    "landscape.Descent.converged": lambda m: descent(m).converged,
    "landscape.augment_covariance": lambda m: landscape.augment_covariance(m.moment(3)),
    "landscape.augment_negative_determinant": lambda m: landscape.augment_negative_determinant(
        m.of([[1.0, 0.2], [0.0, -1.0]])
    ),
    "landscape.gradient_descent": lambda m: descent(m),
    "landscape.gradient_lower_bound": lambda m: [
        landscape.gradient_lower_bound(0.1 * m(3, 4, 4, dtype=F32), m.near_identity(4), m.moment(4), form)
        for form in ("norm", "product")
    ],
    "landscape.population_risk": lambda m: landscape.population_risk(
        0.1 * m(3, 4, 4, dtype=F32), m.near_identity(4, dtype=F32), m.moment(4)
    ),
    "landscape.regression_map": lambda m: landscape.regression_map(m(9, 3), m(9, 3, seed=1)),
    "landscape.risk_gradient": lambda m: landscape.risk_gradient(
        0.1 * m(3, 4, 4, dtype=F32), m.near_identity(4, dtype=F32), m.moment(4)
    ),
    "landscape.smallest_nonzero_eigenvalue": lambda m: landscape.smallest_nonzero_eigenvalue(m.moment(4)),
    "memorize.Memorizer.__call__": lambda m: memorizer_of(m)(m(8, 5)),
    "memorize.Memorizer.error": lambda m: memorizer_of(m).error(m(8, 5), [0, 1, 2, 0, 1, 2, 0, 1]),
    "memorize.Memorizer.hidden": lambda m: list(memorizer_of(m).hidden(m(8, 5))),
    "memorize.Memorizer.predict": lambda m: memorizer_of(m).predict(m(8, 5)),
    "memorize.Memorizer.to": lambda m: memorizer_of(m).to(F32)(m(8, 5, dtype=F32)),
    "memorize.construct_memorizer": lambda m: [
        memorizer_of(m),
        memorize.construct_memorizer(m(4, 12), [0, 1, 0, 1], 200, "shared"),
    ],
    "memorize.isolating_block": lambda m: memorize.isolating_block(m.of([[0.1], [0.6]]), m.of([[3.0]]), [0], 0.1),
    "memorize.measure_margins": lambda m: memorize.measure_margins(m(6, 3), m(2, 3, seed=1)),
    "memorize.smallest_width": lambda m: memorize.smallest_width(m(4, 12), "shared", 2, draw()),
    "memorize.ExactMemorizer.__call__": lambda m: exact()([1, 0]),
    "memorize.ExactMemorizer.hidden": lambda m: exact().hidden([1, 0]),
    "memorize.construct_exact_memorizer": lambda m: exact(),
    "memorize.rational_sphere_point": lambda m: memorize.rational_sphere_point([1, 2]),
    "norms.NearIdentityFlow.__call__": lambda m: flow_of(m)(0.1 * m(4, 3)),
    "norms.NearIdentityFlow.blocks": lambda m: [b(0.1 * m(4, 3)) for b in flow_of(m).blocks],
    "norms.NearIdentityFlow.jacobians": lambda m: flow_of(m).jacobians(0.1 * m(4, 3)),
    "norms.flow_bound": lambda m: norms.flow_bound(norms.twist(0.3), 7),
    "norms.flow_constant": lambda m: norms.flow_constant(norms.twist(0.3)),
    "norms.flow_times": lambda m: norms.flow_times(5, "geometric"),
    "norms.near_identity_flow": lambda m: flow_of(m).linear,
    "norms.batch_norm_ratios": lambda m: norms.batch_norm_ratios(5, 0.4, direction="in/out"),
    "norms.block_bound": lambda m: norms.block_bound(m(5, 3, dtype=F32), m(3, 5, dtype=F32), 1.0),
    "norms.gradient_norm_ratios": lambda m: norms.gradient_norm_ratios(
        [lambda x: x + torch.tanh(x @ x.detach().mT @ x), torch.relu], m(4, 3, dtype=F32), torch.sum, direction="in/out"
    ),
    "norms.identity_plus_bounds": lambda m: norms.identity_plus_bounds(m(3, 3, dtype=F32)),
    "norms.layers_bound": lambda m: norms.layers_bound([m(5, 3), m(4, 5), m(3, 4)], 1.0),
    "norms.linear_bound": lambda m: norms.linear_bound(m.near_identity(3), 4),
    "norms.norm_deviation": lambda m: norms.norm_deviation(m(3, 3, dtype=F32)),
    "norms.norm_preserving_layers": lambda m: norms.norm_preserving_layers(m.near_identity(4, dtype=F32), 3),
    "norms.norm_ratios": lambda m: norms.norm_ratios([m(4, 3), m(4, 3, seed=1)], direction="in/out", per_sample=True),
    "norms.ratio_range": lambda m: norms.ratio_range(m(3, 3, dtype=F32), direction="in/out"),
    "procrustes.project_orthonormal_taps": lambda m: orthonormal_taps.project_orthonormal_taps(
        m(20, 2, 3, 3, dtype=F32)
    ),
    "procrustes.accuracy": lambda m: polar.accuracy(m(2, 2)),
    "procrustes.inverse_square_root": lambda m: polar.inverse_square_root(m.of([HERMITIAN], F32), 1e-6),
    "procrustes.polar_factor": lambda m: [
        polar.polar_factor(m(*shape, dtype=F32), method) for method in polar.METHODS for shape in ((5, 9, 5), (3, 4, 8))
    ],
    "procrustes.prefers_gram": lambda m: polar.prefers_gram(3, 5),
    "procrustes.scaled_to_one": lambda m: polar.scaled_to_one(m(2, 3, 2)),
    "procrustes.norm_preserving_scale": lambda m: nearest.norm_preserving_scale(3, 12, relu=True),
    "procrustes.project_norm_preserving": lambda m: [
        nearest.project_norm_preserving(m(*shape, dtype=F32), 8, stride=stride, method=method)
        for shape, stride in (((8, 4, 1, 1), 1), ((12, 3, 3, 3), 1), ((4, 4, 3, 3), 1), ((8, 4, 2, 2), 2))
        for method in ("auto", "svd", "polar-express")
    ],
    "procrustes.projection_report": lambda m: nearest.projection_report(m(12, 3, 3, 3, dtype=F32), 8),
    "procrustes.coupled_newton_schulz": lambda m: released.coupled_newton_schulz(m.of(HERMITIAN, F32) / 5, 8),
    "procrustes.released_projection": lambda m: released.released_projection(m(4, 3, 3, 3, dtype=F32), 6),
    "memorize.projection_width": lambda m: memorize.projection_width(100, 0.2),
    "memorize.separation": lambda m: memorize.separation(m(9, 3, dtype=F32)),
    "shortcut.ShortcutNetwork.forward": lambda m: (lambda net, W, X, Y: net.forward(W, X))(*network(m)),
    "shortcut.ShortcutNetwork.gradient_from_moments": lambda m: with_linear(m, "gradient_from_moments"),
    "shortcut.ShortcutNetwork.hessian": lambda m: (lambda net, *given: net.hessian(*given))(*network(m)),
    "shortcut.ShortcutNetwork.hessian_from_moments": lambda m: with_linear(m, "hessian_from_moments"),
    "shortcut.ShortcutNetwork.linear_map": lambda m: (lambda net, W, *_: net.linear_map(W))(*linear_network(m)),
    "shortcut.ShortcutNetwork.loss": lambda m: (lambda net, *given: net.loss(*given))(*network(m)),
    "shortcut.best_map": lambda m: shortcut.best_map(m.moment(3), m(3, 3)),
    "shortcut.least_linear_loss": lambda m: shortcut.least_linear_loss(m(9, 3), m(9, 3, seed=1)),
    "shortcut.orthogonal_as_shortcut": lambda m: shortcut.orthogonal_as_shortcut(
        m.of([[[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, -1.0]]])
    ),
    "shortcut.second_moments": lambda m: shortcut.second_moments(m(9, 3, dtype=F32), m(9, 3, seed=1, dtype=F32)),
    "shortcut.hessian_at_zero": lambda m: shortcut.hessian_at_zero(1, 2, m(3, 3), m.moment(3)),
    "shortcut.balanced_hessian_spectrum": lambda m: shortcut.balanced_hessian_spectrum(m(3, 3), 4),
    "shortcut.hessian_spectrum_at_zero": lambda m: shortcut.hessian_spectrum_at_zero(2, m(3, 3)),
    "shortcut.length_one_growth_bound": lambda m: shortcut.length_one_growth_bound(3, m(3, 3)),
    "shortcut.moment_difference": lambda m: shortcut.moment_difference(m(9, 3), m(9, 3, seed=1), "tanh"),
    "shortcut.neuron_matrices": lambda m: shortcut.neuron_matrices(m(3, 3), m(9, 3), m(9, 3, seed=1)),
    "shortcut.whitened_condition_bound": lambda m: shortcut.whitened_condition_bound([0.25, 0.75]),
    "small_weights.SmallWeightNetwork.__call__": lambda m: small_net(m)(m.sphere(3, 3)),
    "small_weights.SmallWeightNetwork.log_gains": lambda m: small_net(m).log_gains,
    "small_weights.SmallWeightNetwork.max_norm": lambda m: small_net(m).max_norm,
    "small_weights.SmallWeightNetwork.norms": lambda m: small_net(m).norms,
    "small_weights.SmallWeightNetwork.total_norm": lambda m: small_net(m).total_norm,
    "small_weights.SmallWeightNetwork.trajectory": lambda m: small_net(m).trajectory(m.sphere(3, 3)),
    "small_weights.apply_units": lambda m: (lambda net, X: small_weights.apply_units(net.weights, net.biases, X))(
        small_net(m), m.sphere(3, 3)
    ),
    "small_weights.construct_small_weight_network": lambda m: small_net(m),
    "small_weights.isolating_unit": lambda m: small_weights.isolating_unit(m.sphere(5, 3), 1, 0.99 * m.sphere(5, 3)[1]),
    "small_weights.least_parameter_norm": lambda m: small_weights.least_parameter_norm(
        m.sphere(3, 3), m.sphere(3, 3, seed=1)
    ),
    "small_weights.least_stretch": lambda m: small_weights.least_stretch(0.1 * m(3, 2, 4, 4)),
    "small_weights.max_norm_bound": lambda m: small_weights.max_norm_bound(0.1, 5, 1000),
    "small_weights.ordered_dot": lambda m: ordered_dot(m(4, 3), m(4, 3, seed=1)),
    "small_weights.sphere_path": lambda m: small_weights.sphere_path(*path_arguments(m)),
    "small_weights.sphere_paths": lambda m: small_weights.sphere_paths(m.sphere(3, 3), m.sphere(3, 3, seed=1)),
    "small_weights.total_norm_bound": lambda m: small_weights.total_norm_bound(0.1, 5),
    "norms.SmoothMap.__call__": lambda m: [h(0.3 * m(4, 3, dtype=F32)) for h in maps(m)],
    "norms.SmoothMap.jacobian": lambda m: [h.jacobian(0.3 * m(4, 3)) for h in maps(m)],
    "norms.SmoothMap.points": lambda m: norms.twist(0.3).points(5, draw()),
    "norms.mirror_augmented": lambda m: norms.mirror_augmented(norms.twist(0.3))(m(4, 3)),
    "norms.residual_map": lambda m: norms.residual_map(m.near_identity(3), 0.1 * m(4, 3), m(3, 4) / 9).beta,
    "norms.sample_smooth_map": lambda m: [
        norms.sample_smooth_map(family, 3, draw())(0.1 * m(4, 3)) for family in norms.SMOOTH_FAMILIES
    ],
    "norms.shear": lambda m: norms.shear(0.4, m.near_identity(3)).beta,
    "norms.twist": lambda m: norms.twist(0.4, m.near_identity(3)).alpha,
    "targets.random_rotation": lambda m: targets.random_rotation(4, draw()),
    "targets.sample_target": lambda m: [targets.sample_target(family, 4, draw()) for family in targets.FAMILIES],
    "nets.memorizer.export_memorizer": lambda m: list(memorizer.export_memorizer(memorizer_of(m)).parameters()),
    "nets.norm_preservation.NormPreserving.forward": lambda m: [
        procrustes.NormPreserving(conv(3, 6, 3), 8)(m(6, 3, 3, 3, dtype=F32)),
        half_kernels(m),
    ],
    "nets.norm_preservation.NormPreserving.right_inverse": lambda m: procrustes.NormPreserving(
        conv(3, 6, 3), 8
    ).right_inverse(m(6, 3, 3, 3, dtype=F32)),
    "nets.norm_preservation.ProcrustesProjection.attach": attached,
    "nets.norm_preservation.ProcrustesProjection.load_state_dict": reloaded,
    "nets.norm_preservation.ProcrustesProjection.project": lambda m: [projected_by(m), projected_by(m, released=True)],
    "nets.norm_preservation.ProcrustesProjection.reports": lambda m: procrustes.ProcrustesProjection(
        [(conv(3, 6, 3), 8)]
    ).reports(),
    "nets.norm_preservation.ProcrustesProjection.state_dict": stepped,
    "nets.norm_preservation.ProcrustesProjection.step": stepped,
    "nets.norm_preservation.input_sizes": lambda m: procrustes.input_sizes(
        nn.Sequential(conv(3, 4, 3), conv(4, 2, 3)), IMAGE
    ),
    "nets.norm_preservation.norm_preserving": lambda m: procrustes.norm_preserving(conv(3, 6, 3), 8).weight,
    "nets.shapes.ShapeTable.cells": lambda m: shapes.shape_table(conv(3, 4, 3)).cells(),
    "nets.shapes.ShapeTable.parameters": lambda m: shapes.shape_table(conv(3, 4, 3)).parameters,
    "nets.shapes.shape_table": lambda m: shapes.shape_table(nn.Sequential(conv(3, 4, 3), conv(4, 2, 3))),
}
IMAGE = torch.zeros(1, 3, 8, 8)

#: Numbers that follow from the shapes of what a class was given.
FREE = {
    "memorize.Memorizer": {"width", "classes", "depth", "parameter_counts", "n_parameters"},
    "norms.NearIdentityFlow": {"depth"},
    "shortcut.ShortcutNetwork": {"depth", "n_parameters"},
    "small_weights.SmallWeightNetwork": {"units", "width", "steps", "weights", "biases"},
}
#: Networks follow what the caller has set, as all modules of torch do.
NETWORKS = {
    "nets.allconv.AllConvBlock": lambda: allconv.AllConvBlock(3, 5, 2),
    "nets.allconv.AllConvResNet": lambda: allconv.AllConvResNet(blocks=1, widths=(4, 4, 8)),
    "nets.memorizer.MemorizerNet": lambda: memorizer.MemorizerNet(memorizer_of(Make())),
    "nets.preact.Bottleneck": lambda: preact.Bottleneck(3, 2, 2, "projection"),
    "nets.preact.PlainNet": lambda: preact.PlainNet(11, 2),
    "nets.preact.PreActResNet": lambda: preact.PreActResNet(11, 2),
    "nets.preact.ProcResNet": lambda: preact.ProcResNet(13, 2),
    "nets.shortcut_depth.ShortcutBlock": lambda: shortcut_depth.ShortcutBlock(3, 5, 2, 2, "B"),
    "nets.shortcut_depth.ShortcutDepthResNet": lambda: shortcut_depth.ShortcutDepthResNet(8, 2, 4),
}


def descent(m):
    return landscape.gradient_descent(0.05 * m(2, 3, 3), m.near_identity(3), m.moment(3), 0.01, 5)


def exact():
    return memorize.construct_exact_memorizer([[1, 0], [0, 1], [-1, 0]], [0, 1, 0], 2)


def with_linear(m, name):
    net, W, xx, yx = linear_network(m)
    return getattr(net, name)(W, xx, yx)


def maps(m):
    linear = norms.SmoothMap(lambda x: x @ x.new_ones(3, 3).triu(), 3, 0.0, 3.0)
    return [norms.sample_smooth_map(f, 3, draw()) for f in norms.SMOOTH_FAMILIES] + [linear]


# ------------------------------------------------------------------------------------------------------------ states


def default_device(name):
    @contextmanager
    def state():
        torch.set_default_device(name)
        try:
            yield
        finally:
            torch.set_default_device(None)

    return state


@contextmanager
def default_dtype():
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(F32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def compiling():
    yield


STATES = {
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "requires_grad": compiling,
    "deterministic": deterministic,
}


#: Instruments with tests of their own: test_audit_state.py for audits, test_descent.py for descents.
ELSEWHERE = {"auditing", "blocks", "probes", "three_layers", "descent"}


def public():
    """Names of the public functions, and of those of public classes."""
    names = set()
    for package in (resid.theory, resid.nets):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            path = info.name.removeprefix("resid.theory.").removeprefix("resid.").split(".")
            if path[-1].startswith("_") or path[-1] in ELSEWHERE:
                continue
            module, door = importlib.import_module(info.name), ".".join(path[:2] if path[0] == "nets" else path[:1])
            for name, value in vars(module).items():
                if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                    continue
                if inspect.isclass(value):
                    names |= of_class(f"{door}.{name}", value)
                elif callable(value):
                    names.add(f"{door}.{name}")
    return names


def of_class(name, value):
    if issubclass(value, nn.Module) and name in NETWORKS:
        return {name}
    names = {n for n in vars(value) if n == "__call__" or not n.startswith("_")} - FREE.get(name, set())
    kinds = (property, classmethod, staticmethod)
    return {f"{name}.{n}" for n in names if isinstance(vars(value)[n], kinds) or inspect.isfunction(vars(value)[n])}


def flat(value):
    """Numbers and arrays of a result, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        assert not value.is_meta
        return [(str(value.dtype), value.detach().to(torch.complex128 if value.is_complex() else F64).numpy())]
    if is_dataclass(value):
        return [x for f in fields(value) if not callable(getattr(value, f.name)) for x in flat(getattr(value, f.name))]
    if isinstance(value, dict):
        return [x for key in value for x in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in flat(v)]
    if hasattr(value, "__dict__"):
        return flat(vars(value))
    return [("", value)]


def same(found, expected):
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for (kind, a), (other, b) in zip(found, expected, strict=True):
        assert kind == other
        if isinstance(b, (np.ndarray, float)):
            # the same operations; a tensor that requires a gradient may take another road, as exact
            np.testing.assert_allclose(a, b, rtol=0, atol=(1e-5 if "32" in kind else 1e-10) * max(1, np.abs(b).max()))
        else:
            assert a == b


def test_every_public_function_has_a_call():
    assert public() == CALLS.keys() | NETWORKS.keys()


@pytest.fixture
def every_warning():
    """Some warnings of torch come once a process, so that only the first call of all would fail."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("every_warning")
@pytest.mark.parametrize("name", CALLS)
def test_no_state_of_torch_changes_a_result(name):
    call = CALLS[name]
    expected = call(Make())
    for state, enter in STATES.items():
        with enter():
            found = call(Make(requires_grad=state == "requires_grad"))
        try:
            same(found, expected)
        except AssertionError as error:
            raise AssertionError(f"under {state}: {error}") from error


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_made_where_and_as_the_caller_says(name):
    make = NETWORKS[name]
    kept = name == "nets.memorizer.MemorizerNet"  # takes the weights of a construction
    with torch.device("meta"):
        assert all(p.is_meta is not kept for p in (*make().parameters(), *make().buffers()))
    with default_dtype():
        assert all(p.dtype == F64 for p in make().parameters())
    for state in ("bfloat16", "float16", "no_grad", "inference_mode"):
        with STATES[state]():
            net = make()
        assert all(p.dtype == (F64 if kept else F32) and p.requires_grad for p in net.parameters())


# ------------------------------------------------------------------------------------ mixed precision and compilation

LAYERS = {
    "1 x 1": ((4, 8, 1), {}, 2),
    "3 x 3, oblong": ((3, 64, 3), {"padding": 1}, 1),
    "3 x 3, square": ((8, 8, 3), {"padding": 1}, 1),
    "2 x 2, stride 2": ((4, 8, 2), {"stride": 2}, 1),
}


def projected_layer(name):
    sizes, options, _ = LAYERS[name]
    return procrustes.norm_preserving(conv(*sizes, **options), 8)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_preserving_layer_trains_in_mixed_precision(name, half, inside):
    layer, x = projected_layer(name), Make()(2, LAYERS[name][0][0], 8, 8, dtype=F32)
    target = Make()(*layer(x).shape, seed=1, dtype=F32)
    weight = layer.weight.detach()
    (layer(x) * target).sum().backward()
    original = layer.parametrizations.weight.original
    expected, original.grad = original.grad, None
    with torch.autocast("cpu", half):
        assert torch.equal(layer.weight, weight)
        out = layer(x)
        assert out.dtype == half
        loss = (out * target).sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert original.grad.dtype == F32
    # the gradient that reaches the projection is rounded to half precision, and so is what is asked for inside
    assert float((original.grad - expected).norm() / expected.norm()) < 4 * torch.finfo(half).eps


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", polar.METHODS)
def test_the_polar_factor_and_its_derivative_stay_exact(method, half):
    A, g = (Make(i == 0)(5, 9, 6, seed=i, dtype=F32) for i in range(2))
    expected = torch.autograd.grad((polar.polar_factor(A, method) * g).sum(), A)[0]
    with torch.autocast("cpu", half):
        Q = polar.polar_factor(A, method)
        (found,) = torch.autograd.grad((Q * g).sum(), A)
    assert Q.dtype == found.dtype == F32
    torch.testing.assert_close(Q.mT @ Q, torch.eye(6).expand(5, 6, 6), atol=2e-5, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_projection_after_a_step_inside_of_autocast(name, half):
    sizes, options, _ = LAYERS[name]
    weights = []
    for enabled in (False, True):
        layer = conv(*sizes, **options)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        projection = procrustes.ProcrustesProjection([(layer, 8)])
        projection.attach(optimizer)
        layer.weight.grad = Make()(*layer.weight.shape, seed=1, dtype=F32)
        with torch.autocast("cpu", half, enabled=enabled):
            optimizer.step()
        weights.append(layer.weight.detach())
        if name in ("1 x 1", "2 x 2, stride 2"):
            (report,) = projection.reports()
            assert report.sigma_min == pytest.approx(1, abs=1e-5) == report.sigma_max
    assert torch.equal(*weights)


def test_a_derivative_is_recorded_where_it_is_asked_for():
    """The isolation does not cut what is differentiable: against differences."""
    A = Make(True)(2, 4, 3)
    for function in (
        polar.polar_factor,
        lambda A: nearest.project_norm_preserving(A.reshape(6, 1, 2, 2), 4),
        lambda A: orthonormal_taps.project_orthonormal_taps(A.reshape(6, 1, 2, 2)),
        lambda A: norms.norm_ratios(A, direction="in/out"),
        lambda A: norms.twist(0.3)(A),
    ):
        assert torch.autograd.gradcheck(function, (A,))


def test_the_maps_pass_the_transforms_of_torch():
    x = Make()(5, 3)
    for h in maps(Make()):
        automatic = torch.func.vmap(torch.func.jacrev(h))(x)
        torch.testing.assert_close(automatic, h.jacobian(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # within torch's compiler
def test_layers_and_measurements_of_compiled_models():
    layer, x = projected_layer("3 x 3, oblong"), Make()(2, 3, 8, 8, dtype=F32)
    plain = nn.Sequential(layer, nn.ReLU(), conv(64, 2, 1))
    expected = plain(x)
    compiled = torch.compile(plain, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    sizes = procrustes.input_sizes(compiled, x)
    assert {n.removeprefix("_orig_mod."): size for n, size in sizes.items()} == {"0": (8, 8), "2": (8, 8)}
    plain.compile(backend="eager")
    plain(x)
    assert procrustes.input_sizes(plain, x) == {"0": (8, 8), "2": (8, 8)}
    assert shapes.shape_table(plain, (3, 8, 8)).rows[-1].shape == (2, 8, 8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # within torch's compiler
def test_functions_inside_of_compiled_code():
    """They run as written: one piece of compiled code before, and one after."""
    A, seen = Make()(5, 9, 6, dtype=F32), []

    def backend(graph, _):
        seen.append(graph)
        return graph.forward

    def whole(A):
        return polar.polar_factor(A + 1).mT - norms.norm_ratios(A, direction="in/out").sum()

    expected = whole(A)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(whole, backend=backend)(A), expected)
    assert len(seen) <= 3


def test_isolation_puts_everything_back():
    @isolated(grad=True)
    def fails():
        assert torch.zeros(2).requires_grad_().square().requires_grad
        assert (torch.eye(2) @ torch.eye(2)).dtype == F32
        assert torch.zeros(1).device.type == "cpu"
        return 1 / 0

    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), default_dtype(), torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            fails()
        assert torch.zeros(1).is_meta
        assert torch.zeros(1).dtype == F64
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_functions_of_the_caller_keep_the_caller_s_defaults():
    @isolated(factories=False)
    def calls(function):
        return function()

    with torch.device("meta"), default_dtype():
        made = calls(lambda: torch.zeros(1))
    assert made.is_meta
    assert made.dtype == F64


# ------------------------------------------------------------------------------------- functions that use derivatives


@pytest.mark.parametrize("kernel", [torch.zeros(2, 2, 3, 3), torch.zeros(1, 2, 5, 5, dtype=F64)])
def test_the_largest_singular_values_of_zero(kernel):
    found = conv_spectrum.largest_conv_singular_values(kernel, 6, 3)
    assert torch.equal(found, kernel.new_zeros(3))


@pytest.mark.parametrize("who", ["X", "Y", "both", "moment"])
def test_hessians_of_samples_that_require_gradients(who):
    net, W, X, Y = network(Make())
    if who == "moment":
        net, W, xx, yx = linear_network(Make())
        assert torch.equal(
            net.hessian_from_moments(W, xx.clone().requires_grad_(), yx), net.hessian_from_moments(W, xx, yx)
        )
        return
    given = [t.clone().requires_grad_(who in (name, "both")) for name, t in (("X", X), ("Y", Y))]
    assert torch.equal(net.hessian(W, *given), net.hessian(W, X, Y))
