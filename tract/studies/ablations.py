"""Studies: the runs that a comparison of recipes needs, and their rows of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from tract.base.checks import check_choice
from tract.experiments.experiment import run_name
from tract.experiments.results import KEY, PER_PHASE
from tract.settings import Distillation
from tract.studies.recipes import ALL


@dataclass(frozen=True)
class Study:
    """Ablations on one data set: what all its recipes have in common, and what is measured.

    Attributes data and noise_schedule choose rows of results; base are settings of `Distillation`.
    Raises ValueError without seeds.
    """

    data: str
    seeds: Sequence[int]
    train_images: int
    noise_schedule: str = "cosine"
    metric: str = "fd_pixels"
    smaller: str = "digits_small"  # network of the smaller student
    base: Mapping[str, object] = field(default_factory=dict)
    teacher: str = ""  # first digits of its name, if results have students of several

    def __post_init__(self):
        if not self.seeds:
            raise ValueError("seeds is empty: give one or more, such as [0]")

    @property
    def title(self) -> str:
        """Heading of a column of its numbers."""
        return f"{self.metric}, measured ({self.data})"

    def recipes(self, comparison: str, seed: int) -> dict[str, Distillation]:
        """Return the settings of an ablation's recipes, by label; raises ValueError if unknown."""
        check_choice("comparison", comparison, ALL)
        settings = {}
        for label, changes in ALL[comparison].items():
            made = {"step_schedule": [1024, 32, 1], "seed": seed} | dict(self.base) | changes
            made["train_images"] = int(self.train_images * made.pop("factor", 1))
            if "student_network" in made:
                made["student_network"] = self.smaller
            settings[label] = Distillation(**made)
        return settings

    def plan(self, comparisons: Sequence[str]) -> dict[str, Distillation]:
        """Return the settings of all recipes and seeds of some ablations, by the run's name."""
        return {
            run_name(settings): settings
            for comparison in comparisons
            for seed in self.seeds
            for settings in self.recipes(comparison, seed).values()
        }

    def missing(
        self, results: pd.DataFrame, comparisons: Sequence[str], metrics: Sequence[str] = ()
    ) -> dict[str, Distillation]:
        """Return planned runs of some ablations that lack metrics in results; () the study's."""
        rows = [self._measured(results, metric) for metric in metrics or [self.metric]]
        done = set.intersection(*({*zip(r["run"], r["nfe"], strict=True)} for r in rows))
        plan = self.plan(comparisons).items()
        return {n: made for n, made in plan if (n, made.step_schedule[-1]) not in done}

    def mine(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return rows of results with this data set, noise schedule and teacher, or no teacher."""
        return results[
            (results["data"] == self.data)
            & (results["noise_schedule"] == self.noise_schedule)
            & (results["teacher"].str.startswith(self.teacher) | results["teacher"].eq(""))
        ]

    def teachers(
        self, results: pd.DataFrame, students: pd.DataFrame, metric: str = ""
    ) -> pd.DataFrame:
        """Return rows of the teachers of some students; metric "" for the study's."""
        mine = self._measured(results, metric)
        return mine[(mine["method"] == "teacher") & mine["teacher"].isin(students["teacher"])]

    def rows(self, results: pd.DataFrame, comparison: str, metric: str = "") -> pd.DataFrame:
        """Return an ablation's rows in its order, with the column `recipe`; metric "" the study's.

        Rows are of students at the last number of steps of their schedule, or of every phase for
        `rmse_to_rollout`. Raises ValueError if students of several teachers would be compared.
        """
        metric = metric or self.metric
        mine = self._measured(results, metric)
        order = list(ALL[comparison]).index
        parts = []
        for seed in self.seeds:
            for label, settings in self.recipes(comparison, seed).items():
                part = mine[mine["run"] == run_name(settings)]
                if metric != PER_PHASE:
                    part = part[part["nfe"] == settings.step_schedule[-1]]
                parts.append(part.assign(recipe=label))
        rows = pd.concat(parts)
        if rows["teacher"].nunique() > 1:
            raise ValueError(
                f"the students of {comparison} are of several teachers, "
                f"{', '.join(sorted(rows['teacher'].unique()))}: give the study one of them"
            )
        return rows.sort_values("recipe", key=lambda r: r.map(order), kind="stable")

    def _measured(self, results: pd.DataFrame, metric: str = "") -> pd.DataFrame:
        mine = self.mine(results)
        return mine[mine["metric"] == (metric or self.metric)]

    def rows_of_all(self, results: pd.DataFrame, comparisons: Sequence[str]) -> pd.DataFrame:
        """Return rows of several ablations; shared ones appear once, under their first recipe."""
        rows = pd.concat([self.rows(results, comparison) for comparison in comparisons])
        return rows.drop_duplicates(list(KEY))
