"""Fast-updating training curves: one figure whose lines move instead of being redrawn."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from tract.data import to_uint8
from tract.datasets.images import png_bytes
from tract.lab.plots import new_figure, plain_ticks
from tract.lab.style import DATA, STUDENT

POINTS = 200  # of a curve: more records are averaged
TITLES = ("weighted loss", "squared error of x0", "error to the target, by level", "distance")


class Curves:
    """Four panels of a student, on log scales: two losses, error by noise level, distance to data.

    images: of the whole run, where the axes end. ends: images after which phases end.
    """

    def __init__(self, images: int, ends: Sequence[int], grid_steps: int):
        self._figure, axes = new_figure(1, len(TITLES), (10, 2.3))
        self._axes = axes[0]
        self._lines = [
            ax.plot([], [], color=STUDENT, marker=".", markersize=3, linewidth=1.2)[0]
            for ax in self._axes
        ]
        for ax, title in zip(self._axes, TITLES, strict=True):
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
            ax.set_position([0.05 + 0.247 * column, 0.24, 0.185, 0.64])
        self._canvas = FigureCanvasAgg(self._figure)

    def draw(
        self, records: pd.DataFrame, errors: tuple[Tensor, Tensor] | None, distances: pd.DataFrame
    ) -> bytes:
        """The curves as PNG. records: images_seen, loss, mse. distances: images_seen, metric."""
        groups = np.arange(len(records)) * POINTS // max(len(records), POINTS)
        means = records.groupby(groups).mean()
        for line, column in zip(self._lines, ("loss", "mse"), strict=False):
            line.set_data(means["images_seen"], means[column])
        if errors is not None:
            self._lines[2].set_data(*errors)
        self._lines[3].set_data(distances["images_seen"], distances["metric"])
        for ax in self._axes:
            ax.relim()
            ax.autoscale_view(scalex=False)
        self._canvas.draw()  # once, where saving the figure would draw it twice
        return png_bytes(np.asarray(self._canvas.buffer_rgba()))


def image_strip(rows: Sequence[Tensor], height: int = 48) -> bytes:
    """Rows of images (N, C, H, W) in [-1, 1] below each other as PNG, each `height` pixels high."""
    shown = []
    for images in rows:
        pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
        scale = max(1, height // pixels.shape[1])
        pixels = pixels.repeat(scale, 1).repeat(scale, 2)
        framed = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
        shown.append(np.concatenate(framed, axis=1))
    return png_bytes(np.concatenate(shown).squeeze())
