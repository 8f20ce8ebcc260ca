"""The deterministic step between noise levels, and the weight of the TRACT target."""

import torch
from torch import Tensor

from tract.levels import Level, broadcast


def add_noise(x0: Tensor, eps: Tensor, t: Level) -> Tensor:
    """Add noise to clean data: x_t = alpha_t x0 + sigma_t eps. All of shape (B, ...)."""
    return broadcast(t.alpha, x0) * x0 + broadcast(t.sigma, x0) * eps


def ddim_step(x_t: Tensor, x0_hat: Tensor, t: Level, s: Level) -> Tensor:
    """Move x_t (B, ...) from level t to the cleaner level s along the predicted x0_hat.

    x_s = k x_t + (alpha_s - k alpha_t) x0_hat with k = sigma_s / sigma_t: the DDIM step for VP
    (paper, eq. 3), DDIM-VE and EDM's Euler step for VE. Exact at sigma_s = 0: alpha_s x0_hat.
    """
    k = s.sigma / t.sigma
    return broadcast(k, x_t) * x_t + broadcast(s.alpha - k * t.alpha, x_t) * x0_hat


def mean_square(x: Tensor) -> Tensor:
    """Return the mean squares (B,) of samples x (B, ...)."""
    return x.square().flatten(1).mean(1)


def closure_weight(t: Level, u: Level, s: Level) -> Tensor:
    """Return the weight of the first hop's x0 in the target; float64 (B,).

    If x0_a leads from t to u and x0_b from u to s, then lerp(x0_b, x0_a, weight) leads from t to s.
    This is paper eq. 8 solved for its target without a division by what may be zero: the weight is
    in [0, 1], is 1 where u = s, and 0 where sigma_s = 0 < sigma_u.
    """
    first = s.sigma * (u.alpha * t.sigma - t.alpha * u.sigma)
    whole = u.sigma * (s.alpha * t.sigma - t.alpha * s.sigma)
    only_one_hop = (u.sigma == s.sigma) & (u.alpha == s.alpha)
    return torch.where(only_one_hop, 1.0, first / torch.where(only_one_hop, 1.0, whole))
