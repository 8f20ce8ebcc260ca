"""Watch a distillation while it trains: curves, samples, and buttons to stop and resume.

The cell is the loop. Where nobody can click, the same call shows a text bar; the records of the run
and its files are the same.
"""

import html
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import ipywidgets as w
import pandas as pd
from torch import Tensor

from tract.denoiser import Denoiser
from tract.experiments.experiment import Experiment
from tract.experiments.history import HISTORY, history
from tract.experiments.run import Checkpointing, Run, complete
from tract.jobs.plan import duration
from tract.lab.curves import Curves, image_strip
from tract.lab.live import Breath, clicks_arrive, happened
from tract.lab.plots import stacked
from tract.lab.probes import students_samples, students_steps, target_errors, teachers_samples
from tract.lab.show import show
from tract.records import Record
from tract.settings import Distillation

SHARE = 0.025  # of the time that training takes, for all that is drawn meanwhile
TEXT_SECONDS = 0.3  # between two sets of numbers
SAMPLES = 12
WINDOW = 30.0  # seconds, of which the speed is told


async def distill(
    experiment: Experiment,
    settings: Distillation,
    saving: Checkpointing | None = None,
    processes: int = 1,
) -> Denoiser:
    """Distil as `Experiment.distill`, in a panel with the buttons Stop, Resume and Leave.

    Stop saves after the step that is being made; then Resume goes on exactly there, and Leave ends
    the cell, which can be run again to the same effect. Where nobody can click there is a bar.
    KeyboardInterrupt for Leave, and for the kernel's interrupt, which saves as well.
    """
    run = experiment.distillation(settings, saving, processes)
    live = not run.finished and await clicks_arrive()
    student = None if live else complete(run)
    panel = Panel(experiment, settings, run)
    panel.draw(run)
    panel.show()
    while student is None:
        if await panel.watched(run):
            student = run.result()
        elif await panel.resumed():
            run = experiment.distillation(settings, saving, processes)
        else:
            raise KeyboardInterrupt
    return student


