"""Sampling for measurements: the noise is fixed, and how it is batched plays no part."""

import pytest
import torch
from tqdm import tqdm

from tract.data import Data
from tract.levels import karras
from tract.metrics.samples import cycling_labels, fixed_noise, noise, sample_batches
from tract.oracle import Mixture
from tract.samplers import sample

DATA = Data("points", torch.zeros(5, 3), torch.arange(5))
ORACLE = Mixture(torch.eye(3)[[0, 1, 2, 0, 1]], 0.3, torch.arange(5))


def test_noise_depends_on_seed_and_shape_alone():
    torch.manual_seed(1)
    first, _ = fixed_noise(DATA, 7, seed=3)
    torch.manual_seed(2)
    again, _ = fixed_noise(DATA, 7, seed=3)
    other, _ = fixed_noise(DATA, 7, seed=4)
    assert first.shape == (7, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labels_of_the_noise_come_in_turn():
    assert fixed_noise(DATA, 7, seed=0)[1].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert fixed_noise(DATA.unlabelled(), 7, seed=0)[1] is None


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch(batch):
    eps, labels = fixed_noise(DATA, 7, seed=0)
    levels = karras(8)
    whole = sample(ORACLE, eps, levels, 4, labels=labels)
    ours = sample_batches(ORACLE, eps, levels, 4, labels=labels, clamp=False, batch=batch)
    # Products of matrices of other sizes may be rounded otherwise: 2^-24 of values up to 80.
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


def test_predictions_are_clamped_if_asked():
    eps = 100 * torch.ones(2, 3)
    levels = karras(8)  # ends at sigma = 0, so that the last x0 is the sample
    denoise = lambda x_t, level, labels: x_t  # noqa: E731
    assert sample_batches(denoise, eps, levels, 2, clamp=True).max() == 1
    assert sample_batches(denoise, eps, levels, 2, clamp=False).max() > 1


def test_the_progress_bar_counts_calls_of_the_denoiser(monkeypatch):
    ends, calls = set(), []

    class Watched(tqdm):
        def close(self):
            ends.add((self.n, self.total))
            super().close()

    def counting(x_t, level, labels):
        calls.append(level)
        return x_t

    monkeypatch.setattr("tract.base.progress.tqdm", Watched)
    sample_batches(counting, torch.zeros(7, 3), karras(8), 4, batch=3)
    assert len(calls) == 12
    assert ends == {(12, 12)}


def test_steps_that_do_not_divide_the_grid_are_refused():
    with pytest.raises(ValueError, match="num_steps is 3, .*choose a divisor of 8"):
        sample_batches(ORACLE, torch.zeros(1, 3), karras(8), 3)


def test_the_noise_of_a_sample_depends_on_its_index_and_the_seed_alone():
    whole = noise((3,), 0, 600, seed=3)
    for start, stop in [(0, 1), (255, 257), (256, 512), (590, 600)]:
        assert torch.equal(noise((3,), start, stop, seed=3), whole[start:stop])
    assert torch.equal(fixed_noise(DATA, 300, seed=3)[0], whole[:300])
    assert len(whole.unique(dim=0)) == 600
    assert whole.mean().abs() < 4 / 1800**0.5
    assert not torch.equal(noise((3,), 0, 5, seed=4), whole[:5])


def test_labels_in_turn_go_on_where_the_batch_before_ended():
    assert cycling_labels(range(3), 2, 7).tolist() == [2, 0, 1, 2, 0]
    assert cycling_labels(range(0), 2, 7) is None
