"""Exact denoisers against posteriors computed by force, the exact flow against an ODE solver."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from tract.levels import Level, cosine, karras
from tract.oracle import Gaussian, Mixture

MEAN = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.2, 0.1, 0.6]], dtype=torch.float64)
GAUSSIAN = Gaussian(MEAN, ROOT @ ROOT.T)
INDICES = [32, 20, 9, 1]


def points(generator, levels, indices, dim):
    """Points about where noised data is at each level."""
    scale = (levels.alpha**2 + levels.sigma**2).sqrt()[indices, None]
    return scale * torch.randn(len(indices), dim, dtype=torch.float64, generator=generator)


def by_matrix(x, alpha, sigma):
    """E[x0 | x] of the Gaussian in the textbook's matrix form."""
    mean, cov = MEAN.numpy(), GAUSSIAN.covariance.numpy()
    gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(3))
    return mean + gain @ (x - alpha * mean)


def test_the_gaussian_denoiser_is_the_conditional_mean_in_matrix_form(levels, generator):
    x = points(generator, levels, INDICES, 3)
    level = levels[INDICES]
    expected = [
        by_matrix(x[i].numpy(), level.alpha[i].item(), level.sigma[i].item()) for i in range(4)
    ]
    torch.testing.assert_close(
        GAUSSIAN(x, level), torch.tensor(np.stack(expected)), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize(("start", "end"), [(32, 20), (20, 9), (32, 0), (9, 1)])
def test_the_gaussian_flow_solves_the_probability_flow_ode(levels, generator, start, end):
    # In the VE picture y = x / alpha, r = sigma / alpha the flow is dy/dr = (y - E[x0]) / r.
    t, s = levels[start], levels[end]
    r_t, r_s = (t.sigma / t.alpha).item(), max((s.sigma / s.alpha).item(), 1e-6)
    x_t = points(generator, levels, [start], 3)[0]
    solved = solve_ivp(
        lambda log_r, y: y - by_matrix(y, 1.0, np.exp(log_r)),
        (np.log(r_t), np.log(r_s)),
        (x_t / t.alpha).numpy(),
        rtol=1e-10,
        atol=1e-12,
    )
    expected = s.alpha * torch.tensor(solved.y[:, -1])
    # Errors of 1e-10 of the start at y up to 1e5 shrink with it; r = 1e-6 in place of 0 moves
    # y by its square over the variance.
    torch.testing.assert_close(GAUSSIAN.flow(x_t[None], t, s)[0], expected, rtol=0, atol=1e-7)


def test_the_gaussian_flow_carries_the_noised_distribution_along(levels):
    # It maps N(alpha_t m, C_t) to N(alpha_s m, C_s): its matrix A has A C_t A' = C_s.
    t, s = levels[24], levels[3]
    origin = GAUSSIAN.flow(t.alpha * MEAN[None], t, s)
    torch.testing.assert_close(origin[0], s.alpha * MEAN, rtol=0, atol=1e-12)
    identity = torch.eye(3, dtype=torch.float64)
    matrix = (GAUSSIAN.flow(t.alpha * MEAN + identity, t, s) - origin).T
    c_t, c_s = (x.alpha**2 * GAUSSIAN.covariance + x.sigma**2 * identity for x in (t, s))
    torch.testing.assert_close(matrix @ c_t @ matrix.T, c_s, rtol=1e-11, atol=1e-11)


def test_flows_of_a_batch_go_between_their_own_levels(levels, generator):
    x = points(generator, levels, INDICES, 3)
    ends = [20, 1, 9, 0]
    together = GAUSSIAN.flow(x, levels[INDICES], levels[ends])
    for row in range(4):
        alone = GAUSSIAN.flow(x[row : row + 1], levels[INDICES[row]], levels[ends[row]])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-13, atol=0)


MEANS = torch.tensor([[-1.0], [0.2], [0.9]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])


