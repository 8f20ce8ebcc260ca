"""Charts of results: published beside measured, seeds as points, means as bars.

Published and measured numbers never share an axis: they are of other data and other metrics.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tract.data import to_uint8, to_unit
from tract.experiments.results import PER_PHASE
from tract.lab.plots import dots, image_rows, new_figure, plain_ticks, recipe_axis
from tract.lab.style import (
    DATA,
    SELF_TEACHER,
    STUDENT,
    TEACHER_COLOUR,
    in_words,
    line_styles,
    method_of,
    method_style,
)
from tract.networks.weights import read_tensors, write_tensors
from tract.studies.ablations import Study
from tract.studies.tables import recipes_of

PUBLISHED_LABEL = "published: CIFAR-10"
LOWER = "(log scale, lower is better)"
FLOOR = "real images"
PHASES = "steps of a phase's student, from the first phase to the last"
LEGEND = {"fontsize": 8, "edgecolor": "none", "framealpha": 0.85}
ROWS = {  # what the rows of a comparison are, where that is not a schedule
    **dict.fromkeys(("self_ema", "growing_self_ema"), "self-teacher's\ndecay"),
    "ema_residual": "share of the start\nleft in the average",
    "loss_weight": "loss weight",
    "student_network": "student",
    "steps": "student's steps",
}
TRADE_OFF = {
    "discretisation error: the teacher's n steps": {"color": TEACHER_COLOUR},
    "distillation error: the student, from those": {"color": SELF_TEACHER},
    "both: the student, from the truth": {"color": STUDENT, "linestyle": "--"},
}
OVER_GRIDS = ("finest_grid", "heun_grid")  # comparisons drawn as lines over the grid's steps


def ablation_chart(
    published: pd.DataFrame, results: pd.DataFrame, comparison: str, *studies: Study
) -> Figure:
    """An ablation's recipes from top to bottom: published numbers, if any, and beside them ours.

    Dotted lines: the best that our students' teacher does in any number of steps, and what real
    images score. Comparisons of grids are lines over the number of their steps instead.
    """
    ours = [(study, study.rows(results, comparison)) for study in studies]
    if comparison in OVER_GRIDS:
        return _over_grids(results, ours)
    theirs = published[published["table"] == comparison]
    recipes = recipes_of(comparison, theirs["recipe"])
    panels = [(PUBLISHED_LABEL, "fid", theirs)] if len(theirs) else []
    panels += [(_title(study, rows), study.metric, rows) for study, rows in ours]
    size = (min(4.5, 11 / len(panels)) * len(panels), 0.26 * len(recipes) + 1.3)
    figure, axes = new_figure(1, len(panels), size, sharey=True)
    for ax, (title, metric, table) in zip(axes[0], panels, strict=True):
        for row, recipe in enumerate(recipes):
            rows = table[table["recipe"] == recipe]
            method = method_of(recipe, *rows["method"].iloc[:1])
            dots(ax, row, rows["value"].astype(float), method)
        ax.set_title(title, fontsize=10)
        ax.grid(axis="y", color="#eeeeee")
    for ax, (study, rows) in zip(axes[0, -len(ours) :], ours, strict=True):
        _levels(ax.axvline, study, results, rows)
    for ax, (_, metric, _) in zip(axes[0], panels, strict=True):
        recipe_axis(ax, recipes)
        ax.set_xlabel(f"{in_words(metric)}\n{LOWER}")
    axes[0, 0].set_ylabel(ROWS.get(comparison))
    _legend(figure, axes[0])
    return figure


def _title(study: Study, rows: pd.DataFrame) -> str:
    seeds = rows["seed"].nunique()
    return f"measured: {in_words(study.data)}" + (f", {seeds} seeds" if seeds > 1 else "")


def _levels(line, study: Study, results: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Draw the teacher's best number and the floor of real images, where they were measured."""
    teachers = study.teachers(results, rows)["value"].astype(float)
    if (teachers > 0).any():  # not to itself
        best = teachers[teachers > 0].min()
        line(best, color=TEACHER_COLOUR, linestyle=":", label="the teacher's best")
    mine = study.mine(results)
    real = mine[(mine["method"] == FLOOR) & (mine["metric"] == study.metric)]["value"]
    if len(real):
        line(real.astype(float).mean(), color=DATA, linestyle=":", label=FLOOR)


