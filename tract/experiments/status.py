"""Status of a run: the process that trains it, its progress, and a request to stop.

status.json   written by the training process about once a second
stop          the id of the process that is to stop after its step
"""

import json
import os
import platform
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from tract.base.files import TEMPORARY
from tract.records import Record

NEW, WAITING, RUNNING = "new", "waiting", "running"
STOPPED, FAILED, FINISHED = "stopped", "failed", "finished"
ACTIVE = (WAITING, RUNNING)
WRITE_SECONDS = 0.5  # between two writes
WINDOW = 20.0  # seconds over which the speed is averaged
STATUS, STOP = "status.json", "stop"


@dataclass(frozen=True)
class Status:
    """State of a run directory; pid, created and host identify its process."""

    state: str = NEW
    step: int = 0
    num_steps: int = 0
    phase: str = ""
    images_per_second: float = 0.0
    seconds_left: float | None = None
    message: str = ""  # why it failed, or what it waits for
    pid: int = 0
    created: float = 0.0  # seconds since the epoch, of the process
    host: str = ""
    time: float = 0.0  # seconds since the epoch, of this status

    @property
    def active(self) -> bool:
        """Whether a process trains it, or is about to."""
        return self.state in ACTIVE


def read_status(folder: str | Path) -> Status:
    """The status of a run directory; failed if its process ended without writing so."""
    folder = Path(folder)
    status = _read(folder / STATUS)
    if (folder / "model.safetensors").is_file():
        return as_state(status, FINISHED)
    begun = any(folder.glob("checkpoint-*.safetensors"))
    if status.state in (NEW, FINISHED):  # of an older version, or its result was removed
        return as_state(status, STOPPED if begun else NEW)
    if status.active and not _alive(status):
        left = "Resume continues from its last checkpoint" if begun else "Resume starts again"
        return as_state(
            status, FAILED, f"process {status.pid} ended unexpectedly at step {status.step}; {left}"
        )
    return status


def as_state(status: Status, state: str, message: str = "") -> Status:
    """The same status in another state, without seconds left."""
    return replace(status, state=state, message=message, seconds_left=None)


def _read(path: Path) -> Status:
    try:
        return Status(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # absent, or not ours
        return Status()


def write_status(folder: Path, status: Status) -> None:
    """Replace a run's status atomically; unlike results it is not flushed to disk."""
    temporary = folder / f".{STATUS}.{os.getpid()}{TEMPORARY}"
    try:
        temporary.write_text(json.dumps(asdict(status) | {"time": time.time()}))
        temporary.replace(folder / STATUS)
    finally:
        temporary.unlink(missing_ok=True)


def process_of(pid: int) -> dict:
    """The fields of a status that name a process of this machine."""
    return {"pid": pid, "created": psutil.Process(pid).create_time(), "host": platform.node()}


def _alive(status: Status) -> bool:
    """Whether a status' process still runs; on another machine it is assumed to."""
    if status.host != platform.node():
        return True
    try:
        process = psutil.Process(status.pid)
        same = abs(process.create_time() - status.created) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def request_stop(folder: str | Path) -> None:
    """Ask the process that trains a run to save and end after its step."""
    status = read_status(folder)
    if status.active:
        Path(folder, STOP).write_text(str(status.pid))


class Reporter:
    """Context that keeps up to date the status of the run that this process trains."""

    def __init__(self, folder: Path, batch_size: int, step: int, num_steps: int):
        self._folder, self._batch = folder, batch_size
        at = {"step": step, "num_steps": num_steps}
        self._status = Status(RUNNING, **at, **process_of(os.getpid()))
        self._times: deque[tuple[float, int]] = deque()
        self._written = 0.0

    def __enter__(self) -> "Reporter":
        self._write(self._status)
        return self

    def _write(self, status: Status) -> None:
        with suppress(OSError):  # a full disk is reported where it costs results
            write_status(self._folder, status)

    def take(self, record: Record) -> None:
        """Note a step, and write the status if that is due."""
        now = time.monotonic()
        self._times.append((now, record.step))
        while now - self._times[0][0] > WINDOW:
            self._times.popleft()
        if now - self._written > WRITE_SECONDS:
            self._written = now
            self._status = self._now(record)
            self._write(self._status)

    def _now(self, record: Record) -> Status:
        (before, first), (now, last) = self._times[0], self._times[-1]
        speed = (last - first) / (now - before) if now > before else 0.0
        return replace(
            self._status,
            step=record.step,
            phase=record.phase,
            images_per_second=speed * self._batch,
            seconds_left=(record.num_steps - record.step) / speed if speed else None,
        )

    @property
    def stop_requested(self) -> bool:
        """Whether this very process was asked to stop."""
        path = self._folder / STOP
        return path.exists() and path.read_text() == str(self._status.pid)

    def __exit__(self, kind, error, trace) -> None:
        state, message = FINISHED, ""
        if kind is not None:
            ended = issubclass(kind, KeyboardInterrupt | GeneratorExit)
            state, message = (STOPPED, "") if ended else (FAILED, str(error))
        step = self._times[-1][1] if self._times else self._status.step
        last = replace(self._status, step=step)
        (self._folder / STOP).unlink(missing_ok=True)
        self._write(as_state(last, state, message))
