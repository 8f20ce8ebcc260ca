"""Mean and covariance of the features of a source, computed in batches and cached.

Each has a file there, named by a hash of its conditions: interrupted work resumes where it
stopped, and no image is looked at twice.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tract.base.files import writable
from tract.base.interrupts import interrupt_between_steps
from tract.base.parallel import any_rank, broadcast_object, rank, scatter_work
from tract.base.progress import progress
from tract.metrics.distances import Moments, moments_of
from tract.metrics.features import Extractor
from tract.metrics.sources import Source
from tract.networks.weights import read_tensors, write_tensors


@dataclass(frozen=True)
class Statistics:
    """Moments of the features of all images, and the features (K, D) of the first of them."""

    moments: Moments
    kept: Tensor


def statistics(
    source: Source,
    extractor: Extractor,
    count: int,
    kept: int,
    cache: str | Path,
    *,
    batch: int = 256,
    minutes: float = 1.0,
) -> Statistics:
    """Statistics of the first count images, under a progress bar, resumed or read from the cache.

    kept: features to keep. All is saved every so many minutes, and when Ctrl-C, SIGTERM or an
    error ends it: the next call resumes there and returns the same numbers. batch: images at a
    time; fewer need less memory. Processes that have joined share the batches and return the same
    numbers; only the first reads and writes the cache.
    """
    if source.moments:
        return Statistics(source.moments, torch.empty(0, 0))
    conditions = {
        "source": source.about,
        "count": count,
        "kept": kept,
        "features": {"name": extractor.name, **extractor.about},
        "device": extractor.device,
    }
    if extractor.device != "cpu":  # where torch by itself would take TF32
        conditions["precision"] = "fp32"
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    path = Path(cache) / f"{key}.safetensors"
    found = before = _read(path) if rank() == 0 and path.is_file() else None
    saved = before.moments.count if before else 0
    writable(path.parent)
    last = time.monotonic()
    with interrupt_between_steps() as stop:
        try:
            for found in _more(source, extractor, before, count, kept, batch):
                if time.monotonic() - last > 60 * minutes:
                    _write(path, found, conditions)
                    saved, last = found.moments.count, time.monotonic()
                if any_rank(stop.requested):
                    raise KeyboardInterrupt
        finally:
            if found and found.moments.count > saved:
                _write(path, found, conditions)
    return broadcast_object(found)


def _more(
    source: Source,
    extractor: Extractor,
    found: Statistics | None,
    count: int,
    kept: int,
    batch: int,
) -> Iterator[Statistics]:
    """Statistics of more and more images, under a progress bar; None in all but one process."""
    done = broadcast_object(found.moments.count if found else 0)
    batches = [(start, min(start + batch, count)) for start in range(done, count, batch)]

    def features_of(images: tuple[int, int]) -> Tensor:
        return _features(extractor, source.read(*images))

    desc, begun = f"{extractor.name} of {source.name}", {"initial": done, "disable": rank() > 0}
    with progress(desc, count, "image", **begun) as bar:
        for (start, stop), features in zip(
            batches, scatter_work(batches, features_of), strict=True
        ):
            if features is not None:
                moments, first = moments_of(features), features[: max(0, kept - start)]
                if found:
                    moments = found.moments.merged(moments)
                    first = torch.cat([found.kept, first])
                found = Statistics(moments, first)
            bar.update(stop - start)
            yield found


def _features(extractor: Extractor, images: Sequence[Tensor]) -> Tensor:
    """Features (B, D) of images (C, H, W) that may differ in shape, on the CPU."""
    by_shape: dict[tuple, list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(tuple(image.shape), []).append(index)
    parts = [
        extractor(torch.stack([images[i] for i in where])).cpu() for where in by_shape.values()
    ]
    order = torch.tensor([i for where in by_shape.values() for i in where])
    return torch.cat(parts)[order.argsort()]


def _write(path: Path, found: Statistics, conditions: dict) -> None:
    tensors = {"mean": found.moments.mean, "scatter": found.moments.scatter, "kept": found.kept}
    write_tensors(path, tensors, {"conditions": conditions, "done": found.moments.count})


def _read(path: Path) -> Statistics:
    tensors, card = read_tensors(path)
    return Statistics(Moments(card["done"], tensors["mean"], tensors["scatter"]), tensors["kept"])
