"""What commands have in common: tables, JSON lines and options."""

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
    """Print rows of the same columns as an aligned table, or as JSON with one object a line.

    What is None or not finite is blank in the table and null in JSON, which knows no nan.
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
    """While this is open, bars and messages leave stdout to the rows if a machine reads them."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


class Steady:
    """A stream to a file or pipe: of a progress bar a line every few seconds, not all in one.

    Once nobody reads it, what is written is lost, and nothing fails.
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
        """Nothing: every line is flushed when it ends."""

    def close(self) -> None:
        """Write what no line has ended yet."""
        if self._line.strip():
            self._emit()

    def _emit(self) -> None:
        try:
            self._stream.write(f"{self._line}\n")
            self._stream.flush()
        except OSError:  # a closed pipe, a full disk: this and all that follows goes nowhere
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._line, self._last = "", time.monotonic()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady_output():
    """While this is open, stdout that is not a terminal is `Steady`."""
    if sys.stdout.isatty():
        yield
        return
    with contextlib.closing(Steady(sys.stdout)) as stream, contextlib.redirect_stdout(stream):
        yield


def one_line(error: BaseException) -> str:
    """What an error says, in one line; with its kind if it is none of ours."""
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, fewer samples or smaller images"
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror  # without its number
    text = " ".join(line.strip() for line in text.splitlines())[:2000]
    ours = isinstance(error, ValueError | ArithmeticError | OSError | RuntimeError) and text
    return text if ours else f"{type(error).__name__}: {text}"


def add_compute(command: argparse.ArgumentParser, action: str = "store") -> None:
    """--compute of a command; with action "append" it may come several times, to compare them."""
    text = "how, as in notebooks: bf16 channels_last, or bf16+channels_last"
    text += "; may be repeated, to compare" if action == "append" else ""
    command.add_argument("--compute", nargs="+", action=action, default=[], help=text)


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one object a line, for machines")
