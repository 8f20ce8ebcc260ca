"""Line charts with a log axis: SVG in the theme's colours with hover values, or a figure."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tract.lab.plots import Figure, new_figure, plain_ticks
from tract.lab.style import DATA

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 48, WIDTH - 12, 24, HEIGHT - 34  # edges of the plotting area
POINTS = 120  # of a line at most, else means of neighbours


class Line(NamedTuple):
    """A line: a colour, and the coordinates of its points."""

    color: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines by label over an axis from 0 to end. form: formats a number of that axis.

    marks: places of vertical lines.
    """

    title: str
    x_label: str
    end: float
    form: Callable[[float], str]
    lines: Mapping[str, Line]
    marks: Sequence[float] = ()

    @cached_property
    def drawn(self) -> dict[str, Line]:
        """The lines without points that have no logarithm; means of neighbours if they are many."""
        found = {}
        for label, line in self.lines.items():
            points = np.array([line.x, line.y], float)
            points = points[:, np.isfinite(points[1]) & (points[1] > 0)]
            parts = np.array_split(points, max(1, min(POINTS, points.shape[1])), 1)
            means = [part.mean(1) for part in parts if part.size]
            if means:
                x, y = np.stack(means, 1)
                found[label] = line._replace(x=x, y=y)
        return found

    @cached_property
    def span(self) -> tuple[float, float]:
        """The range of the log axis in decades, rounded to halves so that it seldom moves."""
        values = np.log10(np.concatenate([line.y for line in self.drawn.values()] or [[1.0]]))
        low, high = np.percentile(values, [1, 99] if len(values) > 50 else [0, 100])
        return math.floor(2 * low - 0.1) / 2, math.ceil(2 * high + 0.1) / 2


def charts_html(charts: Sequence[Chart]) -> str:
    """Charts side by side, as many as fit."""
    return f'<div class="tract-charts">{"".join(map(svg, charts))}</div>'


def svg(chart: Chart) -> str:
    """A chart as HTML, with a legend if it has several lines."""
    low, high = chart.span

    def place(x: float, y: float) -> tuple[float, float]:
        share = min(max((math.log10(y) - low) / (high - low), 0), 1)
        return LEFT + x / chart.end * (RIGHT - LEFT), BOTTOM - share * (BOTTOM - TOP)

    middle = (LEFT + RIGHT) / 2
    parts = [_text(middle, 15, chart.title), _text(middle, HEIGHT - 6, chart.x_label)]
    parts.append(_text(LEFT, BOTTOM + 14, chart.form(0), "start"))
    parts.append(_text(RIGHT, BOTTOM + 14, chart.form(chart.end), "end"))
    parts.append(_path(f"M{LEFT} {TOP} V{BOTTOM} H{RIGHT}"))
    for tick in _ticks(low, high):
        y = place(0, tick)[1]
        parts.append(_text(LEFT - 4, y + 4, f"{tick:g}", "end"))
        parts.append(_path(f"M{LEFT} {y:.1f} H{RIGHT}", 'opacity="0.12"'))
    for mark in chart.marks:
        look = 'opacity="0.5" stroke-dasharray="2 3"'
        parts.append(_path(f"M{place(mark, 1)[0]:.1f} {TOP} V{BOTTOM}", look))
    for label, line in chart.drawn.items():
        spots = [(*place(x, y), x, y) for x, y in zip(line.x, line.y, strict=True)]
        way = " L".join(f"{a:.1f} {b:.1f}" for a, b, _, _ in spots)
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(_path(f"M{way}", f'stroke-width="1.5"{dash}', line.color))
        for a, b, x, y in spots:
            told = html.escape(f"{label}: {y:.4g} at {chart.form(x)}")
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="transparent">')
            parts.append(f"<title>{told}</title></circle>")
    alt = html.escape(f"{chart.title} by {chart.x_label} of {', '.join(chart.drawn)}")
    head = f'<svg role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    swatch = '<span class="tract-key"><i style="border-top: 2px {} {}"></i>{}</span> '
    keys = [
        swatch.format("dashed" if line.dashed else "solid", line.color, html.escape(label))
        for label, line in chart.drawn.items()
    ]
    legend = "".join(keys) if len(keys) > 1 else ""
    return f'<div class="tract-chart">{head}{"".join(parts)}</svg>{legend}</div>'


def figure(charts: Sequence[Chart]) -> Figure:
    """Charts side by side as a figure, for readers who cannot hover."""
    drawn, axes = new_figure(1, len(charts), (3.3 * len(charts), 2.5))
    for ax, chart in zip(axes[0], charts, strict=True):
        low, high = chart.span
        ax.set(yscale="log", xlim=(0, chart.end), ylim=(10**low, 10**high), title=chart.title)
        ax.set_xticks([0, chart.end], [chart.form(0), chart.form(chart.end)])
        ax.set_xlabel(chart.x_label)
        ax.vlines(chart.marks, 10**low, 10**high, DATA, ":", linewidth=1)
        for label, line in chart.drawn.items():
            style = {"ls": "--"} if line.dashed else {"marker": ".", "markersize": 3}
            ax.plot(line.x, line.y, color=line.color, linewidth=1.2, label=label, **style)
        if high - low < 2:
            plain_ticks(ax.yaxis)
        if len(chart.drawn) > 1:
            ax.legend(fontsize=7, framealpha=0.6)
    return drawn


def _path(way: str, look: str = "", color: str = "currentColor") -> str:
    return f'<path d="{way}" fill="none" stroke="{color}" {look}/>'


def _text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11" fill="currentColor">{html.escape(content)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in a range of decades; in a long one only the powers."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]
