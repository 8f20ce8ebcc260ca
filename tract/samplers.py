"""Samplers: whole trajectories from noise to data with any number of steps that divides the grid.

DDIM (Euler) and Heun are the same step along different estimates of x0.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tract.denoiser import Denoise
from tract.levels import Level, broadcast
from tract.step import ddim_step, mean_square

# Returns the x0 (B, ...) with which `ddim_step` moves x_t from t to s; gets the data in training.
Solver = Callable[..., Tensor]
ADDIM_ETA = 0.75  # share of the squared error of x0 used as variance; Heek et al. 2024


def ddim_x0(denoise: Denoise, x_t: Tensor, t: Level, s: Level, labels=None, x0=None) -> Tensor:
    """Return the x0 (B, ...) of a DDIM step from t to s, Euler's step in VE. One evaluation."""
    return denoise(x_t, t, labels)


def heun_x0(denoise: Denoise, x_t: Tensor, t: Level, s: Level, labels=None, x0=None) -> Tensor:
    """Return the x0 (B, ...) of a Heun step from t to s; the paper's Runge-Kutta teacher.

    Heun averages the noise estimates at both ends of an Euler step. In x0 this is D_t + weight (D_s
    - D_t) with weight = (sigma_t / alpha_t) / (2 sigma_s / alpha_s), without cancellation; D_t if
    sigma_s = 0. Always two evaluations, because only the device knows whether the second is needed.
    Karras et al. 2022, algorithm 1.
    """
    x0_t = denoise(x_t, t, labels)
    x0_s = denoise(ddim_step(x_t, x0_t, t, s), s, labels)
    weight = torch.where(s.sigma == 0, 0.0, t.sigma * s.alpha / (2 * t.alpha * s.sigma))
    return torch.lerp(x0_t, x0_s, broadcast(weight, x_t))


def addim_x0(denoise: Denoise, x_t: Tensor, t: Level, s: Level, labels=None, x0=None) -> Tensor:
    """Return the x0 (B, ...) of an aDDIM step from t to s: DDIM with its missing variance added.

    x_s = alpha_s D + sqrt(sigma_s^2 + d / |eps|^2 a^2 var) eps with a = alpha_s - alpha_t sigma_s /
    sigma_t, eps the noise that D leaves in x_t, and d the dimension. var is the variance of x0
    given x_t: 0.1 / (2 + SNR), or 0.75 |x0 - D|^2 / d if x0 is known. Heek et al. 2024, algorithm
    3. Computed as D + (root - sigma_s) / a eps without cancellation; equals DDIM where var = 0.
    """
    x0_hat = denoise(x_t, t, labels)
    eps = (x_t - broadcast(t.alpha, x_t) * x0_hat) / broadcast(t.sigma, x_t)
    variance = 0.1 / (2 + t.snr) if x0 is None else ADDIM_ETA * mean_square(x0 - x0_hat)
    missing = variance / mean_square(eps)  # (B,), relative to the noise
    a = s.alpha - t.alpha * s.sigma / t.sigma
    root = (s.sigma**2 + missing * a**2).sqrt().clamp(min=1e-30)  # 0 without missing variance
    return x0_hat + broadcast(a * missing / (root + s.sigma), x_t) * eps


def data_x0(denoise: Denoise, x_t: Tensor, t: Level, s: Level, labels=None, x0=None) -> Tensor:
    """Return the data: a step leads to alpha_s x0 + sigma_s eps. Song et al. 2023, algorithm 3."""
    return x0


SOLVERS: dict[str, Solver] = {"ddim": ddim_x0, "heun": heun_x0, "addim": addim_x0}


def step_indices(grid_steps: int, num_steps: int) -> list[int]:
    """Grid indices T, ..., 0 of num_steps equal steps; raises ValueError if T is not a multiple."""
    if not isinstance(num_steps, int) or num_steps < 1 or grid_steps % num_steps:
        raise ValueError(
            f"num_steps is {num_steps}, which does not divide the grid of {grid_steps} steps: "
            f"choose a divisor of {grid_steps}"
        )
    return list(range(grid_steps, -1, -(grid_steps // num_steps)))


@torch.no_grad()
def trajectory(
    denoise: Denoise,
    eps: Tensor,
    levels: Level,
    num_steps: int,
    *,
    labels: Tensor | None = None,
    solver: Solver = ddim_x0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (grid index, x) from the noisiest level down to the clean one, num_steps + 1 pairs.

    eps: standard normal noise (B, ...), which becomes sigma_T eps at the start.
    """
    indices = step_indices(levels.num_steps, num_steps)
    clean = levels.sigma[0].item() == 0  # then the last step is Euler's
    levels = levels.to(eps.device)
    x = broadcast(levels[-1].sigma, eps) * eps
    yield indices[0], x
    for i_t, i_s in itertools.pairwise(indices):
        t, s = levels[i_t], levels[i_s]
        estimate = ddim_x0 if clean and i_s == 0 else solver
        x = ddim_step(x, estimate(denoise, x, t, s, labels), t, s)
        yield i_s, x


def sample(denoise: Denoise, eps: Tensor, levels: Level, num_steps: int, **options) -> Tensor:
    """Map noise eps (B, ...) to data in num_steps steps; options as for `trajectory`."""
    for _, x in trajectory(denoise, eps, levels, num_steps, **options):
        pass
    return x
