"""Argument checks with uniform messages: name, value given, values allowed."""

import math
from collections.abc import Iterable


def check_whole(name: str, value: object, least: int) -> None:
    """ValueError unless the value is a whole number, at least so large; True is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: use a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}: use {least} or more")


def check_positive(name: str, value: object) -> None:
    """ValueError unless the value is a finite number above 0."""
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}: use a number above 0")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """ValueError unless the value is one of these names."""
    if value not in list(choices):  # a list, because what was given may not be hashable
        raise ValueError(f"{name} is {value!r}: choose one of {list(choices)}")


def check_flag(name: str, value: object) -> None:
    """ValueError unless the value is True or False: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: use True or False")


def check_text(name: str, value: object) -> None:
    """ValueError unless the value is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}: use a text")


def is_number(value: object) -> bool:
    """Whether the value is a real number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
