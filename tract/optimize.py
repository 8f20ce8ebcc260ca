"""One optimizer step: gradients, clipping, Adam, and the check that losses are finite."""

import math
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from tract.base.compute import Compute, matmul_precision, with_precision
from tract.base.parallel import sum_over_ranks, world_size
from tract.data import Data, to_unit
from tract.denoiser import Denoiser
from tract.levels import cosine
from tract.records import Losses, Record
from tract.settings import Training


def check_fits(config: dict, data: Data) -> None:
    """ValueError if samples of this data, or their labels, do not fit the described network."""
    options = config["options"]
    if config["net"] == "mlp":
        kind, shape = "points of shape", (options["point_dim"],)
    else:
        kind, size = "images (channels, height, width) of shape", options["image_size"]
        shape = (options["image_channels"], size, size)
    if data.shape != shape:
        raise ValueError(
            f"{data.name} has samples of shape {data.shape}, the network takes {kind} {shape}: "
            "choose another network or other data"
        )
    if data.num_classes != options.get("num_classes", 0):
        raise ValueError(
            f"{data.name} comes with {data.num_classes} classes, the network is made for "
            f"{options.get('num_classes', 0)}: set conditional or num_classes to match"
        )


def report(state, settings: Training, losses: Losses, phase: str = "") -> Record:
    """The record of a step that is complete."""
    images_seen = state.step * settings.batch_size
    return Record(state.step, settings.num_steps, images_seen, losses, phase)


def check_losses(records: Iterator[Record], settings: Training) -> Iterator[Record]:
    """Pass records on; FloatingPointError for a step whose loss was not a number.

    Asked is the step before, which a GPU has left behind, and at the end of a phase this one too:
    the work of a GPU is never waited for while there is more of it to send. All processes that have
    joined so stop after the same step.
    """
    before = None
    for record in records:
        if before is not None:
            check_finite(before.losses, before.step, settings)
        if record.step % settings.steps_per_phase == 0:
            check_finite(record.losses, record.step, settings)
        yield record
        before = record


class StudentOutOfMemory(RuntimeError):
    """A step did not find enough memory; says for how many images at a time there is enough."""


def name_micro_batch(
    records: Iterator[Record], state, data: Data, settings: Training, compute: Compute
) -> Iterator[Record]:
    """Pass records on; StudentOutOfMemory names the micro_batch that would fit."""
    short = False
    try:
        yield from records
    except torch.OutOfMemoryError:
        short = True  # and the step, with all that it keeps, goes with this error
    if short:
        size = compute.micro_batch or settings.batch_size // world_size()
        fits = _images_that_fit(state, data, size, replace(compute, compile=False))
        what = f"add micro_batch={fits} to compute" if fits else "use a smaller network"
        raise StudentOutOfMemory(f"out of memory at {size} images at a time: {what}")


def _images_that_fit(state, data: Data, size: int, compute: Compute) -> int:
    """Half of so many images, or of that, for which the student's two passes find memory."""
    student, level = with_precision(state.student, compute), cosine(1)[1]
    level = level.to(data.samples.device)
    moments = [] if state.optimizer.state else 2 * list(state.student.parameters())
    moments = [torch.empty_like(p) for p in moments]  # which Adam has from its first step on
    while size := size // 2:
        torch.cuda.empty_cache()
        labels = None if data.labels is None else data.labels[:size]
        with suppress(torch.OutOfMemoryError), matmul_precision(compute):
            student(to_unit(data.samples[:size]), level, labels).square().mean().backward()
            break
    return size


def check_finite(losses: Losses, step: int, settings: Training) -> None:
    """FloatingPointError if the loss of a step, or its gradient, is not a number."""
    loss, _, norm = losses.read()
    if not math.isfinite(loss + norm):  # a finite loss can have a gradient that is not
        raise FloatingPointError(
            f"the loss is {loss} at step {step}, its gradient {norm}: lower learning_rate (now "
            f"{settings.learning_rate}) or check the teacher and the data; weights are unchanged"
        )


def check_student(student: Denoiser, data: Data) -> None:
    """ValueError if samples or labels do not fit a network whose description is known."""
    if hasattr(student, "config"):
        check_fits(student.config, data)


def backward(loss: Tensor, error: Tensor, batch_size: int) -> Tensor:
    """Add to the gradient what these losses (b,) are in a batch, that of all processes.

    Returns (2,): their shares of the batch's loss and squared error, which are means over it.
    """
    shares = torch.stack([loss.sum(), error.sum()]) / batch_size
    shares[0].backward()
    return shares.detach()


def optimizer_step(losses: Tensor, state, settings: Training) -> Losses:
    """One step of the optimizer on state.student, whose gradient is that of these losses (2,).

    Where several processes have joined, gradient and losses become the sums over all of them. A
    loss that is not a number leaves the weights as they are: FloatingPointError on a CPU; on a GPU,
    which would have to be waited for, this step and all that follow are skipped there, and
    `check_losses` raises.
    """
    optimizer = state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, state.step)
    parameters = list(state.student.parameters())
    sum_over_ranks([losses, *(p.grad for p in parameters if p.grad is not None)])
    norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True)
    numbers = Losses(torch.cat([losses, norm[None]]))
    if numbers.late:
        bad = 1 - torch.isfinite(losses[0] + norm).float()
        optimizer.found_inf = torch.maximum(bad, getattr(optimizer, "found_inf", bad))
    else:
        check_finite(numbers, state.step + 1, settings)
    optimizer.step()
    return numbers


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """The optimizer of a network: one kernel for all weights, which skips where found_inf is 1."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)


def learning_rate(settings: Training, step: int) -> float:
    """Adam's learning rate in the step that follows so many steps of a run."""
    length = settings.cooldown * settings.steps_per_phase
    left = settings.steps_per_phase - step % settings.steps_per_phase  # of the phase
    risen = min(1, (step + 1) * settings.batch_size / max(settings.warmup, 1))
    return settings.learning_rate * risen * (left / length if left < length else 1)


def frozen(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that no optimizer can change."""
    return deepcopy(module).eval().requires_grad_(False)
