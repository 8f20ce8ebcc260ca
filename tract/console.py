"""Tables and JSON lines for a terminal or a machine, and parameters as YAML."""

import argparse
import contextlib
import json
import math
import re
import sys
from pathlib import Path

import yaml

from tract.checks import is_number


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


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2 and in Python, and not text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str | Path) -> object:
    """What YAML says; ValueError, with where it stands, for what is none. Nothing is executed."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML, correct it: {error}") from error


def read_parameters(file: Path) -> dict:
    """Parameters by name from a YAML file; FileNotFoundError or ValueError with the remedy."""
    if not file.is_file():
        raise FileNotFoundError(f"no file of parameters {file}: correct the path")
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text ({error}): give parameters as YAML") from error
    parameters = read_yaml(text, file)
    if not isinstance(parameters, dict):
        raise ValueError(f"{file} is no list of `name: value` lines: write it so")
    return parameters


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one object a line, for machines")
