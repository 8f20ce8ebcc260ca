"""Common parts of the commands: tables, JSON lines and options."""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import time
from typing import TextIO

from tract.base.checks import is_number


def print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows with the same columns as an aligned table, or as JSON with one object a line.

    None and numbers that are not finite are blank in the table and null in JSON, which has no nan.
    """
    if as_json:
        for row in rows:
            print(json.dumps({name: None if _blank(row[name]) else row[name] for name in row}))
        return
    columns = [[name, *(_cell(row[name]) for row in rows)] for name in (rows[0] if rows else [])]
    numeric = [
        all(_blank(row[name]) or is_number(row[name]) for row in rows) for name, *_ in columns
    ]
    for line in zip(*columns, strict=True):
        cells = zip(line, columns, numeric, strict=True)
        padded = [f"{c:{'>' if right else '<'}{max(map(len, all_))}}" for c, all_, right in cells]
        print("  ".join(padded).rstrip())


def _blank(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _cell(value: object) -> str:
    if _blank(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if is_number(value) else str(value)


def messages(as_json: bool) -> contextlib.AbstractContextManager:
    """Send bars and messages to stderr if stdout is for machine-readable rows."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


class Steady:
    """A stream to a file or pipe, to which a progress bar writes one line every few seconds.

    Once its reader has gone, output is discarded without an error.
    """

    seconds = 5.0

    def __init__(self, stream: TextIO):
        self._stream, self._line, self._last = stream, "", time.monotonic()

    def write(self, text: str) -> int:
        for part in re.split(r"([\r\n])", text):
            if part == "\n":
                self._emit()
            elif part != "\r":
                self._line += part
            elif self._line.strip() and time.monotonic() - self._last > self.seconds:
                self._emit()
            else:
                self._line = ""
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are flushed when they end."""

    def close(self) -> None:
        """Write the last line, if it has not ended."""
        if self._line.strip():
            self._emit()

    def _emit(self) -> None:
        try:
            self._stream.write(f"{self._line}\n")
            self._stream.flush()
        except OSError:  # a closed pipe, a full disk: discard all output from now on
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._line, self._last = "", time.monotonic()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady_output():
    """While open, replace a stdout that is not a terminal by `Steady`."""
    if sys.stdout.isatty():
        yield
        return
    with contextlib.closing(Steady(sys.stdout)) as stream, contextlib.redirect_stdout(stream):
        yield


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; with its type unless tract raised it."""
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, fewer samples or smaller images"
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror  # without errno
    text = " ".join(line.strip() for line in text.splitlines())[:2000]
    ours = isinstance(error, ValueError | ArithmeticError | OSError | RuntimeError) and text
    return text if ours else f"{type(error).__name__}: {text}"


def add_compute(command: argparse.ArgumentParser, action: str = "store") -> None:
    """Add --compute to a command; action "append" lets it be repeated, to compare several."""
    text = "options, such as bf16 channels_last, or bf16+channels_last"
    text += "; may be repeated, to compare" if action == "append" else ""
    command.add_argument("--compute", nargs="+", action=action, default=[], help=text)


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, one object a line")
