"""A few training steps on random data, to measure their time and memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tract.base.compute import EAGER, Compute, device
from tract.data import Data
from tract.distill import DistillationState, distill, start_distillation
from tract.levels import levels_of
from tract.networks.build import build_denoiser, student_for
from tract.records import Record
from tract.settings import Distillation, Training
from tract.train import TeacherState, start_training, train_teacher

GRID_STEPS = 1024  # of a teacher in training, whose cost does not depend on it


def begin(
    config: dict, settings: Training, noise_schedule: str, phase: int, compute: Compute = EAGER
) -> tuple[TeacherState | DistillationState, Iterator[Record]]:
    """A run of random weights on random images at the begin of a phase; what is compiled is new."""
    if compute.compile:
        torch.compiler.reset()
    data, denoiser = random_data(config, settings.batch_size), build_denoiser(config).to(device())
    if not isinstance(settings, Distillation):
        state = start_training(denoiser, settings)
        return state, train_teacher(
            state, data, levels_of(noise_schedule, GRID_STEPS), settings, compute
        )
    state = start_distillation(denoiser, settings, student_for(denoiser, settings))
    begun = {"phase": phase, "step": phase * settings.steps_per_phase}
    state.restore_counters(state.counters() | begun)
    return state, distill(
        state, data, levels_of(noise_schedule, settings.grid_steps), settings, compute
    )


def memory(state: TeacherState | DistillationState, records: Iterator[Record]) -> tuple[int, int]:
    """Bytes held between steps, and how many more within one; makes a step, or two."""
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
    # The student's gradients and Adam's two moments are as large as itself.
    held = sum(p.nbytes for n in [*networks, *3 * [state.student]] for p in n.parameters())
    return held, sum(kept.values())


def random_data(config: dict, count: int) -> Data:
    """Images, or points, and labels such as the described network takes."""
    options, classes = config["options"], config["options"].get("num_classes", 0)
    if config["net"] == "mlp":
        samples = torch.randn(count, options["point_dim"])
    else:
        size = options["image_size"]
        samples = torch.randint(256, (count, options["image_channels"], size, size)).byte()
    labels = classes - 1 - torch.arange(count) % classes if classes else None
    return Data("random", samples, labels).to(device())
