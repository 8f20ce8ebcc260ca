"""Exact denoisers in closed form, for experiments and tests that need the truth.

Each obeys the contract of `denoiser` and returns E[x0 | x_t], at sigma = 0 too.
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
        """Where the exact ODE takes x_t (B, D) from t to s: each eigen-direction is rescaled."""
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

    With std = 0 it is a finite data set, images (K, C, H, W) included: the ideal of a network
    trained on exactly these. component_labels (K,) makes it conditional.
    """

    means: Tensor
    std: float = 0.0
    component_labels: Tensor | None = None

    def __call__(self, x_t: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """E[x0 | x_t]: each component's own answer, weighted by its posterior probability."""
        means = self.means.to(x_t).flatten(1)  # (K, D)
        x = x_t.flatten(1)  # (B, D)
        alpha, sigma = broadcast(level.alpha, x), broadcast(level.sigma, x)
        variance = alpha**2 * self.std**2 + sigma**2
        # |x - alpha m|^2 without |x|^2, which the softmax cancels.
        logits = (alpha * (x @ means.T) - alpha**2 * means.square().sum(1) / 2) / variance
        if labels is not None:
            if self.component_labels is None:
                raise ValueError("labels given to a mixture that has no component_labels")
            mine = self.component_labels.to(labels)[None] == labels[:, None]  # (B, K)
            if not bool(mine.any(1).all()):
                raise ValueError("labels name components that this mixture does not have")
            logits = torch.where(mine, logits, -torch.inf)
        x0 = torch.softmax(logits, 1) @ means
        gain = alpha * self.std**2 / variance
        x0 = x0 + gain * (x - alpha * x0)
        return torch.where(sigma > 0, x0, x / alpha).reshape(x_t.shape)
