"""The run browser: all runs of a folder in a table, with curves, samples and parameters."""

import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ipywidgets as ipw
import pandas as pd

from tract.experiments.catalogue import (
    DAMAGED,
    Run,
    delete_run,
    differences,
    find_runs,
    labels_of,
    overview,
    results_of,
    samples_at,
)
from tract.experiments.history import history
from tract.lab.plots import Figure, image_rows, loss_curves, new_figure, png, stacked
from tract.lab.show import show

COUNT = 12  # samples of a run
LIMIT = 8  # runs that are drawn together
COLUMNS = {"run": 48, "state": 10, "images": 12, "done": 5, "nfe": 5, "value": 8, "metric": 14}
COLUMNS["changed"] = 12  # all in characters
VIEWS = ("Curves", "Samples", "Parameters", "Results")
WIDTH = ipw.Layout(width="100%", max_width="1080px")
STYLE = """<style>
.tract-runs select, .tract-runs .head {
  font: 12px var(--jp-code-font-family, monospace); white-space: pre }
.tract-runs .head { padding: 0 3px; font-weight: bold; line-height: 16px }
.tract-runs .said { line-height: 18px }
.tract-runs table { font-size: 12px }
</style>"""


def browse(runs_dir: str | Path) -> None:
    """Show a browser of all runs below a folder, with a picture of it for who has no kernel.

    FileNotFoundError if there is no such folder.
    """
    browser = RunBrowser(runs_dir)
    show(browser, browser.picture())


