"""Statistics of a source: those of all features at once, however they were interrupted."""

import signal
from functools import partial

import numpy as np
import pytest
import torch
from tiny import together

from tract.base.parallel import rank
from tract.metrics import feature_statistics as module
from tract.metrics.feature_statistics import statistics
from tract.metrics.features import PIXELS, Extractor, pixels
from tract.metrics.sources import Source, open_source
from tract.networks.weights import read_tensors


@pytest.fixture
def images(generator):
    return torch.randint(256, (100, 1, 2, 3), generator=generator).to(torch.uint8)


def watched(images, reads, stop_at=None, how=None, **about):
    """A source that notes what is read and is interrupted at one batch."""

    def read(start, stop):
        if stop_at is not None and start >= stop_at:
            how()
        reads.append((start, stop))
        return images[start:stop]

    shapes = frozenset([tuple(images.shape[1:])])
    return Source("watched", {"what": "test", **about}, shapes, len(images), read)


def assert_same(ours, theirs):
    assert ours.moments.count == theirs.moments.count
    for a, b in zip(
        (ours.moments.mean, ours.moments.scatter, ours.kept),
        (theirs.moments.mean, theirs.moments.scatter, theirs.kept),
        strict=True,
    ):
        assert torch.equal(a, b)


def disk_failure():
    raise OSError("no such disk")


def stop_button():
    raise KeyboardInterrupt


@pytest.mark.parametrize("batch", [7, 100, 1000])
def test_they_are_those_of_all_features_at_once(images, tmp_path, batch):
    found = statistics(watched(images, []), PIXELS, 90, 20, tmp_path, batch=batch)
    features = pixels(images[:90]).double().numpy()
    assert found.moments.count == 90
    np.testing.assert_allclose(found.moments.mean, features.mean(0), rtol=0, atol=1e-12)
    covariance = np.cov(features, rowvar=False)
    np.testing.assert_allclose(found.moments.covariance, covariance, rtol=0, atol=1e-12)
    assert torch.equal(found.kept, pixels(images[:20]))


@pytest.mark.parametrize("how", [disk_failure, stop_button])
@pytest.mark.parametrize("stop_at", [8, 48, 96])
def test_what_was_interrupted_goes_on_where_it_stopped(images, tmp_path, how, stop_at):
    whole = statistics(watched(images, []), PIXELS, 100, 30, tmp_path / "whole", batch=8)
    reads = []
    with pytest.raises((OSError, KeyboardInterrupt)):
        statistics(watched(images, reads, stop_at, how), PIXELS, 100, 30, tmp_path / "cut", batch=8)
    assert reads[-1] == (stop_at - 8, stop_at)
    found = statistics(watched(images, reads), PIXELS, 100, 30, tmp_path / "cut", batch=8)
    assert_same(found, whole)
    assert reads == [(start, min(start + 8, 100)) for start in range(0, 100, 8)]  # each once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_batch_with_that_saved(images, tmp_path, number):
    reads = []

    def twice(start, stop):
        reads.append((start, stop))
        if start == 16:
            signal.raise_signal(number)
        return images[start:stop]

    source = Source("signalled", {}, frozenset([(1, 2, 3)]), 100, twice)
    with pytest.raises(KeyboardInterrupt):
        statistics(source, PIXELS, 100, 0, tmp_path, batch=8)
    assert reads[-1] == (16, 24)
    statistics(source, PIXELS, 100, 0, tmp_path, batch=8)
    assert reads[3] == (24, 32)


def test_they_are_saved_every_so_many_minutes_for_the_day_it_is_killed(
    images, tmp_path, monkeypatch
):
    written = []
    write = module._write

    def note(path, found, conditions):
        written.append(found.moments.count)
        write(path, found, conditions)

    monkeypatch.setattr(module, "_write", note)
    statistics(watched(images, []), PIXELS, 100, 0, tmp_path, batch=40, minutes=0)
    assert written == [40, 80, 100]
    written.clear()
    statistics(watched(images, [], other=1), PIXELS, 100, 0, tmp_path, batch=40, minutes=10)
    assert written == [100]


