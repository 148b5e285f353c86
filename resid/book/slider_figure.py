"""A figure with a slider: inline SVG, precomputed points and a few lines of script; no library and no network.

The native range input gives keyboard control. Without JavaScript the first position is drawn and the readings of all
positions stand in a list below.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from resid.errors import OptionError, ShapeError

#: Three of Okabe & Ito's colours, the green darkened, and three dark ones: all have a contrast of at least 3 on white,
#: and any two can be told apart with full colour vision, without the red cones and without the green ones.
COLOURS = ("#0072B2", "#D55E00", "#007D5A", "#661100", "#332288", "#333333")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 340, 62, 46, 14, 12
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "5 2", "1 2")


@dataclass(frozen=True)
class Series:
    """One curve for every slider position: `values` (positions, points), drawn as a line ("theory") or as points.

    x: (positions, points), for points that also move sideways; default the x of the figure.
    """

    label: str
    values: Sequence[Sequence[float]] | np.ndarray
    kind: str = "theory"
    x: Sequence[Sequence[float]] | np.ndarray | None = None


@dataclass(frozen=True)
class SliderFigure:
    """HTML of a slider figure; a notebook shows it as the value of a cell."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def slider(
    x: Sequence[float] | np.ndarray,
    series: Sequence[Series],
    positions: Sequence[float],
    readings: Sequence[str],
    *,
    name: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    caption: str = "",
    log_x: bool = False,
    log_y: bool = False,
    start: int = 0,
) -> SliderFigure:
    """Curves over x that a slider moves through its positions.

    Args:
        x: (points,), ignored by series that have their own.
        series: the curves.
        positions: value of the slider's quantity at each position.
        readings: one sentence a position, read out when the slider moves, listed for readers without JavaScript.
        name: the slider's quantity.
        xlabel: axis labels with units.
        ylabel: axis labels with units.
        alt: what the figure shows, for readers who do not see it.
        caption: text below, plain.
        log_x: logarithmic axes.
        log_y: logarithmic axes.
        start: index of the position shown first.

    Raises:
        ShapeError: values, positions and readings that do not fit each other.
        OptionError: empty alt text, no series, an unknown kind, nothing positive on a logarithmic axis.
    """
    if not series:
        raise OptionError("series is empty: at least one curve is needed")
    x_values = np.asarray(x, float)
    stacks = [_floats(s.values) for s in series]
    own = [np.broadcast_to(x_values, (len(positions), len(x_values))) if s.x is None else _floats(s.x) for s in series]
    for s, stack, sideways in zip(series, stacks, own, strict=True):
        points = len(x_values) if s.x is None else sideways.shape[-1]
        if stack.shape != (len(positions), points) or sideways.shape != stack.shape:
            raise ShapeError(
                f"series {s.label!r} has shape {stack.shape}, its x {sideways.shape}: "
                f"({len(positions)} positions, {points} points) is needed"
            )
        if s.kind not in ("theory", "measured"):
            raise OptionError(f"series {s.label!r} has kind {s.kind!r}: 'theory' or 'measured' is needed")
    if len(readings) != len(positions) or not positions:
        raise ShapeError(f"{len(readings)} readings for {len(positions)} positions: one sentence for each is needed")
    if not 0 <= start < len(positions):
        raise OptionError(f"start = {start}: an index from 0 to {len(positions) - 1} is needed")
    if not alt.strip():
        raise OptionError("alt is empty: say what the figure shows to a reader who does not see it")
    x_axis = _Axis(np.concatenate([s.ravel() for s in own]), log_x, _LEFT, _WIDTH - _RIGHT, "x")
    y_axis = _Axis(np.concatenate([s.ravel() for s in stacks]), log_y, _HEIGHT - _BOTTOM, _TOP, "y")
    paths = [
        [_path(x_axis.place(a), y_axis.place(b), s.kind) for a, b in zip(sideways, stack, strict=True)]
        for s, stack, sideways in zip(series, stacks, own, strict=True)
    ]
    uid = "slider-" + hashlib.sha256(json.dumps([name, xlabel, paths]).encode()).hexdigest()[:10]
    data = json.dumps({"paths": paths, "readings": list(readings), "positions": [f"{p:g}" for p in positions]})
    data = data.replace("</", "<\\/")  # nothing in it may end the script element
    return SliderFigure(
        f'<figure class="resid-slider" id="{uid}" '
        f'style="margin:0;max-width:{_WIDTH}px;background:#fff;color:#1a1a1a;padding:6px">'
        # below this width the drawing scrolls sideways in its box, so that its numbers stay readable
        '<div class="resid-scroll" role="group" aria-label="Figure" tabindex="0" style="overflow-x:auto">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(alt, quote=True)}" '
        'style="width:100%;min-width:460px;height:auto">'
        f'<g font-family="sans-serif" font-size="12" fill="#1a1a1a">{x_axis.draw_x(xlabel)}{y_axis.draw_y(ylabel)}</g>'
        + "".join(_curve(i, s.kind, p[start]) for i, (s, p) in enumerate(zip(series, paths, strict=True)))
        + "</svg></div>"
        + _legend(series)
        + f'<label style="display:block">{escape(name)} = <output>{positions[start]:g}</output>'
        f'<input type="range" min="0" max="{len(positions) - 1}" value="{start}" step="1" '
        f'aria-label="{escape(name, quote=True)}" style="width:100%"></label>'
        f'<p class="resid-reading" aria-live="polite" style="margin:2px 0">{escape(readings[start])}</p>'
        "<details><summary>All positions in words</summary><ul>"
        + "".join(f"<li>{escape(r)}</li>" for r in readings)
        + "</ul></details>"
        + _caption(caption)
        + "</figure>"
        f"<script>(()=>{{const r=document.getElementById('{uid}'),d={data},"
        "i=r.querySelector('input'),c=r.querySelectorAll('svg path[data-curve]');"
        "i.addEventListener('input',()=>{const k=+i.value;c.forEach((p,j)=>p.setAttribute('d',d.paths[j][k]));"
        "r.querySelector('output').textContent=d.positions[k];"
        "r.querySelector('.resid-reading').textContent=d.readings[k];"
        "i.setAttribute('aria-valuetext',d.positions[k]);});})();</script>"
    )


