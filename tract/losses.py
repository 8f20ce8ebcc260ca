"""Loss weights by noise level, and the squared error of a denoised sample."""

import torch
from torch import Tensor

from tract.denoiser import Denoise
from tract.levels import Level


def truncated_snr(level: Level, sigma_data: float) -> Tensor:
    """max(1, SNR), the paper's weight for VP; Salimans & Ho 2022, section 4."""
    return level.snr.clamp(min=1)


def snr_plus_one(level: Level, sigma_data: float) -> Tensor:
    """SNR + 1, the same loss as on v; Salimans & Ho 2022, section 4."""
    return level.snr + 1


def edm_weight(level: Level, sigma_data: float) -> Tensor:
    """SNR + 1 / sigma_data^2 = 1 / c_out^2: every level's network loss counts the same.

    Karras et al. 2022, table 1.
    """
    return level.snr + 1 / sigma_data**2


def uniform(level: Level, sigma_data: float) -> Tensor:
    """1: the squared error of x0 itself."""
    return torch.ones_like(level.sigma)


WEIGHTS = {
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "edm": edm_weight,
    "uniform": uniform,
}


def squared_error(
    denoise: Denoise, x_t: Tensor, t: Level, target: Tensor, labels: Tensor | None
) -> Tensor:
    """Squared error (B,) of the denoised x_t (B, ...) against target, averaged over pixels.

    Averaged, not summed: the gradient clip of 1 then means the same at 8x8 and at 64x64 pixels.
    """
    return (denoise(x_t, t, labels) - target).square().flatten(1).mean(1)
