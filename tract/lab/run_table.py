"""A table of runs: rows can be ticked, and a click on a head sorts."""

import html
import json
import time
from collections.abc import Callable, Sequence

import ipywidgets as w
import pandas as pd

from tract.jobs.plan import duration
from tract.lab.style import in_words

# Equally legible on white and on black; a run keeps the first colour that it was given.
PALETTE = ("#1f83c6", "#d9730d", "#2a9d5c", "#c2459b", "#8a6fd1", "#a3842c", "#d44f4f", "#4c95a8")
FORMS = {
    "trained": lambda seconds: time.strftime("%m-%d %H:%M", time.localtime(seconds)),
    "left": duration,
    "images": "{:,.0f}".format,
    "done": "{:.0%}".format,
}
PLAIN = ("label", "state", *FORMS)  # columns that are not metrics


class RunTable(w.VBox):
    """Rows of a `catalogue.overview`. changed: called when the ticked rows change.

    The table is HTML; a hidden text field brings clicks back to Python, see lab.js.
    """

    def __init__(self, changed: Callable[[], None]):
        self._table, self._changed = pd.DataFrame(), changed
        self.order, self.descending = "trained", True
        self.selected: list[str] = []  # runs of ticked rows; of all seeds where they are grouped
        self.colors: dict[str, str] = {}
        self.rows, self.clicks = w.HTML(), w.Text(layout={"display": "none"})
        self.clicks.observe(self._clicked, "value")
        super().__init__([self.rows, self.clicks])
        self.add_class("tract-table")

    def color(self, name: str) -> str:
        """The colour of a run, the same for the life of this table."""
        return self.colors.setdefault(name, PALETTE[len(self.colors) % len(PALETTE)])

    def select(self, names: Sequence[str]) -> None:
        """Tick the rows of some runs."""
        self.selected = list(names)
        self.fill(self._table)
        self._changed()

    def sort(self, column: str) -> None:
        """Sort by a column; again by the same one reverses the order."""
        self.descending = not self.descending if column == self.order else False
        self.order = column
        self.fill(self._table)

    def fill(self, table: pd.DataFrame, default: Sequence[str] = ()) -> None:
        """Show the rows of a table; ticked ones stay ticked, and if none is left default is."""
        order = self.order if self.order in table else "trained"
        how = {"ascending": not self.descending, "kind": "stable", "key": lambda c: c.map(_rank)}
        self._table = table.sort_values(order, **how)
        names = [name for key in map(_names, self._table["run"]) for name in key]
        self.selected = [n for n in names if n in self.selected] or [
            n for n in names if n in default
        ]
        heads = "".join(map(self._head, self._columns()))
        rows = "".join(map(self._row, self._table.to_dict("records")))
        self.rows.value = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def lines(self) -> list[str]:
        """The table as text, for a picture."""
        table = self._table
        columns = [[_words(n), *(_text(n, x)[:40] for x in table[n])] for n in self._columns()]
        padded = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
        return list(map("  ".join, zip(*padded, strict=True)))

    def _clicked(self, change) -> None:
        clicks = json.loads(change.new)
        if clicks["sort"]:
            self.sort(clicks["sort"])
        else:
            self.select([name for row in clicks["rows"] for name in row.split("\n")])

    def _columns(self) -> list[str]:
        return [name for name in self._table.columns if name not in ("run", "nfe")]

    def _head(self, name: str) -> str:
        mark = (" ▼" if self.descending else " ▲") if name == self.order else ""
        words = html.escape(_words(name))
        press = f'name="sort" value="{html.escape(name)}" title="Sort by {words}"'
        button = f'<button {press} onclick="tractClicked(this)">{words}{mark}</button>'
        return f'<th class="tract-{name if name in PLAIN else "metric"}">{button}</th>'

    def _row(self, row: dict) -> str:
        names = _names(row["run"])
        ticked = "checked" if set(names) & set(self.selected) else ""
        tick = f'<input type="checkbox" value="{html.escape(chr(10).join(names))}" {ticked}'
        cells = []
        for name in self._columns():
            text = html.escape(_text(name, row[name]))
            told = text if name in PLAIN else f"{_words(name)} in {row['nfe']:.0f} steps"
            if name == "label":
                swatch = f'<i class="tract-swatch" style="background: {self.color(names[0])}"></i>'
                text = f'<label>{tick} onchange="tractClicked(this)">{swatch}{text}</label>'
            kind = name if name in PLAIN else "metric"
            cells.append(f'<td class="tract-{kind}" title="{told if text else ""}">{text}</td>')
        return f"<tr>{''.join(cells)}</tr>"


def _names(run: str | tuple[str, ...]) -> tuple[str, ...]:
    return run if isinstance(run, tuple) else (run,)


def _words(name: str) -> str:
    return "run" if name == "label" else in_words(name)


def _rank(value: object) -> object:
    """Sort key of a cell; for a mean with its deviation the mean."""
    return float(value.split()[0]) if isinstance(value, str) and "±" in value else value


def _text(name: str, value: object) -> str:
    """A cell as text; blank where nothing is known."""
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else FORMS.get(name, "{:.4g}".format)(value)
