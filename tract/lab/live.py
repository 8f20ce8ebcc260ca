"""Widgets that a timer refreshes while a person can click, and a picture of them otherwise."""

import threading
from collections.abc import Hashable, Sequence
from typing import ClassVar

import ipywidgets as w
from IPython import get_ipython
from IPython.display import DisplayHandle

from tract.lab.show import bundle, show, style_sheet

WRAP = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}  # rows that wrap


def somebody_clicks() -> bool:
    """Whether the running cell was sent by a front end with a person in front of it.

    Papermill, nbval and nbconvert send every cell with allow_stdin false.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


class LiveBox(w.VBox):
    """Widgets that `tick` refreshes every few seconds; while `ended` a picture replaces them.

    key: what is shown; showing it again closes the earlier widgets. Subclasses define `tick`,
    `picture` (a PNG) and `say` (a message to the user).
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
        """Display the widgets, or only their picture if nobody can click or the work has ended."""
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
            except (OSError, ValueError, KeyError) as error:  # a damaged file
                self.say(f"cannot be read: {error}", "bad")
            if self.ended != pictured:
                pictured = self.ended
                handle.update(bundle(self, self.picture(), live=not pictured), raw=True)
                # Seen only after a reload, when JupyterLab no longer knows which output to update.
                again = "Run this cell again to keep a picture of this in the notebook."
                self.say(again if pictured else "", "good")

    def close(self) -> None:
        self._closed.set()
        super().close()


def close(widget: w.Widget) -> None:
    """Close a widget with its children, layout and style, which its own close leaves open."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, w.Widget):
            part.close()
    widget.close()
