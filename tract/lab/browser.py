"""The run browser: all runs of a folder in a live table, with curves, samples and parameters."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as w
import pandas as pd

from tract.experiments.catalogue import (
    DAMAGED,
    FoundRun,
    differences,
    find_runs,
    labels_of,
    overview,
    results_of,
    seeds_grouped,
)
from tract.experiments.history import history
from tract.experiments.job import JOB, launch
from tract.experiments.status import FINISHED, request_stop
from tract.jobs.plan import duration
from tract.lab.line_chart import Chart, Line, charts_html, figure
from tract.lab.live import WRAP, LiveBox, close
from tract.lab.monitor import panel_of
from tract.lab.plots import png, stacked, text_figure
from tract.lab.run_table import RunTable
from tract.lab.sampler import Sampler
from tract.lab.show import text

LIMIT = 8  # runs that are drawn together
SECONDS = 2.0  # between two reads of the folder, or ten times what a read takes
PAGES = ("Curves", "Samples", "Parameters", "Results", "Watch")


def browse(runs_dir: str | Path, editor=None) -> None:
    """Show a live browser of all runs below a folder, with a picture for readers without a kernel.

    A folder that is not found here is looked for beside the notebook's own. editor: where runs can
    be opened. FileNotFoundError if there is no such folder.
    """
    folder = Path(runs_dir)
    if not folder.is_dir() and (Path("..") / folder).is_dir():
        folder = Path("..") / folder
    RunBrowser(folder, editor).show()


class RunBrowser(LiveBox):
    """All runs below a folder: filtered, sorted, grouped, stopped, resumed, drawn and compared."""

    def __init__(self, runs_dir: str | Path, editor=None):
        self.root, self._editor = Path(runs_dir), editor
        self.problems: list[str] = []
        self.charts: list[Chart] = []
        self.search = w.Text(placeholder="words to look for", description="Filter")
        self.group = w.Checkbox(False, description="group seeds", indent=False)
        self.count, self.message = w.Label(), w.HTML()
        self.table = RunTable(self.draw)
        acts = {"Stop": self._stop, "Resume": self._resume}
        acts |= {"Open in editor": self._edit} if editor is not None else {}
        self.buttons = {name: w.Button(description=name) for name in acts}
        self.x = w.Dropdown(options=["images", "time"], description="x axis")
        self.samples = Sampler(lambda *lines: self.say("\n".join([*self.problems, *lines])))
        self.only = w.Checkbox(True, description="only what differs", indent=False)
        self.curves, self.watched = w.HTML(), w.VBox()
        self.parameters, self.results = w.HTML(), w.HTML()
        for page in (self.parameters, self.results):
            page.add_class("jp-RenderedHTMLCommon")
            page.add_class("tract-page")
        pages = [w.VBox([self.x, self.curves]), self.samples]
        pages += [w.VBox([self.only, self.parameters]), self.results, self.watched]
        self.pages = w.Tab(pages, titles=PAGES, selected_index=0)
        head = w.HBox([self.search, self.group, self.count], layout=WRAP)
        tools = w.HBox([*self.buttons.values(), self.message], layout=WRAP)
        super().__init__(self.root, [head, self.table, tools, self.pages])
        for widget in (self.search, self.group):
            widget.observe(lambda _: self.fill(), "value")
        for widget, trait in (
            (self.pages, "selected_index"),
            (self.x, "value"),
            (self.only, "value"),
        ):
            widget.observe(lambda _: self.draw(), trait)
        for name, button in self.buttons.items():
            button.on_click(lambda _, act=acts[name]: act(self._selected()))
        self.read()

    def close(self) -> None:
        self.samples.end()
        super().close()

    def tick(self) -> None:
        """Read what is new, and redraw the open page."""
        before, start = self._stamp, time.monotonic()
        self.read()
        page = PAGES[self.pages.selected_index or 0]
        if self._stamp != before and page == "Curves":
            self.draw()
        for panel in self.watched.children if page == "Watch" else ():
            panel.refresh()
        self.SECONDS = max(SECONDS, 10 * (time.monotonic() - start))

    def read(self) -> None:
        """Find the runs again; those still there stay selected."""
        with self.lock:
            self.runs = {run.name: run for run in find_runs(self.root)}
            self.overview = overview(list(self.runs.values()))
            self.fill()
            self._stamp = [(run.name, run.status) for run in self._selected()]

    def fill(self) -> None:
        """Fill the table with the rows that contain all words."""
        with self.lock:
            words, table = self.search.value.lower().split(), self.overview
            texts = table["run"] + " " + table["label"] + " " + table["state"]
            shown = table.loc[[all(word in line.lower() for word in words) for line in texts]]
            self.count.value = f"{len(shown)} of {len(table)} runs"
            newest = shown[shown["state"] != DAMAGED].sort_values("trained").tail(3)
            shown = seeds_grouped(shown, self.runs) if self.group.value else shown
            before = self.table.selected
            self.table.fill(shown, list(newest["run"]))
            if self.table.selected != before:
                self.draw()
            self._enable()

    def _selected(self) -> list[FoundRun]:
        return [self.runs[name] for name in self.table.selected if name in self.runs]

    def _enable(self) -> None:
        runs = self._selected()
        self.buttons["Stop"].disabled = not any(run.status.active for run in runs)
        self.buttons["Resume"].disabled = not any(map(_resumable, runs))
        if self._editor is not None:
            distilled = len(runs) == 1 and "step_schedule" in runs[0].settings
            self.buttons["Open in editor"].disabled = not distilled

    def _stop(self, runs: Sequence[FoundRun]) -> None:
        for run in runs:
            request_stop(run.folder)
        self.say("Stopping after this step.")

    def _resume(self, runs: Sequence[FoundRun]) -> None:
        try:
            launch([run.folder for run in runs if _resumable(run)])
            self.read()
        except (OSError, RuntimeError) as error:
            self.say(str(error))

    def _edit(self, runs: Sequence[FoundRun]) -> None:
        self._editor.edit(runs[0].settings)
        self.say("Opened in the editor above.")

    def draw(self) -> None:
        """Draw the open page for the selected runs; say which cannot be shown, and why."""
        with self.lock:
            self.samples.end()
            runs = self._selected()
            self.problems = [f"{run.name}: {run.reason}" for run in runs if run.state == DAMAGED]
            if len(runs) > LIMIT:
                self.problems.append(f"only {LIMIT} of {len(runs)} selected runs are shown")
            whole = [run for run in runs[:LIMIT] if run.state != DAMAGED]
            page = PAGES[self.pages.selected_index or 0]
            getattr(self, f"_draw_{page.lower()}")(whole)
            self._enable()
            hint = [] if runs else ["Tick rows to see them here."]
            self.say("\n".join([*hint, *self.problems]))

    def say(self, message: str, kind: str = "") -> None:
        self.message.value = text(message, kind).replace("\n", "<br>")

    def _read_each(
        self, runs: Sequence[FoundRun], read: Callable[[FoundRun], object]
    ) -> dict[str, object]:
        """What `read` returns for each run, by label; failures are added to the problems."""
        labels, found = labels_of(runs), {}
        for run in runs:
            try:
                found[labels[run.name]] = read(run)
            except (OSError, ValueError, RuntimeError) as error:
                self.problems.append(f"{run.name}: {error}")
        return found

    def _draw_curves(self, runs: Sequence[FoundRun]) -> None:
        column, label, form = "images_seen", "images", "{:,.0f}".format
        if self.x.value == "time":
            column, label, form = "seconds", "time", duration
        found = self._read_each(runs, lambda run: (self.table.color(run.name), history(run.folder)))
        found = {name: (color, table) for name, (color, table) in found.items() if len(table)}
        end = max((table[column].iloc[-1] for _, table in found.values()), default=0)
        self.charts = []
        for title, name in (("weighted loss", "loss"), ("squared error of x0", "mse")):
            lines = {n: Line(color, t[column], t[name]) for n, (color, t) in found.items()}
            self.charts += [Chart(title, label, end, form, lines)] if lines else []
        self.curves.value = charts_html(self.charts)

    def _draw_samples(self, runs: Sequence[FoundRun]) -> None:
        self.samples.show(runs)

    def _draw_parameters(self, runs: Sequence[FoundRun]) -> None:
        cards = self._read_each(runs, lambda run: run.card)
        table = differences(cards, self.only.value and len(cards) > 1)
        self.parameters.value = table.to_html() if len(table) else "<p>No differences.</p>"

    def _draw_results(self, runs: Sequence[FoundRun]) -> None:
        tables = [table for table in self._read_each(runs, results_of).values() if len(table)]
        shown = ["run", "schedule", "nfe", "metric", "value", "samples", "seed"]
        rows = pd.concat(tables)[shown].to_html(index=False) if tables else "<p>No results.</p>"
        self.results.value = rows

    def _draw_watch(self, runs: Sequence[FoundRun]) -> None:
        for panel in self.watched.children:
            close(panel)
        self.watched.children = [panel_of(run.folder) for run in runs[:2]]

    def picture(self) -> bytes:
        """The table and the curves as a PNG."""
        lines = self.table.lines()
        lines = lines if len(lines) <= 13 else [*lines[:12], f"... {len(lines) - 12} more"]
        parts = [text_figure(lines), *([figure(self.charts)] if self.charts else [])]
        return stacked([png(part, dpi=120) for part in parts])


def _resumable(run: FoundRun) -> bool:
    ended = run.state not in (FINISHED, DAMAGED) and not run.status.active
    return ended and (run.folder / JOB).is_file()
