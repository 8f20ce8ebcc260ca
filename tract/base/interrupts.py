"""Defer SIGINT and SIGTERM until a training loop has finished its step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether the run was asked to stop."""

    requested = False


@contextmanager
def interrupt_between_steps() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a request; within a step they would leave averages outdated."""
    stop = Stop()

    def request(signum, frame):
        stop.requested = True

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller has its own way to stop
        before = {}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
