"""Find, summarise and sample the runs in a folder."""

import fnmatch
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
from torch import Tensor

from tract.base.compute import device
from tract.base.files import TEMPORARY, only_writer
from tract.data import to_unit
from tract.experiments.measure import SAMPLES, read_samples, shortened
from tract.experiments.results import RESULTS, read_results
from tract.metrics.sources import open_run
from tract.networks.cards import about_model
from tract.networks.weights import read_card
from tract.phases import format_schedule

MODEL = "model.safetensors"  # the result of a finished run
CHECKPOINT = "checkpoint-"  # how the names of an unfinished run's states begin
FINISHED, UNFINISHED, DAMAGED = "finished", "unfinished", "damaged"
# All that a run writes; a folder with anything else in it is not deleted.
WRITTEN = (
    *("card.json", "branched_from.json", "*.jsonl", "*.safetensors", "events.out.tfevents.*"),
    *(".lock", ".*.lock", f".*{TEMPORARY}"),
)


@dataclass(frozen=True)
class Run:
    """A run directory, of which the card and the last line of the history were read."""

    name: str  # its path below the folder that was searched
    folder: Path
    state: str  # FINISHED, UNFINISHED or DAMAGED
    changed: float  # seconds since the epoch, of its newest file
    reason: str = ""  # why it counts as damaged
    card: dict = field(default_factory=dict)
    step: int = 0
    num_steps: int = 0  # 0 if no step was made, as for a teacher that was imported

    @property
    def method(self) -> str:
        return self.card.get("method", "")

    @property
    def settings(self) -> dict:
        return self.card.get("settings", {})

    @property
    def schedule(self) -> str:
        return format_schedule(self.settings.get("step_schedule", []))

    @property
    def grid_steps(self) -> int:
        """Steps of the grid of levels that it is sampled on."""
        return about_model(self.card, self.folder).grid_steps


def find_runs(folder: str | Path) -> list[Run]:
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


def _read_run(folder: Path, root: Path) -> Run:
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    changed = max(path.stat().st_mtime for path in [folder, *folder.glob("[!.]*.*")])
    try:
        card = read_card(folder / "card.json", whole=True)
        about_model(card, folder / "card.json")
        last = _last_line(folder / "history.jsonl")
        step, num_steps = last.get("step", 0), last.get("num_steps", 0)
    except (OSError, ValueError) as error:
        return Run(name, folder, DAMAGED, changed, str(error))
    state = FINISHED if (folder / MODEL).is_file() else UNFINISHED
    return Run(name, folder, state, changed, "", card, step, num_steps)


def _last_line(path: Path) -> dict:
    """The last whole line of a file of JSON lines, which may be being written; {} without one."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    try:
        last = json.loads(lines[-1]) if lines else {}
        if not all(type(last.get(name, 0)) is int for name in ("step", "num_steps")):
            raise ValueError("a step that is no number")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it") from error
    return last


def results_of(run: Run) -> pd.DataFrame:
    """The rows of results about a run, fewest evaluations first; ValueError if they are damaged."""
    table = read_results(run.folder.parent / RESULTS)
    return table[table["run"] == run.folder.name].sort_values(["nfe", "metric"], kind="stable")


def overview(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for every run; of its results the distance to the data in the fewest evaluations."""
    rows = []
    for run in runs:
        row = {"run": run.name, "state": run.state, "images": run.settings.get("train_images")}
        row["done"] = run.step / run.num_steps if run.num_steps else None
        rows.append(row | _headline(run) | {"changed": run.changed})
    columns = ["run", "state", "images", "done", "nfe", "metric", "value", "changed"]
    return pd.DataFrame(rows, columns=columns)


def _headline(run: Run) -> dict:
    try:
        table = results_of(run)
    except ValueError:  # damaged: said where the results themselves are shown
        return {}
    table = table[table["metric"].str.startswith("f")]  # fd_..., fid
    return table[["nfe", "metric", "value"]].iloc[0].to_dict() if len(table) else {}


