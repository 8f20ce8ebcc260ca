"""Distances between sets of features: Fréchet, KID, precision and recall; Inception Score."""

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


def frechet_distance(moments: Moments, reference: Moments) -> float:
    """Frechet distance of the Gaussians with these moments, of features of one kind.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), called FID only where the features are
    Inception's. Equal to clean-fid's where that is defined; the root is taken of a symmetric
    matrix, so that features which never vary, such as black corners, do no harm.
    """
    cov_1, cov_2 = moments.covariance, reference.covariance
    if torch.equal(moments.mean, reference.mean) and torch.equal(cov_1, cov_2):
        return 0.0  # which rounding would miss
    variance, basis = torch.linalg.eigh(cov_1)
    root = basis * variance.clamp(min=0).sqrt() @ basis.T
    # (C1 C2)^(1/2) has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2): the two products are similar.
    overlap = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt()
    difference = moments.mean - reference.mean
    distance = difference @ difference + (cov_1 + cov_2).trace() - 2 * overlap.sum()
    return max(0.0, distance.item())


ROWS = 1000  # of the matrix of all pairs, in memory at a time


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy of features (N, D) and (M, D), unbiased; N and M above 1.

    Kernel (x y / D + 1)^3; called KID only where the features are Inception's. Binkowski et al.
    2018. clean-fid's is the mean of this over random subsets, which has the same expectation.
    """
    x, y = features.double(), reference.double()
    within = sum(
        (_kernel_sum(z, z) - _kernel(z.square().sum(1), z).sum()) / (len(z) * (len(z) - 1))
        for z in (x, y)
    )
    return (within - 2 * _kernel_sum(x, y) / (len(x) * len(y))).item()


def _kernel(products: Tensor, x: Tensor) -> Tensor:
    return (products / x.shape[1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return sum(_kernel(rows @ y.T, x).sum() for rows in x.split(ROWS))


def precision_recall(features: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of features (N, D) within the reference (M, D), and of the reference within them.

    A point is within a set if it is no farther from a member than that member's k-th nearest
    neighbour in the set. Kynkaanniemi et al. 2019, equations 1 and 2. N and M above k.
    """
    origin = reference.double().mean(0)
    x, y = features.double() - origin, reference.double() - origin
    return _share_within(x, y, k), _share_within(y, x, k)


def _share_within(x: Tensor, y: Tensor, k: int) -> float:
    """Share of x (N, D) within the balls around y (M, D)."""
    # The nearest neighbour of each, at distance 0, is itself.
    radius = torch.cat([_squared(rows, y).kthvalue(k + 1).values for rows in y.split(ROWS)])
    # Rounding must not part what coincides: the squared norms are summed to about 1e-15.
    radius += 1e-12 * torch.cat([x, y]).square().sum(1).max()
    return sum((_squared(rows, y) <= radius).any(1).sum().item() for rows in x.split(ROWS)) / len(x)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (N, M) of all pairs."""
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T


def inception_score(probabilities: Tensor, parts: int = 10) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class), the mean over parts.

    probabilities (N, K) of K classes: 1 where all images are alike, K where each is sure of one of
    all classes. Salimans et al. 2016, section 4; N is at least the number of parts.
    """
    scores = []
    for p in probabilities.double().tensor_split(min(parts, len(probabilities))):
        divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))
        scores.append(divergence.sum(1).mean().exp())
    return torch.stack(scores).mean().item()


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean squared difference over all samples and pixels of two tensors of one shape."""
    return (a - b).double().square().mean().sqrt().item()
