"""Pools that execute notebooks: local threads, or the workers of a dask cluster."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import local
from typing import NamedTuple


class Pool(NamedTuple):
    """Where functions of a task, and of environment variables for its kernel, are called."""

    submit: Callable[..., Future]  # function, task
    everywhere: Callable[..., Sequence]  # calls a function everywhere, returns all values


@contextmanager
def threads(environments: Sequence[dict[str, str]]) -> Iterator[Pool]:
    """Yield a pool with a thread for each environment; kernels are separate processes."""
    mine, free = local(), list(environments)

    def begin() -> None:
        mine.environment = free.pop()

    with ThreadPoolExecutor(len(free), initializer=begin) as pool:
        yield Pool(
            lambda function, task: pool.submit(lambda: function(task, mine.environment)),
            lambda function, *arguments: [function(*arguments)],
        )


@contextmanager
def workers_at(address: str, gpus: bool) -> Iterator[Pool]:
    """Yield a pool of the workers of a dask cluster; raises OSError if none answers.

    gpus: each call takes one of a worker's resource GPU.
    """
    from distributed import Client

    problem = None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:  # no answer, or an invalid address
        problem = str(error)
    if problem:
        gc.collect()  # the failed client, which could block the next one's start
        raise OSError(f"no dask scheduler at {address} ({problem}): correct the address")
    with client, client.get_executor(pure=False, resources={"GPU": 1} if gpus else {}) as pool:
        yield Pool(
            lambda function, task: pool.submit(function, task, {}),
            lambda function, *arguments: [
                *client.run(function, *arguments, on_error="ignore").values()
            ],
        )


def environments(workers: int | None, gpus: bool) -> list[dict[str, str]]:
    """Return environments for executions on this machine: a GPU each, and a share of the cores."""
    import torch
    from dask.system import CPU_COUNT

    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        str(i) for i in range(torch.cuda.device_count())
    )
    places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in named.split(",") if gpu]
    if not gpus:
        places = [{}] * (workers or CPU_COUNT)
    elif len(places) < (workers or 1):
        raise ValueError(
            f"{workers or 1} executions need a GPU each, but there are {len(places)} GPUs: give "
            "fewer workers or the address of a scheduler, or omit gpus"
        )
    places = places[:workers]
    cores = str(max(1, CPU_COUNT // len(places)))
    share = {name: os.environ.get(name, cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return [share | place for place in places]
