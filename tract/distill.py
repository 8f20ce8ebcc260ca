"""Distillation in phases: one loop for BTD, TRACT and consistency distillation.

In a phase n>m the student learns to cross a group of n / m teacher steps in one step. In a phase
n>n a student with another network learns the teacher's own steps and then replaces it. In a phase
k<n>m the teacher's grid grows from k to n steps; the student and its averages continue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tract.base.compute import EAGER, Compute, with_precision
from tract.data import Data
from tract.denoiser import Denoise, Denoiser, clamped
from tract.ema import bias_corrected, decay_from_residual, ema_updater
from tract.levels import Level
from tract.methods import METHODS, closure_target
from tract.optimize import adam, check_fits, frozen, guarded, stepper
from tract.phases import Phase, equal_steps, parse_schedule
from tract.records import Record
from tract.samplers import SOLVERS, ddim_x0
from tract.seeds import Stream
from tract.settings import Distillation
from tract.step import add_noise

# Heun weighs its second evaluation by half the ratio of sigma / alpha at the two ends. Starting
# at 22,026 (cosine levels) that is useless; karras levels start at 80, ddpm_linear at 157.
HEUN_LIMIT = 1000


@dataclass
class DistillationState:
    """All mutable state of a distillation. The first teacher is any denoiser, even an oracle."""

    teacher: Denoise
    student: Denoiser
    self_teacher: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    new_student: Denoiser | None = None  # the network that student and averages change to
    swap_phase: int = 0  # the phase in which they change; 0 for none
    phase: int = 0
    step: int = 0  # over all phases
    averages: list[Denoiser] = field(default_factory=list)  # for settings.more_residuals

    def modules(self) -> dict[str, nn.Module]:
        """Networks to save; the first phase's teacher comes from outside and never changes."""
        networks = {"student": self.student, "self_teacher": self.self_teacher, "ema": self.ema}
        networks |= {f"average_{i}": average for i, average in enumerate(self.averages)}
        return networks | ({"teacher": self.teacher} if self.phase > 0 else {})

    def counters(self) -> dict[str, int]:
        return {"phase": self.phase, "step": self.step}

    def restore_counters(self, counters: dict[str, int]) -> None:
        """Recreate the networks of that phase; their weights are loaded afterwards."""
        for phase in (self.swap_phase, counters["phase"]):  # others keep their networks
            if self.phase < phase <= counters["phase"]:
                self.phase = phase - 1
                start_next_phase(self)
        self.step = counters["step"]


def start_distillation(
    teacher: Denoise, settings: Distillation, student: Denoiser | None = None
) -> DistillationState:
    """Return the state at step 0, with all networks copied from the teacher or from student.

    student: takes over in the phase of equal steps; without one it starts at once, already trained.
    Raises ValueError if it is missing: for equal steps, or if the teacher is not a network.
    """
    swap_phase = equal_steps(settings.phases)
    if student is None and swap_phase is not None:
        raise ValueError(
            f"{settings.phases[swap_phase]} repeats a number of steps, which only a change "
            "of network needs: give a student, or omit the repeated entry"
        )
    start, new_student = (teacher, frozen(student)) if swap_phase else (student or teacher, None)
    if not isinstance(start, Denoiser):
        raise ValueError(
            "this teacher is not a network to start from: give a student that takes over in the "
            "first phase"
        )
    networks = _networks(start, settings.learning_rate, len(settings.more_residuals))
    teacher = frozen(teacher) if isinstance(teacher, nn.Module) else teacher
    return DistillationState(
        teacher, **networks, new_student=new_student, swap_phase=swap_phase or 0
    )


def _networks(start: Denoiser, learning_rate: float, num_averages: int) -> dict:
    """Return student, optimizer and averages for a DistillationState, with the weights of start."""
    student = frozen(start).requires_grad_(True)
    return {
        "student": student,
        "self_teacher": frozen(start),
        "ema": frozen(start),
        "optimizer": adam(student, learning_rate),
        "averages": [frozen(start) for _ in range(num_averages)],
    }


def start_next_phase(state: DistillationState, phase_change: str = "restart") -> None:
    """Make the inference average the teacher, and restart everything else from it.

    "carry_on" replaces the teacher only. In the swap phase the rest starts from new_student.
    """
    state.phase += 1
    state.teacher = frozen(state.ema)
    swaps = state.phase == state.swap_phase
    if swaps or phase_change == "restart":
        start = state.new_student if swaps else state.teacher
        learning_rate = state.optimizer.defaults["lr"]
        vars(state).update(_networks(start, learning_rate, len(state.averages)))