def _floats(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    return np.asarray(values, float)


class _Axis:
    """Maps values to pixels and knows its ticks."""

    def __init__(self, values: np.ndarray, log: bool, start: float, end: float, name: str) -> None:
        finite = values[np.isfinite(values) & ((values > 0) | (not log))]
        if not finite.size:
            raise OptionError(f"nothing to draw on the {'logarithmic ' if log else ''}{name} axis")
        low, high = float(finite.min()), float(finite.max())
        if log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.04 * (high - low) or 0.5
        self.log, self.start, self.end, self.low, self.high = log, start, end, low - margin, high + margin

    def place(self, values: np.ndarray) -> np.ndarray:
        if self.log:
            with np.errstate(invalid="ignore", divide="ignore"):
                values = np.log10(values)
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.log and self.high - self.low >= 1.2:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1, max(1, round((self.high - self.low) / 6)))
            return [(10.0**p, f"{10.0**p:g}") for p in powers]
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        raw = (high - low) / 5
        step = min((m * 10 ** math.floor(math.log10(raw)) for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
        return [(k * step, f"{k * step:g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def draw_x(self, label: str) -> str:
        base = _HEIGHT - _BOTTOM
        marks = "".join(
            f'<path d="M{p:.1f} {base}v5" stroke="#1a1a1a"/>'
            f'<text x="{p:.1f}" y="{base + 18}" text-anchor="middle">{t}</text>'
            for v, t in self.ticks()
            for p in [float(self.place(np.array(v)))]
        )
        middle = (self.start + self.end) / 2
        return (
            f'<path d="M{self.start} {base}H{self.end}" stroke="#1a1a1a"/>{marks}'
            f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>'
        )

    def draw_y(self, label: str) -> str:
        marks = "".join(
            f'<path d="M{_LEFT} {p:.1f}h-5" stroke="#1a1a1a"/>'
            f'<text x="{_LEFT - 8}" y="{p + 4:.1f}" text-anchor="end">{t}</text>'
            for v, t in self.ticks()
            for p in [float(self.place(np.array(v)))]
        )
        middle = (self.start + self.end) / 2
        return (
            f'<path d="M{_LEFT} {self.start}V{self.end}" stroke="#1a1a1a"/>{marks}'
            f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(label)}</text>'
        )


def _path(px: np.ndarray, py: np.ndarray, kind: str) -> str:
    """SVG path data: a polyline broken at missing values, or a small disc at each point."""
    shown = np.isfinite(px) & np.isfinite(py)
    if kind == "measured":
        pairs = zip(px[shown], py[shown], strict=True)
        return "".join(f"M{a - 3:.1f} {b:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0" for a, b in pairs)
    parts, pen = [], "M"
    for a, b, ok in zip(px, py, shown, strict=True):
        parts.append(f"{pen}{a:.1f} {b:.1f}" if ok else "")
        pen = "L" if ok else "M"
    return "".join(parts)


def _curve(index: int, kind: str, path: str) -> str:
    colour = COLOURS[index % len(COLOURS)]
    if kind == "measured":
        return f'<path data-curve="{index}" d="{path}" fill="{colour}"/>'
    dash = _DASHES[index % len(_DASHES)]
    line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    return f'<path data-curve="{index}" d="{path}" fill="none" {line}/>'


def _caption(text: str) -> str:
    style = "margin-top:6px;color:#1a1a1a;font-weight:400;text-align:left"
    return f'<figcaption style="{style}">{escape(text)}</figcaption>' if text else ""


def _legend(series: Sequence[Series]) -> str:
    items = []
    for i, s in enumerate(series):
        sample = _path(np.array([4.0, 26.0]), np.array([6.0, 6.0]), s.kind)
        items.append(
            f'<span style="white-space:nowrap;margin-right:1em"><svg width="30" height="12" aria-hidden="true">'
            f"{_curve(i, s.kind, sample).replace('data-curve', 'data-key')}</svg> {escape(s.label)}</span>"
        )
    return f'<div style="font-size:.85em">{" ".join(items)}</div>'
