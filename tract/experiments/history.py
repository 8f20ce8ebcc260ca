"""History of a run: one JSON line a step, and TensorBoard event files."""

import hashlib
import json
import math
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pandas as pd

from tract.base.files import write_atomically
from tract.records import Record

HISTORY, METRIC = "history.jsonl", "metric.jsonl"  # files in a run directory
FIELDS = {"step": int, "num_steps": int, "images_seen": int, "loss": float, "mse": float}
FIELDS |= {"phase": str, "seconds": int | float}


class History:
    """A context that writes the records of a run, starting after a step.

    A record is written when its losses have arrived, on a CPU at once. Records lost when a run is
    killed belong to steps that are repeated: call `mark` before a state is saved. mark: that of the
    state to resume from. TensorBoard events are written too; TensorBoard hides repeated steps of
    earlier event files.
    """

    def __init__(self, folder: Path, step: int, mark: dict | None = None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._path = folder / HISTORY
        kept, seconds = recovered(self._path, step, mark)
        self._events = SummaryWriter(folder, purge_step=step + 1)
        self._length, self._digest = len(kept), hashlib.sha256(kept)
        self._begun = time.monotonic() - seconds
        self._waiting: deque[tuple[Record, float]] = deque()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception) -> None:
        with suppress(OSError):  # from a full disk, already reported
            self._events.close()

    def add(self, step: int, **numbers: float) -> None:
        """Add numbers to the events; raises OSError if they cannot be written."""
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step)

    def record(self, record: Record) -> None:
        """Queue a record, and write all that have arrived."""
        self._waiting.append((record, time.monotonic() - self._begun))
        while self._waiting and self._waiting[0][0].losses.arrived:
            self._write_first()

    def mark(self) -> dict:
        """Write all records, and return a mark to verify, with a state, that they are unchanged."""
        while self._waiting:
            self._write_first()
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
        return {"length": self._length, "sha256": self._digest.hexdigest()}

    def _write_first(self) -> None:
        record, seconds = self._waiting.popleft()
        line = append(self._path, record.line() | {"seconds": seconds})
        self._length += len(line)
        self._digest.update(line)
        self.add(record.step, loss=record.loss, mse=record.mse)


def history(folder: str | Path) -> pd.DataFrame:
    """Return loss and time of every step of a run, even while it is being written."""
    path = Path(folder) / HISTORY
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: begin that run first, or correct run_dir")
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records = [_record(line) for line in lines]
    if None in records:
        raise ValueError(f"{path} is damaged in line {records.index(None) + 1}: restore it")
    return pd.DataFrame(records, columns=[*FIELDS])


def append(path: Path, line: dict) -> bytes:
    """Append one line to a file of JSON lines, and return it."""
    content = (json.dumps(line) + "\n").encode()
    with path.open("ab") as file:
        file.write(content)
    return content


def _record(line: bytes) -> dict | None:
    """Parse a line of the history; None if it is damaged."""
    try:
        record = json.loads(line)
        whole = all(isinstance(record[name], kind) for name, kind in FIELDS.items())
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if whole else None


def recovered(path: Path, step: int, mark: dict | None) -> tuple[bytes, float]:
    """Cut a history to the lines up to a step, and return these and their last seconds.

    One that lacks lines, or has changed since the state was saved, is kept under another name with
    a message; intact lines remain.
    """
    content = path.read_bytes() if path.is_file() else b""
    kept = content[: mark["length"]] if mark else b""
    good, last = {}, 0
    for line in content.splitlines(keepends=True):
        record = _record(line) if line.endswith(b"\n") else None
        if record and last < record["step"] <= step:
            last = record["step"]
            good[last] = record["seconds"], line
    intact = hashlib.sha256(kept).hexdigest() == mark["sha256"] if mark else len(good) == step
    if not intact or not mark:
        kept = b"".join(line for _, line in good.values())
    if not intact:
        aside, where = path.with_name(f"history-aside-{time.time_ns()}.jsonl"), ""
        if content:
            path.rename(aside)
            where = f"; kept as {aside.name}"
        lost = sorted(set(range(1, step + 1)) - good.keys())
        which = f"lacks {len(lost):,} steps from {lost[0]} to {lost[-1]}" if lost else "was changed"
        print(f"{path.parent.name}: {path.name} {which}{where}, the run continues")
    if kept != content or not intact:
        write_atomically(path, kept)
    return kept, max((seconds for seconds, _ in good.values()), default=0.0)


def trim(path: Path, step: int) -> list[dict]:
    """Cut measurements to those up to a step, so that no step appears twice, and return them."""
    kept = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            if record["step"] <= step and record["metric"] <= math.inf:
                kept.append(record)
        except (ValueError, TypeError, KeyError, RecursionError):
            print(f"{path.parent.name}: {path.name} has a damaged line, which is skipped")
    if path.is_file():
        write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
    return kept
