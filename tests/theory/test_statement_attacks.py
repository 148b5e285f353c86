"""Searches for a violation of three statements of our own: strided convolutions, small units, batch normalisation.

As in `test_linear_attacks`: each search goes where a false clause would show, reaches the edge of the statement, and
finds what the statement excludes once a hypothesis is dropped. Twins are written from the statements, not the library.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from resid.book.checks.norms.batch_norm_stack import bottleneck, bottleneck_weights, stack_trial
from resid.theory.conv_spectrum import conv_singular_values
from resid.theory.norms import batch_norm_ratios, gradient_norm_ratios
from resid.theory.small_weights import apply_units, least_stretch

F64 = torch.float64


def normal(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=F64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- strided convolutions


def singular_values_of_images(kernel, n, stride):
    """Push every unit image, tiled over the plane, through conv2d and decompose what comes out at sP, P < n/s."""
    c, (height, width) = kernel.shape[1], n
    columns = []
    for place in range(c * height * width):
        image = torch.zeros(c * height * width, dtype=F64)
        image[place] = 1
        tiles = [2 + kernel.shape[2 + i] // n[i] for i in range(2)]
        plane = image.view(1, c, height, width).repeat(1, 1, *tiles)
        seen = functional.conv2d(plane, kernel, stride=stride)
        columns.append(seen[0, :, : -(-height // stride[0]), : -(-width // stride[1])].flatten())
    return torch.linalg.svdvals(torch.stack(columns, dim=1))


def response(kernel, p, q, n):
    """A(w) = sum_t K_t exp(i w t) at w = 2 pi (p/n_h, q/n_w), one tap after another."""
    total = torch.zeros(kernel.shape[:2], dtype=torch.complex128)
    for a, b in itertools.product(range(kernel.shape[2]), range(kernel.shape[3])):
        angle = torch.tensor(2 * math.pi * (p * a / n[0] + q * b / n[1]), dtype=F64)
        total += kernel[:, :, a, b] * torch.polar(torch.ones_like(angle), angle)
    return total


def statement_of_strides(kernel, n, stride):
    """The theorem as printed: the (n/s)^2 matrices of s^2 aliased frequencies side by side, times 1/s."""
    coarse = [n[i] // stride[i] for i in range(2)]
    found = []
    for p, q in itertools.product(range(coarse[0]), range(coarse[1])):
        aliased = [
            response(kernel, p + i * coarse[0], q + j * coarse[1], n)
            for i, j in itertools.product(range(stride[0]), range(stride[1]))
        ]
        found.append(torch.linalg.svdvals(torch.cat(aliased, dim=1)) / math.sqrt(stride[0] * stride[1]))
    return torch.cat(found).sort(descending=True).values


def comb(K, s):
    """Only taps at multiples of the stride: the output reads one of the interleaved grids and no other."""
    kept = torch.zeros_like(K)
    kept[:, :, :: s[0], :: s[1]] = K[:, :, :: s[0], :: s[1]]
    return kept


def one_rank(K, _):
    """Outer product of one output vector, one input vector and one picture."""
    return torch.einsum("d,c,ab->dcab", K[:, 0, 0, 0], K[0, :, 0, 0], K[0, 0])


def fastest_wave(K, _):
    """(-1)^(a + b): everything at the frequency that the stride lets fall on zero."""
    signs = torch.ones(K.shape[2:], dtype=F64)
    signs[1::2] *= -1
    signs[:, 1::2] *= -1
    return K[:, :, :1, :1] * signs


ADVERSARIES = {
    "random": lambda K, _: K,
    "zero": lambda K, _: torch.zeros_like(K),
    "rank one": one_rank,
    "one output repeated": lambda K, _: K[:1].expand_as(K).clone(),
    "constant": lambda K, _: K[:, :, :1, :1].expand_as(K).clone(),
    "fastest wave": fastest_wave,
    "last tap alone": lambda K, _: functional.pad(K[:, :, -1:, -1:], (K.shape[3] - 1, 0, K.shape[2] - 1, 0)),
    "comb": comb,
    "huge": lambda K, _: 1e140 * K,
    "tiny": lambda K, _: 1e-140 * K,
}
MAPS = [  # c_out, c_in, taps, n, stride
    (1, 1, (1, 1), (4, 4), (2, 2)),
    (3, 1, (1, 1), (4, 4), (2, 2)),  # more outputs than inputs that are read
    (3, 1, (1, 2), (4, 4), (2, 2)),
    (1, 1, (4, 4), (6, 6), (3, 3)),
    (1, 2, (2, 2), (4, 4), (2, 2)),
    (3, 1, (3, 3), (6, 6), (3, 3)),
    (6, 1, (3, 3), (4, 4), (2, 2)),  # more outputs than c s^2 inputs
    (2, 3, (3, 3), (5, 5), (1, 1)),
    (2, 2, (5, 5), (4, 4), (2, 2)),  # larger than the map: taps fall on one another
    (2, 1, (7, 6), (3, 3), (3, 3)),  # more than twice as large, one output position
    (2, 2, (9, 9), (4, 4), (2, 2)),
    (2, 1, (3, 2), (4, 6), (2, 3)),
    (1, 2, (1, 5), (2, 6), (1, 2)),
    (3, 2, (4, 3), (6, 2), (3, 1)),
]


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_strided_convolutions_under_attack(case, adversary):
    """The printed theorem, the library and the matrix of conv2d have the same singular values, multiplicities too."""
    d, c, taps, n, stride = case
    kernel = ADVERSARIES[adversary](normal(generator(sum(taps) + d), d, c, *taps), stride)
    exact = singular_values_of_images(kernel, n, stride)
    room = 1e-12 * float(kernel.abs().sum())  # the taps may cancel
    for values in (statement_of_strides(kernel, n, stride), conv_singular_values(kernel, n, stride)):
        assert values.shape == exact.shape
        assert float((values - exact).abs().max()) <= room


@pytest.mark.parametrize(("n", "stride"), [((5, 5), (2, 2)), ((7, 4), (3, 3)), ((4, 5), (2, 2)), ((3, 3), (5, 5))])
@pytest.mark.parametrize("adversary", ["random", "rank one", "fastest wave", "comb"])
def test_strides_that_do_not_divide_the_map_under_attack(n, stride, adversary):
    """What the theorem leaves out and the library does all the same: ceil(n/s) outputs."""
    for seed, (d, c, taps) in enumerate([(1, 1, (2, 2)), (2, 1, (3, 3)), (1, 2, (4, 3)), (2, 2, (6, 7))]):
        kernel = ADVERSARIES[adversary](normal(generator(seed), d, c, *taps), stride)
        exact = singular_values_of_images(kernel, n, stride)
        values = conv_singular_values(kernel, n, stride)
        assert values.shape == exact.shape
        assert float((values - exact).abs().max()) <= 1e-12 * float(kernel.abs().sum())


def test_which_strided_convolutions_theorem_3_describes():
    """Of kernels with more than one tap no random one, for any n: but each that reads only one interleaved grid."""
    stride, n, gen = (2, 2), (6, 6), generator(0)
    for taps in ((2, 2), (3, 3), (1, 2)):
        kernel = normal(gen, 2, 3, *taps)
        exact = singular_values_of_images(kernel, n, stride)
        for size in range(1, 13):
            values = conv_singular_values(kernel, size)
            assert len(values) != len(exact) or float((values - exact).abs().max()) > 0.01 * float(exact[0])
        sparse = comb(normal(gen, 2, 3, 3, 3), stride)
        assert int(sparse.count_nonzero()) == 2 * 3 * 4
        exact = singular_values_of_images(sparse, n, stride)
        assert float((conv_singular_values(sparse, 3) - exact).abs().max()) <= 1e-12 * float(exact[0])


# -------------------------------------------------------------------------------------------------------- small units


def of_product(raw, products):
    """Units (batch, R, 2, d, d) in these directions with ||W1|| ||W2|| = products (R,), in spectral norms."""
    unit = raw / torch.linalg.svdvals(raw)[..., :1, None]
    return unit * torch.tensor(products, dtype=F64).sqrt()[:, None, None, None]


def run_units(weights, biases, x):
    """h -> h + W2 ReLU(W1 h + b), one after another, for networks (batch, R, 2, d, d) and inputs (batch, d)."""
    h = x
    for r in range(weights.shape[1]):
        inner = torch.relu((weights[:, r, 0] @ h[..., None])[..., 0] + biases[:, r])
        h = h + (weights[:, r, 1] @ inner[..., None])[..., 0]
    return h


def nearest_pair(gen, products, d, starts=24, steps=500):
    """The least |f(x) - f(x')| / |x - x'| that Adam finds, over units of these products, biases and both inputs.

    Returns it with its network and its pair.
    """
    raw, biases = normal(gen, starts, len(products), 2, d, d), 0.3 * normal(gen, starts, len(products), d)
    x, way = normal(gen, starts, d), normal(gen, starts, d)
    raw[: starts // 2, :, 1] = -raw[: starts // 2, :, 0].mT  # each unit pulls back what it sees
    variables = [value.requires_grad_() for value in (raw, biases, x, way)]
    optimizer, found = torch.optim.Adam(variables, lr=0.03), (math.inf,)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps) ** 2 + 1e-6
        optimizer.zero_grad()
        weights = of_product(raw, products)
        gap = run_units(weights, biases, x + way) - run_units(weights, biases, x)
        ratios = gap.norm(dim=1) / way.norm(dim=1)
        assert bool(torch.isfinite(ratios).all())
        least = int(ratios.argmin())
        if float(ratios[least].detach()) < found[0]:
            pair = torch.stack([x[least], (x + way)[least]])
            found = (
                float(ratios[least].detach()),
                *(v.detach().clone() for v in (weights[least], biases[least], pair)),
            )
        (ratios + 1e-12).log().sum().backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("d", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("products", [(0.5,), (0.9,), (0.999,), (0.3, 0.6), (0.8, 0.1, 0.5)], ids=str)
def test_no_pair_comes_nearer_than_small_units_allow(products, d):
    """Norms, biases and both inputs are free; the bound holds at every step of the search, and is reached."""
    ratio, weights, biases, pair = nearest_pair(generator(d), products, d)
    bound = math.prod(1 - a for a in products)
    assert least_stretch(weights) == pytest.approx(bound, rel=1e-9)
    images = apply_units(weights, biases, pair)
    assert float((images[1] - images[0]).norm() / (pair[1] - pair[0]).norm()) == pytest.approx(ratio, rel=1e-9)
    assert bound * (1 - 1e-9) <= ratio < 1.01 * bound


@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("products", [(1.001,), (1.2,), (0.2, 1.01), (1.5, 1.5)], ids=str)
def test_a_unit_above_the_threshold_lets_two_inputs_collide(products, d):
    """The same search with one product a little above 1 sends different inputs to one output; nothing is claimed."""
    ratio, weights, biases, pair = nearest_pair(generator(d), products, d)
    assert least_stretch(weights) == 0  # two factors below zero make no positive bound
    assert ratio < 1e-4  # a tenth of what 0.999 allows, and of |1 - 1.001|
    images = apply_units(weights, biases, pair)
    assert float((images[1] - images[0]).norm()) < 1e-4 * float((pair[1] - pair[0]).norm())


def test_products_at_the_threshold():
    """One unit on a line, x - a ReLU(x): 1 goes where 1 - a goes, unless a < 1; at a = 1 a ray becomes a point."""
    for a, collides in ((1 - 1e-9, False), (1.0, True), (1 + 1e-9, True)):
        weights = torch.tensor([[[[1.0]], [[-a]]]], dtype=F64)
        pair = torch.tensor([[1.0], [1 - a if a > 1 else 0.5]], dtype=F64)
        images = apply_units(weights, torch.zeros(1, 1, dtype=F64), pair)
        assert (float((images[0] - images[1]).abs()) < 1e-15) is collides
        assert (least_stretch(weights) == 0) is collides


# ------------------------------------------------------------------------------------------------ batch normalisation

EPS = 1e-5  # of torch's batch normalisation


def jacobian_by_hand(weights, x):
    """The Jacobian of x + W_k r(BN(.. W_1 r(BN(x)))) for x (n, channels), rows (sample, channel), from the formula

    dBN(h)_a/dh_b = ((a = b) - 1/n - z_a z_b/n) / sqrt(var + eps), channel by channel, z = (h - mean)/sqrt(var + eps).
    """
    n, h = len(x), x
    total = torch.eye(x.numel(), dtype=F64)
    for W in weights:
        size = (h.var(0, correction=0) + EPS).sqrt()
        z = (h - h.mean(0)) / size
        each = (torch.eye(n, dtype=F64)[:, :, None] - 1 / n - z[:, None] * z / n) / size  # (n, n, channels)
        open_ = (z > 0).to(F64)
        share = torch.einsum("oc,ac,abc->aobc", W, open_, each).reshape(n * len(W), -1)
        total, h = share @ total, (z * open_) @ W.mT
    return torch.eye(x.numel(), dtype=F64) + total


BATCHES = {
    "normal": lambda x: x,
    "large mean": lambda x: x + 1e4,
    "a constant channel": lambda x: torch.cat([torch.full_like(x[:, :1], 3.0), x[:, 1:]], 1),
    "constant": lambda x: torch.ones_like(x) + 1e-9 * x,  # far below eps, and no unit exactly at its kink
    "variance of the size of eps": lambda x: 3e-3 * x,
    "channels alike": lambda x: x[:, :1] + 0.01 * x,
    "one sample far away": lambda x: torch.cat([x[:1] + 1e3, x[1:]]),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_measured_ratio_of_a_normalised_block_under_attack(n, name):
    """Backpropagation through the chapter's block, autograd's whole Jacobian, and the derivative written out."""
    gen = generator(n)
    weights = bottleneck_weights(8, gen)
    x, g = BATCHES[name](normal(gen, n, 8)), normal(gen, n, 8)
    block = partial(bottleneck, weights)

    def flat(values):
        return block(values.view(n, 1, 1, 8)).flatten()

    J, ours = torch.autograd.functional.jacobian(flat, x.flatten()), jacobian_by_hand(weights, x)
    room = 1e-6 if name in ("large mean", "constant") else 1e-9  # digits that the mean takes away
    assert float((J - ours).abs().max()) <= room * float(ours.abs().max())
    measured = gradient_norm_ratios(
        [block], x.view(n, 1, 1, 8), lambda y: (y.flatten() * g.flatten()).sum(), direction="in/out"
    )
    assert float(measured) == pytest.approx(float((ours.mT @ g.flatten()).norm() / g.norm()), rel=room)


def one_block(x, g):
    """The in/out ratio of one bottleneck at initial weights for x, g (samples, channels)."""
    weights, shape = bottleneck_weights(x.shape[1], generator(100)), (len(x), 1, 1, x.shape[1])
    block, given = partial(bottleneck, weights), g.reshape(shape)
    return float(gradient_norm_ratios([block], x.reshape(shape), lambda y: (y * given).sum(), direction="in/out"))


def standard(values):
    """Mean zero, variance one in each channel."""
    return (values - values.mean(0)) / values.std(0, correction=0)


FORMULA = float(batch_norm_ratios(1, 1 - 1 / math.pi, direction="in/out"))


@pytest.mark.parametrize(
    "attack", ["plain", "mean", "small", "along the stream", "few channels", "few samples", "skew g"]
)
def test_the_formula_of_normalised_blocks_under_attack(attack):
    """Normal independent channels, 1,024 samples: whatever the mean and scale, and for gradients of many kinds."""
    gen = generator(3)
    x, g = normal(gen, 1024, 256), normal(gen, 1024, 256)
    variance = 1.0
    if attack == "mean":
        x = x + 1e4 * normal(gen, 256)
    elif attack == "small":
        x, variance = 0.05 * x, 0.05**2
    elif attack == "along the stream":
        g = x
    elif attack == "few channels":
        g[:, 32:] = 0
    elif attack == "few samples":
        g[64:] = 0
    elif attack == "skew g":
        g = standard(g.exp())
    expected = float(batch_norm_ratios(1, 1 - 1 / math.pi, variance, direction="in/out"))
    assert one_block(x, g) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("dropped", "least"),
    [
        ("skewed to the right", 0.15),
        ("skewed to the left", 0.4),
        ("two values", 0.05),
        ("channels alike", 1.0),
        ("unequal variances", 1.0),
        ("the same gradient for all samples", 0.2),
        ("two samples", 0.3),
    ],
)
def test_what_the_formula_needs_besides_many_channels_and_samples(dropped, least):
    """Weights are independent, channels and samples many: the formula fails where stream or gradient are not normal.

    Each is a counterexample to the formula without a condition on the stream and the gradient.
    """
    gen = generator(4)
    x, g = normal(gen, 1024, 256), normal(gen, 1024, 256)
    if dropped == "skewed to the right":
        x = standard(x.exp())
    elif dropped == "skewed to the left":
        x = -standard(x.exp())
    elif dropped == "two values":
        x = x.sign()
    elif dropped == "channels alike":
        x = standard(x[:, :1] + 1e-3 * x)
    elif dropped == "unequal variances":
        x[:, ::2] *= 0.1
        x[:, 1::2] *= math.sqrt(2 - 0.1**2)  # one on the average
    elif dropped == "the same gradient for all samples":
        g = torch.ones_like(g)
    elif dropped == "two samples":
        x, g = x[:2], g[:2]
    assert abs(one_block(x, g) / FORMULA - 1) > least


def test_the_first_block_under_a_deep_stack_and_the_scale_that_drops_out():
    """Over a whole stack, and with weights made smaller until eps is what divides."""
    trial = stack_trial(12, generator(5), 192, (512, 1))
    assert float((trial.measured / trial.predicted - 1).abs().max()) < 0.08
    gen = generator(6)
    weights = bottleneck_weights(128, gen)
    x, g = (normal(gen, 512, 1, 1, 128) for _ in range(2))

    def ratio(factor):
        small = [factor * weights[0], factor * weights[1], weights[2]]
        return float(gradient_norm_ratios([partial(bottleneck, small)], x, lambda y: (y * g).sum(), direction="in/out"))

    changes = [abs(ratio(factor) / ratio(1) - 1) for factor in (0.1, 0.01, 1e-4)]
    for change, factor in zip(changes[:2], (0.1, 0.01), strict=True):
        assert change <= 2 * EPS / factor**2  # two normalisations with a variance of about 0.7
    assert changes[2] > 0.3  # eps is no small part of 0.7e-8: "the scale drops out" needs weights far above 0.01
