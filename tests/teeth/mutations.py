"""The list of mutations. Each replaces one passage of the library by a wrong one, as a slip of the pen would."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """name; file; the passage, which must occur once; what it becomes; the test file and the chapter that must fail.

    chapter is "" where the passage is no part of any chapter's mathematics.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    chapter: str


FACTOR = ("tests/theory/test_factor.py", "linear/factor")
LANDSCAPE = ("tests/theory/test_landscape.py", "linear/landscape")
SHORTCUT = ("tests/theory/test_shortcut.py", "linear/shortcut_depth")
SMALL_WEIGHTS = ("tests/theory/test_small_weights.py", "samples/small_weights")
DYNAMICS = ("tests/lab/test_descent.py", "linear/dynamics")
MEMORIZE = ("tests/theory/test_memorize.py", "samples/memorize")
NORMS = ("tests/theory/test_norms.py", "norms/bounds")
FLOW = ("tests/theory/test_near_identity_flow.py", "norms/bounds")
SPECTRUM = ("tests/theory/test_conv_spectrum.py", "norms/conv_spectrum")
PROCRUSTES = ("tests/theory/test_procrustes.py", "norms/procrustes")
NORM_DRIFT = ("tests/lab/test_norm_study.py", "norms/procrustes")
AUDIT = ("tests/lab/test_audit.py", "norms/audit")
ALLCONV = ("tests/trials/test_cifar.py", "experiments/allconv_cifar")
SHORTCUT_CIFAR = ("tests/trials/test_cifar.py", "experiments/shortcut_depth_cifar")
PROCRESNET = ("tests/trials/test_cifar.py", "experiments/procresnet_cifar")
LEDGER = ("tests/ledger/test_ledger.py", "")
BATCHES = ("tests/lab/test_batches.py", "")
TRAIN = ("tests/lab/test_train.py", "")
FAULTS = ("tests/lab/test_faults.py", "")

