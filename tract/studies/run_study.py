"""Run a study: teacher, real-image baseline and students, each trained and measured once."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from tract.base.compute import EAGER, Compute, device
from tract.denoiser import Denoiser
from tract.experiments.experiment import TEACHER, Experiment, open_experiment
from tract.experiments.export import export_run
from tract.experiments.measure import (
    CLASSIFIER,
    check_measuring,
    comparison,
    measure,
    measure_phases,
    measure_real,
)
from tract.experiments.results import RESULTS, append_results, publish, read_results
from tract.experiments.rows import teacher_name
from tract.experiments.run import Checkpointing
from tract.metrics.features import file_sha256, metric_name
from tract.networks.weights import load_model, save_model
from tract.phases import in_steps
from tract.settings import Distillation, Training
from tract.studies.ablations import Study


def begin_study(
    experiment: Experiment,
    network: str,
    settings: Training,
    steps: Sequence[int],
    features: Sequence[str],
    results: str | Path,
    saving: Checkpointing,
    *,
    teacher: str = "",
    classifier: str = "",
    processes: int = 1,
) -> Denoiser:
    """Train the teacher or take another, measure it and real images, and add the rows to results.

    steps: to sample it with, the reference steps first. teacher: to use instead of training, as for
    `load_teacher`. classifier: file of the classifier whose features are used, so that others can
    compare; "" trains one. Completed work is not repeated. Raises ValueError or FileNotFoundError
    for invalid arguments before any compute.
    """
    copy, own = experiment.folder / CLASSIFIER, experiment.folder / RESULTS
    experiment.begin()
    if classifier and not Path(classifier).is_file():
        raise FileNotFoundError(f"no classifier {classifier}: correct the path, or leave it empty")
    if classifier and not copy.is_file():
        shutil.copy(classifier, copy)
    if classifier and file_sha256(copy) != file_sha256(classifier):
        raise ValueError(
            f"{copy} and {classifier} are different classifiers, whose numbers do not compare: "
            "give another run_dir, or the first file"
        )
    check_measuring(experiment.levels, steps, features)
    measure_real(experiment, features)
    if teacher:
        denoiser = experiment.import_teacher(teacher)
    else:
        experiment.train_teacher(network, settings, saving, processes)
        denoiser = _rounded_teacher(experiment)
    rows, name = read_results(own), teacher_name(denoiser)
    rows = rows[(rows["run"] == TEACHER) & (rows["teacher"] == name)]
    wanted = itertools.product(steps, [metric_name("fd", name) for name in features])
    if not set(wanted) <= set(zip(rows["nfe"], rows["metric"], strict=True)):
        measure(experiment, denoiser, settings, steps, features)
    known = read_results(results)
    same = (known["run"] == TEACHER) & (known["teacher"] == name)
    append_results(own, known[same].to_dict("records"))  # with its training
    publish(experiment.folder, results)
    return denoiser


def _rounded_teacher(experiment: Experiment) -> Denoiser:
    """Return the trained teacher in half precision, as it is published, so that all use the same.

    A teacher that was measured or distilled before, as by notebook 01, stays unchanged.
    """
    folder = experiment.folder / TEACHER
    used = any(read_results(experiment.folder / RESULTS)["run"] == TEACHER)
    used |= any(path.parent != folder for path in experiment.folder.glob("*/card.json"))
    if not used:
        denoiser, card = load_model(folder)
        save_model(folder / "model.safetensors", denoiser, card, half=True)
    return load_model(folder, device())[0]


def run_missing(
    study: Study,
    comparisons: Sequence[str],
    run_dir: str | Path,
    results: str | Path,
    saving: Checkpointing,
    features: Sequence[str] = ("pixels",),
    compute: Compute = EAGER,
    processes: int = 1,
) -> None:
    """Distil and measure in run_dir the runs missing in results, and add each row at once.

    Measures, in these features, samples with the last number of steps of a schedule, and the
    distance of each phase's student to the first teacher's rollout. Finished runs are read,
    unfinished ones resumed. Raises FileNotFoundError without a teacher; ValueError, before any run,
    if the teacher has other data or differs from that of the plan's runs in results.
    """
    known, metrics = read_results(results), [metric_name("fd", name) for name in features]
    plan, wanted = study.plan(comparisons), study.missing(known, comparisons, metrics)
    print(f"{len(plan)} runs, {len(plan) - len(wanted)} of them measured before")
    if not wanted:
        return
    experiment = open_experiment(run_dir, compute)
    teacher = teacher_name(load_model(experiment.folder / TEACHER)[0])
    found = f"{experiment.data_name} with {experiment.noise_schedule} levels"
    asked = f"{study.data} with {study.noise_schedule} levels"
    if found != asked or not teacher.startswith(study.teacher):
        raise ValueError(
            f"{run_dir} has the teacher {teacher} of {found}, not {study.teacher or 'one'} of "
            f"{asked}: correct run_dir or teacher"
        )
    mine = study.mine(known)
    others = mine[mine["run"].isin(list(plan)) & (mine["teacher"] != teacher)]
    if len(others):
        raise ValueError(
            f"{results} has {others['run'].nunique()} of these runs with the teacher "
            f"{others['teacher'].iloc[0]}, but {run_dir} has {teacher}: their students do not "
            "compare, give another table or another run_dir"
        )
    for settings in wanted.values():
        make_run(experiment, settings, features, results, saving, processes)


def make_run(
    experiment: Experiment,
    settings: Distillation,
    features: Sequence[str],
    results: str | Path,
    saving: Checkpointing,
    processes: int = 1,
) -> None:
    """Distil a student or read it, measure it as `run_missing` does, and add its rows to results.

    Raises FileNotFoundError, once it is trained, if its teacher was not measured.
    """
    student = experiment.distill(settings, saving, processes)
    measure(experiment, student, settings, [settings.step_schedule[-1]], features)
    measure_phases(experiment, settings)
    publish(experiment.folder, results)


def rows_of_samples(
    study: Study,
    comparisons: Sequence[str],
    run_dir: str | Path,
    count: int,
    steps: Sequence[int],
) -> dict[str, Tensor]:
    """Return rows of images by label, from the same noise: data, the teacher in its reference
    steps, and for each number of steps the teacher and the best student of each method.

    Students are of the study's first seed; the best has the smallest value of its metric.
    """
    experiment, table = open_experiment(run_dir), read_results(Path(run_dir) / RESULTS)
    first = replace(study, seeds=study.seeds[:1])
    best = _best_first(first, table, comparisons).drop_duplicates(["nfe", "method"])
    teacher = study.teachers(table, best)
    rows = [teacher[teacher["nfe"] == experiment.reference_steps]]
    for n in sorted({*steps} - {experiment.reference_steps}, reverse=True):
        rows += [teacher[teacher["nfe"] == n], best[best["nfe"] == n].sort_values("method")]
    return comparison(experiment, pd.concat(rows), count)


def _best_first(study: Study, table: pd.DataFrame, comparisons: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a study's students, those with the smallest values first."""
    rows = study.rows_of_all(table, comparisons)
    return rows.sort_values("value", key=lambda v: v.astype(float), kind="stable")


def export_best(
    study: Study,
    comparisons: Sequence[str],
    run_dir: str | Path,
    stem: str | Path,
    steps: Sequence[int],
) -> None:
    """Write the teacher, and the best student for each number of steps, in half precision.

    Files are STEM_teacher.safetensors and STEM_Nsteps.safetensors, which `load_teacher` reads;
    existing ones are not replaced. The best has the smallest value of the study's metric.
    """
    table = read_results(Path(run_dir) / RESULTS)
    students = _best_first(study, table, comparisons)
    chosen = {"teacher": TEACHER}
    for n in steps:
        of_n = students[students["nfe"] == n]
        if len(of_n):
            chosen[in_steps(n).replace(" ", "")] = of_n.iloc[0]["run"]
    for what, run in chosen.items():
        target = Path(f"{stem}_{what}.safetensors")
        if target.exists():
            print(f"{target} exists already, and is kept")
        else:
            export_run(Path(run_dir) / run, target, half=True)
            print(f"{target}: {run}")
