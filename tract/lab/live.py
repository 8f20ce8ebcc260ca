"""Detect a front end with somebody to click, poll in the background, close old widgets."""

import threading
from collections.abc import Callable, Hashable

from IPython import get_ipython
from ipywidgets import Widget

_shown: dict[Hashable, Widget] = {}  # widgets by what they show


def somebody_clicks() -> bool:
    """Whether the cell that runs was sent by a front end with a person in front of it.

    Papermill, nbval, nbconvert and their like say with every cell that nobody can be asked.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def poll(act: Callable[[], bool], seconds: float) -> threading.Event:
    """Call a function in a thread, again and again until it returns False; the event ends it."""
    ended = threading.Event()

    def repeat() -> None:
        while act() and not ended.wait(seconds):
            pass

    threading.Thread(target=repeat, daemon=True).start()
    return ended


def replace_earlier(key: Hashable, widget: Widget) -> None:
    """Close what an earlier execution of a cell showed for this key, and remember the new one."""
    earlier = _shown.get(key)
    _shown[key] = widget
    if earlier is not None:
        close(earlier)


def close(widget: Widget) -> None:
    """Close a widget with its children, layouts and styles, none of which closes the others."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, Widget):
            part.close()
    widget.close()