def by_quadrature(x, alpha, sigma, means, std):
    """E[x0 | x] in one dimension as a ratio of two integrals over x0."""
    # The posterior is no narrower than this; the trapezoid rule is exact to rounding beyond.
    width = 1 / np.sqrt(1 / std**2 + alpha**2 / sigma**2)
    x0 = np.arange(-4, 4, width / 8)
    prior = sum(np.exp(-((x0 - m) ** 2) / (2 * std**2)) for m in means)
    log_likelihood = -((x - alpha * x0) ** 2) / (2 * sigma**2)
    joint = prior * np.exp(log_likelihood - log_likelihood.max())
    return (x0 * joint).sum() / joint.sum()


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 1, 0])])
def test_the_mixture_denoiser_is_the_posterior_mean_by_quadrature(levels, generator, labels):
    mixture = Mixture(MEANS, 0.3, LABELS)
    x, level = points(generator, levels, INDICES, 1), levels[INDICES]
    expected = []
    for i in range(4):
        means = MEANS if labels is None else MEANS[labels[i] == LABELS]
        args = x[i].item(), level.alpha[i].item(), level.sigma[i].item()
        expected.append(by_quadrature(*args, means[:, 0].tolist(), 0.3))
    ours = mixture(x, level, labels)[:, 0].tolist()
    assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("index", [32, 20, 9, 1])
def test_the_best_denoiser_of_a_finite_data_set_weighs_it_by_density(levels, generator, index):
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64, generator=generator) * 2 - 1
    level = levels[index]
    alpha, sigma = level.alpha.item(), level.sigma.item()
    eps = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=generator)
    x_t = alpha * images + sigma * eps
    for i in range(5):
        squares = [float(((x_t[i] - alpha * image) ** 2).sum()) for image in images]
        densities = [np.exp(-(d - min(squares)) / (2 * sigma**2)) for d in squares]
        shares = [d / sum(densities) for d in densities]
        expected = sum(share * image for share, image in zip(shares, images, strict=True))
        ours = Mixture(images)(x_t[i : i + 1], level)[0]
        # Squared distances of 1e4 in units of sigma^2 with roundings of 1e-16.
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_labels_choose_among_the_images_of_a_finite_data_set(levels, generator):
    images = torch.rand(4, 1, 2, 2, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 0, 1])
    x_t = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=generator)
    both = Mixture(images, component_labels=labels)(x_t, levels[20], torch.tensor([0, 1]))
    for label in (0, 1):
        alone = Mixture(images[labels == label])(x_t[label : label + 1], levels[20])
        torch.testing.assert_close(both[label : label + 1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("oracle", [Mixture(MEANS), Mixture(MEANS, 0.3), Mixture(MEANS[:1], 0.3)])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_clean_point_is_returned_whatever_the_mixture(oracle, alpha):
    x = torch.tensor([[0.123], [-7.0]])
    clean = Level(torch.tensor(alpha).double(), torch.tensor(0.0).double())
    torch.testing.assert_close(oracle(x, clean), x / alpha, rtol=2**-22, atol=0)


def test_a_clean_point_is_returned_by_the_gaussian():
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GAUSSIAN(x, karras(8)[0]), x, rtol=0, atol=1e-12)


def test_clean_and_noisy_samples_go_in_one_batch():
    levels = karras(8)
    x = torch.tensor([[0.4], [0.4]])
    ours = Mixture(MEANS)(x, levels[torch.tensor([0, 8])])
    assert ours[0].item() == pytest.approx(0.4)
    assert ours[1].item() == pytest.approx(MEANS.mean().item(), abs=1e-3)  # sigma = 80


def test_one_component_is_the_isotropic_gaussian(generator):
    mean, std = torch.tensor([0.3, -0.4], dtype=torch.float64), 0.6
    gaussian = Gaussian(mean, std**2 * torch.eye(2, dtype=torch.float64))
    levels = cosine(32)
    x = points(generator, levels, INDICES, 2)
    torch.testing.assert_close(
        Mixture(mean[None], std)(x, levels[INDICES]),
        gaussian(x, levels[INDICES]),
        rtol=1e-11,
        atol=0,
    )


def test_float32_stays_near_float64_down_to_the_smallest_noise(levels, generator):
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64, generator=generator) * 2 - 1
    x_t = images + 0.001 * torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=generator)
    ours = Mixture(images.float())(x_t.float(), karras(32)[1])
    torch.testing.assert_close(
        ours.double(), Mixture(images)(x_t, karras(32)[1]), rtol=0, atol=1e-6
    )


def test_labels_without_component_labels_are_refused():
    with pytest.raises(ValueError, match="labels given to a mixture without component_labels"):
        Mixture(MEANS)(torch.zeros(1, 1), karras(8)[3], torch.tensor([0]))
