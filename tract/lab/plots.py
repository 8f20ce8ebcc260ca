"""Figures of data, schedules, samples and losses; each function returns one figure."""

import io
import math
import threading
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image
from torch import Tensor

from tract.data import Data, to_uint8, to_unit
from tract.lab.style import DATA, TEACHER_COLOUR, in_words, line_styles, method_style
from tract.levels import Level, broadcast
from tract.seeds import Stream, generator_for
from tract.step import add_noise

CYCLE = sns.husl_palette(256, s=0.9, l=0.62, as_cmap=True)  # for angles: ends where it starts
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_style = threading.Lock()  # matplotlib's style is global: one thread at a time sets it


class Figure(mpl.figure.Figure):
    """A figure unknown to pyplot, so that any thread may draw it; notebooks show it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return png(self), {"alt": described(self)}


def png(figure: mpl.figure.Figure, dpi: float = 100) -> bytes:
    """A figure as PNG, uncropped."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def described(figure: mpl.figure.Figure) -> str:
    """A figure's titles and axes in one line, for readers who cannot see it."""
    said = [
        " against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel()))) for ax in figure.axes
    ]
    said = [f"{ax.get_title()}: {axes}" for ax, axes in zip(figure.axes, said, strict=True)]
    said = dict.fromkeys(" ".join(text.split()).strip(": ") for text in said)
    return "Figure: " + "; ".join(filter(None, said))


def stacked(pictures: Sequence[bytes]) -> bytes:
    """PNGs below each other, on white."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    size = max(image.width for image in images), sum(image.height for image in images)
    whole, top = Image.new("RGB", size, "white"), 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    content = io.BytesIO()
    whole.save(content, "PNG", optimize=True)
    return content.getvalue()


def image_rows(rows: Mapping[str, Tensor], scale: float = 0.66, most: int = 10) -> Figure:
    """One labelled row of images (N, C, H, W) in [-1, 1] for each entry, the first `most` of N."""
    count = min(most, *(len(images) for images in rows.values()))
    margin = 0.4 + 0.1 * max(map(len, rows))  # inches that the longest label takes
    figure, axes = new_figure(len(rows), 1, (count * scale + margin, len(rows) * scale))
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        image_row(ax, images[:count])
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
    return figure


def image_row(ax: Axes, images: Tensor) -> None:
    """Draw images (N, C, H, W) in [-1, 1] side by side."""
    ax.imshow(strip(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def strip(images: Tensor, height: int = 1) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1] side by side as pixels, white between them.

    height: they are enlarged by whole factors to at most this height.
    """
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
    frame, scale = max(1, pixels.shape[1] // 16), max(1, height // pixels.shape[1])
    pixels = np.pad(pixels, ((0, 0), (frame, frame), (frame, frame), (0, 0)), constant_values=255)
    pixels = np.concatenate(list(pixels), axis=1).squeeze()
    return pixels.repeat(scale, 0).repeat(scale, 1)


def text_figure(lines: Sequence[str], family: str = "monospace", size: float = 7) -> Figure:
    """Lines of text; in the default family columns line up."""
    figure, axes = new_figure(1, 1, (9, 0.024 * size * len(lines) + 0.1))
    axes[0, 0].axis("off")
    style = {"family": family, "fontsize": size, "va": "top"}
    axes[0, 0].text(0, 1, "\n".join(lines), transform=axes[0, 0].transAxes, **style)
    return figure


def captioned_rows(rows: Mapping[str, Mapping[str, Tensor]], scale: float = 0.85) -> Figure:
    """Labelled rows of images (C, H, W) in [-1, 1] of one size, each with its caption below it."""
    count = max(map(len, rows.values()))
    figure, axes = new_figure(len(rows), 1, (count * scale + 0.9, len(rows) * (scale + 0.35)))
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        image_row(ax, torch.stack(list(images.values())))
        width = _captions(ax, list(images))
        ax.set_xlim(-0.5, count * width - 0.5)
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def _captions(ax: Axes, captions: Sequence[str]) -> float:
    """Put captions below the images of a row, and return the width of one."""
    width = (ax.get_xlim()[1] + 0.5) / len(captions)
    ax.set_xticks((np.arange(len(captions)) + 0.5) * width - 0.5, captions)
    ax.tick_params("x", length=0, labelsize=8)
    return width


def noise_levels(data: Data, levels: Level, count: int) -> Figure:
    """A few images of a data set at a few levels each, from clean to the noisiest, and the SNR."""
    indices = np.linspace(0, levels.num_steps, count).round().astype(int)
    x0 = to_unit(data.samples[:3].cpu()).repeat_interleave(count, 0)
    eps = torch.randn(x0.shape, generator=generator_for("cpu", 0, Stream.SAMPLES))
    level = levels[torch.tensor(indices).repeat(3)]
    x = add_noise(x0, eps, level) / broadcast((level.alpha**2 + level.sigma**2).sqrt(), x0)
    figure, axes = new_figure(3, 1, (0.75 * count + 1, 2.6))
    for ax, images in zip(axes[:, 0], x.split(count), strict=True):
        image_row(ax, images / 2)  # noise reaches beyond [-1, 1]
    logsnr = levels.logsnr[indices].numpy().round(1) + 0.0  # no -0.0
    labels = [f"{i}\n{value:+.1f}" for i, value in zip(indices, logsnr, strict=True)]
    _captions(axes[2, 0], labels)
    axes[2, 0].set_xlabel("grid index, and log-SNR below it")
    return figure


def loss_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Weighted loss and unweighted error of runs over images seen, smoothed over 1 % of a run."""
    figure, axes = new_figure(1, 2, (9, 3))
    styles = line_styles(list(histories))
    for label, table in histories.items():
        window = max(1, len(table) // 100)
        smooth = table[["loss", "mse"]].rolling(window, min_periods=1).mean()
        for ax, column in zip(axes[0], smooth, strict=True):
            x = table["images_seen"]
            ax.plot(x, smooth[column], label=in_words(label), linewidth=1.2, **styles[label])
    for ax, title in zip(axes[0], ("weighted loss", "squared error of x0"), strict=True):
        ax.set(yscale="log", xlabel="images seen", ylabel="log scale")
        ax.set_title(title, fontsize=10)
        low, high = ax.get_ylim()
        if high < 100 * low:
            plain_ticks(ax.yaxis)
        ax.xaxis.set_major_formatter(THOUSANDS)
    handles = axes[0, 1].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def paths(panels: Mapping[str, Sequence[Tensor]], data: Tensor, limit: float = 2.6) -> Figure:
    """2-D paths side by side: for each title the points (B, 2) of every time, over data (N, 2).

    Every path has the colour of the direction in which it starts.
    """
    figure, axes = new_figure(1, len(panels), (9, 9 / len(panels) + 0.25))
    for ax, (title, points) in zip(axes[0], panels.items(), strict=True):
        colours = point_colours(points[0])
        lines = np.stack([p.numpy() for p in points], axis=1)  # (B, times, 2)
        ax.scatter(*data.numpy().T, s=1, color=DATA, alpha=0.2, linewidth=0)
        ax.add_collection(LineCollection(lines, colors=colours, linewidths=0.6, alpha=0.8))
        ax.scatter(*lines[:, -1].T, s=9, color=colours, zorder=3, linewidth=0)
        plane(ax, title, limit)
    return figure


def point_maps(
    panels: Mapping[str, Tensor], origin: Tensor, columns: int = 3, limit: float = 2.6
) -> Figure:
    """The same 2-D points (B, 2) under several maps, one panel each, in rows of `columns` panels.

    origin (B, 2): a point keeps the colour of its direction here.
    """
    rows = -(-len(panels) // columns)
    size = 9 / columns
    figure, axes = new_figure(rows, columns, (9, (size + 0.25) * rows))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    colours = point_colours(origin)
    for ax, (title, points) in zip(axes.flat, panels.items(), strict=False):
        ax.scatter(*points.numpy().T, s=size, color=colours, linewidth=0)
        plane(ax, title, limit)
    return figure


def point_colours(points: Tensor) -> np.ndarray:
    """A colour for the direction of each point (B, 2)."""
    x, y = points.numpy().T
    return CYCLE(np.arctan2(y, x) / (2 * np.pi) % 1)


def plane(ax: Axes, title: str, limit: float) -> None:
    """Make axes a square of the plane, without ticks."""
    ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="#cccccc")
    ax.set_aspect("equal")


def errors(table: pd.DataFrame, value: str, label: str, references: Mapping[str, float]) -> Figure:
    """A value per recipe on a log axis: every seed a point, and a bar through their mean.

    table: columns "recipe" and the value, a row per seed. references: values of named lines.
    """
    recipes = list(table["recipe"].unique())
    figure, axes = new_figure(1, 1, (9, 0.45 * len(recipes) + 1.1))
    ax = axes[0, 0]
    for row, recipe in enumerate(recipes):
        dots(ax, row, table.loc[table["recipe"] == recipe, value], recipe)
    for name, number in references.items():
        ax.axvline(number, color=TEACHER_COLOUR, linewidth=1, linestyle=":")
        ax.text(number, -0.65, name, color=TEACHER_COLOUR, ha="center", va="bottom")
    recipe_axis(ax, recipes)
    ax.set_xlabel(f"{label} (log scale, lower is better)")
    return figure


def dots(ax: Axes, row: int, values: pd.Series, method: str) -> None:
    """Draw a recipe's values, one of each seed, and a bar through their mean."""
    color, marker = method_style(method)
    ax.plot(values, [row] * len(values), marker, color=color, markersize=5, alpha=0.7)
    if len(values) > 1:
        ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2)


