"""Previews of a training: samples from fixed noise, errors by level, distances on the way.

preview.safetensors    the newest samples and errors, with the step that they are of
phase_metric.jsonl     distances to the data in the steps of the phase under way
All of it is of noise and data that stay the same, and changes nothing of the run.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tract.base.compute import EAGER, matmul_precision
from tract.denoiser import Denoiser
from tract.distill import DistillationState, phase_target
from tract.experiments.experiment import Experiment
from tract.experiments.history import append, trim
from tract.experiments.measure import Distance
from tract.losses import squared_error
from tract.metrics.samples import sample_batches
from tract.networks.weights import read_tensors, write_tensors
from tract.records import Record
from tract.seeds import Stream, generator_for
from tract.settings import Distillation, Training
from tract.step import add_noise
from tract.train import TeacherState

PLACES = 8  # noise levels at which errors are asked
IMAGES = 4  # for each of them
COUNT = 12  # samples
MOST_STEPS = 8  # of a sampler: a student of more is sampled in fewer
SHARE = 0.015  # of the training time, at most, for samples and errors
SECONDS = 3.0  # between two previews, at least
PREVIEW, PHASE_METRIC = "preview.safetensors", "phase_metric.jsonl"


class Preview:
    """Writes previews of a run beside its history, as often as fits into SHARE of its time.

    metric: as `distance_to_data` makes it, called every metric_every steps; 0 for never.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Training,
        state: TeacherState | DistillationState,
        folder: Path,
        metric: Callable[[Denoiser, int], float] | None = None,
        metric_every: int = 0,
    ):
        self.experiment, self.settings, self.state = experiment, settings, state
        self.folder, self._metric, self._every = folder, metric, metric_every
        self._record: Record | None = None  # the last one, and the step of what was written
        self._step = 0

    def watch(self, records: Iterator[Record]) -> Iterator[Record]:
        """Pass records on; previews are written after the run has written the record's step."""
        start, spent, cost, latest = time.monotonic(), 0.0, 0.0, -SECONDS
        for record in records:
            if self._record is None:
                trim(self.folder / PHASE_METRIC, record.step - 1)
            self._record = record
            if self._every and record.step % self._every == 0:
                self._measure(record)  # before the step is saved: on resume it is not made again
            try:
                yield record
            except GeneratorExit:
                self.write()
                raise
            now = time.monotonic() - start
            # What it cost last time is waited for first, so that the share is kept.
            due = now - latest >= SECONDS and spent + cost <= SHARE * now
            if due or record.step == record.num_steps:
                first, latest = self._step == 0, now
                self.write()
                if not first:  # which is slow, and would keep the next ones waiting
                    cost = time.monotonic() - start - now
                    spent += cost

    def write(self) -> None:
        """Write the preview of the last step; nothing before the first."""
        record, settings, phase = self._record, self.settings, getattr(self.state, "phase", 0)
        if record is None or record.step == self._step:
            return
        self._step = record.step
        places, errors = level_errors(self.experiment, settings, self.state)
        steps = preview_steps(self.experiment, settings, phase)
        x = samples_of(self.experiment, settings, self.state.ema, steps, COUNT)
        about = {"step": record.step, "phase": record.phase, "nfe": steps}
        about["own"] = own_steps(self.experiment, settings, phase)
        tensors = {"samples": x, "places": places, "errors": errors}
        write_tensors(self.folder / PREVIEW, tensors, about)

    def _measure(self, record: Record) -> None:
        """Measure the average in the steps of this phase, unless they are the last phase's."""
        steps = preview_steps(self.experiment, self.settings, self.state.phase)
        if steps != self.settings.step_schedule[-1]:
            found = {"step": record.step, "nfe": steps}
            found["metric"] = self._metric(self.state.ema, steps)
            append(self.folder / PHASE_METRIC, found)


def read_preview(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The newest preview of a run: tensors, and of which step; empty where there is none."""
    path = Path(folder) / PREVIEW
    return read_tensors(path) if path.is_file() else ({}, {})


@matmul_precision(EAGER)
def level_errors(
    experiment: Experiment, settings: Training, state: TeacherState | DistillationState
) -> tuple[Tensor, Tensor]:
    """Squared error at levels of some indices, (K,) of each: of a student, of x0 for a teacher."""
    if isinstance(settings, Distillation):
        return target_errors(experiment, settings, state)
    return x0_errors(experiment, settings, state.ema)


@torch.no_grad()
def x0_errors(
    experiment: Experiment, settings: Training, denoiser: Denoiser
) -> tuple[Tensor, Tensor]:
    """Squared error of predicted data at levels of some indices; (K,) of each."""
    data, levels = experiment.data, experiment.levels.to(experiment.data.samples.device)
    count = min(PLACES, levels.num_steps)
    places = torch.arange(1, count + 1) * levels.num_steps // count
    t = levels[places.repeat_interleave(IMAGES).to(data.samples.device)]
    generator = generator_for(data.samples.device, settings.seed, Stream.SAMPLES, 0)
    x0, labels = data.batch(count * IMAGES, generator)
    eps = torch.randn(x0.shape, generator=generator, device=x0.device)
    errors = squared_error(denoiser, add_noise(x0, eps, t), t, x0, labels)
    return places, errors.view(count, IMAGES).mean(1).cpu()


@torch.no_grad()
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
    generator = generator_for(first.device, settings.seed, Stream.SAMPLES, 0)
    x0, labels = data.batch(len(first), generator)
    eps = torch.randn(x0.shape, generator=generator, device=first.device)
    t, u, s = (levels.to(first.device)[i] for i in part.hops(first))
    x_t = add_noise(x0, eps, t)
    target = phase_target(state, settings)(x_t, t, u, s, labels, x0=x0)
    errors = squared_error(state.student, x_t, t, target, labels)
    return places * part.stride, errors.view(len(places), IMAGES).mean(1).cpu()


def own_steps(experiment: Experiment, settings: Training, phase: int) -> int:
    """Steps that a phase's student is to be sampled in; of a teacher all of its grid."""
    if isinstance(settings, Distillation):
        return settings.phases[phase].student_steps
    return experiment.teacher_steps


def preview_steps(experiment: Experiment, settings: Training, phase: int) -> int:
    """Steps that a preview is sampled in: a phase's own, or as many of them as are quick."""
    own = own_steps(experiment, settings, phase)
    return max(n for n in range(1, min(own, MOST_STEPS) + 1) if own % n == 0)


@matmul_precision(EAGER)
def samples_of(
    experiment: Experiment, settings: Training, denoiser: Denoiser, steps: int, count: int
) -> Tensor:
    """Samples (count, ...) in some steps, from the noise that all models start from."""
    eps, labels = experiment.noise
    options = {"labels": None if labels is None else labels[:count], "clamp": experiment.clamp}
    levels = experiment.grid(settings)
    return sample_batches(denoiser, eps[:count], levels, steps, **options, shown=False).cpu()


def distance_to_data(
    experiment: Experiment, settings: Distillation, features: str
) -> Callable[..., float]:
    """A metric for a run: the Frechet distance of samples in some steps, by default the last."""
    distance, levels = Distance(experiment, features), experiment.grid(settings)
    eps, labels = experiment.noise
    options = {"labels": labels, "clamp": experiment.clamp, "shown": False}

    @matmul_precision(EAGER)
    def metric(denoiser: Denoiser, steps: int = settings.step_schedule[-1]) -> float:
        return distance(sample_batches(denoiser, eps, levels, steps, **options))

    return metric
