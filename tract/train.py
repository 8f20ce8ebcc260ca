"""Training a teacher, and what every training loop here shares: settings, weights, randomness.

A loop is a generator that yields a small record after the optimizer and the averages stepped.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tract.checks import check_choice, check_positive, check_whole, is_number
from tract.compute import EAGER, Compute, arrange, computed, float32_products
from tract.data import Data
from tract.ddim import add_noise
from tract.denoiser import Denoise, Denoiser
from tract.ema import bias_corrected, decay_from_residual, follower
from tract.levels import Level
from tract.parallel import average, check_share, own_rows, rank, world_size
from tract.presets import check_fits
from tract.records import Losses, Record


def truncated_snr(level: Level, sigma_data: float) -> Tensor:
    """max(1, SNR), the paper's weight for VP; Salimans & Ho 2022, section 4."""
    return level.snr.clamp(min=1)


def snr_plus_one(level: Level, sigma_data: float) -> Tensor:
    """SNR + 1, the same loss as on v; Salimans & Ho 2022, section 4."""
    return level.snr + 1


def edm_weight(level: Level, sigma_data: float) -> Tensor:
    """SNR + 1 / sigma_data^2 = 1 / c_out^2: every level's network loss counts the same.

    Karras et al. 2022, table 1.
    """
    return level.snr + 1 / sigma_data**2


def uniform(level: Level, sigma_data: float) -> Tensor:
    """1: the squared error of x0 itself."""
    return torch.ones_like(level.sigma)


