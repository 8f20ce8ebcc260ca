"""Fast-updating training curves: one figure whose lines move instead of being redrawn."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tract.data import to_uint8
from tract.datasets.images import png_bytes
from tract.lab.plots import new_figure, plain_ticks
from tract.lab.style import DATA, SELF_TEACHER, STUDENT, TEACHER_COLOUR

POINTS = 200  # of a curve: of more records means are drawn
PANELS = ("weighted loss", "squared error of x0", "error by level", "distance to the data")
SIZE = 330, 240  # pixels of a panel
ACROSS = (TEACHER_COLOUR, DATA, SELF_TEACHER)  # colours of horizontal lines, dashed


class Curves:
    """Four panels: two losses over the images seen, errors by noise level, distances to the data.

    images: of the whole run, where the axes end. ends: images after which phases end. Ranges only
    grow, by halves of a decade, so that a curve moves and not its axis.
    """

    def __init__(self, images: int, ends: Sequence[int], grid_steps: int):
        width, height = SIZE
        self._figure, axes = new_figure(1, len(PANELS), (len(PANELS) * width / 100, height / 100))
        self._axes = axes[0]
        style = {"color": STUDENT, "marker": ".", "markersize": 3, "linewidth": 1.2}
        self._lines = [ax.plot([], [], **style)[0] for ax in self._axes]
        self._phase_line = self._axes[3].plot([], [], linestyle=":", **style)[0]
        self._fixed: dict[str, object] = {}  # horizontal lines of the last panel, by label
        self._ranges: dict[object, tuple[float, float]] = {}
        for ax, title in zip(self._axes, PANELS, strict=True):
            ax.set_yscale("log")
            ax.set_title(title, fontsize=9)
            plain_ticks(ax.yaxis)
            ax.tick_params(labelsize=8)
            ax.set(xlim=(0, images), xlabel="images")
        self._axes[2].set(xlim=(grid_steps, 0), xlabel="level, from noise to data")
        for ax in self._axes[[0, 1, 3]]:
            ax.set_xticks([0, images], ["0", f"{images:,}"])
            ax.vlines(ends, 0, 1, DATA, ":", linewidth=1, transform=ax.get_xaxis_transform())
        self._figure.set_layout_engine("none")  # which would move the axes with their labels
        for column, ax in enumerate(self._axes):
            ax.set_position([(0.19 + column) / 4, 0.22, 0.75 / 4, 0.66])
        self._canvas = FigureCanvasAgg(self._figure)

    def draw(
        self,
        records: pd.DataFrame,
        errors: tuple[Tensor, Tensor] | None,
        distances: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        lines: Mapping[str, float],
    ) -> np.ndarray:
        """The panels side by side as pixels (H, W, 4).

        records: images_seen, loss, mse. distances: images and values by label, of the final steps
        first, then of the phase's. lines: values by label, drawn across.
        """
        groups = np.arange(len(records)) * POINTS // max(len(records), POINTS)
        means = records.groupby(groups).mean()
        for line, column in zip(self._lines, ("loss", "mse"), strict=False):
            line.set_data(means["images_seen"], means[column])
        if errors is not None:
            self._lines[2].set_data(*errors)
        self._draw_distances(distances, lines)
        for ax in self._axes:
            self._set_range(ax)
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba()).copy()

    def _draw_distances(self, distances: Mapping, lines: Mapping[str, float]) -> None:
        ax, shown = self._axes[3], []
        pair = (self._lines[3], self._phase_line)
        for line, (label, found) in zip(pair, distances.items(), strict=False):
            line.set_data(*found)
            line.set_label(label)
            shown.append(line)
        for (label, value), colour in zip(lines.items(), ACROSS, strict=False):
            if label not in self._fixed:
                self._fixed[label] = ax.axhline(value, color=colour, linestyle="--", linewidth=1)
                self._fixed[label].set_label(label)
            self._fixed[label].set_ydata([value, value])
        shown = [line for line in shown if len(line.get_xdata())] + [*self._fixed.values()]
        if shown:
            ax.legend(handles=shown, fontsize=7, loc="best", framealpha=0.6)

    def _set_range(self, ax) -> None:
        """Let an axis hold all that is drawn, its outliers aside, and what it held before."""
        values = [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]
        values = np.concatenate(values)
        values = values[np.isfinite(values) & (values > 0)]
        if not len(values):
            return
        low, high = np.percentile(values, [1, 99]) if len(values) > 100 else values[[0, 0]]
        if len(values) <= 100:
            low, high = values.min(), values.max()
        low, high = np.floor(2 * np.log10(low) - 0.2) / 2, np.ceil(2 * np.log10(high) + 0.2) / 2
        before = self._ranges.get(ax, (low, high))
        self._ranges[ax] = min(low, before[0]), max(high, before[1])
        ax.set_ylim(*(10**bound for bound in self._ranges[ax]))


def panels_of(pixels: np.ndarray) -> list[bytes]:
    """The panels of a drawing, each as PNG."""
    return [png_bytes(part) for part in np.split(pixels, len(PANELS), axis=1)]


def image_strip(rows: Sequence[Tensor], height: int = 48) -> np.ndarray:
    """Rows of images (N, C, H, W) in [-1, 1] below each other, each so many pixels high."""
    shown = []
    for images in rows:
        pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
        scale = max(1, height // pixels.shape[1])
        pixels = pixels.repeat(scale, 1).repeat(scale, 2)
        framed = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
        shown.append(np.concatenate(framed, axis=1))
    return np.concatenate(shown).squeeze()


def text_strip(text: str, width: int) -> np.ndarray:
    """A line of text as pixels (H, width, 3), black on white."""
    strip = Image.new("RGB", (width, 22), "white")
    ImageDraw.Draw(strip).text((6, 3), text, fill="black", font=ImageFont.load_default(13))
    return np.asarray(strip)
