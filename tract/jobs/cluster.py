"""Dask clients: an existing cluster, or worker processes on this machine."""

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def client_at(address: str) -> Iterator:
    """A client of the dask cluster at an address; OSError if there is none."""
    from distributed import Client

    problem = None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:  # nobody answers, or it is no address
        problem = str(error)
    if problem:
        gc.collect()  # half a client: collected while another starts, it would block that
        raise OSError(f"no dask scheduler at {address} ({problem}): correct the address")
    with client:
        yield client


# Ctrl-C in a terminal reaches every process there; what it means is decided by one of them.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@contextmanager
def local_client(environments: Sequence[dict[str, str]]) -> Iterator:
    """A client of one process here for each environment; nobody else can give them work."""
    from distributed import Client, Nanny, Scheduler, Security, SpecCluster

    common = {
        "host": "127.0.0.1",
        "protocol": "tls://",
        "security": Security.temporary(),
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",  # what is left of it would listen to the world
    }
    worker = common | {"nthreads": 1, "memory_limit": 0}
    worker |= {"preload": [DEAF], "silence_logs": logging.ERROR}
    workers = {
        i: {"cls": Nanny, "options": worker | {"env": environment}}
        for i, environment in enumerate(environments)
    }
    with (
        SpecCluster(
            workers,
            {"cls": Scheduler, "options": common},
            security=common["security"],
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def environments(workers: int | None, gpus: bool) -> list[dict[str, str]]:
    """What each worker process on this machine is given: its GPU, and a share of the cores."""
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
            f"{workers or 1} executions with a GPU each at once, and {len(places)} GPUs here: give "
            "fewer workers or the address of a scheduler, or leave out gpus"
        )
    places = places[:workers]
    threads = str(max(1, CPU_COUNT // len(places)))
    share = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return [share | place for place in places]
