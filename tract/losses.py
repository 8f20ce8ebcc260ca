"""Loss weights by noise level, and losses of a sample as functions of its squared error."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tract.denoiser import Denoise
from tract.levels import Level
from tract.step import mean_square


def truncated_snr(t: Level, u: Level, sigma_data: float) -> Tensor:
    """max(1, SNR), the paper's weight for VP; Salimans & Ho 2022, section 4."""
    return t.snr.clamp(min=1)


def snr_plus_one(t: Level, u: Level, sigma_data: float) -> Tensor:
    """SNR + 1, the same loss as on v; Salimans & Ho 2022, section 4."""
    return t.snr + 1


def edm_weight(t: Level, u: Level, sigma_data: float) -> Tensor:
    """SNR + 1 / sigma_data^2 = 1 / c_out^2: every level's network loss counts the same.

    Karras et al. 2022, table 1.
    """
    return t.snr + 1 / sigma_data**2


def uniform(t: Level, u: Level, sigma_data: float) -> Tensor:
    """1: the squared error of x0 itself."""
    return torch.ones_like(t.sigma)


def inverse_step(t: Level, u: Level, sigma_data: float) -> Tensor:
    """1 / (sigma_t - sigma_u), of sigma / alpha where alpha is not 1; iCT's weight.

    Song & Dhariwal 2023, section 3.5.
    """
    return 1 / (t.sigma / t.alpha - u.sigma / u.alpha)


# Of the level t, the level u that the first hop leads to (clean for a teacher), and sigma_data.
WEIGHTS = {
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "edm": edm_weight,
    "uniform": uniform,
    "inverse_step": inverse_step,
}


def squared(square: Tensor, scale: float) -> Tensor:
    """The squared error itself, of the paper."""
    return square


def norm(square: Tensor, scale: float) -> Tensor:
    """Its root |x - target|; Heek et al. 2024. No gradient where there is no error."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def pseudo_huber(square: Tensor, scale: float) -> Tensor:
    """sqrt(error^2 + c^2) - c: squared where the error is small, its root where it is large.

    c = 0.00054 sqrt(d) for d pixels; Song & Dhariwal 2023, section 3.3.
    """
    c = 0.00054 * scale
    return (square + c**2).sqrt() - c


# (square, scale): error squared (B,), summed or averaged over d pixels; scale sqrt(d) or 1.
LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "squared": squared,
    "norm": norm,
    "pseudo_huber": pseudo_huber,
}
REDUCTIONS = ("mean", "sum")


def loss_of(loss: str, reduction: str, pixels: int) -> Callable[[Tensor], Tensor]:
    """The loss (B,) as a function of the squared error (B,) that is averaged over pixels.

    reduction: "mean", so that a gradient clip of 1 means the same at 8x8 and at 64x64 pixels; or
    "sum" over pixels, as the paper's authors take it: then a clip of 1 normalises every gradient.
    """
    count = pixels if reduction == "sum" else 1
    return lambda mse: LOSSES[loss](count * mse, math.sqrt(count))


def squared_error(
    denoise: Denoise, x_t: Tensor, t: Level, target: Tensor, labels: Tensor | None
) -> Tensor:
    """Squared error (B,) of the denoised x_t (B, ...) against target, averaged over pixels."""
    return mean_square(denoise(x_t, t, labels) - target)
