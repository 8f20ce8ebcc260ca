"""Exact denoisers in closed form, as ground truth for experiments and tests.

Each is a denoiser as in `denoiser` and returns E[x0 | x_t], also at sigma = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tract.levels import Level, broadcast


@dataclass(frozen=True)
class Gaussian:
    """Data from one Gaussian with mean (D,) and covariance (D, D), for points (B, D)."""

    mean: Tensor
    covariance: Tensor

    def __call__(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """E[x0 | x_t] = mean + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mean)."""
        alpha, sigma = broadcast(level.alpha, x_t), broadcast(level.sigma, x_t)
        variance, basis = torch.linalg.eigh(self.covariance.to(x_t))
        mean = self.mean.to(x_t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)  # (B, D) in the eigenbasis
        return mean + (gain * ((x_t - alpha * mean) @ basis)) @ basis.T

    def flow(self, x_t: Tensor, t: Level, s: Level) -> Tensor:
        """Map x_t (B, D) from t to s by the exact ODE, which rescales each eigen-direction."""
        variance, basis = torch.linalg.eigh(self.covariance.to(x_t))
        mean = self.mean.to(x_t)

        def spread(level: Level) -> Tensor:
            alpha, sigma = broadcast(level.alpha, x_t), broadcast(level.sigma, x_t)
            return (alpha**2 * variance + sigma**2).sqrt()

        offset = (x_t - broadcast(t.alpha, x_t) * mean) @ basis
        moved = (offset * spread(s) / spread(t)) @ basis.T
        return broadcast(s.alpha, x_t) * mean + moved


@dataclass(frozen=True)
class Mixture:
    """Data from K equal isotropic Gaussians: means (K, ...), one standard deviation std >= 0.

    With std = 0 it is a finite data set, such as images (K, C, H, W): the optimal denoiser for
    training on exactly these. component_labels (K,) makes it conditional.
    """

    means: Tensor
    std: float = 0.0
    component_labels: Tensor | None = None

    def __call__(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """E[x0 | x_t]: the components' posterior means, weighted by their probabilities."""
        means = self.means.to(x_t).flatten(1)  # (K, D)
        x = x_t.flatten(1)  # (B, D)
        alpha, sigma = broadcast(level.alpha, x), broadcast(level.sigma, x)
        variance = alpha**2 * self.std**2 + sigma**2
        # |x - alpha m|^2 without |x|^2, which cancels in the softmax.
        logits = (alpha * (x @ means.T) - alpha**2 * means.square().sum(1) / 2) / variance
        if labels is not None:
            if self.component_labels is None:
                raise ValueError("labels given to a mixture without component_labels: omit them")
            mine = self.component_labels.to(labels)[None] == labels[:, None]  # (B, K)
            if not bool(mine.any(1).all()):
                raise ValueError("labels are not all in component_labels: use only those")
            logits = torch.where(mine, logits, -torch.inf)
        x0 = torch.softmax(logits, 1) @ means
        gain = alpha * self.std**2 / variance
        x0 = x0 + gain * (x - alpha * x0)
        return torch.where(sigma > 0, x0, x / alpha).reshape(x_t.shape)