def _legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels: what stands in several of them once."""
    found = {}
    for ax in axes:
        handles, texts = ax.get_legend_handles_labels()
        found |= dict(zip(texts, handles, strict=True))
    if found:
        where = {"loc": "outside lower center", "ncols": 4, "frameon": False}
        figure.legend(handles=list(found.values()), labels=list(found), fontsize=8, **where)


def _over_grids(results: pd.DataFrame, ours: Sequence[tuple[Study, pd.DataFrame]]) -> Figure:
    """One phase n>1 against n, a line for each way to get there: "fixed", "growing", a solver."""
    panels = []
    for study, rows in ours:
        steps = rows["schedule"].str.extract(r"(\d+)>\d+$", expand=False)
        kind = rows["recipe"].str.replace(r"(, | to | )\d+(>1)?$", "", regex=True)
        panels.append((_title(study, rows), study.metric, rows.assign(n=steps, line=kind)))
    levels = [(study, results, rows) for study, rows in ours]
    return _lines(panels, "n", "steps of the teacher's finest grid", levels)


def quality_by_steps(
    published: pd.DataFrame | None,
    results: pd.DataFrame,
    study: Study,
    comparisons: Sequence[str] = ("method_steps",),
    *others: Study,
) -> Figure:
    """Distance against network evaluations: published on both data sets, if given, and ours.

    Of ours a line is a kind of recipe, what stands before the comma in "MCT, 2", else a method and
    its teacher's grid; or the teacher.
    """
    tables = {} if published is None else {"cifar10": "CIFAR-10", "imagenet64": "ImageNet-64"}
    panels = [
        (f"published: {name}", "fid", _by(published[published["table"] == table], "recipe"))
        for table, name in tables.items()
    ]
    for each in (study, *others):
        rows = each.rows_of_all(results, comparisons)
        grids = rows["method"] + " from " + rows["schedule"].str.split(">").str[0]
        named = rows["recipe"].astype(str).str.extract(r"^(\D.*), \d+$", expand=False)
        teachers = _by(each.teachers(results, rows), "method")
        measured = pd.concat([teachers, rows.assign(line=named.fillna(grids))])
        panels.append((_title(each, rows), each.metric, measured))
    levels = [(each, results, results.iloc[:0]) for each in (study, *others)]  # teachers are lines
    return _lines(panels, "nfe", "network evaluations", levels)


def quality_by_images(published: pd.DataFrame, results: pd.DataFrame, study: Study) -> Figure:
    """Distance in one step against images that a student was trained on, published and ours."""
    theirs = published[(published["table"] == "cifar10") & (published["nfe"] == 1)]
    theirs = theirs.assign(line=theirs["recipe"].str.rsplit("-", n=1).str[0])
    ours = study.rows(results, "images")
    named = ours.assign(line=ours["recipe"].str.split(",").str[0])
    panels = [(PUBLISHED_LABEL, "fid", theirs), (_title(study, ours), study.metric, named)]
    return _lines(panels, "images", "images seen in distillation", [(study, results, ours)])


def drift(results: pd.DataFrame, study: Study) -> Figure:
    """How far each phase's student is from the first teacher's samples, against its steps."""
    rows = study.rows(results, "phases", PER_PHASE)
    return _lines([(_title(study, rows), PER_PHASE, _by(rows, "recipe"))], "nfe", PHASES)


def drift_of(results: pd.DataFrame, runs: Mapping[str, str]) -> Figure:
    """The same for runs of one folder. results: its table. runs: names of runs by label."""
    rows = results[(results["metric"] == PER_PHASE) & results["run"].isin(list(runs.values()))]
    labels = {run: label for label, run in runs.items()}
    title = "every phase's student, in its own number of steps"
    rows = rows.assign(line=rows["run"].map(labels))
    return _lines([(title, PER_PHASE, rows)], "nfe", PHASES)


def trade_off(results: pd.DataFrame, studies: Mapping[str, Study]) -> Figure:
    """Why a phase wants neither a short nor a long grid: errors in one phase n>1 against n.

    studies: by the name of the error to the truth in results, such as "rmse_to_teacher". The
    teacher's own error with n steps falls, the student's distance to those n steps grows; dashed
    is the error that both lead to.
    """
    panels = []
    for metric, study in studies.items():
        learned = _fixed(study.rows(results, "finest_grid", PER_PHASE))
        whole = _fixed(study.rows(results, "finest_grid", metric))
        own = study.teachers(results, whole, metric)
        own = own[own["value"] > 0]  # not itself, the truth
        tables = zip(TRADE_OFF, (own.assign(n=own["nfe"]), learned, whole), strict=True)
        named = pd.concat([table.assign(line=name) for name, table in tables])
        panels.append((_title(study, whole), metric, named))
    return _lines(panels, "n", "n, steps of the teacher's grid", looks=TRADE_OFF)


def _fixed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one phase n>1 from a grid that does not grow, with their n."""
    rows = rows[rows["schedule"].str.fullmatch(r"\d+>1")]
    return rows.assign(n=rows["schedule"].str.split(">").str[0].astype(int))


