"""Entry point of a further process of a training, started by `team`.

`python -m tract.experiments.worker STORE SIZE RANK` is such a process, started by `team`.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch.distributed as dist

from tract.base.compute import Compute, use_threads
from tract.base.parallel import launched, store_of_launch
from tract.experiments.experiment import Experiment, run_name
from tract.experiments.run import train_along
from tract.experiments.team import follow
from tract.networks.weights import load_state
from tract.settings import Distillation, Training


def prepare(task: dict) -> Callable[[], None]:
    """The run that an experiment's task describes, where the first process has it.

    ValueError or FileNotFoundError if files that all need are not here as they are there.
    """
    use_threads(task["threads"])
    experiment = experiment_of(task["experiment"])
    if experiment.data.sha256 != task["data_sha256"]:
        raise ValueError(
            f"the data {experiment.data_name} are others here than in process 0: use the same files"
        )
    if task["network"]:
        settings = Training(**task["settings"])
        state, records = experiment.teacher_run(task["network"], settings)
    else:
        settings = Distillation(**task["settings"])
        state, records, _ = experiment.student_run(settings)
    if task["checkpoint"]:
        load_state(experiment.folder / run_name(settings) / task["checkpoint"], state)
    return partial(train_along, state, records)


def experiment_of(about: dict) -> Experiment:
    """The experiment that `Experiment.as_json` describes."""
    return Experiment(**about | {"compute": Compute(**about["compute"])})


def follow_launch() -> bool:
    """Whether this process was launched to train along; it then has, to the end."""
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