class RunBrowser(ipw.VBox):
    """All runs below a folder: filtered, sorted, selected, drawn, compared, deleted.

    Runs are read when they are selected, and only what the view that is open needs.
    """

    def __init__(self, runs_dir: str | Path):
        self.root = Path(runs_dir)
        self.search = ipw.Text(placeholder="words that a row must have", description="Filter")
        self.order = ipw.Dropdown(options=list(COLUMNS), value="changed", description="Sort by")
        self.descending = ipw.Checkbox(True, description="descending", indent=False)
        self.refresh = ipw.Button(description="Refresh", icon="refresh", layout={"width": "100px"})
        self.count = ipw.Label(layout=ipw.Layout(width="110px"))
        head = ipw.HTML(f'<div class="head">{_line({name: name for name in COLUMNS})}</div>')
        self.table = ipw.SelectMultiple(rows=9, layout=WIDTH)
        self.view = ipw.ToggleButtons(options=VIEWS, style={"button_width": "100px"})
        self.delete = ipw.Button(description="Delete…", icon="trash")
        self.delete.layout = ipw.Layout(width="100px", margin="2px 2px 2px 40px")
        self.confirm = ipw.Button(description="Delete for good", button_style="danger")
        self.keep = ipw.Button(description="Keep")
        self.message = ipw.HTML(layout=ipw.Layout(height="44px", overflow="auto"))
        self.curves, self.images = _picture(), _picture()
        self.nfe = ipw.SelectionSlider(
            options=[1], description="NFE", continuous_update=False, layout={"width": "500px"}
        )
        self.only = ipw.Checkbox(True, description="only what differs", indent=False)
        self.parameters, self.results = _html(), _html()
        pages = [
            self.curves,
            ipw.VBox([self.nfe, self.images]),
            ipw.VBox([self.only, self.parameters]),
            self.results,
        ]
        layout = ipw.Layout(height="440px", overflow="auto", max_width="1080px")
        self.pages = ipw.Stack(pages, selected_index=0, layout=layout)
        bar = [self.search, self.order, self.descending, self.refresh, self.count]
        tools = [self.view, self.delete, self.confirm, self.keep]
        rows = [ipw.HBox(bar, layout=WIDTH), head, self.table, ipw.HBox(tools, layout=WIDTH)]
        super().__init__([ipw.HTML(STYLE), *rows, self.message, self.pages])
        self.add_class("tract-runs")
        self._ask(False)
        self._react()
        self.read()

    def _react(self) -> None:
        """Connect what is moved or pressed to what it changes."""
        for widget in (self.search, self.order, self.descending):
            widget.observe(lambda _: self._fill(), "value")
        for widget in (self.table, self.view, self.nfe, self.only):
            widget.observe(self._redraw, "value")
        self.refresh.on_click(lambda _: self.read())
        self.delete.on_click(lambda _: self._ask(bool(self.table.value)))
        self.keep.on_click(lambda _: self._ask(False))
        self.confirm.on_click(lambda _: self._delete())

    def read(self) -> None:
        """Look for runs again, and keep those selected that are still there."""
        self.runs = {run.name: run for run in find_runs(self.root)}
        self.overview = overview(list(self.runs.values()))
        self._fill()

    def _fill(self) -> None:
        """Put the rows that have all words into the table, in order; what was selected stays so."""
        table = self.overview.sort_values(
            self.order.value, ascending=not self.descending.value, kind="stable"
        )
        lines = {row["run"]: _line(_texts(row)) for row in table.to_dict("records")}
        words = self.search.value.lower().split()
        shown = [n for n, line in lines.items() if all(w in line.lower() for w in words)]
        selected = [n for n in self.table.value if n in shown]
        whole = [n for n in shown if self.runs[n].state != DAMAGED]
        self.count.value = f"{len(shown)} of {len(lines)} runs"
        with _quietly(self.table, self._redraw):
            self.table.options = [(lines[name], name) for name in shown]
            self.table.value = selected or whole[:3]
        self.draw()

    def _redraw(self, change: object) -> None:
        self.draw()

    def draw(self) -> None:
        """Draw what the open view shows of the selected runs; say what cannot be shown, and why."""
        self._ask(False)
        runs = [self.runs[name] for name in self.table.value[:LIMIT]]
        self.problems = [f"{run.name}: {run.reason}" for run in runs if run.state == DAMAGED]
        if len(self.table.value) > LIMIT:
            self.problems.append(f"the first {LIMIT} of {len(self.table.value)} selected are shown")
        self.pages.selected_index = self.view.index
        views = self._draw_curves, self._draw_samples, self._draw_parameters, self._draw_results
        views[self.view.index]([run for run in runs if run.state != DAMAGED])
        hint = [] if runs else ["Select rows: with Shift or Ctrl several, by mouse or arrow keys."]
        self._say(*hint, *self.problems)

    def _say(self, *lines: str) -> None:
        text = "<br>".join(map(html.escape, lines))
        self.message.value = f'<div class="said">{text}</div>'

    def _read_each(self, runs: Sequence[Run], read: Callable[[Run], object]) -> dict[str, object]:
        """What can be read of the runs, by their labels; the reasons of others are kept to say."""
        labels, found = labels_of(runs), {}
        for run in runs:
            try:
                found[labels[run.name]] = read(run)
            except (OSError, ValueError, RuntimeError) as error:
                self.problems.append(f"{run.name}: {error}")
        return found

    def _draw_curves(self, runs: Sequence[Run]) -> None:
        histories = self._read_each(runs, lambda run: history(run.folder))
        _put(self.curves, loss_curves(histories) if histories else None)

    def _draw_samples(self, runs: Sequence[Run]) -> None:
        grids = [run.grid_steps for run in runs] or [1]
        steps = [n for n in range(1, min(grids) + 1) if not any(grid % n for grid in grids)]
        if tuple(steps) != self.nfe.options:
            nfe = self.nfe.value
            with _quietly(self.nfe, self._redraw):
                self.nfe.options = steps
                self.nfe.value = nfe if nfe in steps else 1
        self._say(f"sampling at {self.nfe.value} steps ...")
        rows = self._read_each(runs, lambda run: samples_at(run, self.nfe.value, COUNT))
        _put(self.images, image_rows(rows) if rows else None)

    def _draw_parameters(self, runs: Sequence[Run]) -> None:
        cards = self._read_each(runs, lambda run: run.card)
        table = differences(cards, self.only.value and len(cards) > 1)
        self.parameters.value = table.to_html() if len(table) else "<p>No differences.</p>"

    def _draw_results(self, runs: Sequence[Run]) -> None:
        tables = [table for table in self._read_each(runs, results_of).values() if len(table)]
        shown = ["run", "schedule", "nfe", "metric", "value", "samples", "seed", "device", "commit"]
        rows = pd.concat(tables)[shown].to_html(index=False) if tables else "<p>No results.</p>"
        self.results.value = rows

    def _ask(self, really: bool) -> None:
        """Ask whether the selected runs are to be deleted, or show no such question."""
        for button in (self.confirm, self.keep):
            button.layout.visibility = "visible" if really else "hidden"
        if really:
            self._say(f"Delete for good, from the disk: {', '.join(self.table.value)}?")

    def _delete(self) -> None:
        gone, problems = [], []
        for name in self.table.value:
            try:
                delete_run(self.runs[name], self.root)
                gone.append(name)
            except (OSError, ValueError, RuntimeError) as error:
                problems.append(f"{name}: {error}")
        self.read()
        self._say(*[f"deleted {name}" for name in gone], *problems)

    def picture(self) -> bytes:
        """The table and the curves as a PNG."""
        lines = [_line({name: name for name in COLUMNS})] + [line for line, _ in self.table.options]
        lines = lines if len(lines) <= 13 else [*lines[:12], f"... {len(lines) - 12} more"]
        figure, axes = new_figure(1, 1, (9, 0.17 * len(lines) + 0.1))
        axes[0, 0].axis("off")
        text = {"family": "monospace", "fontsize": 7, "va": "top"}
        axes[0, 0].text(0, 1, "\n".join(lines), transform=axes[0, 0].transAxes, **text)
        return stacked([png(figure, dpi=120), self.curves.value])


