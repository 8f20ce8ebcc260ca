"""Distillation by phases: BTD, TRACT and consistency distillation as one loop.

In a phase n>m the student learns to cross a group of n / m teacher steps in one. From a level t
the teacher makes the first hop, one step to u; who makes the second hop, from u to the end s of
the group, is all that the methods differ in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tract.checks import check_choice, check_flag, is_number
from tract.data import Data
from tract.ddim import add_noise, closure_weight, ddim_step
from tract.denoiser import Denoise, Denoiser, clamped
from tract.ema import bias_corrected, decay_from_residual, ema_update
from tract.levels import Level, broadcast
from tract.phases import Phase, parse_schedule
from tract.samplers import X0_ESTIMATES, X0Estimate, ddim_x0
from tract.train import (
    DISTILLATION,
    WEIGHTS,
    Record,
    Training,
    check_student,
    descend,
    frozen,
    generator_for,
    report,
    squared_error,
)


def draw_any_level(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Teacher steps 1..n (B,), uniformly: a self-teacher is asked inside every group."""
    device = generator.device
    return torch.randint(1, phase.teacher_steps + 1, (batch,), generator=generator, device=device)


def draw_group_start(phase: Phase, batch: int, generator: torch.Generator) -> Tensor:
    """Noisy ends of groups (B,), uniformly: all that is asked of a student of fixed teachers."""
    device = generator.device
    group = torch.randint(1, phase.student_steps + 1, (batch,), generator=generator, device=device)
    return group * phase.segment


class Method(NamedTuple):
    """Who makes the second hop, and where the student must be taught for that."""

    name: str
    second_hop: Callable[[Denoise, Denoise], Denoise]  # of (teacher, self_teacher)
    draw: Callable[[Phase, int, torch.Generator], Tensor]
    check: Callable[[Sequence[Phase]], None]


def _any_phases(phases: Sequence[Phase]) -> None:
    pass


def _halving_phases(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.segment != 2:
            raise ValueError(
                f"BTD halves the steps in every phase, and {phase} does not: use "
                "halving_schedule(T), or method 'TRACT'"
            )


def _one_phase(phases: Sequence[Phase]) -> None:
    if len(phases) != 1 or phases[0].student_steps != 1:
        raise ValueError(
            "consistency distillation has one phase, straight to 1 step: use step_schedule "
            f"[{phases[0].grid_steps}, 1], or method 'TRACT'"
        )


# Salimans & Ho 2022, algorithm 2: the student matches two steps of the teacher.
BTD = Method("BTD", lambda teacher, self_teacher: teacher, draw_group_start, _halving_phases)
# Paper, algorithm 1: the student's own running average finishes the group, however long.
TRACT = Method("TRACT", lambda teacher, self_teacher: self_teacher, draw_any_level, _any_phases)
# Song et al. 2023, algorithm 2: that same thing in its corner, one group T > 1.
CONSISTENCY = TRACT._replace(name="consistency", check=_one_phase)

METHODS = {method.name: method for method in (BTD, TRACT, CONSISTENCY)}


# Heun's x0 mixes in the second evaluation with half the ratio of sigma / alpha at both ends. From
# the 22,026 of the cosine levels' noisiest that is useless; karras have 80, ddpm_linear 157.
HEUN_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class Distillation(Training):
    """Settings of a distillation; images are divided equally among the phases."""

    step_schedule: tuple[int, ...]  # such as (1024, 32, 1), from the teacher's grid
    method: str = "TRACT"  # a name in METHODS
    teacher_step: str = "ddim"  # or "heun", two evaluations a step
    self_ema: float = 0.5  # mu_S, the decay of the self-teacher
    clamp: bool = True  # clamp predictions to [-1, 1] in targets; for images

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.step_schedule, list | tuple):
            raise ValueError(
                f"step_schedule is {self.step_schedule!r}: use a list of steps, such as [1024, 1]"
            )
        object.__setattr__(self, "step_schedule", tuple(self.step_schedule))
        check_choice("method", self.method, METHODS)
        check_choice("teacher_step", self.teacher_step, X0_ESTIMATES)
        if not (is_number(self.self_ema) and 0 <= self.self_ema < 1):
            raise ValueError(f"self_ema is {self.self_ema!r}: use 0 or more and less than 1")
        check_flag("clamp", self.clamp)
        phases = parse_schedule(self.step_schedule, (self.step_schedule or (1024,))[0])
        METHODS[self.method].check(phases)
        if self.steps_per_phase < 1:
            raise ValueError(
                f"images is {self.images}, less than one batch of {self.batch} for each of "
                f"{len(phases)} phases: use {self.batch * len(phases)} or more"
            )

    @property
    def phases(self) -> str:
        """The schedule as the paper writes it: 1024>32>1."""
        return ">".join(map(str, self.step_schedule))

    @property
    def num_phases(self) -> int:
        return len(self.step_schedule) - 1

    @property
    def steps_per_phase(self) -> int:
        return self.images // (self.batch * self.num_phases)

    @property
    def num_steps(self) -> int:
        return self.steps_per_phase * self.num_phases


