"""The run browser: all runs of a folder in a live table, with curves, samples and parameters."""

import html
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as ipw
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
from tract.lab.live import close, poll, replace_earlier, somebody_clicks
from tract.lab.monitor import Panel
from tract.lab.plots import loss_curves, new_figure, png, stacked
from tract.lab.run_table import STYLE, RunTable
from tract.lab.sampler import Sampler
from tract.lab.show import show, show_picture, style_sheet
from tract.lab.svg import Series, line_chart

LIMIT = 8  # runs that are drawn together
SECONDS = 2.0  # between looks at the folder, or ten times what a look takes
VIEWS = ("Curves", "Samples", "Parameters", "Results", "Watch")
WRAP = {"flex_flow": "row wrap", "width": "100%"}
PAGE_STYLE = """<style>
.tract-page table { font-size: 12px; table-layout: fixed; width: 100%; margin: 0 }
.tract-page td, .tract-page th { overflow-wrap: anywhere; white-space: normal;
  text-align: left !important }
</style>"""


def browse(runs_dir: str | Path, editor=None) -> None:
    """Show a live browser of all runs below a folder, with a picture of it for no kernel.

    A folder that is not here is looked for beside the notebook's own folder. editor: that runs can
    be opened in. FileNotFoundError if there is no such folder.
    """
    folder = Path(runs_dir)
    if not folder.is_dir() and (Path("..") / folder).is_dir():
        folder = Path("..") / folder
    browser = RunBrowser(folder, editor)
    if somebody_clicks():
        replace_earlier(("browser", str(folder)), browser)
        show(browser, browser.picture())
        browser.live()
    else:
        show_picture(browser, browser.picture(), None)


