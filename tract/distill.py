"""Distillation by phases: BTD, TRACT and consistency distillation as one loop.

In a phase n>m the student learns to cross a group of n / m teacher steps in one. In a phase of
equal steps, n>n, a student of another network learns the teacher's own steps and goes on from
there in its place. While the teacher's grid grows, k<n>m, the student and its averages go on as
they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tract.base.compute import EAGER, Compute, matmul_precision, prepare_network, with_precision
from tract.base.parallel import check_share, shard, world_size
from tract.data import Data
from tract.denoiser import Denoise, Denoiser, clamped
from tract.ema import bias_corrected, decay_from_residual, ema_updater
from tract.levels import Level
from tract.losses import WEIGHTS, loss_of, squared_error
from tract.methods import METHODS, closure_target
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
from tract.phases import Phase, equal_steps, parse_schedule
from tract.records import Record
from tract.samplers import SOLVERS, ddim_x0
from tract.seeds import Stream, generator_for
from tract.settings import Distillation
from tract.step import add_noise

# Heun's x0 mixes in the second evaluation with half the ratio of sigma / alpha at both ends. From
# the 22,026 of the cosine levels' noisiest that is useless; karras have 80, ddpm_linear 157.
HEUN_LIMIT = 1000


@dataclass
class DistillationState:
    """All that changes in a distillation. The first teacher is any denoiser, even an oracle."""

    teacher: Denoise
    student: Denoiser
    self_teacher: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    new_student: Denoiser | None = None  # what student and averages start from ...
    swap_phase: int = 0  # ... in this phase, in place of the teacher; 0 if there is none
    phase: int = 0
    step: int = 0  # over all phases
    averages: list[Denoiser] = field(default_factory=list)  # with settings.more_residuals

    def modules(self) -> dict[str, nn.Module]:
        """Networks to save; the first phase's teacher is given from outside and never changes."""
        networks = {"student": self.student, "self_teacher": self.self_teacher, "ema": self.ema}
        networks |= {f"average_{i}": average for i, average in enumerate(self.averages)}
        return networks | ({"teacher": self.teacher} if self.phase > 0 else {})

    def counters(self) -> dict[str, int]:
        return {"phase": self.phase, "step": self.step}

    def restore_counters(self, counters: dict[str, int]) -> None:
        """Take the networks that phase has, with weights that are still to be loaded."""
        for phase in (self.swap_phase, counters["phase"]):  # the others change no network
            if self.phase < phase <= counters["phase"]:
                self.phase = phase - 1
                start_next_phase(self)
        self.step = counters["step"]


def start_distillation(
    teacher: Denoise, settings: Distillation, student: Denoiser | None = None
) -> DistillationState:
    """State at step 0. Everything starts from the teacher, or from a student of another network.

    student: takes over in the phase of equal steps, or without one at once: it should then know
    the data. ValueError where a student is
    missing: for a teacher that is not a network, such as an oracle, or for equal steps.
    """
    swap_phase = equal_steps(settings.phases)
    if student is None and swap_phase is not None:
        raise ValueError(
            f"{settings.phases[swap_phase]} shortens nothing, a changed network starts there: give "
            "a student, or omit the repeated entry"
        )
    start, new_student = (teacher, frozen(student)) if swap_phase else (student or teacher, None)
    if not isinstance(start, Denoiser):
        raise ValueError(
            "this teacher is not a network to start from: give a student, and let it take over in "
            "the first phase"
        )
    if isinstance(teacher, nn.Module):
        teacher = frozen(teacher)
    learner = frozen(start).requires_grad_(True)
    optimizer = adam(learner, settings.learning_rate)
    networks = learner, frozen(start), frozen(start)
    state = DistillationState(teacher, *networks, optimizer, new_student, swap_phase or 0)
    state.averages = [frozen(start) for _ in settings.more_residuals]
    return state


def start_next_phase(state: DistillationState, phase_change: str = "restart") -> None:
    """The inference average becomes the teacher, from which everything starts afresh.

    Or all else carries on. In its phase everything but the teacher starts from the new student.
    """
    state.phase += 1
    state.teacher = frozen(state.ema)
    if phase_change == "carry_on" and state.phase != state.swap_phase:
        return
    start = state.new_student if state.phase == state.swap_phase else state.teacher
    state.student = frozen(start).requires_grad_(True)
    state.self_teacher, state.ema = frozen(start), frozen(start)
    state.averages = [frozen(start) for _ in state.averages]
    state.optimizer = adam(state.student, state.optimizer.defaults["lr"])


def distill(
    state: DistillationState,
    data: Data,
    levels: Level,
    settings: Distillation,
    compute: Compute = EAGER,
) -> Iterator[Record]:
    """Distil through all phases; yields one record per step, state.ema is the result.

    data: samples to noise, as the teacher saw them. levels: the first teacher's grid. Paper,
    algorithm 1. ValueError, at once, if schedule, grid, data and networks do not fit, or
    processes cannot share a batch. FloatingPointError where a loss is not a number, see
    `train.checked`.
    """
    phases = parse_schedule(settings.step_schedule, levels.num_steps)  # which also checks T
    data.check_batch(settings.batch_size)
    check_share(settings.batch_size, world_size())
    noisiest = (levels.sigma[-1] / levels.alpha[-1]).item()
    _check_learner(state.student, data, phases[state.phase :], noisiest)
    if state.phase < state.swap_phase:
        _check_learner(state.new_student, data, phases[state.swap_phase :], noisiest)
    check_solver(settings.solver, levels)
    for network in (*vars(state).values(), *state.averages):
        if isinstance(network, Denoiser):
            prepare_network(network, compute)
    records = _distillation_steps(state, data, levels, settings, compute)
    records = name_micro_batch(records, state, data, settings, compute)
    return check_losses(records, settings)


