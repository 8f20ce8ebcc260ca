"""Pictures: every function draws one figure from plain data and returns it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tract.data import to_uint8
from tract.levels import Level
from tract.phases import Phase

# Colour-blind safe, and the same meaning in every figure.
TEACHER, SELF_TEACHER, DATA = "#0072b2", "#d55e00", "#888888"


def image_rows(rows: Mapping[str, Tensor], scale: float = 0.62) -> Figure:
    """One labelled row of images (N, C, H, W) in [-1, 1] for each entry, all of the same N."""
    count = min(len(images) for images in rows.values())
    figure, axes = _figure(len(rows), 1, (count * scale + 2.4, len(rows) * scale))
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        _image_row(ax, images[:count])
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def _image_row(ax: Axes, images: Tensor) -> None:
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
    frame = max(1, pixels.shape[1] // 16)
    pixels = np.pad(pixels, ((0, 0), (frame, frame), (frame, frame), (0, 0)), constant_values=255)
    strip = np.concatenate(list(pixels), axis=1)
    ax.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def loss_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Weighted loss and unweighted error of runs over images seen, smoothed over 1 % of a run."""
    figure, axes = _figure(1, 2, (9, 3))
    for label, table in histories.items():
        window = max(1, len(table) // 100)
        smooth = table[["loss", "mse"]].rolling(window, min_periods=1).mean()
        for ax, column in zip(axes[0], smooth, strict=True):
            ax.plot(table["images_seen"], smooth[column], label=label, linewidth=1)
    for ax, title in zip(axes[0], ("weighted loss", "squared error of x0"), strict=True):
        ax.set(yscale="log", xlabel="images seen", title=title)
    axes[0, 1].legend(frameon=False)
    return figure


def schedule_picture(phases: Sequence[Phase], levels: Level) -> Figure:
    """The groups of every phase on the time axis, noise left, with one example of both hops.

    Blue: one teacher step, the first hop. Orange: what a self-teacher crosses, the second hop.
    """
    figure, axes = _figure(len(phases) + 1, 1, (9, 1.1 + 0.75 * len(phases)), sharex=True)
    grid = levels.num_steps
    for ax, phase in zip(axes[:, 0], phases, strict=False):
        _phase_axis(ax, phase, grid)
    ax = axes[-1, 0]
    time = np.arange(grid + 1)
    ax.plot(time, levels.sigma / (levels.alpha**2 + levels.sigma**2).sqrt(), color=DATA)
    ax.set(ylim=(-0.1, 1.1), yticks=[0, 1], xlim=(grid * 1.01, -grid * 0.01))
    ax.set_ylabel("noise share", rotation=0, ha="right", va="center")
    ax.set_xlabel("grid index: noise on the left, data on the right")
    return figure


def _phase_axis(ax: Axes, phase: Phase, grid: int) -> None:
    width = phase.segment * phase.stride
    # Two tints side by side show the groups; more than 64 of them would be a grey smear.
    for group in range(phase.student_steps if phase.student_steps <= 64 else 0):
        ax.axvspan(group * width, (group + 1) * width, color=DATA, alpha=(0.12, 0.3)[group % 2])
    if phase.student_steps > 64:
        ax.axvspan(0, grid, color=DATA, alpha=0.2, hatch="||||", linewidth=0)
    top = grid * 3 // 4 // width * width or width  # start of the group drawn as an example
    first = max(phase.stride, grid // 200)  # wide enough to be seen
    ax.plot([top, top - first], [0.5, 0.5], color=TEACHER, linewidth=4, solid_capstyle="butt")
    ax.plot(
        [top - first, min(top - first, top - width)],
        [0.5, 0.5],
        color=SELF_TEACHER,
        linewidth=2,
        solid_capstyle="butt",
    )
    ax.set(ylim=(0, 1), yticks=[])
    ax.set_ylabel(str(phase), rotation=0, ha="right", va="center")
    ax.spines["left"].set_visible(False)


def paths(
    axes_titles: Mapping[str, Sequence[Tensor]], data: Tensor, colour_by: Tensor, limit: float = 2.5
) -> Figure:
    """2-D paths side by side: for each title the points (B, 2) of every time, over the data.

    colour_by (B,) colours every path by where its noise came from.
    """
    figure, axes = _figure(1, len(axes_titles), (3.1 * len(axes_titles), 3.3))
    colours = plt.get_cmap("twilight")(colour_by.numpy())
    for ax, (title, points) in zip(axes[0], axes_titles.items(), strict=True):
        lines = np.stack([p.numpy() for p in points])  # (times, B, 2)
        ax.scatter(*data.T, s=1, color=DATA, alpha=0.25, linewidth=0)
        for line, colour in zip(lines.transpose(1, 0, 2), colours, strict=True):
            ax.plot(*line.T, color=colour, linewidth=0.5, alpha=0.7)
        ax.scatter(*lines[-1].T, s=6, color=colours, zorder=3, linewidth=0)
        ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
        ax.set_aspect("equal")
    return figure


def errors(table: pd.DataFrame, value: str, label: str) -> Figure:
    """Bars of a value per recipe with every seed as a point; error bars span the seeds."""
    figure, axes = _figure(1, 1, (6, 0.5 * table["recipe"].nunique() + 1))
    ax = axes[0, 0]
    sns.barplot(table, x=value, y="recipe", errorbar="sd", color=TEACHER, alpha=0.6, ax=ax)
    sns.stripplot(table, x=value, y="recipe", color="black", size=3, ax=ax)
    ax.set(xlabel=label, ylabel="")
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float], **options):
    """A figure that only the caller shows: pyplot forgets it, so that no cell draws it twice."""
    with sns.axes_style("ticks"), plt.rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", **options
        )
    sns.despine(figure)
    plt.close(figure)
    return figure, axes
