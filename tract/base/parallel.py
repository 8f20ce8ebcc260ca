"""One run in several processes: each computes its rows of a batch, gradients are summed.

All draw the same batch from (seed, step), so that N processes use the data and noise of one and
differ from it by rounding; only dropout masks differ. Without other processes everything here does
what a single process does.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(minutes=30)  # for others, which save and measure between steps
STEP_TIMEOUT = 600  # seconds for a step on a GPU: less than TIMEOUT, which NCCL uses too
POLL = 0.1  # seconds between checks of the other processes

_watch: list[Callable[[], None]] = []  # raise RuntimeError if another process has ended


def rank() -> int:
    """Number of this process; 0 is the one that reads, writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes have joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched() -> int:
    """Number of processes that torchrun or `accelerate launch` started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def store_of_launch() -> tuple[dist.Store, int, int]:
    """Return the store that launched processes share, this one's rank, and their number."""
    store, rank, size = next(rendezvous("env://"))
    return dist.PrefixStore("tract", store), rank, size


def use_own_gpu(rank: int) -> None:
    """Make "cuda" this process's own GPU; call it before anything is allocated there."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def joined(
    store: dist.Store, rank: int, size: int, watch: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Join the other processes of this store: over NCCL on GPUs, over gloo on CPUs.

    watch: called while waiting for a GPU, to raise RuntimeError if another process has ended.
    """
    use_own_gpu(rank)
    # NCCL's own watchdog would end this process without a message.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    _watch.append(watch)
    leave = dist.destroy_process_group
    try:
        yield
    except Exception:  # destroying the group would wait for a dead process
        leave = dist.distributed_c10d._abort_process_group
        raise
    finally:
        _watch.clear()
        leave()


def wait_until(arrived: Callable[[], bool]) -> None:
    """Wait for a GPU; raises RuntimeError if another process ends, or after STEP_TIMEOUT."""
    begun = looked = time.monotonic()
    while not arrived():
        now = time.monotonic()
        if now - looked > POLL:
            looked = now
            for watch in _watch:
                watch()
        if now - begun > STEP_TIMEOUT:
            raise RuntimeError(
                f"a step did not end within {STEP_TIMEOUT} s: another process or a GPU hangs; run "
                "it again"
            )
        time.sleep(1e-4)


@contextmanager
def joined_launch() -> Iterator[None]:
    """Join the processes launched with this one, if any."""
    with joined(*store_of_launch()) if launched() > 1 else nullcontext():
        yield


def check_share(batch: int, processes: int) -> None:
    """Raise ValueError unless the batch divides equally among the processes."""
    if batch % processes:
        raise ValueError(
            f"batch_size is {batch}, which {processes} processes cannot share: use a multiple of "
            f"{processes}"
        )


def shard(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return this process's rows of tensors (B, ...) that every process has; None stays None."""
    if world_size() == 1:
        return tensors
    return tuple(None if t is None else t.chunk(world_size())[rank()] for t in tensors)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in one message."""
    if world_size() == 1:
        return
    message = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(message)
    sums = message.split([tensor.numel() for tensor in tensors])
    sums = [part.view_as(tensor) for tensor, part in zip(tensors, sums, strict=True)]
    torch._foreach_copy_(tensors, sums)


def any_rank(flag: bool) -> bool:
    """Tell all processes whether any of them sets the flag, without waiting for a GPU."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


def check_same(name: str, value: object) -> None:
    """Raise ValueError in all processes unless they hold the same value."""
    if world_size() == 1:
        return
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    odd = [other for other, found in enumerate(values) if found != values[0]]
    if odd:
        raise ValueError(
            f"process {odd[0]} and process 0 differ in {name}: start all with the same "
            "parameters, version and folders, on a file system that all machines share"
        )


def broadcast_object(value: object) -> object:
    """Return the first process's value in all of them."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def rank0_first(make: Callable[[], Any]) -> Any:
    """Call make in the first process before the others, which then find its files."""
    made = make() if rank() == 0 else None
    broadcast_object(None)  # the others wait here
    return made if rank() == 0 else make()


def scatter_work(items: Sequence, make: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield make(item) for each item in order, computed by all processes in turn.

    Only the first process gets the values; the others get None for each item.
    """
    size = world_size()
    for start in range(0, len(items), size):
        turn = items[start : start + size]
        made = make(turn[rank()]) if rank() < len(turn) else None
        parts = [made]
        if size > 1:
            parts = [None] * size
            dist.gather_object(made, parts if rank() == 0 else None)
        yield from parts[: len(turn)]
