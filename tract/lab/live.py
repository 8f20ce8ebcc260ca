"""Widgets that a timer keeps up to date where somebody is there to click, and else a picture."""

import threading
from collections.abc import Hashable, Sequence
from typing import ClassVar

import ipywidgets as w
from IPython import get_ipython
from IPython.display import DisplayHandle

from tract.lab.show import bundle, show, style_sheet

WRAP = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}  # rows that may not fit


def somebody_clicks() -> bool:
    """Whether the cell that runs was sent by a front end with a person in front of it.

    Papermill, nbval, nbconvert and their like say with every cell that nobody can be asked.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


class LiveBox(w.VBox):
    """Widgets that are refreshed by `tick` every few seconds; a picture of them while `ended`.

    key: what they show; a cell that is executed again replaces its widgets. Subclasses have
    `picture`, as a PNG, and `say`, which is told what a person should know.
    """

    SECONDS: ClassVar[float] = 1.0
    shown: ClassVar[dict[Hashable, "LiveBox"]] = {}
    ended = False

    def __init__(self, key: Hashable, children: Sequence[w.Widget]):
        super().__init__([style_sheet(), *children], layout={"max_width": "100%"})
        self.add_class("tract")
        self._key, self._closed = (type(self), key), threading.Event()
        self.lock = threading.RLock()  # a click and the timer may both refresh

    def show(self) -> None:
        """Display the widgets; their picture where nobody can click, or nothing is left to do."""
        live, pictured = somebody_clicks(), self.ended
        handle = show(self, self.picture(), live=live and not pictured)
        if live:
            if earlier := self.shown.pop(self._key, None):
                close(earlier)
            self.shown[self._key] = self
            threading.Thread(target=self._live, args=[handle, pictured], daemon=True).start()

    def _live(self, handle: DisplayHandle, pictured: bool) -> None:
        while not self._closed.wait(self.SECONDS):
            try:
                self.tick()
            except (OSError, ValueError, KeyError) as error:  # of a file that somebody damaged
                self.say(f"cannot be read: {error}", "bad")
            if self.ended != pictured:
                pictured = self.ended
                handle.update(bundle(self, self.picture(), live=not pictured), raw=True)
                # To be seen where the page was loaded again, which forgets whose display it is.
                again = "Run this cell again to keep a picture of this in the notebook."
                self.say(again if pictured else "", "good")

    def close(self) -> None:
        self._closed.set()
        super().close()


def close(widget: w.Widget) -> None:
    """Close a widget with its children, layouts and styles, none of which closes the others."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, w.Widget):
            part.close()
    widget.close()
