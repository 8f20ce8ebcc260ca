"""Sample a denoiser in batches from noise that is the same for every model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tract.base.compute import EAGER, Compute, matmul_precision, prepare_network, with_precision
from tract.base.progress import progress
from tract.data import Data
from tract.denoiser import Denoise, Denoiser, clamped
from tract.levels import Level
from tract.samplers import Solver, ddim_x0, step_indices, trajectory
from tract.seeds import Stream, generator_for

BLOCK = 256  # samples whose noise is drawn at once: a generator each would take longer to seed


def noise(shape: tuple[int, ...], start: int, stop: int, seed: int) -> Tensor:
    """Noise (stop - start, *shape) of the samples from start up to stop.

    That of sample i depends on seed and i alone, not on batches or on how many there are.
    """
    first = start // BLOCK
    blocks = [
        torch.randn(BLOCK, *shape, generator=generator_for("cpu", seed, Stream.SAMPLES, block))
        for block in range(first, (stop - 1) // BLOCK + 1)
    ]
    return torch.cat(blocks)[start - first * BLOCK : stop - first * BLOCK]


def cycling_labels(classes: Sequence[int], start: int, stop: int) -> Tensor | None:
    """Labels (stop - start,) of those samples, each class as often as the others, or None."""
    if not classes:
        return None
    return torch.tensor(classes)[torch.arange(start, stop) % len(classes)]


def fixed_noise(data: Data, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Noise (count, ...) shaped like the data, and labels in turn, the same for every model."""
    device = data.samples.device
    labels = cycling_labels(data.classes_present, 0, count)
    return (
        noise(data.shape, 0, count, seed).to(device),
        None if labels is None else labels.to(device),
    )


def sample_batches(
    denoise: Denoise,
    eps: Tensor,
    levels: Level,
    num_steps: int,
    *,
    labels: Tensor | None = None,
    clamp: bool = True,
    batch: int = 256,
    solver: Solver = ddim_x0,
    compute: Compute = EAGER,
    shown: bool = True,
    on_step: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Samples (N, ...) for noise of any N, a batch at a time; shown: under a progress bar.

    on_step: called with the share of all steps that is done; what it raises ends the sampling.
    """
    step_indices(levels.num_steps, num_steps)
    if isinstance(denoise, Denoiser):
        prepare_network(denoise, compute)
    denoise = with_precision(denoise, compute)
    limited = clamped(denoise) if clamp else denoise
    starts = range(0, len(eps), batch)
    done, steps = [], 0
    with (
        matmul_precision(compute),
        progress(
            f"sampling at {num_steps} steps",
            len(starts) * num_steps,
            leave=False,
            disable=not shown,
        ) as bar,
    ):
        for start in starts:
            part = slice(start, start + batch)
            mine = None if labels is None else labels[part]
            options = {"labels": mine, "solver": solver}
            for index, x in trajectory(limited, eps[part], levels, num_steps, **options):
                bar.update(index < levels.num_steps)  # the first is the noise, not a step
                steps += index < levels.num_steps
                on_step(steps / (len(starts) * num_steps))
            done.append(x)
    return torch.cat(done)
