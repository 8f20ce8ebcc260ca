"""The table of results: a CSV file with one row for each measured number."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from tract.base.checks import reading
from tract.base.files import only_writer, write_atomically

RESULTS = "results.csv"  # name of the table in a run directory

# What tells two numbers apart; measured again, a number replaces its older value.
KEY = ("data", "noise_schedule", "teacher", "run", "schedule", "nfe", "metric")
PER_PHASE = "rmse_to_rollout"  # the metric that a run has of every phase, and not of its end alone
COLUMNS = (
    "data",
    "noise_schedule",  # name of the noise levels
    "method",
    "schedule",  # schedule as far as it was followed, such as 1024>32>1; empty for a teacher
    "nfe",  # network evaluations per sample
    "student_params",  # weights of the network that is sampled
    "images",  # trained on, over all phases
    "seed",  # of the training
    "metric",
    "value",
    "samples",  # that the metric was measured on
    "device",  # of the training, as the next two
    "commit",  # of this package; with a + if it was changed
    "seconds",
    "run",  # name of the run's directory: all settings that are not the default
    "teacher",  # first digits of the SHA-256 of the teacher's weights
    "conditions",  # of the metric, as JSON
)
# Columns of the wide form that are not metrics.
ABOUT = ("method", "schedule", "nfe", "student_params", "images", "seed", "seconds", "run")


def read_results(path: str | Path) -> pd.DataFrame:
    """The table so far, perhaps empty; ValueError if the file is damaged or lacks a column."""
    path = Path(path)
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    with reading(path, remedy="restore or remove it"):
        table = pd.read_csv(path, keep_default_na=False, dtype={"teacher": str, "commit": str})
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: restore or remove it")
    return table


def append_results(path: str | Path, rows: Iterable[dict]) -> pd.DataFrame:
    """Add rows to a table, replacing those that agree in KEY; returns the whole table.

    ValueError for a row that lacks a column or has one too many; nothing is written then.
    """
    path, rows = Path(path), list(rows)
    for row in rows:
        if row.keys() != set(COLUMNS):
            odd = ", ".join(sorted(row.keys() ^ set(COLUMNS)))
            raise ValueError(f"a row of results has too much or too little: correct {odd}")
    rows = [{name: row[name] for name in COLUMNS} for row in rows]
    return replace_rows(path, rows, KEY, read_results)


def replace_rows(
    path: str | Path,
    rows: Sequence[dict],
    key: Sequence[str],
    read: Callable[[Path], pd.DataFrame] = pd.read_csv,
) -> pd.DataFrame:
    """Add rows to any table, in place of those that agree in the columns of the key.

    Returns the whole table; ValueError if it has other columns than the rows.
    """
    path = Path(path)
    with only_writer(path.parent, path.name, wait=True):
        before = read(path).to_dict("records") if path.is_file() else []
        if before and rows and before[0].keys() != rows[0].keys():
            raise ValueError(f"{path} has columns {list(before[0])}: give another path")
        # A dictionary keeps the place of the row that is replaced.
        merged = {tuple(str(row[name]) for name in key): row for row in [*before, *rows]}
        table = pd.DataFrame(list(merged.values()))
        write_atomically(path, table.to_csv(index=False).encode())
    return table


def publish(run_dir: str | Path, path: str | Path) -> int:
    """Add the rows of a run directory to the table at path; returns how many.

    FileNotFoundError if nothing was measured there.
    """
    source = Path(run_dir) / RESULTS
    if not source.is_file():
        raise FileNotFoundError(f"no {source}: execute a notebook that measures, or correct it")
    found = read_results(source)
    append_results(path, found.to_dict("records"))
    return len(found)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each run and number of evaluations, a column a metric; PER_PHASE is omitted."""
    table = table[table["metric"] != PER_PHASE]
    by_run = table.set_index([*ABOUT, "metric"])["value"].unstack("metric", sort=False)
    return by_run.reset_index().rename_axis(columns=None)
