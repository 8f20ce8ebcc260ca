"""Estimate a run's FLOP, time and memory before starting it.

An addition and a multiplication are one FLOP each: so counted, the paper's network for CIFAR-10
takes the 35.8 GFLOP for an image that are published for it.
"""

import functools
import json
import statistics
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from tract.base.compute import EAGER, Compute, device
from tract.experiments.experiment import TEACHER
from tract.jobs.synthetic import begin, memory, random_data
from tract.levels import Level
from tract.methods import METHODS
from tract.networks.build import build_denoiser, student_for
from tract.phases import equal_steps
from tract.settings import Distillation, Training

STEPS = 5  # that are timed
STEP_SECONDS = 1.5  # a step that is tried takes no longer, if a smaller batch can help it
SLOW_SECONDS = 4.0  # after which no further step is timed


class Passes(NamedTuple):
    """Forward passes that one image takes in a step; a backward pass counts as two."""

    teacher: int
    student: int  # and self-teacher, which is the same network


@dataclass(frozen=True)
class Estimate:
    """The cost of a run."""

    run: str  # method and schedule
    images: int
    steps: int  # of the optimizer
    flop: int
    seconds: float
    memory: int  # bytes at the peak
    tried: int  # batch that was tried, from which time and memory are scaled

    def row(self) -> dict:
        """The same for a table, memory in GB (1e9 bytes)."""
        return {
            "run": self.run,
            "images": self.images,
            "steps": self.steps,
            "flop": float(self.flop),
            "seconds": self.seconds,
            "memory_gb": self.memory / 1e9,
            "tried_batch": self.tried,
            "device": device(),
        }


def passes(settings: Training) -> list[Passes]:
    """Passes for each image in each phase of a run, of which a teacher's training has one."""
    learning = Passes(0, 3)  # forward, and backward for weights and for activations
    if not isinstance(settings, Distillation):
        return [learning]
    result = []
    for phase in settings.phases:
        heun = settings.solver == "heun" and not result  # of the first teacher alone
        first = Passes(2 if heun else 1, 0)
        second = METHODS[settings.method].second_hop(first, Passes(0, 1))
        hops = [first, *([] if phase.segment == 1 else [second])]
        result.append(Passes(*map(sum, zip(*hops, learning, strict=True))))
    return result


def network_flops(config: dict) -> int:
    """FLOP of one forward pass of the described network, for one image; nothing is computed."""
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
    """FLOP for each image in each phase of a run that trains, or distils, the described network."""
    teacher = student = network_flops(config)
    swap_phase = None
    if isinstance(settings, Distillation):
        swap_phase = equal_steps(settings.phases)
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
) -> Estimate:
    """The cost of training, or distilling, the described network; takes seconds to find out.

    noise_schedule: a name in NOISE_SCHEDULES. Of each kind of phase a few steps are made, with
    random weights on random images, as fast as the machine is now: all of a step's work is in
    them, but not saving and measuring. Where a step is slow a smaller batch is tried.
    Memory is CUDA's own peak on a GPU; elsewhere weights, gradients, Adam's moments and what is
    kept for the backward pass, added up.
    """
    flops = image_flops(config, settings)
    kinds = {
        flop: _try(config, settings, noise_schedule, flops.index(flop), compute)
        for flop in set(flops)
    }
    distilled = isinstance(settings, Distillation)
    return Estimate(
        f"{settings.method} {settings.schedule}" if distilled else TEACHER,
        settings.num_steps * settings.batch_size,
        settings.num_steps,
        sum(flops) * settings.steps_per_phase * settings.batch_size,
        sum(kinds[flop].seconds for flop in flops) * settings.steps_per_phase,
        max(kind.memory for kind in kinds.values()),
        min(kind.batch for kind in kinds.values()),
    )


class _Trial(NamedTuple):
    """What trying a step showed, at the batch that is wanted."""

    seconds: float
    memory: int
    batch: int  # that was tried


def _try(
    config: dict, settings: Training, noise_schedule: str, phase: int, compute: Compute
) -> _Trial:
    """Make a few steps of a phase, of as many images as are done in STEP_SECONDS.

    Of all images where networks are compiled, which is done for one size of batch.
    """
    batch, steps = (settings.batch_size, STEPS) if compute.compile else (1, 1)
    seconds, held, more = _timed(config, settings, noise_schedule, phase, compute, batch, steps)
    while batch < settings.batch_size and seconds <= STEP_SECONDS / 2:
        batch = min(settings.batch_size, int(batch * STEP_SECONDS / seconds))
        seconds, held, more = _timed(config, settings, noise_schedule, phase, compute, batch, STEPS)
    factor = settings.batch_size / batch
    return _Trial(seconds * factor, held + round(more * factor), batch)


def _timed(
    config: dict,
    settings: Training,
    noise_schedule: str,
    phase: int,
    compute: Compute,
    batch: int,
    steps: int,
) -> tuple[float, int, int]:
    """Median seconds of some steps, and bytes as `memory` tells them."""
    # As many phases as before, none of which ends.
    images = 10**6 * batch * len(passes(settings))
    state, records = begin(
        config,
        replace(settings, train_images=images, batch_size=batch),
        noise_schedule,
        phase,
        compute,
    )
    held, more = memory(state, records)  # the first step, in which much is done only once
    times = []
    while len(times) < steps and sum(times) < SLOW_SECONDS:
        start = time.perf_counter()
        _ = next(records).loss  # waits for the GPU
        times.append(time.perf_counter() - start)
    return statistics.median(times), held, more
