"""Parameters, layers and blocks of the papers' CIFAR networks, counted in the networks as they are built."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resid.book.checks._worst import worst_of
from resid.ledger import Cases, Counterexample
from resid.nets.allconv import AllConvResNet
from resid.nets.preact import Bottleneck, PreActResNet, ProcResNet
from resid.nets.shortcut_depth import ShortcutDepthResNet
from resid.training.recipe import build_network
from resid.training.recipes import RECIPES

__all__ = [
    "allconv_convolutions",
    "allconv_parameters",
    "blocks",
    "counted",
    "depth_procresnet",
    "depth_resnet",
    "four_times",
    "only_convolutions",
    "parameters",
    "printed_parameters",
    "regrouped",
    "resnet164_parameters",
    "text_parameters",
    "under_one_percent",
]

#: The rows of Hardt & Ma's Table 1: how many convolutions, from and to how many channels; all are 3 x 3.
TABLE_1 = ((1, 3, 16), (1, 16, 64), (17, 64, 64), (1, 64, 128), (17, 128, 128), (1, 128, 256), (17, 256, 256))
#: What the text prints, in hundredths of a million.
TEXT, CORRECTED = 1359, 13_538_736


@functools.cache
def parameters(kind: type[nn.Module], *args: int, **options: int | bool) -> int:
    """Trainable parameters of a network, built without memory for its weights.

    Example:
        >>> parameters(PreActResNet, 164)
        1703290
    """
    return sum(p.numel() for p in _built(kind, *args, **options).parameters() if p.requires_grad)


def _built(kind: type[nn.Module], *args: int, **options: int | bool) -> nn.Module:
    with torch.device("meta"):
        return kind(*args, **options)


def allconv_convolutions(printed: int = 55) -> Cases:
    """Hardt & Ma, Table 1, caption: convolutions of the network."""
    found = sum(isinstance(m, nn.Conv2d) for m in _built(AllConvResNet).modules())
    return Cases(1, abs(found - printed), f"{found} convolutions")


def allconv_parameters(printed: float = 13.5e6) -> Cases:
    """Hardt & Ma, Table 1, caption: trainable parameters, relative to the printed number."""
    found = parameters(AllConvResNet)
    return Cases(1, abs(found / printed - 1), f"{found:,} parameters")


def only_convolutions(names: Sequence[str] = ("hardt-ma-cifar10", "hardt-ma-cifar100")) -> Cases:
    """Hardt & Ma, Section 4.1: trainable parameters that are not in a convolution, in the networks of some recipes."""
    outside = []
    for name in names:
        network = build_network(RECIPES[name])
        inside = {id(p) for m in network.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()}
        outside.append(sum(p.numel() for p in network.parameters() if p.requires_grad and id(p) not in inside))
    return Cases(len(outside), worst_of(outside), f"the networks of {' and '.join(names)}")


def text_parameters() -> tuple[Cases, Counterexample]:
    """Hardt & Ma, Section 4.1: the correction (the rows of the table by hand against the network), and the text's."""
    found = parameters(AllConvResNet)
    rows = sum(count * 9 * inputs * outputs for count, inputs, outputs in TABLE_1)
    worst = worst_of((abs(found / CORRECTED - 1), abs(rows / CORRECTED - 1)))
    return (
        Cases(2, worst, f"network {found:,}, rows {rows:,}", statement="corrected"),
        Counterexample(round(found / 1e4), TEXT, "==", "parameters in units of 10,000", exact=True),
    )


def regrouped(depths: Sequence[int] = (38, 74, 110), lengths: Sequence[int] = (1, 3, 4)) -> Cases:
    """Li et al., Section 5.3.2: shortcuts of other lengths than 2 leave the number of parameters as it is."""
    differences = [
        abs(parameters(ShortcutDepthResNet, depth, length) - parameters(ShortcutDepthResNet, depth, 2))
        for depth in depths
        for length in lengths
    ]
    return Cases(len(differences), worst_of(differences), f"depths {tuple(depths)}, lengths {tuple(lengths)} against 2")


def _layers(network: nn.Module) -> int:
    """Convolutions on the main path, and linear layers."""
    aside = {id(block.project) for block in network.modules() if isinstance(block, Bottleneck) and _transition(block)}
    return sum(isinstance(m, (nn.Conv2d, nn.Linear)) and id(m) not in aside for m in network.modules())


def _transition(block: Bottleneck) -> bool:
    return block.shortcut == "projection"


def depth_resnet(counts: Sequence[int] = (2, 9, 18, 111)) -> Cases:
    """Zaeemzadeh et al., Section 4: 9n + 2."""
    return _depth([_built(PreActResNet, 9 * n + 2) for n in counts], 2)


def depth_procresnet(counts: Sequence[int] = (2, 9, 18, 30, 111)) -> Cases:
    """Zaeemzadeh et al., Section 4: 9n + 4."""
    return _depth([_built(ProcResNet, 9 * n + 4) for n in counts], 4)


