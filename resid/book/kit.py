"""What the notebooks share: setup report, checks with visible tolerances, glue, plot style, slider figure."""

from __future__ import annotations

import ast
import difflib
import random
import re
import typing
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cycler import cycler
from IPython import get_ipython
from IPython.core.formatters import format_display_data
from IPython.display import Markdown, display
from matplotlib import style
from matplotlib.axes import Axes

from resid.book.slider_figure import COLOURS, Series, SliderFigure, slider
from resid.errors import OptionError, ResidError
from resid.ledger import run as ledger_run
from resid.ledger.catalog import get_claim
from resid.ledger.errors import LedgerError
from resid.ledger.evidence import Counterexample, Evidence, describe
from resid.ledger.judge import Verdict, verdicts
from resid.ledger.run import device_name, finish_run, start_run, versions

__all__ = [
    "COLOURS",
    "CheckFailed",
    "Series",
    "SliderFigure",
    "check",
    "finish",
    "glue",
    "plot_measured",
    "plot_theory",
    "record",
    "say",
    "setup",
    "slider",
    "table",
    "use_style",
]

_STYLE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.figsize": (6.4, 3.8),
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
    "svg.hashsalt": "resid",
}


class CheckFailed(ResidError):
    """A check of a chapter does not hold."""


def setup(mode: str = "smoke", seed: int = 0) -> None:
    """Begin a chapter: seed the generators, set the plot style, open the run for `record`, say what runs where.

    Args:
        mode: "smoke" or "full".
        seed: for `random`, NumPy's and torch's global generators.

    Raises:
        OptionError: unknown mode, or a parameter that papermill was given and the notebook has not, or of another type.
    """
    _check_parameters()
    start_run(mode, seeds=(seed,))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that use the global generator
    torch.manual_seed(seed)
    use_style()
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"mode {mode}, seed {seed}, device {device_name()}, {torch.get_num_threads()} threads\n{found}")


def _check_parameters() -> None:
    """Refuse what papermill put into the notebook, where its cell of parameters has no such name, or another type.

    papermill itself only warns of a name that it does not know, runs the notebook without it and ends with 0.
    """
    shell = get_ipython()
    if shell is None:  # a script, to which nobody gave parameters
        return
    known = shell.user_ns.get("__annotations__", {})
    for cell in [cell for cell in shell.user_ns["In"] if cell.startswith("# Parameters\n")][-1:]:
        for node in ast.parse(cell).body:
            names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
            for name in names:
                if name not in known:
                    near = difflib.get_close_matches(name.upper(), known, 1, 0.5)
                    hint = f": is {near[0]} meant?" if near else f": there are {', '.join(known)}"
                    raise OptionError(f"{name} is no parameter of this notebook{hint}")
                value, wanted = shell.user_ns[name], typing.get_origin(known[name]) or known[name]
                if wanted is float and type(value) is int:
                    continue
                if isinstance(wanted, type) and type(value) is not wanted:
                    raise OptionError(
                        f"{name} = {value!r}: {wanted.__name__} is needed, this is {type(value).__name__}"
                    )


def finish() -> None:
    """End a chapter: close the record, and show each claim's verdict and, apart from it, what this run did."""
    mode, right = ledger_run.open_mode(), finish_run()
    known = _judged()
    rows = []
    for claim_id, passed in right.items():
        quick = replace(known[claim_id], quick="right" if passed else "wrong")
        run = "**failed**" if not passed else quick.quick_check if mode == "smoke" else "recorded"
        rows.append((f"`{claim_id}`", quick.claim.where, quick.label, run))
    table(("claim", "where", "verdict of the record", "this run"), rows)


def _judged() -> dict[str, Verdict]:
    """The verdicts of the records; "not run" where they are void, which the scoreboard and the tests do not forgive."""
    try:
        return verdicts()
    except LedgerError as error:
        print(f"no verdict: {error}")
        return verdicts(())