def check_solver(solver: str, levels: Level) -> None:
    """ValueError where levels are too noisy for the teacher to step between them as it should."""
    noisiest = (levels.sigma[-1] / levels.alpha[-1]).item()
    if solver == "heun" and noisiest > HEUN_LIMIT:
        raise ValueError(
            f"solver is 'heun', and at the noisiest level sigma / alpha is {noisiest:,.0f}, "
            "where Heun's step multiplies the teacher's errors by thousands: use karras or "
            "ddpm_linear levels, or solver 'ddim'"
        )


def _check_learner(student: Denoiser, data: Data, phases: Sequence[Phase], noisiest: float) -> None:
    """ValueError if a student does not fit the data, or is none for few steps."""
    check_student(student, data)
    if student.prediction == "eps" and any(phase.segment > 1 for phase in phases):
        raise ValueError(
            "the student predicts eps, and fewer steps rely on the noisiest level, where an error "
            f"in eps is multiplied by sigma / alpha, {noisiest:,.0f}: give student 'v' or 'x0', "
            "and repeat the first entry of step_schedule, so that it learns the teacher's own "
            "steps before it shortens them"
        )


def _distillation_steps(
    state: DistillationState, data: Data, levels: Level, settings: Distillation, compute: Compute
) -> Iterator[Record]:
    settings.check_place("the state", state.step, state.phase)
    levels = levels.to(data.samples.device)
    while state.step < settings.num_steps:
        if state.step == (state.phase + 1) * settings.steps_per_phase:
            start_next_phase(state, settings.phase_change)
        yield from _phase_steps(state, data, levels, settings, compute)


def _phase_steps(
    state: DistillationState, data: Data, levels: Level, settings: Distillation, compute: Compute
) -> Iterator[Record]:
    """The steps of the present phase that are still to be made: paper, algorithm 1."""
    device, draw, weight = (
        levels.sigma.device,
        METHODS[settings.method].draw,
        WEIGHTS[settings.loss_weight],
    )
    student, sigma_data = with_precision(state.student, compute), state.student.sigma_data
    target_of, update_averages = phase_target(state, settings, compute), _averages(state, settings)
    loss_of_error = loss_of(settings.loss, settings.loss_reduction, math.prod(data.shape))
    begin = state.phase * settings.steps_per_phase
    while (done := state.step - begin) < settings.steps_per_phase:
        part = settings.phases[state.phase].part_at(done, settings.steps_per_phase)
        generator = generator_for(device, settings.seed, Stream.DISTILLATION, state.step)
        x0, labels = data.batch(settings.batch_size, generator)  # (B, ...), (B,) or None
        eps = torch.randn(x0.shape, generator=generator, device=device)
        first = draw(part, settings.batch_size, generator)  # teacher steps, (B,) in 1..n
        batch = shard(x0, labels, eps, first)
        losses = 0
        state.optimizer.zero_grad(set_to_none=True)
        with matmul_precision(compute):
            for x0, labels, eps, first in compute.parts(*batch):  # b of the B rows
                t, u, s = (levels[i] for i in part.hops(first))  # (b,) each, t noisiest
                x_t = add_noise(x0, eps, t)  # (b, ...)
                target = target_of(x_t, t, u, s, labels, x0=x0)  # eq. 8 and 9, or 14 and 15
                error = squared_error(student, x_t, t, target, labels)  # (b,)
                loss = weight(t, u, sigma_data).to(error) * loss_of_error(error)
                losses = losses + backward(loss, error, settings.batch_size)
        numbers = optimizer_step(losses, state, settings)
        state.step += 1
        update_averages()
        yield report(state, settings, numbers, str(part))


def phase_target(
    state: DistillationState, settings: Distillation, compute: Compute = EAGER
) -> Callable[..., Tensor]:
    """The target of the present phase, as a function of x_t, t, u, s, labels and x0=x0."""
    teacher, second = (
        with_precision(network, compute) for network in (state.teacher, state.self_teacher)
    )
    teacher = clamped(teacher) if settings.clamp == "all" else teacher
    second = clamped(second) if settings.clamp != "none" else second
    phase, method = settings.phases[state.phase], METHODS[settings.method]
    second = method.second_hop(teacher, second) if phase.segment > 1 else None
    # A student, which later phases have for a teacher, knows where its own DDIM step is to lead;
    # it has no slope that Heun's method could average.
    solver = SOLVERS[settings.solver] if state.phase == 0 else ddim_x0
    return partial(closure_target, teacher, second, solver=method.first_hop or solver)


def _averages(state: DistillationState, settings: Distillation) -> Callable[[], None]:
    """A function that updates the averages of this phase after a step."""
    update_self_teacher = ema_updater(state.self_teacher, state.student)
    residuals = (settings.ema_residual, *settings.more_residuals)
    updaters = [
        (ema_updater(network, state.student), decay_from_residual(r, settings.steps_per_phase))
        for network, r in zip((state.ema, *state.averages), residuals, strict=True)
    ]
    begun = state.phase  # the phase in which these networks started afresh
    if settings.phase_change == "carry_on":
        begun = state.swap_phase if state.phase >= state.swap_phase else 0

    def update() -> None:
        updates = state.step - begun * settings.steps_per_phase
        update_self_teacher(bias_corrected(settings.self_ema, updates))
        for update_ema, decay in updaters:
            update_ema(bias_corrected(decay, updates))

    return update
