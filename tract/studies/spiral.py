"""Ablations on points in the plane, with an exact teacher.

A run takes seconds, and leaves only its rows of results.
"""

import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tract.base.progress import progress
from tract.base.provenance import provenance
from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.experiments.experiment import TEACHER, run_name
from tract.experiments.results import PER_PHASE, append_results, read_results
from tract.levels import levels_of
from tract.metrics.distances import rmse
from tract.metrics.samples import fixed_noise
from tract.networks.build import build_denoiser
from tract.oracle import Mixture
from tract.samplers import SOLVERS, ddim_x0, heun_x0, sample
from tract.settings import Distillation, Training
from tract.studies.ablations import Study
from tract.train import start_training, train_teacher

SPIRAL = "spiral"  # the data in results
METRIC = "rmse_to_flow"  # to the exact flow's points from the same noise
FLOW_STEPS = 1024  # of Heun's method, used as the exact flow
NUM_POINTS = 2048
EXACT = "exact"  # the teacher, in results
NETWORK = {
    "net": "mlp",
    "prediction": "v",
    "sigma_data": 1.0,
    "options": {"point_dim": 2, "channels": 64, "num_blocks": 2},
}


def spiral(std: float = 0.05) -> tuple[Mixture, Data]:
    """Return a spiral of two thin arms: its exact denoiser, and 8192 points (N, 2)."""
    turn = torch.linspace(0, 1, 64)
    radius, angle = 0.3 + 1.6 * turn, 1.7 * torch.pi * turn
    arm = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    teacher = Mixture(torch.cat([arm, -arm]), std)
    centres = teacher.means.repeat(64, 1)
    jitter = torch.randn(centres.shape, generator=torch.Generator().manual_seed(0))
    return teacher, Data(SPIRAL, centres + std * jitter)


@cache
def beginning(noise_schedule: str, images: int = 96_000, batch: int = 128) -> Denoiser:
    """Train a small network as a denoiser of the spiral, the initial weights of students."""
    settings = Training(train_images=images, batch_size=batch)
    state = start_training(build_denoiser(NETWORK), settings)
    records = train_teacher(state, spiral()[1], levels_of(noise_schedule, FLOW_STEPS), settings)
    for _ in progress("start", settings.num_steps, iterable=records):
        pass
    return state.ema


@cache
def exact_flow(noise_schedule: str) -> Tensor:
    """Return the points to which the exact flow takes the noise used for measuring students."""
    teacher, data = spiral()
    eps, _ = fixed_noise(data, NUM_POINTS, seed=0)
    return sample(teacher, eps, levels_of(noise_schedule, FLOW_STEPS), FLOW_STEPS, solver=heun_x0)


def run_missing_on_plane(study: Study, comparisons: Sequence[str], results: str | Path) -> None:
    """Distil and measure the runs missing in results, and add each row at once.

    Measures a student's samples against the exact flow, and against its teacher with all the steps
    of its grid; and that teacher itself.
    """
    plan, wanted = study.plan(comparisons), study.missing(read_results(results), comparisons)
    print(f"{len(plan)} runs on the plane, {len(plan) - len(wanted)} of them measured before")
    total = sum(settings.num_steps for settings in wanted.values())
    with progress("", total, disable=not wanted) as bar:
        for name, settings in wanted.items():
            bar.set_postfix_str(name, refresh=False)
            append_results(results, _rows(study, settings, bar))


def _rows(study: Study, settings: Distillation, bar) -> list[dict]:
    """Distil one student from the exact teacher; returns rows of its and the teacher's results."""
    teacher, data = spiral()
    levels = levels_of(study.noise_schedule, settings.grid_steps)
    state = start_distillation(teacher, settings, beginning(study.noise_schedule))
    begun = time.monotonic()
    for _ in distill(state, data, levels, settings):
        bar.update()
    seconds = time.monotonic() - begun
    eps, _ = fixed_noise(data, NUM_POINTS, seed=0)
    exact = exact_flow(study.noise_schedule)
    estimate = SOLVERS[settings.solver]
    rollout = sample(teacher, eps, levels, levels.num_steps, solver=estimate)
    found = sample(state.ema, eps, levels, settings.step_schedule[-1])
    about = provenance()
    at = {
        "data": study.data,
        "noise_schedule": study.noise_schedule,
        "samples": NUM_POINTS,
        "device": "cpu",  # always used here
        "commit": about["commit"],
        "teacher": EXACT,
        "conditions": json.dumps({"flow_steps": FLOW_STEPS, "seed": 0}),
    }
    student = at | {
        "method": settings.method,
        "schedule": settings.schedule,
        "nfe": settings.step_schedule[-1],
        "student_params": sum(p.numel() for p in state.ema.parameters()),
        "images": settings.num_steps * settings.batch_size,
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "run": run_name(settings),
    }
    untrained = {"schedule": "", "student_params": 0, "images": 0, "seed": 0, "seconds": 0.0}
    own = at | untrained | {"method": TEACHER, "run": TEACHER, "nfe": levels.num_steps}
    numbers = [
        (student, METRIC, rmse(found, exact)),
        (student, PER_PHASE, rmse(found, rollout)),
    ]
    if estimate is ddim_x0:  # all rows are of DDIM sampling
        numbers.append((own, METRIC, rmse(rollout, exact)))
    return [row | {"metric": metric, "value": round(value, 6)} for row, metric, value in numbers]
