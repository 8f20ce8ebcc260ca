"""TensorBoard's event files: a run's numbers for those who watch them there.

`tensorboard --logdir runs` shows all runs. The record of a run is its history.jsonl, not these.
"""

from contextlib import suppress
from pathlib import Path


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