def check(what: str, value: Any, *, at_most: float | None = None, at_least: float | None = None) -> None:
    """Print a measured number beside its limit, and stop the chapter where it does not keep to it.

    Args:
        what: the quantity, in words.
        value: the number; NaN never passes.
        at_most: one or both limits.
        at_least: one or both limits.

    Raises:
        CheckFailed: outside the limits. OptionError: no limit given.

    Example:
        >>> check("reconstruction error", 2e-15, at_most=1e-12)
        ok   reconstruction error: 2e-15 <= 1e-12
    """
    if at_most is None and at_least is None:
        raise OptionError(f"check({what!r}) has neither at_most nor at_least: it could not fail")
    number = float(value)
    limits = [f"{sign} {limit:.6g}" for sign, limit in (("<=", at_most), (">=", at_least)) if limit is not None]
    holds = (at_most is None or number <= at_most) and (at_least is None or number >= at_least)
    text = f"{what}: {number:.6g} {' and '.join(limits)}"
    if not holds:
        raise CheckFailed(f"{text} does not hold")
    print(f"ok   {text}")


def record(claim_id: str, measured: Evidence, strict: bool | None = None) -> None:
    """Record evidence for a claim in the open run (see `resid.ledger.run.record`) and print what it says.

    A quick run of an experiment is called what it is, a check of the wiring: it says nothing about the claim.

    Raises:
        ClaimFailed: the evidence fails the claim by the margin fixed in the ledger.
    """
    held = ledger_run.record(claim_id, measured, strict)
    claim = get_claim(claim_id)
    about = claim_id if measured.statement == "printed" else f"{claim_id} ({measured.statement})"
    if not held:
        about = f"NOT  {about}"
    elif claim.kind != "experiment" and not isinstance(measured, Counterexample):
        about = f"ok   {about}"
    elif claim.kind == "experiment":
        about = f"{'quick check of' if ledger_run.open_mode() == 'smoke' else 'recorded'} {about}"
    print(f"{about}: {describe(measured, claim)}")


def glue(name: str, value: Any) -> None:
    """Store a value in the notebook for the glue roles of MyST-NB, which is not needed where the notebook runs."""
    prefix = "application/papermill.record/"
    data, metadata = format_display_data(value)
    display(
        {prefix + kind: content for kind, content in data.items()},
        raw=True,
        metadata={**metadata, "scrapbook": {"name": name, "mime_prefix": prefix}},
    )


def say(text: str) -> None:
    """Show Markdown made by code, so that every number in it comes from the run."""
    display(Markdown(text))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table; numbers are rounded to four significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    say("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))


def use_style() -> None:
    """The book's plot style; figures become SVG where a notebook shows them."""
    style.use(_STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    set_matplotlib_formats("svg")


def plot_theory(axes: Axes, x: Any, y: Any, label: str, **line_style: Any) -> None:
    """A statement's curve: a line without points."""
    axes.plot(_array(x), _array(y), "-", label=label, **line_style)


def plot_measured(axes: Axes, x: Any, values: Any, label: str, **line_style: Any) -> None:
    """Measurements: the median as points; with several seeds, values (seeds, points), the range as a band.

    Raises:
        OptionError: values is neither (points,) nor (seeds, points).
    """
    stack = np.atleast_2d(_array(values))
    if stack.ndim != 2 or stack.shape[1] != len(_array(x)):
        raise OptionError(f"values has shape {stack.shape}: (seeds, {len(_array(x))}) is needed")
    (line,) = axes.plot(_array(x), np.median(stack, axis=0), "o", label=label, **line_style)
    if len(stack) > 1:
        axes.fill_between(_array(x), stack.min(0), stack.max(0), color=line.get_color(), alpha=0.2, linewidth=0)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, float)


def _cell(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.item()
    # a bar inside a cell would end it
    return f"{value:.4g}" if isinstance(value, float) else re.sub(r"(?<!\\)\|", r"\\|", str(value))
