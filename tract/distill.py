"""Distillation by phases: BTD, TRACT and consistency distillation as one loop.

In a phase n>m the student learns to cross a group of n / m teacher steps in one. In a phase of
equal steps, n>n, a student of another network learns the teacher's own steps and goes on from
there in its place. While the teacher's grid grows, k<n>m, the student and its averages go on as
they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from tract.base.compute import EAGER, Compute, arrange, computed, float32_products
from tract.base.parallel import check_share, own_rows, world_size
from tract.data import Data
from tract.denoiser import Denoise, Denoiser, clamped
from tract.ema import bias_corrected, decay_from_residual, follower
from tract.growth import Progress, grown
from tract.levels import Level
from tract.losses import WEIGHTS, squared_error
from tract.methods import METHODS, closure_target
from tract.optimize import adam, check_student, checked, descend, frozen, learn, report
from tract.phases import Phase, equal_steps, parse_schedule
from tract.records import Record
from tract.samplers import X0_ESTIMATES, ddim_x0
from tract.seeds import DISTILLATION, generator_for
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
    newcomer: Denoiser | None = None  # what student and averages start from ...
    takeover: int = 0  # ... in this phase, in place of the teacher; 0 if there is none
    phase: int = 0
    step: int = 0  # over all phases
    progress: Progress = field(default_factory=Progress)  # through this phase's growing grids

    def modules(self) -> dict[str, nn.Module]:
        """Networks to save; the first phase's teacher is given from outside and never changes."""
        networks = {"student": self.student, "self_teacher": self.self_teacher, "ema": self.ema}
        return networks | ({"teacher": self.teacher} if self.phase > 0 else {})

    def counters(self) -> dict[str, float]:
        return {"phase": self.phase, "step": self.step, **asdict(self.progress)}

    def restore_counters(self, counters: dict[str, float]) -> None:
        """Take the networks that phase has, with weights that are still to be loaded."""
        for phase in (self.takeover, counters["phase"]):  # the others change no network
            if self.phase < phase <= counters["phase"]:
                self.phase = phase - 1
                start_next_phase(self)
        self.step = counters["step"]
        self.progress = Progress(**{name: counters[name] for name in asdict(self.progress)})


def start_distillation(
    teacher: Denoise, settings: Distillation, student: Denoiser | None = None
) -> DistillationState:
    """State at step 0. Everything starts from the teacher, or from a student of another network.

    student: takes over in the phase of equal steps, or without one at once: it should then know
    the data. ValueError where a student is
    missing: for a teacher that is no network, such as an oracle, or for equal steps.
    """
    phases = parse_schedule(settings.step_schedule)
    takeover = equal_steps(phases)
    if student is None and takeover is not None:
        raise ValueError(
            f"{phases[takeover]} shortens nothing, another network is to take over there: give a "
            "student, or leave out what repeats"
        )
    start, newcomer = (teacher, frozen(student)) if takeover else (student or teacher, None)
    if not isinstance(start, Denoiser):
        raise ValueError(
            "this teacher is no network to start from: give a student, and let it take over in "
            "the first phase"
        )
    if isinstance(teacher, nn.Module):
        teacher = frozen(teacher)
    learner = frozen(start).requires_grad_(True)
    optimizer = adam(learner, settings.learning_rate)
    networks = learner, frozen(start), frozen(start)
    return DistillationState(teacher, *networks, optimizer, newcomer, takeover or 0)