@contextmanager
def _quietly(widget: ipw.Widget, observer: Callable[[object], None]) -> Iterator[None]:
    """Change a widget without telling the observer of its value."""
    widget.unobserve(observer, "value")
    try:
        yield
    finally:
        widget.observe(observer, "value")


def _texts(row: Mapping[str, object]) -> dict[str, str]:
    """A row of the overview as it is shown; blank where nothing is known."""
    forms = {"images": "{:,.0f}", "done": "{:.0%}", "nfe": "{:.0f}", "value": "{:.4g}"}
    texts = {
        name: "" if pd.isna(value) else forms.get(name, "{}").format(value)
        for name, value in row.items()
    }
    return texts | {"changed": time.strftime("%m-%d %H:%M", time.localtime(row["changed"]))}


def _line(texts: Mapping[str, str]) -> str:
    """Texts of a row in columns of one width; HTML would collapse plain spaces."""
    cells = []
    for name, width in COLUMNS.items():
        text = texts[name]
        if len(text) > width:  # the end of a long name tells more than its middle
            text = f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"
        numeric = name in ("images", "done", "nfe", "value")
        cells.append(text.rjust(width) if numeric else text.ljust(width))
    return " ".join(cells).replace(" ", "\u00a0")


def _picture() -> ipw.Image:
    layout = {"width": "100%", "height": "390px", "object_fit": "contain"}
    return ipw.Image(layout=ipw.Layout(**layout, object_position="left top", visibility="hidden"))


def _put(image: ipw.Image, figure: Figure | None) -> None:
    """Show a figure in a picture of fixed size, or nothing."""
    image.value = b"" if figure is None else png(figure, dpi=120)
    image.layout.visibility = "hidden" if figure is None else "visible"


def _html() -> ipw.HTML:
    """HTML in which tables look as everywhere in JupyterLab."""
    page = ipw.HTML()
    page.add_class("jp-RenderedHTMLCommon")
    return page
