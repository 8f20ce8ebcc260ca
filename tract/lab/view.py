"""What a run directory shows of its training: numbers, curves and samples, read from its files."""

import html
import json
import threading
import time
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd

from tract.datasets.images import png_bytes
from tract.experiments.card import read_card
from tract.experiments.experiment import TEACHER
from tract.experiments.history import HISTORY
from tract.experiments.job import JOB
from tract.experiments.measure import REAL, SAMPLES
from tract.experiments.preview import PHASE_METRIC, read_preview
from tract.experiments.results import RESULTS, read_results
from tract.experiments.status import FAILED, NEW, RUNNING, Status, read_status
from tract.jobs.plan import duration
from tract.lab.curves import Curves, image_strip, panels_of, text_strip
from tract.lab.plots import stacked
from tract.lab.show import image, text
from tract.metrics.features import metric_name
from tract.networks.weights import read_tensors
from tract.phases import in_steps
from tract.settings import Distillation, Training

MOST_SECONDS = 4.0  # between two drawings, however long one takes
ALT = ("Weighted loss", "Squared error of x0", "Error by noise level", "Distance to the data")


class RunView(w.VBox):
    """A view of one run directory, which may not exist yet; `refresh` reads what is new in it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.status = Status()
        self._bar = w.FloatProgress(layout={"width": "98%"})
        self._numbers, self._curves, self._samples = w.HTML(), w.HTML(), w.HTML()
        self._lock = threading.Lock()  # a click and the timer may both refresh
        self._lines = {n: _Lines(self.folder / n) for n in (HISTORY, "metric.jsonl", PHASE_METRIC)}
        self._drawing: Curves | None = None
        self._drawn, self._cost, self._stamp = -MOST_SECONDS, 0.0, None
        self._pixels: list[np.ndarray] = []  # of the final picture
        super().__init__([self._bar, self._numbers, self._curves, self._samples])
        self.refresh()

    def refresh(self) -> None:
        """Show what is new; pictures as often as drawing allows, and at least every few seconds."""
        with self._lock:
            self.status = read_status(self.folder)
            self._tell()
            stamp = (
                self.status.state,
                self.status.step,
                _changed(self.folder / "preview.safetensors"),
            )
            pause = min(MOST_SECONDS, 25 * self._cost)
            due = time.monotonic() - self._drawn >= pause or stamp[0] != (self._stamp or stamp)[0]
            if stamp != self._stamp and due and (self.folder / "card.json").is_file():
                start = time.monotonic()
                self._draw()
                self._stamp, self._drawn = stamp, time.monotonic()
                self._cost = self._drawn - start

    def picture(self) -> bytes:
        """The name, state, curves and samples as one PNG."""
        with self._lock:
            head = text_strip(f"{self.folder.name}: {told(self.status)}", 1320)
            return stacked([png_bytes(part) for part in [head, *self._pixels]])

    def _tell(self) -> None:
        status = self.status
        self._bar.max, self._bar.value = max(status.num_steps, 1), status.step
        kind = "bad" if status.state == FAILED else ""
        label = f"<b>{html.escape(self.folder.name)}</b>: "
        self._numbers.value = label + text(told(status), kind)

    def _draw(self) -> None:
        try:
            card = read_card(self.folder / "card.json")
        except ValueError:  # damaged: the browser says so
            return
        if "settings" not in card:  # of a teacher that was not trained here
            return
        preview, about = read_preview(self.folder)
        records = pd.DataFrame(self._lines[HISTORY].read())
        at = _as_of(records)
        if self._drawing is None:
            self._drawing = _curves(card)
        if len(records):
            errors = (preview["places"], preview["errors"]) if preview else None
            distances, lines = self._distances(card)
            columns = records[["images_seen", "loss", "mse"]]
            pixels = self._drawing.draw(columns, errors, distances, lines)
            last = f"loss {records.loss.iloc[-1]:.3g}, as of {at}"
            shown = zip(panels_of(pixels), ALT, strict=True)
            images = "".join(image(png, f"{alt} of {card['method']}, {last}") for png, alt in shown)
            said = f"<div>As of {html.escape(at)}</div>"
            self._curves.value = f'{said}<div class="tract-row">{images}</div>'
            self._pixels = [text_strip(f"as of {at}", 1320), pixels]
        if preview:
            self._draw_samples(preview["samples"], about)

    def _draw_samples(self, samples, about: dict) -> None:
        rows, teacher = [samples], self.folder.parent / TEACHER / SAMPLES
        caption = f"student in {in_steps(about['nfe'])}"
        if about["own"] != about["nfe"]:
            caption += f" (of its {about['own']})"
        if teacher.is_file() and self.folder.name != TEACHER:
            by_steps = {int(n): x for n, x in read_tensors(teacher)[0].items()}
            most = max(by_steps)
            rows.insert(0, by_steps[most][: len(samples)])
            caption = f"above the teacher in {in_steps(most)}, below the {caption}"
        where = f", phase {about['phase']}" if about["phase"] else ""
        caption = f"From the same noise, {caption}, as of step {about['step']:,}{where}"
        strip = image_strip(rows)
        picture = image(png_bytes(strip), f"Samples. {caption}", figure=False)
        self._samples.value = f"<div>{html.escape(caption)}</div>{picture}"
        self._pixels[2:] = [text_strip(caption, 1320), strip]

    def _distances(self, card: dict) -> tuple[dict, dict]:
        """Distances measured on the way by label, and those of others that are drawn across."""
        if card["method"] == TEACHER:
            return {}, {}
        batch, last = card["settings"]["batch_size"], card["settings"]["step_schedule"][-1]
        finals, phases = (self._lines[n].read() for n in ("metric.jsonl", PHASE_METRIC))
        found = {in_steps(last): finals}
        if phases:
            found[f"phase's {in_steps(phases[-1]['nfe'])}"] = phases
        series = {
            label: ([x["step"] * batch for x in rows], [x["metric"] for x in rows])
            for label, rows in found.items()
        }
        return series, _others(self.folder, last) if finals else {}


class _Lines:
    """JSON lines of a growing file, of which only what is new is read."""

    def __init__(self, path: Path):
        self._path, self._file, self._offset, self._rows = path, None, 0, []

    def read(self) -> list[dict]:
        try:
            about = self._path.stat()
        except OSError:
            return self._rows
        if about.st_ino != self._file:  # written anew, as when a run is resumed
            self._file, self._offset, self._rows = about.st_ino, 0, []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._rows += [json.loads(line) for line in whole.splitlines()]
        return self._rows


def _others(folder: Path, steps: int) -> dict[str, float]:
    """Distances, as they are measured on the way, of the teacher and of the best other run."""
    try:
        features = json.loads((folder / JOB).read_text())["features"]
        table = read_results(folder.parent / RESULTS)
    except (OSError, ValueError):  # begun without a task, or damaged: no lines
        return {}
    table = table[table["metric"] == metric_name("fd", features)]
    values = table.groupby(["run", "nfe"])["value"].last()
    found = {}
    if TEACHER in values:
        teacher = values[TEACHER]
        most = max(teacher.index)
        found = {f"teacher, {in_steps(n)}": teacher[n] for n in (most, steps) if n in teacher}
    others = table[~table["run"].isin([TEACHER, REAL, folder.name]) & (table["nfe"] == steps)]
    return found | ({"best other run": others["value"].min()} if len(others) else {})


def told(status: Status) -> str:
    """A status in words."""
    if status.state == NEW:
        return "not begun"
    parts = [status.state]
    if status.num_steps:
        parts.append(f"step {status.step:,} of {status.num_steps:,}")
    if status.state == RUNNING:
        parts += [f"phase {status.phase}"] if status.phase else []
        parts.append(f"{status.images_per_second:,.0f} images/s")
        if status.seconds_left is not None:
            parts.append(f"{duration(status.seconds_left)} left")
    return ", ".join(parts) + (f": {status.message}" if status.message else "")


def _curves(card: dict) -> Curves:
    settings = card["settings"]
    if card["method"] == TEACHER:
        made, grid = Training(**settings), card["experiment"]["teacher_steps"]
        return Curves(made.num_steps * made.batch_size, [], grid)
    made = Distillation(**settings)
    phase = made.steps_per_phase * made.batch_size
    ends = [phase * (i + 1) for i in range(made.num_phases - 1)]
    return Curves(made.num_steps * made.batch_size, ends, made.grid_steps)


def _as_of(records: pd.DataFrame) -> str:
    if not len(records):
        return "step 0"
    last = records.iloc[-1]
    return f"step {last.step:,}" + (f", phase {last.phase}" if last.phase else "")


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