def _by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table with the column after which its lines are named."""
    return table.assign(line=table[column])


def _lines(
    panels: Sequence[tuple[str, str, pd.DataFrame]],
    x: str,
    label: str,
    levels: Sequence[tuple[Study, pd.DataFrame, pd.DataFrame]] = (),
    looks: Mapping[str, dict] | None = None,
) -> Figure:
    """Panels of lines through means, with every value a point, on logarithmic axes.

    panels: title, metric, and a table with the columns line, x and value. levels: what `_levels`
    draws across the last panels. looks: options of lines by name, where they are not those of
    their methods.
    """
    figure, axes = new_figure(1, len(panels), (max(9, 3.6 * len(panels)), 3.6))
    for ax, (title, metric, table) in zip(axes[0], panels, strict=True):
        styles = looks or line_styles(list(table["line"].unique()))
        for name, rows in table.astype({x: float, "value": float}).groupby("line", sort=False):
            look = styles[name] | {"marker": "o" if looks else method_style(name).marker}
            means, points = rows.groupby(x)["value"].mean(), {"linestyle": "none", "alpha": 0.7}
            # Without points, but with a marker in the legend.
            ax.plot(means, linewidth=1.4, label=in_words(name), markevery=[], markersize=4, **look)
            ax.plot(rows[x], rows["value"], markersize=4, **look | points)
        ax.set(xscale="log", yscale="log", xlabel=f"{label} (log scale)")
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(f"{in_words(metric)}\n{LOWER}")
        _mark_steps(ax, x)
    for ax, level in zip(axes[0, len(panels) - len(levels) :], levels, strict=True):
        _levels(ax.axhline, *level)
    names = [set(ax.get_legend_handles_labels()[1]) for ax in axes[0]]
    shared = len(panels) > 1 and set.union(*names) in names
    for ax, own in zip(axes[0], names, strict=True):
        plain_ticks(ax.yaxis)
        if own and not shared and not looks:  # in the panel, or beside it if lines are many
            beside = {"bbox_to_anchor": (1, 1), "loc": "upper left"} if len(own) > 5 else {}
            ax.legend(**LEGEND | beside)
    if shared or looks:
        _legend(figure, axes[0])
    return figure


def _mark_steps(ax: Axes, x: str) -> None:
    """Mark the places of an axis at which something is drawn; fewer steps to the right."""
    places = sorted({place for line in ax.lines for place in line.get_xdata()})
    if not places:
        return
    if x == "images":
        plain_ticks(ax.xaxis)
        ax.xaxis.set_major_formatter(lambda n, _: f"{n / 1e6:g}M" if n >= 1e6 else f"{n:,.0f}")
        return
    ax.set_xticks(places, [f"{place:g}" for place in places], minor=False)
    ax.set_xticks([], minor=True)
    if x == "nfe":
        ax.invert_xaxis()  # the way that distillation goes


def save_figure(figure: Figure, stem: str | Path) -> None:
    """Write a figure as PNG, or as $FIGURE_FORMAT says; the same bytes for the same picture."""
    kind = os.environ.get("FIGURE_FORMAT", "png")
    path = Path(f"{stem}.{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The time of day would be in every PDF otherwise.
    dated = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata=dated)


def save_grid(rows: Mapping[str, Tensor], stem: str | Path) -> None:
    """Write labelled rows of images in [-1, 1] as a figure, and the images to draw it again."""
    path, card = Path(stem).with_suffix(".safetensors"), {"rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    images = {f"{i}": to_uint8(images) for i, images in enumerate(rows.values())}
    found, before = read_tensors(path) if path.is_file() else ({}, {})
    same = before == card and all(torch.equal(found[name], images[name].cpu()) for name in images)
    if not same:  # the same content in safetensors can be other bytes
        write_tensors(path, images, card)
    save_figure(image_rows(rows), stem)


def read_grid(stem: str | Path) -> dict[str, Tensor]:
    """Labelled rows of images in [-1, 1] that `save_grid` wrote."""
    images, card = read_tensors(Path(stem).with_suffix(".safetensors"))
    return {label: to_unit(images[f"{i}"]) for i, label in enumerate(card["rows"])}
