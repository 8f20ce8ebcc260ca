"""Cheap diagnostics of a distillation in progress.

All of it is of noise and data that stay the same, and changes nothing of the run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tract.base.compute import EAGER, matmul_precision
from tract.denoiser import Denoiser
from tract.distill import DistillationState, phase_target
from tract.experiments.experiment import TEACHER, Experiment
from tract.experiments.measure import Distance, saved_samples
from tract.losses import squared_error
from tract.metrics.samples import sample_batches
from tract.seeds import SAMPLES, generator_for
from tract.settings import Distillation
from tract.step import add_noise

PLACES = 8  # noise levels at which errors are asked
IMAGES = 4  # for each of them
MOST_STEPS = 8  # of a sampler: a student of more is sampled in fewer


@torch.no_grad()
@matmul_precision(EAGER)
def target_errors(
    experiment: Experiment, settings: Distillation, state: DistillationState
) -> tuple[Tensor, Tensor]:
    """Squared error of the student against its target at levels of some indices; (K,) of each.

    The target is what the run trains it to: of one teacher's step, and the self-teacher's hop.
    """
    data, levels = experiment.data, experiment.grid(settings)
    done = state.step - state.phase * settings.steps_per_phase
    phase = settings.phases[state.phase]
    part = phase.part_at(min(done, settings.steps_per_phase - 1), settings.steps_per_phase)
    count = min(PLACES, part.teacher_steps)
    places = torch.arange(1, count + 1) * part.teacher_steps // count
    first = places.repeat_interleave(IMAGES).to(data.samples.device)
    generator = generator_for(first.device, settings.seed, SAMPLES, 0)
    x0, labels = data.batch(len(first), generator)
    eps = torch.randn(x0.shape, generator=generator, device=first.device)
    t, u, s = (levels.to(first.device)[i] for i in part.hops(first))
    x_t = add_noise(x0, eps, t)
    target = phase_target(state, settings)(x_t, t, u, s, labels, x0=x0)
    errors = squared_error(state.student, x_t, t, target, labels)
    return places * part.stride, errors.view(len(places), IMAGES).mean(1).cpu()


def students_steps(settings: Distillation, phase: int) -> int:
    """Steps to sample the student of a phase in: its own, or as many of them as are quick."""
    own = settings.phases[phase].student_steps
    return max(n for n in range(1, min(own, MOST_STEPS) + 1) if own % n == 0)


def students_samples(
    experiment: Experiment, settings: Distillation, denoiser: Denoiser, phase: int, count: int
) -> Tensor:
    """Samples (count, ...) of a phase's student, from the noise that all models start from."""
    eps, labels = experiment.noise
    labels = None if labels is None else labels[:count]
    options = {"labels": labels, "clamp": experiment.clamp, "shown": False}
    steps, levels = students_steps(settings, phase), experiment.grid(settings)
    return sample_batches(denoiser, eps[:count], levels, steps, **options).cpu()


def teachers_samples(experiment: Experiment, count: int) -> Tensor | None:
    """The teacher's samples from the same noise, if they were measured; else None."""
    try:
        return saved_samples(experiment, TEACHER)[experiment.reference_steps][:count]
    except FileNotFoundError:
        return None


def distance_to_data(
    experiment: Experiment, settings: Distillation, features: str
) -> Callable[[Denoiser], float]:
    """A metric for `runs.Saving`: the Frechet distance of samples in the last steps."""
    distance, levels = Distance(experiment, features), experiment.grid(settings)
    eps, labels = experiment.noise
    steps = settings.step_schedule[-1]
    options = {"labels": labels, "clamp": experiment.clamp, "shown": False}

    def metric(denoiser: Denoiser) -> float:
        return distance(sample_batches(denoiser, eps, levels, steps, **options))

    return metric
