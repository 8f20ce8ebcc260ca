"""Check that precision and compilation change results by less than seeds do."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tract.base.compute import Compute
from tract.experiments.experiment import TEACHER, open_experiment, run_name
from tract.experiments.measure import measure, teacher_name
from tract.experiments.results import RESULTS, append_results, read_results
from tract.experiments.run import Checkpointing
from tract.networks.weights import load_model
from tract.settings import Distillation
from tract.studies.tables import over_seeds

METRIC = "fd_pixels"


def run_agreement(
    run_dir: str | Path,
    results: str | Path,
    settings: Distillation,
    seeds: Sequence[int],
    computes: Sequence[Compute],
    saving: Checkpointing | None = None,
) -> None:
    """Distil and measure, in each way and with each seed, what results has no row of.

    Runs lie in run_dir/agreement, each way with a copy of the teacher; rows are added to results
    at once. FileNotFoundError without a teacher in run_dir.
    """
    open_experiment(run_dir)  # refused before anything is copied
    measured = set(results_of(run_dir, results)["run"])
    for compute in computes:
        folder = Path(run_dir) / "agreement" / str(compute)
        for name in (TEACHER, "experiment.json"):
            _copy(Path(run_dir) / name, folder / name)
        experiment = open_experiment(folder, compute)
        for seed in seeds:
            run = replace(settings, seed=seed)
            name = _name(run, compute)
            if name in measured:
                continue
            student = experiment.distill(run, saving)
            measure(experiment, student, run, [run.step_schedule[-1]])
            rows = read_results(folder / RESULTS)
            rows = rows[rows["run"] == run_name(run)].to_dict("records")
            append_results(results, [_told(row, name, compute) for row in rows])


def results_of(run_dir: str | Path, results: str | Path) -> pd.DataFrame:
    """The rows of a table that are about the teacher in run_dir and its students."""
    teacher = teacher_name(load_model(Path(run_dir) / TEACHER)[0])
    table = read_results(results)
    return table[table["teacher"] == teacher]


def agreement_table(
    results: pd.DataFrame,
    settings: Distillation,
    seeds: Sequence[int],
    computes: Sequence[Compute],
) -> pd.DataFrame:
    """A row for each way: the distance to the data, and its difference to the first way's.

    results: of one teacher, as `results_of` reads them.

    The difference is within the noise of seeds if it is at most two standard deviations of what
    two means of so many seeds differ by.
    """
    names = {_name(replace(settings, seed=s), c): str(c) for c in computes for s in seeds}
    rows = results[results["run"].isin(list(names)) & (results["metric"] == METRIC)]
    rows = rows.assign(compute=rows["run"].map(names))
    found = over_seeds(rows, ["compute"]).set_index("compute").reindex([str(c) for c in computes])
    variance = found["std"] ** 2 / found["count"]
    difference = found["mean"] - found["mean"].iloc[0]
    noise = 2 * (variance + variance.iloc[0]) ** 0.5
    table = {
        "seeds": found["count"].astype("Int64"),
        METRIC: found["mean"].round(3),
        "std": found["std"].round(3),
        "difference": difference.round(3),
        "noise of seeds": noise.round(3),
    }
    return pd.DataFrame(table).reset_index()


def _name(settings: Distillation, compute: Compute) -> str:
    return f"{run_name(settings)}-{compute}"


def _told(row: dict, name: str, compute: Compute) -> dict:
    """A row that tells how it was computed."""
    conditions = json.loads(row["conditions"]) | {"compute": str(compute)}
    return row | {"run": name, "conditions": json.dumps(conditions)}


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder that is not there yet, whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(".lock"))
    else:
        shutil.copy(source, part)
    part.rename(target)
