"""Distances against closed forms, loops, and clean-fid."""

import math

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as clean_fid_distance
from cleanfid.fid import kernel_distance as clean_fid_kernel_distance

from tract.metrics import distances as metrics
from tract.metrics.distances import (
    frechet_distance,
    kernel_distance,
    moments_of,
    precision_recall,
    rmse,
)


def features(mean, covariance, count=50, seed=0):
    """Samples (count, D) whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T
    return torch.from_numpy(x @ np.linalg.cholesky(covariance).T + mean)


def random_covariance(size, seed):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def distance(a, b):
    return frechet_distance(moments_of(a), moments_of(b))


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_independent_coordinates_add_their_one_dimensional_distances(scale):
    m1, s1 = scale * np.array([0.0, 1.0, -2.0]), scale * np.array([1.0, 0.5, 3.0])
    m2, s2 = scale * np.array([0.3, 1.0, 2.0]), scale * np.array([2.0, 0.5, 1.0])
    ours = distance(features(m1, np.diag(s1**2)), features(m2, np.diag(s2**2), count=70, seed=1))
    # (m1 - m2)^2 + (s1 - s2)^2 each; sums of 50 products in float64.
    assert ours == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), rel=1e-10)


def test_the_overlap_is_the_sum_of_roots_of_the_products_eigenvalues():
    c1, c2 = random_covariance(5, 1), random_covariance(5, 2)
    overlap = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    expected = np.trace(c1) + np.trace(c2) - 2 * overlap
    ours = distance(features(np.zeros(5), c1), features(np.zeros(5), c2, seed=1))
    assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument")  # clean-fid's own
@pytest.mark.parametrize("size", [4, 64])
def test_it_is_clean_fids_distance(size):
    a, b = (features(np.full(size, s), random_covariance(size, s), 200, seed=s) for s in (1, 2))
    moments = [(x.numpy().mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    expected = clean_fid_distance(*moments[0], *moments[1])
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_equal_features_have_no_distance():
    a = features(np.ones(4), random_covariance(4, 3))
    assert distance(a, a) == pytest.approx(0, abs=1e-10)


def test_it_is_symmetric():
    a, b = (features(np.full(4, s), random_covariance(4, s), seed=s) for s in (1, 2))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)


def test_features_that_never_vary_count_by_their_mean_alone():
    a, b = (features(np.zeros(2), random_covariance(2, s), seed=s) for s in (1, 2))
    a_and_constant, b_and_constant = (
        torch.column_stack([x, torch.full((50,), value)]) for x, value in ((a, 1.0), (b, 1.5))
    )
    expected = distance(a, b) + 0.25
    # An eigenvalue of rounding size, 1e-16, has the root 1e-8.
    assert distance(a_and_constant, b_and_constant) == pytest.approx(expected, abs=1e-7)


def normal(count, seed, size=6, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) + shift


@pytest.mark.parametrize("rows", [7, 1000])
def test_the_kernel_distance_is_clean_fids_where_its_subset_is_everything(rows, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", rows)
    x, y = normal(40, 1).double(), normal(40, 2, shift=0.3).double()
    expected = clean_fid_kernel_distance(y.numpy(), x.numpy(), num_subsets=1, max_subset_size=40)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_sets_of_two_sizes_is_the_sum_over_pairs():
    x, y = normal(5, 1, size=2).double(), normal(8, 2, size=2, shift=1).double()
    kernel = lambda a, b: (float(a @ b) / 2 + 1) ** 3  # noqa: E731
    pairs = [
        sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    across = sum(kernel(a, b) for a in x for b in y) / 40
    assert kernel_distance(x, y) == pytest.approx(sum(pairs) - 2 * across, rel=1e-10)


def test_the_kernel_distance_of_one_distribution_is_unbiased():
    values = [kernel_distance(normal(100, 2 * s), normal(100, 2 * s + 1)) for s in range(40)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0


def within(x, y, k):
    """Share of x inside a ball around some y, by loops over pairs."""

    def radius(center):
        return sorted(math.dist(center, other) for other in y)[k]  # the first is itself

    balls = [(center, radius(center)) for center in y]
    return sum(any(math.dist(a, c) <= r for c, r in balls) for a in x) / len(x)


@pytest.mark.parametrize("rows", [7, 1000])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_a_loop_over_pairs(k, rows, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", rows)
    x, y = normal(30, 1, size=2, shift=1.0), normal(45, 2, size=2)
    lists = x.double().tolist(), y.double().tolist()
    expected = within(*lists, k), within(*lists[::-1], k)
    assert precision_recall(x, y, k) == expected
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    assert expected[0] != expected[1]


def test_samples_of_one_mode_are_precise_and_recall_that_mode_alone():
    left, right = normal(50, 1), normal(50, 2, shift=100.0)
    assert precision_recall(left, torch.cat([left, right])) == (1, 0.5)
    assert precision_recall(torch.cat([left, right]), left) == (0.5, 1)


@pytest.mark.parametrize("seed", range(10))
def test_samples_that_coincide_are_within_each_other_whatever_is_rounded(seed):
    # Ten images alike have their third neighbour at distance 0, as have those like them.
    blank, others = 3 * normal(1, seed, 300) + 10, 3 * normal(200, seed + 10, 300) + 10
    reference = torch.cat([blank.repeat(10, 1), others])
    assert precision_recall(blank.repeat(4 + seed % 3, 1), reference)[0] == 1


def test_rmse_is_the_root_of_the_mean_square():
    a, b = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert rmse(a, b) == pytest.approx(2.5)


def test_the_inception_score_counts_the_classes_that_images_are_sure_to_be_of():
    sure = torch.eye(8).repeat(10, 1)  # ten parts with each class once
    assert metrics.inception_score(sure) == pytest.approx(8)
    assert metrics.inception_score(torch.full((80, 8), 1 / 8)) == pytest.approx(1)
    # Two classes at 1 - q and q, alike in number: ln 2 less the entropy of q.
    q = torch.tensor(0.1, dtype=torch.double)
    rows = torch.stack([torch.stack([q, 1 - q]), torch.stack([1 - q, q])]).repeat(40, 1)
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    assert metrics.inception_score(rows) == pytest.approx(2 * (-entropy).exp().item())


def test_the_inception_score_is_the_mean_over_parts():
    sure = torch.eye(2).repeat_interleave(20, 0)  # each of ten parts knows one class alone
    assert metrics.inception_score(sure) == pytest.approx(1)
    assert metrics.inception_score(sure, parts=1) == pytest.approx(2)
