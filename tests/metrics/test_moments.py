"""Moments summed batch by batch against numpy's of everything at once."""

import numpy as np
import pytest
import torch

from tract.metrics.distances import Moments, moments_of


def features(count, size=5, seed=0):
    """Correlated features, far from 0, as those of a network after its last rectifier."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 10)


def assert_moments(found: Moments, features, rel=1e-9):
    features = features.numpy()
    assert found.count == len(features)
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=rel)
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=rel * scale)


def merged(batches):
    found = moments_of(batches[0])
    for batch in batches[1:]:
        found = found.merged(moments_of(batch))
    return found


@pytest.mark.parametrize("batch", [1, 3, 64, 1000])
def test_batches_of_any_size_give_the_moments_of_everything(batch):
    x = features(1000)
    assert_moments(merged(x.split(batch)), x)


def test_moments_of_single_precision_are_double():
    x = features(100).float()
    found = moments_of(x)
    assert found.mean.dtype == found.scatter.dtype == torch.float64
    assert_moments(found, x.double())


def test_merging_is_associative_and_symmetric():
    a, b, c = (moments_of(features(n, seed=n)) for n in (2, 30, 500))
    everything = torch.cat([features(n, seed=n) for n in (2, 30, 500)])
    for found in (a.merged(b).merged(c), a.merged(b.merged(c)), c.merged(a).merged(b)):
        assert_moments(found, everything)


def test_means_far_from_zero_cost_no_digits():
    # A sum of squares of 1e16 each has a last digit of 2: it would leave nothing of variances of 1.
    x = features(2000, size=2)
    x = (x - x.mean(0)) / x.std(0)
    found = merged((x + 1e8).split(16))
    assert found.covariance.diagonal().tolist() == pytest.approx([1, 1], rel=1e-7)
