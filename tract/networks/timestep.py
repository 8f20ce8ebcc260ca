"""The timestep number of a noise level, for networks that take the level as one."""

import torch
from torch import Tensor, nn

from tract.base.checks import check_whole
from tract.levels import levels_of

NEAR = 1e-3  # in timesteps; rounding float32 log-SNRs costs up to 3e-5


class Timestep(nn.Module):
    """The timestep (B,), 0 .. num_steps - 1, of a log-SNR (B,) among the noisy levels of a process.

    Interpolated in ln sigma, exact at numbered levels. Levels beyond the first or last count as the
    first or last.
    """

    def __init__(self, noise_schedule: str, num_steps: int):
        super().__init__()
        check_whole("num_steps", num_steps, 2)
        logsnr = levels_of(noise_schedule, num_steps)[1:].logsnr
        self.register_buffer("logsnr", logsnr, persistent=False)

    def forward(self, logsnr: Tensor) -> Tensor:
        # searchsorted needs rising values, but log-SNRs fall.
        value = logsnr.to(self.logsnr.dtype)
        upper = torch.searchsorted(-self.logsnr, -value).clamp(1, len(self.logsnr) - 1)
        before, after = self.logsnr[upper - 1], self.logsnr[upper]
        number = upper - 1 + ((before - value) / (before - after)).clamp(0, 1)
        nearest = number.round()
        return torch.where((number - nearest).abs() < NEAR, nearest, number).float()
