"""FID, KID, precision, recall and Inception Score of images or models, with their conditions."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from tract.base.checks import LARGEST_BATCH, MOST_SAMPLES, check_choice, check_whole
from tract.base.parallel import rank0_first
from tract.base.provenance import provenance
from tract.data import Data
from tract.datasets.cache import cache_folder
from tract.metrics.distances import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from tract.metrics.feature_statistics import Statistics, statistics
from tract.metrics.features import CLASSES, INCEPTIONS, SPATIAL, Extractor, extractor
from tract.metrics.sources import Source, is_named, named_data, open_source

METRICS = ("fd", "kid", "precision", "recall", "is")
MODEL_SAMPLES = 50_000  # of publications
KEPT_FEATURES = 10_000  # features at most for metrics that look at pairs
INCEPTION_SIZE = 2048
NEIGHBOURS = 3  # of precision and recall
REFERENCE_SEED = 2**32  # of a model as the reference: noise in common would bring them closer


def compare(
    source: str | Path | Data,
    reference: str | Path | Data,
    *,
    features: str = "inception",
    weights: str | Path | None = None,
    metrics: Sequence[str] = ("fd",),
    samples: int | None = None,
    steps: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    cache: str | Path | None = None,
    batch: int = 256,
    device: str = "cpu",
    **opening: object,
) -> list[dict]:
    """Distances from images to a reference: a row for each number of steps and metric.

    source, reference, opening: see `sources.open_source`; the reference is taken whole, a model's
    with all its steps. features, weights: see `features.extractor`. metrics: of METRICS. samples:
    of the source, None for 50,000 of a model, else all. steps: of models and sample files. seeds:
    of noise, or of the part taken; value, std are over them. Raises ValueError for bad arguments.
    """
    _check(features, metrics, samples, seeds, batch)
    opening |= {"device": device, "spatial": features == SPATIAL}
    if is_named(reference):
        reference = named_data(str(reference), **opening)
    data = reference if isinstance(reference, Data) and features == "classifier" else None
    options = {"weights": weights, "data": data, "device": device}
    extract = rank0_first(lambda: extractor(features, **options))  # may train a classifier
    opened = open_source(source, **opening)
    target = open_source(reference, **opening)(None, REFERENCE_SEED)
    by_steps = {n: [opened(n, seed) for seed in seeds] for n in steps or [None]}
    counts = {n: _count(same[0], samples, steps, seeds) for n, same in by_steps.items()}
    total = target.count or max(counts.values())
    for n, same in by_steps.items():
        _check_pair(extract, (same[0], counts[n]), (target, total), metrics)
    _check_statistics(target, extract, metrics)
    pairs = KEPT_FEATURES if {"kid", "precision", "recall"} & set(metrics) else 0
    kept = MOST_SAMPLES if "is" in metrics else pairs
    options = {"cache": cache or cache_folder(), "batch": batch}
    expected, rows = statistics(target, extract, total, pairs, **options), []
    for n, same in by_steps.items():
        start = time.monotonic()
        found = [statistics(each, extract, counts[n], kept, **options) for each in same]
        about = _conditions(extract, same[0], target) | {"samples": counts[n], "seeds": list(seeds)}
        about |= {"reference_samples": None if target.moments else total}
        about |= {"kept": min(kept, counts[n]), "seconds": round(time.monotonic() - start, 1)}
        for kind, numbers in _numbers(found, expected, metrics, _sizes(same[0], target)).items():
            rows.append({"metric": extract.metric(kind)} | numbers | about)
    return rows


def _conditions(extract: Extractor, source: Source, target: Source) -> dict:
    """What numbers depend on besides counts and seeds."""
    return {
        "nfe": source.about.get("nfe"),
        "neighbours": NEIGHBOURS,
        "features": {"name": extract.name, **extract.about},
        "source": _about(source),
        "reference": _about(target),
        **provenance(),
    }


def _about(source: Source) -> dict:
    """What identifies the images of a source at any of its seeds."""
    shapes = [list(shape) for shape in sorted(source.shapes)[:9]]
    about = {k: v for k, v in source.about.items() if k != "seed"}
    return {"name": source.name, "shapes": shapes} | about


def _check(
    features: str,
    metrics: Sequence[str],
    samples: int | None,
    seeds: Sequence[int],
    batch: int,
) -> None:
    for metric in metrics:
        check_choice("metrics", metric, METRICS)
    for seed in seeds:
        check_whole("seeds", seed, 0)
    if not metrics or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"metrics are {metrics} and seeds {seeds}: give one or more, each once")
    if ("is" in metrics) != (features == CLASSES) or ("is" in metrics and len(metrics) > 1):
        raise ValueError(
            f"metrics 'is' and features {CLASSES!r} go only with each other: give both alone"
        )
    if samples is not None:
        check_whole("samples", samples, 2, MOST_SAMPLES)
    check_whole("batch", batch, 1, LARGEST_BATCH)


def _check_statistics(target: Source, extract: Extractor, metrics: Sequence[str]) -> None:
    """ValueError if statistics from a file are asked for more than they hold."""
    if not target.moments:
        return
    if others := [metric for metric in metrics if metric != "fd"]:
        raise ValueError(
            f"{target.name} holds a mean and a covariance, too little for {', '.join(others)}: "
            "give images as the reference, or metrics fd alone"
        )
    size = len(target.moments.mean)
    if extract.name in INCEPTIONS and size != INCEPTION_SIZE:
        raise ValueError(f"{target.name} is of {size} features, Inception has {INCEPTION_SIZE}")


def _count(source: Source, samples: int | None, steps: Sequence[int], seeds: Sequence[int]) -> int:
    """Number of images to take of a source; ValueError if steps, seeds or samples do not fit."""
    if source.moments:
        problem = f"{source.name} holds statistics: give it as the reference, not the source"
    elif source.count is None:
        if steps:
            return samples or MODEL_SAMPLES
        problem = f"{source.name} is a model: give the numbers of steps to sample it in"
    elif steps and "nfe" not in source.about:
        problem = f"steps are {list(steps)}, and {source.name} is not a model: omit them"
    elif samples is not None and samples > source.count:
        problem = f"samples is {samples}, and {source.name} has {source.count}: use that or less"
    elif len(seeds) > 1 and samples in (None, source.count):
        problem = f"seeds are {list(seeds)}, and all of {source.name} is taken: give one"
    else:
        return samples or source.count
    raise ValueError(problem)


def _check_pair(
    extractor: Extractor,
    source: tuple[Source, int],
    reference: tuple[Source, int],
    metrics: Sequence[str],
) -> None:
    """ValueError if images are too few, or features not defined for them, or compare others."""
    least = NEIGHBOURS + 1 if {"precision", "recall"} & set(metrics) else 2
    for each, count in (source, reference):
        if count < least:
            raise ValueError(
                f"{each.name} has too few images to measure, {count}: use {least} or more"
            )
        if odd := sorted(shape for shape in each.shapes if not extractor.takes(shape)):
            raise ValueError(
                f"{each.name} has images (channels, height, width) of {odd[0]}, and the features "
                f"{extractor.name} take {extractor.shape or 'those of 1 or 3 channels'}: use "
                "other features or images"
            )
    shapes = sorted(source[0].shapes | reference[0].shapes)
    if not extractor.resizes and len(shapes) > 1:
        raise ValueError(
            f"{source[0].name} and {reference[0].name} have images (channels, height, width) of "
            f"{shapes[0]} and {shapes[-1]}: use images of one shape, or features that resize them"
        )


def _numbers(
    found: list[Statistics], expected: Statistics, metrics: Sequence[str], sizes: str
) -> dict[str, dict]:
    """Value, deviation and values over seeds of each metric, with a note."""
    by_seed, numbers = [_values(each, expected, metrics) for each in found], {}
    for kind in metrics:
        values = [each[kind] for each in by_seed]
        few = _few(found[0].moments, expected.moments) if kind == "fd" else ""
        std = stdev(values) if len(values) > 1 else None
        note = "; ".join(filter(None, [few, sizes]))
        numbers[kind] = {"value": mean(values), "std": std, "values": values, "note": note}
    return numbers


def _values(found: Statistics, expected: Statistics, metrics: Sequence[str]) -> dict[str, float]:
    values = {}
    if "fd" in metrics:
        values["fd"] = frechet_distance(found.moments, expected.moments)
    if "kid" in metrics:
        values["kid"] = kernel_distance(found.kept, expected.kept)
    if {"precision", "recall"} & set(metrics):
        shares = precision_recall(found.kept, expected.kept, NEIGHBOURS)
        values |= zip(("precision", "recall"), shares, strict=True)
    if "is" in metrics:
        values["is"] = inception_score(found.kept)
    return values


def _sizes(source: Source, reference: Source) -> str:
    """A warning where images of different sizes are compared."""
    sizes = [sorted({(h, w) for _, h, w in each.shapes}) for each in (source, reference)]
    if sizes[0] == sizes[1] or not all(sizes):
        return ""
    first, second = (" and ".join(f"{h}x{w}" for h, w in {s[0]: 1, s[-1]: 1}) for s in sizes)
    return (
        f"images of {first} pixels are compared with images of {second}: their sizes are part "
        "of the distance; give the reference as data 'images' with the size of the source"
    )


def _few(*moments: Moments) -> str:
    """A warning where there are too few images for a Frechet distance to mean what it says."""
    least, size = min(m.count for m in moments), len(moments[0].mean)
    if least > size:
        return ""
    return (
        f"{least:,} images are too few for {size:,} features: their covariance is singular and "
        f"the distance too large; compare it at equal counts only, or use more than {size:,}"
    )
