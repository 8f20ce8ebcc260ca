"""Find, summarise and sample the runs in a folder."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from tract.base.compute import device
from tract.data import to_unit
from tract.experiments.history import HISTORY
from tract.experiments.measure import SAMPLES, read_samples
from tract.experiments.results import COLUMNS, PER_PHASE, RESULTS, read_results
from tract.experiments.rows import shortened
from tract.experiments.status import Status, read_status
from tract.metrics.sources import open_run
from tract.networks.cards import about_model
from tract.networks.weights import read_card
from tract.phases import format_schedule

MODEL = "model.safetensors"  # the result of a finished run
CHECKPOINT = "checkpoint-"  # prefix of an unfinished run's states
DAMAGED = "damaged"
# Columns of an overview that are not metrics.
ABOUT = ("run", "label", "state", "done", "left", "trained", "images", "nfe")


@dataclass(frozen=True)
class FoundRun:
    """A run directory, with its card and status."""

    name: str  # its path below the folder that was searched
    folder: Path
    trained: float  # seconds since the epoch, of its last step
    card: dict = field(default_factory=dict)
    status: Status = field(default_factory=Status)
    reason: str = ""  # why it is damaged

    @property
    def state(self) -> str:
        return DAMAGED if self.reason else self.status.state

    @property
    def method(self) -> str:
        return self.card.get("method", "")

    @property
    def settings(self) -> dict:
        return self.card.get("settings", {})

    @property
    def grid_steps(self) -> int:
        """Steps of the grid of levels that it is sampled on."""
        return about_model(self.card, self.folder).grid_steps


def find_runs(folder: str | Path) -> list[FoundRun]:
    """All runs below a folder by name, damaged ones included.

    FileNotFoundError if there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: begin a run there, or correct runs_dir")
    runs = []
    for path, subfolders, files in os.walk(root):
        if "card.json" in files:
            subfolders.clear()  # runs do not lie inside each other
            runs.append(_read_run(Path(path), root))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(runs, key=lambda run: run.name)


def _read_run(folder: Path, root: Path) -> FoundRun:
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    steps, path = folder / HISTORY, folder / "card.json"
    trained = (steps if steps.is_file() else path).stat().st_mtime
    try:
        card = read_card(path, whole=True)
        about_model(card, path)
    except (OSError, ValueError) as error:
        return FoundRun(name, folder, trained, reason=str(error))
    return FoundRun(name, folder, trained, card, read_status(folder))


def results_of(run: FoundRun) -> pd.DataFrame:
    """The rows of results about a run, fewest evaluations first; ValueError if they are damaged."""
    table = read_results(run.folder.parent / RESULTS)
    return table[table["run"] == run.folder.name].sort_values(["nfe", "metric"], kind="stable")


def overview(runs: Sequence[FoundRun]) -> pd.DataFrame:
    """A row for every run: state, share done, seconds left, training time, and a column per metric.

    The numbers are of samples with the run's fewest evaluations, nfe.
    """
    labels = labels_of([run for run in runs if run.state != DAMAGED])
    tables = {parent: _readable_results(parent) for parent in {run.folder.parent for run in runs}}
    rows = []
    for run in runs:
        status = run.status
        row = {"run": run.name, "label": labels.get(run.name, run.name), "state": run.state}
        row["done"] = status.step / status.num_steps if status.num_steps else None
        row |= {"left": status.seconds_left, "trained": run.trained}
        row["images"] = run.settings.get("train_images")
        rows.append(row | _numbers(tables[run.folder.parent], run))
    metrics = sorted(set().union(*rows) - set(ABOUT))
    return pd.DataFrame(rows, columns=[*ABOUT, *metrics])


def _readable_results(folder: Path) -> pd.DataFrame:
    try:
        return read_results(folder / RESULTS)
    except ValueError:  # damaged: said where the results themselves are shown
        return pd.DataFrame(columns=COLUMNS)


def _numbers(table: pd.DataFrame, run: FoundRun) -> dict:
    """Of a table of results what was measured of a run, in the fewest evaluations."""
    table = table[(table["run"] == run.folder.name) & (table["metric"] != PER_PHASE)]
    fewest = table[table["nfe"] == table["nfe"].min()]
    found = dict(zip(fewest["metric"], fewest["value"], strict=True))
    return {"nfe": table["nfe"].min(), **found} if found else {}


