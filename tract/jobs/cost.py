"""Estimate a run's FLOP, time and memory before starting it.

An addition and a multiplication count as one FLOP each: the paper's network for CIFAR-10 then has
the published 35.8 GFLOP per image.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from tract.base.compute import EAGER, Compute, device
from tract.experiments.names import label_of
from tract.jobs.synthetic import begin, memory, random_data
from tract.levels import Level
from tract.methods import METHODS
from tract.networks.build import build_denoiser, student_for
from tract.phases import equal_steps
from tract.settings import Distillation, Training

STEPS = 5  # to time
STEP_SECONDS = 1.5  # if a step is slower, a smaller batch is timed
SLOW_SECONDS = 4.0  # in all, after which no further step is timed


class Passes(NamedTuple):
    """Forward passes for one image in a step; a backward pass counts as two."""

    teacher: int
    student: int  # and self-teacher, the same network


def passes(settings: Training) -> list[Passes]:
    """Return the passes per image in each phase of a run; a teacher's training has one phase."""
    learning = Passes(0, 3)  # forward, and backward, which counts as two
    if not isinstance(settings, Distillation):
        return [learning]
    result, method = [], METHODS[settings.method]
    for phase in settings.phases:
        heun = settings.solver == "heun" and not result  # only the first teacher
        step = Passes(2 if heun else 1, 0)
        first = step if method.first_hop is None else Passes(0, 0)
        second = method.second_hop(step, Passes(0, 1)) if phase.segment > 1 else Passes(0, 0)
        result.append(Passes(*map(sum, zip(first, second, learning, strict=True))))
    return result


def network_flops(config: dict) -> int:
    """Count the FLOP of one image's forward pass of the described network, without computing it."""
    return _counted(json.dumps(config))


@functools.cache
def _counted(description: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    config = json.loads(description)
    data = random_data(config, 1)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        labels = torch.zeros(1, dtype=torch.long) if data.num_classes else None
        level = Level(torch.ones(()), torch.ones(()))
        build_denoiser(config)(torch.zeros(1, *data.shape), level, labels)
    return counter.get_total_flops()


def image_flops(config: dict, settings: Training) -> list[int]:
    """Return FLOP per image in each phase of training, or distilling, the described network."""
    teacher = student = network_flops(config)
    distilled = isinstance(settings, Distillation)
    swap_phase = equal_steps(settings.phases) if distilled else None
    result = []
    for index, (taught, learned) in enumerate(passes(settings)):
        if index == swap_phase:
            with torch.device("meta"):
                swapped = student_for(build_denoiser(config), settings)
            student = network_flops(swapped.config)
        result.append(taught * teacher + learned * student)
        teacher = student
    return result


def estimate(
    config: dict, settings: Training, noise_schedule: str = "cosine", compute: Compute = EAGER
) -> dict:
    """Estimate the cost of training, or distilling, the described network, as a row; takes seconds.

    Columns: run (method and schedule), images, steps (of the optimizer), flop, seconds, memory_gb
    (peak), tried_batch (from which time and memory are scaled), device. Makes a few steps of each
    kind of phase, with random weights on random images: everything but saving and measuring. Slow
    steps are timed with a smaller batch. Memory is CUDA's own peak on a GPU; otherwise the sum of
    weights, gradients, Adam's moments and activations.
    """
    flops = image_flops(config, settings)
    trials = {
        flop: _try(config, settings, noise_schedule, flops.index(flop), compute)
        for flop in set(flops)
    }
    return {
        "run": label_of(settings),
        "images": settings.num_steps * settings.batch_size,
        "steps": settings.num_steps,
        "flop": float(sum(flops) * settings.steps_per_phase * settings.batch_size),
        "seconds": sum(trials[flop].seconds for flop in flops) * settings.steps_per_phase,
        "memory_gb": max(trial.memory for trial in trials.values()) / 1e9,
        "tried_batch": min(trial.batch for trial in trials.values()),
        "device": device(),
    }


class _Trial(NamedTuple):
    """Cost of a step, scaled to the run's batch size."""

    seconds: float
    memory: int
    batch: int  # that was timed


def _try(
    config: dict, settings: Training, noise_schedule: str, phase: int, compute: Compute
) -> _Trial:
    """Make a few steps of a phase, with as many images as take STEP_SECONDS.

    Compiled networks use all images, because they are compiled for one batch size.
    """
    start = partial(begin, config, noise_schedule=noise_schedule, phase=phase, compute=compute)
    batch, steps = (settings.batch_size, STEPS) if compute.compile else (1, 1)
    seconds, held, more = _timed(start, settings, batch, steps)
    while batch < settings.batch_size and seconds <= STEP_SECONDS / 2:
        batch = min(settings.batch_size, int(batch * STEP_SECONDS / seconds))
        seconds, held, more = _timed(start, settings, batch, STEPS)
    factor = settings.batch_size / batch
    return _Trial(seconds * factor, held + round(more * factor), batch)


def _timed(start: Callable, settings: Training, batch: int, steps: int) -> tuple[float, int, int]:
    """Return the median seconds of some steps, and bytes as from `memory`."""
    images = 10**6 * batch * settings.num_phases  # so that the phase does not end
    state, records = start(settings=replace(settings, train_images=images, batch_size=batch))
    held, more = memory(state, records)  # the first step, which includes one-time work
    times = []
    while len(times) < steps and sum(times) < SLOW_SECONDS:
        begun = time.perf_counter()
        _ = next(records).loss  # waits for the GPU
        times.append(time.perf_counter() - begun)
    return statistics.median(times), held, more
