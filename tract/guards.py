"""What stands around a run while it is written: one writer, named failures, orderly interrupts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from tract.train import Training


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system frees even when its holder is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is writing {folder}: wait for it, stop it, or use another run_dir"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder} ({error.strerror}): use another run_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def named_failures(folder: Path, settings: Training) -> Iterator[None]:
    """Say what to do when memory, disk or numbers run out; checkpoints before are intact."""
    intact = f"run {folder.name} can go on from its last checkpoint"
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; {intact} with other settings: `tract branch` {folder} and a new name"
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(
            f"out of memory with batch {settings.batch}: use a smaller batch; {intact}"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{reason}; {intact} once there is space") from error


class Stop:
    """Whether somebody asked the run to end."""

    requested = False


@contextmanager
def interrupt_between_steps() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a request that the loop honours once a step is complete.

    An interrupt inside a step would leave the optimizer ahead of the averages.
    """
    stop = Stop()

    def request(signum, frame):
        stop.requested = True

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller has its own way to stop
        before = {}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
