"""Loss weights by noise level, and losses as functions of the squared error."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tract.levels import Level

# Functions of the level t, the end u of the first hop (clean for a teacher), and sigma_data.
WEIGHTS: dict[str, Callable[[Level, Level, float], Tensor]] = {
    # The paper's weight for VP; Salimans & Ho 2022, section 4.
    "truncated_snr": lambda t, u, sigma_data: t.snr.clamp(min=1),
    # Equal to the squared error of v; Salimans & Ho 2022, section 4.
    "snr_plus_one": lambda t, u, sigma_data: t.snr + 1,
    # 1 / c_out^2: the squared error of the network's output; Karras et al. 2022, table 1.
    "edm": lambda t, u, sigma_data: t.snr + 1 / sigma_data**2,
    # The squared error of x0 itself.
    "uniform": lambda t, u, sigma_data: torch.ones_like(t.sigma),
    # iCT's 1 / (sigma_t - sigma_u), in sigma / alpha; Song & Dhariwal 2023, section 3.5.
    "inverse_step": lambda t, u, sigma_data: 1 / (t.sigma / t.alpha - u.sigma / u.alpha),
}

# Losses as functions of the squared error (B,), a sum or mean over pixels, and pseudo-Huber's c.
LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # The paper's.
    "squared": lambda square, c: square,
    # The norm |x - target|, with gradient 0 where the error is 0; Heek et al. 2024.
    "norm": lambda square, c: square.clamp(min=torch.finfo(square.dtype).tiny).sqrt(),
    # Quadratic in small errors, linear in large ones; Song & Dhariwal 2023, section 3.3.
    "pseudo_huber": lambda square, c: (square + c**2).sqrt() - c,
}
REDUCTIONS = ("mean", "sum")


def loss_of(loss: str, reduction: str, pixels: int) -> Callable[[Tensor], Tensor]:
    """Return the loss (B,) as a function of the squared error (B,) averaged over pixels.

    reduction: "mean", so that a gradient clip of 1 means the same at 8x8 and 64x64 pixels; or "sum"
    as in the authors' code, where a clip of 1 normalises every gradient.
    """
    count = pixels if reduction == "sum" else 1
    c = 0.00054 * math.sqrt(count)  # as for pseudo-Huber in d = count dimensions
    return lambda mse: LOSSES[loss](count * mse, c)
