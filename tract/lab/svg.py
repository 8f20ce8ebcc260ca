"""Line charts as SVG in the theme's colours, whose points tell their values under the mouse."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 24, 34
POINTS = 120  # of a line: more are averaged


class Series(NamedTuple):
    """A line: a colour, and the coordinates of its points."""

    color: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    title: str, x_label: str, series: Mapping[str, Series], show_x: Callable[[float], str]
) -> str:
    """A chart of lines by label, y on a log scale; show_x writes a number of the x axis."""
    series = {label: _averaged(line) for label, line in series.items()}
    values = [y for line in series.values() for y in line.y if 0 < y < math.inf]
    if not values:
        return ""
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    end = max(x for line in series.values() for x in line.x) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(y) - low) / (high - low)
        across = LEFT + x / end * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_frame(title, x_label), _text(LEFT, HEIGHT - BOTTOM + 14, "0", "start")]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 14, show_x(end), "end"))
    for tick in _ticks(10**low, 10**high):
        _, y = place(0, tick)
        parts.append(_text(LEFT - 4, y + 4, f"{tick:g}", "end"))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" ')
        parts.append('stroke="currentColor" opacity="0.12"/>')
    for label, line in series.items():
        spots = [(*place(x, y), x, y) for x, y in zip(line.x, line.y, strict=True) if y > 0]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _, _ in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}"/>')
        for a, b, x, y in spots:
            told = html.escape(f"{label}: {y:.4g} at {show_x(x)}")
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="transparent">')
            parts.append(f"<title>{told}</title></circle>")
    alt = html.escape(f"{title} by {x_label} of {', '.join(series)}")
    head = f'<svg role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {HEIGHT}" '
    style = f'style="width: {WIDTH}px; max-width: 100%; color: var(--jp-ui-font-color1)"'
    return f"{head}{style}>{''.join(parts)}</svg>"


def _frame(title: str, x_label: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    axes = f'<path d="M{LEFT} {TOP} V{bottom} H{right}" fill="none" stroke="currentColor"/>'
    middle = (LEFT + right) / 2
    return axes + _text(middle, 15, title) + _text(middle, HEIGHT - 6, x_label)


def _text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11" fill="currentColor">{html.escape(content)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times a power of ten in a range, of many decades the powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _averaged(line: Series) -> Series:
    """The line with means of neighbours where it has too many points."""
    size = -(-len(line.x) // POINTS)
    starts = range(0, len(line.x), size or 1)

    def means(values: Sequence[float]) -> list[float]:
        parts = [values[start : start + size] for start in starts]
        return [sum(part) / len(part) for part in parts]

    return line if size <= 1 else Series(line.color, means(line.x), means(line.y))