def seeds_grouped(table: pd.DataFrame, runs: Mapping[str, FoundRun]) -> pd.DataFrame:
    """An overview with one row for runs that differ in their seed alone: means and deviations.

    Numbers become text such as 1.09 ± 0.03; `run` holds the names of all.
    """
    rows = []
    for _, group in table.groupby(table["run"].map(lambda name: _recipe(runs[name])), sort=False):
        row = group.iloc[0].to_dict() | {"run": tuple(group["run"])}
        if len(group) > 1:
            row["label"] = f"{row['label'].split(', ')[0]}, {len(group)} seeds"
            row["state"] = ", ".join(group["state"].unique())
            row |= {"done": group["done"].mean(), "trained": group["trained"].max()}
            row |= {name: _mean_of(group[name]) for name in table.columns[len(ABOUT) :]}
        rows.append(row)
    return pd.DataFrame(rows, columns=table.columns)


def _recipe(run: FoundRun) -> str:
    settings = {name: value for name, value in run.settings.items() if name != "seed"}
    return json.dumps([run.method, str(run.folder.parent), settings or run.name])


def _mean_of(values: pd.Series) -> str | float:
    values = values.dropna()
    return f"{values.mean():.4g} ± {values.std():.1g}" if len(values) > 1 else values.mean()


def differences(cards: Mapping[str, dict], only: bool = True) -> pd.DataFrame:
    """Entries of cards by dotted name, a column per card; only: those that differ."""
    table = pd.DataFrame({name: dict(_entries(card)) for name, card in cards.items()}).fillna("")
    return table[table.nunique(axis=1) > 1] if only else table


def _entries(card: dict, name: str = "") -> Iterator[tuple[str, str]]:
    for key, value in card.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value if isinstance(value, str) else json.dumps(value)


def labels_of(runs: Sequence[FoundRun]) -> dict[str, str]:
    """Short labels by the runs' names: method and schedule, then the settings that tell them apart.

    Runs that no setting tells apart have their name instead.
    """
    labels = {}
    for run in runs:
        schedule = format_schedule(run.settings.get("step_schedule", []))
        labels[run.name] = f"{run.method} {shortened(schedule)}".strip()
    for label, count in Counter(labels.values()).items():
        alike = [run for run in runs if labels[run.name] == label]
        if count > 1:
            apart = differences({run.name: run.settings for run in alike})
            more = [", ".join(f"{k} {v}" for k, v in apart[run.name].items()) for run in alike]
            clear = len(set(more)) == count
            for run, text in zip(alike, more, strict=True):
                labels[run.name] = f"{label}, {text if clear else run.name}"
    return labels


def samples_at(
    run: FoundRun, nfe: int, count: int, progress: Callable[[float], None] = lambda share: None
) -> Tensor:
    """Samples (count, ...) of a run's average with nfe steps, all runs' from the same noise.

    Measured ones are read, others are made and remembered. An unfinished run is sampled with the
    average in its newest checkpoint. progress: called with the share done after each step; what it
    raises ends the sampling. FileNotFoundError without weights, ValueError if they are damaged or
    the steps do not divide the grid.
    """
    samples = read_samples(run.folder).get(nfe) if (run.folder / SAMPLES).is_file() else None
    if samples is not None and len(samples) >= count:
        return samples[:count]
    return samples_of(_weights(run), nfe, count, run.card["experiment"]["seed"], progress)


def _weights(run: FoundRun) -> Path:
    """The file with a run's average: its result, or its newest checkpoint."""
    checkpoints = sorted(run.folder.glob(f"{CHECKPOINT}*.safetensors"))
    for path in [run.folder / MODEL, *reversed(checkpoints)]:
        if path.is_file():
            return path
    raise FileNotFoundError("no weights yet: wait for its first checkpoint")


_made: dict[tuple, Tensor] = {}  # samples by weights, their time, steps, count and seed


def samples_of(
    weights: Path,
    nfe: int,
    count: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Samples (count, ...) of the average in a run's file, remembered until the file changes."""
    key = weights, weights.stat().st_mtime_ns, nfe, count, seed
    if key not in _made:
        role = "ema" if weights.name.startswith(CHECKPOINT) else ""
        x = open_run(weights, device(), role, progress=progress)(nfe, seed).read(0, count)
        _made[key] = to_unit(x)
    return _made[key]


def students_of(run: FoundRun) -> Iterator[tuple[FoundRun, Path]]:
    """A finished distillation after each of its phases, with the weights of that time."""
    schedule = run.settings["step_schedule"]
    for phase in range(1, len(schedule)):
        name = MODEL if phase == len(schedule) - 1 else f"phase-{phase}.safetensors"
        settings = run.settings | {"step_schedule": schedule[: phase + 1]}
        yield replace(run, card=run.card | {"settings": settings}), run.folder / name
