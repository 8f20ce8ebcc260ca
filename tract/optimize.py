"""One optimizer step, shared by training and distillation, and its failures."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from tract.base.compute import Compute, matmul_precision, prepare_network, with_precision
from tract.base.parallel import check_share, rank, shard, sum_over_ranks, world_size
from tract.data import Data, to_unit
from tract.denoiser import Denoiser
from tract.levels import Level, cosine
from tract.losses import WEIGHTS, loss_of
from tract.records import Losses, Record
from tract.seeds import Stream, dropout_keyed, generator_for
from tract.settings import Training
from tract.step import mean_square


def stepper(
    state, data: Data, settings: Training, compute: Compute, stream: Stream
) -> Callable[..., Record]:
    """Return step(draw, example, phase), which makes one optimizer step and returns its record.

    draw(generator) returns integers (B,) that choose the levels. example(x0, labels, eps, drawn)
    returns training examples of rows (b, ...): x_t, levels t and u, and the target (b, ...).
    """
    device, batch_size = data.samples.device, settings.batch_size
    student, sigma_data = with_precision(state.student, compute), state.student.sigma_data
    weight = WEIGHTS[settings.loss_weight]
    loss_of_error = loss_of(settings.loss, settings.loss_reduction, math.prod(data.shape))

    def step(draw: Callable, example: Callable, phase: str = "") -> Record:
        generator = generator_for(device, settings.seed, stream, state.step)
        x0, labels = data.batch(batch_size, generator)  # (B, ...), (B,) or None
        eps = torch.randn(x0.shape, generator=generator, device=device)
        batch = shard(x0, labels, eps, draw(generator))
        key = settings.seed, Stream.DROPOUT, state.step, rank()
        dropout = dropout_keyed(device, *key) if state.student.training else nullcontext()
        losses = 0
        state.optimizer.zero_grad(set_to_none=True)
        with matmul_precision(compute), dropout:
            for x0, labels, eps, drawn in compute.parts(*batch):  # b of the B rows
                x_t, t, u, target = example(x0, labels, eps, drawn)
                error = mean_square(student(x_t, t, labels) - target)  # (b,)
                loss = weight(t, u, sigma_data).to(error) * loss_of_error(error)
                losses = losses + backward(loss, error, batch_size)
        numbers = optimizer_step(losses, state, settings)
        state.step += 1
        return Record(state.step, settings.num_steps, state.step * batch_size, numbers, phase)

    return step


def backward(loss: Tensor, error: Tensor, batch_size: int) -> Tensor:
    """Backpropagate b rows' share of a batch's mean loss; returns their share of loss and error."""
    shares = torch.stack([loss.sum(), error.sum()]) / batch_size
    shares[0].backward()
    return shares.detach()


def optimizer_step(losses: Tensor, state, settings: Training) -> Losses:
    """Step the optimizer of state.student, whose gradient is that of these losses (2,).

    Gradient and losses are summed over all ranks. If they are not finite, weights stay unchanged:
    on a CPU FloatingPointError is raised; on a GPU, without synchronisation, this and all later
    steps are skipped, and `guarded` raises.
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


def learning_rate(settings: Training, step: int) -> float:
    """Return Adam's learning rate for the step after this many."""
    length = settings.cooldown * settings.steps_per_phase
    left = settings.steps_per_phase - step % settings.steps_per_phase  # in the phase
    risen = min(1, (step + 1) * settings.batch_size / max(settings.warmup, 1))
    return settings.learning_rate * risen * (left / length if left < length else 1)


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """Return a network's optimizer: one fused kernel, which skips the step where found_inf is 1."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)


def frozen(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode without gradients."""
    return deepcopy(module).eval().requires_grad_(False)


def guarded(
    steps: Callable, state, data: Data, levels: Level, settings: Training, compute: Compute
) -> Iterator[Record]:
    """Return the records of steps(state, data, levels, settings, compute), which changes the state.

    Raises ValueError at once if data, student, batch and ranks do not fit together. Iterating
    raises FloatingPointError if a loss is not finite, StudentOutOfMemory if memory runs out.
    """
    data.check_batch(settings.batch_size)
    check_share(settings.batch_size, world_size())
    check_fits(getattr(state.student, "config", None), data)
    for network in (*vars(state).values(), *getattr(state, "averages", ())):
        if isinstance(network, Denoiser):
            prepare_network(network, compute)
    return _guarded(steps(state, data, levels, settings, compute), state, data, settings, compute)


def _guarded(
    records: Iterator[Record], state, data: Data, settings: Training, compute: Compute
) -> Iterator[Record]:
    """Yield the records after checks that are the same on all ranks.

    Checks the previous step's loss, which is already on the host, and the current one only at the
    end of a phase, so that a GPU never waits for the host.
    """
    before, short = None, False
    try:
        for record in records:
            if before is not None:
                check_finite(before.losses, before.step, settings)
            if record.step % settings.steps_per_phase == 0:
                check_finite(record.losses, record.step, settings)
            yield record
            before = record
    except torch.OutOfMemoryError:
        short = True  # handled outside: this error keeps the step's tensors
    if short:
        size = compute.micro_batch or settings.batch_size // world_size()
        fits = _images_that_fit(state, data, size, replace(compute, compile=False))
        what = f"add micro_batch={fits} to compute" if fits else "use a smaller network"
        raise StudentOutOfMemory(f"out of memory at {size} images at a time: {what}")


class StudentOutOfMemory(RuntimeError):
    """A step ran out of memory; the message says how many images at a time would fit."""


def _images_that_fit(state, data: Data, size: int, compute: Compute) -> int:
    """Return the most images, of size / 2, size / 4, ..., that fit the student's two passes."""
    student, level = with_precision(state.student, compute), cosine(1)[1]
    level = level.to(data.samples.device)
    moments = [] if state.optimizer.state else 2 * list(state.student.parameters())
    moments = [torch.empty_like(p) for p in moments]  # Adam's, from its first step
    while size := size // 2:
        torch.cuda.empty_cache()
        labels = None if data.labels is None else data.labels[:size]
        with suppress(torch.OutOfMemoryError), matmul_precision(compute):
            student(to_unit(data.samples[:size]), level, labels).square().mean().backward()
            break
    return size


def check_finite(losses: Losses, step: int, settings: Training) -> None:
    """Raise FloatingPointError if the loss of a step, or its gradient, is not finite."""
    loss, _, norm = losses.read()
    if not math.isfinite(loss + norm):  # a finite loss can have a gradient that is not finite
        raise FloatingPointError(
            f"the loss is {loss} at step {step}, its gradient {norm}: lower learning_rate (now "
            f"{settings.learning_rate}) or check the teacher and the data; weights are unchanged"
        )


def check_fits(config: dict | None, data: Data) -> None:
    """Raise ValueError if samples or labels do not fit the described network; None fits any."""
    if config is None:
        return
    shape, num_classes = sample_shape(config)
    if data.shape != shape:
        raise ValueError(
            f"{data.name} has samples of shape {data.shape}, the network takes {shape}: choose "
            "another network or other data"
        )
    if data.num_classes != num_classes:
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, the network takes "
            f"{num_classes}: set conditional or num_classes to match"
        )


def sample_shape(config: dict) -> tuple[tuple[int, ...], int]:
    """Return the described network's sample shape (C, H, W) or (D,), and its number of classes."""
    options = config["options"]
    num_classes = options.get("num_classes", 0)
    if "point_dim" in options:
        return (options["point_dim"],), num_classes
    size = options["image_size"]
    return (options["image_channels"], size, size), num_classes
