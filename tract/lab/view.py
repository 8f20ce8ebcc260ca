"""View of a run directory: its state, curves and samples, read from its files."""

import html
import json
import math
import time
from pathlib import Path

import ipywidgets as w
from torch import Tensor

from tract.experiments.card import read_card
from tract.experiments.history import HISTORY, METRIC
from tract.experiments.job import JOB
from tract.experiments.measure import REAL, SAMPLES
from tract.experiments.names import TEACHER, settings_from
from tract.experiments.preview import PHASE_METRIC, PREVIEW, read_preview
from tract.experiments.results import RESULTS, read_results
from tract.experiments.status import FAILED, FINISHED, NEW, RUNNING, Status, read_status
from tract.jobs.plan import duration
from tract.lab.line_chart import Chart, Line, charts_html, figure
from tract.lab.plots import image_rows, png, stacked, text_figure
from tract.lab.show import sample_rows, text
from tract.lab.style import DATA, SELF_TEACHER, TEACHER_COLOUR, method_style
from tract.metrics.features import metric_name
from tract.networks.weights import read_tensors
from tract.phases import in_steps
from tract.settings import Distillation

PAUSE = 2.0  # seconds between two drawings
ACROSS = (TEACHER_COLOUR, DATA, SELF_TEACHER)  # colours of horizontal lines


class RunView(w.VBox):
    """A view of one run directory, which may not exist yet; `refresh` reads what is new in it."""

    def __init__(self, folder: Path):
        self.folder, self.status = Path(folder), Status()
        self._state, self._curves, self._samples = w.HTML(), w.HTML(), w.HTML()
        self._lines = {n: _Lines(self.folder / n) for n in (HISTORY, METRIC, PHASE_METRIC)}
        self._charts: list[Chart] = []
        self._rows: dict[str, Tensor] = {}  # of samples by label
        self._teachers: dict[str, Tensor] = {}  # row, read once: they may be large
        self._stamp, self._drawn = (), -math.inf
        super().__init__([self._state, self._curves, self._samples])
        self.refresh()

    def refresh(self) -> None:
        """Show the state, and at most every PAUSE seconds what is new in curves and samples."""
        status = self.status = read_status(self.folder)
        steps = f'max="{max(status.num_steps, 1)}" value="{status.step}"'
        bar = f'<progress {steps} aria-label="progress of the run"></progress>'
        name = f"<b>{html.escape(self.folder.name)}</b>: "
        kind = "bad" if status.state == FAILED else ""
        self._state.value = f"{bar}<div>{name}{text(told(status), kind)}</div>"
        preview = self.folder / PREVIEW
        changed = preview.stat().st_mtime_ns if preview.is_file() else 0
        stamp = status.state, status.step, changed
        first = not self._charts or stamp[:1] != self._stamp[:1]
        if stamp != self._stamp and (first or time.monotonic() - self._drawn > PAUSE):
            self._draw()
            self._stamp, self._drawn = stamp, time.monotonic()

    def picture(self) -> bytes:
        """The name, state, curves and samples as one PNG."""
        said = [f"{self.folder.name}: {told(self.status)}", self._as_of()]
        said += ["Run this cell again for a newer picture."] * (self.status.state != FINISHED)
        parts = [text_figure(said, "sans-serif", 10)]
        parts += [figure(self._charts)] if self._charts else []
        parts += [image_rows(self._rows, most=12)] if self._rows else []
        return stacked([png(part) for part in parts])

    def _draw(self) -> None:
        try:
            card = read_card(self.folder / "card.json")
        except (OSError, ValueError):  # not there yet, or damaged: the browser says so
            return
        if "settings" not in card:  # an imported teacher, which was not trained here
            return
        preview, about = read_preview(self.folder)
        self._charts = self._charts_of(card, preview)
        self._curves.value = text(self._as_of()) + charts_html(self._charts)
        if preview:
            self._show_samples(preview["samples"], about)

    def _as_of(self) -> str:
        """The step at which the curves end."""
        last = {"step": 0, "phase": ""} | dict(*self._lines[HISTORY].rows[-1:])
        return f"As of step {last['step']:,}" + (f", phase {last['phase']}" * bool(last["phase"]))

    def _charts_of(self, card: dict, preview: dict[str, Tensor]) -> list[Chart]:
        distilled, made = card["method"] != TEACHER, settings_from(card["settings"])
        grid = made.grid_steps if distilled else card["experiment"]["teacher_steps"]
        images, phase = (n * made.batch_size for n in (made.num_steps, made.steps_per_phase))
        rows, shown, color = self._lines[HISTORY].read(), {}, method_style(card["method"]).color
        x = [row["images_seen"] for row in rows]
        for title, name in (("weighted loss", "loss"), ("squared error of x0", "mse")):
            shown[title] = {card["method"]: Line(color, x, [row[name] for row in rows])}
        if distilled:
            shown["distance to the data"] = self._distances(made, color)
        axis = "images", images, "{:,.0f}".format
        charts = [Chart(t, *axis, lines, range(phase, images, phase)) for t, lines in shown.items()]
        if preview:
            line = Line(color, (grid - preview["places"]).tolist(), preview["errors"].tolist())
            axis = "level, from noise to data", grid, lambda place: f"{grid - place:,.0f}"
            charts.insert(2, Chart("error by level", *axis, {card["method"]: line}))
        return [chart for chart in charts if chart.drawn]

    def _distances(self, settings: Distillation, color: str) -> dict[str, Line]:
        """Distances measured during training, and those of other models as horizontal lines."""
        batch, last = settings.batch_size, settings.step_schedule[-1]
        lines = {}
        for name, dashed in ((METRIC, False), (PHASE_METRIC, True)):
            if rows := self._lines[name].read():
                x, y = [row["step"] * batch for row in rows], [row["metric"] for row in rows]
                label = f"phase's {in_steps(rows[-1]['nfe'])}" if dashed else in_steps(last)
                lines[label] = Line(color, x, y, dashed)
        ends, others = (0, settings.num_steps * batch), _others(self.folder, last)
        for (label, value), across in zip(others.items(), ACROSS, strict=False):
            lines[label] = Line(across, ends, (value, value), True)
        return lines

    def _show_samples(self, samples: Tensor, about: dict) -> None:
        """Samples of the student, below those of its teacher from the same noise."""
        teacher, taught = self.folder.parent / TEACHER / SAMPLES, self.folder.name != TEACHER
        if taught and not self._teachers and teacher.is_file():
            by_steps = {int(n): x for n, x in read_tensors(teacher)[0].items()}
            most = max(by_steps)
            self._teachers[f"teacher, {in_steps(most)}"] = by_steps[most][: len(samples)].clone()
        own = f" (of its {about['own']})" if about["own"] != about["nfe"] else ""
        who = "student" if taught else "teacher"
        self._rows = self._teachers | {f"{who}, {in_steps(about['nfe'])}{own}": samples}
        where = f", phase {about['phase']}" if about["phase"] else ""
        said = f"From the same noise, as of step {about['step']:,}{where}"
        self._samples.value = sample_rows(self._rows, said)


