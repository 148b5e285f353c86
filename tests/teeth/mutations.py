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
DYNAMICS = ("tests/lab/test_descent.py", "linear/dynamics")
SPECTRUM = ("tests/theory/test_conv_spectrum.py", "norms/conv_spectrum")
PROCRUSTES = ("tests/theory/test_procrustes.py", "norms/procrustes")
LEDGER = ("tests/ledger/test_ledger.py", "")

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
)
