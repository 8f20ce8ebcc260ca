"""Measure the runs of an experiment: samples from the same noise, and their distances.

NAME/samples.safetensors      samples of a run by number of steps
teacher/rollout-*             the teacher's samples with all steps of a grid
classifier.safetensors        trained on the data, if its features are used
results.csv                   one row for each measured number, see `results`
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path

import pandas as pd
from torch import Tensor

from tract.base.checks import check_choice, shown
from tract.base.compute import device
from tract.base.files import only_writer, writable
from tract.base.progress import progress
from tract.base.provenance import provenance
from tract.data import to_uint8, to_unit
from tract.datasets.cache import cache_folder
from tract.datasets.load import has_test_split, load_data
from tract.denoiser import Denoiser
from tract.experiments.experiment import TEACHER, Experiment, run_name
from tract.experiments.results import (
    COLUMNS,
    PER_PHASE,
    RESULTS,
    append_results,
    read_results,
    wide,
)
from tract.experiments.rows import number, run_row, shortened
from tract.experiments.run import average_file
from tract.levels import Level
from tract.metrics.distances import Moments, frechet_distance, moments_of, rmse
from tract.metrics.feature_statistics import statistics
from tract.metrics.features import FEATURES, Extractor, extractor, metric_name
from tract.metrics.samples import sample_batches
from tract.metrics.sources import open_source
from tract.networks.weights import (
    check_numbers,
    load_model,
    read_sha256,
    read_tensors,
    write_tensors,
)
from tract.phases import format_schedule, in_steps
from tract.samplers import SOLVERS, step_indices
from tract.settings import Distillation, Training

SAMPLES = "samples.safetensors"
CLASSIFIER = "classifier.safetensors"
REAL = "test"  # name of the test split among runs
KEPT = 4096  # most samples kept in a run's folder
SAMPLED = {"cpu": 256, "cuda": 1024}  # batch of sampling and measuring


class Distance:
    """The Frechet distance of samples (N, C, H, W) in [-1, 1] to an experiment's data.

    features: a name, see `features.extractor`; a classifier is trained once and kept in the
    experiment's folder. conditions: everything the number depends on, as JSON.
    """

    def __init__(self, experiment: Experiment, features: str):
        data, weights = experiment.data, None
        if features == "classifier":
            data, weights = experiment.labelled, experiment.folder / CLASSIFIER
        self.extract: Extractor = extractor(features, weights=weights, data=data, device=device())
        source = open_source(data)(None, 0)
        self.reference = statistics(source, self.extract, len(data), 0, cache_folder()).moments
        self.metric = self.extract.metric("fd")
        self.conditions = {"reference": source.about, **self.extract.about}

    def __call__(self, samples: Tensor) -> float:
        batches = to_uint8(samples).split(SAMPLED[device()])
        with progress(self.metric, len(batches), "batch", iterable=batches) as bar:
            moments: Moments = reduce(Moments.merged, (moments_of(self.extract(x)) for x in bar))
        return frechet_distance(moments, self.reference)


def check_measuring(levels: Level, steps: Sequence[int], features: Sequence[str]) -> None:
    """Raise ValueError, before any training, for steps or features that `measure` would refuse."""
    for n in steps:
        step_indices(levels.num_steps, n)
    for name in features:
        check_choice("features", name, FEATURES)
    writable(cache_folder())


def measure(
    experiment: Experiment,
    denoiser: Denoiser,
    settings: Training,
    steps: Sequence[int],
    features: Sequence[str] = ("pixels",),
) -> pd.DataFrame:
    """Sample a run at each number of steps, keep the samples, add rows to results.csv.

    Returns the table of all runs, in its wide form. The teacher's first steps must be
    reference_steps: others are compared to it. features: those of `features.extractor` for the
    Frechet distance to the data. The first KEPT samples are kept; the distance to the teacher is
    theirs. Samples of unchanged weights are reused. Further averages of the run, sampled at its
    last number of steps, are runs RUN-averageRESIDUAL in the table. Raises ValueError before any
    sampling for invalid steps or features.
    """
    levels, table = experiment.grid(settings), experiment.folder / RESULTS
    check_measuring(levels, steps, features)
    read_results(table)  # raises if it is damaged
    distances = [Distance(experiment, name) for name in features]
    folder, count = experiment.folder / run_name(settings), experiment.num_samples
    path = folder / SAMPLES
    model = folder / "model.safetensors"
    about = {"model": read_sha256(model), "compute": str(experiment.compute)}
    before, known = read_tensors(path) if path.is_file() else ({}, about)
    before = before if known == about else {}  # else from other weights
    missing = [n for n in steps if len(before.get(str(n), ())) != count]
    made = {n: sample_noise(experiment, denoiser, levels, n) for n in missing}
    if made:
        write_tensors(path, before | {str(n): x[:KEPT] for n, x in made.items()}, about)
    reference = saved_samples(experiment, TEACHER)[experiment.reference_steps].to(device())
    row, rows = run_row(folder, denoiser), []
    for n in steps:
        x = made[n] if n in made else before[str(n)].to(device())
        rows += _rows_of_samples(experiment, row | {"nfe": n}, x, reference, distances)
    for residual in getattr(settings, "more_residuals", ()):
        average = load_model(folder / average_file(residual), device())[0]
        at = row | {"nfe": steps[-1], "run": f"{folder.name}-average{residual:g}"}
        x = sample_noise(experiment, average, levels, steps[-1])
        rows += _rows_of_samples(experiment, at, x, reference, distances)
    card = read_tensors(model)[1]
    if "peak_memory_mb" in card:  # in training on a GPU
        at = row | {"nfe": steps[0], "samples": 0}
        rows.append(at | number("peak_memory_mb", card["peak_memory_mb"]))
    return wide(append_results(table, rows))


def _rows_of_samples(
    experiment: Experiment, at: dict, x: Tensor, reference: Tensor, distances: Sequence[Distance]
) -> list[dict]:
    """Return rows of the distances of samples (N, ...) to the data and the teacher's (M, ...)."""
    rows = [at | {"samples": len(x)} | number(d.metric, d(x), **d.conditions) for d in distances]
    count = min(len(x), len(reference))
    error = rmse(x[:count], reference[:count])
    found = number("rmse_to_teacher", error, nfe=experiment.reference_steps)
    return [*rows, at | {"samples": count} | found]


