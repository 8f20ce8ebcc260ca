"""Distances between samples and data, and between samples from the same noise."""

import numpy as np
from torch import Tensor

from tract.data import Data, to_unit


def frechet_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features (N, D) and (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as computed by clean-fid. It is called FID only
    where the features are Inception's.
    """
    from cleanfid.fid import frechet_distance as clean_fid_distance

    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (samples, reference)]
    (mean, covariance), (reference_mean, reference_covariance) = moments
    return float(clean_fid_distance(mean, covariance, reference_mean, reference_covariance))


def fd_pixels(samples: Tensor, data: Data) -> float:
    """Frechet distance of pixel means and covariances of samples (N, ...) in [-1, 1] to data."""
    pixels = samples.flatten(1).double().cpu().numpy()
    return frechet_distance(pixels, to_unit(data.samples).flatten(1).double().cpu().numpy())


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean squared difference over all samples and pixels of two tensors of one shape."""
    return (a - b).double().square().mean().sqrt().item()
