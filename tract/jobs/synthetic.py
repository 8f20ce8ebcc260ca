"""A few training steps on random data, to measure their time and memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tract.base.compute import EAGER, Compute, device
from tract.data import Data
from tract.distill import DistillationState, distill, start_distillation
from tract.levels import levels_of
from tract.networks.build import build_denoiser, student_for
from tract.optimize import sample_shape
from tract.records import Record
from tract.settings import Distillation, Training
from tract.train import TeacherState, start_training, train_teacher

GRID_STEPS = 1024  # of a teacher's training; does not affect its cost


def begin(
    config: dict, settings: Training, noise_schedule: str, phase: int, compute: Compute = EAGER
) -> tuple[TeacherState | DistillationState, Iterator[Record]]:
    """Start a run with random weights on random images at a given phase, compiled anew."""
    if compute.compile:
        torch.compiler.reset()
    data, denoiser = random_data(config, settings.batch_size), build_denoiser(config).to(device())
    if not isinstance(settings, Distillation):
        state, levels = start_training(denoiser, settings), levels_of(noise_schedule, GRID_STEPS)
        return state, train_teacher(state, data, levels, settings, compute)
    state = start_distillation(denoiser, settings, student_for(denoiser, settings))
    state.restore_counters({"phase": phase, "step": phase * settings.steps_per_phase})
    levels = levels_of(noise_schedule, settings.grid_steps)
    return state, distill(state, data, levels, settings, compute)


def memory(state: TeacherState | DistillationState, records: Iterator[Record]) -> tuple[int, int]:
    """Return bytes held between steps, and additional bytes within one; makes one step, or two."""
    if device() == "cuda":
        next(records)
        torch.cuda.reset_peak_memory_stats()
        next(records)
        held = torch.cuda.memory_allocated()
        return held, torch.cuda.max_memory_allocated() - held
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        next(records)
    for parameter in state.student.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    networks = [network for network in vars(state).values() if isinstance(network, nn.Module)]
    # The student's gradients and Adam's two moments are as large as its weights.
    held = sum(p.nbytes for n in [*networks, *3 * [state.student]] for p in n.parameters())
    return held, sum(kept.values())


def random_data(config: dict, count: int) -> Data:
    """Return random images, or points, and labels that fit the described network."""
    shape, classes = sample_shape(config)
    images = torch.randint(256, (count, *shape)).byte()
    samples = images if len(shape) > 1 else torch.randn(count, *shape)
    labels = classes - 1 - torch.arange(count) % classes if classes else None
    return Data("random", samples, labels).to(device())