@dataclass
class DistillationState:
    """All that changes in a distillation. The first teacher is any denoiser, even an oracle."""

    teacher: Denoise
    student: Denoiser
    self_teacher: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    phase: int = 0
    step: int = 0  # over all phases

    def modules(self) -> dict[str, nn.Module]:
        """Networks to save; the first phase's teacher is given from outside and never changes."""
        networks = {"student": self.student, "self_teacher": self.self_teacher, "ema": self.ema}
        return networks | ({"teacher": self.teacher} if self.phase > 0 else {})

    def counters(self) -> dict[str, int]:
        return {"phase": self.phase, "step": self.step}

    def restore_counters(self, counters: dict[str, int]) -> None:
        self.phase, self.step = counters["phase"], counters["step"]
        if self.phase > 0:
            self.teacher = frozen(self.ema)  # a network to load the saved teacher into


def start_distillation(
    teacher: Denoise, settings: Distillation, student: Denoiser | None = None
) -> DistillationState:
    """State at step 0. Everything starts from the teacher, or from a student of another network.

    A teacher that is no network, such as an exact oracle, needs a student to start from.
    """
    if student is None and not isinstance(teacher, Denoiser):
        raise ValueError("this teacher is no network to start from: give a student")
    start = frozen(student or teacher)
    if isinstance(teacher, nn.Module):
        teacher = frozen(teacher)
    learner = frozen(start).requires_grad_(True)
    optimizer = torch.optim.Adam(learner.parameters(), lr=settings.learning_rate)
    return DistillationState(teacher, learner, frozen(start), start, optimizer)


def start_next_phase(state: DistillationState, settings: Distillation) -> None:
    """The inference average becomes the teacher, from which everything starts afresh."""
    state.phase += 1
    state.teacher = frozen(state.ema)
    for network in (state.student, state.self_teacher):
        network.load_state_dict(state.ema.state_dict())
    state.optimizer = torch.optim.Adam(state.student.parameters(), lr=settings.learning_rate)


@torch.no_grad()
def closure_target(
    teacher: Denoise,
    second: Denoise,
    x_t: Tensor,
    t: Level,
    u: Level,
    s: Level,
    labels: Tensor | None = None,
    x0_estimate: X0Estimate = ddim_x0,
) -> Tensor:
    """x0 (B, ...) that leads from t to s in one step, as the hops t -> u and u -> s do in two.

    Paper eq. 8 and 9 for VP, 14 and 15 for VE; with the teacher as `second` it is BTD's target.
    Where u = s it is the teacher's x0.
    """
    x0_first = x0_estimate(teacher, x_t, t, u, labels)
    x0_second = second(ddim_step(x_t, x0_first, t, u), u, labels)
    return torch.lerp(x0_second, x0_first, broadcast(closure_weight(t, u, s), x_t))


def distill(
    state: DistillationState, data: Data, levels: Level, settings: Distillation
) -> Iterator[Record]:
    """Distil through all phases; yields one record per step, state.ema is the result.

    data: samples to noise, as the teacher saw them. levels: the first teacher's grid. Paper,
    algorithm 1. ValueError, at once, if schedule, grid, data and network do not fit.
    """
    phases = parse_schedule(settings.step_schedule, levels.num_steps)
    data.check_batch(settings.batch)
    check_student(state.student, data)
    noisiest = (levels.sigma[-1] / levels.alpha[-1]).item()
    if settings.teacher_step == "heun" and noisiest > HEUN_LIMIT:
        raise ValueError(
            f"teacher_step is 'heun', and at the noisiest level sigma / alpha is {noisiest:,.0f}, "
            "where Heun's step multiplies the teacher's errors by thousands: use karras or "
            "ddpm_linear levels, or teacher_step 'ddim'"
        )
    return _distillation_steps(state, data, levels, settings, phases)


def _distillation_steps(
    state: DistillationState,
    data: Data,
    levels: Level,
    settings: Distillation,
    phases: Sequence[Phase],
) -> Iterator[Record]:
    device = data.samples.device
    levels, weight = levels.to(device), WEIGHTS[settings.weight]
    method, x0_estimate = METHODS[settings.method], X0_ESTIMATES[settings.teacher_step]
    limit = clamped if settings.clamp else (lambda denoise: denoise)
    decay = decay_from_residual(settings.ema_residual, settings.steps_per_phase)
    done = state.step - state.phase * settings.steps_per_phase
    if not 0 <= done <= settings.steps_per_phase or state.phase >= len(phases):
        raise ValueError(
            f"the state is in phase {state.phase + 1} after {state.step} steps, but these settings "
            f"have {len(phases)} phases of {settings.steps_per_phase} steps: keep images, batch "
            "and step_schedule"
        )
    while state.step < settings.num_steps:
        if state.step == (state.phase + 1) * settings.steps_per_phase:
            start_next_phase(state, settings)
        phase = phases[state.phase]
        generator = generator_for(device, settings.seed, DISTILLATION, state.step)
        x0, labels = data.batch(settings.batch, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        first = method.draw(phase, settings.batch, generator)
        i_u, i_s = first - 1, (first - 1) // phase.segment * phase.segment
        t, u, s = (levels[i * phase.stride] for i in (first, i_u, i_s))

        x_t = add_noise(x0, eps, t)
        second = method.second_hop(limit(state.teacher), limit(state.self_teacher))
        target = closure_target(limit(state.teacher), second, x_t, t, u, s, labels, x0_estimate)
        error = squared_error(state.student, x_t, t, target, labels)
        loss = (error * weight(t, state.student.sigma_data).to(error)).mean()
        descend(loss, state, settings)
        state.step += 1
        update = state.step - state.phase * settings.steps_per_phase
        ema_update(state.self_teacher, state.student, bias_corrected(settings.self_ema, update))
        ema_update(state.ema, state.student, bias_corrected(decay, update))
        yield report(state, settings, loss, error, str(phase))