def measure_real(experiment: Experiment, features: Sequence[str]) -> None:
    """Add the distance of real images: the floor, which is higher for fewer samples.

    Uses as many images as are sampled from models, or all if there are fewer, drawn at random from
    the test split, or without one from the training data.
    """
    known = set(read_results(experiment.folder / RESULTS).query("run == @REAL")["metric"])
    features = [name for name in features if metric_name("fd", name) not in known]
    if not features:
        return
    real = experiment.data
    if has_test_split(experiment.data_name):
        real = load_data(experiment.data_name, experiment.data_dir, split="test")
    source = open_source(real)(None, experiment.seed)
    images = to_unit(source.read(0, min(len(real), experiment.num_samples)))
    about = provenance()
    at = dict.fromkeys(COLUMNS, "") | {
        "data": experiment.data_name,
        "noise_schedule": experiment.noise_schedule,
        "method": "real images",
        **dict.fromkeys(("nfe", "student_params", "images", "seed"), 0),
        "samples": len(images),
        "device": about["device"],
        "commit": about["commit"],
        "seconds": 0.0,
        "run": REAL,
    }
    distances = [Distance(experiment, name) for name in features]
    found = [at | number(d.metric, d(images), **d.conditions) for d in distances]
    append_results(experiment.folder / RESULTS, found)