def _depth(networks: Sequence[nn.Module], extra: int) -> Cases:
    """Layers against 9n + extra, n the blocks that are there over three stages."""
    thirds = [sum(isinstance(m, Bottleneck) for m in network.modules()) // 3 for network in networks]
    layers = [_layers(network) for network in networks]
    worst = worst_of([abs(found - (9 * n + extra)) for n, found in zip(thirds, layers, strict=True)])
    return Cases(len(layers), worst, f"{layers} layers for n = {thirds}")


def hundredths(count: int) -> tuple[int, int]:
    """A count in hundredths of a million, rounded and truncated."""
    return (count + 5000) // 10_000, count // 10_000


def printed_parameters(kind: Any, depth: int, printed: int, both: bool = True) -> Cases:
    """Zaeemzadeh et al., Tables: the printed number, in hundredths of a million, against rounded or truncated counts.

    both: with and without erased ReLUs.
    """
    counts = [parameters(kind, depth, erase_relu=erased) for erased in ((False, True) if both else (True,))]
    worst = worst_of([min(abs(printed / found - 1) for found in hundredths(count)) for count in counts])
    return Cases(len(counts), worst, f"{counts[0]:,} parameters, printed {printed / 100:.2f} million")


def resnet164_parameters(printed: int = 171, corrected: int = 1_703_290) -> tuple[Cases, Counterexample]:
    """Zaeemzadeh et al., Table 2, row 1: the corrected count, and the printed number."""
    found = parameters(PreActResNet, 164)
    rounded, truncated = hundredths(found)
    nearer = min(rounded, truncated, key=lambda number: abs(number - printed))
    return (
        Cases(1, abs(found - corrected), f"{found:,} parameters", statement="corrected"),
        Counterexample(nearer, printed, "==", "parameters in units of 10,000", exact=True),
    )


def under_one_percent() -> Cases:
    """Zaeemzadeh et al., Section 4.3: relative increase of the parameters over 0.01."""
    increases = [
        parameters(ProcResNet, depth + 2, classes=classes) / parameters(PreActResNet, depth, classes=classes) - 1
        for depth in (164, 1001)
        for classes in (10, 100)
    ]
    return Cases(4, worst_of(increases) / 0.01, "depths 164 and 1001, 10 and 100 classes")


def blocks() -> Cases:
    """Zaeemzadeh et al., Section 4.3: 54 and 333 blocks, three of them transitions."""
    found = []
    for depth, expected in ((164, 54), (1001, 333)):
        modules = [m for m in _built(PreActResNet, depth).modules() if isinstance(m, Bottleneck)]
        found.append(worst_of((abs(len(modules) - expected), abs(sum(map(_transition, modules)) - 3))))
    return Cases(2, worst_of(found), "ResNet-164 and ResNet-1001")


def four_times() -> Cases:
    """Zaeemzadeh et al., Section 4.3: ResNet-1001 has about four times the parameters of ProcResNet-274."""
    ratio = parameters(PreActResNet, 1001) / parameters(ProcResNet, 274)
    return Cases(1, abs(ratio / 4 - 1), f"ratio {ratio:.3f}")


def counted(claim_id: str) -> tuple[Cases | Counterexample, ...]:
    """All evidence for one of the claims about counts, in full: nothing here takes longer than a second.

    Raises:
        KeyError: no claim about counts.
    """
    return tuple(
        {
            "hardt-ma/table-1-convolutions": lambda: [allconv_convolutions()],
            "hardt-ma/table-1-parameters": lambda: [allconv_parameters()],
            "hardt-ma/section-4.1-parameters": text_parameters,
            "hardt-ma/section-4.1-only-convolutions": lambda: [only_convolutions()],
            "li/section-5.3.2-parameters": lambda: [regrouped()],
            "zaeemzadeh/section-4-depth-resnet": lambda: [depth_resnet()],
            "zaeemzadeh/section-4-depth-procresnet": lambda: [depth_procresnet()],
            "zaeemzadeh/table-2-parameters-resnet164": resnet164_parameters,
            "zaeemzadeh/table-2-parameters-resnet1001": lambda: [printed_parameters(PreActResNet, 1001, 1032)],
            "zaeemzadeh/table-2-parameters-erased164": lambda: [printed_parameters(PreActResNet, 164, 170, False)],
            "zaeemzadeh/table-2-parameters-procresnet166": lambda: [printed_parameters(ProcResNet, 166, 172)],
            "zaeemzadeh/table-2-parameters-procresnet1003": lambda: [printed_parameters(ProcResNet, 1003, 1033)],
            "zaeemzadeh/section-4.3-under-one-percent": lambda: [under_one_percent()],
            "zaeemzadeh/section-4.3-blocks": lambda: [blocks()],
            "zaeemzadeh/section-4.3-parameters-procresnet274": lambda: [printed_parameters(ProcResNet, 274, 282)],
            "zaeemzadeh/section-4.3-four-times": lambda: [four_times()],
        }[claim_id]()
    )