def distill(
    state: DistillationState,
    data: Data,
    levels: Level,
    settings: Distillation,
    compute: Compute = EAGER,
) -> Iterator[Record]:
    """Distil through all phases; yields one record per step, and state.ema is the result.

    data: samples like those the teacher was trained on. levels: the first teacher's grid. Paper,
    algorithm 1. Raises ValueError at once if schedule, grid, data and networks do not fit together;
    other errors are raised as by `guarded`.
    """
    phases = parse_schedule(settings.step_schedule, levels.num_steps)  # which also checks T
    _check_prediction(state.student, phases[state.phase :], levels)
    if state.phase < state.swap_phase:
        check_fits(getattr(state.new_student, "config", None), data)
        _check_prediction(state.new_student, phases[state.swap_phase :], levels)
    check_solver(settings.solver, levels)
    return guarded(_distillation_steps, state, data, levels, settings, compute)


def check_solver(solver: str, levels: Level) -> None:
    """Raise ValueError if the levels are too noisy for the teacher to use this solver."""
    ratio = (levels.sigma[-1] / levels.alpha[-1]).item()
    if solver == "heun" and ratio > HEUN_LIMIT:
        raise ValueError(
            f"solver is 'heun', and sigma / alpha is {ratio:,.0f} at the noisiest level, so that "
            "Heun's step multiplies the teacher's errors by thousands: use karras or "
            "ddpm_linear levels, or solver 'ddim'"
        )


def _check_prediction(student: Denoiser, phases: Sequence[Phase], levels: Level) -> None:
    """Raise ValueError if a student that predicts eps is to take fewer steps than its teacher."""
    ratio = (levels.sigma[-1] / levels.alpha[-1]).item()
    if student.prediction == "eps" and any(phase.segment > 1 for phase in phases):
        raise ValueError(
            "the student predicts eps, but few-step sampling depends on the noisiest level, where "
            f"errors in eps are multiplied by sigma / alpha, {ratio:,.0f}: give student 'v' or "
            "'x0', and repeat the first entry of step_schedule, so that it learns the teacher's "
            "own steps first"
        )


def _distillation_steps(
    state: DistillationState, data: Data, levels: Level, settings: Distillation, compute: Compute
) -> Iterator[Record]:
    settings.check_step("the state", state.step, state.phase)
    levels = levels.to(data.samples.device)
    while state.step < settings.num_steps:
        if state.step == (state.phase + 1) * settings.steps_per_phase:
            start_next_phase(state, settings.phase_change)
        yield from _phase_steps(state, data, levels, settings, compute)


def _phase_steps(
    state: DistillationState, data: Data, levels: Level, settings: Distillation, compute: Compute
) -> Iterator[Record]:
    """The remaining steps of the current phase: paper, algorithm 1."""
    steps, draw = settings.steps_per_phase, METHODS[settings.method].draw
    step = stepper(state, data, settings, compute, Stream.DISTILLATION)
    target_of, update_averages = phase_target(state, settings, compute), _averages(state, settings)

    def example(phase: Phase, x0, labels, eps, i):  # i: teacher steps (b,) in 1..n
        t, u, s = (levels[index] for index in phase.hops(i))  # (b,) each, t noisiest
        x_t = add_noise(x0, eps, t)  # (b, ...)
        return x_t, t, u, target_of(x_t, t, u, s, labels, x0=x0)  # eq. 8 and 9, or 14 and 15

    while (done := state.step - state.phase * steps) < steps:
        phase = settings.phases[state.phase].part_at(done, steps)
        draw_steps = partial(draw, phase, settings.batch_size)
        record = step(draw_steps, partial(example, phase), str(phase))
        update_averages()
        yield record


def phase_target(
    state: DistillationState, settings: Distillation, compute: Compute = EAGER
) -> Callable[..., Tensor]:
    """Return the target of the current phase as a function of x_t, t, u, s, labels and x0=x0."""
    teacher = with_precision(state.teacher, compute)
    teacher = clamped(teacher) if settings.clamp == "all" else teacher
    self_teacher = with_precision(state.self_teacher, compute)
    self_teacher = clamped(self_teacher) if settings.clamp != "none" else self_teacher
    phase, method = settings.phases[state.phase], METHODS[settings.method]
    second = method.second_hop(teacher, self_teacher) if phase.segment > 1 else None
    # In later phases the teacher is a student, trained for DDIM steps: its predictions are not
    # slopes of the ODE, which Heun's method would average.
    solver = SOLVERS[settings.solver] if state.phase == 0 else ddim_x0
    return partial(closure_target, teacher, second, solver=method.first_hop or solver)


def _averages(state: DistillationState, settings: Distillation) -> Callable[[], None]:
    """Return a function that updates the averages of this phase after a step."""
    steps = settings.steps_per_phase
    residuals = (settings.ema_residual, *settings.more_residuals)
    decays = [settings.self_ema, *(decay_from_residual(r, steps) for r in residuals)]
    averages = (state.self_teacher, state.ema, *state.averages)
    updaters = [ema_updater(average, state.student) for average in averages]
    begun = state.phase  # the phase in which these networks started
    if settings.phase_change == "carry_on":
        begun = state.swap_phase if state.phase >= state.swap_phase else 0

    def update() -> None:
        for update_average, decay in zip(updaters, decays, strict=True):
            update_average(bias_corrected(decay, state.step - begun * steps))

    return update