def differences(cards: Mapping[str, dict], only: bool = True) -> pd.DataFrame:
    """Entries of cards by dotted name, a column a card; only: those in which the cards differ."""
    table = pd.DataFrame({name: dict(_entries(card)) for name, card in cards.items()}).fillna("")
    return table[table.nunique(axis=1) > 1] if only else table


def _entries(card: dict, name: str = "") -> Iterator[tuple[str, str]]:
    for key, value in card.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value if isinstance(value, str) else json.dumps(value)


def labels_of(runs: Sequence[Run]) -> dict[str, str]:
    """Short labels by the runs' names: method and schedule, then the settings that tell them apart.

    And where no setting does, the name.
    """
    labels = {run.name: f"{run.method} {shortened(run.schedule)}".strip() for run in runs}
    for label, count in Counter(labels.values()).items():
        alike = [run for run in runs if labels[run.name] == label]
        if count > 1:
            apart = differences({run.name: run.settings for run in alike})
            more = [", ".join(f"{k} {v}" for k, v in apart[run.name].items()) for run in alike]
            clear = len(set(more)) == count
            for run, text in zip(alike, more, strict=True):
                labels[run.name] = f"{label}\n{text if clear else run.name}"
    return labels


def samples_at(run: Run, nfe: int, count: int) -> Tensor:
    """Samples (count, ...) of a run's average with nfe steps, all runs' from the same noise.

    Those that were measured are read, others are made and remembered. Of an unfinished run it is
    the average of its newest checkpoint. FileNotFoundError without one, ValueError if it is
    damaged or the steps do not divide its grid.
    """
    samples = read_samples(run.folder).get(nfe) if (run.folder / SAMPLES).is_file() else None
    if samples is not None and len(samples) >= count:
        return samples[:count]
    return samples_of(_weights(run), nfe, count, run.card["experiment"]["seed"])


def _weights(run: Run) -> Path:
    """The file with a run's average: its result, or its newest checkpoint."""
    checkpoints = sorted(run.folder.glob(f"{CHECKPOINT}*.safetensors"))
    for path in [run.folder / MODEL, *reversed(checkpoints)]:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{run.name} has no weights yet: let it come to its first checkpoint")


def samples_of(weights: Path, nfe: int, count: int, seed: int) -> Tensor:
    """Samples (count, ...) of the average in a run's file, made once while that is the same."""
    return _samples_of(weights, weights.stat().st_mtime_ns, nfe, count, seed)


@lru_cache(maxsize=256)
def _samples_of(weights: Path, stamp: int, nfe: int, count: int, seed: int) -> Tensor:
    role = "ema" if weights.name.startswith(CHECKPOINT) else ""
    return to_unit(open_run(weights, device(), role)(nfe, seed).read(0, count))


def students_of(run: Run) -> Iterator[tuple[Run, Path]]:
    """A finished distillation as it was after each of its phases, and the weights then."""
    schedule = run.settings["step_schedule"]
    for phase in range(1, len(schedule)):
        name = MODEL if phase == len(schedule) - 1 else f"phase-{phase}.safetensors"
        settings = run.settings | {"step_schedule": schedule[: phase + 1]}
        yield replace(run, card=run.card | {"settings": settings}), run.folder / name


def delete_run(run: Run, root: str | Path) -> None:
    """Remove a run directory for good; the numbers measured of it stay in results.csv.

    ValueError if it is not a directory below root that a run wrote and nothing else,
    RuntimeError while a process writes it, OSError if it cannot be removed.
    """
    folder = run.folder
    if folder.is_symlink() or not folder.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{folder} does not lie in {root} itself: delete it where it is")
    foreign = [p.name for p in folder.iterdir() if not _is_written_by_runs(p)]
    if not (folder / "card.json").is_file() or foreign:
        raise ValueError(
            f"{folder} has {', '.join(sorted(foreign)[:3]) or 'no card.json'}, and is more, or "
            "something else, than a run: delete it by hand"
        )
    with only_writer(folder):
        # Renamed first: interrupted, it leaves no half of a run in the list.
        gone = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
        folder.rename(gone)
        shutil.rmtree(gone)


def _is_written_by_runs(path: Path) -> bool:
    return path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in WRITTEN)