class RunBrowser(ipw.VBox):
    """All runs below a folder: filtered, sorted, grouped, stopped, resumed, drawn and compared."""

    def __init__(self, runs_dir: str | Path, editor=None):
        self.root, self._editor, self._timer = Path(runs_dir), editor, None
        self._lock = threading.RLock()  # a click and the timer may both draw
        self.search = ipw.Text(placeholder="words that a row must have", description="Filter")
        self.group = ipw.Checkbox(False, description="group seeds", indent=False)
        self.count, self.message = ipw.Label(), ipw.HTML()
        self.table = RunTable(self.draw)
        names = ["Stop", "Resume", *(["Open in editor"] if editor is not None else [])]
        self.buttons = {name: ipw.Button(description=name) for name in names}
        self.view = ipw.ToggleButtons(
            options=VIEWS, tooltips=[f"Show {v.lower()}" for v in VIEWS], layout={"width": "100%"}
        )
        self.view.style.button_width = "90px"
        self.x = ipw.Dropdown(options=["images", "time"], description="x axis")
        self.samples = Sampler(self._say_also)
        self.only = ipw.Checkbox(True, description="only what differs", indent=False)
        self.curves = ipw.HTML()
        self.parameters, self.results, self.watched = _html(), _html(), ipw.VBox()
        pages = [
            ipw.VBox([self.x, self.curves]),
            self.samples,
            ipw.VBox([self.only, self.parameters]),
            self.results,
            self.watched,
        ]
        self.pages = ipw.Stack(pages, selected_index=0, layout={"width": "99%"})
        head = ipw.HBox([self.search, self.group, self.count], layout=WRAP)
        tools = ipw.HBox([*self.buttons.values(), self.message], layout=WRAP)
        style = ipw.HTML(STYLE + PAGE_STYLE, layout={"display": "none"})
        rows = [style_sheet(), style, head, self.table, tools, self.view, self.pages]
        super().__init__(rows, layout={"max_width": "100%", "overflow": "hidden"})
        self.add_class("tract")
        self._react()
        self.read()

    def _react(self) -> None:
        """Connect what is moved or pressed to what it changes."""
        for widget in (self.search, self.group):
            widget.observe(lambda _: self.fill(), "value")
        for widget in (self.view, self.x, self.only):
            widget.observe(self._redraw, "value")
        acts = {"Stop": self._stop, "Resume": self._resume, "Open in editor": self._open}
        for name, button in self.buttons.items():
            button.on_click(lambda _, act=acts[name]: act(self._selected()))

    def live(self) -> None:
        """Look at the folder again and again, until this browser is closed."""
        self._timer = poll(self._tick, SECONDS)

    def close(self) -> None:
        self.samples.end()
        if self._timer is not None:
            self._timer.set()
        super().close()

    def _tick(self) -> bool:
        before, start = self._stamp, time.monotonic()
        self.read()
        if self._stamp != before and VIEWS[self.view.index] == "Curves":
            self.draw()
        if self.view.value == "Watch":
            for panel in self.watched.children:
                panel.refresh()
        time.sleep(9 * (time.monotonic() - start))
        return True

    def read(self) -> None:
        """Look for runs again, and keep those selected that are still there."""
        with self._lock:
            self.runs = {run.name: run for run in find_runs(self.root)}
            self.overview = overview(list(self.runs.values()))
            self.fill()
            selected = self.table.selected
            self._stamp = [(n, self.runs[n].step, self.runs[n].state) for n in selected]

    def fill(self) -> None:
        """Put the rows that have all words into the table."""
        with self._lock:
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
        self._say("Stopping after this step.")

    def _resume(self, runs: Sequence[FoundRun]) -> None:
        try:
            launch([run.folder for run in runs if _resumable(run)])
            self.read()
        except (OSError, RuntimeError) as error:
            self._say(str(error))

    def _open(self, runs: Sequence[FoundRun]) -> None:
        self._editor.open(runs[0].settings)
        self._say("Opened in the editor above.")

    def _redraw(self, change) -> None:
        self.draw()

    def draw(self) -> None:
        """Draw what the open view shows of the selected runs; say what cannot be shown, and why."""
        with self._lock:
            self.samples.end()
            runs = self._selected()
            self.problems = [f"{run.name}: {run.reason}" for run in runs if run.state == DAMAGED]
            if len(runs) > LIMIT:
                self.problems.append(f"the first {LIMIT} of {len(runs)} selected are shown")
            whole = [run for run in runs[:LIMIT] if run.state != DAMAGED]
            self.pages.selected_index = self.view.index
            getattr(self, f"_draw_{self.view.value.lower()}")(whole)
            hint = [] if runs else ["Select rows: with Shift or Ctrl several."]
            self._enable()
            self._say(*hint, *self.problems)

    def _say(self, *lines: str) -> None:
        self.message.value = "<br>".join(map(html.escape, lines))

    def _say_also(self, *lines: str) -> None:
        self._say(*self.problems, *lines)

    def _read_each(
        self, runs: Sequence[FoundRun], read: Callable[[FoundRun], object]
    ) -> dict[str, object]:
        """What can be read of the runs, by their labels; the reasons of others are kept to say."""
        labels, found = labels_of(runs), {}
        for run in runs:
            try:
                found[labels[run.name].replace("\n", ", ")] = read(run)
            except (OSError, ValueError, RuntimeError) as error:
                self.problems.append(f"{run.name}: {error}")
        return found

    def _draw_curves(self, runs: Sequence[FoundRun]) -> None:
        by_time = self.x.value == "time"
        column, form = ("seconds", duration) if by_time else ("images_seen", "{:,.0f}".format)
        found = self._read_each(runs, lambda run: (self.table.color(run.name), history(run.folder)))
        charts = []
        for title, name in (("weighted loss", "loss"), ("squared error of x0", "mse")):
            series = {
                label: Series(color, list(table[column]), list(table[name]))
                for label, (color, table) in found.items()
                if len(table)
            }
            charts.append(line_chart(title, "time" if by_time else "images seen", series, form))
        swatch = '<span style="color: {}">■</span> {} &nbsp;'
        keys = [swatch.format(color, html.escape(label)) for label, (color, _) in found.items()]
        self.curves.value = f'{"".join(keys)}<div class="tract-row">{"".join(charts)}</div>'

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
        panels = [Panel(lambda f=run.folder: [f], lambda f=run.folder: launch([f])) for run in runs]
        self.watched.children = panels[:2]

    def picture(self) -> bytes:
        """The table and the curves as a PNG."""
        lines = self.table.lines()
        lines = lines if len(lines) <= 13 else [*lines[:12], f"... {len(lines) - 12} more"]
        figure, axes = new_figure(1, 1, (9, 0.17 * len(lines) + 0.1))
        axes[0, 0].axis("off")
        style = {"family": "monospace", "fontsize": 7, "va": "top"}
        axes[0, 0].text(0, 1, "\n".join(lines), transform=axes[0, 0].transAxes, **style)
        runs = [run for run in self._selected() if run.state != DAMAGED]
        histories = self._read_each(runs, lambda run: history(run.folder))
        curves = png(loss_curves(histories), dpi=120) if histories else b""
        return stacked([png(figure, dpi=120), curves])


def _resumable(run: FoundRun) -> bool:
    ended = run.state not in (FINISHED, DAMAGED) and not run.status.active
    return ended and (run.folder / JOB).is_file()


def _html() -> ipw.HTML:
    """HTML in which tables look as everywhere in JupyterLab."""
    page = ipw.HTML(layout={"width": "99%"})
    page.add_class("jp-RenderedHTMLCommon")
    page.add_class("tract-page")
    return page
