"""A table of runs whose rows can be selected and whose heads sort it."""

import html
import time
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as ipw
import numpy as np
import pandas as pd

from tract.jobs.plan import duration
from tract.lab.style import in_words

# Steady colours, of equal weight on white and on black; a run keeps the one that it got first.
PALETTE = ("#1f83c6", "#d9730d", "#2a9d5c", "#c2459b", "#8a6fd1", "#a3842c", "#d44f4f", "#4c95a8")
HEADS = {"label": "run", "state": "state", "done": "done", "left": "left", "trained": "trained"}
HEADS["images"] = "images"
# Rows of all columns are equally high; columns that matter less go first where it is narrow.
STYLE = """<style>
.tract-table { container-type: inline-size; max-height: 260px; overflow-y: auto;
  overflow-x: hidden; flex-shrink: 0 }
.tract-table .widget-button { height: 24px; line-height: 24px; padding: 0 4px; width: 100%;
  margin: 0; overflow: hidden; text-overflow: ellipsis; text-align: left }
.tract-table select { overflow: hidden; padding: 0; font-size: 12px }
.tract-table option { height: 20px; line-height: 20px; padding: 0 4px }
.tract-table .tract-cells { font: 12px/20px var(--jp-ui-font-family); margin: 0; padding-top: 1px }
.tract-cells div { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; height: 20px;
  padding: 0 4px }
@container (max-width: 760px) { .tract-images, .tract-trained { display: none } }
@container (max-width: 520px) { .tract-left, .tract-more { display: none } }
</style>"""


class RunTable(ipw.HBox):
    """Rows of an overview, see `catalogue.overview`; selected is a tuple of the runs' names."""

    def __init__(self, changed: Callable[[], None]):
        self._changed, self._table, self._quiet = changed, pd.DataFrame(), False
        self.order, self.descending = "trained", True
        self.colors: dict[str, str] = {}
        self.select = ipw.SelectMultiple(layout={"width": "100%", "margin": "0"})
        self.select.observe(self._selected, "value")
        self.heads: dict[str, ipw.Button] = {}
        self._cells: dict[str, ipw.HTML] = {}
        super().__init__(layout={"width": "100%"})
        self.add_class("tract-table")

    @property
    def selected(self) -> list[str]:
        """Names of the selected runs, those of a row of several seeds included."""
        return [name for row in self.select.value for name in row]

    def color(self, name: str) -> str:
        """The colour of a run, the same as long as this table lives."""
        return self.colors.setdefault(name, PALETTE[len(self.colors) % len(PALETTE)])

    def fill(self, table: pd.DataFrame, default: Sequence[str]) -> None:
        """Show the rows of a table, keeping those selected that are still there, else default."""
        self._table = table
        columns = [name for name in table.columns if name not in ("run", "nfe")]
        if columns != [*self.heads]:
            self._build(columns)
        self._show(default)

    def sort(self, column: str) -> None:
        """Sort by a column; by the same one again the other way round."""
        self.descending = not self.descending if column == self.order else False
        self.order = column
        self._show(())

    def lines(self) -> list[str]:
        """The table as text, for a picture."""
        names = [*self.heads]
        rows = [[HEADS.get(name, name) for name in names]]
        rows += [[_shown(row, name) for name in names] for row in self._sorted()]
        widths = [min(40, max(map(len, column))) for column in zip(*rows, strict=True)]
        return [
            "  ".join(text[:w].ljust(w) for text, w in zip(row, widths, strict=True))
            for row in rows
        ]

    def _build(self, columns: Sequence[str]) -> None:
        parts = []
        for place, name in enumerate(columns):
            head = self.heads[name] = ipw.Button(tooltip=f"Sort by {HEADS.get(name, name)}")
            head.on_click(lambda _, name=name: self.sort(name))
            cells = self.select if name == "label" else ipw.HTML()
            cells.add_class("tract-cells")
            self._cells[name] = cells
            share = "3 1 150px" if name == "label" else "1 1 64px"
            column = ipw.VBox([head, cells], layout={"flex": share, "min_width": "0"})
            column.add_class(f"tract-{'more' if place > 6 else name}")
            parts.append(column)
        for name in self.heads.keys() - set(columns):
            del self.heads[name], self._cells[name]
        self.children = parts

    def _sorted(self) -> list[dict]:
        if not len(self._table):
            return []
        order = self.order if self.order in self._table else "trained"
        values = self._table[order].map(_number_in)
        ranks = values.sort_values(ascending=not self.descending, kind="stable", na_position="last")
        return self._table.loc[ranks.index].to_dict("records")

    def _show(self, default: Sequence[str]) -> None:
        rows = self._sorted()
        for name, head in self.heads.items():
            mark = (" ▼" if self.descending else " ▲") if name == self.order else ""
            head.description = in_words(HEADS.get(name, name)) + mark
        for name, cells in self._cells.items():
            if cells is not self.select:
                _set(cells, "".join(self._cell(row, name) for row in rows))
        keys = [row["run"] if isinstance(row["run"], tuple) else (row["run"],) for row in rows]
        options = [(_shown(row, "label"), key) for row, key in zip(rows, keys, strict=True)]
        kept = tuple(key for key in self.select.value if key in keys)
        kept = kept or tuple(key for key in keys if set(key) & set(default))
        self._quiet = True
        if options != list(self.select.options):
            self.select.options = options
            self.select.rows = max(1, len(options))
            self.select.layout.height = f"{20 * max(1, len(options)) + 4}px"
        self.select.value = kept
        self._quiet = False

    def _cell(self, row: Mapping, name: str) -> str:
        text = _shown(row, name)
        swatch = ""
        if name == "state":
            first = row["run"][0] if isinstance(row["run"], tuple) else row["run"]
            swatch = f'<span style="color: {self.color(first)}">■</span> '
        told = f"{in_words(name)} in {row['nfe']:.0f} steps" if name not in HEADS and text else text
        return f'<div title="{html.escape(told)}">{swatch}{html.escape(text) or "&nbsp;"}</div>'

    def _selected(self, change) -> None:
        if not self._quiet:
            self._changed()


def _set(widget: ipw.HTML, value: str) -> None:
    if widget.value != value:
        widget.value = value


def _number_in(value) -> object:
    """What a cell is sorted by: of a mean and its deviation the mean."""
    if isinstance(value, str) and "±" in value:
        return float(value.split()[0])
    return value if value is not None else np.nan


def _shown(row: Mapping, name: str) -> str:
    """A cell as text; blank where nothing is known."""
    value = row[name]
    if isinstance(value, str):
        return value.replace("\n", ", ")
    if value is None or pd.isna(value):
        return ""
    if name == "trained":
        return time.strftime("%m-%d %H:%M", time.localtime(value))
    if name == "left":
        return duration(value)
    forms = {"images": "{:,.0f}", "done": "{:.0%}"}
    return forms.get(name, "{:.4g}").format(value)
