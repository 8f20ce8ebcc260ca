"""Train a teacher from data.

The loop is a generator that yields a small record after the optimizer and the average stepped.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tract.base.compute import EAGER, Compute, matmul_precision, prepare_network, with_precision
from tract.base.parallel import check_share, rank, shard, world_size
from tract.data import Data
from tract.denoiser import Denoiser
from tract.ema import bias_corrected, decay_from_residual, ema_updater
from tract.levels import Level
from tract.losses import WEIGHTS, loss_of, squared_error
from tract.optimize import (
    adam,
    backward,
    check_losses,
    check_student,
    frozen,
    name_micro_batch,
    optimizer_step,
    report,
)
from tract.records import Record
from tract.seeds import Stream, dropout_keyed, generator_for
from tract.settings import Training
from tract.step import add_noise


@dataclass
class TeacherState:
    """All that changes while a teacher is trained."""

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
    """State at step 0 of training this denoiser, which is trained in place."""
    return TeacherState(denoiser.train(), frozen(denoiser), adam(denoiser, settings.learning_rate))


def train_teacher(
    state: TeacherState,
    data: Data,
    levels: Level,
    settings: Training,
    compute: Compute = EAGER,
) -> Iterator[Record]:
    """Train a denoiser from data; yields one record per step, state.ema is the result.

    Levels are drawn uniformly from the grid; the loss is weight(t) |D(x_t) - x0|^2. ValueError,
    at once, if the data are less than a batch or processes cannot share one. FloatingPointError
    where a loss is not a number, see `check_losses`.
    """
    data.check_batch(settings.batch_size)
    check_share(settings.batch_size, world_size())
    check_student(state.student, data)
    for network in state.modules().values():
        prepare_network(network, compute)
    records = _teacher_steps(state, data, levels, settings, compute)
    records = name_micro_batch(records, state, data, settings, compute)
    return check_losses(records, settings)


def _teacher_steps(
    state: TeacherState, data: Data, levels: Level, settings: Training, compute: Compute
) -> Iterator[Record]:
    device = data.samples.device
    levels, weight = levels.to(device), WEIGHTS[settings.loss_weight]
    loss_of_error = loss_of(settings.loss, settings.loss_reduction, math.prod(data.shape))
    decay = decay_from_residual(settings.ema_residual, settings.num_steps)
    student, sigma_data = with_precision(state.student, compute), state.student.sigma_data
    follow = ema_updater(state.ema, state.student)
    while state.step < settings.num_steps:
        generator = generator_for(device, settings.seed, Stream.TEACHER, state.step)
        x0, labels = data.batch(settings.batch_size, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        i_t = torch.randint(
            1, len(levels), (settings.batch_size,), generator=generator, device=device
        )
        batch = shard(x0, labels, eps, i_t)
        losses = 0
        state.optimizer.zero_grad(set_to_none=True)
        key = settings.seed, Stream.DROPOUT, state.step, rank()
        with matmul_precision(compute), dropout_keyed(device, *key):
            for x0, labels, eps, i_t in compute.parts(*batch):
                t = levels[i_t]
                error = squared_error(student, add_noise(x0, eps, t), t, x0, labels)
                loss = weight(t, levels[0], sigma_data).to(error) * loss_of_error(error)
                losses = losses + backward(loss, error, settings.batch_size)
        numbers = optimizer_step(losses, state, settings)
        state.step += 1
        follow(bias_corrected(decay, state.step))
        yield report(state, settings, numbers)
