"""Detect a live front end; handle widget clicks while a cell runs.

A kernel handles them while the cell awaits something: each loop here does, and so do loops that
call `breathe`. ipykernel before 7 handles them after the cell.
"""

import asyncio
import threading
import time

from IPython import get_ipython
from ipywidgets import IntText, jslink

ANSWER_SECONDS = 10.0  # a front end loads its widgets the first time
POLL_SECONDS = 0.05  # where nothing else is done
BREATH_SECONDS = 0.1  # between breaths


async def clicks_arrive() -> bool:
    """Whether a front end is there whose clicks reach a cell that runs; found out by trying.

    Papermill, nbval and their like say with every cell that nobody can be asked. Else a front end
    is given two linked numbers: it sets the second to the first, and tells.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or not kernel.get_parent().get("content", {}).get("allow_stdin"):
        return False
    asked, answer = IntText(1), IntText(0)
    link = jslink((asked, "value"), (answer, "value"))
    until = time.monotonic() + ANSWER_SECONDS
    while answer.value == 0 and time.monotonic() < until:
        await asyncio.sleep(POLL_SECONDS)
        asked.value += 1  # in case that the first came too early for it
    for widget in (link, asked, answer):
        widget.close()
    return answer.value > 0


async def happened(event: threading.Event) -> None:
    """Wait for what a click sets, in this thread or another, and reset it."""
    while not event.is_set():
        await asyncio.sleep(POLL_SECONDS)
    event.clear()


class Breath:
    """Lets clicks in, as often as a hand needs it and no oftener."""

    def __init__(self):
        self._last = 0.0

    async def breathe(self) -> None:
        now = time.monotonic()
        if now - self._last > BREATH_SECONDS:
            for _ in range(5):  # turns of the kernel's loop, that a click takes through it
                await asyncio.sleep(0)
            self._last = now
