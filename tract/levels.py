"""Noise levels: the amounts of signal and noise at every step of a diffusion.

A grid of levels is a sequence of `Level`s in float64; index 0 is clean, index T the noisiest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tract.base.checks import check_choice, check_whole
from tract.phases import MOST_STEPS


@dataclass(frozen=True)
class Level:
    """One noise level, or a sequence of them: x_t = alpha x0 + sigma eps.

    Variance preserving (VP) means alpha^2 + sigma^2 = 1, variance exploding (VE) alpha = 1.
    Both fields are float64 tensors of the same shape, () or (B,) or (T + 1,).
    """

    alpha: Tensor
    sigma: Tensor

    def __getitem__(self, index) -> "Level":
        return Level(self.alpha[index], self.sigma[index])

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def num_steps(self) -> int:
        """T, the number of steps from the noisiest level to the clean one."""
        return len(self) - 1

    @property
    def snr(self) -> Tensor:
        return (self.alpha / self.sigma) ** 2

    @property
    def logsnr(self) -> Tensor:
        return 2 * (self.alpha.log() - self.sigma.log())

    def to(self, device: torch.device | str) -> "Level":
        return Level(self.alpha.to(device), self.sigma.to(device))


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a coefficient () or (B,) to multiply x (B, ...), in x's dtype and on its device.

    Coefficients are computed in float64 and rounded only here: this is the precision rule.
    """
    coefficient = coefficient.to(dtype=x.dtype, device=x.device)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def cosine(num_steps: int = 1024, logsnr_max: float = 20.0) -> Level:
    """VP levels on the cosine schedule, equally spaced in time, log-SNR clipped at +-logsnr_max.

    logsnr(t) = -2 ln tan(a t + b) for t = i / T. Salimans & Ho 2022, section 2; the levels of
    the paper's VP teachers with T = 1024. Returns T + 1 levels.
    """
    check_whole("num_steps", num_steps, 1, MOST_STEPS)
    limit = torch.tensor(logsnr_max, dtype=torch.float64)
    b = torch.atan(torch.exp(-limit / 2))
    a = torch.atan(torch.exp(limit / 2)) - b
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    logsnr = -2 * torch.log(torch.tan(a * time + b))
    # Not 1 - alpha^2: at logsnr 20 that would lose half of float64's digits of sigma.
    return Level(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())


def karras(
    num_steps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Level:
    """VE levels of EDM: T noise levels equally spaced in sigma^(1/rho), and sigma = 0 at index 0.

    Karras et al. 2022, equation 5, counted from the clean end. Returns T + 1 levels.
    """
    check_whole("num_steps", num_steps, 2, MOST_STEPS)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma = torch.linspace(low, high, num_steps, dtype=torch.float64) ** rho
    sigma = torch.cat([torch.zeros(1, dtype=torch.float64), sigma])
    return Level(torch.ones_like(sigma), sigma)


def ddpm_linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Level:
    """VP levels of DDPM's linear betas; index i is that paper's timestep i, index 0 is clean.

    alpha_i^2 = product of (1 - beta_j) for j <= i. Ho et al. 2020, section 4. Returns T + 1 levels.
    """
    check_whole("num_steps", num_steps, 1, MOST_STEPS)
    return _from_betas(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))


def ddpm_cosine(num_steps: int = 1000) -> Level:
    """VP levels of improved DDPM: alpha follows a cosine, betas are capped at 0.999.

    alpha_i = cos(pi / 2 (i / T + 0.008) / 1.008) up to a factor; indices as for `ddpm_linear`.
    Nichol & Dhariwal 2021, equation 17. Returns T + 1 levels.
    """
    check_whole("num_steps", num_steps, 1, MOST_STEPS)
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    alpha_squared = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
    return _from_betas((1 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=0.999))


def _from_betas(beta: Tensor) -> Level:
    """VP levels with alpha_i^2 = product of (1 - beta_j) for j <= i."""
    log_alpha_squared = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta)])
    log_alpha_squared = log_alpha_squared.cumsum(0)
    return Level((log_alpha_squared / 2).exp(), (-torch.expm1(log_alpha_squared)).sqrt())


NOISE_SCHEDULES = {make.__name__: make for make in (cosine, karras, ddpm_linear, ddpm_cosine)}
FIXED = ("ddpm_linear", "ddpm_cosine")  # T changes the process itself, not just its grid


def levels_of(noise_schedule: str, num_steps: int) -> Level:
    """Return the levels of a named noise schedule; raises ValueError for an unknown name."""
    check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
    return NOISE_SCHEDULES[noise_schedule](num_steps)
