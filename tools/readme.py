"""Bring README.md up to date: the scoreboard between its markers, computed from results/, and the figure."""

from __future__ import annotations

import sys

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import torch

from resid.book import COLOURS, plot_measured, plot_theory, use_style
from resid.ledger import summary
from resid.theory.factor import (
    factor_near_identity,
    max_layer_norm,
    near_identity_bound,
    near_identity_lower_bound,
    spectral_gamma,
)
from resid.theory.targets import sample_target
from tools.paths import ROOT

README = ROOT / "README.md"
FIGURE = ROOT / "book" / "_static" / "near-identity.svg"
BEGIN, END = "<!-- scoreboard: made by `make readme` -->", "<!-- end of scoreboard -->"


def with_scoreboard(text: str) -> str:
    """README text with the present scoreboard."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"README.md must have one line {BEGIN!r} and one line {END!r}")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{summary()}\n\n{END}{rest.split(END)[1]}"


def draw() -> None:
    """The figure: layer norms of both constructions against depth, between the lower and the printed bound."""
    R = sample_target("gaussian", 6, torch.Generator().manual_seed(0))
    depths = [n for n in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if n >= 3 * spectral_gamma(R)]
    norms = {
        method: [float(max_layer_norm(factor_near_identity(R, n, method))) for n in depths]
        for method in ("svd", "polar")
    }
    use_style()
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    plot_theory(axes, depths, [near_identity_bound(R, n, "v3") for n in depths], "printed bound", color=COLOURS[4])
    plot_measured(axes, depths, norms["svd"], "printed construction", color=COLOURS[1])
    plot_measured(axes, depths, norms["polar"], "equal-norm construction (ours)", color=COLOURS[0])
    plot_theory(
        axes, depths, [near_identity_lower_bound(R, n) for n in depths], "no network is below (ours)", color=COLOURS[2]
    )
    axes.set(xscale="log", yscale="log", xlabel="depth (layers)", ylabel="largest layer norm")
    axes.legend()
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Command line."""
    draw()
    text = README.read_text("utf-8")
    README.write_text(with_scoreboard(text), "utf-8")
    print("README.md and its figure are up to date")


if __name__ == "__main__":
    main()