WEIGHTS = {
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "edm": edm_weight,
    "uniform": uniform,
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training run. ValueError names the setting that cannot be."""

    images: int  # samples seen in all, with repetitions
    batch: int = 128
    learning_rate: float = 1e-3  # of Adam
    cooldown: float = 0.0  # share of a phase, its last, in which the rate falls linearly to 0
    weight: str = "truncated_snr"  # a name in WEIGHTS
    ema_residual: float = 1e-3  # share of the start left in the average that is sampled from
    clip_norm: float = 1.0  # of the gradient of the loss averaged over pixels
    seed: int = 0

    def __post_init__(self):
        check_whole("batch", self.batch, 1)
        check_whole("images", self.images, 1)
        if self.images < self.batch:
            raise ValueError(
                f"images is {self.images}, less than one batch of {self.batch}: use more images "
                "or a smaller batch"
            )
        check_choice("weight", self.weight, WEIGHTS)
        check_positive("learning_rate", self.learning_rate)
        if not (is_number(self.cooldown) and 0 <= self.cooldown <= 1):
            raise ValueError(f"cooldown is {self.cooldown!r}: use a share from 0 to 1")
        check_positive("clip_norm", self.clip_norm)
        if not (is_number(self.ema_residual) and 0 < self.ema_residual < 1):
            raise ValueError(f"ema_residual is {self.ema_residual!r}: use a share between 0 and 1")
        check_whole("seed", self.seed, 0)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.images // self.batch

    @property
    def steps_per_phase(self) -> int:
        return self.num_steps


def report(state, settings: Training, losses: Losses, phase: str = "") -> Record:
    """The record of a step that is complete."""
    images_seen = state.step * settings.batch
    return Record(state.step, settings.num_steps, images_seen, losses, phase)


def checked(records: Iterator[Record], settings: Training) -> Iterator[Record]:
    """Pass records on; FloatingPointError for a step whose loss was no number.

    Asked is the step before, which a GPU has left behind, and at the end of a phase this one too:
    the work of a GPU is never waited for while there is more of it to send. All processes that have
    joined so stop after the same step.
    """
    before = None
    for record in records:
        if before is not None:
            check_finite(before.losses, before.step, settings)
        if record.step % settings.steps_per_phase == 0:
            check_finite(record.losses, record.step, settings)
        yield record
        before = record


def check_finite(losses: Losses, step: int, settings: Training) -> None:
    """FloatingPointError if the loss of a step, or its gradient, is no number."""
    loss, _, norm = losses.read()
    if not math.isfinite(loss + norm):  # a finite loss can have a gradient that is not
        raise FloatingPointError(
            f"the loss is {loss} at step {step}, its gradient {norm}: lower learning_rate (now "
            f"{settings.learning_rate}) or check the teacher and the data; weights are unchanged"
        )


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
    where a loss is no number, see `checked`.
    """
    data.check_batch(settings.batch)
    check_share(settings.batch, world_size())
    check_student(state.student, data)
    for network in state.modules().values():
        arrange(network, compute)
    return checked(_teacher_steps(state, data, levels, settings, compute), settings)


def _teacher_steps(
    state: TeacherState, data: Data, levels: Level, settings: Training, compute: Compute
) -> Iterator[Record]:
    device = data.samples.device
    levels, weight = levels.to(device), WEIGHTS[settings.weight]
    decay = decay_from_residual(settings.ema_residual, settings.num_steps)
    student, sigma_data = computed(state.student, compute), state.student.sigma_data
    follow = follower(state.ema, state.student)
    while state.step < settings.num_steps:
        generator = generator_for(device, settings.seed, TEACHER, state.step)
        x0, labels = data.batch(settings.batch, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        i_t = torch.randint(1, len(levels), (settings.batch,), generator=generator, device=device)
        batch = own_rows(x0, labels, eps, i_t)
        losses, rows = 0, len(batch[0])
        state.optimizer.zero_grad(set_to_none=True)
        key = settings.seed, DROPOUT, state.step, rank()
        with float32_products(compute), dropout_keyed(device, *key):
            for x0, labels, eps, i_t in compute.parts(*batch):
                t = levels[i_t]
                error = squared_error(student, add_noise(x0, eps, t), t, x0, labels)
                losses = losses + learn(error, weight(t, sigma_data), rows)
        numbers = descend(losses, state, settings)
        state.step += 1
        follow(bias_corrected(decay, state.step))
        yield report(state, settings, numbers)


def check_student(student: Denoiser, data: Data) -> None:
    """ValueError if samples or labels do not fit a network whose description is known."""
    if hasattr(student, "config"):
        check_fits(student.config, data)


def squared_error(
    denoise: Denoise, x_t: Tensor, t: Level, target: Tensor, labels: Tensor | None
) -> Tensor:
    """Squared error (B,) of the denoised x_t (B, ...) against target, averaged over pixels.

    Averaged, not summed: the gradient clip of 1 then means the same at 8x8 and at 64x64 pixels.
    """
    return (denoise(x_t, t, labels) - target).square().flatten(1).mean(1)


def learn(error: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Add to the gradient what these errors (b,) are in a batch of so many rows.

    Returns (2,): their shares of the batch's loss and squared error, which are means over it.
    """
    shares = torch.stack([(error * weight.to(error)).sum(), error.sum()]) / rows
    shares[0].backward()
    return shares.detach()


def descend(losses: Tensor, state, settings: Training) -> Losses:
    """One step of the optimizer on state.student, whose gradient is that of these losses (2,).

    Where several processes have joined, gradient and losses become the means over all of them. A
    loss that is no number leaves the weights as they are: FloatingPointError on a CPU; on a GPU,
    which would have to be waited for, this step and all that follow are skipped there, and
    `checked` raises.
    """
    optimizer = state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, state.step)
    parameters = list(state.student.parameters())
    average([losses, *(p.grad for p in parameters if p.grad is not None)])
    norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True)
    numbers = Losses(torch.cat([losses, norm[None]]))
    if numbers.late:
        bad = 1 - torch.isfinite(losses[0] + norm).float()
        optimizer.found_inf = torch.maximum(bad, getattr(optimizer, "found_inf", bad))
    else:
        check_finite(numbers, state.step + 1, settings)
    optimizer.step()
    return numbers


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """The optimizer of a network: one kernel for all weights, which skips where found_inf is 1."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)


def learning_rate(settings: Training, step: int) -> float:
    """Adam's learning rate in the step that follows so many steps of a run."""
    length = settings.cooldown * settings.steps_per_phase
    left = settings.steps_per_phase - step % settings.steps_per_phase  # of the phase
    return settings.learning_rate * (left / length if left < length else 1)


def frozen(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that no optimizer can change."""
    return deepcopy(module).eval().requires_grad_(False)


# What a random stream is for; part of its key, so that no two uses share numbers.
TEACHER, DISTILLATION, SAMPLES, DROPOUT, CLASSIFIER, SUBSET = range(6)


def generator_for(device: torch.device | str, *key: int) -> torch.Generator:
    """Generator for one use, such as (seed, TEACHER, step), independent of all other keys.

    Keys are mixed by numpy's SeedSequence: torch's CPU generator reads 32 bits of a seed only, so
    that seeds made by shifting or adding would collide.
    """
    (seed,) = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator(device).manual_seed(int(seed))


@contextmanager
def dropout_keyed(device: torch.device, *key: int) -> Iterator[None]:
    """Let dropout, which takes no generator, depend on this key alone; restored afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for("cpu", *key).initial_seed())
        yield