def measure_phases(experiment: Experiment, settings: Distillation, count: int = 64) -> None:
    """Add, for every phase, the RMSE of its student's samples to the teacher's full rollout.

    The student of a phase takes its own number of steps, the first teacher all steps of its grid,
    with these settings' solver, from the same noise. This shows how far the target of the next
    phase has drifted.
    """
    levels, folder = experiment.grid(settings), experiment.folder / run_name(settings)
    rollout, rows = _rollout(experiment, levels, count, settings.solver), []
    for phase, nfe in enumerate(settings.step_schedule[1:], 1):
        name = f"phase-{phase}" if phase < settings.num_phases else "model"
        student = load_model(folder / f"{name}.safetensors", device())[0]
        x = sample_noise(experiment, student, levels, nfe, count)
        schedule = format_schedule(settings.step_schedule[: phase + 1])
        at = {"schedule": schedule, "nfe": nfe, "samples": len(x)}
        about = {"steps": levels.num_steps, "solver": settings.solver}
        found = number(PER_PHASE, rmse(x, rollout), **about)
        rows.append(run_row(folder, student) | at | found)
    append_results(experiment.folder / RESULTS, rows)


def saved_samples(experiment: Experiment, name: str) -> dict[int, Tensor]:
    """Return a measured run's samples by number of steps; raises FileNotFoundError without any."""
    path = experiment.folder / name / SAMPLES
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: execute the notebook that measures {name} first")
    return read_samples(path.parent)


def read_samples(folder: Path) -> dict[int, Tensor]:
    """Return the samples in a run's folder by number of steps, most first; checks their model."""
    tensors, card = read_tensors(folder / SAMPLES)
    model = folder / "model.safetensors"
    if "model" in card and model.is_file() and card["model"] != read_sha256(model):
        raise ValueError(
            f"{folder / SAMPLES} are samples of another model: remove them, and measure again"
        )
    check_numbers(tensors, folder / SAMPLES)
    if odd := [name for name in tensors if not name.isdecimal() or tensors[name].ndim < 2]:
        raise ValueError(f"{folder / SAMPLES} has {shown(odd[0])}, not samples at steps: remove it")
    return {int(n): tensors[n] for n in sorted(tensors, key=int, reverse=True)}


def comparison(experiment: Experiment, table: pd.DataFrame, count: int) -> dict[str, Tensor]:
    """Return rows of images by label: data, then each row of a table, all from the same noise.

    Skips rows without samples here: of a run that was deleted, or measured elsewhere.
    """
    rows = {"data": to_unit(experiment.data.samples[:count]).cpu()}
    for row in table.itertuples():
        label = f"{row.method} {shortened(row.schedule)}".strip()
        label += f", {in_steps(row.nfe)}"
        label = label if label not in rows else f"{label}, {row.run}"
        with suppress(FileNotFoundError, KeyError):  # no samples of the run, or with these steps
            rows[label] = saved_samples(experiment, row.run)[row.nfe][:count]
    return rows


def sample_noise(
    experiment: Experiment,
    denoiser: Denoiser,
    levels: Level,
    num_steps: int,
    count: int | None = None,
    **options,
) -> Tensor:
    """Sample (count, ...), by default all, from the noise that all models start from.

    options: of `sample_batches`, instead of those of the experiment.
    """
    eps, labels = (None if x is None else x[:count] for x in experiment.noise)
    how = {"clamp": experiment.clamp, "compute": experiment.compute, "batch": SAMPLED[device()]}
    return sample_batches(denoiser, eps, levels, num_steps, labels=labels, **how | options)


def _rollout(experiment: Experiment, levels: Level, count: int, solver: str) -> Tensor:
    """Return the teacher's samples (count, ...) with all steps of a grid, computed once."""
    folder = experiment.folder / TEACHER
    count = min(count, experiment.num_samples)
    path = folder / f"rollout-{solver}-{levels.num_steps}-{count}.safetensors"
    made_by = {"model": read_sha256(folder / "model.safetensors")}
    with only_writer(path.parent, path.name, wait=True):
        if not path.is_file():
            teacher = load_model(folder, device())[0]
            x = sample_noise(
                experiment, teacher, levels, levels.num_steps, count, solver=SOLVERS[solver]
            )
            write_tensors(path, {"samples": x}, made_by)
        tensors, card = read_tensors(path)
    if card != made_by or "samples" not in tensors:
        raise ValueError(f"{path} is of another teacher: remove it to compute it again")
    return tensors["samples"].to(device())
