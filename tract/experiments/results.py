"""The table of results: a CSV file with one row for each measured number."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from tract.base.checks import reading
from tract.base.files import only_writer, write_atomically

RESULTS = "results.csv"  # the table in a run directory

# The columns that identify a number; measured again, a number replaces its older value.
KEY = ("data", "noise_schedule", "teacher", "run", "schedule", "nfe", "metric")
PER_PHASE = "rmse_to_rollout"  # the metric that a run has for every phase, not just for its end
COLUMNS = (
    "data",
    "noise_schedule",  # name of the noise levels
    "method",
    "schedule",  # such as 1024>32>1, up to the measured phase; empty for a teacher
    "nfe",  # network evaluations per sample
    "student_params",  # number of weights of the sampled network
    "images",  # of training, over all phases
    "seed",  # of the training
    "metric",
    "value",
    "samples",  # that were measured
    "device",  # of the training, like the next two
    "commit",  # of this package; with a + for local changes
    "seconds",
    "run",  # name of the run's directory: all settings not at their default
    "teacher",  # first digits of the SHA-256 of the teacher's weights
    "conditions",  # of the metric, as JSON
)
# Columns of the wide form that are not metrics.
ABOUT = ("method", "schedule", "nfe", "student_params", "images", "seed", "seconds", "run")


def read_results(path: str | Path) -> pd.DataFrame:
    """Read the table, perhaps empty; raises ValueError if it is damaged or lacks a column."""
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
    """Add rows to a table, replacing those with the same KEY; returns the whole table.

    Raises ValueError, and writes nothing, if a row lacks a column or has an extra one.
    """
    path, rows = Path(path), list(rows)
    for row in rows:
        if row.keys() != set(COLUMNS):
            odd = ", ".join(sorted(row.keys() ^ set(COLUMNS)))
            raise ValueError(f"a row of results has missing or extra columns: correct {odd}")
    rows = [{name: row[name] for name in COLUMNS} for row in rows]
    return replace_rows(path, rows, KEY, read_results)


def replace_rows(
    path: str | Path,
    rows: Sequence[dict],
    key: Sequence[str],
    read: Callable[[Path], pd.DataFrame] = pd.read_csv,
) -> pd.DataFrame:
    """Add rows to any table, replacing those with the same values in the key's columns.

    Returns the whole table; raises ValueError if its columns differ from the rows'.
    """
    path = Path(path)
    with only_writer(path.parent, path.name, wait=True):
        before = read(path).to_dict("records") if path.is_file() else []
        if before and rows and before[0].keys() != rows[0].keys():
            raise ValueError(f"{path} has columns {list(before[0])}: give another path")
        # A dictionary keeps the position of a replaced row.
        merged = {tuple(str(row[name]) for name in key): row for row in [*before, *rows]}
        table = pd.DataFrame(list(merged.values()))
        write_atomically(path, table.to_csv(index=False).encode())
    return table


def publish(run_dir: str | Path, path: str | Path) -> int:
    """Add the rows of a run directory to the table at path; returns their number.

    Raises FileNotFoundError if nothing was measured there.
    """
    source = Path(run_dir) / RESULTS
    if not source.is_file():
        raise FileNotFoundError(f"no {source}: execute a notebook that measures, or correct it")
    found = read_results(source)
    append_results(path, found.to_dict("records"))
    return len(found)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each run and number of evaluations, a column a metric; no PER_PHASE."""
    table = table[table["metric"] != PER_PHASE]
    by_run = table.set_index([*ABOUT, "metric"])["value"].unstack("metric", sort=False)
    return by_run.reset_index().rename_axis(columns=None)
