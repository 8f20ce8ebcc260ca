"""A further process of a training, started by `team`.

Its command is `python -m tract.experiments.worker STORE SIZE RANK`.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch.distributed as dist

from tract.base.compute import use_threads
from tract.base.parallel import launched, store_of_launch
from tract.experiments.experiment import from_task, run_name
from tract.experiments.run import train_along
from tract.experiments.team import follow
from tract.networks.weights import load_state


def prepare(task: dict) -> Callable[[], None]:
    """Return a function that does the task of an experiment along with the other processes.

    Raises ValueError or FileNotFoundError if shared files differ or are missing here.
    """
    use_threads(task["threads"])
    experiment, settings = from_task(task)
    state, records, _ = experiment.start(settings, task["network"])
    if task["checkpoint"]:
        load_state(experiment.folder / run_name(settings) / task["checkpoint"], state)
    return partial(train_along, state, records)


def follow_launch() -> bool:
    """Train along to the end if this process was launched for that; returns whether it was."""
    if launched() == 1:
        return False
    store, rank, size = store_of_launch()
    if rank > 0:
        follow(store, rank, size, prepare)
    return rank > 0


def main() -> None:
    path, size, rank = sys.argv[1:]
    follow(dist.FileStore(path, int(size)), int(rank), int(size), prepare)


if __name__ == "__main__":
    main()