def recipe_axis(ax: Axes, recipes: Sequence[str]) -> None:
    """Name rows of values on a logarithmic axis after their recipes, from top to bottom."""
    ax.set(xscale="log", yticks=range(len(recipes)), yticklabels=map(in_words, recipes))
    ax.set_ylim(len(recipes) - 0.4, -0.6)
    ax.tick_params("y", length=0)
    plain_ticks(ax.xaxis)


def plain_ticks(axis: Axis, whole: bool = False) -> None:
    """Mark 1, 2, 5, 10, ... as plain numbers on a logarithmic axis, for what is drawn so far.

    With fewer than three such marks they are equally spaced instead. whole: only whole numbers.
    """
    axis.set_minor_locator(NullLocator())
    if axis.get_minpos() == math.inf:  # nothing was measured
        axis.set_major_locator(NullLocator())
        return
    marks, span = LogLocator(subs=(1, 2, 5)), axis.get_view_interval()
    seen = [mark for mark in marks.tick_values(*span) if min(span) <= mark <= max(span)]
    axis.set_major_locator(
        marks if len(seen) > 2 else MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole)
    )
    axis.set_major_formatter("{x:g}")


def new_figure(
    rows: int, columns: int, size: tuple[float, float], **options
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns). size: inches. options: of Figure.subplots."""
    with _style, sns.axes_style("ticks"), mpl.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    sns.despine(figure)
    return figure, axes
