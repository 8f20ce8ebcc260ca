"""Sampling a denoiser from noise that is the same for every model."""

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from tract.data import Data
from tract.denoiser import Denoise, clamped
from tract.levels import Level
from tract.samplers import step_indices, trajectory
from tract.train import SAMPLES, generator_for


def fixed_noise(data: Data, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Noise (count, ...) shaped like the data, and labels in turn, the same for every model."""
    eps = torch.randn(count, *data.shape, generator=generator_for("cpu", seed, SAMPLES))
    device = data.samples.device
    labels = torch.arange(count) % data.num_classes if data.num_classes else None
    return eps.to(device), None if labels is None else labels.to(device)


def sample_batches(
    denoise: Denoise,
    eps: Tensor,
    levels: Level,
    num_steps: int,
    *,
    labels: Tensor | None = None,
    clamp: bool = True,
    batch: int = 256,
) -> Tensor:
    """DDIM samples (N, ...) for noise of any N, a batch at a time, under a progress bar."""
    step_indices(levels.num_steps, num_steps)
    limited = clamped(denoise) if clamp else denoise
    starts = range(0, len(eps), batch)
    done = []
    with tqdm(
        desc=f"sampling at {num_steps} steps",
        total=len(starts) * num_steps,
        unit="call",
        file=sys.stdout,
        mininterval=1,
        leave=False,
    ) as bar:
        for start in starts:
            part = slice(start, start + batch)
            mine = None if labels is None else labels[part]
            for index, x in trajectory(limited, eps[part], levels, num_steps, labels=mine):
                bar.update(index < levels.num_steps)  # the first is the noise, not a call
            done.append(x)
    return torch.cat(done)
