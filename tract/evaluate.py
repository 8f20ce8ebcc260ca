"""Sampling a denoiser from fixed noise and measuring the result, into a row and a file."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tract.data import Data
from tract.denoiser import Denoise, clamped
from tract.levels import Level
from tract.metrics import fd_pixels, rmse
from tract.samplers import step_indices, trajectory
from tract.state import read_tensors, write_tensors
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
            for _, x in trajectory(limited, eps[part], levels, num_steps, labels=mine):
                bar.update()
            done.append(x)
    return torch.cat(done)


def measure(
    folder: str | Path,
    samples: Mapping[int, Tensor],
    data: Data,
    reference: Tensor,
    **columns: object,
) -> list[dict]:
    """A row for the samples of every number of steps, which are also kept in the folder.

    reference: the teacher's own output from the same noise. columns: the rest of each row.
    """
    tensors = {str(num_steps): x for num_steps, x in samples.items()}
    write_tensors(Path(folder) / "samples.safetensors", tensors, {"columns": columns})
    return [
        {
            **columns,
            "nfe": num_steps,
            "fd_pixels": fd_pixels(x, data),
            "rmse_to_teacher": rmse(x, reference),
        }
        for num_steps, x in samples.items()
    ]


def read_samples(folder: str | Path) -> dict[int, Tensor]:
    """The samples that `measure` kept, by number of steps. FileNotFoundError if there are none."""
    path = Path(folder) / "samples.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no samples in {folder}: execute the notebook that makes them")
    return {int(name): x for name, x in read_tensors(path)[0].items()}
