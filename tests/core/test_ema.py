"""Averages of weights against sums written out."""

import pytest
import torch
from torch import nn

from tract.ema import bias_corrected, decay_from_residual, ema_updater


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    net[1].running_mean.normal_()
    return net.double()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_decay_weighs_the_old_value():
    average, source = network(0), network(1)
    expected = 0.9 * weights(average) + 0.1 * weights(source)
    ema_updater(average, source)(0.9)
    torch.testing.assert_close(weights(average), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99995])
def test_bias_corrected_averages_are_normalised_exponential_sums(decay):
    average, sources = network(0), [network(i) for i in range(1, 6)]
    for update, source in enumerate(sources, start=1):
        ema_updater(average, source)(bias_corrected(decay, update))
    shares = [decay ** (5 - i) for i in range(1, 6)]
    expected = sum(a * weights(s) for a, s in zip(shares, sources, strict=True)) / sum(shares)
    # 1 - decay^i keeps 1e-16 / 5e-5 = 2e-12 at the largest decay.
    torch.testing.assert_close(weights(average), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99999])
def test_the_first_update_copies_exactly(decay):
    average, source = network(0).float(), network(1).float()
    ema_updater(average, source)(bias_corrected(decay, 1))
    assert torch.equal(weights(average), weights(source))


def test_the_source_is_left_alone():
    average, source = network(0), network(1)
    ema_updater(average, source)(0.5)
    assert torch.equal(weights(source), weights(network(1)))


def test_buffers_are_copied_not_averaged():
    average, source = network(0), network(1)
    source[1].num_batches_tracked += 7
    ema_updater(average, source)(0.9)
    assert torch.equal(average[1].running_mean, source[1].running_mean)
    assert average[1].num_batches_tracked == 7


def test_frozen_averages_can_be_updated_without_a_graph():
    average, source = network(0).requires_grad_(False), network(1)
    ema_updater(average, source)(0.9)
    assert not any(p.requires_grad for p in average.parameters())


def test_networks_of_other_names_are_refused_with_the_names():
    with pytest.raises(ValueError, match=r"differ in .*'1\.bias'.*use the same network"):
        ema_updater(network(0), nn.Sequential(nn.Linear(3, 2)))(0.5)


@pytest.mark.parametrize(("residual", "updates"), [(1e-3, 100), (1e-4, 375_000), (0.5, 1)])
def test_the_residual_is_what_is_left_after_the_updates(residual, updates):
    # A rounding of the decay, 1e-16, is multiplied by the updates.
    decay = decay_from_residual(residual, updates)
    assert decay**updates == pytest.approx(residual, rel=1e-15 * updates + 1e-12)
