"""Distances against closed forms."""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_fid_distance

from tract.data import Data, to_unit
from tract.metrics import fd_pixels, frechet_distance, rmse


def features(mean, covariance, count=50, seed=0):
    """Samples (count, D) whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T
    return x @ np.linalg.cholesky(covariance).T + mean


def random_covariance(size, seed):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def test_independent_coordinates_add_their_one_dimensional_distances():
    m1, s1 = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 3.0])
    m2, s2 = np.array([0.3, 1.0, 2.0]), np.array([2.0, 0.5, 1.0])
    ours = frechet_distance(
        features(m1, np.diag(s1**2)), features(m2, np.diag(s2**2), count=70, seed=1)
    )
    # (m1 - m2)^2 + (s1 - s2)^2 each; sums of 50 products in float64.
    assert ours == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), rel=1e-10)


def test_the_overlap_is_the_sum_of_roots_of_the_products_eigenvalues():
    c1, c2 = random_covariance(5, 1), random_covariance(5, 2)
    overlap = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    expected = np.trace(c1) + np.trace(c2) - 2 * overlap
    ours = frechet_distance(features(np.zeros(5), c1), features(np.zeros(5), c2, seed=1))
    assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument")  # clean-fid's own
def test_it_is_clean_fids_distance():
    a, b = (features(np.full(4, s), random_covariance(4, s), seed=s) for s in (1, 2))
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    expected = clean_fid_distance(*moments[0], *moments[1])
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_equal_features_have_no_distance():
    a = features(np.ones(4), random_covariance(4, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_it_is_symmetric():
    a, b = (features(np.full(4, s), random_covariance(4, s), seed=s) for s in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_features_that_never_vary_count_by_their_mean_alone():
    a, b = (features(np.zeros(2), random_covariance(2, s), seed=s) for s in (1, 2))
    a_and_constant, b_and_constant = (
        np.column_stack([x, np.full(50, value)]) for x, value in ((a, 1.0), (b, 1.5))
    )
    expected = frechet_distance(a, b) + 0.25
    # An eigenvalue of rounding size, 1e-16, has the root 1e-8.
    assert frechet_distance(a_and_constant, b_and_constant) == pytest.approx(expected, abs=1e-7)


def test_pixels_are_compared_on_the_scale_of_samples(generator):
    pixels = torch.randint(256, (64, 1, 2, 2), generator=generator).to(torch.uint8)
    data = Data("noise", pixels)
    assert fd_pixels(to_unit(pixels), data) == pytest.approx(0, abs=1e-10)
    # The same spread, every one of four pixels brighter by 0.5.
    assert fd_pixels(to_unit(pixels) + 0.5, data) == pytest.approx(4 * 0.25, rel=1e-6)


def test_rmse_is_the_root_of_the_mean_square():
    a, b = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert rmse(a, b) == pytest.approx(2.5)
