"""Tables of results: published numbers beside measured ones, blank if not measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from tract.base.files import write_atomically
from tract.lab.style import in_words
from tract.phases import in_steps
from tract.studies.ablations import Study
from tract.studies.recipes import ALL, CHANGES, CLAIMS, baselines_of

PUBLISHED = "FID, published (CIFAR-10)"
# The columns, besides images, in which a measured number must match a published one beside it.
SAME = ["data", "noise_schedule", "method", "schedule", "nfe", "metric"]
PAPER_FID = "fid_legacy_pytorch"  # the paper's metric: pytorch-fid's Inception
FID_SAMPLES = 50_000  # of every published FID, whose value depends on their number
# A recipe's verdict from that of "the baseline is worse than this".
BETTER = {"": "", "holds": "better", "is contradicted": "worse", "is undecided": "undecided"}


def read_published(path: str | Path) -> pd.DataFrame:
    """Read published numbers with their source; raises FileNotFoundError if the file is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {path}: restore it, it is part of the repository")
    return pd.read_csv(path, dtype={"recipe": str})


def paper_table(published: pd.DataFrame, results: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of the paper, by its name in the published numbers, with ours beside it.

    Runs of ours that differ in more than their seed have a row each, with their name.
    """
    theirs = published[published["table"] == name].reset_index(drop=True)
    theirs = theirs.assign(row=theirs.index)
    ours = results[results["samples"].astype(int) >= FID_SAMPLES]
    ours = ours[ours["metric"] == PAPER_FID].assign(metric="fid")
    ours = ours.assign(ours=ours["run"].str.replace(r"-seed\d+$", "", regex=True))
    measured = over_seeds(ours, [*SAME, "images", "ours"]).astype({"nfe": "Int64"})
    pairs = theirs.merge(measured, "inner", SAME, suffixes=("", "_ours"))
    # The authors' "96M" are 96 * 2^20 images; a missing published number matches any.
    near = (pairs["images_ours"].astype(float) / pairs["images"].astype(float) - 1).abs() < 0.05
    pairs = pairs[near | pairs["images"].isna()]
    both = theirs.merge(pairs[["row", "mean", "std_ours", "count", "ours"]], "left", "row")
    return pd.DataFrame(
        {
            "method": both["recipe"],
            "schedule": both["schedule"],
            "NFE": both["nfe"],
            "parameters": [f"{n / 1e6:.1f}M" for n in both["student_params"]],
            "images": ["" if pd.isna(n) else f"{n / 1e6:.0f}M" for n in both["images"]],
            "FID, published": _spread(both["value"], both["std"]),
            "FID, measured by us": _spread(both["mean"], both["std_ours"], both["count"]),
            "our run": both["ours"].fillna(""),
            "source": both["source"],
        }
    )


def standing_table(published: pd.DataFrame, data: str) -> pd.DataFrame:
    """Return published FIDs of few-step samplers on a data set, one column per number of steps."""
    rows = published[(published["table"] == "family") & (published["data"] == data)]
    fids = rows.pivot(index="recipe", columns="nfe", values="value")
    fids = fids.reindex(rows["recipe"].unique()).sort_values(1)
    fids.columns = [f"FID, {in_steps(nfe)}" for nfe in fids]
    sources = rows.groupby("recipe")["source"].first().rename("source")
    return fids.join(sources).rename_axis("method").reset_index()


def recipes_of(comparison: str, published: Iterable[str]) -> list[str]:
    """Return an ablation's recipes in order, first those that only a publication has."""
    return list(
        dict.fromkeys([*(r for r in published if r not in ALL[comparison]), *ALL[comparison]])
    )


def ablation_table(
    published: pd.DataFrame, results: pd.DataFrame, comparison: str, studies: Sequence[Study]
) -> pd.DataFrame:
    """Return an ablation: one row per recipe, the published FID, and a column for each study."""
    theirs = _published(published, comparison)
    labels = recipes_of(comparison, theirs.index)
    columns = {comparison: labels, PUBLISHED: _spread(theirs.reindex(labels))}
    for study in studies:
        ours = _of_recipes(results, comparison, study).reindex(labels)
        columns[study.title] = _spread(ours["mean"], ours["std"], ours["count"])
    return pd.DataFrame(columns)


def claims_table(
    published: pd.DataFrame,
    results: pd.DataFrame,
    studies: Sequence[Study],
    comparisons: Sequence[str] = tuple(CHANGES),
) -> pd.DataFrame:
    """Return the paper's orderings with its numbers, and each study's numbers and verdict.

    comparisons: whose orderings to include.

    "holds": the difference exceeds two of its standard deviations; "is contradicted": it does so in
    the other direction; else "is undecided".
    """
    rows = []
    for claim in (claim for claim in CLAIMS if claim.comparison in comparisons):
        pair = [claim.worse, claim.better]
        theirs = _spread(_published(published, claim.comparison).reindex(pair))
        row = {"finding": claim.finding, PUBLISHED: " against ".join(theirs)}
        for study in studies:
            ours = _of_recipes(results, claim.comparison, study).reindex(pair)
            texts = _spread(ours["mean"], ours["std"], ours["count"])
            row[study.title] = " against ".join(texts) if all(texts) else ""
            row[f"by {study.metric} it"] = _verdict(*ours[["mean", "std"]].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows)


def versus_table(results: pd.DataFrame, comparison: str, studies: Sequence[Study]) -> pd.DataFrame:
    """Return recipes of a comparison in each study, and verdicts against their baseline.

    "better" and "worse" by more than two standard deviations of the difference between single runs,
    else "undecided". Equal recipes with two seeds each get a verdict once in ten times, with three
    seeds once in forty, with five once in five hundred (Student's t).
    """
    baselines = baselines_of(comparison)
    against = ["" if recipe == baseline else baseline for recipe, baseline in baselines.items()]
    columns = {comparison: list(baselines), "against": against}
    for study in studies:
        ours = _of_recipes(results, comparison, study).reindex(list(baselines))
        columns[study.title] = _spread(ours["mean"], ours["std"], ours["count"])
        numbers = ours[["mean", "std"]]
        columns[f"{study.metric} is"] = [
            BETTER[_verdict(*numbers.loc[[baseline, recipe]].to_numpy())] if named else ""
            for (recipe, baseline), named in zip(baselines.items(), against, strict=True)
        ]
    return pd.DataFrame(columns)


def paired_table(
    results: pd.DataFrame, comparison: str, teachers: Sequence[Sequence[Study]]
) -> pd.DataFrame:
    """Return how often a recipe has a smaller value than its baseline, over teachers and seeds.

    teachers: each teacher's studies, one a metric. A pair has the same teacher and seed: "9 of 9".
    """
    baselines = {r: b for r, b in baselines_of(comparison).items() if r != b}
    columns = {comparison: list(baselines), "against": list(baselines.values())}
    for studies in zip(*teachers, strict=True):
        rows = pd.concat([study.rows(results, comparison) for study in studies])
        values = rows.astype({"value": float}).pivot_table("value", ["teacher", "seed"], "recipe")
        won = [(values[r] < values[b]).sum() for r, b in baselines.items()]
        columns[f"{studies[0].metric} is smaller in"] = [f"{n} of {len(values)}" for n in won]
    return pd.DataFrame(columns)


def distance_table(
    results: pd.DataFrame, comparisons: Sequence[str], studies: Sequence[Study]
) -> pd.DataFrame:
    """Return distances of real images, the teacher at its steps, and the students of some groups.

    Includes the number of samples, and each distance relative to the teacher's best number of
    steps.
    """
    columns = []
    for study in studies:
        students = study.rows_of_all(results, comparisons)
        mine = study.mine(results)
        real = mine[(mine["method"] == "real images") & (mine["metric"] == study.metric)]
        teachers = study.teachers(results, students).sort_values("nfe", ascending=False)
        named = [
            real.assign(what="real images"),
            teachers.assign(what=[f"teacher, {in_steps(n)}" for n in teachers["nfe"]]),
            students.assign(what=students["recipe"]),
        ]
        ours = over_seeds(pd.concat(named), ["what"]).set_index("what")
        best = teachers["value"].astype(float).min()
        ratios = [f"{mean / best:.3g}" for mean in ours["mean"]]
        shown = _spread(ours["mean"], ours["std"], ours["count"])
        if not columns:
            columns.append(pd.concat(named).groupby("what", sort=False)["samples"].first())
        columns += [
            pd.Series(shown, ours.index, name=study.title),
            pd.Series(ratios, ours.index, name=f"{study.metric}, times the teacher's best"),
        ]
    return pd.concat(columns, axis=1).reset_index(names="what")


def cost_table(results: pd.DataFrame, comparisons: Sequence[str], study: Study) -> pd.DataFrame:
    """Return training costs of the teacher and the students of some groups, averaged over seeds."""
    students = study.rows_of_all(results, comparisons)
    teachers = study.teachers(results, students).drop_duplicates("teacher").assign(recipe="teacher")
    rows = pd.concat([teachers, students]).astype({"seconds": float, "images": float})
    peaks = study.mine(results).query("metric == 'peak_memory_mb'").set_index(["teacher", "run"])
    keys = pd.MultiIndex.from_frame(rows[["teacher", "run"]])
    rows = rows.assign(peak=peaks["value"].reindex(keys).to_numpy())
    by = rows.groupby("recipe", sort=False)
    mean = by[["images", "seconds", "peak"]].mean()
    return pd.DataFrame(
        {
            "recipe": mean.index,
            "parameters": [f"{n / 1e6:.2f}M" for n in by["student_params"].first()],
            "images": [f"{n:,.0f}" for n in mean["images"]],
            "minutes": [f"{seconds / 60:.1f}" for seconds in mean["seconds"]],
            "images per second": [f"{n:,.0f}" for n in mean["images"] / mean["seconds"]],
            "peak memory, MB": ["" if pd.isna(mb) else f"{mb:,.0f}" for mb in mean["peak"]],
            "device": by["device"].first().to_numpy(),
        }
    )


def shown(table: pd.DataFrame) -> HTML:
    """Return a table for a notebook: headings in words, three digits, no index or empty columns."""

    def text(value: object) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.3g}" if isinstance(value, float) else in_words(str(value))

    texts = table.map(text).rename(columns=lambda name: in_words(str(name)))
    return HTML(texts.loc[:, (texts != "").any()].to_html(index=False, border=0))


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1; nan for one) and count of the values of each `by`."""
    grouped = rows.astype({"value": float}).groupby(list(by), sort=False)["value"]
    return grouped.agg(["mean", "std", "count"]).reset_index()


def save_table(table: pd.DataFrame, stem: str | Path) -> None:
    """Write a table as CSV, which code hosts render."""
    write_atomically(f"{stem}.csv", table.to_csv(index=False).encode())


def _published(published: pd.DataFrame, comparison: str) -> pd.Series:
    """Return published FIDs of an ablation by recipe."""
    return published[published["table"] == comparison].set_index("recipe")["value"]


def _of_recipes(results: pd.DataFrame, comparison: str, study: Study) -> pd.DataFrame:
    """Return mean, standard deviation and count over a study's seeds, by recipe."""
    return over_seeds(study.rows(results, comparison), ["recipe"]).set_index("recipe")


def _verdict(worse: Sequence[float], better: Sequence[float]) -> str:
    """Judge whether mean and deviation `worse` exceed `better` by two standard deviations."""
    difference, spread = worse[0] - better[0], (worse[1] ** 2 + better[1] ** 2) ** 0.5
    if pd.isna(difference) or pd.isna(spread):
        return ""
    if abs(difference) <= 2 * spread:
        return "is undecided"
    return "holds" if difference > 0 else "is contradicted"


def _spread(mean: pd.Series, std: pd.Series | None = None, count: pd.Series | None = None) -> list:
    """Format "5.02 ± 0.04 (3)": mean, standard deviation, number; blank without a mean."""
    texts = []
    for i, value in enumerate(mean):
        text = "" if pd.isna(value) else f"{value:.3g}"
        if text and std is not None and not pd.isna(std.iloc[i]):
            text += f" ± {std.iloc[i]:.2g}"
        if text and count is not None:
            text += f" ({count.iloc[i]:.0f})"
        texts.append(text)
    return texts
