"""A training as data, and as a process that outlives whoever started it.

`python -m tract.experiments.job` reads run directories, one per line, and trains what job.json
describes in each, one after the other. Its output goes to job.log.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch.optim import Adam

from tract.base.compute import use_threads
from tract.datasets.load import load_data
from tract.denoiser import Denoiser
from tract.experiments.card import claim
from tract.experiments.experiment import Experiment, from_task
from tract.experiments.names import label_of, run_name
from tract.experiments.preview import Preview, distance_to_data
from tract.experiments.run import Checkpointing, Run, complete
from tract.experiments.status import (
    FAILED,
    FINISHED,
    NEW,
    STOPPED,
    WAITING,
    Status,
    as_state,
    process_of,
    read_status,
    write_status,
)
from tract.settings import Training

JOB, LOG = "job.json", "job.log"


@dataclass(frozen=True)
class Task:
    """A training that another process can carry out; a teacher's settings come with its network.

    features, metric_every: measure the distance to the data every metric_every steps; 0 for never.
    """

    experiment: Experiment
    settings: Training
    network: str = ""  # of a teacher, one that `tract models` lists
    processes: int = 1
    minutes: float = 1.0  # between checkpoints
    features: str = ""
    metric_every: int = 0

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.experiment.folder / run_name(self.settings)

    @property
    def label(self) -> str:
        """Method and schedule, for a reader."""
        return label_of(self.settings)

    def run(self) -> Run:
        """The run, with previews; ValueError, with the remedy, for impossible settings."""
        experiment, settings = self.experiment, self.settings
        metric = None
        if self.metric_every:
            metric = distance_to_data(experiment, settings, self.features)
        how = Checkpointing(self.minutes, metric=metric, metric_every=self.metric_every)
        run = experiment.run(settings, self.network, how, self.processes)
        run.records = Preview(experiment, run, metric, self.metric_every).watch(run.records)
        return run

    def check(self) -> None:
        """ValueError, with the remedy, for impossible settings, or not those that it began with."""
        run = self.run()
        if (run.folder / "card.json").is_file() and read_status(run.folder).state != NEW:
            claim(run.folder / "card.json", run.card)

    def train(self) -> Denoiser:
        """Train, resume or read the run here, under a text bar; returns its average."""
        run = self.run()
        if not run.finished:
            self.write()
        try:
            return complete(run)
        except KeyboardInterrupt:
            run.records.close()  # which writes a preview of where it stopped
            raise

    def write(self) -> None:
        """Write the task to its run directory, from where a job can be launched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own |= self.experiment.task(self.settings, self.network)
        own["threads"] = torch.get_num_threads()
        (self.folder / JOB).write_text(json.dumps(own, indent=1) + "\n")


def read_task(folder: Path) -> Task:
    """The task in a run directory; its number of threads is used from then on."""
    about = json.loads((folder / JOB).read_text())
    use_threads(about.pop("threads"))
    experiment, settings = from_task(about)
    return Task(**about | {"experiment": experiment, "settings": settings})


_ready: subprocess.Popen | None = None  # waits for its runs


def stand_by() -> None:
    """Keep a process ready that has imported what a training needs and waits for its runs.

    It takes seconds to start, and ends with this process if it is given none.
    """
    global _ready
    if _ready is None or _ready.poll() is not None:
        _ready = subprocess.Popen(
            [sys.executable, "-m", "tract.experiments.job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # or it would be interrupted with the kernel
            env=os.environ | {"TQDM_DISABLE": "1"},
            text=True,
        )


def launch(folders: Sequence[Path]) -> None:
    """Train the unfinished ones of some runs, whose tasks are written, in a process of their own.

    RuntimeError if one of them is already being trained.
    """
    global _ready
    folders = [folder for folder in folders if read_status(folder).state != FINISHED]
    for folder in folders:
        if read_status(folder).active:
            raise RuntimeError(f"{folder.name} is being trained already: wait for it, or stop it")
    if not folders:
        return
    stand_by()
    process, _ready = _ready, None
    owner = process_of(process.pid)
    for folder, before in zip(folders, ["", *folders], strict=False):
        message = f"waits for {before.name}" if before else "starting"
        last = read_status(folder)
        write_status(folder, Status(WAITING, last.step, last.num_steps, message=message, **owner))
    with process.stdin as given:
        given.write("\n".join(str(folder.resolve()) for folder in folders))


def main() -> int:
    """Import what a first step needs, wait for run directories, and train them."""
    Adam([torch.zeros(1, requires_grad=True)])
    load_data("digits")
    folders = [Path(line) for line in sys.stdin.read().splitlines()]
    if not folders:  # the process that would have sent them has ended
        return 0
    with (folders[0] / LOG).open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    return train_in_turn(folders)


def train_in_turn(folders: Sequence[Path]) -> int:
    """Train runs one after the other, up to the first that does not finish."""
    waiting = list(folders)
    try:
        while waiting:
            read_task(waiting[0]).train()
            waiting.pop(0)
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        traceback.print_exc()
        if read_status(waiting[0]).active:  # it failed before its first step
            _leave(waiting[0], FAILED, str(error))
        return 1
    finally:
        for folder in waiting[1:]:
            _leave(folder, STOPPED)
    return 0


def _leave(folder: Path, state: str, message: str = "") -> None:
    with suppress(OSError):
        write_status(folder, as_state(read_status(folder), state, message))


if __name__ == "__main__":
    sys.exit(main())
