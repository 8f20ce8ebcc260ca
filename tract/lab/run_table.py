"""A table of runs whose rows can be selected and whose heads sort it."""

import html
import time
from collections.abc import Callable, Sequence

import ipywidgets as w
import pandas as pd

from tract.jobs.plan import duration
from tract.lab.style import in_words

# Steady colours, of equal weight on white and on black; a run keeps the one that it got first.
PALETTE = ("#1f83c6", "#d9730d", "#2a9d5c", "#c2459b", "#8a6fd1", "#a3842c", "#d44f4f", "#4c95a8")
FORMS = {
    "trained": lambda seconds: time.strftime("%m-%d %H:%M", time.localtime(seconds)),
    "left": duration,
    "images": "{:,.0f}".format,
    "done": "{:.0%}".format,
}


class RunTable(w.HBox):
    """Rows of an overview, see `catalogue.overview`. changed: called when others are selected."""

    def __init__(self, changed: Callable[[], None]):
        self._table, self._quiet = pd.DataFrame(), False
        self.order, self.descending = "trained", True
        self.colors: dict[str, str] = {}
        self.select = w.SelectMultiple(layout={"width": "100%", "margin": "0"})
        self.select.observe(lambda _: self._quiet or changed(), "value")
        self.heads: dict[str, w.Button] = {}
        self._cells: dict[str, w.Widget] = {}
        super().__init__(layout={"width": "100%"})
        self.add_class("tract-table")

    @property
    def selected(self) -> list[str]:
        """Names of the selected runs, those of a row of several seeds included."""
        return [name for row in self.select.value for name in row]

    def color(self, name: str) -> str:
        """The colour of a run, the same as long as this table lives."""
        return self.colors.setdefault(name, PALETTE[len(self.colors) % len(PALETTE)])

    def sort(self, column: str) -> None:
        """Sort by a column; by the same one again the other way round."""
        self.descending = not self.descending if column == self.order else False
        self.order = column
        self.fill(self._table)

    def fill(self, table: pd.DataFrame, default: Sequence[str] = ()) -> None:
        """Show the rows of a table, keeping those selected that are still there, else default."""
        columns = [name for name in table.columns if name not in ("run", "nfe")]
        if columns != [*self.heads]:
            self._build(columns)
        order = self.order if self.order in table else "trained"
        how = {"ascending": not self.descending, "kind": "stable", "key": lambda c: c.map(_rank)}
        self._table = table = table.sort_values(order, **how)
        keys = [run if isinstance(run, tuple) else (run,) for run in table["run"]]
        for name, head in self.heads.items():
            mark = (" ▼" if self.descending else " ▲") if name == self.order else ""
            head.description = _head(name) + mark
            if name != "label":
                cells = zip(keys, table[name], table["nfe"], strict=True)
                self._cells[name].value = "".join(self._cell(name, *cell) for cell in cells)
        options = [(_text("label", x), key) for x, key in zip(table["label"], keys, strict=True)]
        kept = tuple(key for key in self.select.value if key in keys)
        self._quiet = True
        if options != list(self.select.options):
            self.select.options, self.select.rows = options, max(1, len(options))
            self.select.layout.height = f"{20 * max(1, len(options)) + 4}px"
        self.select.value = kept or tuple(key for key in keys if set(key) & set(default))
        self._quiet = False

    def lines(self) -> list[str]:
        """The table as text, for a picture."""
        columns = [[_head(n), *(_text(n, x)[:40] for x in self._table[n])] for n in self.heads]
        padded = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
        return list(map("  ".join, zip(*padded, strict=True)))

    def _build(self, columns: Sequence[str]) -> None:
        self.heads, self._cells, parts = {}, {}, []
        for place, name in enumerate(columns):
            head = self.heads[name] = w.Button(tooltip=f"Sort by {_head(name)}")
            head.on_click(lambda _, name=name: self.sort(name))
            cells = self._cells[name] = self.select if name == "label" else w.HTML()
            cells.add_class("tract-cells")
            share = "3 1 150px" if name == "label" else "1 1 64px"
            parts.append(w.VBox([head, cells], layout={"flex": share, "min_width": "0"}))
            parts[-1].add_class(f"tract-{'more' if place > 6 else name}")
        self.children = parts

    def _cell(self, name: str, key: tuple[str, ...], value: object, nfe: float) -> str:
        text = told = _text(name, value)
        key_color = f'<i style="background: {self.color(key[0])}"></i>' if name == "state" else ""
        if text and name not in (*FORMS, "state"):
            told = f"{in_words(name)} in {nfe:.0f} steps"
        inner = f'<span class="tract-key">{key_color}{html.escape(text) or "&nbsp;"}</span>'
        return f'<div title="{html.escape(told)}">{inner}</div>'


def _head(name: str) -> str:
    return "run" if name == "label" else in_words(name)


def _rank(value: object) -> object:
    """What a cell is sorted by: of a mean and its deviation the mean."""
    return float(value.split()[0]) if isinstance(value, str) and "±" in value else value


def _text(name: str, value: object) -> str:
    """A cell as text; blank where nothing is known."""
    if isinstance(value, str):
        return value.replace("\n", ", ")
    return "" if pd.isna(value) else FORMS.get(name, "{:.4g}".format)(value)
