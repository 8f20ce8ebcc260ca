"""Previews of a training: samples from fixed noise, errors by level, distances on the way.

preview.safetensors    the newest samples and errors, with the step that they are of
phase_metric.jsonl     distances to the data in the steps of the current phase
Noise and data are fixed, and the run is not changed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tract.base.compute import EAGER, matmul_precision
from tract.denoiser import Denoiser
from tract.distill import DistillationState, phase_target
from tract.experiments.experiment import Experiment
from tract.experiments.history import append, trim
from tract.experiments.measure import Distance, sample_noise
from tract.experiments.run import Run
from tract.networks.weights import read_tensors, write_tensors
from tract.phases import Phase
from tract.records import Record
from tract.seeds import Stream, generator_for
from tract.settings import Distillation, Training
from tract.step import add_noise, mean_square
from tract.train import TeacherState

PLACES = 8  # noise levels at which errors are measured
IMAGES = 4  # for each of them
COUNT = 12  # samples
MOST_STEPS = 8  # of a sampler; students of more are sampled in fewer
SHARE = 0.015  # of the training time, at most, for samples and errors
SECONDS = 3.0  # between two previews, at least
MEANWHILE = {"compute": EAGER, "batch": 256, "shown": False}  # how a run in training is sampled
PREVIEW, PHASE_METRIC = "preview.safetensors", "phase_metric.jsonl"


@dataclass
class Preview:
    """Writes previews of a run beside its history, as often as fits into SHARE of its time.

    metric: as `distance_to_data` makes it, called every metric_every steps; 0 for never.
    """

    experiment: Experiment
    run: Run
    metric: Callable[..., float] | None = None
    metric_every: int = 0
    step: int = 0  # of what was written last

    def watch(self, records: Iterator[Record]) -> Iterator[Record]:
        """Pass records on; previews are written after the run has written the record's step."""
        trim(self.run.folder / PHASE_METRIC, self.run.state.step)
        start, spent, cost, latest = time.monotonic(), 0.0, 0.0, -SECONDS
        for record in records:
            if self.metric_every and record.step % self.metric_every == 0:
                # Before the step is saved: on resume it is not measured again.
                self._measure(record)
            try:
                yield record
            except GeneratorExit:
                self.write(record)
                raise
            now = time.monotonic() - start
            # The cost counts before it is spent, so that the share is kept.
            due = now - latest >= SECONDS and spent + cost <= SHARE * now
            if due or record.step == record.num_steps:
                first, latest = self.step == 0, now
                self.write(record)
                if not first:  # it is slow, and would delay the next ones
                    cost = time.monotonic() - start - now
                    spent += cost

    def write(self, record: Record) -> None:
        """Write the preview of a step, unless that has been written."""
        if record.step == self.step:
            return
        self.step, run = record.step, self.run
        places, errors = level_errors(self.experiment, run.settings, run.state)
        own, steps = preview_steps(self.experiment, run.settings, run.state)
        levels = self.experiment.grid(run.settings)
        x = sample_noise(self.experiment, run.state.ema, levels, steps, COUNT, **MEANWHILE)
        about = {"step": record.step, "phase": record.phase, "nfe": steps, "own": own}
        tensors = {"samples": x.cpu(), "places": places, "errors": errors}
        write_tensors(run.folder / PREVIEW, tensors, about)

    def _measure(self, record: Record) -> None:
        """Measure the average in the steps of this phase, unless they are the last phase's."""
        _, steps = preview_steps(self.experiment, self.run.settings, self.run.state)
        if steps != self.run.settings.step_schedule[-1]:
            value = self.metric(self.run.state.ema, steps)
            found = {"step": record.step, "nfe": steps, "metric": value}
            append(self.run.folder / PHASE_METRIC, found)


def read_preview(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The newest preview of a run: tensors, and of which step; empty where there is none."""
    path = Path(folder) / PREVIEW
    return read_tensors(path) if path.is_file() else ({}, {})


@matmul_precision(EAGER)
@torch.no_grad()
def level_errors(
    experiment: Experiment, settings: Training, state: TeacherState | DistillationState
) -> tuple[Tensor, Tensor]:
    """Indices (K,) of some levels, and the squared error (K,) there.

    A student's is to its target in the current phase, a teacher's to x0.
    """
    data, levels = experiment.data, experiment.grid(settings)
    device, distilled = data.samples.device, isinstance(settings, Distillation)
    part = Phase(levels.num_steps, levels.num_steps, levels.num_steps)
    if distilled:
        done = state.step - state.phase * settings.steps_per_phase
        phase = settings.phases[state.phase]
        part = phase.part_at(min(done, settings.steps_per_phase - 1), settings.steps_per_phase)
    count = min(PLACES, part.teacher_steps)
    places = torch.arange(1, count + 1) * part.teacher_steps // count
    first = places.repeat_interleave(IMAGES).to(device)
    generator = generator_for(device, settings.seed, Stream.SAMPLES, 0)
    x0, labels = data.batch(len(first), generator)
    eps = torch.randn(x0.shape, generator=generator, device=device)
    t, u, s = (levels.to(device)[i] for i in part.hops(first))
    x_t, target, model = add_noise(x0, eps, t), x0, state.ema
    if distilled:
        target = phase_target(state, settings)(x_t, t, u, s, labels, x0=x0)
        model = state.student
    errors = mean_square(model(x_t, t, labels) - target)
    return places * part.stride, errors.view(count, IMAGES).mean(1).cpu()


def preview_steps(
    experiment: Experiment, settings: Training, state: TeacherState | DistillationState
) -> tuple[int, int]:
    """Steps of the current phase's student, and a divisor of them that is sampled quickly."""
    own = experiment.teacher_steps
    if isinstance(settings, Distillation):
        own = settings.phases[state.phase].student_steps
    return own, max(n for n in range(1, min(own, MOST_STEPS) + 1) if own % n == 0)


def distance_to_data(
    experiment: Experiment, settings: Distillation, features: str
) -> Callable[..., float]:
    """A metric of a run: the Frechet distance of samples, by default in the last phase's steps."""
    distance, levels = Distance(experiment, features), experiment.grid(settings)

    @matmul_precision(EAGER)
    def metric(denoiser: Denoiser, steps: int = settings.step_schedule[-1]) -> float:
        return distance(sample_noise(experiment, denoiser, levels, steps, **MEANWHILE))

    return metric
