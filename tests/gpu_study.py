"""The study of notebook 08 on one GPU, its runs side by side: `gpu_study.py WORKERS -f PRESET`.

A small network leaves most of a GPU idle, and a notebook makes one run after the other. This makes
the same runs, several at a time, each in a process of its own; notebook 08 then finds them in
`run_dir` and `results`, finished and measured. Needs no Jupyter. Interrupted, it resumes.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tract.base.compute import Compute, use_threads
from tract.experiments.experiment import Experiment, open_experiment
from tract.experiments.measure import SAMPLES, measure, measure_phases
from tract.experiments.names import TEACHER
from tract.experiments.results import publish
from tract.experiments.run import Checkpointing
from tract.jobs.parameters import declared_parameters, typed_parameters
from tract.metrics.features import metric_name
from tract.settings import Training
from tract.studies.ablations import Study
from tract.studies.charts import save_grid
from tract.studies.run_study import begin_study, export_best, rows_of_samples

HERE = Path.cwd()
NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks/08_fashion_mnist.ipynb"


class Work:
    """The study of some parameters: its teacher, its students, and what is written in the end."""

    def __init__(self, given: dict):
        p = declared_parameters(NOTEBOOK) | given
        os.chdir(NOTEBOOK.parent)  # its own parameters are relative to it, a preset's absolute
        self.p, self.how = p, Compute.of(p["compute"])
        base = {name: p[name] for name in ("batch_size", "learning_rate", "clamp")}
        metric = metric_name("fd", p["features"][0])
        common = p["data"], p["seeds"], p["train_images"], p["noise_schedule"], metric
        self.study, self.saving = Study(*common, base=base), Checkpointing(minutes=10.0)
        use_threads(1)

    def teacher(self) -> None:
        """Train or read the teacher; measure it and real images."""
        p = self.p
        options = {name: p[name] for name in ("noise_schedule", "reference_steps", "num_samples")}
        experiment = Experiment(
            Path(p["run_dir"]), p["data"], p["data_dir"], compute=self.how, **options
        )
        rate, weight = p["teacher_learning_rate"], p["teacher_loss_weight"]
        training = {
            "learning_rate": rate,
            "loss_weight": weight,
            "batch_size": p["teacher_batch_size"],
        }
        settings = Training(train_images=p["teacher_images"], **training)
        steps = [p["reference_steps"], *p["sample_steps"]]
        given = {"teacher": p["teacher"], "classifier": p["classifier"]}
        begin_study(
            experiment, p["network"], settings, steps, p["features"], p["results"], self.saving,
            **given,
        )  # fmt: skip

    def student(self, name: str) -> None:
        """Distil one, and measure it when the teacher's samples are there."""
        experiment = open_experiment(self.p["run_dir"], self.how)
        settings = self.study.plan(self.p["comparisons"])[name]
        student = experiment.distill(settings, self.saving)
        while not (experiment.folder / TEACHER / SAMPLES).is_file():
            time.sleep(1)
        measure(experiment, student, settings, [settings.step_schedule[-1]], self.p["features"])
        measure_phases(experiment, settings)
        publish(self.p["run_dir"], self.p["results"])

    def finish(self) -> None:
        """Write what the notebook does: pictures and weights, of the runs that are measured."""
        p, asked = self.p, (self.study, self.p["comparisons"])
        save_grid(rows_of_samples(*asked, p["run_dir"], 16), p["grid"])
        export_best(*asked, p["run_dir"], p["models"], [1, 2, 4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", type=int, help="runs at a time")
    parser.add_argument("-f", "--file", type=Path, help="preset of notebook 08")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[])
    parser.add_argument("--part", help="run this one in this process")
    options = parser.parse_args()
    work = Work(typed_parameters(NOTEBOOK, options.file, options.parameter))
    parts = {TEACHER: work.teacher, "finish": work.finish}
    if options.part:
        parts.get(options.part, partial(work.student, options.part))()
        return
    folder, start, again = Path(work.p["run_dir"]), time.monotonic(), [sys.executable, *sys.argv]
    folder.mkdir(parents=True, exist_ok=True)

    def alone(part: str) -> None:
        with (folder / f"{part}.log").open("w") as log:
            done = subprocess.run(
                [*again, "--part", part], cwd=HERE, stdout=log, stderr=subprocess.STDOUT
            )
        print(f"{time.monotonic() - start:.0f} s: {part} ended with {done.returncode}", flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        first = pool.submit(alone, TEACHER)
        begun = folder / "experiment.json", folder / TEACHER / "model.safetensors"
        while not all(path.is_file() for path in begun) and not first.done():
            time.sleep(1)
        list(pool.map(alone, work.study.plan(work.p["comparisons"])))
    alone("finish")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
