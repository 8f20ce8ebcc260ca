"""Charts of results: published beside measured, seeds as points, means as bars.

Published and measured numbers never share an axis: they are of other data and other metrics.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tract.data import to_uint8, to_unit
from tract.experiments.results import KEY, PER_PHASE
from tract.lab.plots import STUDENT, image_rows, new_figure, plain_ticks
from tract.networks.weights import read_tensors, write_tensors
from tract.studies.ablations import Study
from tract.studies.tables import recipes_of

PUBLISHED = "published, CIFAR-10 (FID)"


def ablation_chart(
    published: pd.DataFrame, results: pd.DataFrame, comparison: str, *studies: Study
) -> Figure:
    """An ablation's recipes from top to bottom: published numbers, if any, and beside them ours."""
    theirs = published[published["table"] == comparison]
    ours = {study.title: study.rows(results, comparison) for study in studies}
    recipes = recipes_of(comparison, theirs["recipe"])
    panels = ({PUBLISHED: theirs} if len(theirs) else {}) | ours
    size = (min(4.5, 11 / len(panels)) * len(panels), 0.26 * len(recipes) + 0.9)
    figure, axes = new_figure(1, len(panels), size, sharey=True)
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        for row, recipe in enumerate(recipes):
            values = table.loc[table["recipe"] == recipe, "value"].astype(float)
            ax.plot(values, [row] * len(values), "o", color=STUDENT, markersize=5, alpha=0.7)
            if len(values) > 1:
                ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=STUDENT, linewidth=2)
        ax.set(xscale="log", yticks=range(len(recipes)), yticklabels=recipes)
        ax.set_ylim(len(recipes) - 0.4, -0.6)
        ax.set_title(title, fontsize=9)
        ax.tick_params("y", length=0)
        ax.grid(axis="y", color="#eeeeee")
        plain_ticks(ax.xaxis)
    return figure


def quality_by_steps(published: pd.DataFrame, results: pd.DataFrame, study: Study) -> Figure:
    """Distance against network evaluations: published on both data sets, and ours."""
    panels = {
        f"published, {name} (FID)": _by(published[published["table"] == table], "recipe")
        for table, name in (("cifar10", "CIFAR-10"), ("imagenet64", "ImageNet-64"))
    }
    baseline = study.rows(results, "phases").query("method == 'BTD'")
    students = pd.concat([study.rows_of_all(results, ["steps", "method_steps"]), baseline])
    students = students.drop_duplicates(list(KEY))
    measured = pd.concat([study.teachers(results, students), students])
    return _lines(panels | {study.title: _by(measured, "method")}, "nfe", "network evaluations")


def quality_by_images(published: pd.DataFrame, results: pd.DataFrame, study: Study) -> Figure:
    """Distance in one step against images that a student was trained on, published and ours."""
    theirs = published[(published["table"] == "cifar10") & (published["nfe"] == 1)]
    theirs = theirs.assign(network=theirs["recipe"].str.rsplit("-", n=1).str[0])
    ours = study.rows_of_all(results, ["images", "budget"])
    ours = ours.assign(name=ours["recipe"].str.split(",").str[0])
    panels = {PUBLISHED: _by(theirs, "network"), study.title: _by(ours, "name")}
    return _lines(panels, "images", "images seen in distillation")


def drift(results: pd.DataFrame, study: Study) -> Figure:
    """How far each phase's student is from the first teacher's rollout, against its steps."""
    rows = study.rows(results, "phases", PER_PHASE)
    panels = {f"rmse to the first teacher's rollout ({study.data})": _by(rows, "recipe")}
    return _lines(panels, "nfe", "steps of the phase's student, from the first phase to the last")


def trade_off(results: pd.DataFrame, studies: Mapping[str, Study]) -> Figure:
    """Why a phase wants neither a short nor a long grid: errors in one phase n>1 against n.

    studies: by the name of the error to the truth in results, such as "rmse_to_teacher". Beside
    that the teacher's own with n steps, and the student's distance to where those lead.
    """
    panels = {}
    for metric, study in studies.items():
        learned = _fixed(study.rows(results, "finest_grid", PER_PHASE))
        whole = _fixed(study.rows(results, "finest_grid", metric))
        own = study.teachers(results, whole, metric)
        own = own[own["value"] > 0]  # not itself, the truth
        lines = {
            "the teacher's n steps, from the truth": own.assign(n=own["nfe"]),
            "the student's one, from the teacher's n": learned,
            "the student's one, from the truth": whole,
        }
        tables = [table.assign(line=name) for name, table in lines.items()]
        panels[f"{metric} ({study.data})"] = pd.concat(tables)
    return _lines(panels, "n", "n, steps of the teacher's grid and hops in the longest chain")


def _fixed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one phase n>1 from a grid that does not grow, with their n."""
    rows = rows[rows["schedule"].str.fullmatch(r"\d+>1")]
    return rows.assign(n=rows["schedule"].str.split(">").str[0].astype(int))


def _by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table with the column after which its lines are named."""
    return table.assign(line=table[column])


def _lines(panels: Mapping[str, pd.DataFrame], x: str, label: str) -> Figure:
    """Panels of lines through means, with every value a point, on logarithmic axes."""
    figure, axes = new_figure(1, len(panels), (9, 3.4))
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        for name, rows in table.astype({x: float, "value": float}).groupby("line", sort=False):
            means = rows.groupby(x)["value"].mean()
            (line,) = ax.plot(means, linewidth=1.2, label=name)
            ax.plot(rows[x], rows["value"], "o", color=line.get_color(), markersize=4, alpha=0.7)
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_title(title, fontsize=9)
        plain_ticks(ax.yaxis)
        if ax.lines:
            ax.legend(frameon=False, fontsize=7)
        if x != "images":  # whose numbers have too many zeros
            plain_ticks(ax.xaxis, whole=True)
        if x == "nfe":
            ax.invert_xaxis()  # fewer steps to the right: the way that distillation goes
    return figure


def save_figure(figure: Figure, stem: str | Path) -> None:
    """Write a figure as PNG and PDF, the same bytes for the same picture."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=150, bbox_inches="tight")
    # The time of day would be in every PDF otherwise.
    figure.savefig(stem.with_suffix(".pdf"), bbox_inches="tight", metadata={"CreationDate": None})


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
