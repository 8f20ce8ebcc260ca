"""What watching costs: `python tests/overhead.py RUN_DIR` on a machine that does nothing else.

Distils a run directory's teacher by 1024>32>1 in copies, in turn without previews and with them
and a panel that reads them from another process, and prints the share of throughput that it takes:
by the clock, and by the training's own processor time, which other programs hardly lengthen.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tract.base.compute import use_threads
from tract.experiments.experiment import TEACHER, open_experiment, run_name
from tract.experiments.job import Task
from tract.settings import Distillation

ROUNDS, STEPS, WARM = 3, 240, 20  # steps of a run, of which the first are not counted
CLOCKS = time.perf_counter, time.process_time
WATCH = "import sys, time; from pathlib import Path; from tract.lab.view import RunView\n"
WATCH += "view = RunView(Path(sys.argv[1]))\nwhile True: view.refresh(); time.sleep(0.5)"


def seconds_a_step(run) -> list[float]:
    """Mean seconds of a run's steps after the first ones, by each of CLOCKS."""
    for record in run:
        if record.step == WARM:
            start = [clock() for clock in CLOCKS]
    return [(clock() - a) / (STEPS - WARM) for clock, a in zip(CLOCKS, start, strict=True)]


def measured(run_dir: Path, watched: bool) -> list[float]:
    settings = Distillation(step_schedule=[1024, 32, 1], train_images=STEPS * 128)
    with TemporaryDirectory() as folder:
        shutil.copy(run_dir / "experiment.json", folder)
        shutil.copytree(run_dir / TEACHER, Path(folder) / TEACHER)
        experiment = open_experiment(folder)
        if not watched:
            return seconds_a_step(experiment.run(settings))
        path = Path(folder) / run_name(settings)
        panel = subprocess.Popen([sys.executable, "-c", WATCH, str(path)])
        try:
            return seconds_a_step(Task(experiment, settings).run())
        finally:
            panel.kill()
            panel.wait()


def main() -> None:
    use_threads(1)
    run_dir = Path(sys.argv[1])
    rounds = [(measured(run_dir, False), measured(run_dir, True)) for _ in range(ROUNDS)]
    for i, clock in enumerate(CLOCKS):
        plain, watched = (min(seconds[i] for seconds in kind) for kind in zip(*rounds, strict=True))
        share = f"{watched / plain - 1:+.1%}"
        print(f"{clock.__name__}: {plain:.4f} s a step, watched {watched:.4f} s, {share}")


if __name__ == "__main__":
    main()
