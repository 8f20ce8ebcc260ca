"""The runs of a study, each made and measured once: a teacher, what real images score, students."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tract.ablations import Study
from tract.compute import EAGER, Compute
from tract.denoiser import Denoiser
from tract.experiment import TEACHER, Experiment, open_experiment
from tract.measuring import CLASSIFIER, measure, measure_phases, measure_real
from tract.results import RESULTS, publish, read_results
from tract.runs import Saving
from tract.train import Training


def begin_study(
    experiment: Experiment,
    preset: str,
    settings: Training,
    steps: Sequence[int],
    features: Sequence[str],
    results: str | Path,
    saving: Saving,
    *,
    teacher: str = "",
    classifier: str = "",
    processes: int = 1,
) -> Denoiser:
    """Train the teacher or take another, measure it and real images, and add the rows to results.

    steps: to sample it with, the reference steps first. teacher: as `load_teacher` reads one, taken
    instead of training. classifier: file of the one whose features are measured in, for others to
    compare with; "" trains one. What was done before is not repeated. ValueError or
    FileNotFoundError, before any compute, for what cannot be.
    """
    own = experiment.folder / CLASSIFIER
    experiment.begin()
    if classifier and not Path(classifier).is_file():
        raise FileNotFoundError(f"no classifier {classifier}: correct the path, or leave it empty")
    if classifier and not own.is_file():
        shutil.copy(classifier, own)
    measure_real(experiment, features)
    if teacher:
        denoiser = experiment.import_teacher(teacher)
    else:
        denoiser = experiment.train_teacher(preset, settings, saving, processes)
    rows = read_results(experiment.folder / RESULTS)
    if not set(steps) <= set(rows[rows["run"] == TEACHER]["nfe"]):
        measure(experiment, denoiser, settings, steps, features)
    publish(experiment.folder, results)
    return denoiser


def run_missing(
    study: Study,
    groups: Sequence[str],
    run_dir: str | Path,
    results: str | Path,
    saving: Saving,
    features: Sequence[str] = ("pixels",),
    compute: Compute = EAGER,
    processes: int = 1,
) -> None:
    """Distil and measure in run_dir what results has no row of, and add the rows there at once.

    Measured are, in these features, samples with the last number of steps of a schedule, and how
    far the student of each phase is from the first teacher's rollout. Finished runs are read,
    unfinished ones resumed. FileNotFoundError without a teacher, ValueError for one of other data;
    nothing is run then.
    """
    plan, wanted = study.plan(groups), study.missing(read_results(results), groups)
    print(f"{len(plan)} runs, {len(plan) - len(wanted)} of them measured before")
    if not wanted:
        return
    experiment = open_experiment(run_dir, compute)
    if (experiment.data_name, experiment.process) != (study.data, study.process):
        raise ValueError(
            f"{run_dir} has a teacher of {experiment.data_name} with {experiment.process} levels, "
            f"not of {study.data} with {study.process}: correct run_dir, data or process"
        )
    for settings in wanted.values():
        student = experiment.distill(settings, saving, processes)
        measure(experiment, student, settings, [settings.step_schedule[-1]], features)
        measure_phases(experiment, settings)
        publish(run_dir, results)
