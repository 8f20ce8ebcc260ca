"""Progress and losses of a finished optimizer step; on a GPU losses are copied asynchronously."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tract.base.parallel import wait_until


class Losses:
    """Loss, squared error and gradient norm of a step, copied asynchronously from a GPU."""

    def __init__(self, numbers: Tensor):
        self._host = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self._sent = None
        if numbers.is_cuda:
            self._sent = torch.cuda.Event()
            self._sent.record()

    @property
    def late(self) -> bool:
        """Whether they come from a GPU, and may arrive later."""
        return self._sent is not None

    @property
    def arrived(self) -> bool:
        """Whether `read` would return at once."""
        return self._sent is None or self._sent.query()

    def read(self) -> tuple[float, float, float]:
        """Return (loss, mse, norm) once they have arrived; raises the errors of `wait_until`."""
        if self._sent is not None:
            wait_until(self._sent.query)
        return tuple(self._host.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Losses) and self.read() == other.read()


@dataclass(frozen=True)
class Record:
    """A finished step; its losses are means over the batch and pixels, read on demand."""

    step: int  # optimizer steps done
    num_steps: int  # of the whole run
    images_seen: int
    losses: Losses
    phase: str = ""  # such as "1024>32"; "" for a teacher

    @property
    def loss(self) -> float:
        """Weighted loss, which is minimised."""
        return self.losses.read()[0]

    @property
    def mse(self) -> float:
        """Unweighted squared error of x0."""
        return self.losses.read()[1]

    def line(self) -> dict:
        """All of it as numbers and text, for a line of a file."""
        about = {"step": self.step, "num_steps": self.num_steps, "images_seen": self.images_seen}
        return about | {"loss": self.loss, "mse": self.mse, "phase": self.phase}
