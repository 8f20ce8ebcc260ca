"""History of a run: one JSON line a step, and TensorBoard event files."""

import io
import json
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pandas as pd

from tract.base.files import write_atomically
from tract.records import Record


class Events:
    """A context in which numbers are added to the events of a run that begins after a step.

    What an earlier file says of later steps, which are made again, TensorBoard then leaves out.
    OSError from `add` where they cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> "Events":
        return self

    def add(self, step: int, **numbers: float) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def __exit__(self, *exception) -> None:
        with suppress(OSError):  # of a full disk, which the history has reported
            self._writer.close()


HISTORY = "history.jsonl"  # name of the file in a run directory


class History(Events):
    """A context in which the records of a run are written that goes on after a step.

    A record is written when its losses have arrived, which on a CPU is at once. Those that
    had not when a run was killed are of steps that it makes again: `write` before a state is saved.
    """

    def __init__(self, folder: Path, step: int):
        past = trim(folder / HISTORY, step)
        super().__init__(folder, step)
        self._path = folder / HISTORY
        self._begun = time.monotonic() - (past[-1]["seconds"] if past else 0.0)
        self._waiting: deque[tuple[Record, float]] = deque()

    def record(self, record: Record) -> None:
        """Take a record, and write all that have arrived."""
        self._waiting.append((record, time.monotonic() - self._begun))
        while self._waiting and self._waiting[0][0].losses.arrived:
            self._write_first()

    def write(self) -> None:
        """Write all records, waiting for those that have not arrived."""
        while self._waiting:
            self._write_first()

    def _write_first(self) -> None:
        record, seconds = self._waiting.popleft()
        append(self._path, record.line() | {"seconds": seconds})
        self.add(record.step, loss=record.loss, mse=record.mse)


def history(folder: str | Path) -> pd.DataFrame:
    """Loss and time of every step of a run, finished or not, even while it is being written."""
    path = Path(folder) / HISTORY
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: begin that run first, or correct run_dir")
    content = path.read_bytes()
    whole_lines = content[: content.rfind(b"\n") + 1]
    return pd.read_json(io.BytesIO(whole_lines), lines=True)


def append(path: Path, line: dict) -> None:
    """Add one line to a file of JSON lines, at once."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def trim(path: Path, step: int) -> list[dict]:
    """Cut JSON lines to those up to a step, so that no step appears twice, and return them."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # the last line of a killed run, or of one without space
        if record["step"] <= step:
            kept.append(record)
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
    return kept
