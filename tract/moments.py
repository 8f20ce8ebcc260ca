"""Count, mean and covariance of features of which only a batch is ever in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,), and scatter (D, D): the sum of (x - mean)(x - mean)^T; float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D), as numpy's cov; not a number where count is 1."""
        return self.scatter / (self.count - 1)

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both sets together; Chan, Golub & LeVeque 1979, equation 2.1.

        No sum of squares is ever subtracted from another: means far from 0 cost no digits.
        """
        count = self.count + other.count
        share = other.count / count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * share)
        return Moments(count, self.mean + share * shift, scatter)


def moments_of(features: Tensor) -> Moments:
    """Moments of features (N, D), on the CPU, where there is float64 on every machine."""
    features = features.double().cpu()
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)
