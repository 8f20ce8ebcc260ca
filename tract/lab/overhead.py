"""Measure what watching a run costs."""

import asyncio
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tract.base.checks import check_whole
from tract.experiments.experiment import TEACHER, open_experiment
from tract.lab.live import Breath
from tract.lab.monitor import Panel
from tract.settings import Distillation

BLOCK = 8  # steps in a row that are watched, and as many that are not


def overhead(run_dir: str | Path, steps: int = 240) -> dict[str, float]:
    """Distil a run directory's teacher by 1024>32>1 in a copy, and compare the steps of both kinds.

    Seconds of a step watched and not, of the clock and of this process, and the shares that
    watching takes of them. The first block of each kind is not counted: memory is found in it.
    FileNotFoundError without a teacher in run_dir, ValueError for too few steps.
    """
    check_whole("steps", steps, 4 * BLOCK)
    open_experiment(run_dir)  # refused before anything is copied
    with TemporaryDirectory() as folder:
        shutil.copy(Path(run_dir) / "experiment.json", folder)
        shutil.copytree(Path(run_dir) / TEACHER, Path(folder) / TEACHER)
        experiment = open_experiment(folder)
        batch = 128
        settings = Distillation(
            step_schedule=[1024, 32, 1], train_images=steps * batch, batch_size=batch
        )
        run = experiment.distillation(settings)
        panel = Panel(experiment, settings, run)
        panel.draw(run)
        wall, own = asyncio.run(_alternate(run, panel))
    row = {"steps": steps}
    for name, times in (("seconds", wall), ("cpu_seconds", own)):
        row |= {f"{name}_watched": times[True], name: times[False]}
        row[f"{name}_share"] = times[True] / times[False] - 1
    return row | {"drawn_share": panel.spent / panel.clock}


async def _alternate(run, panel: Panel) -> tuple[dict[bool, float], dict[bool, float]]:
    """Mean seconds of a step by whether it is watched: of the clock, and of the process."""
    clocks = time.perf_counter, time.process_time
    sums = [{True: 0.0, False: 0.0} for _ in clocks]
    counts = {True: 0, False: 0}
    breath, before = Breath(), [clock() for clock in clocks]
    for record in run:
        watched = (record.step - 1) // BLOCK % 2 == 0
        if watched:
            panel.take(record, run)
            await breath.breathe()
        now = [clock() for clock in clocks]
        if record.step > 2 * BLOCK:
            counts[watched] += 1
            for total, start, end in zip(sums, before, now, strict=True):
                total[watched] += end - start
        before = now
        if record.step % (2 * BLOCK) == 0:
            panel.start_clock()
    return tuple({kind: total[kind] / counts[kind] for kind in counts} for total in sums)
