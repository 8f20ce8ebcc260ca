"""Start further processes for a training and send them their task."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from tract.base.checks import MOST_PROCESSES, check_whole
from tract.base.parallel import POLL, joined, launched, store_of_launch, use_own_gpu

PATIENCE = 5  # seconds for a process that closed its connections to end


def team_size(processes: int) -> int:
    """Return the number of training processes; raises ValueError for an impossible one."""
    check_whole("processes", processes, 1, MOST_PROCESSES)
    if launched() > 1:
        if processes not in (1, launched()):
            raise ValueError(
                f"processes is {processes}, but {launched()} were launched: leave processes at 1"
            )
        return launched()
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(
            f"processes is {processes}, but this machine has {gpus} GPUs: use {gpus} or less, or "
            "torchrun on several machines"
        )
    return processes


@contextmanager
def together(task: dict, size: int, checkpoint: str) -> Iterator[None]:
    """While open, size - 1 other processes do the same task, given as JSON, along with the caller.

    checkpoint: name of the file to start from; "" for the start. Raises RuntimeError, which names
    the process, if one of the others fails or ends.
    """
    if size == 1:
        yield
        return
    with _others(size) as (store, number, started):
        task = task | {"checkpoint": checkpoint, "threads": torch.get_num_threads()}
        store.set(f"{number}/task", json.dumps(task))
        for rank in range(1, size):
            while not store.check([f"{number}/ready/{rank}"]):
                _check(store, started)
                time.sleep(POLL)
        watch = partial(_check, store, started)
        with joined(dist.PrefixStore(f"{number}/group", store), 0, size, watch):
            print(f"{size} processes train together")
            try:
                yield
            except RuntimeError:  # of gloo or NCCL: a connection broke
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until:  # the others, if alive, wait for this one
                    _check(store, started)
                    time.sleep(POLL)
                raise


@contextmanager
def _others(size: int) -> Iterator[tuple[dist.Store, int, Sequence[subprocess.Popen]]]:
    """Yield the shared store, the number of the task, and the processes started here for it."""
    if launched() > 1:
        store, _, _ = store_of_launch()
        yield store, store.add("tasks", 1) - 1, []
        return
    with TemporaryDirectory(prefix="tract-") as folder:
        path = os.path.join(folder, "store")  # noqa: PTH118
        command = [sys.executable, "-m", "tract.experiments.worker", path, str(size)]
        started = [subprocess.Popen([*command, str(rank)]) for rank in range(1, size)]
        try:
            yield dist.FileStore(path, size), 0, started
        finally:
            for process in started:
                process.kill()
                process.wait()


def _check(store: dist.Store, started: Sequence[subprocess.Popen]) -> None:
    """Raise RuntimeError if another process has failed, or has ended without a message."""
    if store.check(["failed"]):
        raise RuntimeError(store.get("failed").decode())
    for rank, process in enumerate(started, 1):
        if process.poll() is not None:
            raise RuntimeError(
                f"process {rank} of {len(started) + 1} ended with status {process.returncode}, and "
                "the run with it: its last checkpoint is intact, run it again"
            )


def _check_parent(parent: int) -> None:
    """Raise RuntimeError if the process that started this one has ended."""
    if os.getppid() != parent:
        raise RuntimeError("the first process has ended, and the run with it")


def follow(
    store: dist.Store, rank: int, size: int, prepare: Callable[[dict], Callable[[], None]]
) -> None:
    """Do the first process's tasks one after the other, until it has no more or has ended.

    prepare: reads everything a task needs, and returns a function that does it with the others.
    """
    parent = os.getppid()
    use_own_gpu(rank)
    for number in itertools.count():
        while not store.check([f"{number}/task"]):
            if store.check(["end"]) or os.getppid() != parent:
                return
            time.sleep(POLL)
        try:
            work = prepare(json.loads(store.get(f"{number}/task")))
        except (ValueError, OSError, RuntimeError) as error:
            store.set("failed", f"process {rank} of {size}: {error}")
            raise
        store.set(f"{number}/ready/{rank}", "")
        watch = partial(_check_parent, parent)
        with joined(dist.PrefixStore(f"{number}/group", store), rank, size, watch):
            work()


@contextmanager
def leading() -> Iterator[None]:
    """Release the launched processes that follow when the block ends."""
    try:
        yield
    finally:
        if launched() > 1:
            store_of_launch()[0].set("end", "")