class _Lines:
    """JSON lines of a growing file; each read parses only the new ones."""

    def __init__(self, path: Path):
        self._path, self._file, self._offset, self.rows = path, None, 0, []

    def read(self) -> list[dict]:
        try:
            about = self._path.stat()
        except OSError:
            return self.rows
        if about.st_ino != self._file:  # rewritten, as when a run is resumed
            self._file, self._offset, self.rows = about.st_ino, 0, []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.rows += [json.loads(line) for line in whole.splitlines()]
        return self.rows


def _others(folder: Path, steps: int) -> dict[str, float]:
    """Distances of the teacher and of the best other run, in the metric of the training."""
    try:
        features = json.loads((folder / JOB).read_text())["features"]
        table = read_results(folder.parent / RESULTS)
    except (OSError, ValueError):  # begun without a task, or damaged: no lines
        return {}
    table = table[table["metric"] == metric_name("fd", features)]
    teacher = table[table["run"] == TEACHER].groupby("nfe")["value"].last()
    steps_shown = [n for n in (teacher.index.max(), steps) if n in teacher]
    found = {f"teacher, {in_steps(n)}": teacher[n] for n in steps_shown}
    others = table[~table["run"].isin([TEACHER, REAL, folder.name]) & (table["nfe"] == steps)]
    return found | {"best other run": others["value"].min()}


def told(status: Status) -> str:
    """A status in words."""
    if status.state == NEW:
        return "not started"
    parts = [status.state]
    if status.num_steps:
        parts.append(f"step {status.step:,} of {status.num_steps:,}")
    if status.state == RUNNING:
        parts += [f"phase {status.phase}"] if status.phase else []
        parts.append(f"{status.images_per_second:,.0f} images/s")
        if status.seconds_left is not None:
            parts.append(f"{duration(status.seconds_left)} left")
    return ", ".join(parts) + (f": {status.message}" if status.message else "")