def start_next_phase(state: DistillationState) -> None:
    """The inference average becomes the teacher, from which everything starts afresh.

    Everything but the teacher starts from the newcomer instead, where it takes over.
    """
    state.phase += 1
    state.progress = Progress()
    state.teacher = frozen(state.ema)
    start = state.newcomer if state.phase == state.takeover else state.teacher
    state.student = frozen(start).requires_grad_(True)
    state.self_teacher, state.ema = frozen(start), frozen(start)
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
    processes cannot share a batch. FloatingPointError where a loss is no number, see
    `train.checked`.
    """
    phases = parse_schedule(settings.step_schedule, levels.num_steps)
    data.check_batch(settings.batch)
    check_share(settings.batch, world_size())
    noisiest = (levels.sigma[-1] / levels.alpha[-1]).item()
    _check_learner(state.student, data, phases[state.phase :], noisiest)
    if state.phase < state.takeover:
        _check_learner(state.newcomer, data, phases[state.takeover :], noisiest)
    check_teacher_step(settings.teacher_step, levels)
    for network in vars(state).values():
        if isinstance(network, Denoiser):
            arrange(network, compute)
    return checked(_distillation_steps(state, data, levels, settings, phases, compute), settings)


def check_teacher_step(teacher_step: str, levels: Level) -> None:
    """ValueError where levels are too noisy for the teacher to step between them as it should."""
    noisiest = (levels.sigma[-1] / levels.alpha[-1]).item()
    if teacher_step == "heun" and noisiest > HEUN_LIMIT:
        raise ValueError(
            f"teacher_step is 'heun', and at the noisiest level sigma / alpha is {noisiest:,.0f}, "
            "where Heun's step multiplies the teacher's errors by thousands: use karras or "
            "ddpm_linear levels, or teacher_step 'ddim'"
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
    state: DistillationState,
    data: Data,
    levels: Level,
    settings: Distillation,
    phases: Sequence[Phase],
    compute: Compute,
) -> Iterator[Record]:
    done = state.step - state.phase * settings.steps_per_phase
    if (
        not 0 <= done <= settings.steps_per_phase
        or state.phase >= len(phases)
        or state.progress.part >= len(phases[state.phase].parts)
    ):
        raise ValueError(
            f"the state is in phase {state.phase + 1} after {state.step} steps, on its grid "
            f"{state.progress.part + 1}, but these settings have {len(phases)} phases of "
            f"{settings.steps_per_phase} steps: keep images, batch and step_schedule"
        )
    levels = levels.to(data.samples.device)
    while state.step < settings.num_steps:
        if state.step == (state.phase + 1) * settings.steps_per_phase:
            start_next_phase(state)
        yield from _phase_steps(state, data, levels, settings, phases[state.phase], compute)


def _phase_steps(
    state: DistillationState,
    data: Data,
    levels: Level,
    settings: Distillation,
    phase: Phase,
    compute: Compute,
) -> Iterator[Record]:
    """The steps of a phase that are still to be made."""
    device, weight, method = levels.sigma.device, WEIGHTS[settings.weight], METHODS[settings.method]
    student, sigma_data = computed(state.student, compute), state.student.sigma_data
    teacher, second = (
        computed(network, compute) for network in (state.teacher, state.self_teacher)
    )
    if settings.clamp:
        teacher, second = clamped(teacher), clamped(second)
    second = method.second_hop(teacher, second) if phase.segment > 1 else None
    # A student, which later phases have for a teacher, knows where its own DDIM step is to lead;
    # it has no slope that Heun's method could average.
    x0_estimate = X0_ESTIMATES[settings.teacher_step] if state.phase == 0 else ddim_x0
    average = _averages(state, settings)
    grids = [part.teacher_steps for part in phase.parts]
    begin = state.phase * settings.steps_per_phase
    while state.step < begin + settings.steps_per_phase:
        part = phase.parts[state.progress.part]
        generator = generator_for(device, settings.seed, DISTILLATION, state.step)
        x0, labels = data.batch(settings.batch, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        batch = own_rows(x0, labels, eps, method.draw(part, settings.batch, generator))
        losses, rows = 0, len(batch[0])
        state.optimizer.zero_grad(set_to_none=True)
        with float32_products(compute):
            for x0, labels, eps, first in compute.parts(*batch):
                i_u, i_s = first - 1, (first - 1) // part.segment * part.segment
                t, u, s = (levels[i * part.stride] for i in (first, i_u, i_s))
                x_t = add_noise(x0, eps, t)
                target = closure_target(teacher, second, x_t, t, u, s, labels, x0_estimate)
                error = squared_error(student, x_t, t, target, labels)
                losses = losses + learn(error, weight(t, sigma_data), rows)
        numbers = descend(losses, state, settings)
        state.step += 1
        at = settings.growth, grids, state.step - begin, settings.steps_per_phase
        state.progress = grown(*at, state.progress, losses[0])
        average()
        yield report(state, settings, numbers, str(part))


def _averages(state: DistillationState, settings: Distillation) -> Callable[[], None]:
    """A function that moves the averages of this phase after a step."""
    self_teacher = follower(state.self_teacher, state.student)
    ema = follower(state.ema, state.student)
    decay = decay_from_residual(settings.ema_residual, settings.steps_per_phase)
    begin = begun = state.phase * settings.steps_per_phase
    if not settings.restart_ema:  # then from where this network began
        takeover = state.takeover if state.phase >= state.takeover else 0
        begun = takeover * settings.steps_per_phase

    def move() -> None:
        self_teacher(bias_corrected(settings.self_ema, state.step - begin))
        ema(bias_corrected(decay, state.step - begun))

    return move
