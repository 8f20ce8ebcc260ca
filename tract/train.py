"""Train a teacher from data.

The loop is a generator that yields a record after each step of optimizer and average.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tract.base.compute import EAGER, Compute
from tract.data import Data
from tract.denoiser import Denoiser
from tract.ema import bias_corrected, decay_from_residual, ema_updater
from tract.levels import Level
from tract.optimize import adam, frozen, guarded, stepper
from tract.records import Record
from tract.seeds import Stream, draw_uniform
from tract.settings import Training
from tract.step import add_noise


@dataclass
class TeacherState:
    """All mutable state of a teacher's training."""

    student: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    step: int = 0

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "ema": self.ema}

    def counters(self) -> dict[str, int]:
        return {"step": self.step}

    def restore_counters(self, counters: dict[str, int]) -> None:
        self.step = counters["step"]


def start_training(denoiser: Denoiser, settings: Training) -> TeacherState:
    """Return the state at step 0; the denoiser itself is trained, in place."""
    return TeacherState(denoiser.train(), frozen(denoiser), adam(denoiser, settings.learning_rate))


def train_teacher(
    state: TeacherState, data: Data, levels: Level, settings: Training, compute: Compute = EAGER
) -> Iterator[Record]:
    """Train a denoiser from data; yields one record per step, and state.ema is the result.

    Levels are drawn uniformly from the grid; the loss is weight(t) |D(x_t) - x0|^2. Raises the
    errors of `guarded`.
    """
    return guarded(_teacher_steps, state, data, levels, settings, compute)


def _teacher_steps(
    state: TeacherState, data: Data, levels: Level, settings: Training, compute: Compute
) -> Iterator[Record]:
    levels = levels.to(data.samples.device)
    step = stepper(state, data, settings, compute, Stream.TEACHER)
    update_ema = ema_updater(state.ema, state.student)
    decay = decay_from_residual(settings.ema_residual, settings.num_steps)

    draw = partial(draw_uniform, levels.num_steps, settings.batch_size)

    def example(x0, labels, eps, i_t):  # i_t: grid indices (b,) in 1..T
        t = levels[i_t]  # (b,)
        return add_noise(x0, eps, t), t, levels[0], x0  # x_t (b, ...); target is x0

    while state.step < settings.num_steps:
        record = step(draw, example)
        update_ema(bias_corrected(decay, state.step))
        yield record
