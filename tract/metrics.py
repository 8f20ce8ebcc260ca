"""Distances between samples and data, and between samples from the same noise."""

import numpy as np
from torch import Tensor

from tract.data import Data, to_unit


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features (N, D) and (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), called FID only where the features are
    Inception's. Equal to clean-fid's where that is defined; the root is taken of a symmetric
    matrix, so that features which never vary, such as black corners, do no harm.
    """
    (mean_1, cov_1), (mean_2, cov_2) = (
        (x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (features, reference)
    )
    variance, basis = np.linalg.eigh(cov_1)
    root = basis * variance.clip(min=0) ** 0.5 @ basis.T
    # (C1 C2)^(1/2) has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2): the two products are similar.
    overlap = np.linalg.eigvalsh(root @ cov_2 @ root).clip(min=0) ** 0.5
    difference = mean_1 - mean_2
    return float(difference @ difference + np.trace(cov_1 + cov_2) - 2 * overlap.sum())


def fd_pixels(samples: Tensor, data: Data) -> float:
    """Frechet distance of pixel means and covariances of samples (N, ...) in [-1, 1] to data."""
    pixels = samples.flatten(1).double().cpu().numpy()
    return frechet_distance(pixels, to_unit(data.samples).flatten(1).double().cpu().numpy())


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean squared difference over all samples and pixels of two tensors of one shape."""
    return (a - b).double().square().mean().sqrt().item()
