"""Loss weights by noise level, and losses as functions of a sample's squared error."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tract.levels import Level

# Of the level t, the level u that the first hop leads to (clean for a teacher), and sigma_data.
WEIGHTS: dict[str, Callable[[Level, Level, float], Tensor]] = {
    # The paper's for VP; Salimans & Ho 2022, section 4.
    "truncated_snr": lambda t, u, sigma_data: t.snr.clamp(min=1),
    # The same loss as on v; Salimans & Ho 2022, section 4.
    "snr_plus_one": lambda t, u, sigma_data: t.snr + 1,
    # 1 / c_out^2, so that every level's network loss counts the same; Karras et al. 2022, table 1.
    "edm": lambda t, u, sigma_data: t.snr + 1 / sigma_data**2,
    # The squared error of x0 itself.
    "uniform": lambda t, u, sigma_data: torch.ones_like(t.sigma),
    # Of sigma / alpha where alpha is not 1; iCT: Song & Dhariwal 2023, section 3.5.
    "inverse_step": lambda t, u, sigma_data: 1 / (t.sigma / t.alpha - u.sigma / u.alpha),
}

# Of a sample's squared error (B,), summed or averaged over pixels, and pseudo-Huber's c.
LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # The paper's.
    "squared": lambda square, c: square,
    # The root |x - target|, without a gradient where there is no error; Heek et al. 2024.
    "norm": lambda square, c: square.clamp(min=torch.finfo(square.dtype).tiny).sqrt(),
    # Squared where the error is small, its root where it is large; Song & Dhariwal 2023, 3.3.
    "pseudo_huber": lambda square, c: (square + c**2).sqrt() - c,
}
REDUCTIONS = ("mean", "sum")


def loss_of(loss: str, reduction: str, pixels: int) -> Callable[[Tensor], Tensor]:
    """The loss (B,) as a function of the squared error (B,) that is averaged over pixels.

    reduction: "mean", so that a gradient clip of 1 means the same at 8x8 and at 64x64 pixels; or
    "sum" over pixels, as the paper's authors take it: then a clip of 1 normalises every gradient.
    """
    count = pixels if reduction == "sum" else 1
    c = 0.00054 * math.sqrt(count)  # as for pseudo-Huber in d = count dimensions
    return lambda mse: LOSSES[loss](count * mse, c)
