"""Draw a phase schedule: its groups, who makes which hop, and the levels at their ends."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path as BezierPath

from tract.lab.plots import Figure, new_figure
from tract.lab.style import DATA, SELF_TEACHER, STUDENT, TEACHER_COLOUR
from tract.levels import Level
from tract.phases import Phase


def schedule_picture(phases: Sequence[Phase], levels: Level, self_taught: bool = True) -> Figure:
    """The groups of every phase, and in one of them, magnified, who makes which hop.

    A phase of growing grids has a panel for each. self_taught: the self-teacher makes the second
    hop (TRACT), else the teacher does (BTD). Time runs from noise to data, darker where there is
    more noise; t, u and s are indices of levels. Above are the levels at the ends of groups, with
    their log-SNR, at most nine of them.
    """
    parts = [part for phase in phases for part in phase.parts]
    figure, axes = new_figure(len(parts), 1, (9, 2.15 * len(parts) + 0.3))
    for ax, phase in zip(axes[:, 0], parts, strict=True):
        group = phase.student_steps // 3  # the one that is magnified, counted from the noise
        _whole_time(ax, phase, levels, group)
        _levels_reached(ax, phase, levels)
        _magnified_group(ax, phase, group, self_taught)
        ax.set(xlim=(-0.06, 1.06), ylim=(-0.75, 3.1), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(f"{phase}:  {_lesson(phase)}", loc="left", fontsize=10, fontweight="bold")
    hops = {"first hop: one step of the teacher": (TEACHER_COLOUR, "-")}
    if self_taught:
        hops["second hop: the self-teacher, to the end of the group"] = (SELF_TEACHER, "-")
    else:
        hops = {"both hops: one step of the teacher each": (TEACHER_COLOUR, "-")}
    hops["the student: both at once"] = (STUDENT, "--")
    handles = [Line2D([], [], color=c, ls=style, label=label) for label, (c, style) in hops.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def phases_strip(phases: Sequence[Phase]) -> Figure:
    """All phases of a schedule below each other: the groups that the student crosses in one step.

    Time runs from noise to data; a dark and a light field are a group each.
    """
    figure, axes = new_figure(1, 1, (9, 0.3 * len(phases) + 0.5))
    ax = axes[0, 0]
    for row, phase in enumerate(phases):
        count = min(phase.student_steps, 256)  # more would be a grey smear
        ends = np.linspace(0, 1, count + 1)
        colours = [DATA if i % 2 else STUDENT for i in range(count)]
        ax.barh(row, np.diff(ends), left=ends[:-1], height=0.7, color=colours, alpha=0.55)
        groups = f"{phase.student_steps} group" + "s" * (phase.student_steps > 1)
        ax.text(1.01, row, f"{groups} of {phase.segment}", va="center")
    ax.set(
        xlim=(0, 1), ylim=(len(phases) - 0.5, -0.5), xticks=[0, 1], xticklabels=["noise", "data"]
    )
    ax.set_yticks(range(len(phases)), [f"phase {i + 1}: {p}" for i, p in enumerate(phases)])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def _lesson(phase: Phase) -> str:
    """What is learned in a phase, in words."""
    if phase.segment == 1:
        return f"another network learns the teacher's own {phase.teacher_steps} steps"
    groups = "1 group" if phase.student_steps == 1 else f"{phase.student_steps} groups"
    return (
        f"the teacher's {phase.teacher_steps} steps in {groups} of {phase.segment}; "
        "the student learns to cross a group in one step"
    )


def _whole_time(ax: Axes, phase: Phase, levels: Level, group: int) -> None:
    """Draw all groups as a strip, and a cone from one of them to its magnification below."""
    noise = (levels.sigma / (levels.alpha**2 + levels.sigma**2).sqrt()).flip(0).numpy()
    strip = {"extent": (0, 1, 2.05, 2.4), "aspect": "auto", "cmap": "Greys", "vmin": 0, "vmax": 2}
    ax.imshow(noise[None], **strip)
    count = phase.student_steps
    if count <= 128:  # more would be a white smear
        ax.vlines(np.arange(1, count) / count, 2.05, 2.4, color="white", linewidth=1.2)
    ax.add_patch(Rectangle((0, 2.05), 1, 0.35, fill=False, color=DATA, linewidth=0.5))
    left, width = group / count, max(1 / count, 0.003)  # wide enough to be seen
    ax.add_patch(Rectangle((left, 2.05), width, 0.35, fill=False, color="black", zorder=3))
    ax.fill([left, left + width, 1, 0], [2.05, 2.05, 0, 0], color=DATA, alpha=0.13, linewidth=0)
    ax.text(-0.01, 2.22, "noise", ha="right", va="center")
    ax.text(1.01, 2.22, "data", ha="left", va="center")


def _levels_reached(ax: Axes, phase: Phase, levels: Level) -> None:
    """Write above the strip at which levels groups begin and end, and their log-SNR."""
    count = phase.student_steps
    groups = np.linspace(0, count, min(count, 8) + 1).round().astype(int)  # from the noise on
    indices = phase.grid_steps - groups * phase.segment * phase.stride
    logsnr = levels.logsnr[indices].numpy()
    for x, index, value in zip(groups / count, indices, logsnr, strict=True):
        ax.text(x, 2.45, index, ha="center", va="bottom")
        shown = f"{value.round(1) + 0.0:+.1f}" if np.isfinite(value) else "no noise"
        ax.text(x, 2.78, shown, ha="center", va="bottom", color=DATA)
    ax.text(-0.035, 2.45, "level", ha="right", va="bottom")
    ax.text(-0.035, 2.78, "log-SNR", ha="right", va="bottom", color=DATA)


def _magnified_group(ax: Axes, phase: Phase, group: int, self_taught: bool) -> None:
    """Draw one group's teacher steps as marks, two hops, and the student's step over both."""
    first = phase.segment // 4  # where in the group the example starts
    steps = {"t": first, "u": first + 1, "s": phase.segment}
    marks = _marks(phase.segment, first)
    for (step, x), (next_step, next_x) in itertools.pairwise(marks.items()):
        style = "-" if next_step == step + 1 else ":"  # dotted: omitted marks
        ax.plot([x, next_x], [0, 0], color="black", linewidth=1, linestyle=style)
    ax.plot(list(marks.values()), [0] * len(marks), "|", color="black", markersize=7)
    x_t, x_u, x_s = (marks[step] for step in steps.values())
    hop(ax, x_t, x_u, TEACHER_COLOUR)
    if x_u < x_s:
        hop(ax, x_u, x_s, SELF_TEACHER if self_taught else TEACHER_COLOUR)
    hop(ax, x_t - 0.005, x_s + 0.005, STUDENT, height=1.6, linestyle="--")
    noisy_end = phase.grid_steps - group * phase.segment * phase.stride
    for (name, step), side in zip(steps.items(), ("right", "left", "center"), strict=True):
        if name == "u" and x_u == x_s:
            continue
        label = f"{name} = {noisy_end - step * phase.stride}"
        ax.text(marks[step], -0.25, label, ha=side, va="top")


def _marks(segment: int, first: int) -> dict[int, float]:
    """Places in [0, 1] of a group's teacher steps; of very many only three runs of four."""
    if segment <= 32:
        return {step: step / segment for step in range(segment + 1)}
    runs = {0: 0, first - 1: 8, segment - 3: 29}  # the first step of a run, and where in 1/32
    return {step + i: (place + i) / 32 for step, place in runs.items() for i in range(4)}


def hop(
    ax: Axes, x_from: float, x_to: float, color: str, height: float | None = None, **style
) -> None:
    """Draw an arc with an arrowhead on the axis of a magnified group."""
    if height is None:
        height = min(1.05, 0.3 + 1.6 * (x_to - x_from))
    top = height * 4 / 3  # of the control points, so that the arc itself is of this height
    ends = [(x_from, 0.08), (x_from, top), (x_to, top), (x_to, 0.08)]
    arc = BezierPath(ends, [BezierPath.MOVETO] + 3 * [BezierPath.CURVE4])
    options = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.6} | style
    ax.add_patch(FancyArrowPatch(path=arc, color=color, **options))
