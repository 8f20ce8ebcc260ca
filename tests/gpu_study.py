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
from dataclasses import replace
from functools import partial
from pathlib import Path

from tract.base.compute import Compute, use_threads
from tract.experiments.experiment import Experiment, open_experiment
from tract.experiments.names import TEACHER
from tract.experiments.run import Checkpointing
from tract.jobs.parameters import declared_parameters, typed_parameters
from tract.metrics.features import metric_name
from tract.settings import Training
from tract.studies.ablations import Study
from tract.studies.charts import save_grid
from tract.studies.run_study import begin_study, export_best, rows_of_samples, run_missing

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
        first = replace(self.study, seeds=p["seeds"][:1])
        self.parts = [(self.study, p["comparisons"]), (first, p["once"])]
        self.plan = {n: s for study, names in self.parts for n, s in study.plan(names).items()}
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

    def distil(self, name: str) -> None:
        """Distil a student, or read it."""
        open_experiment(self.p["run_dir"], self.how).distill(self.plan[name], self.saving)

    def finish(self) -> None:
        """Measure the students, and write pictures and weights, as the notebook does."""
        p, names = self.p, [*self.p["comparisons"], *self.p["once"]]
        for study, part in self.parts:
            run_missing(
                study, part, p["run_dir"], p["results"], self.saving, p["features"], self.how
            )
        save_grid(rows_of_samples(self.study, names, p["run_dir"], 16), p["grid"])
        export_best(self.study, names, p["run_dir"], p["models"], [1, 2, 4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", type=int, help="runs at a time")
    parser.add_argument("-f", "--file", type=Path, help="preset of notebook 08")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[])
    parser.add_argument("--part", nargs="+", help="do this in this process: a method of Work")
    options = parser.parse_args()
    work = Work(typed_parameters(NOTEBOOK, options.file, options.parameter))
    if options.part:
        getattr(work, options.part[0])(*options.part[1:])
        return
    folder, start = Path(work.p["run_dir"]), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)

    def alone(*part: str) -> bool:
        log = folder / f"{'-'.join(part)}.log"
        with log.open("w") as file:
            command = [sys.executable, *sys.argv, "--part", *part]
            done = subprocess.run(command, cwd=HERE, stdout=file, stderr=subprocess.STDOUT)
        outcome = "is done" if done.returncode == 0 else f"failed, see {log}"
        print(f"{time.monotonic() - start:.0f} s: {' '.join(part)} {outcome}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(options.workers) as pool:
        teacher = pool.submit(alone, TEACHER)
        begun = folder / "experiment.json", folder / TEACHER / "model.safetensors"
        while not all(path.is_file() for path in begun) and not teacher.done():
            time.sleep(1)
        done = list(pool.map(partial(alone, "distil"), work.plan))
        if teacher.result() and all(done):
            alone("finish")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