class Panel:
    """What a run shows of itself: numbers, curves, samples, and buttons.

    It draws as often as fits into SHARE of the time that passes. `clock` and `spent` are seconds
    under way, and of these drawing.
    """

    def __init__(self, experiment: Experiment, settings: Distillation, run: Run):
        self.experiment, self.settings, self.folder = experiment, settings, Path(run.folder)
        phase_images = settings.steps_per_phase * settings.batch_size
        ends = [phase_images * (i + 1) for i in range(settings.num_phases - 1)]
        self._curves = Curves(settings.num_steps * settings.batch_size, ends, settings.grid_steps)
        self._teachers = teachers_samples(experiment, SAMPLES)
        self._speeds: deque[tuple[float, int]] = deque()  # seconds under way, and steps done
        self._errors: tuple[Tensor, Tensor] | None = None  # to targets, by level
        self._parts = deque([self._draw_curves, self._draw_samples])  # in turn
        self._costs: dict[Callable, float] = {}  # seconds that each took last
        self.clock, self.spent, self._told = 0.0, 0.0, 0.0
        self._clicked = threading.Event()
        self._lay_out()
        self._read_past()

    def _lay_out(self) -> None:
        self.bar = w.FloatProgress(max=self.settings.num_steps, layout={"width": "100%"})
        self.numbers, self.status = w.HTML(), w.HTML()
        self.buttons = {n: w.Button(description=n) for n in ("Stop", "Resume", "Leave")}
        for name, button in self.buttons.items():
            button.on_click(lambda button: self._click(button.description))
            button.disabled = name != "Stop"
        self.curves = w.Image(layout={"width": "1000px", "height": "230px"})
        self.samples = w.Image(layout={"height": "104px", "width": f"{SAMPLES * 52}px"})
        self.caption = w.HTML()
        for image in (self.curves, self.samples):
            image.layout.object_fit, image.layout.max_width = "contain", "100%"
        self.numbers.layout.height = self.status.layout.height = "30px"
        self.box = w.VBox(
            [
                w.HTML(f"<b>{html.escape(self.folder.name)}</b>"),
                self.bar,
                self.numbers,
                w.HBox([*self.buttons.values(), self.status]),
                self.curves,
                self.caption,
                self.samples,
            ],
            layout={"max_width": "1000px"},
        )

    def show(self) -> None:
        """Display the panel; where it cannot live, its curves and samples."""
        show(self.box, stacked([bytes(self.curves.value), bytes(self.samples.value)]))

    async def watched(self, run: Run) -> bool:
        """Iterate over a run, and let clicks in; whether it came to its end.

        False after a click on Stop; KeyboardInterrupt after any other interrupt.
        """
        self._state("training", stoppable=True)
        self._read_past()
        breath = Breath()
        try:
            for record in run:
                self.take(record, run)
                await breath.breathe()
                run.stop.requested |= self._choice == "Stop"
        except KeyboardInterrupt:
            self.draw(run)
            self._state(f"saved at step {run.state.step}", stoppable=False)
            if self._choice != "Stop":
                raise
            return False
        self.draw(run)
        self._state(f"finished after {run.state.step} steps", stoppable=None)
        return True

    async def resumed(self) -> bool:
        """Wait for a click on Resume or Leave; whether it was Resume."""
        self._choice = ""
        await happened(self._clicked)
        return self._choice == "Resume"

    def take(self, record: Record, run: Run) -> None:
        """Show a record, as far as there is time for it."""
        now = time.perf_counter()
        self.clock, self._begun = self.clock + now - self._begun, now
        self._late.append(record)
        if now - self._told > TEXT_SECONDS:
            self._told = now
            self._tell(record, run)
        part = self._parts[0]
        # What it cost last time is waited for first, so that the share is never more.
        if self.spent + self._costs.get(part, 0.0) <= SHARE * self.clock:
            drawn = time.perf_counter()
            part(run)
            self._costs[part] = time.perf_counter() - drawn
            self._parts.rotate()
        self.spent += time.perf_counter() - now

    def draw(self, run: Run) -> None:
        """Draw the curves and samples of a run as they are now."""
        self._draw_samples(run)
        self._draw_curves(run)

    def _draw_curves(self, run: Run) -> None:
        while self._late and self._late[0].losses.arrived:
            record = self._late.popleft()
            self._records.append((record.images_seen, record.loss, record.mse))
        records = pd.DataFrame(self._records, columns=["images_seen", "loss", "mse"])
        self.curves.value = self._curves.draw(records, self._errors, self._distances())

    def _draw_samples(self, run: Run) -> None:
        experiment, settings = self.experiment, self.settings
        if run.finished:
            student, phase = run.result(), settings.num_phases - 1
        else:
            student, phase = run.state.ema, run.state.phase
        if run.state.step or not run.finished:  # of a run finished before there is no state
            self._errors = target_errors(experiment, settings, run.state)
        rows = [] if self._teachers is None else [self._teachers]
        rows.append(students_samples(experiment, settings, student, phase, SAMPLES))
        self.samples.value = image_strip(rows)
        self.caption.value = (
            f"From the same noise: the teacher in {experiment.reference_steps} steps; below it the "
            f"student, in {students_steps(settings, phase)}"
        )

    def _read_past(self) -> None:
        """Take what the run's history says so far; a resumed run goes on from there."""
        self._choice = ""
        self._records, self._late = [], deque()
        self._speeds.clear()
        if (self.folder / HISTORY).is_file():
            past = history(self.folder)
            if len(past):
                self._records = list(past[["images_seen", "loss", "mse"]].itertuples(index=False))
        self.start_clock()

    def start_clock(self) -> None:
        """Count the time from here on as under way."""
        self._begun = time.perf_counter()

    def _distances(self) -> pd.DataFrame:
        """What the run has measured of its average so far."""
        path, found = self.folder / "metric.jsonl", []
        if path.is_file():
            lines = map(json.loads, path.read_text().splitlines())
            found = [(line["step"] * self.settings.batch_size, line["metric"]) for line in lines]
        return pd.DataFrame(found, columns=["images_seen", "metric"])

    def _tell(self, record: Record, run: Run) -> None:
        """Say how far the run is, how fast, and how long it takes at this speed."""
        self._speeds.append((self.clock, record.step))
        while self.clock - self._speeds[0][0] > WINDOW:
            self._speeds.popleft()
        (before, first), (now, last) = self._speeds[0], self._speeds[-1]
        speed = (last - first) / (now - before) if now > before else 0.0
        left = duration((record.num_steps - record.step) / speed) if speed else "unknown"
        rate = run.state.optimizer.param_groups[0]["lr"]
        self.bar.value = record.step
        self.numbers.value = (
            f"step {record.step:,} of {record.num_steps:,} &nbsp; phase "
            f"{html.escape(record.phase)} &nbsp; {speed * self.settings.batch_size:,.0f} images/s "
            f"&nbsp; {left} left &nbsp; learning rate {float(rate):.3g}"
        )

    def _state(self, text: str, stoppable: bool | None) -> None:
        """Say what is going on, and enable the buttons for it; None for none of them."""
        self.status.value = f"&nbsp; <b>{html.escape(text)}</b>"
        self.buttons["Stop"].disabled = stoppable is not True
        self.buttons["Resume"].disabled = self.buttons["Leave"].disabled = stoppable is not False

    def _click(self, name: str) -> None:
        self._choice = name
        if name == "Stop":
            self._state("stopping after this step", stoppable=None)
        else:
            self._clicked.set()