def test_what_is_done_is_read_from_the_cache_and_not_for_anything_else(images, tmp_path):
    reads = []
    first = statistics(watched(images, reads), PIXELS, 100, 30, tmp_path)
    assert_same(statistics(watched(images, reads), PIXELS, 100, 30, tmp_path), first)
    assert len(reads) == 1
    other = Extractor("pixels", {"range": [0, 1]}, lambda x: pixels(x) / 2 + 0.5)
    for arguments in [
        (watched(images, reads), PIXELS, 90, 30),
        (watched(images, reads), PIXELS, 100, 20),
        (watched(images, reads, other=1), PIXELS, 100, 30),
        (watched(images, reads), other, 100, 30),
        (watched(images, reads), Extractor("others", PIXELS.about, pixels), 100, 30),
        (watched(images, reads), Extractor("pixels", PIXELS.about, pixels, "cuda"), 100, 30),
    ]:
        before = len(reads)
        statistics(*arguments, tmp_path)
        assert len(reads) == before + 1


@pytest.mark.parametrize(("device", "precision"), [("cpu", None), ("cuda", "fp32")])
def test_what_a_gpu_computes_is_cached_with_its_precision(images, tmp_path, device, precision):
    extractor = Extractor("pixels", PIXELS.about, pixels, device)
    statistics(watched(images, []), extractor, 100, 0, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert read_tensors(path)[1]["conditions"].get("precision") == precision


def test_a_damaged_file_of_the_cache_is_refused_by_name(images, tmp_path):
    statistics(watched(images, []), PIXELS, 100, 30, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{path} is damaged .*: restore or remove it"):
        statistics(watched(images, []), PIXELS, 100, 30, tmp_path)


def test_images_of_several_sizes_keep_their_places(tmp_path, generator):
    sizes = [(4, 4), (2, 3), (5, 1), (4, 4), (2, 3)]
    pictures = [torch.randint(256, (1, *s), generator=generator).to(torch.uint8) for s in sizes]
    mean = Extractor("mean", {}, lambda x: x.float().mean((2, 3)))
    source = Source("mixed", {}, frozenset(), 5, lambda start, stop: pictures[start:stop])
    found = statistics(source, mean, 5, 5, tmp_path)
    assert found.kept[:, 0].tolist() == [p.float().mean().item() for p in pictures]


def test_part_of_a_sorted_source_is_like_the_rest(tmp_path):
    from tract.data import Data

    rising = torch.arange(256).to(torch.uint8).reshape(256, 1, 1, 1)
    source = open_source(Data("rising", rising))(None, 0)
    found = statistics(source, PIXELS, 128, 0, tmp_path)
    # 128 of 256 values without replacement: deviation 0.577 sqrt(1/128 - 1/256) = 0.036.
    assert abs(found.moments.mean.item()) < 4 * 0.036


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_get_the_numbers_of_one_and_go_on_alone(images, tmp_path):
    whole = statistics(watched(images, []), PIXELS, 100, 30, tmp_path / "whole", batch=8)

    def both():
        sigterm = partial(signal.raise_signal, signal.SIGTERM)
        at = 24 if rank() == 1 else None  # of one process alone, in the second turn
        reads, cut = [], tmp_path / "cut"
        with pytest.raises(KeyboardInterrupt):
            statistics(watched(images, reads, at, sigterm), PIXELS, 100, 30, cut, batch=8)
        assert reads == [[(0, 8), (16, 24)], [(8, 16), (24, 32)]][rank()]
        found = statistics(watched(images, []), PIXELS, 100, 30, tmp_path / "both", batch=8)
        assert_same(found, whole)
        assert_same(statistics(watched(images, reads), PIXELS, 100, 30, tmp_path / "both"), whole)
        assert len(reads) == 2  # and none for what is finished

    assert together(both, tmp_path) == [0, 0]
    reads = []
    found = statistics(watched(images, reads), PIXELS, 100, 30, tmp_path / "cut", batch=8)
    assert reads[0] == (24, 32)
    assert_same(found, whole)