MUTATIONS = (
    Mutation(
        "polar factor transposed",
        "resid/theory/factor.py",
        "    rotation = plane_rotations(U @ Vh)\n    root",
        "    rotation = plane_rotations((U @ Vh).mT)\n    root",
        *FACTOR,
    ),
    Mutation(
        "half turns not paired",
        "resid/theory/_rotation.py",
        "    planes += [(a, b, math.pi)",
        "    planes += [(a, b, 0.0)",
        *FACTOR,
    ),
    Mutation(
        "sign of a rotation's root",
        "resid/theory/_rotation.py",
        "(first * drop + second * sine) @ first.mT + (second * drop - first * sine) @ second.mT",
        "(first * drop - second * sine) @ first.mT + (second * drop + first * sine) @ second.mT",
        *FACTOR,
    ),
    Mutation(
        "angle not divided among the layers",
        "resid/theory/factor_lower_bound.py",
        "np.sin(np.arctan2(across, along) / (2 * depth))",
        "np.sin(np.arctan2(across, along) / (2 * (depth - 1 or 1)))",
        *FACTOR,
    ),
    Mutation(
        "determinant not looked at",
        "resid/theory/factor_lower_bound.py",
        "    if sign <= 0:\n        return 1.0",
        "    if sign == 0:\n        return 1.0",
        *FACTOR,
    ),
    Mutation(
        "sign of the gradient",
        "resid/theory/landscape.py",
        "    back = 2 * weighted",
        "    back = -2 * weighted",
        *LANDSCAPE,
    ),
    Mutation(
        "printed order of the gradient",
        "resid/theory/landscape.py",
        "gradient[..., i, :, :] = back @ products[i].mT",
        "gradient[..., i, :, :] = back @ _forward(A[..., : max(i, 1), :, :].flip(-3))[i].mT",
        *LANDSCAPE,
    ),
    Mutation(
        "factor 2 of the exponent",
        "resid/theory/landscape.py",
        "room.amin(-1) ** (2 * (depth - 1))",
        "room.amin(-1) ** (depth - 1)",
        *LANDSCAPE,
    ),
    Mutation(
        "smallest eigenvalue squared",
        "resid/theory/landscape.py",
        "4 * chain * smallest *",
        "4 * chain * smallest**2 *",
        *LANDSCAPE,
    ),
    Mutation(
        "risk without the second moment",
        "resid/theory/landscape.py",
        "    return ((error @ sigma) * error).sum((-2, -1)).clamp_min(0)",
        "    return (error * error).sum((-2, -1)).clamp_min(0)",
        *LANDSCAPE,
    ),
    Mutation(
        "augmentation with the wrong sign",
        "resid/theory/landscape.py",
        "torch.block_diag(matrix, -torch.ones(1, 1,",
        "torch.block_diag(matrix, torch.ones(1, 1,",
        *LANDSCAPE,
    ),
    Mutation(
        "M transposed",
        "resid/theory/shortcut_zero.py",
        "    return slope * ((X - Y).mT @ X) / len(X)",
        "    return slope * (X.mT @ (X - Y)) / len(X)",
        *SHORTCUT,
    ),
    Mutation(
        "residual term dropped",
        "resid/theory/_shortcut_hessian.py",
        "    BS, AtE, Bt = B @ sigma_xx, A.mT @ error, B.mT",
        "    BS, AtE, Bt = B @ sigma_xx, 0 * (A.mT @ error), B.mT",
        *SHORTCUT,
    ),
    Mutation(
        "units joined in the wrong order",
        "resid/theory/_shortcut_hessian.py",
        "        between[r, : r - 1] = maps[r - 1] @ between[r - 1, : r - 1]",
        "        between[r, : r - 1] = between[r - 1, : r - 1] @ maps[r - 1]",
        *SHORTCUT,
    ),
    Mutation(
        "slope 1 for ReLU",
        "resid/theory/_activation.py",
        "        return (z > 0).to(z), torch.zeros_like(z)",
        "        return torch.ones_like(z), torch.zeros_like(z)",
        *SHORTCUT,
    ),
    Mutation(
        "inactive samples in place of active ones",
        "resid/theory/shortcut_zero.py",
        "    active = (X @ rows.mT > 0).to(X)",
        "    active = (X @ rows.mT < 0).to(X)",
        *SHORTCUT,
    ),
    Mutation(
        "labels turned the wrong way",
        "resid/theory/shortcut.py",
        "    return torch.stack(products), products[-1].mT",
        "    return torch.stack(products), products[-1]",
        *SHORTCUT,
    ),
    Mutation(
        "gradient without the weights behind",
        "resid/theory/_shortcut_linear.py",
        "        back.append(maps[..., r, :, :].mT @ back[-1])",
        "        back.append(back[-1])",
        *DYNAMICS,
    ),
    Mutation(
        "ascent in place of descent",
        "resid/lab/descent.py",
        "            W = W - rates",
        "            W = W + rates",
        *DYNAMICS,
    ),
    Mutation(
        "biases of the blocks dropped",
        "resid/theory/_memorize.py",
        "    U[:n], s[:n], move[:n] = z, bias, targets - z",
        "    U[:n], s[:n], move[:n] = z, 0 * bias, targets - z",
        *MEMORIZE,
    ),
    Mutation(
        "two columns of V swapped",
        "resid/theory/_memorize.py",
        "    return U, s, V\n\n\ndef surrogates",
        "    return U, s, torch.cat([V[..., 1:2], V[..., :1], V[..., 2:]], -1)\n\n\ndef surrogates",
        *MEMORIZE,
    ),
    Mutation(
        "thresholds below the largest rival",
        "resid/theory/memorize.py",
        "        found = first, origin, z, order, q, -(squares + rivals) / 2, float(gap.min())",
        "        found = first, origin, z, order, q, -0.95 * rivals, float(gap.min())",
        *MEMORIZE,
    ),
    Mutation(
        "surrogate labels not looked at",
        "resid/theory/memorize.py",
        "        rivals = competitors(z, q, later=True)",
        "        rivals = competitors(z, q[:0], later=True)",
        *MEMORIZE,
    ),
    Mutation(
        "slack of the paper's threshold",
        "resid/theory/memorize.py",
        '    threshold = 1 - 2 * check_positive("slack", slack)\n    U =',
        '    threshold = 1 - 3 * check_positive("slack", slack)\n    U =',
        *MEMORIZE,
    ),
    Mutation(
        "ideal path reused in the closed loop",
        "resid/theory/small_weights.py",
        "        at = h if closed_loop else P[:, k]",
        "        at = P[:, k]",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "bias of a unit dropped",
        "resid/theory/small_weights.py",
        "    return c * at / length, -c[:, 0] * opens,",
        "    return c * at / length, 0 * opens,",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "threshold for the whole separation",
        "resid/theory/small_weights.py",
        'None if threshold == "sharp" else rho / 2)',
        'None if threshold == "sharp" else rho)',
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "bypass about the obstacle itself",
        "resid/theory/_sphere.py",
        "circles += [(height * obstacles[j], away, onward)",
        "circles += [(obstacles[j], away, onward)",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "bypass through the side of the obstacle",
        "resid/theory/_sphere.py",
        "away = _unit((n / A) * inward - aside,",
        "away = _unit((n / A) * inward + aside,",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "obstacles that have moved already",
        "resid/theory/small_weights.py",
        "path_round(X[i], Y[i], torch.cat([Y[:i], X[i + 1 :]]), rho / 2)",
        "path_round(X[i], Y[i], torch.cat([X[:i], X[i + 1 :]]), rho / 2)",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "curvature left out of the growth",
        "resid/theory/_sphere.py",
        "rates = (1 / gap - self.radii**-2)",
        "rates = (1 / gap - self.radii**2)",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "stretch of one matrix",
        "resid/theory/small_weights.py",
        "(1 - norms[:, 0] * norms[:, 1])",
        "(1 - norms[:, 0] * norms[:, 1] ** 2)",
        *SMALL_WEIGHTS,
    ),
    Mutation(
        "in/out swapped with out/in",
        "resid/theory/norms.py",
        'norms[:-1] / norms[1:] if direction == "in/out"',
        'norms[:-1] / norms[1:] if direction == "out/in"',
        *NORMS,
    ),
    Mutation(
        "c_rho not squared for preactivation",
        "resid/theory/norms.py",
        'count = len(matrices) - (form == "plain")',
        "count = len(matrices) - 1",
        *NORMS,
    ),
    Mutation(
        "exponent of q",
        "resid/theory/norms.py",
        "(_RELU_SHARE**layers * variance)",
        "(_RELU_SHARE ** (layers - 1) * variance)",
        *NORMS,
    ),
    Mutation(
        "layers in the basis of the input",
        "resid/theory/norms.py",
        "later = U @ ((root - 1)[:, None] * U.mT)",
        "later = Vh.mT @ ((root - 1)[:, None] * Vh)",
        *NORMS,
    ),
    Mutation(
        "only the largest singular value looked at",
        "resid/theory/norms.py",
        "    return torch.maximum(most - 1, 1 - least)",
        "    return most - 1",
        *NORMS,
    ),
    Mutation(
        "geometric for uniform times",
        "resid/theory/near_identity_flow.py",
        '    if times == "uniform" or count < 2:',
        "    if count < 2:",
        *FLOW,
    ),
    Mutation(
        "Jacobian at the wrong point",
        "resid/theory/near_identity_flow.py",
        "curved = _divide(slopes[1:], slopes[:-1])",
        "curved = _divide(slopes[1:], slopes[:1])",
        *FLOW,
    ),
    Mutation(
        "factor beta dropped",
        "resid/theory/near_identity_flow.py",
        "return A, h.alpha * h.beta * h.radius,",
        "return A, h.alpha * h.radius,",
        *FLOW,
    ),
    Mutation(
        "Newton without the inner scale",
        "resid/theory/near_identity_flow.py",
        "    return z - _solve(known, value - x)",
        "    return z - scale * _solve(known, value - x)",
        *FLOW,
    ),
    Mutation(
        "augmented without the reflection",
        "resid/theory/smooth_maps.py",
        "        J = -_eyes(x)",
        "        J = _eyes(x)",
        *FLOW,
    ),
    Mutation(
        "Lemma 1 with the least singular value",
        "resid/theory/norms.py",
        'largest = torch.linalg.svdvals(_squares("M", M))[..., 0]',
        'largest = torch.linalg.svdvals(_squares("M", M))[..., -1]',
        *NORMS,
    ),
    Mutation(
        "singular vectors from the conjugate spectrum",
        "resid/theory/_conv_geometry.py",
        "            A = torch.complex(real, sin @ flat.mT) if weight == 2 else real\n            yield",
        "            A = torch.complex(real, -sin @ flat.mT) if weight == 2 else real\n            yield",
        *SPECTRUM,
    ),
    Mutation(
        "a multiplicity dropped",
        "resid/theory/conv_spectrum.py",
        "torch.linalg.svdvals(A).flatten().repeat(weight)",
        "torch.linalg.svdvals(A).flatten().repeat(1)",
        *SPECTRUM,
    ),
    Mutation(
        "own opposites counted as pairs",
        "resid/theory/_conv_geometry.py",
        "    for where, weight in ((pairs, 2), (singles, 1)):\n        step = max(1, chunk",
        "    for where, weight in ((pairs, 2), (singles, 2)):\n        step = max(1, chunk",
        *SPECTRUM,
    ),
    Mutation(
        "circular for zero padding",
        "resid/theory/_conv_geometry.py",
        'circular=padding == "circular")',
        "circular=isinstance(padding, str))",
        *SPECTRUM,
    ),
    Mutation(
        "strided input not taken apart",
        "resid/theory/_conv_geometry.py",
        "        return [(o % self.stride, (o",
        "        return [(0, (o",
        *SPECTRUM,
    ),
    Mutation(
        "projected spectrum conjugated",
        "resid/theory/procrustes.py",
        "            sums += (weight / total) * (cos.mT @ Z.real + sin.mT @ Z.imag if",
        "            sums += (weight / total) * (cos.mT @ Z.real - sin.mT @ Z.imag if",
        *PROCRUSTES,
    ),
    Mutation(
        "Gram matrix on the long side",
        "resid/theory/polar.py",
        "    if A.shape[-2] < A.shape[-1]:  # work on tall",
        "    if A.shape[-2] > A.shape[-1]:  # work on tall",
        *PROCRUSTES,
    ),
    Mutation(
        "sqrt(d/c) for c > d",
        "resid/theory/procrustes.py",
        "* d / min(c, d))",
        "* d / c)",
        *PROCRUSTES,
    ),
    Mutation(
        "frequencies of a pair counted once",
        "resid/theory/_conv_geometry.py",
        "    return (weight / math.prod(taps.grid)) * found",
        "    return (1 / math.prod(taps.grid)) * found",
        *PROCRUSTES,
    ),
    Mutation(
        "coefficient of the binomial series",
        "resid/theory/polar.py",
        "_BINOMIAL = tuple(math.comb(2 * j, j) / 4**j for",
        "_BINOMIAL = tuple(math.comb(2 * j, j) / 2 ** (2 * j + (j > 1)) for",
        *PROCRUSTES,
    ),
    Mutation(
        "slip of the released code repaired",
        "resid/theory/procrustes_released.py",
        "    imaginary = A.imag if slip else -A.imag",
        "    imaginary = -A.imag",
        *PROCRUSTES,
    ),
    Mutation(
        "audit: gradients of input and output exchanged",
        "resid/lab/audit.py",
        "        into, out = (_norm(g)",
        "        out, into = (_norm(g)",
        *AUDIT,
    ),
    Mutation(
        "audit: running averages not put back",
        "resid/lab/audit.py",
        "                    buffer.copy_(value)",
        "                    buffer.copy_(buffer)",
        *AUDIT,
    ),
    Mutation(
        "audit: a bound beside weights that it does not count",
        "resid/lab/audit.py",
        "if not self.layers or self.normalised or self.others:",
        "if not self.layers or self.normalised:",
        AUDIT[0],
        "",
    ),
    Mutation(
        "tables: bars in cells not escaped",
        "resid/book.py",
        're.sub(r"(?<!\\\\)\\|", r"\\\\|", str(value))',
        "str(value)",
        "tests/book/test_kit.py",
        "",
    ),
    Mutation(
        "audit: bound by the smallest singular values",
        "resid/lab/audit.py",
        "        return math.prod(layer.sigma_max for layer",
        "        return math.prod(layer.sigma_min for layer",
        *AUDIT,
    ),
    Mutation(
        "limits not applied",
        "resid/ledger/evidence.py",
        "        if not 0 <= self.worst <= claim.limit:",
        "        if self.worst > 1e9:",
        *LEDGER,
    ),
    Mutation(
        "terms changed after the run",
        "resid/ledger/judge.py",
        "    changed = [name for name, value in claim.terms.items() if entry.terms[name] != value]",
        "    changed = []",
        *LEDGER,
    ),
    Mutation(
        "NaN lost in a maximum",
        "resid/trials/_worst.py",
        "    return float(numbers.max())",
        "    return max(0.0, *numbers)",
        "tests/trials/test_trials.py",
        "",
    ),
    Mutation(
        "smoke counted as full",
        "resid/ledger/judge.py",
        "        if record.mode != mode:",
        '        if record.mode not in ("smoke", "full"):',
        *LEDGER,
    ),
    Mutation(
        "checksum not compared",
        "resid/ledger/store.py",
        "    if claimed != _checksum(content):",
        "    if not claimed:",
        *LEDGER,
    ),
    Mutation(
        "what passes the ReLU upside down",
        "resid/lab/norm_study.py",
        "share, g_linear / g_out, losses",
        "share, g_out / g_linear, losses",
        *NORM_DRIFT,
    ),
    Mutation(
        "share in the range with the scale left in",
        "resid/lab/norm_study.py",
        "W = polar_factor(transition.weight.detach()[:, :, 0, 0])",
        "W = transition.weight.detach()[:, :, 0, 0]",
        *NORM_DRIFT,
    ),
    Mutation(
        "trained without its projection",
        "resid/lab/norm_study.py",
        "        projection.attach(optimizer)\n    rows: list",
        "    rows: list",
        *NORM_DRIFT,
    ),
    Mutation(
        "sign of a paired difference",
        "resid/trials/cifar.py",
        "        return measure(first) - measure(second)",
        "        return measure(second) - measure(first)",
        *ALLCONV,
    ),
    Mutation(
        "best epoch instead of the last",
        "resid/trials/cifar.py",
        '    return 100 * float(run[-1]["test_error"])',
        '    return 100 * min(line["test_error"] for line in run)',
        "tests/trials/test_cifar.py",
        "",
    ),
    Mutation(
        "intercept for slope",
        "resid/trials/cifar.py",
        "np.polyfit(np.log(depths), row, 1)[0]",
        "np.polyfit(np.log(depths), row, 1)[1]",
        *SHORTCUT_CIFAR,
    ),
    Mutation(
        "divergence not noticed",
        "resid/trials/cifar.py",
        'return float(run[-1]["epoch"]) if "diverged" in run[-1] else 100.0',
        "return 100.0",
        *PROCRESNET,
    ),
    Mutation(
        "deviation with a sign",
        "resid/trials/cifar.py",
        "np.abs(np.log(values))",
        "np.log(values)",
        *PROCRESNET,
    ),
    Mutation(
        "projections counted as layers",
        "resid/trials/cifar_counts.py",
        " and id(m) not in aside for m",
        " for m",
        *PROCRESNET,
    ),
    Mutation(
        "one folder for all seeds",
        "resid/lab/experiment.py",
        "-seed{recipe.seed}",
        "-seed0",
        "tests/lab/test_experiment.py",
        "",
    ),
    Mutation(
        "last batch divided by the size of a full one",
        "resid/lab/train.py",
        "(ranks.count / size)",
        "(ranks.count / recipe.batch)",
        *TRAIN,
    ),
    Mutation(
        "gradients of two ranks averaged twice",
        "resid/lab/train.py",
        "(loss * (ranks.count / size))",
        "(loss * (1 / size))",
        *FAULTS,
    ),
    Mutation(
        "all ranks take the same samples",
        "resid/lab/batches.py",
        "whole[self.rank :: self.ranks]",
        "whole[:: self.ranks]",
        *BATCHES,
    ),
    Mutation(
        "every epoch crops alike",
        "resid/lab/batches.py",
        'seed_of("crop", seed, epoch)',
        'seed_of("crop", seed, 0)',
        *BATCHES,
    ),
    Mutation(
        "momentum forgotten in a resume",
        "resid/lab/engine.py",
        '        self.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        *TRAIN,
    ),
    Mutation(
        "coin of the projection tossed anew after a resume",
        "resid/lab/engine.py",
        "self.projection.load_state_dict(coin)",
        "del coin",
        *TRAIN,
    ),
    Mutation(
        "ratio of gradients upside down",
        "resid/lab/probes.py",
        'for side in ("output", "input")',
        'for side in ("input", "output")',
        *TRAIN,
    ),
    Mutation(
        "everything decays",
        "resid/lab/engine.py",
        'groups[recipe.decay == "all" or id(parameter) in convolutions]',
        "groups[True]",
        *TRAIN,
    ),
    Mutation(
        "damaged checkpoint taken",
        "resid/lab/checkpoint.py",
        "hexdigest()[:16] != path.stem",
        "hexdigest()[:16] < path.stem[:0]",
        *TRAIN,
    ),
    Mutation(
        "checkpoint written in place",
        "resid/lab/checkpoint.py",
        'partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")',
        "partial = path",
        *FAULTS,
    ),
    Mutation(
        "any recipe goes on",
        "resid/lab/checkpoint.py",
        "stored.differences(self.recipe)",
        "stored.differences(stored)",
        *TRAIN,
    ),
    Mutation(
        "tied layers counted twice in a network's table",
        "resid/nets/shapes.py",
        "        seen |= mine.keys()",
        "        seen = set(mine)",
        "tests/nets/test_shapes.py",
        "",
    ),
)
