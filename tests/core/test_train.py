"""Training a teacher: the loss by hand, the averages by hand, and runs that go on exactly."""

import itertools
import math

import pytest
import torch
from helpers import assert_identical, everything, weights
from torch import nn

from tract.data import Data
from tract.denoiser import Denoiser
from tract.ema import decay_from_residual
from tract.levels import Level, cosine, karras
from tract.losses import WEIGHTS
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.optimize import frozen
from tract.seeds import generator_for
from tract.settings import Training
from tract.train import start_training, train_teacher
from tract.unet import UNet

LEVELS = karras(8)
POINTS = Data("points", torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
SETTINGS = Training(train_images=16 * 6, batch_size=16, learning_rate=1e-2)


def mlp(seed=0):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, channels=16, num_blocks=1), "edm", 1.0)


class Scale(nn.Module):
    """The simplest network, which remembers what it was shown."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, logsnr, labels):
        self.shown = x, logsnr, labels
        return self.weight * x


def run(state, settings=SETTINGS, data=POINTS, levels=LEVELS, steps=None):
    return list(itertools.islice(train_teacher(state, data, levels, settings), steps))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("truncated_snr", lambda snr, sigma_data: max(1.0, snr)),
        ("snr_plus_one", lambda snr, sigma_data: snr + 1),
        ("edm", lambda snr, sigma_data: (1 / snr + sigma_data**2) / (1 / snr * sigma_data**2)),
        ("uniform", lambda snr, sigma_data: 1.0),
        ("inverse_step", lambda snr, sigma_data: 1 / (1 / snr**0.5 - 0.001)),
    ],
)
def test_a_weight_is_its_formula(name, formula):
    # edm is written as in its paper, with sigma^2 = 1 / snr.
    for alpha, sigma in [(1.0, 0.002), (1.0, 80.0), (0.8, 0.6), (0.6, 0.8), (1.0, 1.0)]:
        level = Level(*torch.tensor([alpha, sigma], dtype=torch.float64))
        to = Level(*torch.tensor([2.0, 0.002], dtype=torch.float64))
        expected = formula((alpha / sigma) ** 2, 0.7)
        assert WEIGHTS[name](level, to, 0.7).item() == pytest.approx(expected, rel=1e-12)
    assert set(WEIGHTS) == {"truncated_snr", "snr_plus_one", "edm", "uniform", "inverse_step"}


def shown_levels(net, levels):
    """Grid indices of the levels a network was shown, found by their log-SNR."""
    return (levels.logsnr - net.shown[1][:, None].double()).abs().argmin(1)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_loss_is_the_weighted_squared_error_of_x0(levels, weight):
    x0 = torch.tensor([0.7, -0.4])
    data = Data("one point", x0.expand(64, 2))
    state = start_training(Denoiser(Scale(0.5), "x0", 0.7), SETTINGS)
    settings = Training(train_images=64, batch_size=64, loss_weight=weight)
    (record,) = run(state, settings, data, levels)
    net = state.student.net
    t = levels[shown_levels(net, levels)]
    errors = (0.5 * net.shown[0] - x0).square().mean(1).double()
    expected = (WEIGHTS[weight](t, levels[0], 0.7) * errors).mean().item()
    # Sums of 64 products in float32.
    assert record.loss == pytest.approx(expected, rel=1e-5)
    assert record.mse == pytest.approx(errors.mean().item(), rel=1e-5)


def test_training_adds_standard_noise_at_the_levels_drawn(levels):
    x0 = torch.tensor([0.7, -0.4])
    data = Data("one point", x0.expand(4096, 2))
    state = start_training(Denoiser(Scale(), "x0"), SETTINGS)
    run(state, Training(train_images=4096, batch_size=4096), data, levels)
    net = state.student.net
    t = levels[shown_levels(net, levels)]
    alpha, sigma = t.alpha[:, None], t.sigma[:, None]
    x_t = net.shown[0].double() * (alpha**2 + sigma**2).sqrt()
    eps = (x_t - alpha * x0) / sigma
    # 8192 draws: five standard errors of a mean and of a standard deviation.
    assert abs(eps.mean()) < 5 / math.sqrt(8192)
    assert abs(eps.std() - 1) < 5 / math.sqrt(2 * 8192)


def test_every_noisy_level_is_drawn_and_the_clean_one_never():
    state = start_training(Denoiser(Scale(), "x0"), SETTINGS)
    data = Data("points", torch.zeros(1024, 2))
    run(state, Training(train_images=1024, batch_size=1024), data, LEVELS)
    drawn = shown_levels(state.student.net, LEVELS).bincount(minlength=9).tolist()
    assert drawn[0] == 0
    # 1024 draws of 8 levels: six standard deviations of sqrt(128 * 7 / 8) around 128.
    assert all(64 < count < 192 for count in drawn[1:])


def test_labels_reach_the_network_with_their_samples():
    index = torch.arange(64)
    data = Data("numbered", 1000.0 * index[:, None], index)
    state = start_training(Denoiser(Scale(), "x0"), SETTINGS)
    run(state, Training(train_images=16, batch_size=16), data, cosine(1000)[:2])
    x_t, _, labels = state.student.net.shown
    assert torch.equal((x_t[:, 0] / 1000).round().long(), labels)


def test_the_first_update_of_adam_moves_weights_by_the_learning_rate():
    state = start_training(mlp(), SETTINGS)
    before = weights(state.student)
    run(state, steps=1)
    moved = (weights(state.student) - before).abs()
    # Adam's first step is lr * g / (|g| + 1e-8): lr wherever there is a gradient.
    assert moved.max().item() == pytest.approx(SETTINGS.learning_rate, rel=1e-3)


@pytest.mark.parametrize("clip_norm", [1.0, 0.25])
def test_gradients_are_clipped_to_the_norm(clip_norm):
    settings = Training(train_images=16, batch_size=16, clip_norm=clip_norm)
    state = start_training(Denoiser(Scale(1000.0), "x0"), settings)
    run(state, settings)
    (moments,) = state.optimizer.state_dict()["state"].values()
    # Adam's first moment is 0.1 of the first gradient, which here is far above the norm.
    assert moments["exp_avg"].abs().item() == pytest.approx(0.1 * clip_norm, rel=1e-5)


def test_small_gradients_are_not_clipped():
    settings = Training(train_images=16, batch_size=16, clip_norm=1e9)
    state = start_training(Denoiser(Scale(0.5), "x0"), settings)
    run(state, settings)
    state.student.zero_grad()
    (moments,) = state.optimizer.state_dict()["state"].values()
    clipped = start_training(Denoiser(Scale(0.5), "x0"), settings)
    run(clipped, Training(train_images=16, batch_size=16, clip_norm=1e-9))
    (small,) = clipped.optimizer.state_dict()["state"].values()
    assert moments["exp_avg"].abs().item() > 1e6 * small["exp_avg"].abs().item()


def test_the_average_is_that_of_the_students_so_far():
    state = start_training(mlp(), SETTINGS)
    decay = decay_from_residual(SETTINGS.ema_residual, 6)
    students = []
    for record in train_teacher(state, POINTS, LEVELS, SETTINGS):
        students.append(weights(state.student).double())
        shares = [decay ** (record.step - i) for i in range(1, record.step + 1)]
        total = sum(a * w for a, w in zip(shares, students, strict=True))
        # A few float32 roundings of weights of order 1.
        torch.testing.assert_close(
            weights(state.ema).double(), total / sum(shares), rtol=0, atol=1e-6
        )
    assert len(students) == 6


def test_records_count_steps_and_images():
    settings = Training(train_images=100, batch_size=16)
    records = run(start_training(mlp(), settings), settings)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.images_seen for r in records] == [16, 32, 48, 64, 80, 96]
    assert {r.num_steps for r in records} == {6}
    assert {r.phase for r in records} == {""}


def test_the_student_is_trained_in_place_and_the_average_is_frozen():
    denoiser = mlp()
    state = start_training(denoiser, SETTINGS)
    assert state.student is denoiser
    assert denoiser.training
    assert not state.ema.training
    assert not any(p.requires_grad for p in state.ema.parameters())
    assert torch.equal(weights(state.ema), weights(denoiser))


def test_a_frozen_copy_is_independent():
    original = mlp().train()
    copy = frozen(original)
    assert not copy.training
    assert original.training
    assert all(p.requires_grad for p in original.parameters())
    with torch.no_grad():
        copy.net.dense_in.weight.zero_()
    assert original.net.dense_in.weight.any()


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path, steps):
    whole = start_training(mlp(), SETTINGS)
    records = run(whole)
    first = start_training(mlp(), SETTINGS)
    run(first, steps=steps)
    save_state(tmp_path / "state", first, {})
    second = start_training(mlp(seed=1), SETTINGS)
    torch.manual_seed(99)  # global randomness plays no part
    load_state(tmp_path / "state", second)
    assert run(second) == records[steps:]
    assert_identical(everything(second), everything(whole))


def test_a_run_with_dropout_resumes_bit_for_bit_too(tmp_path):
    pixels = torch.arange(64 * 16).to(torch.uint8)
    data = Data("pixels", pixels.reshape(64, 1, 4, 4))
    options = {"channels": 4, "emb_channels": 4, "channel_mult": [1], "num_blocks": 1, "groups": 2}

    def unet():
        torch.manual_seed(0)
        net = UNet(4, 1, **options, dropout=0.5)
        nn.init.normal_(net.conv_out.weight)
        for block in net.modules():
            if hasattr(block, "conv2"):
                nn.init.normal_(block.conv2.weight)
        return Denoiser(net, "edm")

    whole = start_training(unet(), SETTINGS)
    records = run(whole, data=data)
    first = start_training(unet(), SETTINGS)
    run(first, data=data, steps=3)
    save_state(tmp_path / "state", first, {})
    second = start_training(unet(), SETTINGS)
    load_state(tmp_path / "state", second)
    torch.manual_seed(99)
    assert run(second, data=data) == records[3:]
    assert_identical(everything(second), everything(whole))


def test_every_step_drops_other_units():
    class Dropping(Scale):
        def forward(self, x, logsnr, labels):
            kept = nn.functional.dropout(torch.ones(32), 0.5, self.training)
            masks.append(tuple(kept.tolist()))
            return super().forward(x, logsnr, labels)

    masks = []
    run(start_training(Denoiser(Dropping(), "x0"), SETTINGS))
    # Two of six masks of 32 fair coins agree with probability 15 / 2^32.
    assert len(set(masks)) == 6


def test_training_leaves_global_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    state = start_training(mlp(), SETTINGS)
    torch.manual_seed(5)
    run(state)
    assert torch.equal(torch.rand(3), expected)


def test_a_step_depends_on_the_seed_and_its_number_alone():
    # With a vanishing learning rate weights stay what they are: losses show the draws alone.
    settings = Training(train_images=16 * 6, batch_size=16, learning_rate=1e-30)
    losses = [r.loss for r in run(start_training(mlp(), settings), settings)]
    assert len(set(losses)) == 6
    late = start_training(mlp(), settings)
    late.step = 4
    assert [r.loss for r in run(late, settings)] == losses[4:]


def test_another_seed_draws_other_numbers():
    settings = [
        Training(train_images=96, batch_size=16, learning_rate=1e-30, seed=seed) for seed in (0, 1)
    ]
    one, two = ([r.loss for r in run(start_training(mlp(), s), s)] for s in settings)
    assert not set(one) & set(two)


def test_a_generator_depends_on_every_part_of_its_key_and_nothing_else():
    keys = list(itertools.product(range(4), repeat=3))
    draws = [tuple(torch.rand(4, generator=generator_for("cpu", *key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    torch.rand(7)
    assert tuple(torch.rand(4, generator=generator_for("cpu", *keys[9])).tolist()) == draws[9]


@pytest.mark.parametrize("bad", [math.nan, 1e30])  # the square of 1e30 is infinite
def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(bad):
    state = start_training(mlp(), SETTINGS)
    run(state, steps=2)
    before = everything(state)
    spoilt = Data("spoilt", torch.full((64, 2), bad))
    message = "the loss is .* at step 3, .*: lower learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        run(state, data=spoilt)
    assert state.step == 2
    assert_identical(everything(state), before)


def test_a_batch_larger_than_the_data_is_refused_before_the_first_step():
    settings = Training(train_images=130, batch_size=65)
    with pytest.raises(
        ValueError, match="batch_size is 65 but points has 64 samples: use 64 or less"
    ):
        train_teacher(start_training(mlp(), settings), POINTS, LEVELS, settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: use 1 or more"),
        ({"train_images": 127}, "train_images is 127, less than one batch of 128"),
        ({"train_images": -1}, "train_images is -1: use 1 or more"),
        ({"loss_weight": "snr"}, "loss_weight is 'snr': choose one of .*'truncated_snr'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: use a number above 0"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001: use a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan: use a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf: use a number above 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0: use a number above 0"),
        ({"ema_residual": 0.0}, "ema_residual is 0.0: use a share between 0 and 1"),
        ({"ema_residual": 1.0}, "ema_residual is 1.0: use a share between 0 and 1"),
        ({"ema_residual": 1.5}, "ema_residual is 1.5: use a share between 0 and 1"),
        ({"seed": -1}, "seed is -1: use 0 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value_and_what_can(setting, message):
    with pytest.raises(ValueError, match=message):
        Training(**{"train_images": 1280} | setting)
