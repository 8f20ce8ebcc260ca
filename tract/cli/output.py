"""Print tables and JSON lines."""

import argparse
import contextlib
import json
import math
import sys

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


def add_compute(command: argparse.ArgumentParser, action: str = "store") -> None:
    """--compute of a command; with action "append" it may come several times, to compare them."""
    text = "how, as in notebooks: bf16 channels_last, or bf16+channels_last"
    text += "; may be repeated, to compare" if action == "append" else ""
    command.add_argument("--compute", nargs="+", action=action, default=[], help=text)


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one object a line, for machines")
