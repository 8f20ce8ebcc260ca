"""Draw the README's pictures: maps of points, generated digits, and an animation of hops."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tract.lab.perfect_student import PerfectStudent
from tract.lab.plots import Figure, image_row, new_figure, plane, png, point_colours
from tract.lab.schedule import hop
from tract.lab.style import DATA, SELF_TEACHER, STUDENT, TEACHER_COLOUR
from tract.levels import cosine
from tract.networks.weights import read_tensors, write_tensors
from tract.phases import parse_schedule
from tract.studies.spiral import spiral

STEPS = 16  # of the teacher, in the animation's single group


def save_maps(panels: Mapping[str, Tensor], stem: str | Path) -> None:
    """Save maps of noise (N, 2) by title, the noise itself first, to be drawn again."""
    tensors = {f"{i}": points.half() for i, points in enumerate(panels.values())}
    path = Path(stem).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"panels": list(panels)})


def read_maps(stem: str | Path) -> dict[str, Tensor]:
    """Return the maps that `save_maps` wrote."""
    tensors, card = read_tensors(Path(stem).with_suffix(".safetensors"))
    return {title: tensors[f"{i}"].float() for i, title in enumerate(card["panels"])}


def hero(maps: Mapping[str, Tensor], digits: Mapping[str, Tensor], count: int = 9) -> Figure:
    """Draw points of a spiral under each model's map, and below digits, one row per model."""
    heights = [2, *[1] * len(digits)]
    grid = {"height_ratios": heights}
    figure, axes = new_figure(len(heights), len(maps), (9, 0.9 * sum(heights)), gridspec_kw=grid)
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.02)
    colours = point_colours(next(iter(maps.values())))
    for ax, (title, points) in zip(axes[0], maps.items(), strict=True):
        size = 1.5 if points.std() > 0.1 else 25  # all points in one place
        ax.scatter(*points.numpy().T, s=size, color=colours, linewidth=0)
        plane(ax, title, 2.3)
    for row, (label, images) in zip(axes[1:], digits.items(), strict=True):
        place = row[0].get_subplotspec()
        for ax in row:
            ax.remove()
        ax = figure.add_subplot(place.get_gridspec()[place.rowspan.start, :])
        image_row(ax, functional.interpolate(images[:count], scale_factor=8, mode="bicubic"))
        label = label.replace(", ", "\n").replace(" 1024", "\n1024")
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def hop_animation(path: str | Path, points: int = 600) -> None:
    """Write a GIF of a perfect student learning one more hop of its group in each round.

    Left: its single step, made of the teacher steps learned so far and a leap. Right: where that
    step takes noise.
    """
    teacher, _ = spiral()
    levels, phases = cosine(STEPS), parse_schedule([STEPS, 1])
    eps = torch.randn(points, 2, generator=torch.Generator().manual_seed(0))
    frames = []
    for rounds in range(STEPS):
        x = PerfectStudent(teacher, levels, phases, [rounds]).walk(eps)[-1]
        frames.append(Image.open(io.BytesIO(png(_frame(rounds, eps, x), dpi=80))).convert("RGB"))
    palette = frames[len(frames) // 2].quantize(128)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [1200, *[500] * (len(frames) - 2), 3000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def _frame(rounds: int, eps: Tensor, x: Tensor) -> Figure:
    figure, ((left, right),) = new_figure(1, 2, (9, 3.2), gridspec_kw={"width_ratios": [1.9, 1]})
    learned = STEPS if rounds == STEPS - 1 else rounds  # then the leap is the last step
    marks = [step / STEPS for step in range(STEPS + 1)]
    left.plot(marks, [0] * len(marks), "-|", color="black", linewidth=1, markersize=8)
    for step in range(learned):
        hop(left, marks[step], marks[step + 1], TEACHER_COLOUR)
    if learned < STEPS:
        hop(left, marks[learned], 1, SELF_TEACHER)
    hop(left, 0, 1, STUDENT, height=1.5, linestyle="--")
    known = [place for step, place in enumerate(marks) if STEPS - step <= learned + 1]
    left.plot(known, [-0.2] * len(known), "o", color=STUDENT, markersize=5)
    left.text(0.5, -0.42, "dots: levels from which the student is exact", ha="center", color=DATA)
    left.text(0, -0.42, "noise", ha="center")
    left.text(1, -0.42, "data", ha="center")
    left.set(xlim=(-0.05, 1.05), ylim=(-0.5, 1.75), xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    left.set_title(f"the student's one step after {rounds} rounds of learning", fontsize=11)
    right.scatter(*x.numpy().T, s=5, color=point_colours(eps), linewidth=0)
    plane(right, f"where it leads: {learned} of {STEPS} hops known", 2.3)
    return figure
