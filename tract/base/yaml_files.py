"""Read YAML, with numbers as Python writes them."""

import re
from pathlib import Path

import yaml


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
