"""The table of measured numbers: one row each, in a CSV file that several runs may add to."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from tract.state import write_atomically


def read_results(path: str | Path, key: Iterable[str]) -> pd.DataFrame:
    """The table so far, perhaps empty; ValueError if the file is damaged or lacks a key column."""
    path, key = Path(path), list(key)
    if not path.is_file():
        return pd.DataFrame(columns=key)
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except ValueError as error:  # of text, of CSV, or empty
        raise ValueError(f"{path} is damaged ({error}): restore or remove it") from error
    missing = [name for name in key if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: restore or remove it")
    return table


def append_results(path: str | Path, rows: Iterable[dict], key: Iterable[str]) -> pd.DataFrame:
    """Add rows to a CSV table, replacing those that agree in the key columns; returns the table."""
    path, key = Path(path), list(key)
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = read_results(path, key).to_dict("records")
        # A dictionary keeps the place of the row that is replaced.
        merged = {tuple(str(row[name]) for name in key): row for row in [*before, *rows]}
        table = pd.DataFrame(list(merged.values()))
        write_atomically(path, table.to_csv(index=False).encode())
    return table
