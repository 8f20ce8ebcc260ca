"""The interface of all models, `x0 = denoise(x_t, level, labels=None)`, and networks that have it.

Teachers, students, averages, exact oracles and loaded checkpoints are all such callables.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tract.base.checks import check_choice, check_positive
from tract.levels import Level, broadcast

Denoise = Callable[..., Tensor]  # denoise(x_t, level, labels=None) -> x0, shaped like x_t

# (c_skip, c_out, c_in) of a prediction type: x0 = c_skip x_t + c_out F(c_in x_t). The first three
# show the network x_t / n, the VP picture of a VE sample, with n^2 = alpha^2 + sigma^2.
Scalings = tuple[Tensor, Tensor, Tensor]


def x0_scalings(level: Level, sigma_data: float) -> Scalings:
    """The network outputs x0 itself, as the paper's VP networks do."""
    norm = (level.alpha**2 + level.sigma**2).sqrt()
    return torch.zeros_like(norm), torch.ones_like(norm), 1 / norm


def eps_scalings(level: Level, sigma_data: float) -> Scalings:
    """The network outputs the noise; Ho et al. 2020. Its errors are multiplied by sigma / alpha."""
    norm = (level.alpha**2 + level.sigma**2).sqrt()
    return 1 / level.alpha, -level.sigma / level.alpha, 1 / norm


def v_scalings(level: Level, sigma_data: float) -> Scalings:
    """The network outputs v = (alpha eps - sigma x0) / n; Salimans & Ho 2022, appendix D."""
    norm = (level.alpha**2 + level.sigma**2).sqrt()
    return level.alpha / norm**2, -level.sigma / norm, 1 / norm


def edm_scalings(level: Level, sigma_data: float, least: float = 0.0) -> Scalings:
    """EDM's unit-variance input and target for data of standard deviation sigma_data.

    Karras et al. 2022, table 1, extended to any alpha. With sigma_data = 1 the output is -v. least:
    sigma / alpha where x0 is the sample, in consistency models; Song et al. 2023, appendix C.
    """
    beyond = level.sigma - least * level.alpha
    variance = level.alpha**2 * sigma_data**2 + level.sigma**2
    c_skip = level.alpha * sigma_data**2 / (level.alpha**2 * sigma_data**2 + beyond**2)
    return c_skip, beyond * sigma_data / variance.sqrt(), 1 / variance.sqrt()


SCALINGS = {
    "x0": x0_scalings,
    "eps": eps_scalings,
    "v": v_scalings,
    "edm": edm_scalings,
    "consistency": partial(edm_scalings, least=0.002),
    "x0_eps": v_scalings,  # two outputs, which Denoiser combines into v
}


class Denoiser(nn.Module):
    """A network `net(x, logsnr, labels)` with the meaning of its output: a denoiser.

    prediction: a name in SCALINGS. "x0_eps": a net with twice the image's channels predicts both;
    x0 is used at high noise, eps at low noise (Salimans & Ho 2022, for ImageNet-64). sigma_data:
    the data's standard deviation, for "edm". The network runs in its own dtype on inputs of about
    unit variance. It receives log-SNR clipped to +-20, so that sigma = 0 needs no special case.
    """

    def __init__(self, net: nn.Module, prediction: str = "x0", sigma_data: float = 0.5):
        super().__init__()
        check_choice("prediction", prediction, SCALINGS)
        check_positive("sigma_data", sigma_data)
        self.net = net
        self.prediction = prediction
        self.sigma_data = sigma_data

    def forward(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Predict x0 from x_t (B, ...) at a level () or (B,); labels are (B,) integers or None."""
        c_skip, c_out, c_in = SCALINGS[self.prediction](level, self.sigma_data)
        logsnr = level.logsnr.clamp(-20, 20).to(x_t).expand(len(x_t))
        inputs = (broadcast(c_in, x_t) * x_t).to(next(self.net.parameters(), x_t).dtype)
        F_x = self.net(inputs, logsnr, labels).to(x_t.dtype)
        if self.prediction == "x0_eps":
            x0, eps = F_x.chunk(2, dim=1)
            F_x = broadcast(level.alpha * c_in, eps) * eps + broadcast(c_out, x0) * x0
        return broadcast(c_skip, x_t) * x_t + broadcast(c_out, x_t) * F_x


def clamped(denoise: Denoise) -> Denoise:
    """Return the denoiser with its x0 clamped to [-1, 1], the range of images."""
    return lambda x_t, level, labels=None: denoise(x_t, level, labels).clamp(-1, 1)
