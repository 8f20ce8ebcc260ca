"""The study of notebook 08 on one GPU, its runs side by side: `gpu_study.py WORKERS -f PRESET`.

A small network leaves most of a GPU idle, and a notebook makes one run after the other. This makes
the same runs, those missing in `results`, several at a time, each in a process of its own; notebook
08 then finds them there, measured. Needs no Jupyter. Ctrl-C lets running ones save, and the same
command resumes.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tract.base.compute import Compute, use_threads
from tract.experiments.experiment import Experiment, open_experiment
from tract.experiments.names import TEACHER
from tract.experiments.results import read_results
from tract.experiments.run import Checkpointing
from tract.jobs.parameters import declared_parameters, typed_parameters
from tract.metrics.features import metric_name
from tract.settings import Training
from tract.studies.ablations import Study
from tract.studies.charts import save_grid
from tract.studies.run_study import begin_study, export_best, make_run, rows_of_samples

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
        known, metrics = read_results(p["results"]), [metric_name("fd", f) for f in p["features"]]
        self.plan = self.study.missing(known, p["comparisons"], metrics)
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

    def measure(self, name: str) -> None:
        """Measure a student, and add its rows to the table."""
        p, experiment = self.p, open_experiment(self.p["run_dir"], self.how)
        make_run(experiment, self.plan[name], p["features"], p["results"], self.saving)

    def finish(self) -> None:
        """Write pictures and weights, as the notebook does."""
        p, few = self.p, [1, 2, 4]
        common = self.study, p["comparisons"], p["run_dir"]
        save_grid(rows_of_samples(*common, 16, few), p["grid"])
        export_best(*common, p["models"], few)


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

    def student(name: str) -> bool:
        return alone("distil", name) and teacher.result() and alone("measure", name)

    pool = ThreadPoolExecutor(options.workers)
    try:
        teacher = pool.submit(alone, TEACHER)
        begun = folder / "experiment.json", folder / TEACHER / "model.safetensors"
        while not all(path.is_file() for path in begun) and not teacher.done():
            time.sleep(1)
        if all(list(pool.map(student, work.plan))) and teacher.result():
            alone("finish")
    except KeyboardInterrupt:
        sys.exit("interrupted: running students save, and the same command resumes")
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
