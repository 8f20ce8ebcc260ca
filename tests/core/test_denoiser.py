"""What a network's output means: every prediction type against the quantity it predicts."""

import math

import pytest
import torch

from tract.denoiser import SCALINGS, Denoiser, clamped, edm_scalings, v_scalings
from tract.levels import Level, cosine, karras
from tract.step import add_noise

SIGMA_DATA = 0.7


class Returns(torch.nn.Module):
    """A network whose output is given, and which remembers what it was shown."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, logsnr, labels):
        self.x, self.logsnr, self.labels = x, logsnr, labels
        return self.output


def noised(levels, generator, indices=(32, 20, 9, 1)):
    x0, eps = torch.randn(2, len(indices), 3, 4, 4, dtype=torch.float64, generator=generator)
    level = levels[torch.tensor(indices)]
    return x0, eps, level, add_noise(x0, eps, level)


def column(coefficient):
    return coefficient[:, None, None, None]


def true_output(prediction, x0, eps, level):
    """What a perfect network says, from the definitions in the literature."""
    alpha, sigma = column(level.alpha), column(level.sigma)
    norm = (alpha**2 + sigma**2).sqrt()
    if prediction == "edm":  # Karras et al., table 1, of the VE picture x / alpha
        x, sigma = (alpha * x0 + sigma * eps) / alpha, sigma / alpha
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
        return (x0 - c_skip * x) / c_out
    return {
        "x0": x0,
        "eps": eps,
        "v": (alpha * eps - sigma * x0) / norm,
        "x0_eps": torch.cat([x0, eps], 1),
    }[prediction]


@pytest.mark.parametrize("prediction", sorted(SCALINGS.keys() - {"consistency"}))
def test_a_perfect_network_gives_x0(levels, generator, prediction):
    x0, eps, level, x_t = noised(levels, generator)
    net = Returns(true_output(prediction, x0, eps, level))
    # sigma / alpha up to 22,026 magnifies roundings of 1e-16 where eps is predicted.
    torch.testing.assert_close(
        Denoiser(net, prediction, SIGMA_DATA)(x_t, level), x0, rtol=0, atol=1e-11
    )


def test_edm_scales_its_input_to_unit_variance(levels):
    c_in = edm_scalings(levels, SIGMA_DATA)[2]
    variance = c_in**2 * (levels.alpha**2 * SIGMA_DATA**2 + levels.sigma**2)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-14)


def test_edm_scales_its_target_to_unit_variance(levels):
    levels = levels[1:]  # without noise there is nothing to predict
    c_skip, c_out, _ = edm_scalings(levels, SIGMA_DATA)
    # The target is (x0 - c_skip x_t) / c_out with independent x0 and eps.
    of_x0 = (1 - c_skip * levels.alpha) ** 2 * SIGMA_DATA**2
    of_eps = (c_skip * levels.sigma) ** 2
    variance = (of_x0 + of_eps) / c_out**2
    # 1 - c_skip alpha is sigma^2 / ... >= 8e-6 at sigma = 0.002: 1e-16 / 8e-6 = 1e-11.
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-10)


def test_edm_leaves_the_network_uncorrelated_with_its_input(levels):
    # So c_skip is the linear regression of x0 on x_t, which makes c_out the least possible.
    c_skip = edm_scalings(levels, SIGMA_DATA)[0]
    covariance = levels.alpha * SIGMA_DATA**2
    variance = levels.alpha**2 * SIGMA_DATA**2 + levels.sigma**2
    torch.testing.assert_close(c_skip, covariance / variance, rtol=1e-14, atol=0)


def test_edm_for_unit_variance_data_on_vp_is_minus_v():
    edm, v = edm_scalings(cosine(32), 1.0), v_scalings(cosine(32), 1.0)
    for ours, theirs, sign in zip(edm, v, (1, -1, 1), strict=True):
        torch.testing.assert_close(ours, sign * theirs, rtol=1e-14, atol=0)


def test_edm_on_ve_is_table_1_of_karras_et_al():
    sigma, s = karras(32).sigma, SIGMA_DATA
    expected = s**2 / (sigma**2 + s**2), sigma * s / (sigma**2 + s**2).sqrt()
    c_skip, c_out, c_in = edm_scalings(karras(32), s)
    torch.testing.assert_close((c_skip, c_out), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(c_in, 1 / (s**2 + sigma**2).sqrt(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_consistency_model_is_that_of_song_et_al_on_the_ve_picture(generator, alpha):
    sigma = torch.tensor([0.002, 0.3, 80.0], dtype=torch.float64)
    output, x = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator)
    denoise = Denoiser(Returns(output), "consistency", SIGMA_DATA)
    x0 = denoise(alpha * x, Level(torch.full_like(sigma, alpha), alpha * sigma))
    t, s, least = sigma[:, None], SIGMA_DATA, 0.002
    c_skip = s**2 / ((t - least) ** 2 + s**2)
    c_out = s * (t - least) / (s**2 + t**2).sqrt()
    torch.testing.assert_close(x0, c_skip * x + c_out * output)
    torch.testing.assert_close(denoise.net.x, x / (s**2 + t**2).sqrt())
    torch.testing.assert_close(x0[0], x[0])  # the boundary condition


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_an_edm_denoiser_returns_a_clean_sample_unchanged(generator, alpha):
    clean = Level(torch.tensor(alpha).double(), torch.tensor(0.0).double())
    x = torch.randn(4, 2, generator=generator)
    denoise = Denoiser(Returns(torch.randn(4, 2, generator=generator)), "edm", SIGMA_DATA)
    torch.testing.assert_close(denoise(x, clean), x / alpha, rtol=2**-22, atol=0)


def test_x0_and_eps_are_reconciled_by_the_share_of_noise(levels, generator):
    # Salimans & Ho 2022: x0_hat = w x0 + (1 - w) (x_t - sigma eps) / alpha, w = share of noise.
    _, _, level, x_t = noised(levels, generator)
    x0, eps = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64, generator=generator)
    alpha, sigma = column(level.alpha), column(level.sigma)
    w = sigma**2 / (alpha**2 + sigma**2)
    expected = w * x0 + (1 - w) * (x_t - sigma * eps) / alpha
    denoise = Denoiser(Returns(torch.cat([x0, eps], 1)), "x0_eps")
    torch.testing.assert_close(denoise(x_t, level), expected, rtol=0, atol=1e-11)


def test_x0_is_trusted_at_high_noise_and_eps_at_low(generator):
    x0, eps, x_t = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    denoise = Denoiser(Returns(torch.cat([x0, eps], 1)), "x0_eps")
    noisy, clean = cosine(32)[-1], cosine(32)[0]
    # The other one's share is alpha or sigma at log-SNR -+20: 4.5e-5, times samples below 5.
    torch.testing.assert_close(denoise(x_t, noisy), x0, rtol=0, atol=1e-3)
    from_eps = (x_t - clean.sigma * eps) / clean.alpha
    torch.testing.assert_close(denoise(x_t, clean), from_eps, rtol=0, atol=1e-7)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "edm"])
def test_the_network_is_shown_the_same_picture_of_ve_and_vp_samples(generator, prediction):
    vp = cosine(32)
    ve = Level(torch.ones_like(vp.alpha), vp.sigma / vp.alpha)
    _, _, level, x_t = noised(vp, generator)
    shown = []
    for x, at in [(x_t, level), (x_t / column(level.alpha), ve[torch.tensor([32, 20, 9, 1])])]:
        denoise = Denoiser(Returns(torch.zeros_like(x)), prediction, 1.0)
        denoise(x, at)
        shown.append((denoise.net.x, denoise.net.logsnr))
    torch.testing.assert_close(shown[0], shown[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shown[0][0], x_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sigma", "shown"), [(0.0, 20), (1e9, -20), (1 / math.e, 2)])
def test_the_network_sees_log_snr_clipped_to_20(sigma, shown):
    denoise = Denoiser(Returns(torch.zeros(3, 2)), "edm")
    denoise(torch.ones(3, 2), Level(torch.tensor(1.0).double(), torch.tensor(sigma).double()))
    assert denoise.net.logsnr.tolist() == pytest.approx([shown] * 3, rel=1e-6)


def test_labels_reach_the_network_through_clamping_too():
    labels = torch.tensor([3, 1])
    denoise = Denoiser(Returns(torch.zeros(2, 2)), "x0")
    clamped(denoise)(torch.zeros(2, 2), karras(4)[2], labels)
    assert denoise.net.labels is labels


def test_clamping_limits_x0_to_the_range_of_images():
    denoise = clamped(lambda x_t, level, labels: x_t)
    assert denoise(torch.tensor([-3.0, -0.5, 2.0]), None).tolist() == [-1.0, -0.5, 1.0]


def test_x0_has_the_dtype_of_the_sample_whatever_the_network_returns():
    denoise = Denoiser(Returns(torch.zeros(2, 2, dtype=torch.float16)), "v")
    assert denoise(torch.zeros(2, 2), karras(4)[2]).dtype == torch.float32


def test_an_unknown_prediction_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"prediction is 'noise'.*choose one of.*'eps'"):
        Denoiser(Returns(None), "noise")
