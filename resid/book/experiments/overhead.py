"""What the projection adds to the time of a training step (Zaeemzadeh et al. 2018, Sections 3 and 4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resid._arguments import check_option
from resid.book.journal import Journal
from resid.ledger import Seeds
from resid.ledger.run import device_name
from resid.nets.norm_preservation import input_sizes
from resid.nets.preact import ProcResNet
from resid.theory.procrustes.projection import project_norm_preserving
from resid.theory.procrustes.released import released_projection
from resid.training.engine import numerics
from resid.training.sweep import UnfinishedError

__all__ = ["ROUTES", "extra_percent", "measure_overhead", "overheads", "step_seconds", "svd_projection"]

#: Nothing; iteration (9) at all frequencies as published, with the sign corrected; singular values; and ours.
ROUTES = ("none", "published", "svd", "ours")
#: Singular values take a hundred times as long as anything else, and are timed for a tenth of the steps.
_SVD_SHARE = 10
#: The code that decides what is timed, for the `Journal`, which follows its imports.
SOURCES = (Path(__file__),)


def svd_projection(kernel: Tensor, n: int) -> Tensor:
    """Algorithm 1 with singular value decompositions at all n^2 frequencies, as far from clever as the released code.

    Example:
        >>> kernel = torch.randn(8, 4, 1, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(svd_projection(kernel, 4), released_projection(kernel, 4, slip=False), atol=1e-3))
        True
    """
    d, c, height, width = kernel.shape
    spectrum = torch.fft.fft2(kernel, (n, n)).permute(2, 3, 0, 1)
    U, _, Vh = torch.linalg.svd(spectrum, full_matrices=False)
    whole = torch.fft.ifft2((U @ Vh).permute(2, 3, 0, 1)).real
    return math.sqrt(d / c) * whole[..., :height, :width]


def _projected(route: str, kernel: Tensor, n: int, stride: tuple[int, ...]) -> Tensor:
    """n: size of the map at the input. The published routes take that at the output."""
    if route == "ours":
        return project_norm_preserving(kernel, n, stride=stride)
    at_output = -(-n // stride[0])
    return (
        released_projection(kernel, at_output, slip=False)
        if route == "published"
        else svd_projection(kernel, at_output)
    )


def step_seconds(
    depth: int,
    route: str,
    seed: int = 0,
    *,
    steps: int = 200,
    warmup: int = 20,
    every: int = 2,
    batch: int = 128,
    width: int = 16,
    size: int = 32,
    device: str = "cpu",
) -> float:
    """Seconds of one step of SGD on ProcResNet, projected by a route after every second step.

    Args:
        depth: 9n + 4.
        route: of `ROUTES`.
        seed: of weights and images.
        steps: that are timed.
        warmup: steps before them.
        every: project after so many steps.
        batch: of random images.
        size: of random images.
        width: of the network.
        device: "cpu" or "cuda".
    """
    check_option("route", route, ROUTES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ProcResNet(depth, width).to(device)
        images = torch.randn(batch, 3, size, size).to(device)
        labels = torch.randint(10, (batch,)).to(device)
    sizes = input_sizes(network, images[:1])
    names = {id(module): name for name, module in network.named_modules()}
    layers = [(layer, sizes[names[id(layer)]][0]) for layer in network.linear_convolutions()]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def train(count: int) -> None:
        for step in range(count):
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if route != "none" and step % every == every - 1:
                with torch.no_grad():
                    for layer, n in layers:
                        layer.weight.copy_(_projected(route, layer.weight, n, layer.stride))
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    with numerics("fp32", torch.device(device)):  # without TF32, as on the cards of the paper
        train(warmup)
        began = time.perf_counter()
        train(steps)
    return (time.perf_counter() - began) / steps


def extra_percent(times: Mapping[str, float], route: str) -> float:
    """By how many percent the steps of a route take longer than those without projection.

    Example:
        >>> extra_percent({"none": 0.5, "svd": 0.75}, "svd")
        50.0
    """
    return 100 * (times[route] / times["none"] - 1)


def measure_overhead(
    seeds: Sequence[int],
    depths: Sequence[int] = (166, 1003),
    clock: Callable[..., float] = step_seconds,
    *,
    journal: Journal | None = None,
    max_seconds: float | None = None,
    steps: int = 200,
    warmup: int = 20,
    **sizes: int,
) -> dict[tuple[int, int], dict[str, float]]:
    """Seconds of a step by route, for each (depth, seed); on a GPU if there is one.

    The least of the depths has all routes, the others all but singular values, which the claims do not need there. The
    routes of one network are timed one after the other in one process, and kept together.

    Args:
        seeds: of the networks.
        depths: of the networks.
        clock: times a step.
        journal: keeps what was timed; default in memory.
        max_seconds: no other network is begun after so long.
        steps: of `step_seconds`.
        warmup: of `step_seconds`.
        sizes: of `step_seconds`.

    Raises:
        UnfinishedError: the time was up; the same call goes on.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    journal = Journal("cifar-overhead", SOURCES, None) if journal is None else journal
    began = time.monotonic()
    found: dict[tuple[int, int], dict[str, float]] = {}
    wanted = [(depth, seed) for seed in seeds for depth in depths]
    for depth, seed in wanted:
        routes = [route for route in ROUTES if route != "svd" or depth == min(depths)]

        def timed(depth: int = depth, seed: int = seed, routes: Sequence[str] = routes) -> dict[str, np.ndarray]:
            return {
                route: np.array(
                    clock(
                        depth,
                        route,
                        seed,
                        device=device,
                        steps=max(2, steps // _SVD_SHARE) if route == "svd" else steps,
                        warmup=min(2, warmup) if route == "svd" else warmup,
                        **sizes,
                    )
                )
                for route in routes
            }

        key = {"depth": depth, "seed": seed, "device": device_name(device), "steps": steps, "warmup": warmup, **sizes}
        if max_seconds is not None and key not in journal and time.monotonic() - began >= max_seconds:
            raise UnfinishedError(
                f"{len(found)} of {len(wanted)} networks are timed (max_seconds is over); what is done is kept, and "
                "the same command goes on",
                {},
            )
        found[depth, seed] = {route: float(value) for route, value in journal(key, timed).items()}
    return found


def overheads(times: Mapping[tuple[int, int], Mapping[str, float]]) -> dict[str, Seeds]:
    """The claims about the cost, from `measure_overhead` for a shallow and a deep network."""
    shallow, deep = sorted({depth for depth, _ in times})
    seeds = sorted({seed for _, seed in times})
    first = [extra_percent(times[shallow, seed], "published") for seed in seeds]
    second = [extra_percent(times[deep, seed], "published") for seed in seeds]
    svd = [extra_percent(times[shallow, seed], "svd") for seed in seeds]
    return {
        "zaeemzadeh/section-3-overhead": Seeds(first, seeds, f"extra time of depth {shallow}, percent"),
        "zaeemzadeh/section-4-overhead-depth": Seeds(
            [a - b for a, b in zip(first, second, strict=True)], seeds, f"depth {shallow} minus {deep}, percent"
        ),
        "zaeemzadeh/section-4-overhead-svd": Seeds(
            [a - b for a, b in zip(svd, first, strict=True)], seeds, "singular values minus iteration, percent"
        ),
    }
